// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: crosvm's calls, by a program that makes them in its order and boots a stock Linux with its device tree.

use std::time::Duration;

use anyhow::Result;

use super::{Host, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
};

const PARTS: &[&str] = &["hypervisor.Image", "gzvm.ko", "gzvm-check", "host-initrd.cpio"];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let case = |vcpus: u32| {
        Case::new(Tier::System, format!("crosvm::linux::{vcpus}_vcpus"), PARTS, move |context| {
            linux(context, vcpus)
        })
    };
    vec![case(1), case(2), case(8)]
}

/// To the guest's shell, commands, power-off; the guest saw the CPUs, and its virtio console by PCI and INTx. Then nothing is held.
fn linux(context: &Context, vcpus: u32) -> Result<()> {
    let check = Extra::file("/bin/gzvm-check", 0o755, &context.layout.part("gzvm-check"))?;
    let script = format!("vcpus={vcpus}\n{SCRIPT}");
    let machine = scripted(context, Host::Gzvm, &script, &[check])?;
    results(context, &machine, Duration::from_secs(300))?.check()
}

/// What is typed is said with a gap, so that its echo is no answer.
const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
gzvm-check crosvm $vcpus /guest/Image /guest/initrd.cpio \
    'echo "saw ""$(nproc) CPUs"' \
    'for n in 1 2 3 4; do echo "pci ""line $n" >/dev/hvc0; done; sleep 1' \
    'echo "taken ""$(grep -c "[1-9].* 36 Level .*virtio0" /proc/interrupts)"' \
    'poweroff' >/tmp/out 2>&1
status=$?
cat /tmp/out
holds ends_with_stop "status $status" [ $status = 0 ]
holds cpus_are_there "see above" grep -q "saw $vcpus CPUs" /tmp/out
holds output_by_virtio "see above" grep -q '^hvc0: pci line 4' /tmp/out
holds interrupts_by_intx "see above" grep -q 'taken 1' /tmp/out
holds was_kicked "see above" grep -q 'Stop, [1-9][0-9]* kicks' /tmp/out
counters_return
finish"#;
