// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: the VMM confines itself. That guests of all kinds run in it is what all other tests show, since it is on by
//! default; these are about what it refuses, and that every thread is in it.

use std::time::Duration;

use anyhow::Result;

use super::{Host, PEER, WHOLE, results, scripted};
use crate::harness::{Case, Context, Tier};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "sandbox::gzvm", WHOLE, |context| {
            run(context, Host::Gzvm, "files and system calls")
        }),
        Case::new(Tier::System, "sandbox::kvm", PEER, |context| {
            run(context, Host::Kvm, "files and system calls")
        }),
        Case::new(Tier::System, "sandbox::no_landlock", WHOLE, |context| {
            run(context, Host::Gzvm, "system calls only")
        }),
    ]
}

/// `confined` is what `gz info` has to say about it.
fn run(context: &Context, host: Host, confined: &str) -> Result<()> {
    let script = format!("confined='{confined}'\n{SCRIPT}");
    let mut machine = scripted(context, host, &script, &[])?.parallel();
    if confined == "system calls only" {
        machine.boot.add_arguments("lsm=capability");
    }
    results(context, &machine, Duration::from_secs(200))?.check()
}

/// A guest that says every 50 ms that it lives; its disk's name leads elsewhere after a while.
const SCRIPT: &str = r#". /etc/test-library
head -c 1048576 /dev/zero >/tmp/disk
head -c 1048576 /dev/zero >/tmp/elsewhere
said() { grep -q "$1" /tmp/out; }
# How many threads there are, and how many of them have a filter and can gain nothing by a program.
threads() { ls /proc/$gz/task | wc -l; }
filtered() { cat /proc/$gz/task/*/status | grep -c '^Seccomp:.2'; }
bound() { cat /proc/$gz/task/*/status | grep -c '^NoNewPrivs:.1'; }
starts() { # OPTION...
    : >/tmp/out
    run_gz --name vm --kernel /guest/testguest.Image --cmdline crash=beat --cpus 2 --disk /tmp/disk --balloon 0 \
        --on-reset restart "$@" </dev/null >/tmp/out 2>&1 &
    gz=$!
    within state_is vm running
}
starts
gz info vm
holds says_so "$(gz info vm)" [ "$(gz info vm | sed -n 's/^sandbox *//p')" = "$confined" ]
# A thread that has answered ends, between two looks perhaps.
all_are() { [ "$($1)" = "$(threads)" ]; }
holds all_threads_are_filtered "$(filtered) of $(threads)" within all_are filtered
holds none_gains_by_a_program "$(bound) of $(threads)" within all_are bound
# The main thread has one filter; vCPUs, devices and others one more.
filters=$(sed -n 's/^Seccomp_filters:.//p' /proc/$gz/task/*/status | sort | uniq -c | tr -s ' \n' ' ')
echo "filters: $filters"
holds roles_are_narrower "$filters" [ "$(sed -n 's/^Seccomp_filters:.//p' /proc/$gz/status)" = 1 -a "$(sed -n 's/^Seccomp_filters:.//p' /proc/$gz/task/*/status | grep -c '^1$')" = 1 ]
case $confined in files*) holds no_warning "$(cat /tmp/out)" [ -z "$(grep Landlock /tmp/out)" ] ;; *) holds a_missing_landlock_is_told "$(cat /tmp/out)" said 'no Landlock' ;; esac

gz reset vm >/dev/null
holds restarts "$(tail -n 3 /tmp/out)" within eval 'gz info vm | grep -q "^lives *2"'
holds runs_again "$(gz status vm)" within state_is vm running
case $confined in files*)
    ln -sf /tmp/elsewhere /tmp/disk
    gz reset vm >/dev/null
    wait $gz
    status=$?
    holds another_file_of_that_name_is_refused "exit status $status: $(tail -n 1 /tmp/out)" said 'disk /tmp/disk: Permission denied'
    holds it_ends_as_our_own_failure "exit status $status" [ $status = 1 ]
    rm /tmp/disk
    mv /tmp/elsewhere /tmp/disk ;;
*)
    gz stop vm >/dev/null
    wait $gz ;;
esac
holds nothing_is_left "$(ls /run/gz)" [ -z "$(ls /run/gz)" ]

starts --no-sandbox
holds no_sandbox_is_loud "$(cat /tmp/out)" said 'WARNING: --no-sandbox'
holds no_sandbox_is_told "$(gz info vm)" [ "$(gz info vm | sed -n 's/^sandbox *//p')" = none ]
holds no_sandbox_is_none "$(filtered) of $(threads)" [ "$(filtered)" = 0 ]
gz stop vm >/dev/null
wait $gz
finish"#;
