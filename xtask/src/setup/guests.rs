// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What tests run as guests: kernels of other series and page sizes, firmware, and programs that load a Linux guest.
//!
//! Only tests need them, so only `cargo xtask test` fetches them. All is made in `guests.new` and renamed to `guests`
//! at the end. Suites move on; so each kernel is looked for in several, and by its series, never by its exact version; one that
//! only the soak tier runs may be missing, and its tests fail then.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use gzvm_tests::layout::Layout;

use super::apt::{self, State};
use super::kernel;
use super::programs::{self, Program};
use crate::process::Step;

/// Counts up when what is made here changes, so that older results are made again.
const RECIPE: &str = "2\n";

/// A kernel that guests boot.
struct Kernel {
    /// Its file is `NAME.Image`.
    name: &'static str,
    /// Debian's package that depends on the newest of the kind.
    package: &'static str,
    /// Is this release (`uname -r`) what is wanted?
    wanted: fn(&str) -> bool,
    /// Where it may be: the first suite that has one wins.
    suites: &'static [&'static str],
    /// Set-up fails without it: the system tier runs it.
    needed: bool,
}

const KERNELS: [Kernel; 4] = [
    Kernel {
        name: "linux-5.10",
        package: "linux-image-cloud-arm64",
        wanted: |release| release.starts_with("5.10."),
        suites: &["bullseye", "oldoldstable"],
        needed: false,
    },
    Kernel {
        name: "linux-6.1",
        package: "linux-image-cloud-arm64",
        wanted: |release| release.starts_with("6.1."),
        suites: &["bookworm", "oldstable", "oldoldstable"],
        needed: true,
    },
    Kernel {
        name: "linux-7.x",
        package: "linux-image-cloud-arm64",
        wanted: newer,
        suites: &NEWER_SUITES,
        needed: true,
    },
    // No cloud kernel; of its packages only the smallest, the kernel alone, is fetched.
    Kernel {
        name: "linux-16k",
        package: "linux-image-arm64-16k",
        wanted: newer,
        suites: &NEWER_SUITES,
        needed: false,
    },
];

/// Backports first: their lists are short.
pub const NEWER_SUITES: [&str; 5] =
    ["trixie-backports", "stable-backports", "oldstable-backports", "testing", "unstable"];

/// Newer than the series of the host.
fn newer(release: &str) -> bool {
    release.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 7)
}

/// Programs that load a guest, by package.
const PROGRAMS: [Program; 2] = [("stress-ng", "usr/bin/stress-ng"), ("rt-tests", "usr/bin/hackbench")];
/// Packages of the libraries that these want.
const LIBRARIES: [&str; 31] = [
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libacl1",
    "libapparmor1",
    "libbsd0",
    "libmd0",
    "libcap2",
    "libcpupower1",
    "libcrypt1",
    "libdrm2",
    "libegl1",
    "libexpat1",
    "libffi8",
    "libgbm1",
    "libgles2",
    "libglvnd0",
    "libgmp10",
    "libjpeg62-turbo",
    "libjudydebian1",
    "libkmod2",
    "liblzma5",
    "libmpfr6",
    "libnuma1",
    "libsctp1",
    "libssl3",
    "libssl3t64",
    "libwayland-server0",
    "libxxhash0",
    "libzstd1",
    "zlib1g",
];

/// U-Boot for QEMU's `virt` machine.
const U_BOOT: (&str, &str) = ("u-boot-qemu", "usr/lib/u-boot/qemu_arm64/u-boot.bin");

/// Is all of it there?
pub fn complete(layout: &Layout) -> bool {
    fs::read_to_string(layout.guests_folder().join("stamp")).is_ok_and(|stamp| stamp == RECIPE)
}

/// The release of the newest kernel, `linux-7.x`.
///
/// # Errors
/// If it is not there.
pub fn newest_release(layout: &Layout) -> Result<String> {
    let path = layout.guests_folder().join("linux-7.x.release");
    let text = fs::read_to_string(&path).with_context(|| format!("{} is missing", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Downloads and prepares all of it.
///
/// # Errors
/// If Debian lacks something, or the network fails.
pub fn install(layout: &Layout, codename: &str) -> Result<()> {
    let sources = apt::machine_sources()?;
    let folder = layout.guests_folder();
    let new = folder.with_extension("new");
    drop(fs::remove_dir_all(&new));
    fs::create_dir_all(&new)?;
    for wanted in &KERNELS {
        let step = Step::new(format!("{}: {}", wanted.name, wanted.package));
        match fetch_kernel(layout, &sources, codename, wanted, &new) {
            Ok(release) => {
                fs::write(new.join(format!("{}.release", wanted.name)), format!("{release}\n"))?;
                step.done();
            }
            Err(error) if wanted.needed => return Err(error),
            Err(error) => eprintln!("  not there, its tests will fail: {error:#}"),
        }
    }
    let step = Step::new("stress-ng, rt-tests and their libraries; U-Boot");
    let own = apt::mirror(&sources, codename, &[codename])?;
    let state = State::update(&layout.cache.join("apt/programs"), "arm64", &[own])?;
    programs::fetch(layout, &state, &PROGRAMS, &LIBRARIES, &new.join("load"))?;
    let raw = new.join("raw");
    let (package, path) = U_BOOT;
    apt::unpack(&state.download(package, &layout.cache.join("downloads"))?, &raw)?;
    fs::rename(raw.join(path), new.join("u-boot.bin"))
        .with_context(|| format!("Debian's {package} has no {path}"))?;
    fs::remove_dir_all(&raw)?;
    step.done();
    fs::write(new.join("stamp"), RECIPE)?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&new, &folder)?;
    Ok(())
}

/// Places `NAME.Image`; returns its release.
fn fetch_kernel(
    layout: &Layout,
    sources: &[apt::Source],
    codename: &str,
    wanted: &Kernel,
    new: &Path,
) -> Result<String> {
    let mut seen = Vec::new();
    for suite in wanted.suites {
        let Some(state) = State::of_suite(layout, ("arm64", suite), sources, codename)? else {
            seen.push(format!("{suite}: no such suite"));
            continue;
        };
        let versions = state.versions(wanted.package)?;
        let releases = versions.iter().filter_map(|(_, depends)| release_in(depends));
        let Some(release) = releases.clone().find(|release| (wanted.wanted)(release)) else {
            seen.extend(releases.map(|release| format!("{suite}: {release}")));
            continue;
        };
        // Newer packages have the kernel apart from its modules, which nobody needs here.
        let alone = format!("linux-binary-{release}");
        let package =
            if state.versions(&alone)?.is_empty() { format!("linux-image-{release}") } else { alone };
        let raw = new.join("raw");
        apt::unpack(&state.download(&package, &layout.cache.join("downloads"))?, &raw)?;
        let places = [format!("boot/vmlinuz-{release}"), format!("usr/lib/modules/{release}/vmlinuz")];
        let packed = places.iter().map(|place| raw.join(place)).find(|path| path.is_file());
        let packed = packed.with_context(|| format!("Debian's {package} has no kernel at {places:?}"))?;
        kernel::unpack_image(&packed, &new.join(format!("{}.Image", wanted.name)))?;
        fs::remove_dir_all(&raw)?;
        return Ok(release);
    }
    bail!("no suite has a {} of the series that tests want; seen: {}", wanted.package, seen.join(", "))
}

/// The release of the kernel that a package depends on.
fn release_in(depends: &str) -> Option<String> {
    let mut words = depends.split([',', ' ']);
    let release = words.find_map(|word| word.strip_prefix("linux-image-"))?;
    release.starts_with(|c: char| c.is_ascii_digit()).then(|| release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_found_and_compared() {
        let depends = "linux-base-cloud-arm64 (= 7.3.4-1), linux-image-7.3.4+deb13-cloud-arm64 (= 7.3.4-1)";
        assert_eq!(release_in(depends).as_deref(), Some("7.3.4+deb13-cloud-arm64"));
        assert_eq!(release_in("kmod, linux-base"), None);
        assert!(newer("7.0.1-cloud") && newer("10.1") && !newer("6.19.1") && !newer("x"));
    }
}
