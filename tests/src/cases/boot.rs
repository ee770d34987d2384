// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot tier: the EL2 image alone, and with bare-metal guests in the host's place.

use std::time::Duration;

use anyhow::Result;

use super::BOOT_LIMIT;
use crate::{
    harness::{Case, Context, Tier},
    layout::Layout,
    machine::{Boot, Kernel, Machine},
    results::Results,
};

/// CPU models that differ in what EL2 offers: without VHE (Armv8.0), with it, servers, everything.
pub const CPUS: [&str; 4] = ["cortex-a53", "cortex-a76", "neoverse-n1", "max"];

/// A device on PCI that copies memory.
pub const DMA_DEVICE: [&str; 2] = ["-device", "edu,dma_mask=0xffffffffffff"];

/// The tier of a long test on `cpu`, else in `tier`: to EL2 and to a guest the two servers' cores are alike.
#[must_use]
pub fn tier_on(cpu: &str, tier: Tier) -> Tier {
    if cpu == "neoverse-n1" { Tier::Soak } else { tier }
}

/// The tests of this file.
#[must_use]
pub fn cases(_layout: &Layout) -> Vec<Case> {
    let mut cases = Vec::new();
    for cpu in CPUS {
        cases.push(Case::new(
            tier_on(cpu, Tier::Boot),
            format!("boot::testhost::{cpu}"),
            &["hypervisor.Image", "firmware.Image", "guest-testhost.Image"],
            move |context| results_of_testhost(context, cpu, 4, "2G", ""),
        ));
    }
    for (smp, memory) in [(1, "1G"), (2, "64G"), (8, "4G")] {
        cases.push(Case::new(
            Tier::Boot,
            format!("boot::testhost::{smp}_cpus_{memory}"),
            &["hypervisor.Image", "firmware.Image", "guest-testhost.Image"],
            move |context| results_of_testhost(context, "max", smp, memory, SIZES),
        ));
    }
    cases
}

/// What may depend on the numbers of CPUs and of pages. Calls between VMs, half of the program's time, do not.
const SIZES: &str = "filter=host,guest::,hypercall::,exit::,levels::,life::,tables::,unmap::,protected::,watch::,abuse::,firmware::,\
addresses::,capability::,convention::,lending::";

/// The bare-metal test program as host VM; it reports by result lines, then powers off.
fn results_of_testhost(context: &Context, cpu: &str, smp: u32, memory: &str, arguments: &str) -> Result<()> {
    let mut machine = testhost(context, arguments);
    cpu.clone_into(&mut machine.cpu);
    machine.smp = smp;
    memory.clone_into(&mut machine.memory);
    check_results(context, &machine, BOOT_LIMIT)
}

/// The bare-metal test program as host VM, with these boot arguments.
#[must_use]
pub fn testhost(context: &Context, arguments: &str) -> Machine {
    let host = Kernel {
        image: context.layout.part("guest-testhost.Image"),
        initrd: None,
        arguments: arguments.to_owned(),
    };
    Machine::new(Boot::Hypervisor {
        image: context.layout.part("hypervisor.Image"),
        firmware: Some(context.layout.part("firmware.Image")),
        host: Some(host),
    })
}

/// The machine's program reports by result lines within `limit`, then powers off.
///
/// # Errors
/// It does not, or a result is a failure.
pub fn check_results(context: &Context, machine: &Machine, limit: Duration) -> Result<()> {
    let mut console = context.start(machine, "console")?;
    console.wait_for("[DONE]", limit)?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}
