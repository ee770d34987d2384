// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The run directory: which VMs there are, by name.
//!
//! | file | what |
//! |---|---|
//! | `NAME.lock` | locked (flock) as long as the VM's gz lives: the kernel lets go of it, however that ends |
//! | `NAME.sock` | its control socket, or a link to the one of `--control` |
//! | `vsock:CID.lock`, `vsock:CID.sock` | the same for a guest's address: where other guests' gz find its gz |
//!
//! # Invariants
//! Whoever makes or removes files of a name holds the lock of the `NAME.lock` that is in the directory. An entry whose lock
//! can be had is stale: whoever finds it removes it. Since the lock's file may have been removed between opening and
//! locking it, a lock counts only if its file is still the one in the directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};

/// Where the run directory is, instead of the usual places.
pub const VARIABLE: &str = "GZ_RUNTIME_DIR";
/// How often, and after which pauses, a lock is tried that somebody may hold for a moment, to look.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// Longest name. A socket's whole path has room for 107 bytes.
const LONGEST: usize = 48;

/// What the names of addresses begin with, and no VM's.
const ADDRESS: &str = "vsock:";

fn of_address(cid: u64) -> String {
    format!("{ADDRESS}{cid}")
}

/// Checks a VM's name: letters, digits, and `.`, `_`, `-` within.
///
/// # Errors
/// It is none.
pub fn check(name: &str) -> Result<String, String> {
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.len() <= LONGEST
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(inner)
    {
        Ok(name.to_owned())
    } else {
        Err(format!(
            "a name is up to {LONGEST} letters, digits, '.', '_' and '-', and begins with one of the first two"
        ))
    }
}

/// The run directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// That of this user: `$GZ_RUNTIME_DIR`, or /run/gz for root, or `$XDG_RUNTIME_DIR/gz`.
    ///
    /// # Errors
    /// There is no place for one.
    pub fn of_user() -> anyhow::Result<Self> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = variable(VARIABLE) {
            return Ok(Self(path));
        }
        // Not root's own XDG_RUNTIME_DIR: sudo keeps that of another user, or drops it.
        if rustix::process::geteuid().is_root() {
            return Ok(Self("/run/gz".into()));
        }
        let base = variable("XDG_RUNTIME_DIR").with_context(|| {
            format!("no place for the names of VMs: neither XDG_RUNTIME_DIR nor {VARIABLE} is set")
        })?;
        Ok(Self(base.join("gz")))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The socket of a VM.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sock"))
    }

    /// Where the gz of the guest with the address `cid` listens for those of others.
    pub fn address(&self, cid: u64) -> PathBuf {
        self.socket(&of_address(cid))
    }

    /// Keeps other users of this function out, until the result is dropped.
    ///
    /// # Errors
    /// There is no such directory.
    pub fn lock_all(&self) -> anyhow::Result<File> {
        let place = || self.0.display().to_string();
        let directory = File::open(&self.0).with_context(place)?;
        flock(&directory, FlockOperation::LockExclusive).with_context(place)?;
        Ok(directory)
    }

    fn lock(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.lock"))
    }

    /// Makes the directory, unless it is there, and this user's alone.
    fn make(&self) -> anyhow::Result<()> {
        let place = || self.0.display().to_string();
        match DirBuilder::new().mode(0o700).create(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).with_context(place);
            }
            _ => {}
        }
        let metadata = fs::symlink_metadata(&self.0).with_context(place)?;
        let owner = rustix::process::geteuid().as_raw();
        anyhow::ensure!(
            metadata.is_dir() && metadata.uid() == owner && metadata.mode() & 0o022 == 0,
            "{}: must be a folder that only user {owner} can write to",
            place()
        );
        Ok(())
    }

    /// Takes a name for this process, after what is left of dead ones was removed.
    ///
    /// # Errors
    /// Somebody has it, or the directory can't be written.
    pub fn claim(&self, name: &str) -> anyhow::Result<Entry> {
        self.take(name)?.with_context(|| format!("--name {name}: a VM of this name runs already"))
    }

    /// Takes a guest's address for this process, as [`Self::claim`] does a name.
    ///
    /// # Errors
    /// Somebody has it, or the directory can't be written.
    pub fn claim_address(&self, cid: u64) -> anyhow::Result<Entry> {
        self.take(&of_address(cid))?.with_context(|| format!("--vsock {cid}: does another guest have it?"))
    }

    /// None: somebody has it.
    fn take(&self, name: &str) -> anyhow::Result<Option<Entry>> {
        self.make()?;
        self.sweep();
        let path = self.lock(name);
        for _ in 0..TRIES {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)
                .with_context(|| path.display().to_string())?;
            if has(&file, &path) {
                let entry = Entry { directory: self.clone(), name: name.into(), _lock: file };
                // Of a dead one, that died before this process had looked.
                entry.remove_socket();
                return Ok(Some(entry));
            }
            thread::sleep(PAUSE);
        }
        Ok(None)
    }

    /// The names of VMs that live, in order. What is left of dead ones is removed.
    ///
    /// # Errors
    /// The directory is there and can't be read.
    pub fn names(&self) -> anyhow::Result<Vec<String>> {
        let files = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            files => files.with_context(|| self.0.display().to_string())?,
        };
        let names = files.flatten().filter_map(|file| {
            let name = file.file_name().into_string().ok()?.strip_suffix(".lock")?.to_owned();
            (check(&name).is_ok() || name.starts_with(ADDRESS)).then_some(name)
        });
        // Addresses are no VMs' names.
        let mut names: Vec<_> = names.filter(|name| self.lives(name) && check(name).is_ok()).collect();
        names.sort();
        Ok(names)
    }

    /// Removes what is left of dead ones.
    pub fn sweep(&self) {
        // What can't be read now can be swept another time.
        let _ = self.names();
    }

    /// Does the VM live? What is left of a dead one is removed.
    fn lives(&self, name: &str) -> bool {
        let path = self.lock(name);
        let Ok(file) = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path) else {
            return false;
        };
        if !has(&file, &path) {
            // Held; or removed, maybe to be made again.
            return path.exists();
        }
        drop(Entry { directory: self.clone(), name: name.into(), _lock: file });
        false
    }
}

/// Locks `file`, if it can be had, and it is the one at `path`.
fn has(file: &File, path: &Path) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
        && match (file.metadata(), fs::symlink_metadata(path)) {
            (Ok(ours), Ok(there)) => (ours.dev(), ours.ino()) == (there.dev(), there.ino()),
            _ => false,
        }
}

/// A name that this process has. Dropped: its files are gone, and others may have it.
#[derive(Debug)]
pub struct Entry {
    directory: Directory,
    name: String,
    _lock: File,
}

impl Entry {
    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its control socket belongs.
    pub fn socket(&self) -> PathBuf {
        self.directory.socket(&self.name)
    }

    /// Makes the socket's name a link to `elsewhere`.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn link_socket(&self, elsewhere: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(std::path::absolute(elsewhere)?, self.socket())
    }

    /// Removes the socket, and the one that it is a link to, if nobody serves that any more.
    fn remove_socket(&self) {
        let path = self.socket();
        if let Ok(target) = fs::read_link(&path)
            && fs::symlink_metadata(&target).is_ok_and(|metadata| metadata.file_type().is_socket())
            && UnixStream::connect(&target)
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            let _ = fs::remove_file(target);
        }
        let _ = fs::remove_file(path);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.remove_socket();
        // Last, while we have the lock.
        let _ = fs::remove_file(self.directory.lock(&self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    fn directory(name: &str) -> Directory {
        let directory =
            Directory(std::env::temp_dir().join(format!("gz-names-{}-{name}", std::process::id())));
        let _ = fs::remove_dir_all(&directory.0);
        directory
    }

    fn files(directory: &Directory) -> usize {
        fs::read_dir(&directory.0).unwrap().count()
    }

    #[test]
    fn names_are_checked() {
        for right in ["a", "vm-1", "Debian_12.5", &"x".repeat(LONGEST)] {
            assert_eq!(check(right).as_deref(), Ok(right));
        }
        for wrong in ["", "-a", ".", "..", "a/b", "a b", "ä", "a\n", &"x".repeat(LONGEST + 1)] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_name_has_one_vm() {
        let directory = directory("one");
        assert_eq!(directory.names().unwrap(), [""; 0]);
        let entry = directory.claim("a").unwrap();
        let other = directory.claim("b").unwrap();
        let error = directory.claim("a").unwrap_err().to_string();
        assert!(error.contains("runs already"), "{error}");
        assert_eq!(directory.names().unwrap(), ["a", "b"]);
        drop(entry);
        assert_eq!(directory.names().unwrap(), ["b"]);
        drop(directory.claim("a").unwrap());
        drop(other);
        assert_eq!(files(&directory), 0);
        fs::remove_dir_all(&directory.0).unwrap();
    }

    #[test]
    fn what_the_dead_leave_is_removed() {
        let directory = directory("dead");
        directory.make().unwrap();
        let elsewhere = directory.0.join("elsewhere");
        drop(UnixListener::bind(&elsewhere).unwrap());
        std::os::unix::fs::symlink(&elsewhere, directory.socket("linked")).unwrap();
        drop(UnixListener::bind(directory.socket("plain")).unwrap());
        for name in ["linked", "plain"] {
            fs::write(directory.lock(name), "").unwrap();
        }
        // A file that the link of another dead one leads to is none of ours.
        let file = directory.0.join("file");
        fs::write(&file, "a file").unwrap();
        std::os::unix::fs::symlink(&file, directory.socket("astray")).unwrap();
        fs::write(directory.lock("astray"), "").unwrap();
        let live = directory.claim("live").unwrap();
        assert_eq!(directory.names().unwrap(), ["live"]);
        assert!(!elsewhere.exists());
        drop(live);
        assert_eq!((files(&directory), fs::read_to_string(&file).unwrap().as_str()), (1, "a file"));
        fs::remove_dir_all(&directory.0).unwrap();
    }

    #[test]
    fn addresses_are_claimed_and_swept_like_names() {
        let directory = directory("addresses");
        let entry = directory.claim_address(7).unwrap();
        assert_eq!(entry.socket(), directory.address(7));
        let error = directory.claim_address(7).unwrap_err().to_string();
        assert!(error.contains("--vsock 7"), "{error}");
        assert!(directory.claim("vsock:7").is_err() && directory.names().unwrap().is_empty());
        drop((entry, directory.lock_all().unwrap()));
        fs::write(directory.lock("vsock:9"), "").unwrap();
        drop(UnixListener::bind(directory.address(9)).unwrap());
        directory.sweep();
        assert_eq!(files(&directory), 0);
        fs::remove_dir_all(&directory.0).unwrap();
    }

    #[test]
    fn claims_and_sweeps_do_not_disturb_each_other() {
        let directory = directory("race");
        directory.make().unwrap();
        let holders = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..300 {
                        if let Ok(entry) = directory.claim("contended") {
                            assert_eq!(holders.fetch_add(1, SeqCst), 0);
                            fs::write(entry.socket(), "").unwrap();
                            thread::yield_now();
                            assert!(entry.socket().exists());
                            holders.fetch_sub(1, SeqCst);
                        }
                    }
                });
            }
            scope.spawn(|| (0..1000).for_each(|_| directory.sweep()));
        });
        assert_eq!(files(&directory), 0);
        fs::remove_dir_all(&directory.0).unwrap();
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let directory = directory("others");
        fs::create_dir(&directory.0).unwrap();
        fs::set_permissions(&directory.0, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(directory.claim("a").is_err());
        fs::remove_dir_all(&directory.0).unwrap();
        fs::write(&directory.0, "").unwrap();
        assert!(directory.claim("a").is_err());
        fs::remove_file(&directory.0).unwrap();
    }
}
