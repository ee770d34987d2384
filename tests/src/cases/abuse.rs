// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Abuse tier: a hostile Linux host. Hostile calls of a bare-metal host are in the boot tier (`guests/testhost`).

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{BOOT_LIMIT, Host, WHOLE, boot::CPUS, scripted};
use crate::{
    harness::{Case, Context, Tier},
    results::Results,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    CPUS.into_iter()
        .map(|cpu| {
            Case::new(
                Tier::Abuse,
                format!("abuse::host_touches_the_hypervisor::{cpu}"),
                WHOLE,
                move |context| host_touches_the_hypervisor(context, cpu),
            )
        })
        .collect()
}

/// Reads and writes of the hypervisor's memory by root on the host end that process, and nothing else.
fn host_touches_the_hypervisor(context: &Context, cpu: &str) -> Result<()> {
    // Where it is, a first start says: the same machine places it at the same address.
    let mut machine = scripted(context, Host::Gzvm, "true", &[])?;
    cpu.clone_into(&mut machine.cpu);
    let mut console = context.start(&machine, "first")?;
    console.wait_for("for the hypervisor at ", BOOT_LIMIT)?;
    let pool = console.wait_for(",", Duration::from_secs(10))?;
    console.wait_for("image ", Duration::from_secs(10))?;
    console.wait_for(" at ", Duration::from_secs(10))?;
    let image = console.wait_for("\n", Duration::from_secs(10))?;
    drop(console);
    for address in [&pool, &image] {
        address.strip_prefix("0x").with_context(|| format!("no address: {address}"))?;
    }

    let script = format!("pool={pool} image={image}\n{TOUCH}");
    let mut machine = scripted(context, Host::Gzvm, &script, &[])?;
    cpu.clone_into(&mut machine.cpu);
    let mut console = context.start(&machine, "console")?;
    console.wait_for("[DONE]", BOOT_LIMIT)?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

const TOUCH: &str = r#". /etc/test-library
aborts=$(counter host_abort)
for address in $image $((image + 4096)) $pool $((pool + 1048576)); do
    timeout 20 devmem $address >/tmp/out 2>&1
    status=$?
    holds read_$address "exit status $status: $(cat /tmp/out)" [ $status = 135 ]
    timeout 20 devmem $address 32 0 >/tmp/out 2>&1
    status=$?
    holds write_$address "exit status $status: $(cat /tmp/out)" [ $status = 135 ]
done
holds each_is_counted "$aborts, then $(counter host_abort)" [ $(($(counter host_abort) - aborts)) -ge 8 ]
ends guests_run_on 0 CRASH run_gz --kernel /guest/testguest.Image --cpus 2 --cmdline crash=off
finish"#;
