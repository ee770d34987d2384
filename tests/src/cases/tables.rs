// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: a hypervisor that has no page of its own for VMs' tables, so that all of them are in memory that the driver gives.

use std::time::Duration;

use anyhow::Result;
use gzvm_core::broken::Mistake;

use super::{Host, broken::CRASH_IMAGE, protected::KEY, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
};

const NEEDS: &[&str] =
    &[CRASH_IMAGE, "firmware.Image", "gzvm.ko", "gz", "host-initrd.cpio", "guest-testguest.Image"];

/// The test of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new(Tier::System, "tables::driver_gives_memory", NEEDS, driver_gives_memory)]
}

fn driver_gives_memory(context: &Context) -> Result<()> {
    let key = Extra::text("/guest/development.key", KEY);
    // By the PC's clock: the script looks while the guest runs.
    let mut machine = scripted(context, Host::Gzvm, SCRIPT, &[key])?.parallel();
    machine.boot.set_image(context.layout.part(CRASH_IMAGE));
    machine.boot.add_arguments(&format!("el2-break={}", Mistake::NoTables.number()));
    results(context, &machine, Duration::from_secs(400))?.check()
}

const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
cd /tmp
arguments="hyp=gzvm filter=memory"
gz sign --key /guest/development.key --kernel /guest/testguest.Image --cmdline "$arguments" --output signed
# run NAME OPTIONS...
run() {
    name=$1
    shift
    touch running
    (
        most=0
        while [ -e running ]; do
            pages=$(counter driver_table_pages)
            [ $pages -gt $most ] && most=$pages
            echo $most >most
            usleep 50000
        done
    ) &
    timeout -s KILL 150 gz run "$@" --cpus 2 --mem 64M --cmdline "$arguments" >out 2>&1 </dev/null
    status=$?
    rm running
    wait
    sed 's/^/    | /; s/\[\([A-Z]*\)\] /<\1> /' out | tail -n 30
    holds ${name}_runs "exit status $status" [ $status = 0 ]
    holds ${name}_has_memory_for_tables "at most $(cat most) pages" [ $(cat most) -ge 512 ]
}
run plain --kernel /guest/testguest.Image
run protected --protected --kernel signed
counters_return
finish"#;
