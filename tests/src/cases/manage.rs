// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: many guests at once in the hands of `gz`, by name: ten of them from TOML files, what is asked of each, and
//! what is left when their VMMs are killed.

use std::time::Duration;

use anyhow::Result;

use super::{Host, WHOLE, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    machine::Machine,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "manage::ten_guests", WHOLE, |context| {
            run(context, &scripted(context, Host::Gzvm, TEN, &[])?.parallel())
        }),
        Case::new(Tier::System, "manage::console", WHOLE, |context| {
            run(context, &scripted(context, Host::Gzvm, CONSOLE, &[])?)
        }),
    ]
}

fn run(context: &Context, machine: &Machine) -> Result<()> {
    results(context, machine, Duration::from_secs(300))?.check()
}

/// Ten guests that say every 50 ms that they live.
const TEN: &str = r#". /etc/test-library
held >/tmp/before
all="a b c d e f g h i j"
lives() { gz ps | grep -c running; }
listed() { [ "$(lives)" = "$1" ]; }
gone() { [ ! -e /run/gz/$1.lock ] && [ ! -e /run/gz/$1.sock ]; }
for name in $all; do
    cat >/tmp/$name.toml <<END
kernel = "/guest/testguest.Image"
cmdline = "crash=beat"
mem = "32M"
name = "$name"
END
    gz run --config /tmp/$name.toml >/tmp/$name.out 2>&1 </dev/null &
    eval "pid_$name=$!"
done
holds ten_run "$(lives) of 10 are listed" within listed 10
gz ps
# A guest that spins on a busy PC may let the second pass in which it is to answer.
json_lists_ten() { [ "$(gz ps --json | tr '{' '\n' | grep -c '"name":"[a-j]".*"state":"running"')" = 10 ]; }
holds json_lists_ten "$(gz ps --json)" within json_lists_ten
holds info_tells "$(gz info c)" [ "$(gz info c | sed -n 's/^process *\([0-9]*\),.*/\1/p')" = "$pid_c" ]
gz run --config /tmp/a.toml >/tmp/out 2>&1 </dev/null
holds a_name_is_taken_once "exit status $?: $(cat /tmp/out)" grep -q 'runs already' /tmp/out
gz run --config /tmp/a.toml --name k --cmdline crash=off >/tmp/out 2>&1 </dev/null
holds the_command_line_is_first "exit status $?: $(cat /tmp/out)" [ $? = 0 ]

askers=
for name in $all; do gz pause $name >/dev/null & askers="$askers $!"; done
wait $askers
paused=0
for name in $all; do state_is $name paused && paused=$((paused + 1)); done
holds all_are_paused "$paused of 10" [ $paused = 10 ]
holds none_is_running "$(lives) are" within listed 0
for name in $all; do gz resume $name >/dev/null; done
holds all_go_on "$(lives) of 10" within listed 10

kill -STOP $pid_b
others_run() { gz ps >/tmp/out; [ "$(grep -c running /tmp/out)" = 9 ]; }
holds others_than_a_stopped_gz_run "$(cat /tmp/out)" within others_run
holds a_stopped_gz_is_unresponsive "$(cat /tmp/out)" grep -q '^b .*unresponsive' /tmp/out
holds kill_needs_no_answer "refused" gz kill b
wait $pid_b
status=$?
holds kill_ends_it "exit status $status" [ $status = 137 ]
holds kill_leaves_nothing "$(ls /run/gz)" gone b

gz stop d >/dev/null
holds stop_waits_for_the_end "still listed: $(gz ps)" gone d
wait $pid_d
status=$?
holds stop_ends_the_run "exit status $status" [ $status = 5 ]
for signal in TERM:e:143 HUP:f:129; do
    name=${signal#*:} name=${name%:*}
    eval "pid=\$pid_$name"
    kill -${signal%%:*} $pid
    wait $pid
    status=$?
    holds signal_${signal%%:*}_ends_it "exit status $status" [ $status = ${signal##*:} ]
    holds signal_${signal%%:*}_leaves_nothing "$(ls /run/gz)" gone $name
done

kill -9 $pid_i
wait $pid_i 2>/dev/null
holds a_dead_one_is_not_listed "$(gz ps)" [ -z "$(gz ps | grep '^i ')" ]
holds its_files_are_gone "$(ls /run/gz)" gone i
gz run --config /tmp/i.toml >/tmp/i.out 2>&1 </dev/null &
pid_i=$!
holds its_name_is_free "$(cat /tmp/i.out)" within state_is i running
left="$pid_i $pid_a $pid_c $pid_g $pid_h $pid_j"
kill -9 $left
wait $left 2>/dev/null
holds stale_files_are_there "no" [ -e /run/gz/a.lock ]
gz run --kernel /none >/dev/null 2>&1
holds the_next_gz_removes_them "$(ls /run/gz)" [ -z "$(ls /run/gz)" ]
holds nothing_is_listed "$(gz ps)" [ "$(gz ps --json)" = "[]" ]
sleep 1
counters_return
finish"#;

/// A Linux guest whose shell is used through `gz console`, by several at once, over a reset.
const CONSOLE: &str = r#". /etc/test-library
held >/tmp/before
shows() { # PATTERN FILE
    looks 900 100000 grep -q "$1" $2 && return
    tail -n 5 $2
    return 1
}
gz run --name vm --kernel /guest/Image --initrd /guest/initrd.cpio --disk /guest/disk.img --mem 128M --on-reset restart \
    --cmdline "console=ttyS0 panic=-1 quiet cryptomgr.notests" </dev/null >/tmp/run.out 2>&1 &
vm=$!
shows 'poweroff. returns' /tmp/run.out
mkfifo /tmp/input
gz console vm </tmp/input >/tmp/one.out 2>&1 &
one=$!
exec 3>/tmp/input
gz console vm </dev/null >/tmp/two.out 2>&1 &
two=$!
holds the_past_is_shown "no" shows 'poweroff. returns' /tmp/one.out
echo 'echo said-$((40 + 2))' >&3
holds typing_reaches_the_guest "no" shows said-42 /tmp/one.out
holds others_see_it "no" shows said-42 /tmp/two.out
holds so_does_gz_run "no" shows said-42 /tmp/run.out
kill -9 $two
: >/tmp/one.out
gz reset vm >/dev/null
holds it_stays_over_a_reset "no" shows 'poweroff. returns' /tmp/one.out
echo poweroff >&3
wait $vm
status=$?
holds the_guest_powers_off "exit status $status" [ $status = 0 ]
exec 3>&-
wait $one
status=$?
holds the_console_ends_with_it "exit status $status" [ $status = 0 ]
counters_return
finish"#;
