// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is at the other end of guests' virtio devices in tests: programs that others wrote. Those that are a device themselves,
//! by vhost-user, have a folder of their own: they need many libraries.
//!
//! Only tests need them, so only `cargo xtask test` fetches them. All is made in `NAME.new` and renamed to `NAME` at the end.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use gzvm_tests::layout::Layout;

use super::apt::{self, State};
use super::programs::{self, Program};
use crate::build::cargo;
use crate::process::{self, Step};

/// Programs that belong together, with their libraries.
struct Set {
    folder: fn(&Layout) -> PathBuf,
    /// Counts up when what is made here changes, so that older results are made again.
    recipe: &'static str,
    programs: &'static [Program],
    /// The packages of their libraries.
    libraries: &'static [&'static str],
    /// Programs from crates.io, by package and version.
    crates: &'static [(&'static str, &'static str)],
}

const SETS: [Set; 2] = [
    Set {
        folder: Layout::peers_folder,
        recipe: "2\n",
        programs: &[
            ("socat", "usr/bin/socat1"),
            ("virtiofsd", "usr/libexec/virtiofsd"),
            ("passt", "usr/bin/passt"),
            ("openssh-client", "usr/bin/ssh"),
            ("iperf3", "usr/bin/iperf3"),
        ],
        libraries: &[
            "libc6",
            "libgcc-s1",
            "libcap-ng0",
            "libseccomp2",
            "libssl3t64",
            "libwrap0",
            "libnsl2",
            "libtirpc3t64",
            "libgssapi-krb5-2",
            "libkrb5-3",
            "libk5crypto3",
            "libkrb5support0",
            "libcom-err2",
            "libkeyutils1",
            "libzstd1",
            "zlib1g",
            "libcrypt1",
            "libselinux1",
            "libpcre2-8-0",
            "libiperf0",
            "libsctp1",
        ],
        crates: &[],
    },
    Set {
        folder: Layout::back_ends_folder,
        recipe: "1\n",
        programs: &[("qemu-utils", "usr/bin/qemu-storage-daemon")],
        libraries: &[
            "libc6",
            "libaio1t64",
            "libfuse3-4",
            "libglib2.0-0t64",
            "libgmp10",
            "libgnutls30t64",
            "libhogweed6t64",
            "libnettle8t64",
            "libnuma1",
            "liburing2",
            "libzstd1",
            "zlib1g",
            "libselinux1",
            "libpcre2-8-0",
            "libp11-kit0",
            "libidn2-0",
            "libunistring5",
            "libtasn1-6",
            "libffi8",
            "libatomic1",
        ],
        crates: &[("vhost-device-rng", "0.1.0")],
    },
];
/// The first of them that has all programs wins: Debian 12 has no package virtiofsd.
const SUITES: [&str; 3] = ["trixie", "stable", "testing"];

/// Is all of it there?
pub fn complete(layout: &Layout) -> bool {
    SETS.iter().all(|set| set.complete(layout))
}

/// Downloads and prepares all of it.
///
/// # Errors
/// If Debian lacks something, or the network fails.
pub fn install(layout: &Layout, codename: &str, refresh: bool) -> Result<()> {
    SETS.iter()
        .filter(|set| refresh || !set.complete(layout))
        .try_for_each(|set| set.install(layout, codename))
}

impl Set {
    fn complete(&self, layout: &Layout) -> bool {
        let stamp = (self.folder)(layout).join("stamp");
        fs::read_to_string(stamp).is_ok_and(|stamp| stamp == self.recipe)
    }

    fn install(&self, layout: &Layout, codename: &str) -> Result<()> {
        let sources = apt::machine_sources()?;
        let crates = self.crates.iter().map(|(package, _)| *package);
        let names: Vec<_> = self.programs.iter().map(|(package, _)| *package).chain(crates).collect();
        let names = names.join(", ");
        let step = Step::new(format!("{names} and their libraries"));
        let folder = (self.folder)(layout);
        let new: PathBuf = folder.with_extension("new");
        drop(fs::remove_dir_all(&new));
        let mut found = false;
        for suite in SUITES {
            let Some(state) = State::of_suite(layout, ("peers", suite), &sources, codename)? else {
                continue;
            };
            let mut all = true;
            for (package, _) in self.programs {
                all &= !state.versions(package)?.is_empty();
            }
            if all {
                programs::fetch(layout, &state, self.programs, self.libraries, &new)?;
                found = true;
                break;
            }
        }
        if !found {
            bail!("no suite has all of {names}; looked in {}", SUITES.join(", "));
        }
        self.crates
            .iter()
            .try_for_each(|(package, version)| from_crates_io(layout, package, version, &new))?;
        fs::write(new.join("stamp"), self.recipe)?;
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::rename(&new, &folder)?;
        step.done();
        Ok(())
    }
}

/// Builds a static program of `package` into `to`/bin. With its own lock file: this is no dependency of ours.
fn from_crates_io(layout: &Layout, package: &str, version: &str, to: &Path) -> Result<()> {
    let build = layout.cache.join("crates");
    let mut cargo = cargo::linux("install", layout, &build);
    cargo.args([package, "--version", version, "--locked", "--quiet", "--no-track", "--root"]).arg(to);
    process::run(&mut cargo)?;
    // Seldom made again, and large.
    fs::remove_dir_all(&build)?;
    Ok(())
}
