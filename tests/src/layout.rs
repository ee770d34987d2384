// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where everything lies: the repository, the build results, the download cache.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result, bail};

/// The folders that the tools share.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's target folder (`CARGO_TARGET_DIR`, else `target/` of the repository).
    pub target: PathBuf,
    /// Finished parts: images, module, programs, initial RAM disks, logs.
    pub out: PathBuf,
    /// What set-up downloaded and prepared (`GENIEZONE_CACHE`, else the user's cache folder).
    pub cache: PathBuf,
}

impl Layout {
    /// Finds the folders from the environment.
    ///
    /// # Errors
    /// If neither `GENIEZONE_CACHE`, `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn find() -> Result<Self> {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().context("the crate lies in a folder of the repository")?.to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => root.join(dir),
            None => root.join("target"),
        };
        let cache = if let Some(dir) = env::var_os("GENIEZONE_CACHE") {
            env::current_dir()?.join(dir)
        } else if let Some(dir) = env::var_os("XDG_CACHE_HOME") {
            PathBuf::from(dir).join("geniezone")
        } else if let Some(home) = env::var_os("HOME") {
            PathBuf::from(home).join(".cache/geniezone")
        } else {
            bail!("no place for downloads: set HOME, XDG_CACHE_HOME or GENIEZONE_CACHE");
        };
        Ok(Self { out: target.join("gz"), root, target, cache })
    }

    /// A finished part in `target/gz`.
    #[must_use]
    pub fn part(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// A finished part, if it was built.
    #[must_use]
    pub fn built(&self, name: &str) -> Option<PathBuf> {
        Some(self.part(name)).filter(|path| path.is_file())
    }

    /// The stock kernel that host and guest use.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.cache.join("host/Image")
    }

    /// What set-up fetched for tests to run as guests: kernels (`NAME.Image`), firmware, programs.
    #[must_use]
    pub fn guests_folder(&self) -> PathBuf {
        self.cache.join("guests")
    }

    /// The newest Linux that set-up found, which is a guest and a host.
    #[must_use]
    pub fn newest_linux(&self) -> PathBuf {
        self.guests_folder().join("linux-7.x.Image")
    }

    /// What set-up fetched for tests to run at the other end of guests' devices.
    #[must_use]
    pub fn peers_folder(&self) -> PathBuf {
        self.cache.join("peers")
    }

    /// What set-up fetched or built for tests to be guests' devices by vhost-user.
    #[must_use]
    pub fn back_ends_folder(&self) -> PathBuf {
        self.cache.join("back-ends")
    }

    /// A whole Debian as a guest, for tests: a disk with the guest's image in it (`host.img`), and the key for its root (`key`).
    #[must_use]
    pub fn debian_folder(&self) -> PathBuf {
        self.cache.join("debian")
    }

    /// The kernel's release string (`uname -r`).
    ///
    /// # Errors
    /// If set-up has not run.
    pub fn release(&self) -> Result<String> {
        let path = self.cache.join("host/release");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{} is missing: run `cargo xtask setup`", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// The folder of console logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.out.join("logs")
    }

    /// The images of bare-metal guests that were built: name (without `guest-`) and path.
    #[must_use]
    pub fn guests(&self) -> Vec<(String, PathBuf)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.out).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_prefix("guest-").and_then(|rest| rest.strip_suffix(".Image")) {
                found.push((name.to_owned(), path));
            }
        }
        found.sort();
        found
    }
}
