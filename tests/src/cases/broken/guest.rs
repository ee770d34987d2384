// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: mistakes of the hypervisor that the test guest finds. One machine with a Linux host for all: the guest runs the
//! case, has the mistake made, runs it again, and has it undone.

use std::{
    fmt::Write as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use gzvm_core::broken::Mistake::*;

use super::{CRASH_IMAGE, Row, name};
use crate::{
    cases::{BOOT_LIMIT, Host, scripted},
    harness::{Case, Context, Tier},
};

const NEEDS: &[&str] = &[CRASH_IMAGE, "gzvm.ko", "gz", "host-initrd.cpio", "guest-testguest.Image"];

/// Threat, mistake, and the case of `guests/testguest` that finds it.
pub const MISTAKES: &[Row] = &[
    (18, UnknownRegisters, "sysregs::hidden_registers_are_undefined"),
    (19, AnyWidth, "gic::every_distributor_read"),
    (19, OwnRedistributor, "gic::every_access_from_another_cpu"),
    (20, NoUrgency, "interrupts::many_pending_in_priority_order"),
    (21, LostActive, "interrupts::pending_while_active"),
    (22, Oversleep, "timer::silent_guest_always_wakes"),
    (23, CutTargets, "sgi::sgi_out_of_range"),
    (24, KeepGuestFp, "registers::fp_survives"),
    (24, HostsKeys, "registers::pointer_authentication_keys_survive"),
    (25, PastPageEnd, "decoded::page_end"),
    (26, TurnOnAgain, "psci::cpu_on_of_a_running_cpu"),
    (26, GuestsAnyEntry, "psci::cpu_on_checks_the_entry"),
    (26, CutAffinity, "psci::cpu_on_of_nobody"),
    (29, NoReset, "psci::state_of_a_new_cpu"),
];

/// What a machine said, or why it did not.
type Report = std::result::Result<String, String>;

/// The tests of this file; the first that runs starts the machine for all.
pub fn cases() -> Vec<Case> {
    let report: Arc<OnceLock<Report>> = Arc::default();
    let case = |row: Row| {
        let report = report.clone();
        Case::new(Tier::System, name(row), NEEDS, move |context| {
            let report = report.get_or_init(|| machine(context).map_err(|e| format!("{e:#}")));
            is_found(report.as_ref().map_err(|why| anyhow!("{why}"))?, row)
        })
    };
    Case::of_one_machine(MISTAKES.iter().map(|row| case(*row)).collect())
}

fn machine(context: &Context) -> Result<String> {
    let mut script = ". /etc/test-library\n".to_owned();
    for (threat, mistake, case) in MISTAKES {
        // A guest that does not come to its end is ended.
        writeln!(
            script,
            "echo '[ROW] {threat} {mistake:?}'
timeout -s KILL 60 run_gz --kernel /guest/testguest.Image --cpus 4 --mem 128M --cmdline 'hyp=gzvm break={} filter={case}' </dev/null",
            mistake.number()
        )?;
    }
    script += "echo '[ROW] end'\nfinish";
    let mut machine = scripted(context, Host::Gzvm, &script, &[])?;
    machine.boot.set_image(context.layout.part(CRASH_IMAGE));
    let mut console = context.start(&machine, "console")?;
    console.expect_panics();
    console.wait_for("[HOST] Linux", BOOT_LIMIT)?;
    console.wait_for("[ROW] end", Duration::from_secs(600))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Ok(console.text())
}

fn is_found(report: &str, (threat, mistake, case): Row) -> Result<()> {
    let (_, row) =
        report.split_once(&format!("[ROW] {threat} {mistake:?}\n")).context("the guest was not started")?;
    let row = row.split_once("[ROW]").map_or(row, |(row, _)| row);
    let (before, after) =
        row.split_once(&format!("[BREAK] {}", mistake.number())).context("the mistake was not made")?;
    ensure!(before.contains(&format!("[PASS] {case}")), "{case} does not pass without the mistake");
    ensure!(after.contains(&format!("[FAIL] {case}: ")), "{case} does not notice the mistake");
    Ok(())
}
