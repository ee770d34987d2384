// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: virtio devices of `gz`, used by a stock guest kernel with its own drivers, and by programs of the host at the
//! other end.

mod net;
mod rng;

use std::time::Duration;

use anyhow::Result;

use super::{Host, protected, results, scripted};
use crate::{
    harness::{Case, Context},
    initrd::{self, Extra},
    modules,
};

/// The tests of this folder.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = net::cases();
    cases.extend(rng::cases());
    cases
}

/// Modules that every guest has.
const GUEST_MODULES: &str = "virtio_mmio virtio_blk";
/// Modules that every host has.
const HOST_MODULES: &str = "virtio_mmio virtio_blk gzvm";
const ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet";

/// A guest and its host.
struct Pair<'a> {
    /// Does the guest's memory belong to it alone?
    protected: bool,
    /// Modules of the guest's kernel beyond those that it has anyway; what it runs.
    guest: (&'a [&'a str], &'a str),
    /// The same for the host. Its script starts the guest with `guest OPTIONS` in the background; output is in `/tmp/gz.out`.
    host: (&'a [&'a str], &'a str),
}

impl Pair<'_> {
    /// Runs both to their ends.
    fn run(&self, context: &Context, more: Vec<Extra>) -> Result<()> {
        let (guest_modules, inside) = self.guest;
        let (extras, kernel) = if self.protected {
            let extras = protected::signed_linux(context, guest_modules, inside)?.to_vec();
            (extras, "--protected --kernel /guest/signed.Image --initrd /guest/protected.cpio")
        } else {
            let mut all = modules::load(&context.layout, GUEST_MODULES, guest_modules)?;
            all.push(Extra::script(inside));
            let content = initrd::guest(&context.layout, &all)?;
            let extra = Extra { path: "/guest/test.cpio".to_owned(), mode: 0o644, content };
            (vec![extra], "--kernel /guest/Image --initrd /guest/test.cpio")
        };
        let (host_modules, script) = self.host;
        let mut all = modules::load(&context.layout, HOST_MODULES, host_modules)?;
        all.extend(extras);
        all.extend(more);
        let script = format!(
            "{}\nkernel='{kernel}' arguments='{ARGUMENTS}'\n{script}\nguest_ends\ncounters_return\nfinish",
            include_str!("../../../rootfs/device-library")
        );
        let machine = scripted(context, Host::Gzvm, &script, &all)?;
        results(context, &machine, Duration::from_secs(600))?.check()
    }
}
