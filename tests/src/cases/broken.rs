// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot tier: a hypervisor that makes a mistake is found out. The image with the feature `crash-test` makes one on demand
//! (hypervisor/src/broken.rs), and the test that is named has to fail.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{BOOT_LIMIT, boot};
use crate::{
    harness::{Case, Context, Tier},
    machine::Machine,
};

const CRASH_IMAGE: &str = "hypervisor-crash.Image";
const NEEDS: &[&str] = &["hypervisor.Image", CRASH_IMAGE, "guest-testhost.Image"];

/// A mistake, and the case of `guests/testhost` that finds it.
struct Mistake {
    name: &'static str,
    /// Its number in hypervisor/src/broken.rs.
    number: u32,
    case: &'static str,
}

const fn mistake(name: &'static str, number: u32, case: &'static str) -> Mistake {
    Mistake { name, number, case }
}

const MISTAKES: [Mistake; 16] = [
    mistake("no_hide", 1, "protected::host_does_not_reach_what_it_gave"),
    mistake("no_hide_random", 1, "hostile::random_calls"),
    mistake("no_scrub", 2, "protected::pages_come_back_scrubbed"),
    mistake("no_scrub_random", 2, "hostile::random_calls"),
    mistake("open_registers", 3, "protected::registers_are_the_guests"),
    mistake("no_mmio_guard", 4, "protected::mmio_guard"),
    mistake("shown_register", 5, "protected::mmio_guard"),
    mistake("unmap_protected", 6, "protected::what_it_has_is_nobody_elses"),
    mistake("any_entry_point", 7, "host::cpu_on_cannot_pass_the_hypervisor"),
    mistake("any_buffer", 8, "protected::what_it_has_is_nobody_elses"),
    mistake("map_anything", 9, "calls::map_refuses_what_is_not_the_hosts"),
    mistake("no_kick", 10, "abuse::destroy_while_running"),
    mistake("leak_shared", 11, "abuse::nothing_leaks"),
    mistake("no_seal", 20, "measurement::extended_and_sealed_by_the_guest"),
    mistake("hidden_watch", 21, "measurement::same_is_same_and_other_is_other"),
    mistake("host_extends", 22, "measurement::host_cannot_extend"),
];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![Case::new(Tier::Boot, "broken::not_in_the_normal_image", NEEDS, |context| {
        let mut console = context.start(&boot::testhost(context, "break=1"), "console")?;
        console.wait_for("break=1: there is no such call", BOOT_LIMIT)?;
        console.wait_power_off(Duration::from_secs(30))
    })];
    cases.extend(MISTAKES.into_iter().map(|mistake| {
        Case::new(Tier::Boot, format!("broken::{}", mistake.name), NEEDS, move |context| {
            is_found(context, &mistake)
        })
    }));
    cases
}

fn broken(context: &Context, number: u32, case: &str) -> Machine {
    let mut machine = boot::testhost(context, &format!("break={number} filter={case} seed=1"));
    machine.boot.set_image(context.layout.part(CRASH_IMAGE));
    machine
}

/// The case passes in this image as it is, and fails with the mistake.
fn is_found(context: &Context, mistake: &Mistake) -> Result<()> {
    let mut console = context.start(&broken(context, 0, mistake.case), "good")?;
    console.wait_for("[DONE]", BOOT_LIMIT)?;
    ensure!(console.text().contains(&format!("[PASS] {}", mistake.case)), "it does not pass without");
    drop(console);
    let mut console = context.start(&broken(context, mistake.number, mistake.case), "broken")?;
    console.wait_for("it does", BOOT_LIMIT)?;
    console.wait_for(&format!("[FAIL] {}", mistake.case), BOOT_LIMIT)?;
    Ok(())
}
