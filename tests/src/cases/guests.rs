// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: the bare-metal test guest under `gz`, which looks at its virtual machine from inside.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BOOT_LIMIT, Host, boot::CPUS, scripted};
use crate::{
    harness::{Case, Context, Tier},
    results::Results,
};

const ON_GZVM: &[&str] = &["hypervisor.Image", "gzvm.ko", "gz", "host-initrd.cpio", "guest-testguest.Image"];
const ON_KVM: &[&str] = &["gz", "host-initrd.cpio", "guest-testguest.Image"];

/// Lines of the hypervisor's log from the guest's start to the machine's end: one says that the host powers off.
const MOST_LINES: usize = 4;

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cpu in CPUS {
        cases.push(Case::new(Tier::System, format!("guests::testguest::{cpu}"), ON_GZVM, move |context| {
            testguest(context, Host::Gzvm, cpu, 4)
        }));
    }
    for vcpus in [1, 8] {
        cases.push(Case::new(
            Tier::System,
            format!("guests::testguest::{vcpus}_vcpus"),
            ON_GZVM,
            move |context| testguest(context, Host::Gzvm, "max", vcpus),
        ));
    }
    // The guest's own pages. The oldest CPU has those of 64 KiB, but not of 16.
    for (kib, cpu) in [(16, "max"), (64, "max"), (64, "cortex-a53")] {
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
    // The peer shows that a test asks for what a virtual machine is, not for what ours happens to do.
    cases.push(Case::new(Tier::System, "guests::testguest::kvm", ON_KVM, |context| {
        testguest(context, Host::Kvm, "max", 4)
    }));
    cases
}

fn testguest(context: &Context, host: Host, cpu: &str, vcpus: u32) -> Result<()> {
    selected(context, host, cpu, vcpus, "").map(drop)
}

/// The whole console.
fn selected(context: &Context, host: Host, cpu: &str, vcpus: u32, arguments: &str) -> Result<String> {
    let below = if host == Host::Kvm { "kvm" } else { "gzvm" };
    let script = format!(
        ". /etc/test-library
run_gz --kernel /guest/testguest.Image --cpus {vcpus} --mem 128M --cmdline \"hyp={below}{arguments}\" </dev/null
echo \"gz ended with $?\""
    );
    let mut machine = scripted(context, host, &script, &[])?;
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
