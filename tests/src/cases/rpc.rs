// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot and soak tiers: channels between VMs of a bare-metal host (`guests/testhost/src/rpc`), whose cases are among those of
//! `boot::testhost`. Here they run for longer, and are counted.

use std::time::Duration;

use super::boot::{check_results, testhost};
use crate::harness::{Case, Context, Tier};

const NEEDS: &[&str] = &["hypervisor.Image", "guest-testhost.Image"];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::Boot, "rpc::instructions", NEEDS, |context: &Context| {
            let mut machine = testhost(context, "filter=rpc::instructions timed=1");
            machine.icount = true;
            machine.smp = 1;
            check_results(context, &machine, Duration::from_secs(300))
        }),
        Case::new(Tier::Soak, "rpc::million_calls", NEEDS, |context: &Context| {
            let machine =
                testhost(context, "filter=rpc::many_calls,rpc::with_the_host_many rpc_calls=1000000");
            check_results(context, &machine, Duration::from_secs(1800))
        }),
    ]
}
