// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The Arm targets of the Rust compiler.
//!
//! Three ways, the first that works: the compiler has them; `rustup target add`; or they are built once from the standard
//! library's source (rustup's component `rust-src` if it is there, else Debian's package of exactly the compiler's
//! version). The last way makes a private sysroot of symbolic links to the real one plus what was built, and a compiler
//! wrapper that names it; after that, every build is an ordinary one on the stable compiler.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use gzvm_tests::layout::Layout;

use super::apt::{self, State};
use crate::process::{self, Step};

/// EL2 images, bare-metal guests, the driver's Rust part.
pub const BARE: &str = "aarch64-unknown-none-softfloat";
/// Programs for the host VM, linked statically.
pub const LINUX: &str = "aarch64-unknown-linux-gnu";
const TARGETS: [&str; 2] = [BARE, LINUX];

/// Suites that carry Rust's source in several versions, and the packages' names.
const SUITES: [&str; 5] = ["trixie-backports", "forky", "sid", "trixie", "bookworm-backports"];
const PACKAGES: [&str; 2] = ["rust-src", "rust-web-src"];

/// Counts up when [`build`] changes, so that older results are built again.
const RECIPE: u32 = 3;

/// How the Arm targets come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Route {
    /// rustup if it can, else the source.
    Auto,
    /// Only rustup.
    Rustup,
    /// Only from the standard library's source.
    Source,
}

/// The compiler as it describes itself.
pub struct Compiler {
    /// `rustc -vV`.
    pub identity: String,
    sysroot: PathBuf,
    host: String,
    release: String,
}

impl Compiler {
    /// Asks it.
    ///
    /// # Errors
    /// If there is no working `rustc`.
    pub fn ask() -> Result<Self> {
        let identity =
            process::output(rustc().arg("-vV")).context("no Rust compiler: install Rust (rustup.rs)")?;
        let field = |name: &str| {
            identity.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned()
        };
        let sysroot = process::output(rustc().args(["--print", "sysroot"]))?;
        Ok(Self {
            sysroot: sysroot.trim().into(),
            host: field("host:"),
            release: field("release:"),
            identity,
        })
    }

    fn has(&self, target: &str) -> bool {
        let folder = self.sysroot.join("lib/rustlib").join(target).join("lib");
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    }
}

/// The compiler of the toolchain that runs us, whatever wrapper is in the environment.
fn rustc() -> Command {
    let mut command = Command::new("rustc");
    command.env_remove("RUSTC");
    command
}

/// The wrapper to use as `RUSTC`, if the targets were built from source.
pub fn wrapper(layout: &Layout) -> Option<PathBuf> {
    Some(layout.cache.join("toolchain/rustc")).filter(|path| path.is_file())
}

/// Are the targets there for this compiler?
pub fn complete(layout: &Layout, compiler: &Compiler, route: Route) -> bool {
    let own = TARGETS.iter().all(|target| compiler.has(target));
    let stamp = fs::read_to_string(layout.cache.join("toolchain/stamp")).unwrap_or_default();
    let built = wrapper(layout).is_some() && stamp == stamp_of(compiler);
    match route {
        Route::Auto => (own && wrapper(layout).is_none()) || built,
        Route::Rustup => own && wrapper(layout).is_none(),
        Route::Source => built,
    }
}

/// What was built, for which compiler.
fn stamp_of(compiler: &Compiler) -> String {
    format!("{RECIPE}\n{}", compiler.identity)
}

/// Makes them available.
///
/// # Errors
/// If no way works: with the reason of each.
pub fn install(layout: &Layout, compiler: &Compiler, route: Route, codename: &str) -> Result<()> {
    let folder = layout.cache.join("toolchain");
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder)?;
    let mut reasons = Vec::new();
    if route != Route::Source {
        match from_rustup(compiler) {
            Ok(()) => {
                fs::write(folder.join("env"), "# The compiler has the Arm targets by itself.\n")?;
                return Ok(());
            }
            Err(error) => reasons.push(format!("rustup: {error:#}")),
        }
        if route == Route::Rustup {
            bail!("{}", reasons.join("\n"));
        }
    }
    match from_source(layout, compiler, &folder, codename) {
        Ok(()) => Ok(()),
        Err(error) => {
            reasons.push(format!("from source: {error:#}"));
            bail!(
                "the Rust compiler's Arm targets ({}) can't be had:\n  {}\nRemedy: `rustup target add {}`, or \
                 `rustup component add rust-src`, on a machine that reaches rustup's server; or use a compiler version that \
                 Debian packages.",
                TARGETS.join(", "),
                reasons.join("\n  "),
                TARGETS.join(" ")
            )
        }
    }
}

fn from_rustup(compiler: &Compiler) -> Result<()> {
    if TARGETS.iter().all(|target| compiler.has(target)) {
        return Ok(());
    }
    if process::find("rustup").is_none() {
        bail!("not installed");
    }
    let step = Step::new("Arm targets of the Rust compiler, by rustup");
    let mut command = Command::new("rustup");
    command.args(["target", "add"]).args(TARGETS).env("RUSTUP_MAX_RETRIES", "0");
    process::run_within(&mut command, Duration::from_secs(120))?;
    step.done();
    match TARGETS.iter().find(|target| !compiler.has(target)) {
        Some(target) => {
            bail!("rustup added {target} to another toolchain than {}", compiler.sysroot.display())
        }
        None => Ok(()),
    }
}

fn from_source(layout: &Layout, compiler: &Compiler, folder: &Path, codename: &str) -> Result<()> {
    let library = find_source(layout, compiler, folder, codename)?;
    let sysroot = folder.join("sysroot");
    link_sysroot(compiler, &sysroot, &library)?;
    let real = process::output(Command::new("rustup").args(["which", "rustc"]))
        .map_or_else(|_| compiler.sysroot.join("bin/rustc"), |path| PathBuf::from(path.trim()));
    let wrapper = folder.join("rustc.new");
    let text = format!("#!/bin/sh\nexec '{}' --sysroot '{}' \"$@\"\n", real.display(), sysroot.display());
    fs::write(&wrapper, text)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    for (target, crates) in [(BARE, "core,alloc,compiler_builtins"), (LINUX, "std,panic_abort")] {
        let step = Step::new(format!("Building Rust's standard library for {target}"));
        build(folder, &wrapper, &sysroot, target, crates)?;
        step.done();
    }
    drop(fs::remove_dir_all(folder.join("build")));
    fs::write(folder.join("env"), format!("export RUSTC='{}'\n", folder.join("rustc").display()))?;
    fs::write(folder.join("stamp"), stamp_of(compiler))?;
    fs::rename(wrapper, folder.join("rustc"))?;
    Ok(())
}

/// The folder `library` of the compiler's source.
fn find_source(layout: &Layout, compiler: &Compiler, folder: &Path, codename: &str) -> Result<PathBuf> {
    let component = compiler.sysroot.join("lib/rustlib/src/rust/library");
    if component.join("Cargo.lock").is_file() {
        return Ok(component);
    }
    let step = Step::new(format!("Rust {}'s source from Debian", compiler.release));
    let sources = apt::machine_sources()?;
    let mut seen = Vec::new();
    for suite in SUITES {
        let source = apt::mirror(&sources, codename, &[suite])?;
        let state = match State::update(&layout.cache.join("apt").join(suite), "amd64", &[source]) {
            Ok(state) => state,
            Err(error) => {
                seen.push(format!("{suite}: {}", first_line(&error)));
                continue;
            }
        };
        for package in PACKAGES {
            let versions = state.versions(package)?;
            let exact = versions.iter().map(|(version, _)| version).find(|version| {
                version.strip_prefix(&compiler.release).is_some_and(|rest| rest.starts_with(['+', '-', '~']))
            });
            if let Some(version) = exact {
                let path =
                    state.download(&format!("{package}={version}"), &layout.cache.join("downloads"))?;
                let unpacked = folder.join("source");
                apt::unpack(&path, &unpacked)?;
                step.done();
                return library_below(&unpacked);
            }
            seen.extend(versions.iter().map(|(version, _)| format!("{suite}: {package} {version}")));
        }
    }
    bail!(
        "Debian has no source of exactly Rust {} (a sysroot of another version can't be used); it has: {}",
        compiler.release,
        seen.join(", ")
    )
}

fn first_line(error: &anyhow::Error) -> String {
    format!("{error}").lines().next().unwrap_or_default().to_owned()
}

fn library_below(unpacked: &Path) -> Result<PathBuf> {
    for entry in fs::read_dir(unpacked.join("usr/src"))? {
        let library = entry?.path().join("library");
        if library.join("Cargo.lock").is_file() {
            return Ok(library);
        }
    }
    bail!("Debian's package of Rust's source has no library/Cargo.lock")
}

/// Links to everything of the real sysroot, with the source at the place where Cargo looks for it.
fn link_sysroot(compiler: &Compiler, sysroot: &Path, library: &Path) -> Result<()> {
    let rustlib = sysroot.join("lib/rustlib");
    fs::create_dir_all(rustlib.join("src/rust"))?;
    symlink(library, rustlib.join("src/rust/library"))?;
    symlink(compiler.sysroot.join("lib/rustlib").join(&compiler.host), rustlib.join(&compiler.host))?;
    for entry in fs::read_dir(compiler.sysroot.join("lib"))? {
        let entry = entry?;
        if entry.file_name() != "rustlib" {
            symlink(entry.path(), sysroot.join("lib").join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Builds the library as a dependency of an empty crate, and moves what came out into the sysroot.
///
/// For panics that abort, as in the workspace's release profile: all that is built for Arm uses it.
fn build(folder: &Path, wrapper: &Path, sysroot: &Path, target: &str, crates: &str) -> Result<()> {
    const PROBE: &str = "gzvm_sysroot_probe";
    let source = folder.join("build");
    fs::create_dir_all(source.join("src"))?;
    fs::write(
        source.join("Cargo.toml"),
        format!(
            "[package]\nname = \"{PROBE}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n[workspace]\n\
             [profile.release]\npanic = \"abort\"\n"
        ),
    )?;
    fs::write(source.join("src/lib.rs"), "#![no_std]\n")?;
    let mut cargo = process::cargo();
    cargo
        .args(["build", "--release", "--target", target, "--target-dir", "target"])
        .arg(format!("-Zbuild-std={crates}"))
        .current_dir(&source)
        .env("RUSTC", wrapper)
        // build-std is not stable; this is the compiler's own library, built by its own version.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")
        // As in rustup's own: builds with link-time optimization look into it.
        .env("RUSTFLAGS", "-Cembed-bitcode=yes")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    if target == BARE {
        cargo.arg("-Zbuild-std-features=compiler-builtins-mem");
    }
    process::run(&mut cargo)?;
    let place = sysroot.join("lib/rustlib").join(target).join("lib");
    fs::create_dir_all(&place)?;
    for entry in fs::read_dir(source.join("target").join(target).join("release/deps"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".rlib") && !name.contains(PROBE) {
            fs::copy(entry.path(), place.join(name))?;
        }
    }
    Ok(())
}
