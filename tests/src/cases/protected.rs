// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: protected VMs, from `gz run --protected` to their end.

use std::time::Duration;

use anyhow::Result;

use super::{Host, WHOLE, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new(Tier::System, "protected::starts_what_is_signed", WHOLE, starts_what_is_signed)]
}

/// The key that the firmware is built with, unless told otherwise.
const KEY: &str = include_str!("../../../firmware/keys/development.key");

fn starts_what_is_signed(context: &Context) -> Result<()> {
    let extras = [Extra::text("/guest/development.key", KEY)];
    let machine = scripted(context, Host::Gzvm, SCRIPT, &extras)?;
    results(context, &machine, Duration::from_secs(400))?.check()
}

const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
arguments="hyp=gzvm filter=memory,timer,psci"
cd /tmp
gz sign --key /guest/development.key --kernel /guest/testguest.Image --cmdline "$arguments" --output signed
run() { # KERNEL ARGUMENTS...
    kernel=$1
    shift
    timeout -s KILL 300 gz run --protected --kernel $kernel --cpus 2 --mem 64M "$@" >out 2>&1 </dev/null
    status=$?
    sed 's/^/    | /; s/\[\([A-Z]*\)\] /<\1> /' out | tail -n 70
}
aborts=$(counter host_abort)
(
    most=0
    while [ ! -e over ]; do
        pages=$(counter driver_private_pages)
        [ $pages -gt $most ] && most=$pages
        echo $most >most
        usleep 50000
    done
) &
run signed --cmdline "$arguments"
touch over
wait
# Its memory is a file of the driver's, and whatever gz does there is not stopped by an abort.
holds memory_leaves_gz "at most $(cat most) pages" [ $(cat most) -gt 1000 ]
holds no_aborts "$aborts, then $(counter host_abort)" [ $(counter host_abort) = $aborts ]
holds signed_runs "exit status $status" [ $status = 0 ]
holds firmware_says_so "it does not" grep -q "pvmfw: the payload is signed" out
holds its_cases_pass "see above" grep -q "^\[DONE\].*failed=0" out
run signed --cmdline "$arguments more"
holds other_arguments_are_refused "status $status" grep -q "pvmfw: not started: the boot arguments" out
run /guest/testguest.Image --cmdline "$arguments"
holds unsigned_is_refused "status $status" grep -q "pvmfw: not started: the kernel is not signed" out
counters_return
finish"#;
