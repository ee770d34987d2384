// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A raw disk image or block device.
//!
//! The file is locked while we have it (shared if read-only), so that two VMs can't destroy each
//! other's file systems. Reads and writes go straight between page cache and guest memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use thiserror::Error;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// Bytes in virtio-blk's unit.
pub const SECTOR_SIZE: u64 = 512;

/// Why a disk can't be used.
#[derive(Debug, Error)]
pub enum DiskError {
    /// Missing, or no permission.
    #[error("--disk {}: {error}{}", .path.display(), .hint)]
    Open {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// A directory or the like.
    #[error("--disk {}: neither a file nor a block device", .0.display())]
    Kind(PathBuf),
    /// Not whole sectors.
    #[error(
        "--disk {}: {size} bytes, which is not a multiple of 512: cut off, or no raw image? Copy it again, or pad it with `truncate -s %512 FILE`",
        .path.display()
    )]
    Size {
        /// Which.
        path: PathBuf,
        /// Bytes.
        size: u64,
    },
    /// Nothing in it.
    #[error("--disk {}: the file is empty; give it a size with `truncate -s 1G FILE`", .0.display())]
    Empty(PathBuf),
    /// Known, but not raw.
    #[error("--disk {}: a {format} image, and only raw ones are supported; convert it with `qemu-img convert -O raw`", .path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// Somebody has it.
    #[error(
        "--disk {}: in use by another VM, or given twice; give each its own copy, or share it read-only with `,ro`",
        .0.display()
    )]
    Locked(PathBuf),
}

/// The disk.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
    read_only: bool,
    id: [u8; 20],
}

impl Disk {
    /// Opens, checks and locks `path`.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let failed = |error: io::Error| {
            let hint = match error.kind() {
                io::ErrorKind::NotFound => "; make one with `truncate -s 1G FILE`",
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                    "; add `,ro` to use it read-only"
                }
                _ => "",
            };
            DiskError::Open { path: path.into(), error, hint }
        };
        let mut file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(|error| {
            if error.kind() == io::ErrorKind::IsADirectory {
                return DiskError::Kind(path.into());
            }
            failed(error)
        })?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind(path.into()));
        }
        // The end of a block device is found so, too; its metadata say 0.
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        if size == 0 {
            return Err(DiskError::Empty(path.into()));
        }
        if let Some(format) = other_format(&file) {
            return Err(DiskError::Format { path: path.into(), format });
        }
        if size % SECTOR_SIZE != 0 {
            return Err(DiskError::Size { path: path.into(), size });
        }
        let lock = if read_only {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match rustix::fs::flock(&file, lock) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(DiskError::Locked(path.into())),
            Err(error) => tracing::debug!("{}: no lock: {error}", path.display()),
        }
        let mut id = [0; 20];
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        id.iter_mut().zip(name).for_each(|(to, from)| *to = *from);
        Ok(Self { file, size, read_only, id })
    }

    /// Bytes; whole sectors.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// What the guest shows as serial number: the file's name, 20 bytes of it.
    pub fn id(&self) -> &[u8; 20] {
        &self.id
    }

    /// Makes what has been written last.
    ///
    /// # Errors
    /// Those of fdatasync(2).
    pub fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Fills `buffers` from `offset` on.
    ///
    /// # Errors
    /// Those of preadv(2); UnexpectedEof when the file has become shorter.
    pub fn read<B: BitmapSlice>(&self, offset: u64, buffers: &[VolatileSlice<B>]) -> io::Result<()> {
        // SAFETY: `transfer` hands over valid iovecs: they describe guest memory, which no Rust
        // reference covers, and the file is open.
        transfer(offset, buffers, |iovecs, count, offset| unsafe {
            libc::preadv(self.file.as_raw_fd(), iovecs, count, offset)
        })
    }

    /// Writes `buffers` from `offset` on.
    ///
    /// # Errors
    /// Those of pwritev(2).
    pub fn write<B: BitmapSlice>(&self, offset: u64, buffers: &[VolatileSlice<B>]) -> io::Result<()> {
        // SAFETY: as in `read`.
        transfer(offset, buffers, |iovecs, count, offset| unsafe {
            libc::pwritev(self.file.as_raw_fd(), iovecs, count, offset)
        })
    }
}

/// Formats that people take for raw images. Nothing is opened by them: a guest that writes such a
/// header into its own raw disk only makes that disk unusable.
fn other_format(file: &File) -> Option<&'static str> {
    let mut start = [0; 4];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut start, 0).ok()?;
    match &start {
        b"QFI\xFB" => Some("qcow2"),
        b"KDMV" => Some("VMDK"),
        b"vhdx" => Some("VHDX"),
        _ => None,
    }
}

/// Most buffers of one preadv(2) or pwritev(2).
const IOV_MAX: usize = 1024;

/// Repeats `call` until all of `buffers` is done.
fn transfer<B: BitmapSlice>(
    offset: u64,
    buffers: &[VolatileSlice<B>],
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> io::Result<()> {
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let mut iovecs: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let mut offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let mut rest = iovecs.as_mut_slice();
    loop {
        // Empty buffers would make a result of 0 ambiguous.
        while let [first, ..] = rest
            && first.iov_len == 0
        {
            rest = rest.split_off_mut(1..).unwrap_or_default();
        }
        if rest.is_empty() {
            return Ok(());
        }
        let count = rest.len().min(IOV_MAX) as libc::c_int;
        let mut done = match call(rest.as_ptr(), count, offset) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            done if done > 0 => done.cast_unsigned(),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        offset = offset.saturating_add(done.cast_signed() as libc::off_t);
        for iovec in rest.iter_mut() {
            let step = done.min(iovec.iov_len);
            // Stays inside the buffer, or one past its end.
            iovec.iov_base = iovec.iov_base.cast::<u8>().wrapping_add(step).cast();
            iovec.iov_len -= step;
            done -= step;
            if done == 0 {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::tests::TempFile;
    use std::cell::RefCell;

    #[test]
    fn bad_disks_are_named() {
        let open = |file: &TempFile| Disk::open(&file.0, false).unwrap_err();
        assert!(matches!(open(&TempFile::new("d-empty", &[])), DiskError::Empty(_)));
        assert!(matches!(open(&TempFile::new("d-odd", &[0; 513])), DiskError::Size { size: 513, .. }));
        let qcow = TempFile::new("d-qcow", b"QFI\xFB\0\0\0\x03rest");
        assert!(matches!(open(&qcow), DiskError::Format { format: "qcow2", .. }));
        let error = Disk::open(Path::new("/nonexistent/disk"), false).unwrap_err().to_string();
        assert!(error.contains("--disk /nonexistent/disk") && error.contains("truncate"), "{error}");
        assert!(matches!(Disk::open(&std::env::temp_dir(), false), Err(DiskError::Kind(_))));
        assert!(matches!(Disk::open(Path::new("/dev/null"), false), Err(DiskError::Kind(_))));
    }

    #[test]
    fn writers_lock_each_other_out() {
        let file = TempFile::new("d-lock", &[0; 512]);
        let reader = Disk::open(&file.0, true).unwrap();
        let other = Disk::open(&file.0, true).unwrap();
        assert!(matches!(Disk::open(&file.0, false), Err(DiskError::Locked(_))));
        drop((reader, other));
        let writer = Disk::open(&file.0, false).unwrap();
        assert!(matches!(Disk::open(&file.0, true), Err(DiskError::Locked(_))));
        drop(writer);
    }

    #[test]
    fn reads_and_writes_scatter_and_gather() {
        let file = TempFile::new("d-io", &[0; 1024]);
        let disk = Disk::open(&file.0, false).unwrap();
        let (mut a, mut b) = (*b"0123", [b'x'; 508]);
        let buffers = [VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])];
        disk.write(512, &buffers).unwrap();
        disk.flush().unwrap();
        let content = std::fs::read(&file.0).unwrap();
        assert_eq!(&content[508..518], b"\0\0\0\x000123xx");
        let mut c = [0_u8; 512];
        disk.read(512, &[VolatileSlice::from(&mut c[..])]).unwrap();
        assert_eq!(&c[..6], b"0123xx");
        let error = disk.read(1024, &[VolatileSlice::from(&mut c[..])]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn short_transfers_go_on_where_they_stopped() {
        let mut data = [0_u8; 10];
        let (left, right) = data.split_at_mut(4);
        let buffers = [VolatileSlice::from(left), VolatileSlice::from(right)];
        let calls = RefCell::new(Vec::new());
        transfer(100, &buffers, |iovec, count, offset| {
            // SAFETY: `transfer` passes `count` iovecs.
            let iovecs = unsafe { std::slice::from_raw_parts(iovec, count as usize) };
            let total: usize = iovecs.iter().map(|iovec| iovec.iov_len).sum();
            calls.borrow_mut().push((offset, total));
            total.min(3) as libc::ssize_t
        })
        .unwrap();
        assert_eq!(*calls.borrow(), [(100, 10), (103, 7), (106, 4), (109, 1)]);
    }
}
