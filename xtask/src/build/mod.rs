// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask build`: every part that runs in the emulated machine, finished in `target/gz`.
//!
//! A part that is not in the source tree is left out with a note. Files are written only when their content changes.

pub mod cargo;
pub mod driver;
mod rootfs;

use std::{fs, path::Path, process::Command, time::Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use gzvm_tests::layout::Layout;

use self::cargo::{Aim, Package};
use crate::{process, setup::rust::BARE};

/// A part that can be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// The EL2 image: hypervisor.Image, hypervisor.elf; hypervisor-crash.Image, which tests make crash
    Hypervisor,
    /// The firmware of protected VMs: firmware.Image; firmware-crash.Image, which makes mistakes for tests
    Firmware,
    /// Bare-metal guests: guest-NAME.Image
    Guests,
    /// The host's driver: gzvm.ko; gzvm-crash.ko, which makes mistakes for tests; gzvm-check, which checks it
    Driver,
    /// The VMM, a static Linux program: gz; the example's: keystore; and one for tests: sockets
    Gz,
    /// Initial RAM disks and the guest's disk
    Rootfs,
}

/// All parts, in the order of their dependence.
pub const ALL: [Part; 6] =
    [Part::Hypervisor, Part::Firmware, Part::Guests, Part::Driver, Part::Gz, Part::Rootfs];

/// Package names of the parts that are single crates.
const HYPERVISOR: &str = "gzvm-hypervisor";
const FIRMWARE: &str = "gzvm-firmware";
const VMM: &str = "gz";
/// Programs of the host, by their packages.
const PROGRAMS: [(&str, &str); 3] = [(VMM, "gz"), ("keystore-client", "keystore"), (SOCKETS, "sockets")];
/// The one for tests of vsock, of guests too.
const SOCKETS: &str = "gzvm-sockets";

/// Builds these parts.
///
/// # Errors
/// At the first part that fails.
pub fn build(layout: &Layout, parts: &[Part]) -> Result<()> {
    fs::create_dir_all(&layout.out).with_context(|| format!("can't make {}", layout.out.display()))?;
    cargo::drop_stale(layout)?;
    let packages = cargo::packages(layout)?;
    let has = |name: &str| packages.iter().any(|package| package.name == name);
    for part in parts {
        let begin = Instant::now();
        let built = match part {
            Part::Hypervisor if has(HYPERVISOR) => hypervisor(layout).map(|()| true),
            Part::Firmware if has(FIRMWARE) => firmware(layout).map(|()| true),
            Part::Guests => guests(layout, &packages),
            Part::Driver if has(driver::PACKAGE) && layout.root.join("driver/Kbuild").is_file() => {
                driver::build(layout).map(|()| true)
            }
            Part::Gz if has(VMM) => vmm(layout).map(|()| true),
            Part::Rootfs => rootfs(layout).map(|()| true),
            _ => Ok(false),
        };
        let name = part.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        if built.with_context(|| format!("building {name}"))? {
            eprintln!("  built {name} ({:.1} s)", begin.elapsed().as_secs_f64());
        } else {
            eprintln!("  {name}: not in the source tree, left out");
        }
    }
    Ok(())
}

fn hypervisor(layout: &Layout) -> Result<()> {
    for (_, elf) in cargo::build_optimised(layout, BARE, HYPERVISOR, "crash-test", Aim::Size)? {
        flatten(layout, &elf, "hypervisor-crash.Image")?;
    }
    // Last, since both end up under one name: what lies in cargo's folder is the real one.
    let programs = cargo::build_optimised(layout, BARE, HYPERVISOR, "", Aim::Size)?;
    let (_, elf) = programs.first().context("the hypervisor's crate has no program")?;
    copy_if_changed(elf, &layout.part("hypervisor.elf"))?;
    flatten(layout, elf, "hypervisor.Image")
}

fn firmware(layout: &Layout) -> Result<()> {
    for (_, elf) in cargo::build_optimised(layout, BARE, FIRMWARE, "crash-test", Aim::Speed)? {
        flatten(layout, &elf, "firmware-crash.Image")?;
    }
    // Last, as above.
    let programs = cargo::build_optimised(layout, BARE, FIRMWARE, "", Aim::Speed)?;
    let (_, elf) = programs.first().context("the firmware's crate has no program")?;
    copy_if_changed(elf, &layout.part("firmware.elf"))?;
    flatten(layout, elf, "firmware.Image")
}

fn guests(layout: &Layout, packages: &[Package]) -> Result<bool> {
    let folder = layout.root.join("guests");
    let names: Vec<_> = packages
        .iter()
        .filter(|package| package.folder.starts_with(&folder) && package.program)
        .map(|package| package.name.as_str())
        .collect();
    if names.is_empty() {
        return Ok(false);
    }
    for (name, elf) in cargo::build(layout, BARE, &names)? {
        let name = name.strip_prefix("guest-").unwrap_or(&name);
        copy_if_changed(&elf, &layout.part(&format!("guest-{name}.elf")))?;
        flatten(layout, &elf, &format!("guest-{name}.Image"))?;
    }
    Ok(true)
}

fn vmm(layout: &Layout) -> Result<()> {
    let built = cargo::linux_programs(layout, &PROGRAMS.map(|(package, _)| package))?;
    for (package, program) in PROGRAMS {
        let (_, file) = built
            .iter()
            .find(|(name, _)| name == program)
            .with_context(|| format!("{package} has no program {program}"))?;
        strip(layout, file, program)?;
    }
    Ok(())
}

/// A program without debug information, a tenth of the size: RAM disks hold it.
fn strip(layout: &Layout, program: &Path, name: &str) -> Result<()> {
    let stripped = layout.part(&format!("{name}.new"));
    process::run(Command::new("aarch64-linux-gnu-strip").arg("-o").arg(&stripped).arg(program))?;
    copy_if_changed(&stripped, &layout.part(name))
}

fn rootfs(layout: &Layout) -> Result<()> {
    rootfs::guest(layout)?;
    rootfs::disk(layout)?;
    rootfs::host(layout)
}

/// A flat image of a program for a bare machine.
fn flatten(layout: &Layout, elf: &Path, name: &str) -> Result<()> {
    let new = layout.part(&format!("{name}.new"));
    process::run(Command::new("aarch64-linux-gnu-objcopy").args(["-O", "binary"]).arg(elf).arg(&new))?;
    copy_if_changed(&new, &layout.part(name))
}

/// Copies a file and its permission bits, unless the copy has this content already.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("can't read {}", from.display()))?;
    write_if_changed(to, &content)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    Ok(())
}

/// Writes a file as a whole: who reads it at the same time sees the old or the new one.
fn write_if_changed(to: &Path, content: &[u8]) -> Result<()> {
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let mut new = to.as_os_str().to_owned();
    new.push(".part");
    fs::write(&new, content).with_context(|| format!("can't write {}", to.display()))?;
    fs::rename(&new, to)?;
    Ok(())
}
