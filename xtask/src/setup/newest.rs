// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a driver for the newest Linux is built with: the headers of the kernel that tests run as `linux-7.x`. Only `bench` and the
//! soak tier want it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use gzvm_tests::layout::Layout;

use super::{
    apt::{self, State},
    guests::{self, NEWER_SUITES},
    kernel,
};
use crate::process::Step;

fn place(layout: &Layout) -> PathBuf {
    layout.cache.join("newest")
}

/// The kernel's build system, prepared.
pub fn build_folder(layout: &Layout) -> PathBuf {
    place(layout).join("build")
}

/// Is it there, for the kernel that is there?
pub fn complete(layout: &Layout) -> bool {
    build_folder(layout).join("Makefile").exists()
        && guests::newest_release(layout).is_ok_and(|release| {
            fs::read_to_string(place(layout).join("release")).is_ok_and(|text| text.trim() == release)
        })
}

/// Downloads and prepares it. Kernel and headers of the host, and the guests' kernels, are there.
///
/// # Errors
/// If Debian has no headers of that kernel, or the network fails.
pub fn install(layout: &Layout, codename: &str) -> Result<()> {
    let release = guests::newest_release(layout)?;
    let sources = apt::machine_sources()?;
    let step = Step::new(format!("Linux {release}: headers"));
    for suite in NEWER_SUITES {
        let Some(state) = State::of_suite(layout, ("arm64", suite), &sources, codename)? else { continue };
        let headers = format!("linux-headers-{release}");
        if state.versions(&headers)?.is_empty() {
            continue;
        }
        let new = layout.cache.join("newest.new");
        drop(fs::remove_dir_all(&new));
        let base = kernel::without_flavour(&release);
        for package in [headers, format!("linux-headers-{base}-common"), format!("linux-kbuild-{base}")] {
            apt::unpack(&state.download(&package, &layout.cache.join("downloads"))?, &new.join("headers"))?;
        }
        kernel::relocate_headers(&new, &place(layout), &release)?;
        take_programs(&new.join("build"), &layout.cache.join("host/build"))?;
        fs::write(new.join("release"), format!("{release}\n"))?;
        drop(fs::remove_dir_all(place(layout)));
        fs::rename(&new, place(layout))?;
        step.done();
        return Ok(());
    }
    bail!(
        "no suite has headers of Linux {release}; `cargo xtask setup --tests --refresh` looks for a newer one"
    )
}

/// Of the kernel's build system the programs are those of the host's kernel: this one's are Arm's, or want the C library of Debian 13.
/// Its make files, which the common headers name, are its own.
fn take_programs(tree: &Path, host: &Path) -> Result<()> {
    for name in ["scripts", "tools"] {
        let link = tree.join(name);
        fs::remove_file(&link).with_context(|| format!("the headers have no {name}"))?;
        // By the folder's name, not its kernel's: a newer one may come there.
        symlink(host.join(name), &link)?;
    }
    Ok(())
}
