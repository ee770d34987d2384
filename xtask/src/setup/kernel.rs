// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The stock arm64 kernel, its modules, its headers ready for building modules on this machine, and busybox.
//!
//! Everything is made in `host.new` and renamed to `host` at the end, so an interrupted run leaves nothing half done.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use gzvm_tests::layout::Layout;

use super::apt::{self, State};
use crate::process::{self, Step};

/// The series that host and guest use: that of Debian 13, in Debian 12's backports as well.
const SERIES: &str = "6.12.";

/// Is all of it there?
pub fn complete(layout: &Layout) -> bool {
    ["host/Image", "host/release", "host/modules/kernel", "host/build/Makefile", "busybox"]
        .iter()
        .all(|part| layout.cache.join(part).exists())
}

/// Downloads and prepares all of it.
///
/// # Errors
/// If Debian has no such kernel, or the network fails.
pub fn install(layout: &Layout, codename: &str, architecture: &str) -> Result<()> {
    let cache = &layout.cache;
    let sources = apt::machine_sources()?;
    let backports = format!("{codename}-backports");
    let suites: &[&str] = if codename == "bookworm" { &[codename, &backports] } else { &[codename] };
    let sources = [apt::mirror(&sources, codename, suites)?];

    let step = Step::new("Debian's list of arm64 packages");
    let arm = State::update(&cache.join("apt/arm64"), "arm64", &sources)?;
    let own = State::update(&cache.join("apt/own"), architecture, &sources)?;
    step.done();
    let (release, version) = newest(&arm)?;
    let base = without_flavour(&release);

    let step = Step::new(format!("Linux {release}: kernel, modules, headers; busybox"));
    let downloads = cache.join("downloads");
    let fetch = |state: &State, package: &str| state.download(package, &downloads);
    let image = fetch(&arm, &format!("linux-image-{release}={version}"))?;
    let headers = [
        fetch(&arm, &format!("linux-headers-{release}"))?,
        fetch(&arm, &format!("linux-headers-{base}-common"))?,
        fetch(&own, &format!("linux-kbuild-{base}"))?,
    ];
    let busybox = fetch(&arm, "busybox-static")?;
    step.done();

    let step = Step::new("Unpacking the kernel");
    let new = cache.join("host.new");
    drop(fs::remove_dir_all(&new));
    let raw = new.join("raw");
    apt::unpack(&image, &raw)?;
    apt::unpack(&busybox, &raw)?;
    place_kernel(&raw, &new, &release)?;
    for package in &headers {
        apt::unpack(package, &new.join("headers"))?;
    }
    relocate_headers(&new, &cache.join("host"), &release)?;
    let program =
        ["bin/busybox", "usr/bin/busybox"].iter().map(|path| raw.join(path)).find(|path| path.is_file());
    let program = program.context("Debian's busybox-static has no busybox")?;
    fs::copy(program, cache.join("busybox.new"))?;
    fs::rename(cache.join("busybox.new"), cache.join("busybox"))?;
    fs::remove_dir_all(&raw)?;
    let old = cache.join("host");
    if old.exists() {
        fs::remove_dir_all(&old)?;
    }
    fs::rename(&new, &old)?;
    step.done();
    Ok(())
}

/// Release and package version of the newest cloud kernel of the series.
fn newest(state: &State) -> Result<(String, String)> {
    for (version, depends) in state.versions("linux-image-cloud-arm64")? {
        let package =
            depends.split([',', ' ']).find(|word| word.starts_with("linux-image-")).unwrap_or_default();
        let release = package.trim_start_matches("linux-image-");
        if release.starts_with(SERIES) {
            return Ok((release.to_owned(), version));
        }
    }
    bail!("Debian's package linux-image-cloud-arm64 has no version {SERIES}x in the suites of this machine")
}

fn place_kernel(raw: &Path, new: &Path, release: &str) -> Result<()> {
    let packed = raw.join(format!("boot/vmlinuz-{release}"));
    unpack_image(&packed, &new.join("Image"))?;
    let modules = ["lib/modules", "usr/lib/modules"].iter().map(|path| raw.join(path).join(release));
    let modules =
        modules.into_iter().find(|path| path.is_dir()).context("the kernel package has no modules")?;
    fs::rename(modules, new.join("modules"))?;
    let mut compressed = Vec::new();
    collect(&new.join("modules"), &mut compressed)?;
    for chunk in compressed.chunks(200) {
        process::run(Command::new("xz").args(["-d", "-T0"]).args(chunk))?;
    }
    fs::write(new.join("release"), format!("{release}\n"))?;
    Ok(())
}

/// A package's kernel as a plain `Image` at `image`.
///
/// # Errors
/// If it is missing or damaged.
pub fn unpack_image(packed: &Path, image: &Path) -> Result<()> {
    let magic = fs::read(packed).with_context(|| format!("the kernel package lacks {}", packed.display()))?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        let output = fs::File::create(image)?;
        let mut gzip = Command::new("gzip");
        let status = gzip.arg("-dc").arg(packed).stdout(Stdio::from(output)).status()?;
        if !status.success() {
            bail!("can't decompress {}", packed.display());
        }
    } else {
        fs::copy(packed, image)?;
    }
    Ok(())
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), found)?;
        } else if entry.file_name().to_string_lossy().ends_with(".ko.xz") {
            found.push(entry.path());
        }
    }
    Ok(())
}

/// The release in the name of linux-headers-RELEASE-common.
pub fn without_flavour(release: &str) -> &str {
    release.strip_suffix("-cloud-arm64").unwrap_or(release)
}

/// Debian's headers name each other below `/usr/src`, and the compiler by its version. They are in `new`, and come to `place`.
///
/// # Errors
/// If a part of them is missing.
pub fn relocate_headers(new: &Path, place: &Path, release: &str) -> Result<()> {
    let tree = format!("headers/usr/src/linux-headers-{release}");
    let makefile = new.join(&tree).join("Makefile");
    let text = fs::read_to_string(&makefile).context("the headers have no Makefile")?;
    fs::write(&makefile, text.replace("/usr/src/", &format!("{}/headers/usr/src/", place.display())))?;
    let variables = new.join(&tree).join(".kernelvariables");
    let text = fs::read_to_string(&variables).context("the headers have no .kernelvariables")?;
    let text: Vec<_> = text.lines().map(without_compiler_version).collect();
    fs::write(&variables, text.join("\n") + "\n")?;
    symlink(&tree, new.join("build"))?;
    Ok(())
}

/// `…gcc-12` becomes `…gcc`: any cross compiler of the machine will do.
fn without_compiler_version(line: &str) -> String {
    match line.rsplit_once("gcc-") {
        Some((before, version)) if version.chars().all(|c| c.is_ascii_digit()) => format!("{before}gcc"),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_loses_its_version() {
        assert_eq!(without_compiler_version("CC = $(CROSS_COMPILE)gcc-12"), "CC = $(CROSS_COMPILE)gcc");
        assert_eq!(without_compiler_version("CC = gcc-12-x"), "CC = gcc-12-x");
        assert_eq!(without_compiler_version("override ARCH = arm64"), "override ARCH = arm64");
    }
}
