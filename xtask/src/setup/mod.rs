// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask setup`: everything that building and running needs, on a fresh Debian 12 or 13.
//!
//! Invariants: a part is either complete or absent (made aside, then renamed); one set-up at a time (file lock); nothing is
//! done when all is there, and finding that out looks at files only.
//!
//! Neighbours: [`apt`] for packages, [`host`] for this machine's programs, [`kernel`] for the emulated machine's Linux,
//! [`guests`], [`peers`] and [`debian`] for what only tests run, [`newest`] for what `bench` and the soak tier build,
//! [`rust`] for the compiler's Arm targets.

pub mod apt;
mod debian;
pub mod guests;
mod host;
mod kernel;
pub mod newest;
mod peers;
mod programs;
pub mod rust;

use std::{
    fs::{self, File, TryLockError},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use gzvm_tests::layout::Layout;

use self::rust::{Compiler, Route};

/// What set-up may be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How the compiler's Arm targets come
    #[arg(long, value_enum, default_value = "auto")]
    pub toolchain: Route,
    /// Look for newer packages and prepare everything again
    #[arg(long)]
    pub refresh: bool,
    /// Also what tests run as guests, and at the other end of their devices: kernels of other series, U-Boot, socat, virtiofsd, passt, ssh, iperf3 (`cargo xtask test` fetches it by itself)
    #[arg(long)]
    pub tests: bool,
    /// Also a whole Debian as a guest, for the soak tier (`cargo xtask test soak` makes it by itself)
    #[arg(long)]
    pub debian: bool,
    /// Also what tests run as guests, and the headers of the newest kernel of these (`cargo xtask bench` and `cargo xtask test soak` fetch them by themselves)
    #[arg(long)]
    pub newest: bool,
}

impl Options {
    /// Is what tests run as guests wanted?
    const fn guests(&self) -> bool {
        self.tests || self.newest
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { toolchain: Route::Auto, refresh: false, tests: false, debian: false, newest: false }
    }
}

/// Makes sure that all is there; silent if it is.
///
/// # Errors
/// What is missing, why it can't be had, and the remedy.
pub fn ensure(layout: &Layout, options: &Options) -> Result<()> {
    let compiler = Compiler::ask()?;
    let complete = || {
        host::complete()
            && kernel::complete(layout)
            && rust::complete(layout, &compiler, options.toolchain)
            && (!options.guests() || guests::complete(layout))
            && (!options.tests || peers::complete(layout))
            && (!options.newest || newest::complete(layout))
            && (!options.debian || debian::complete(layout))
    };
    if complete() && !options.refresh {
        return Ok(());
    }
    let begin = Instant::now();
    fs::create_dir_all(&layout.cache).with_context(|| {
        format!("can't make the cache folder {} (GENIEZONE_CACHE names another)", layout.cache.display())
    })?;
    let _lock = lock(layout)?;
    let (codename, architecture) = (codename()?, architecture()?);
    eprintln!("Set-up: downloads are kept in {}", layout.cache.display());
    if !host::complete() {
        host::install(layout, &codename, architecture)?;
    }
    if !kernel::complete(layout) || options.refresh {
        kernel::install(layout, &codename, architecture)?;
    }
    if !rust::complete(layout, &compiler, options.toolchain) {
        rust::install(layout, &compiler, options.toolchain, &codename)?;
    }
    if options.guests() && (!guests::complete(layout) || options.refresh) {
        guests::install(layout, &codename)?;
    }
    if options.tests && (!peers::complete(layout) || options.refresh) {
        peers::install(layout, &codename, options.refresh)?;
    }
    if options.newest && (!newest::complete(layout) || options.refresh) {
        newest::install(layout, &codename)?;
    }
    if options.debian && (!debian::complete(layout) || options.refresh) {
        debian::install(layout, &codename)?;
    }
    if !complete() {
        bail!(
            "set-up ended, but something is still missing in {}: remove that folder and try again",
            layout.cache.display()
        );
    }
    eprintln!("Set-up is complete ({:.0} s).", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Held for as long as the file is open.
fn lock(layout: &Layout) -> Result<File> {
    let path = layout.cache.join("lock");
    let file = File::create(&path).with_context(|| format!("can't write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            eprintln!("Another set-up is at work; waiting for it.");
            file.lock()?;
        }
        Err(TryLockError::Error(error)) => return Err(error).context("can't lock the cache"),
    }
    Ok(file)
}

fn codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim_matches('"').to_owned()
    };
    let codename = field("VERSION_CODENAME=");
    if field("ID=") != "debian" || !["bookworm", "trixie"].contains(&codename.as_str()) {
        bail!(
            "set-up knows Debian 12 (bookworm) and 13 (trixie); this is {}. In a container of one of them it works.",
            field("PRETTY_NAME=")
        );
    }
    Ok(codename)
}

fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("set-up knows x86_64 and aarch64 machines; this is {other}"),
    }
}
