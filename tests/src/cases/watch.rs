// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: exceptions of guests that do not know that they are watched.
//!
//! `echo c >/proc/sysrq-trigger` is no test of it: it calls panic(), which takes no exception, and ends in a reset that is told anyway.
//! What a stock kernel does take is the BRK of a kprobe.

use std::time::Duration;

use anyhow::Result;

use super::{Host, WHOLE, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
    machine::Machine,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        // Guests that spin for so many seconds, which QEMU counts slowly.
        Case::new(Tier::System, "watch::crashes", WHOLE, |context| {
            run(context, &scripted(context, Host::Gzvm, CRASHES, &[])?.parallel())
        }),
        Case::new(Tier::System, "watch::linux", WHOLE, linux),
    ]
}

fn run(context: &Context, machine: &Machine) -> Result<()> {
    results(context, machine, Duration::from_secs(400))?.check()
}

const CRASHES: &str = r#". /etc/test-library
test="--kernel /guest/testguest.Image"
kill="--on-exception kill"
ends stall 6 'gets nowhere' run_gz $test --watch stall=2s $kill --cmdline crash=hang
ends stall_resets 3 'asked for a reset' run_gz $test --watch stall=2s --on-exception reset --cmdline crash=hang
ends undefined 6 'undefined instruction of the guest' run_gz $test --watch undefined,abort $kill --cmdline crash=undefined
ends abort 6 "abort of the guest's kernel.*far 0x10000000000" run_gz $test --watch undefined,abort $kill --cmdline crash=abort
ends external 6 'where nothing is' run_gz $test --watch external $kill --cmdline crash=unmapped-exec
ends breakpoint 6 'BRK of the guest' run_gz $test --watch breakpoint $kill --cmdline crash=brk
ends only_reported 0 'abort of the guest' run_gz $test --watch undefined,abort --cmdline crash=abort-survived
ends not_watched 0 'SURVIVED' run_gz $test --watch stall=60s,serror $kill --cmdline crash=abort-survived
ends off_is_no_exception 0 CRASH run_gz $test --watch undefined,abort,breakpoint,serror,external,stall=30s $kill --cmdline crash=off
ends unknown_kind 2 'unknown exception' run_gz $test --watch aborts
ends stall_without_deadline 2 'deadline' run_gz $test --watch stall
finish"#;

/// A load in a guest under watch makes no event; a kprobe's BRKs do, and the guest does not mind.
fn linux(context: &Context) -> Result<()> {
    let work = initrd::guest(&context.layout, &[Extra::script(WORK)])?;
    let probe = initrd::guest(&context.layout, &[Extra::script(PROBE)])?;
    let extra = |path: &str, content| Extra { path: path.to_owned(), mode: 0o644, content };
    let extras = [extra("/guest/work.cpio", work), extra("/guest/probe.cpio", probe)];
    run(context, &scripted(context, Host::Gzvm, LINUX, &extras)?)
}

/// Programs that start and end, page faults in copies from and to programs, a fault of a program, computing.
const WORK: &str = r#"n=0
while [ $n -lt 60 ]; do
    n=$((n + 1))
    /bin/busybox true
done
for worker in 1 2; do
    (head -c 8388608 /dev/zero | md5sum) &
done
wait
dd if=/dev/zero of=/tmp/file bs=64k count=200 2>/dev/null
cp /tmp/file /tmp/copy
cmp /tmp/file /tmp/copy && echo "WORK-DONE cpus=$(nproc)""#;

const PROBE: &str = r#"mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
cd /sys/kernel/tracing
echo 'p:watched do_sys_openat2' >kprobe_events && echo 1 >events/kprobes/watched/enable
cat /proc/version >/dev/null
cat /proc/version >/dev/null
echo 0 >events/kprobes/watched/enable
grep -c watched trace
echo PROBE-DONE"#;

const LINUX: &str = r#". /etc/test-library
linux="--kernel /guest/Image --cpus 2 --mem 256M"
line="console=ttyS0 panic=-1 quiet cryptomgr.notests"
sleep 1000 | gz run $linux --initrd /guest/work.cpio --cmdline "$line" --control /tmp/vm \
    --watch undefined,abort,breakpoint,serror,external,stall=60s >/tmp/out 2>&1 &
until grep -q WORK-DONE /tmp/out || ! pidof gz >/dev/null && [ -s /tmp/out ]; do
    gz status /tmp/vm >/tmp/status 2>/dev/null
    usleep 200000
done
cat /tmp/out
holds work "see above" grep -q "WORK-DONE cpus=2" /tmp/out
holds no_event_under_load "$(cat /tmp/status)" sh -c '! grep -q seen /tmp/status && ! grep -q "gz: \|WARN" /tmp/out'
while pidof gz >/dev/null; do usleep 200000; done
killall sleep
run_gz $linux --initrd /guest/probe.cpio --cmdline "$line" --watch undefined,abort,breakpoint </dev/null >/tmp/out 2>&1
holds guest_powers_off "exit status" [ $? = 0 ]
cat /tmp/out
holds breakpoints_are_told "none" grep -q "BRK of the guest's kernel; pc 0xffff" /tmp/out
holds guest_goes_on "see above" grep -q PROBE-DONE /tmp/out
holds nothing_else "see above" sh -c '! grep -q "abort of\|undefined instruction of" /tmp/out'
finish"#;
