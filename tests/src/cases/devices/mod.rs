// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: virtio devices of `gz`, used by a stock guest kernel with its own drivers, and by programs of the host at the
//! other end.

mod blk;
mod console;
mod folder;
mod net;
mod rng;
mod sandbox;
mod vhost_user;
mod vsock;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

use super::{Host, protected, results, scripted};
use crate::{
    harness::{Case, Context},
    initrd::{self, Extra},
    layout::Layout,
    machine::Machine,
    modules,
};

/// The tests of this folder.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = net::cases();
    cases.extend(blk::cases());
    cases.extend(folder::cases());
    cases.extend(console::cases());
    cases.extend(vsock::cases());
    cases.extend(rng::cases());
    cases.extend(sandbox::cases());
    cases.extend(vhost_user::cases());
    cases
}

/// Modules that every guest has.
const GUEST_MODULES: &str = "virtio_mmio virtio_blk";
/// Modules that every host has.
const HOST_MODULES: &str = "virtio_mmio virtio_blk gzvm";
const ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet cryptomgr.notests";

/// A guest and its host.
struct Pair<'a> {
    /// Does the guest's memory belong to it alone?
    protected: bool,
    /// The guest's kernel arguments.
    arguments: &'a str,
    /// Modules of the guest's kernel beyond those that it has anyway; what it runs; files that this needs.
    guest: (&'a [&'a str], &'a str, Vec<Extra>),
    /// The same for the host. Its script starts the guest with `guest OPTIONS`; output is in `/tmp/gz.out`.
    host: (&'a [&'a str], &'a str, Vec<Extra>),
}

impl Default for Pair<'_> {
    fn default() -> Self {
        let nothing = || ([].as_slice(), "", Vec::new());
        Self { protected: false, arguments: ARGUMENTS, guest: nothing(), host: nothing() }
    }
}

impl Pair<'_> {
    /// The machine that both run in.
    fn machine(self, context: &Context) -> Result<Machine> {
        let (modules, inside, files) = self.guest;
        let (mut all, kernel) = if self.protected {
            let extras = protected::signed_linux(context, modules, self.arguments, inside, files)?;
            (extras.to_vec(), "--protected --kernel /guest/signed.Image --initrd /guest/protected.cpio")
        } else {
            let mut all = modules::load(&context.layout, GUEST_MODULES, modules)?;
            all.push(Extra::script(inside));
            all.extend(files);
            let content = initrd::guest(&context.layout, &all)?;
            let extra = Extra { path: "/guest/test.cpio".to_owned(), mode: 0o644, content };
            (vec![extra], "--kernel /guest/Image --initrd /guest/test.cpio")
        };
        let (modules, script, files) = self.host;
        all.extend(modules::load(&context.layout, HOST_MODULES, modules)?);
        all.extend(files);
        let script = format!(
            "kernel='{kernel}' arguments='{}'\n{}\n{script}\ncounters_return\nfinish",
            self.arguments,
            include_str!("../../../rootfs/device-library")
        );
        scripted(context, Host::Gzvm, &script, &all)
    }

    /// Runs both to their ends.
    fn run(self, context: &Context) -> Result<()> {
        self.run_for(context, Duration::from_secs(600))
    }

    /// The same, where that takes longer.
    fn run_for(self, context: &Context, limit: Duration) -> Result<()> {
        let machine = self.machine(context)?;
        results(context, &machine, limit)?.check()
    }
}

/// Programs that others wrote, and the libraries of all of these.
pub fn peers(layout: &Layout, programs: &[&str]) -> Result<Vec<Extra>> {
    with_libraries(&layout.peers_folder(), programs)
}

/// The same of those that are devices by vhost-user.
pub fn back_ends(layout: &Layout, programs: &[&str]) -> Result<Vec<Extra>> {
    with_libraries(&layout.back_ends_folder(), programs)
}

fn with_libraries(folder: &Path, programs: &[&str]) -> Result<Vec<Extra>> {
    const LOADER: &str = "ld-linux-aarch64.so.1";
    let lib = folder.join("lib");
    let mut extras = Vec::new();
    for program in programs {
        // The package has it under this name, and a link.
        let name = if *program == "socat1" { "socat" } else { program };
        extras.push(Extra::file(&format!("/bin/{name}"), 0o755, &folder.join("bin").join(program))?);
    }
    let entries =
        fs::read_dir(&lib).with_context(|| format!("{}: run `cargo xtask setup --tests`", lib.display()))?;
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        let place = if name == LOADER { "/lib" } else { "/usr/lib" };
        extras.push(Extra::file(&format!("{place}/{name}"), 0o755, &lib.join(&*name))?);
    }
    Ok(extras)
}
