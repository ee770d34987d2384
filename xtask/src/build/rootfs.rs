// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Initial RAM disks of host and guest, and the guest's disk.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use gzvm_tests::{initrd, layout::Layout};

use super::write_if_changed;
use crate::process;

/// The guest's initial RAM disk.
///
/// # Errors
/// If set-up has not run.
pub fn guest(layout: &Layout) -> Result<()> {
    write_if_changed(&layout.part("guest-initrd.cpio"), &initrd::guest(layout, &[])?)
}

/// The host VM's initial RAM disk.
///
/// # Errors
/// If set-up has not run.
pub fn host(layout: &Layout) -> Result<()> {
    write_if_changed(&layout.part("host-initrd.cpio"), &initrd::host(layout, &[])?)
}

/// The guest's disk: ext2, 8 MiB, with a file to read. Made once; guests write to copies of it.
///
/// # Errors
/// If `mke2fs` fails.
pub fn disk(layout: &Layout) -> Result<()> {
    let image = layout.part("guest-disk.img");
    if image.is_file() {
        return Ok(());
    }
    let content = layout.part("disk-content");
    fs::create_dir_all(&content)?;
    fs::write(content.join("hello.txt"), "hello from the disk\n")?;
    let new = layout.part("guest-disk.img.new");
    drop(fs::remove_file(&new));
    let program = process::find("mke2fs").unwrap_or_else(|| "/usr/sbin/mke2fs".into());
    let mut command = Command::new(program);
    command
        .args(["-q", "-t", "ext2", "-E", "root_owner=0:0", "-L", "guest", "-d"])
        .arg(&content)
        .arg(&new)
        .arg("8M");
    process::run(&mut command).context("making the guest's disk")?;
    fs::rename(new, image)?;
    Ok(())
}
