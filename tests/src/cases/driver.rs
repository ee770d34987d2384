// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: the driver as its clients see it, by a program that plays one. Soak tier: the same on a host with the newest Linux,
//! whose headers nothing else in the suite wants.

use std::time::Duration;

use anyhow::Result;

use super::{Host, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
    machine::Machine,
};

/// The driver for the newest Linux: a part that only `bench` and the soak tier build.
pub const NEWEST: &str = "gzvm-newest.ko";
const PARTS: &[&str] = &["hypervisor.Image", "gzvm.ko", "gzvm-check", "host-initrd.cpio"];
const NEWEST_PARTS: &[&str] = &["hypervisor.Image", NEWEST, "gzvm-check", "host-initrd.cpio"];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "driver::ioctls", PARTS, ioctls),
        Case::new(Tier::Soak, "driver::ioctls::newest_linux", NEWEST_PARTS, newest_linux),
    ]
}

/// Arguments, exits, signals, races; then nothing is held, and the module can go and come.
fn ioctls(context: &Context) -> Result<()> {
    run(context, &scripted(context, Host::Gzvm, SCRIPT, &[check(context)?])?.parallel())
}

fn newest_linux(context: &Context) -> Result<()> {
    let layout = &context.layout;
    let driver = Extra::file("/lib/modules/gzvm.ko", 0o644, &layout.part(NEWEST))?;
    let mut machine = scripted(context, Host::Gzvm, SCRIPT, &[check(context)?, driver])?.parallel();
    machine.boot.set_kernel(layout.newest_linux());
    run(context, &machine)
}

fn check(context: &Context) -> Result<Extra> {
    Extra::file("/bin/gzvm-check", 0o755, &context.layout.part("gzvm-check"))
}

fn run(context: &Context, machine: &Machine) -> Result<()> {
    results(context, machine, Duration::from_secs(400))?.check()
}

const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
gzvm-check >/tmp/checks
status=$?
grep -v DONE /tmp/checks
passed=$(grep -c PASS /tmp/checks) failed=$(grep -c FAIL /tmp/checks)
holds check_ends_well "status $status" [ $status = 0 ]
counters_return

sleep 5 </dev/gzvm &
within driver_is_held
holds module_in_use_stays "rmmod took it away" eval '! rmmod gzvm 2>/dev/null'
wait
gzvm-check hold 4 &
within driver_has_a_vm
holds module_with_a_vm_stays "rmmod took it away" eval '! rmmod gzvm 2>/dev/null'
wait
holds module_goes "rmmod refused" rmmod gzvm
holds module_comes_back "insmod refused" insmod /lib/modules/gzvm.ko
# Lock-ups and stalls are the emulator's on a busy PC.
dmesg | grep -E 'WARNING:|BUG:|Oops|Unable to handle|Internal error|Call trace:|external abort' | grep -v 'soft lockup' >/tmp/kernel
cat /tmp/kernel
holds kernel_is_quiet "see above" [ ! -s /tmp/kernel ]
finish"#;
