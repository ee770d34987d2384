// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mistakes of the firmware of protected VMs. Its image of the feature `crash-test` makes the one whose number is written into it
//! (`firmware/verify/src/broken.rs`): a machine boots with none and passes, and one with the mistake does not.
//!
//! What is wrong with a device tree is found by the test host (boot tier), with a payload by `gz` on Linux (system tier).

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use gzvm_firmware_verify::broken::{Mistake, Mistake::*, PLACE};

use super::snake;
use crate::{
    cases::{BOOT_LIMIT, WHOLE, boot, protected, results},
    harness::{Body, Case, Context, Tier},
};

const CRASH_FIRMWARE: &str = "firmware-crash.Image";
const NEEDS: &[&str] = &["hypervisor.Image", CRASH_FIRMWARE, "guest-testhost.Image"];

/// Mistakes that let a device tree pass, found by this case of `guests/testhost`.
const TREES: &[Mistake] = &[AnyNode, AnyChosen, AnyPlace, AnyDevice, AnyConduit];
const TREE_CASE: &str = "firmware::tree_is_checked";

/// Mistakes that let a payload pass, and what of `protected::starts_what_is_signed` finds them.
const PAYLOADS: &[(Mistake, &str)] = &[
    (NoSignature, "other_key_is_refused"),
    (NoHashes, "other_arguments_are_refused"),
    (AnyVersion, "old_is_refused"),
    (AnyTag, "changed_is_refused"),
];

/// Whether all is well without a mistake, or why not.
type Fine = Arc<OnceLock<std::result::Result<(), String>>>;

/// The tests of this file; the first of each table starts the machine without a mistake for all of it.
pub fn cases() -> Vec<Case> {
    let (trees, payloads) = (Fine::default(), Fine::default());
    let case = |tier, needs, mistake: Mistake, body: Body| {
        Case::new(tier, format!("broken::10_firmware{}", snake(&format!("{mistake:?}"))), needs, body)
    };
    let tree = |&mistake: &Mistake| {
        let fine = trees.clone();
        case(
            Tier::Boot,
            NEEDS,
            mistake,
            Box::new(move |context| {
                once(&fine, || {
                    ensure!(tree_is_checked(context, None)?, "{TREE_CASE} does not pass without a mistake");
                    Ok(())
                })?;
                ensure!(!tree_is_checked(context, Some(mistake))?, "{TREE_CASE} does not notice the mistake");
                Ok(())
            }),
        )
    };
    let payload = |&(mistake, check): &(Mistake, &'static str)| {
        let fine = payloads.clone();
        case(
            Tier::System,
            WHOLE,
            mistake,
            Box::new(move |context| {
                once(&fine, || {
                    let failed = refusals(context, None)?;
                    ensure!(failed.is_empty(), "fails without a mistake: {failed:?}");
                    Ok(())
                })?;
                let failed = refusals(context, Some(mistake))?;
                ensure!(
                    failed.iter().any(|name| name == check),
                    "{check} does not notice the mistake: {failed:?}"
                );
                Ok(())
            }),
        )
    };
    TREES.iter().map(tree).chain(PAYLOADS.iter().map(payload)).collect()
}

fn once(fine: &Fine, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let known = fine.get_or_init(|| check().map_err(|e| format!("{e:#}")));
    known.as_ref().copied().map_err(|why| anyhow!("{why}"))
}

/// The image that makes this mistake, or none.
fn image(context: &Context, mistake: Option<Mistake>) -> Result<PathBuf> {
    let mut image = fs::read(context.layout.part(CRASH_FIRMWARE))?;
    let mut places = image.windows(PLACE.len()).enumerate().filter(|(_, bytes)| *bytes == PLACE);
    let (at, _) = places.next().context("the firmware has no place for a mistake")?;
    ensure!(places.next().is_none(), "the firmware has two places for a mistake");
    if let Some(mistake) = mistake {
        image[at..at + PLACE.len()].copy_from_slice(&mistake.number().to_le_bytes());
    }
    context.write(&format!("firmware{}", snake(&format!("{mistake:?}"))), &image)
}

/// Whether the test host finds the device tree's check in order.
fn tree_is_checked(context: &Context, mistake: Option<Mistake>) -> Result<bool> {
    let mut machine = boot::testhost(context, &format!("filter={TREE_CASE}"));
    machine.boot.set_firmware(image(context, mistake)?);
    let mut console = context.start(&machine, &format!("console{}", snake(&format!("{mistake:?}"))))?;
    let verdicts = [format!("[PASS] {TREE_CASE}"), format!("[FAIL] {TREE_CASE}: ")];
    let (which, _) = console.wait_for_any(&verdicts.each_ref().map(String::as_str), BOOT_LIMIT)?;
    Ok(which == 0)
}

/// What of the payloads' checks fails.
fn refusals(context: &Context, mistake: Option<Mistake>) -> Result<Vec<String>> {
    let mut machine = protected::machine_with_payloads(context, "")?;
    machine.boot.set_firmware(image(context, mistake)?);
    let results = results(context, &machine, Duration::from_secs(400))?;
    Ok(results.failed.into_iter().map(|(name, _)| name).collect())
}
