// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Programs of this machine: emulator, cross compiler, tools. Installed as Debian packages, by root or with sudo.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};
use gzvm_tests::layout::Layout;

use super::apt::{self, State};
use crate::process::{self, Step};

/// A program, the package that has it, and what for.
struct Tool {
    program: &'static str,
    amd64: &'static str,
    arm64: &'static str,
    why: &'static str,
}

const fn tool(program: &'static str, amd64: &'static str, arm64: &'static str, why: &'static str) -> Tool {
    Tool { program, amd64, arm64, why }
}

const TOOLS: &[Tool] = &[
    tool(gzvm_tests::machine::QEMU, "qemu-system-arm", "qemu-system-arm", "the emulated machine"),
    tool(
        "aarch64-linux-gnu-gcc",
        "gcc-aarch64-linux-gnu",
        "gcc",
        "the driver's C shim, and linking Arm programs",
    ),
    tool("aarch64-linux-gnu-objcopy", "binutils-aarch64-linux-gnu", "binutils", "flat images"),
    tool("gdb-multiarch", "gdb-multiarch", "gdb-multiarch", "cargo xtask gdb"),
    tool("pahole", "pahole", "pahole", "type information in kernel modules"),
    tool("make", "make", "make", "the kernel's build system"),
    tool("xz", "xz-utils", "xz-utils", "the kernel's compressed modules"),
    tool("mke2fs", "e2fsprogs", "e2fsprogs", "the guest's disk"),
    tool("dpkg-deb", "dpkg", "dpkg", "unpacking packages"),
];

/// Files rather than programs: path, package, why.
const FILES: &[(&str, &str, &str)] = &[
    ("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross", "static Arm programs"),
    ("/usr/share/AAVMF/AAVMF_CODE.fd", "qemu-efi-aarch64", "UEFI firmware for the emulated machine"),
];

/// The oldest emulator that works.
const QEMU_MAJOR: u32 = 10;

/// Is every program there? Quick: looks for files only.
pub fn complete() -> bool {
    TOOLS.iter().all(|tool| locate(tool.program)) && FILES.iter().all(|(path, ..)| present(path))
}

/// mke2fs lies in sbin, which a user's PATH may lack.
fn locate(program: &str) -> bool {
    process::find(program).is_some()
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|folder| fs::exists(format!("{folder}/{program}")).unwrap_or(false))
}

fn present(path: &str) -> bool {
    // Arm machines have their own static C library elsewhere.
    (cfg!(target_arch = "aarch64") && path.contains("aarch64-linux-gnu")) || fs::exists(path).unwrap_or(false)
}

/// Installs what is missing.
///
/// # Errors
/// If this is no Debian, without root and sudo, or when apt fails: each with the remedy.
pub fn install(layout: &Layout, codename: &str, architecture: &str) -> Result<()> {
    let mut packages = Vec::new();
    for tool in TOOLS {
        let old = tool.program == gzvm_tests::machine::QEMU
            && qemu_version().is_some_and(|major| major < QEMU_MAJOR);
        if !locate(tool.program) || old {
            let package = if architecture == "arm64" { tool.arm64 } else { tool.amd64 };
            packages.push((package, tool.why));
        }
    }
    packages
        .extend(FILES.iter().filter(|(path, ..)| !present(path)).map(|(_, package, why)| (*package, *why)));
    if packages.is_empty() {
        return Ok(());
    }
    eprintln!("This machine lacks Debian packages; they are installed now:");
    for (package, why) in &packages {
        eprintln!("  {package:28} {why}");
    }
    let sources = apt::machine_sources()?;
    let mut wanted = apt::of_release(&sources, codename);
    let backports = format!("{codename}-backports");
    if codename == "bookworm" {
        // Debian 12 itself has QEMU 7.2.
        wanted.push(apt::mirror(&sources, codename, &[&backports])?);
    }
    let step = Step::new("Debian's list of packages");
    let state = State::update(&layout.cache.join("apt/host"), architecture, &wanted)?;
    step.done();
    let (emulator, rest): (Vec<_>, Vec<_>) =
        packages.iter().map(|(package, _)| *package).partition(|p| p.starts_with("qemu-"));
    let suite = if codename == "bookworm" { backports.as_str() } else { codename };
    // The emulator last: it may bring newer libraries, which those that are there must not contradict.
    if !rest.is_empty() {
        let step = Step::new(format!("Installing {}", rest.join(", ")));
        // With such libraries on the machine already, only packages of the newer suite fit.
        install_packages(&state, &[], &rest).or_else(|_| install_packages(&state, &["-t", suite], &rest))?;
        step.done();
    }
    if !emulator.is_empty() {
        let step = Step::new(format!("Installing {}", emulator.join(", ")));
        install_packages(&state, &["-t", suite], &emulator)?;
        step.done();
    }
    match qemu_version() {
        Some(major) if major < QEMU_MAJOR => bail!(
            "QEMU {major} is too old, {QEMU_MAJOR} or newer is needed; {} comes first in PATH",
            process::find(gzvm_tests::machine::QEMU).unwrap_or_default().display()
        ),
        _ => Ok(()),
    }
}

fn install_packages(state: &State, options: &[&str], packages: &[&str]) -> Result<()> {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("env")
    } else if process::find("sudo").is_some() {
        let mut command = Command::new("sudo");
        command.arg("env");
        command
    } else {
        bail!(
            "installing needs root, and there is no sudo; as root: apt-get install {}{}",
            options.iter().map(|option| format!("{option} ")).collect::<String>(),
            packages.join(" ")
        );
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(state.options());
    command.args(["-q", "-y", "--no-install-recommends", "install"]).args(options).args(packages);
    process::run(&mut command).context("apt-get could not install the packages")
}

/// The emulator's major version.
fn qemu_version() -> Option<u32> {
    let text = process::output(Command::new(gzvm_tests::machine::QEMU).arg("--version")).ok()?;
    text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}
