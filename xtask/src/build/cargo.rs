// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cargo for the Arm targets: one target folder of their own (`target/arm`), so that they neither wait for native builds
//! nor invalidate them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use gzvm_tests::layout::Layout;
use serde_json::Value;

use crate::{
    process,
    setup::rust::{self, BARE, LINUX},
};

/// A crate of the workspace.
#[derive(Debug, Clone)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Has it a program?
    pub program: bool,
}

/// The crates of the workspace.
///
/// # Errors
/// If a manifest is wrong.
pub fn packages(layout: &Layout) -> Result<Vec<Package>> {
    let text = process::output(
        process::cargo().args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(&layout.root),
    )?;
    let value: Value = serde_json::from_str(&text).context("cargo metadata")?;
    let mut found = Vec::new();
    for package in value["packages"].as_array().into_iter().flatten() {
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap_or_default());
        let program = package["targets"].as_array().into_iter().flatten().any(|target| {
            target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "bin"))
        });
        found.push(Package {
            name: package["name"].as_str().unwrap_or_default().to_owned(),
            folder: manifest.parent().unwrap_or(Path::new("")).to_path_buf(),
            program,
        });
    }
    Ok(found)
}

/// Throws away what was built with another standard library: cargo does not notice when that alone was made anew.
///
/// # Errors
/// If the folder can't be removed.
pub fn drop_stale(layout: &Layout) -> Result<()> {
    let folder = layout.target.join("arm");
    let stamp = folder.join("standard-library");
    let now = match rust::wrapper(layout) {
        Some(wrapper) => format!("{:?}", fs::metadata(wrapper)?.modified()?),
        None => "the compiler's own".to_owned(),
    };
    // A folder without a stamp was made with the compiler's own.
    let before = fs::read_to_string(&stamp).unwrap_or_else(|_| "the compiler's own".to_owned());
    if before != now && folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("can't remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder)?;
    fs::write(stamp, now)?;
    Ok(())
}

/// Cargo with an Arm target.
pub fn arm(layout: &Layout, verb: &str, target: &str) -> Command {
    let mut cargo = in_folder(layout, verb, target, &layout.target.join("arm"));
    cargo.arg("--release");
    cargo
}

/// Cargo for static Linux programs that are not of this workspace, which builds in `folder`.
pub fn linux(verb: &str, layout: &Layout, folder: &Path) -> Command {
    in_folder(layout, verb, LINUX, folder)
}

fn in_folder(layout: &Layout, verb: &str, target: &str, folder: &Path) -> Command {
    let mut cargo = process::cargo();
    cargo.arg(verb).args(["--target", target, "--target-dir"]).arg(folder);
    cargo.current_dir(&layout.root).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
    cargo.env_remove("RUSTC");
    if let Some(wrapper) = rust::wrapper(layout) {
        cargo.env("RUSTC", wrapper);
    }
    cargo
}

/// Builds the packages and returns their programs or static libraries: target name and file.
///
/// # Errors
/// If they don't build; the compiler's messages are on the terminal.
pub fn build(layout: &Layout, target: &str, packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = arm(layout, "build", target);
    for package in packages {
        cargo.args(["-p", package]);
    }
    finish(cargo)
}

/// What the optimiser is to aim at.
#[derive(Clone, Copy)]
pub enum Aim {
    /// Few instructions.
    Speed,
    /// A small image, with few instructions on the paths that are marked by `#[inline]`.
    Size,
}

/// Builds one package with these features (separated by commas), optimised: the optimiser sees it and all it consists of as a whole.
///
/// # Errors
/// As [`build`].
pub fn build_optimised(
    layout: &Layout,
    target: &str,
    package: &str,
    features: &str,
    aim: Aim,
) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = arm(layout, "build", target);
    cargo.args(["-p", package, "--features", features]);
    as_a_whole(&mut cargo);
    if matches!(aim, Aim::Size) {
        small(&mut cargo);
    }
    finish(cargo)
}

/// Small, without harm to what is entered often: functions are inlined where they are marked so, or tiny, and what runs at boot
/// or at a VM's creation only is compiled for size. Loops are not laid out in a row; and one instruction makes an address (the
/// image is far below the 1 MiB that this allows), which costs less of both.
fn small(cargo: &mut Command) {
    cargo.args(["--config", "profile.release.opt-level=2"]);
    for package in ["aarch64-paging", "sha2"] {
        cargo.arg("--config").arg(format!("profile.release.package.{package}.opt-level=\"z\""));
    }
    cargo.env(
        "CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_RUSTFLAGS",
        "-C code-model=tiny -C llvm-args=--inline-threshold=20 \
         -C llvm-args=--unroll-threshold=40 -C llvm-args=--enable-machine-outliner=always",
    );
}

fn as_a_whole(cargo: &mut Command) {
    cargo.args(["--config", "profile.release.lto=\"fat\"", "--config", "profile.release.codegen-units=1"]);
}

/// Builds a library package with these features as a static library.
///
/// # Errors
/// As [`build`].
pub fn static_library(layout: &Layout, package: &str, features: &str) -> Result<PathBuf> {
    let mut cargo = arm(layout, "rustc", BARE);
    cargo.args(["-p", package, "--lib", "--crate-type", "staticlib", "--features", features]);
    // As a whole, so that one object needs nothing of the core library but what it holds itself.
    as_a_whole(&mut cargo);
    cargo.args(["--config", "profile.release.debug=0"]);
    let files = finish(cargo)?;
    let found =
        files.into_iter().map(|(_, file)| file).find(|file| file.extension().is_some_and(|e| e == "a"));
    found.with_context(|| format!("{package} gave no static library"))
}

/// Builds a static Linux program.
///
/// # Errors
/// As [`build`].
pub fn linux_programs(layout: &Layout, packages: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    build(layout, LINUX, packages)
}

fn finish(mut cargo: Command) -> Result<Vec<(String, PathBuf)>> {
    cargo.args(["--quiet", "--message-format", "json-render-diagnostics"]);
    cargo.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().context("can't start cargo")?;
    if !output.status.success() {
        bail!("{} failed", process::line(&cargo));
    }
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        if message["reason"] != "compiler-artifact" {
            continue;
        }
        let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        if let Some(file) = message["executable"].as_str() {
            found.push((name, PathBuf::from(file)));
            continue;
        }
        for file in message["filenames"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if file.ends_with(".a") {
                found.push((name.clone(), PathBuf::from(file)));
            }
        }
    }
    Ok(found)
}
