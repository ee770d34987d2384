// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System and soak tiers: several guests, a busy host, many starts and kills, and what must not happen meanwhile.

use std::{fs, time::Duration};

use anyhow::Result;

use super::{BOOT_LIMIT, Host, WHOLE, protected, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "stress::start_and_kill", WHOLE, |context| start_and_kill(context, 16)),
        Case::new(Tier::Soak, "stress::start_and_kill_200", WHOLE, |context| start_and_kill(context, 200)),
        Case::new(Tier::System, "stress::start_and_kill_protected", WHOLE, |context| {
            start_and_kill_protected(context, 16)
        }),
        Case::new(Tier::Soak, "stress::start_and_kill_protected_1000", WHOLE, |context| {
            start_and_kill_protected(context, 1000)
        }),
        Case::new(Tier::System, "stress::two_guests_on_a_busy_host", WHOLE, two_guests),
        Case::new(Tier::System, "stress::busy_host_enters_no_el2", WHOLE, no_entries),
        // By the bits that the CPU has for a VMID.
        Case::new(Tier::System, "stress::vms::16_bits", WHOLE, |context| many_vms(context, "max", 300, 1024)),
        Case::new(Tier::System, "stress::vms::8_bits", WHOLE, |context| {
            many_vms(context, "cortex-a72", 255, 256)
        }),
    ]
}

/// `possible` VMs are there at once and run; `too_many` are not, and leave nothing. 36 KiB a VM are EL2's, so the machine is larger.
fn many_vms(context: &Context, cpu: &str, possible: u32, too_many: u32) -> Result<()> {
    let script = format!(
        ". /etc/test-library
held >/tmp/before
ulimit -n 4096
holds vms_at_once \"$(tail -n 1 /tmp/out)\" eval 'gzvm-check scale vms {possible} >/tmp/out'
holds too_many_are_refused \"they are not\" eval '! gzvm-check scale vms {too_many} >/tmp/out'
sed 's/^/    | /; s/\\[\\([A-Z]*\\)\\] /<\\1> /' /tmp/out
# Ids come back.
holds vms_again \"$(tail -n 1 /tmp/out)\" eval 'gzvm-check scale vms {possible} >/tmp/out'
counters_return
finish"
    );
    let mut machine = scripted(context, Host::Gzvm, &script, &[])?;
    cpu.clone_into(&mut machine.cpu);
    "16G".clone_into(&mut machine.memory);
    results(context, &machine, Duration::from_secs(400))?.check()
}

/// Half of the VMMs are killed outright; neither driver nor hypervisor may keep anything.
fn start_and_kill(context: &Context, times: u32) -> Result<()> {
    const LINUX: &str = "--kernel /guest/Image --initrd /guest/initrd.cpio --mem 192M";
    killed_again_and_again(context, times, LINUX, "console=ttyS0 panic=-1 quiet cryptomgr.notests", &[])
}

/// The same with protected VMs: the firmware, and then the test guest.
fn start_and_kill_protected(context: &Context, times: u32) -> Result<()> {
    const ARGUMENTS: &str = "hyp=gzvm";
    let kernel = fs::read(context.layout.part("guest-testguest.Image"))?;
    let image = protected::signed(&kernel, &[], ARGUMENTS)?;
    killed_again_and_again(
        context,
        times,
        "--protected --kernel /guest/signed.Image --mem 64M",
        ARGUMENTS,
        &[image],
    )
}

fn killed_again_and_again(
    context: &Context,
    times: u32,
    options: &str,
    arguments: &str,
    extras: &[Extra],
) -> Result<()> {
    let script = format!("times={times} options='{options}' arguments='{arguments}'\n{START_AND_KILL}");
    let machine = scripted(context, Host::Gzvm, &script, extras)?.parallel();
    results(context, &machine, Duration::from_secs(120 + 4 * u64::from(times)))?.check()
}

const START_AND_KILL: &str = r#". /etc/test-library
gz_once() {
    # Held open: an end of the input would not end a guest, but a person's console has none.
    sleep 1000 | gz run $options --cpus 2 --cmdline "$arguments" >/tmp/gz.out 2>&1 &
    until pidof gz >/dev/null; do usleep 10000; done
    # The guest is somewhere between its first instruction and its shell.
    usleep $((100000 + $1 * 104729 % 1900000))
    killall -"$2" gz
    while pidof gz >/dev/null; do usleep 20000; done
    killall sleep
    wait
}
gz_once 1 KILL
usleep 500000
held >/tmp/before
before=$(available)
n=0
while [ $n -lt $times ]; do
    if [ $((n % 2)) = 0 ]; then gz_once $n KILL; else gz_once $n TERM; fi
    n=$((n + 1))
done
usleep 500000
counters_return
memory_returns $before
finish"#;

/// Two 2-vCPU guests while every CPU of the host is busy.
fn two_guests(context: &Context) -> Result<()> {
    let guest = initrd::guest(&context.layout, &[Extra::script(GUEST_WORK)])?;
    let extra = Extra { path: "/guest/work.cpio".to_owned(), mode: 0o644, content: guest };
    let mut machine = scripted(context, Host::Gzvm, TWO_GUESTS, &[extra])?.parallel();
    // As many as a PC has at least: with more, QEMU's threads wait for each other, and the guests for minutes.
    machine.smp = 2;
    results(context, &machine, Duration::from_secs(700))?.check()
}

/// In the guest: short sleeps must end, and not much too late; then computing on both vCPUs.
const GUEST_WORK: &str = r#"n=0
while [ $n -lt 25 ]; do
    usleep 100000
    n=$((n + 1))
done
read -r up _ </proc/uptime
echo "sleeps done at $up"
for worker in 1 2; do
    (head -c 8388608 /dev/zero | md5sum) &
done
wait
echo "WORK-DONE cpus=$(nproc)""#;

const TWO_GUESTS: &str = r#". /etc/test-library
for cpu in $(seq $(nproc)); do
    (n=0; trap 'echo $n >/tmp/burn.$cpu; exit' TERM; while :; do n=$((n + 1)); done) &
    burners="$burners $!"
done
for guest in 1 2; do
    sleep 1000 | gz run --kernel /guest/Image --initrd /guest/work.cpio --cpus 2 --mem 256M \
        --cmdline "console=ttyS0 panic=-1 quiet cryptomgr.notests" >/tmp/guest.$guest 2>&1 &
    gzs="$gzs $!"
done
both_run() { [ "$(pidof gz | wc -w)" = 2 ]; }
within both_run
limit=$(($(now) + 60000))
while pidof gz >/dev/null && [ $(now) -lt $limit ]; do sleep 1; done
kill $burners
wait $burners
cat /tmp/guest.1 /tmp/guest.2
for guest in 1 2; do
    holds guest_${guest}_finishes "see its console above" grep -q 'WORK-DONE cpus=2' /tmp/guest.$guest
    holds guest_${guest}_computes_right "wrong sums" [ "$(grep -c 96995b58d4cbf6aaa9041b4f00c7f6ae /tmp/guest.$guest)" = 2 ]
done
least=$(cat /tmp/burn.* | sort -n | head -n 1)
most=$(cat /tmp/burn.* | sort -n | tail -n 1)
echo "loops of the busy processes: $least to $most"
# Two busy processes and four vCPUs on two CPUs; QEMU's own threads may share fewer real ones.
holds host_schedules_fairly "$least to $most loops" [ $((most)) -lt $((least * 4)) ]
killall sleep
finish"#;

/// No guest running: interrupts reach the host without EL2.
fn no_entries(context: &Context) -> Result<()> {
    let machine = scripted(context, Host::Gzvm, NO_ENTRIES, &[])?.parallel();
    results(context, &machine, BOOT_LIMIT)?.check()
}

const NO_ENTRIES: &str = r#". /etc/test-library
interrupts() { awk '/arch_timer|IPI/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum }' /proc/interrupts; }
ends a_guest_first 0 CRASH run_gz --kernel /guest/testguest.Image --cpus 2 --cmdline crash=off
usleep 500000
for cpu in $(seq $(nproc)); do
    (while :; do :; done) &
    burners="$burners $!"
done
before=$(counter host_irq)
fiq=$(counter guest_irq)
taken=$(interrupts)
sleep 10
taken=$(($(interrupts) - taken))
after=$(counter host_irq)
kill $burners
echo "the host took $taken interrupts in 10 s; EL2 was entered for $((after - before)) of them"
holds the_host_is_interrupted "only $taken interrupts in 10 s" [ $taken -gt 200 ]
holds no_interrupt_enters_el2 "$((after - before)) entries" [ "$before" = "$after" ]
holds no_guest_interrupts "counted without a guest" [ "$fiq" = "$(counter guest_irq)" ]
finish"#;
