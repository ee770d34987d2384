// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of tests: a build that makes a mistake on purpose is found out, threat by threat.
//!
//! `broken::NN_name` is mistake `name`, against threat NN of `docs/threat-model.md`. The hypervisor's image of the feature
//! `crash-test` makes one on demand (`core/src/broken.rs`): [`el2`], [`guest`]. So does the driver: [`driver`]. The firmware of
//! protected VMs makes what its image says: [`firmware`].

mod driver;
mod el2;
mod firmware;
mod guest;

use gzvm_core::broken::Mistake;

use crate::harness::Case;

/// The hypervisor that makes mistakes on demand.
pub const CRASH_IMAGE: &str = "hypervisor-crash.Image";

/// A threat by its number, a mistake, and the case that finds it: that passes without, and fails with it.
type Row = (u32, Mistake, &'static str);

/// The tests of this folder.
#[must_use]
pub fn cases() -> Vec<Case> {
    el2::cases().into_iter().chain(guest::cases()).chain(driver::cases()).chain(firmware::cases()).collect()
}

/// `broken::NN_name_of_the_mistake`.
fn name((threat, mistake, _): Row) -> String {
    format!("broken::{threat:02}{}", snake(&format!("{mistake:?}")))
}

/// `_name_of_the_mistake`.
fn snake(mistake: &str) -> String {
    let mut name = String::new();
    for c in mistake.chars() {
        if c.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_lowercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_is_found_by_some_test() {
        let rows = || el2::MISTAKES.iter().chain(el2::AT_BOOT).chain(guest::MISTAKES);
        for mistake in Mistake::ALL {
            assert!(rows().any(|(_, m, _)| m == mistake), "{mistake:?}");
        }
    }
}
