// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Programs from Debian's packages for the emulated machine, with all the libraries that they need.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use gzvm_tests::layout::Layout;

use super::apt::{self, State};
use crate::process;

/// A package and the program in it.
pub type Program = (&'static str, &'static str);

/// Places `programs` in `to`/bin, and all the libraries that they need, directly or not, in `to`/lib. `libraries` are the packages
/// that have these. Releases differ: what one does not have is left out, and whether the rest is enough is seen from the
/// programs themselves.
///
/// # Errors
/// If a package, a program in it, or a library is missing.
pub fn fetch(
    layout: &Layout,
    state: &State,
    programs: &[Program],
    libraries: &[&str],
    to: &Path,
) -> Result<()> {
    let downloads = layout.cache.join("downloads");
    let raw = to.with_extension("raw");
    for (package, _) in programs {
        apt::unpack(&state.download(package, &downloads)?, &raw)?;
    }
    for package in libraries {
        if !state.versions(package)?.is_empty() {
            apt::unpack(&state.download(package, &downloads)?, &raw)?;
        }
    }
    let (bin, lib) = (to.join("bin"), to.join("lib"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&lib)?;
    let mut open = Vec::new();
    for (package, path) in programs {
        let to = bin.join(path.rsplit('/').next().unwrap_or(path));
        fs::copy(raw.join(path), &to).with_context(|| format!("Debian's {package} has no {path}"))?;
        open.push(to);
    }
    while let Some(file) = open.pop() {
        for library in needed(&file)? {
            let to = lib.join(&library);
            if to.exists() {
                continue;
            }
            let from = ["lib", "usr/lib"]
                .iter()
                .flat_map(|lib| [raw.join(lib).join("aarch64-linux-gnu"), raw.join(lib)])
                .map(|folder| folder.join(&library))
                .find(|path| path.is_file());
            let from = from.with_context(|| {
                format!("{} needs {library}, which is in none of the packages {libraries:?}", file.display())
            })?;
            fs::copy(from, &to)?;
            open.push(to);
        }
    }
    fs::remove_dir_all(&raw)?;
    Ok(())
}

/// The libraries that an ELF file names as needed.
fn needed(file: &Path) -> Result<Vec<String>> {
    let text = process::output(Command::new(readelf()).args(["-d", "-W"]).arg(file))?;
    Ok(text
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned()))
        .collect())
}

/// Any `readelf` reads Arm files; the cross tools' own comes with them.
fn readelf() -> PathBuf {
    process::find("aarch64-linux-gnu-readelf").unwrap_or_else(|| "readelf".into())
}
