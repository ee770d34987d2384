// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gzvm.ko`: the driver's Rust logic as a static library, then the kernel's own build system for the shim and the module
//! (`driver/Kbuild` takes from the library what belongs in a module).
//!
//! It is built in `target/gz/driver-build`, a copy of the sources, so the repository stays clean.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use gzvm_tests::{cases, layout::Layout};

use super::{cargo, copy_if_changed};
use crate::{process, setup::newest};

/// The package of the driver's logic.
pub const PACKAGE: &str = "gzvm-driver-core";
/// The program that checks the loaded driver.
pub const CHECK: &str = "gzvm-check";

/// The driver that makes mistakes on demand.
const CRASH_TEST: &str = "gzvm-crash.ko";

/// Modules of Linux guests: devices of protected ones, channels.
const GUEST_MODULES: [&str; 2] = ["gzvm-guest.ko", "gzvm-rpc.ko"];

/// For the newest Linux. GCC before 14 can't align functions as its ftrace wants it, so the driver is without; and its type
/// information wants a pahole as new.
const NEWEST: [&str; 3] =
    ["CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=", "CC_FLAGS_FTRACE=", "CONFIG_DEBUG_INFO_BTF_MODULES="];

/// Has the kernel's build system in `kernel` make what is in `place`.
fn make(kernel: &Path, place: &Path, variables: &[&str]) -> Result<()> {
    let mut make = Command::new("make");
    make.arg("-C").arg(kernel).arg(format!("M={}", place.display())).args(variables);
    make.args(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-", "modules"]);
    // A surrounding make must not pass its options on.
    make.env_remove("MAKEFLAGS").stdin(Stdio::null());
    process::run(&mut make).context("the kernel's build system")
}

/// The driver with these features for this kernel, in a folder of its own.
fn driver(
    layout: &Layout,
    kernel: &Path,
    (features, variables): (&str, &[&str]),
    folder: &str,
    part: &str,
) -> Result<()> {
    let library = cargo::static_library(layout, PACKAGE, features)?;
    let place = layout.part(folder);
    fs::create_dir_all(&place)?;
    for entry in fs::read_dir(layout.root.join("driver"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let source =
            name == "Kbuild" || name.ends_with(".c") || name.ends_with(".h") || name.ends_with(".lds");
        if path.is_file() && source {
            copy_if_changed(&path, &place.join(name))?;
        }
    }
    copy_if_changed(&library, &place.join("libgzvm_driver_core.a"))?;
    make(kernel, &place, variables)?;
    copy_if_changed(&place.join("gzvm.ko"), &layout.part(part))
}

/// Builds it; `target/gz/gzvm.ko` is the result, and `gzvm-crash.ko`, which makes mistakes on demand.
///
/// # Errors
/// If the compiler, the linker or the kernel's build system complains.
pub fn build(layout: &Layout) -> Result<()> {
    let kernel = layout.cache.join("host/build");
    driver(layout, &kernel, ("crash-test", &["GZVM_CRASH_TEST=y"]), "driver-crash-build", CRASH_TEST)?;
    driver(layout, &kernel, ("", &[]), "driver-build", "gzvm.ko")?;

    let guest = layout.part("driver-guest-build");
    fs::create_dir_all(&guest)?;
    for name in ["Kbuild", "gzvm-guest.c", "rpc.h", "rpc.c", "rpc-grant.c", "rpc-places.c"] {
        copy_if_changed(&layout.root.join("driver/guest").join(name), &guest.join(name))?;
    }
    make(&kernel, &guest, &[])?;
    for module in GUEST_MODULES {
        copy_if_changed(&guest.join(module), &layout.part(module))?;
    }

    let programs = cargo::linux_programs(layout, &[CHECK])?;
    let (_, check) = programs.iter().find(|(name, _)| name == CHECK).context("no program gzvm-check")?;
    super::strip(layout, check, CHECK)
}

/// Builds the driver for the newest Linux.
///
/// # Errors
/// As [`build`].
pub fn build_newest(layout: &Layout) -> Result<()> {
    driver(layout, &newest::build_folder(layout), ("", &NEWEST), "driver-newest-build", cases::driver::NEWEST)
}
