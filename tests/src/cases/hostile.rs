// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot and soak tiers: random calls from all CPUs of a bare-metal host with protected guests running
//! (`guests/testhost/src/hostile`). The short run with four CPUs is a case of `boot::testhost`.

use std::time::Duration;

use super::boot::{check_results, testhost};
use crate::harness::{Case, Context, Tier};

const NEEDS: &[&str] = &["hypervisor.Image", "guest-testhost.Image"];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::Boot, "hostile::longest_calls", NEEDS, |context: &Context| {
            let mut machine = testhost(context, "filter=longest::,hostile:: timed=1 calls=10000");
            machine.icount = true;
            machine.smp = 1;
            "8G".clone_into(&mut machine.memory);
            check_results(context, &machine, Duration::from_secs(600))
        }),
        Case::new(Tier::Soak, "hostile::million_calls", NEEDS, |context: &Context| {
            let machine = testhost(context, "filter=hostile:: calls=1000000");
            check_results(context, &machine, Duration::from_secs(1800))
        }),
    ]
}
