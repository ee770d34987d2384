// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The two root file systems: the host VM's and the guest's, each an initial RAM disk made of busybox, kernel modules,
//! the scripts of `tests/rootfs/`, and what a test adds.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::{cpio::Archive, layout::Layout};

const PROFILE: &str = include_str!("../rootfs/profile");
const RC: &str = include_str!("../rootfs/rc");
const INITTAB: &str = include_str!("../rootfs/inittab");
const HOST_SESSION: &str = include_str!("../rootfs/host-session");
const GUEST_COMMAND: &str = include_str!("../rootfs/guest-command");
const RUN_GZ: &str = include_str!("../rootfs/run_gz");
const TEST_LIBRARY: &str = include_str!("../rootfs/test-library");
/// Published: whoever follows docs/rpc.md signs with it.
const KEY: &str = include_str!("../../firmware/keys/development.key");
const GUEST_SESSION: &str = include_str!("../rootfs/guest-session");

/// Modules of the stock kernel that go in, in loading order.
const MODULES: [&str; 2] = ["kernel/drivers/virtio/virtio_mmio.ko", "kernel/drivers/block/virtio_blk.ko"];

/// A file to add: its path inside, its permission bits, its content.
#[derive(Debug, Clone)]
pub struct Extra {
    /// Absolute path inside the root file system.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What it holds.
    pub content: Vec<u8>,
}

impl Extra {
    /// A script that the machine runs once it is up (the host needs `gz.mode=script`), then powers off.
    #[must_use]
    pub fn script(commands: &str) -> Self {
        Self {
            path: "/script".to_owned(),
            mode: 0o755,
            content: format!("#!/bin/sh\n{commands}\n").into_bytes(),
        }
    }

    /// A file of this machine.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn file(path: &str, mode: u32, from: &Path) -> Result<Self> {
        let content = fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
        Ok(Self { path: path.to_owned(), mode, content })
    }

    /// A file with this text.
    #[must_use]
    pub fn text(path: &str, content: &str) -> Self {
        Self { path: path.to_owned(), mode: 0o644, content: content.as_bytes().to_vec() }
    }
}

/// The guest's root file system.
///
/// # Errors
/// If set-up has not run.
pub fn guest(layout: &Layout, extras: &[Extra]) -> Result<Vec<u8>> {
    let mut archive = base(layout, "guest", GUEST_SESSION, "virtio_mmio virtio_blk")?;
    add(&mut archive, extras);
    Ok(archive.finish())
}

/// As [`guest`], for any kernel: without modules of the stock one, so without disks.
///
/// # Errors
/// If set-up has not run.
pub fn plain_guest(layout: &Layout, extras: &[Extra]) -> Result<Vec<u8>> {
    let mut archive = base(layout, "guest", GUEST_SESSION, "")?;
    add(&mut archive, extras);
    Ok(archive.finish())
}

/// The host VM's root file system: with the driver, the VMM and the guest's parts as far as they are built.
///
/// # Errors
/// If set-up has not run.
pub fn host(layout: &Layout, extras: &[Extra]) -> Result<Vec<u8>> {
    let mut archive = base(layout, "host", HOST_SESSION, "virtio_mmio virtio_blk gzvm")?;
    archive.file("bin/guest", 0o755, GUEST_COMMAND.as_bytes());
    archive.file("guest/Image", 0o644, &read(&layout.kernel())?);
    archive.file("bin/run_gz", 0o755, RUN_GZ.as_bytes());
    archive.file("etc/test-library", 0o644, TEST_LIBRARY.as_bytes());
    archive.file("guest/development.key", 0o644, KEY.as_bytes());
    let parts = [
        ("lib/modules/gzvm.ko", 0o644, "gzvm.ko"),
        ("bin/gz", 0o755, "gz"),
        ("bin/keystore", 0o755, "keystore"),
        ("bin/gzvm-check", 0o755, "gzvm-check"),
        ("guest/initrd.cpio", 0o644, "guest-initrd.cpio"),
        ("guest/disk.img", 0o644, "guest-disk.img"),
    ];
    for (path, mode, part) in parts {
        if let Some(from) = layout.built(part) {
            archive.file(path, mode, &read(&from)?);
        }
    }
    for (name, from) in layout.guests() {
        archive.file(&format!("guest/{name}.Image"), 0o644, &read(&from)?);
    }
    add(&mut archive, extras);
    Ok(archive.finish())
}

fn base(layout: &Layout, name: &str, session: &str, modules: &str) -> Result<Archive> {
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "sys", "tmp", "bin", "sbin", "etc", "root", "mnt", "run", "lib/modules"] {
        archive.folder(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.file("bin/busybox", 0o755, &read(&layout.cache.join("busybox"))?);
    archive.link("bin/sh", "busybox");
    archive.link("init", "bin/busybox");
    archive.file("etc/inittab", 0o644, INITTAB.as_bytes());
    archive.file("etc/rc", 0o755, RC.as_bytes());
    archive.file("etc/session", 0o755, session.as_bytes());
    archive.file("etc/profile", 0o644, PROFILE.as_bytes());
    archive.file("etc/hostname", 0o644, format!("{name}\n").as_bytes());
    archive.file("etc/passwd", 0o644, b"root::0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n");
    archive.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n");
    archive.file("etc/modules", 0o644, format!("{modules}\n").as_bytes());
    for module in MODULES {
        let name = module.rsplit('/').next().unwrap_or(module);
        archive.file(
            &format!("lib/modules/{name}"),
            0o644,
            &read(&layout.cache.join("host/modules").join(module))?,
        );
    }
    Ok(archive)
}

fn add(archive: &mut Archive, extras: &[Extra]) {
    for extra in extras {
        archive.file(&extra.path, extra.mode, &extra.content);
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| {
        format!("can't read {} (run `cargo xtask setup`, `cargo xtask build`)", path.display())
    })
}
