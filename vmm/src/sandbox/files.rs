// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Files by name, by Landlock. What is open already stays usable.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

/// The newest Landlock whose rights are known here; older kernels confine what they know.
const NEWEST: ABI = ABI::V6;

/// What may still be opened or removed.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Files {
    read: Vec<PathBuf>,
    write: Vec<PathBuf>,
    remove: Vec<PathBuf>,
}

impl Files {
    /// A file that may be read.
    pub fn read(&mut self, path: impl Into<PathBuf>) {
        self.read.push(path.into());
    }

    /// A file or device that may be read and written.
    pub fn write(&mut self, path: impl Into<PathBuf>) {
        self.write.push(path.into());
    }

    /// A file that may be removed. Landlock knows folders only, so all files of its folder may.
    pub fn remove(&mut self, path: &Path) {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        self.remove.push(folder.unwrap_or(Path::new(".")).to_owned());
    }

    /// Leaves this thread, and those that it starts, nothing else. False where the kernel has no Landlock.
    ///
    /// # Errors
    /// A file is not there any more, or the kernel refused.
    pub(super) fn confine(&self) -> anyhow::Result<bool> {
        let of_files = AccessFs::from_file(NEWEST);
        let read = of_files & AccessFs::ReadFile | AccessFs::IoctlDev;
        let write = read | AccessFs::WriteFile | AccessFs::Truncate;
        let rights = [(&self.read, read), (&self.write, write), (&self.remove, AccessFs::RemoveFile.into())];
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            // Not signals: back ends that were started before are ended by one.
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        for (paths, rights) in rights {
            for path in paths {
                ruleset = ruleset.add_rule(rule(path, rights)?)?;
            }
        }
        Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
    }
}

fn rule(path: &Path, rights: BitFlags<AccessFs>) -> anyhow::Result<PathBeneath<PathFd>> {
    Ok(PathBeneath::new(PathFd::new(path)?, rights))
}
