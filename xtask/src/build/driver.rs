// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gzvm.ko`: the driver's Rust logic as one object, then the kernel's own build system for the shim and the module.
//!
//! It is built in `target/gz/driver-build`, a copy of the sources, so the repository stays clean.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use gzvm_tests::layout::Layout;

use super::{cargo, copy_if_changed};
use crate::process;

/// The package of the driver's logic.
pub const PACKAGE: &str = "gzvm-driver-core";

/// Builds it; `target/gz/gzvm.ko` is the result.
///
/// # Errors
/// If the compiler, the linker or the kernel's build system complains.
pub fn build(layout: &Layout) -> Result<()> {
    let library = cargo::static_library(layout, PACKAGE)?;
    let place = layout.part("driver-build");
    fs::create_dir_all(&place)?;
    for entry in fs::read_dir(layout.root.join("driver"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source = name == "Kbuild" || name.ends_with(".c") || name.ends_with(".h") || name.ends_with(".S");
        if path.is_file() && source {
            copy_if_changed(&path, &place.join(name))?;
        }
    }
    // kbuild takes an object that it did not make itself under this name.
    let object = place.join("gzvm_core.o.new");
    link_object(&library, &object)?;
    copy_if_changed(&object, &place.join("gzvm_core.o_shipped"))?;
    let command_file = place.join(".gzvm_core.o.cmd");
    if !command_file.exists() {
        fs::write(command_file, "")?;
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(layout.cache.join("host/build")).arg(format!("M={}", place.display()));
    make.args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "modules"]);
    // A surrounding make must not pass its options on.
    make.env_remove("MAKEFLAGS").stdin(Stdio::null());
    process::run(&mut make).context("the kernel's build system")?;
    copy_if_changed(&place.join("gzvm.ko"), &layout.part("gzvm.ko"))
}

/// One relocatable object with what the shim calls (symbols `gzvm_rust_*`… are kept as the library exports them).
fn link_object(library: &Path, object: &Path) -> Result<()> {
    let mut link = Command::new("aarch64-linux-gnu-ld");
    link.args(["-r", "--whole-archive"]).arg(library).arg("-o").arg(object);
    process::run(&mut link).context("linking the driver's Rust part")
}
