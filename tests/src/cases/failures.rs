// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: what goes wrong. Each failure has its exit code and a message that names the cause, and leaves nothing
//! behind.

use std::time::Duration;

use anyhow::Result;

use super::{BOOT_LIMIT, Host, PEER, WHOLE, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    results::Results,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "failures::gzvm", WHOLE, |context| failures(context, Host::Gzvm)),
        Case::new(Tier::System, "failures::kvm", PEER, |context| failures(context, Host::Kvm)),
        Case::new(Tier::System, "failures::no_driver", WHOLE, no_driver),
    ]
}

/// Both hosts must pass the same list.
fn failures(context: &Context, host: Host) -> Result<()> {
    let script = r#". /etc/test-library
test=/guest/testguest.Image
linux="--kernel /guest/Image --mem 256M"
head -c 1000 /dev/zero >/tmp/truncated
head -c 1048576 /dev/zero >/tmp/disk
echo text >/tmp/text
[ -f $counters ] && held >/tmp/before
before=$(available)

ends power_off 0 CRASH run_gz --kernel $test --cmdline crash=off
ends reset 3 'asked for a reset' run_gz --kernel $test --cmdline crash=reset
ends linux_panic 3 'asked for a reset' run_gz $linux --cmdline 'console=ttyS0 panic=-1 quiet cryptomgr.notests rdinit=/none'
ends unmapped_read_is_logged 0 'unmapped address' run_gz --kernel $test --cmdline crash=unmapped-read
ends unmapped_write_is_logged 0 'unmapped address' run_gz --kernel $test --cmdline crash=unmapped-write
ends strict_unmapped_read 4 'guest crashed' run_gz --strict-mmio --kernel $test --cmdline crash=unmapped-read
ends unknown_hypercalls 0 'PASS. firmware::unknown_functions_keep_registers' \
    run_gz --kernel $test --cmdline filter=unknown_functions
ends kernel_is_no_image 1 'kernel /tmp/text' run_gz --kernel /tmp/text
ends kernel_is_a_program 1 'kernel /bin/busybox' run_gz --kernel /bin/busybox
ends kernel_is_missing 1 'kernel /none' run_gz --kernel /none
ends initrd_is_missing 1 'initrd /none' run_gz --kernel $test --initrd /none
ends disk_is_missing 1 'disk /none' run_gz --kernel $test --disk /none
ends disk_is_truncated 1 'disk /tmp/truncated' run_gz --kernel $test --disk /tmp/truncated
ends disk_is_a_folder 1 'disk /tmp' run_gz --kernel $test --disk /tmp
ends memory_is_too_small 1 'mem' run_gz --kernel $test --mem 1M
ends memory_beyond_the_map 1 'mem' run_gz --kernel $test --mem 4T
ends unknown_option 2 'bogus' run_gz --kernel $test --bogus
ends no_vcpu 2 'cpus' run_gz --kernel $test --cpus 0
ends good_disk 0 CRASH run_gz --kernel $test --disk /tmp/disk --cmdline crash=off

# Memory larger than the host has: refused, or taken as it is touched; the host must live on.
timeout -s KILL 60 run_gz --kernel $test --mem 64G --cmdline crash=off >/tmp/out 2>&1 </dev/null
status=$?
cat /tmp/out
holds memory_larger_than_the_host "exit status $status: $(tail -n 1 /tmp/out)" [ $status = 0 -o $status = 1 ]

sleep 1
if [ -f $counters ]; then
    counters_return
fi
memory_returns $before
finish"#;
    let machine = scripted(context, host, script, &[])?;
    let mut console = context.start(&machine, "console")?;
    console.expect_panics();
    console.wait_for("[HOST] Linux", BOOT_LIMIT)?;
    console.wait_for("[DONE]", Duration::from_secs(300))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

/// No `/dev/gzvm`, the driver's refusals, and its removal.
fn no_driver(context: &Context) -> Result<()> {
    let script = r#". /etc/test-library
test=/guest/testguest.Image
sleep 1000 | gz run --kernel $test --cmdline crash=hang >/dev/null 2>&1 &
within driver_has_a_vm
rmmod gzvm 2>/tmp/out
holds unloading_with_a_live_vm_is_refused "rmmod succeeded" [ -c /dev/gzvm ]
killall -9 gz
within driver_has_no_vm
usleep 500000
rmmod gzvm
holds unloading "the device is still there" [ ! -c /dev/gzvm ]
ends no_device 1 '/dev/gzvm' run_gz --kernel $test
insmod /lib/modules/gzvm.ko
holds loading_again "no device" [ -c /dev/gzvm ]
ends works_again 0 CRASH run_gz --kernel $test --cmdline crash=off
killall sleep
finish"#;
    let machine = scripted(context, Host::Gzvm, script, &[])?;
    results(context, &machine, Duration::from_secs(120))?.check()
}
