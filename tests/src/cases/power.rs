// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: a VM's power in the hands of the VMM: pause, resume, stop, and resets that start the guest again.

use std::time::Duration;

use anyhow::Result;

use super::{Host, WHOLE, results, scripted};
use crate::harness::{Case, Context, Tier};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "power::control", WHOLE, |context| run(context, CONTROL)),
        Case::new(Tier::System, "power::restart", WHOLE, |context| run(context, RESTART)),
    ]
}

fn run(context: &Context, script: &str) -> Result<()> {
    // Watchdogs and heartbeats: guests that spin for so many seconds, which QEMU counts slowly.
    let machine = scripted(context, Host::Gzvm, script, &[])?.parallel();
    results(context, &machine, Duration::from_secs(200))?.check()
}

/// A guest that says every 50 ms that it lives.
const CONTROL: &str = r#". /etc/test-library
held >/tmp/before
beats() { grep -c BEAT /tmp/out; }
beats_past() { [ "$(beats)" -gt "$1" ]; }
# User and system time of the VMM, in ticks of 10 ms.
cpu() { cut -d' ' -f14,15 /proc/$(pidof gz)/stat | tr ' ' '+'; }
(sleep 1000 | gz run --kernel /guest/testguest.Image --cmdline crash=beat --cpus 2 --control /tmp/vm \
    >/tmp/out 2>&1; echo $? >/tmp/status) &
within [ -S /tmp/vm ]
within beats_past 3
holds status_running "$(gz status /tmp/vm)" [ "$(gz status /tmp/vm)" = running ]
holds pause "not paused" [ "$(gz pause /tmp/vm)" = paused ]
holds pause_again "not paused" [ "$(gz pause /tmp/vm)" = paused ]
usleep 200000
a=$(beats) burnt=$(($(cpu)))
sleep 2
b=$(beats) burnt=$(($(cpu) - burnt))
holds paused_guest_is_silent "$a beats, then $b" [ "$a" = "$b" ]
holds paused_guest_burns_nothing "$burnt ticks in 2 s" [ $burnt -lt 50 ]
holds status_paused "not paused" [ "$(gz status /tmp/vm)" = paused ]
holds resume "not running" [ "$(gz resume /tmp/vm)" = running ]
holds resumed_guest_goes_on "still $b beats" within beats_past $b
gz nonsense /tmp/vm 2>/dev/null
holds unknown_request "not a usage error" [ $? = 2 ]
gz pause /tmp/vm >/dev/null
holds stop_of_a_paused_guest "refused" gz stop /tmp/vm
killall sleep
within [ -s /tmp/status ]
holds stop_ends_the_run "exit status $(cat /tmp/status)" [ "$(cat /tmp/status)" = 5 ]
holds socket_is_gone "still there" [ ! -e /tmp/vm ]
gz status /tmp/vm 2>/dev/null
holds nobody_listens "not an error" [ $? = 1 ]
sleep 1
counters_return
finish"#;

/// Resets by the guest, by `gz reset`, and of a paused guest.
const RESTART: &str = r#". /etc/test-library
held >/tmp/before
lives() { grep -c "gzvm test guest" /tmp/out; }
has_lived() { [ "$(lives)" -ge "$1" ]; }
starts() { # crash
    rm -f /tmp/status
    # What the run before said is not this one's.
    : >/tmp/out
    (sleep 1000 | gz run --kernel /guest/testguest.Image --cmdline "crash=$1" --control /tmp/vm \
        --on-reset restart >/tmp/out 2>&1; echo $? >/tmp/status) &
    within has_lived 1
}
stops() {
    gz stop /tmp/vm >/dev/null
    killall sleep
    within [ -s /tmp/status ]
    [ "$(cat /tmp/status)" = 5 ]
}
ends watchdog_resets 3 'watchdog of vCPU 0' run_gz --kernel /guest/testguest.Image --cmdline crash=watchdog
ends petted_watchdog 0 SURVIVED run_gz --kernel /guest/testguest.Image --cmdline crash=watchdog-petted
starts reset
holds guest_resets_itself "$(lives) lives" within has_lived 5
holds stop_between_lives "exit status $(cat /tmp/status)" stops
starts beat
gz reset /tmp/vm >/dev/null
holds reset_by_the_vmm "$(lives) lives" within has_lived 2
pauses() { gz pause /tmp/vm >/dev/null 2>&1; }
within pauses
gz reset /tmp/vm >/dev/null
holds reset_of_a_paused_guest "$(lives) lives" within has_lived 3
within state_is /tmp/vm running
holds stop_at_last "exit status $(cat /tmp/status)" stops
sleep 1
counters_return
finish"#;
