// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot tier: mistakes of the hypervisor that the test host finds. One machine runs the case, has the mistake made, and runs it
//! again; what is done once, at boot, takes two machines.

use std::time::Duration;

use anyhow::{Result, ensure};
use gzvm_core::broken::Mistake::*;

use super::{CRASH_IMAGE, Row, name};
use crate::{
    cases::{BOOT_LIMIT, boot},
    console::Console,
    harness::{Case, Context, Tier},
    machine::Machine,
};

const NEEDS: &[&str] = &["hypervisor.Image", CRASH_IMAGE, "firmware.Image", "guest-testhost.Image"];
/// For a case, with the mistake too.
const CASE_LIMIT: Duration = Duration::from_secs(120);

/// Threat, mistake, and the case of `guests/testhost` that finds it.
pub const MISTAKES: &[Row] = &[
    (1, MapAnything, "calls::map_refuses_what_is_not_the_hosts"),
    (2, FirstPartOnly, "calls::map_refuses_what_is_not_the_hosts"),
    (3, BufferAgain, "abuse::argument_page_rewritten"),
    (3, MailboxAgain, "abuse::argument_page_rewritten"),
    (4, NoKick, "abuse::destroy_while_running"),
    (4, NoGate, "life::power_off_stops_everybody"),
    (5, NoHide, "hostile::random_calls"),
    (6, UnpaidTables, "protected::tables_of_the_host_are_paid_for"),
    (6, NoTables, "protected::tables_of_the_host_are_paid_for"),
    (6, NoHide, "tables::a_block_leaves_and_comes_back"),
    (6, NoScrub, "tables::a_block_leaves_and_comes_back"),
    (6, KeepGiven, "tables::a_block_leaves_and_comes_back"),
    (7, LostTables, "abuse::nothing_leaks"),
    (7, LeakShared, "abuse::nothing_leaks"),
    (7, LeakBook, "lending::owner_dies"),
    (8, AnySmc, "host::smc_is_denied_by_default"),
    (9, AnyEntryPoint, "host::cpu_on_cannot_pass_the_hypervisor"),
    (9, NoRelay, "host::cpus_come_up_at_el1"),
    (11, NoHide, "protected::host_does_not_reach_what_it_gave"),
    (11, NoHideAgain, "protected::pages_are_shared_and_taken_back"),
    (11, NoHostFlush, "protected::host_does_not_reach_what_it_gave"),
    (11, RepairAnything, "protected::host_does_not_reach_what_it_gave"),
    (11, AnyBuffer, "protected::what_it_has_is_nobody_elses"),
    (11, NoSmmuFlush, "dma::a_protected_vms_pages"),
    (11, GicTables, "dma::gic_has_no_tables"),
    (12, NoScrub, "protected::pages_come_back_scrubbed"),
    (12, PartlyScrubbed, "protected::a_block_goes_in_steps"),
    (12, NoHideAgain, "dma::a_protected_vms_pages"),
    (13, OpenRegisters, "protected::registers_are_the_guests"),
    (13, NoMmioGuard, "protected::mmio_guard"),
    (13, ShownRegister, "protected::mmio_guard"),
    (13, ShownWhole, "exit::mmio"),
    (14, HostsEntry, "firmware::starts_where_the_hypervisor_says"),
    (14, NoFirmware, "firmware::runs_whatever_the_host_put_there"),
    (15, UnmapProtected, "protected::what_it_has_is_nobody_elses"),
    (17, NoSeal, "measurement::extended_and_sealed_by_the_guest"),
    (17, HiddenWatch, "measurement::same_is_same_and_other_is_other"),
    (17, HostExtends, "measurement::host_cannot_extend"),
    (17, AnybodysImages, "measurement::images_are_the_firmwares"),
    (17, PayloadsImages, "measurement::images_are_the_firmwares"),
    (24, KeepEl1, "guest::registers_of_the_host_survive"),
    (24, KeepFp, "vectors::host_and_guests_stay_apart"),
    (24, KeepGuestFp, "vectors::host_and_guests_stay_apart"),
    (24, KeepDebug, "debug::registers_of_host_and_guests_stay_apart"),
    (27, NoVmFlush, "unmap::running_vcpu_loses_its_page"),
    (28, Flood, "watch::flood_is_cut"),
    (33, LentToAnybody, "lending::nobody_but_the_named_one"),
    (33, LentToNext, "lending::the_next_vm_of_this_id"),
    (33, LentToWrite, "lending::read_only_is_read_only"),
    (33, LentToRun, "lending::read_only_is_read_only"),
    (33, LentToPlain, "lending::nobody_but_the_named_one"),
    (33, LentAndShown, "lending::one_thing_at_a_time"),
    (33, AnybodyReclaims, "lending::nobody_but_the_named_one"),
    (33, LentForEver, "lending::owner_dies"),
    (34, AnyEndpoint, "rpc::foreign_wrong_and_stale_handles"),
    (34, SilentEnd, "rpc::guest_closes"),
    (34, OwnName, "rpc::calls_and_replies"),
    (34, GrantedForEver, "rpc::grant_is_back_with_the_reply"),
];

/// The same for what is done once, at boot.
pub const AT_BOOT: &[Row] =
    &[(11, NoStage2, "dma::hypervisor_memory"), (11, SmmuForHost, "dma::smmu_is_not_the_hosts")];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![Case::new(Tier::Boot, "broken::not_in_the_normal_image", NEEDS, |context| {
        let mut console = context.start(&boot::testhost(context, "break=1 filter=host::"), "console")?;
        console.wait_for("[BREAK] there is no such call", BOOT_LIMIT)?;
        console.wait_for("[DONE] passed=0 ", BOOT_LIMIT)?;
        console.wait_power_off(Duration::from_secs(30))
    })];
    cases.extend(
        MISTAKES
            .iter()
            .map(|&row| Case::new(Tier::Boot, name(row), NEEDS, move |context| is_found(context, row))),
    );
    cases.extend(AT_BOOT.iter().map(|&row| {
        Case::new(Tier::Boot, name(row), NEEDS, move |context| is_found_from_boot_on(context, row))
    }));
    cases
}

/// The test host on the image that makes mistakes, and a device that reaches for memory.
fn machine(context: &Context, arguments: &str) -> Machine {
    let mut machine = boot::testhost(context, arguments);
    machine.boot.set_image(context.layout.part(CRASH_IMAGE));
    machine.extra = boot::DMA_DEVICE.map(Into::into).to_vec();
    machine
}

/// The case passes, and fails once the mistake is made.
fn is_found(context: &Context, (_, mistake, case): Row) -> Result<()> {
    let mark = format!("[BREAK] {}", mistake.number());
    let machine = machine(context, &format!("break={} filter={case} seed=1", mistake.number()));
    let mut console = context.start(&machine, "console")?;
    let before = console.wait_for(&mark, BOOT_LIMIT)?;
    ensure!(before.contains(&format!("[PASS] {case}")), "{case} does not pass without the mistake");
    fails(&mut console, case)
}

/// The case passes on a machine, and fails on one whose hypervisor made the mistake as it booted.
fn is_found_from_boot_on(context: &Context, (_, mistake, case): Row) -> Result<()> {
    let mut console = context.start(&machine(context, &format!("filter={case}")), "good")?;
    console.wait_for(&format!("[PASS] {case}"), BOOT_LIMIT)?;
    drop(console);
    let arguments = format!("el2-break={} filter={case}", mistake.number());
    let mut console = context.start(&machine(context, &arguments), "broken")?;
    console.wait_for("broken on purpose", BOOT_LIMIT)?;
    fails(&mut console, case)
}

fn fails(console: &mut Console, case: &str) -> Result<()> {
    let verdicts = [format!("[FAIL] {case}: "), format!("[PASS] {case}"), format!("[SKIP] {case}")];
    let (which, _) = console.wait_for_any(&verdicts.each_ref().map(String::as_str), CASE_LIMIT)?;
    ensure!(which == 0, "{case} does not notice the mistake");
    Ok(())
}
