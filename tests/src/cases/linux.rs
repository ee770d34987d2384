// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: a stock Linux as host VM, on other CPU models, CPU counts and memory sizes.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BOOT_LIMIT, Host, boot::CPUS, scripted};
use crate::harness::{Case, Context, Tier};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for cpu in CPUS {
        cases.push(Case::new(
            Tier::System,
            format!("linux::host::{cpu}"),
            &["hypervisor.Image", "host-initrd.cpio"],
            move |context| linux_host(context, Host::Gzvm, cpu, 4, "2G"),
        ));
    }
    for (smp, memory) in [(1, "1G"), (2, "64G"), (8, "4G")] {
        cases.push(Case::new(
            Tier::System,
            format!("linux::host::{smp}_cpus_{memory}"),
            &["hypervisor.Image", "host-initrd.cpio"],
            move |context| linux_host(context, Host::Gzvm, "max", smp, memory),
        ));
    }
    cases.push(Case::new(Tier::System, "linux::host::kvm", &["host-initrd.cpio"], |context| {
        linux_host(context, Host::Kvm, "max", 4, "2G")
    }));
    cases
}

/// All CPUs come up, CPU hot-plug works where there is more than one, power-off ends the machine.
fn linux_host(context: &Context, host: Host, cpu: &str, smp: u32, memory: &str) -> Result<()> {
    let script = "echo \"cpus=$(nproc)\"; grep MemTotal /proc/meminfo
if [ -f /sys/devices/system/cpu/cpu1/online ]; then
    echo 0 > /sys/devices/system/cpu/cpu1/online && echo 1 > /sys/devices/system/cpu/cpu1/online && echo \"hotplug=ok cpus=$(nproc)\"
else
    echo hotplug=none
fi";
    let mut machine = scripted(context, host, script, &[])?;
    cpu.clone_into(&mut machine.cpu);
    machine.smp = smp;
    memory.clone_into(&mut machine.memory);
    let mut console = context.start(&machine, "console")?;
    console.wait_for(&format!("cpus={smp}\n"), BOOT_LIMIT)?;
    if smp > 1 {
        console.wait_for(&format!("hotplug=ok cpus={smp}"), Duration::from_secs(30))?;
    }
    console.wait_for("script ended with status 0", Duration::from_secs(30))?;
    console.wait_power_off(Duration::from_secs(30))?;
    ensure!(!console.text().contains("Call trace:"), "the host's kernel complained");
    Ok(())
}
