// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is at the other end of guests' virtio devices in tests: programs that others wrote.
//!
//! Only tests need them, so only `cargo xtask test` fetches them. All is made in `peers.new` and renamed to `peers` at the end.

use std::{fs, path::PathBuf};

use anyhow::{Result, bail};
use gzvm_tests::layout::Layout;

use super::apt::{self, State};
use super::programs::{self, Program};
use crate::process::Step;

/// Counts up when what is made here changes, so that older results are made again.
const RECIPE: &str = "2\n";

const PROGRAMS: [Program; 5] = [
    ("socat", "usr/bin/socat1"),
    ("virtiofsd", "usr/libexec/virtiofsd"),
    ("passt", "usr/bin/passt"),
    ("openssh-client", "usr/bin/ssh"),
    ("iperf3", "usr/bin/iperf3"),
];
const LIBRARIES: [&str; 21] = [
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
];
/// The first of them that has all programs wins: Debian 12 has no package virtiofsd.
const SUITES: [&str; 3] = ["trixie", "stable", "testing"];

/// Is all of it there?
pub fn complete(layout: &Layout) -> bool {
    fs::read_to_string(layout.peers_folder().join("stamp")).is_ok_and(|stamp| stamp == RECIPE)
}

/// Downloads and prepares all of it.
///
/// # Errors
/// If Debian lacks something, or the network fails.
pub fn install(layout: &Layout, codename: &str) -> Result<()> {
    let sources = apt::machine_sources()?;
    let names = PROGRAMS.map(|(package, _)| package).join(", ");
    let step = Step::new(format!("{names} and their libraries"));
    let folder = layout.peers_folder();
    let new: PathBuf = folder.with_extension("new");
    drop(fs::remove_dir_all(&new));
    let mut found = false;
    for suite in SUITES {
        let source = apt::mirror(&sources, codename, &[suite])?;
        let Ok(state) =
            State::update(&layout.cache.join("apt").join(format!("peers-{suite}")), "arm64", &[source])
        else {
            continue;
        };
        let mut all = true;
        for (package, _) in PROGRAMS {
            all &= !state.versions(package)?.is_empty();
        }
        if all {
            programs::fetch(layout, &state, &PROGRAMS, &LIBRARIES, &new)?;
            found = true;
            break;
        }
    }
    if !found {
        bail!("no suite has all of {names}; looked in {}", SUITES.join(", "));
    }
    fs::write(new.join("stamp"), RECIPE)?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&new, &folder)?;
    step.done();
    Ok(())
}
