// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: mistakes of the driver that its checks find. One machine with `gzvm-crash.ko` for all: a check runs, the module's
//! parameter `mistake` is set, the check runs again. What is held afterwards counts too.

use std::{
    fmt::Write as _,
    fs,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};

use super::snake;
use crate::{
    cases::{BOOT_LIMIT, Host, scripted},
    harness::{Case, Context, Tier},
    initrd::Extra,
    layout::Layout,
};

const MODULE: &str = "gzvm-crash.ko";
const NEEDS: &[&str] = &["hypervisor.Image", MODULE, "gzvm-check", "host-initrd.cpio"];

/// Threat, mistake of `driver/core/src/broken.rs`, and the check of `gzvm-check` that finds it. Those that leave VMs, or a kernel
/// that is the worse for it, come last.
const MISTAKES: &[Row] = &[
    (7, "KeepPins", "discard_gives_pages_back"),
    (7, "KeepFrames", "guest_memory_leaves_every_mapping"),
    (15, "DiscardTooEarly", "discard_gives_pages_back"),
    (30, "AnyProcess", "other_process"),
    (31, "TiedTwice", "irqfd_arguments"),
    (31, "DeafToHangup", "irqfd_closed_while_armed"),
    (15, "KeepMapping", "guest_memory_leaves_every_mapping"),
    (15, "MapPrivate", "guest_memory_stays_the_guests"),
    (15, "NoAnnounce", "guest_memory_leaves_every_mapping"),
    (30, "KeepIrqfds", "irqfd_closed_while_armed"),
    (11, "NoHiding", "guest_memory_is_not_in_the_kernels_map"),
];

/// The one by which the module itself goes. Instead of a check of `gzvm-check`: the module can't go while there is a VM.
const MODULE_GOES: &[Row] = &[(30, "NoOwner", "module")];

type Row = (u32, &'static str, &'static str);

/// What a machine said, or why it did not.
type Report = std::result::Result<String, String>;

/// The tests of this file; the first of each list starts the machine for all of it.
pub fn cases() -> Vec<Case> {
    [MISTAKES, MODULE_GOES].into_iter().flat_map(on_one_machine).collect()
}

fn on_one_machine(rows: &'static [Row]) -> Vec<Case> {
    let report: Arc<OnceLock<Report>> = Arc::default();
    let case = |&(threat, mistake, check): &'static Row| {
        let report = report.clone();
        let name = format!("broken::{threat:02}_driver{}", snake(mistake));
        Case::new(Tier::System, name, NEEDS, move |context| {
            let report = report.get_or_init(|| machine(context, rows).map_err(|e| format!("{e:#}")));
            is_found(report.as_ref().map_err(|why| anyhow!("{why}"))?, mistake, check)
        })
    };
    Case::of_one_machine(rows.iter().map(case).collect())
}

/// The mistakes' names, in the order of their numbers, from 1 on. The driver's code has another licence: it is read, not linked.
fn names(layout: &Layout) -> Result<Vec<String>> {
    let source = fs::read_to_string(layout.root.join("driver/core/src/broken.rs"))?;
    let (_, list) = source.split_once("\nmistakes! {").context("no list of mistakes")?;
    let lines = list.lines().map(str::trim).take_while(|line| *line != "}");
    Ok(lines
        .filter_map(|line| line.strip_suffix(',').filter(|name| !name.contains('/')))
        .map(str::to_owned)
        .collect())
}

fn machine(context: &Context, rows: &[Row]) -> Result<String> {
    let names = names(&context.layout)?;
    let mut script = SCRIPT.to_owned();
    for (_, mistake, check) in rows {
        let place = names.iter().position(|name| name == mistake).context("no such mistake of the driver")?;
        writeln!(script, "row {} {mistake} {check}", place + 1)?;
    }
    script += "echo '[ROW] end'\npoweroff -f";
    let module = Extra::file("/lib/modules/gzvm.ko", 0o644, &context.layout.part(MODULE))?;
    let check = Extra::file("/bin/gzvm-check", 0o755, &context.layout.part("gzvm-check"))?;
    let machine = scripted(context, Host::Gzvm, &script, &[module, check])?.parallel();
    let mut console = context.start(&machine, "console")?;
    console.expect_panics();
    console.wait_for("[HOST] Linux", BOOT_LIMIT)?;
    console.wait_for("[ROW] end", Duration::from_secs(600))?;
    Ok(console.text())
}

const SCRIPT: &str = r#". /etc/test-library
mistake=/sys/module/gzvm/parameters/mistake
module() {
    gzvm-check hold 3 & holder=$!
    within driver_has_a_vm
    usleep 500000
    rmmod gzvm 2>/dev/null && return 1
    wait $holder
}
# A thread that ends in a kernel's oops is waited for by the others.
check() {
    dmesg -c >/dev/null
    gzvm-check $1 & checker=$!
    for n in $(seq 300); do
        kill -0 $checker 2>/dev/null || break
        dmesg | grep -q 'Internal error' && break
        usleep 200000
    done
    kill -9 $checker 2>/dev/null
    wait $checker
}
# once CHECK: says how it ended, and whether as much is held as before.
once() {
    held >/tmp/before
    if [ $1 = module ]; then module; else check $1; fi
    status=$?
    usleep 100000
    if held 2>/dev/null | cmp -s - /tmp/before; then left=nothing; else left=something; fi
    echo "[END] status $status, $left is left"
}
# row NUMBER NAME CHECK
row() {
    echo "[ROW] $2"
    once $3
    echo $1 >$mistake
    echo "[BREAK] $1"
    once $3
    echo 0 >$mistake
}
"#;

fn is_found(report: &str, mistake: &str, check: &str) -> Result<()> {
    const FINE: &str = "[END] status 0, nothing is left";
    let (_, row) =
        report.split_once(&format!("[ROW] {mistake}\n")).context("the machine did not come so far")?;
    let row = row.split_once("[ROW]").map_or(row, |(row, _)| row);
    let (before, after) = row.split_once("[BREAK]").context("the mistake was not made")?;
    ensure!(before.contains(FINE), "{check} does not pass without the mistake");
    ensure!(after.contains("[END]") && !after.contains(FINE), "{check} does not notice the mistake");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_of_the_driver_is_found_by_some_test() {
        let names = names(&Layout::find().unwrap()).unwrap();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            assert!(MISTAKES.iter().chain(MODULE_GOES).any(|(_, mistake, _)| *mistake == name), "{name}");
        }
    }
}
