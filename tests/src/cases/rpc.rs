// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot and soak tiers: channels between VMs of a bare-metal host (`guests/testhost/src/rpc`), whose cases are among those of
//! `boot::testhost`, and between a VM and a program of a Linux host (`gzvm-check`, in `driver::ioctls`). Here they run for longer, and are counted.

use std::time::Duration;

use super::boot::{check_results, testhost};
use super::{Host, results, scripted};
use crate::harness::{Case, Context, Tier};
use crate::initrd::Extra;

const NEEDS: &[&str] = &["hypervisor.Image", "guest-testhost.Image"];
const PROGRAM_NEEDS: &[&str] = &["hypervisor.Image", "gzvm.ko", "gzvm-check", "host-initrd.cpio"];
/// A program of the host calls a guest, through the file that the driver gives it.
const MILLION: &str = ". /etc/test-library
held >/tmp/before
holds a_million_calls \"see above\" gzvm-check calls 1000000 8
counters_return
finish";

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
            check_results(context, &machine, Duration::from_secs(7200))
        }),
        Case::new(Tier::Soak, "rpc::million_calls_of_a_program", PROGRAM_NEEDS, |context: &Context| {
            let check = Extra::file("/bin/gzvm-check", 0o755, &context.layout.part("gzvm-check"))?;
            let machine = scripted(context, Host::Gzvm, MILLION, &[check])?;
            results(context, &machine, Duration::from_secs(7200))?.check()
        }),
    ]
}
