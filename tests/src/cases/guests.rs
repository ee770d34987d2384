// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: the bare-metal test guest under `gz`, which looks at its virtual machine from inside.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{
    BOOT_LIMIT, Host,
    boot::{CPUS, tier_on},
    scripted,
};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
    results::Results,
};

const ON_GZVM: &[&str] = &["hypervisor.Image", "gzvm.ko", "gz", "host-initrd.cpio", "guest-testguest.Image"];
const WITH_CHECK: &[&str] =
    &["hypervisor.Image", "gzvm.ko", "gz", "host-initrd.cpio", "guest-testguest.Image", "gzvm-check"];
const ON_KVM: &[&str] = &["gz", "host-initrd.cpio", "guest-testguest.Image"];

const CRATES: &[&str] = &["hypervisor.Image", "gzvm.ko", "gz", "host-initrd.cpio", "guest-crates.Image"];
const CRATES_ON_KVM: &[&str] = &["gz", "host-initrd.cpio", "guest-crates.Image"];

/// Lines of the hypervisor's log from the guest's start to the machine's end: one says that the host powers off.
const MOST_LINES: usize = 4;

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cpu in CPUS {
        let tier = tier_on(cpu, Tier::System);
        let cases_of = if tier == Tier::System && cpu != "max" { OF_A_CPU } else { "" };
        cases.push(Case::new(tier, format!("guests::testguest::{cpu}"), ON_GZVM, move |context| {
            selected(context, Host::Gzvm, cpu, 4, cases_of).map(drop)
        }));
    }
    for vcpus in [1, 8] {
        cases.push(Case::new(
            Tier::System,
            format!("guests::testguest::{vcpus}_vcpus"),
            ON_GZVM,
            move |context| selected(context, Host::Gzvm, "max", vcpus, OF_THE_NUMBER).map(drop),
        ));
    }
    // The guest's own pages. The oldest CPU has those of 64 KiB, but not of 16.
    for (kib, cpu) in [(16, "max"), (64, "cortex-a53")] {
        cases.push(Case::new(
            Tier::System,
            format!("guests::testguest::{kib}k_pages::{cpu}"),
            ON_GZVM,
            move |context| {
                let arguments =
                    format!(" granule={kib} filter=granules,psci,suspend,decoded,time,interrupts,memory");
                let console = selected(context, Host::Gzvm, cpu, 2, &arguments)?;
                ensure!(console.contains(&format!("pages of {kib} KiB")), "the guest has 4 KiB pages");
                Ok(())
            },
        ));
    }
    // More vCPUs than the public ABI has, on a host with four CPUs: what is between vCPUs.
    for vcpus in [32, 64] {
        cases.push(Case::new(
            Tier::System,
            format!("guests::testguest::{vcpus}_vcpus"),
            ON_GZVM,
            move |context| {
                selected(context, Host::Gzvm, "max", vcpus, " filter=sgi::,psci::,gic::").map(drop)
            },
        ));
    }
    cases.push(Case::new(Tier::System, "guests::testguest::sve", WITH_CHECK, sve));
    // A kernel that is neither ours nor Linux, as far as its parts go.
    for (host, name) in [(Host::Gzvm, "guests::crates"), (Host::Kvm, "guests::kvm::crates")] {
        let needs = if host == Host::Kvm { CRATES_ON_KVM } else { CRATES };
        cases.push(Case::new(Tier::System, name, needs, move |context| crates(context, host, "")));
    }
    cases.push(Case::new(Tier::System, "guests::crates::private_memory", CRATES, |context| {
        crates(context, Host::Gzvm, "--private-memory")
    }));
    // The peer shows that a test asks for what a virtual machine is, not for what ours happens to do.
    cases.push(Case::new(Tier::System, "guests::testguest::kvm", ON_KVM, |context| {
        selected(context, Host::Kvm, "max", 4, "").map(drop)
    }));
    cases
}

/// What may depend on the CPU's model: all but the GIC's registers, of which each is tried in each way.
const OF_A_CPU: &str = " filter=granules,registers,branch,sve,sysregs,debug,firmware,hashes,psci,suspend,devices,decoded,timer,sgi,\
interrupts,memory";
/// What may depend on how many vCPUs there are; the GIC's and the system registers, half of the program's time, do not.
const OF_THE_NUMBER: &str = " filter=firmware,psci,suspend,devices,timer,sgi,interrupts,memory";

/// The whole console.
fn selected(context: &Context, host: Host, cpu: &str, vcpus: u32, arguments: &str) -> Result<String> {
    let below = if host == Host::Kvm { "kvm" } else { "gzvm" };
    let script = format!(
        ". /etc/test-library
run_gz --kernel /guest/testguest.Image --cpus {vcpus} --mem 128M --cmdline \"hyp={below}{arguments}\" </dev/null
echo \"gz ended with $?\""
    );
    let mut machine = scripted(context, host, &script, &[])?.parallel();
    cpu.clone_into(&mut machine.cpu);
    let mut console = context.start(&machine, "console")?;
    console.wait_for("gzvm test guest:", BOOT_LIMIT)?;
    console.wait_for("[DONE]", Duration::from_secs(480))?;
    console.wait_for("gz ended with 0", Duration::from_secs(30))?;
    console.wait_power_off(Duration::from_secs(30))?;
    // Whatever a guest tries, EL2 has nothing to say: a guest must not fill the console.
    let text = console.text();
    let during = text.split_once("gzvm test guest:").map_or("", |(_, after)| after);
    let lines = during.lines().filter(|line| line.starts_with("gzvm [")).count();
    ensure!(lines <= MOST_LINES, "the hypervisor logged {lines} lines while the guest ran");
    Results::read(&text)?.check()?;
    Ok(text)
}

/// A VM that was given SVE, with more vCPUs than CPUs, beside a host process that uses it too.
fn sve(context: &Context) -> Result<()> {
    let script = ". /etc/test-library
gzvm-check vectors 20 >/tmp/vectors & patterns=$!
run_gz --kernel /guest/testguest.Image --features sve --cpus 6 --mem 128M --cmdline 'hyp=gzvm given=sve filter=sve::,registers::,sysregs::id,sysregs::every_m,decoded::' </dev/null
echo \"gz ended with $?\"
wait $patterns; echo \"host patterns ended with $?: $(cat /tmp/vectors)\"
run_gz --kernel /guest/testguest.Image --features mte </dev/null; echo \"unknown feature: $?\"
";
    let check = Extra::file("/bin/gzvm-check", 0o755, &context.layout.part("gzvm-check"))?;
    // The host's process computes for so many seconds.
    let machine = scripted(context, Host::Gzvm, script, &[check])?.parallel();
    let mut console = context.start(&machine, "console")?;
    console.wait_for("gzvm test guest:", BOOT_LIMIT)?;
    console.wait_for("[DONE]", Duration::from_secs(480))?;
    console.wait_for("gz ended with 0", Duration::from_secs(30))?;
    console.wait_for("host patterns ended with 0: vectors: ", Duration::from_secs(120))?;
    console.wait_for("unknown feature: 2", Duration::from_secs(60))?;
    console.wait_power_off(Duration::from_secs(30))?;
    let results = Results::read(&console.text())?;
    ensure!(console.text().contains("[PASS] sve::state_survives"), "SVE was not tested");
    results.check()
}

/// A kernel of other people's crates: its result lines, and that it turns off.
fn crates(context: &Context, host: Host, options: &str) -> Result<()> {
    let script = format!(
        "run_gz --kernel /guest/crates.Image --cpus 2 --mem 64M {options} </dev/null
echo \"gz ended with $?\""
    );
    let mut console = context.start(&scripted(context, host, &script, &[])?, "console")?;
    console.wait_for("a kernel of other people's crates", BOOT_LIMIT)?;
    console.wait_for("[DONE]", Duration::from_secs(120))?;
    console.wait_for("gz ended with 0", Duration::from_secs(30))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}
