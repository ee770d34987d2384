// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A disk: an image file or block device, in one of the formats below.
//!
//! The file is locked while we have it (shared if read-only), so that two VMs can't destroy each
//! other's file systems. The format is what the user says, never what the file looks like: a guest could write the header of
//! another into its disk.

mod qcow2;
mod raw;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use thiserror::Error;
use vm_memory::VolatileSlice;

use super::options::{DiskOption, Format};
use qcow2::Qcow2;
use raw::Raw;

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
    /// Known, but not what it is said to be.
    #[error("--disk {}: a {format} image; qcow2 ones need `,format=qcow2`, others `qemu-img convert -O qcow2`", .path.display())]
    Format {
        /// Which.
        path: PathBuf,
        /// What it is.
        format: &'static str,
    },
    /// Said to be qcow2.
    #[error("--disk {}: no qcow2 image that can be used: {error}", .path.display())]
    Qcow2 {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
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
    image: Image,
    size: u64,
    read_only: bool,
    id: [u8; 20],
    queues: u16,
}

#[derive(Debug)]
enum Image {
    Raw(Raw),
    Qcow2(Qcow2),
}

impl Disk {
    /// Opens, checks and locks what `option` names.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn open(option: &DiskOption) -> Result<Self, DiskError> {
        let DiskOption { path, read_only, format, serial, queues } = option;
        let (file, size) = open(path, *read_only)?;
        let (image, size) = match format {
            Format::Raw => {
                if let Some(format) = other_format(&file) {
                    return Err(DiskError::Format { path: path.clone(), format });
                }
                if size % SECTOR_SIZE != 0 {
                    return Err(DiskError::Size { path: path.clone(), size });
                }
                (Image::Raw(Raw::new(file)), size)
            }
            Format::Qcow2 => {
                let image = Qcow2::new(file, *read_only)
                    .map_err(|error| DiskError::Qcow2 { path: path.clone(), error })?;
                let size = image.size() / SECTOR_SIZE * SECTOR_SIZE;
                (Image::Qcow2(image), size)
            }
        };
        let mut id = [0; 20];
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        let serial = serial.as_ref().map_or(name, |serial| serial.as_bytes());
        id.iter_mut().zip(serial).for_each(|(to, from)| *to = *from);
        Ok(Self { image, size, read_only: *read_only, id, queues: *queues })
    }

    /// Bytes; whole sectors.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether writes are refused.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// How many queues a driver may use.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// What the guest shows as serial number: what was asked for, or the file's name, 20 bytes of it.
    pub fn id(&self) -> &[u8; 20] {
        &self.id
    }

    /// Makes what has been written last.
    ///
    /// # Errors
    /// Those of fdatasync(2).
    pub fn flush(&self) -> io::Result<()> {
        match &self.image {
            Image::Raw(image) => image.flush(),
            Image::Qcow2(image) => image.flush(),
        }
    }

    /// Fills `buffers` from `offset` on.
    ///
    /// # Errors
    /// Those of preadv(2); UnexpectedEof when the file has become shorter.
    pub fn read(&self, offset: u64, buffers: &[VolatileSlice]) -> io::Result<()> {
        match &self.image {
            Image::Raw(image) => image.read(offset, buffers),
            Image::Qcow2(image) => image.read(offset, buffers),
        }
    }

    /// Writes `buffers` from `offset` on.
    ///
    /// # Errors
    /// Those of pwritev(2).
    pub fn write(&self, offset: u64, buffers: &[VolatileSlice]) -> io::Result<()> {
        match &self.image {
            Image::Raw(image) => image.write(offset, buffers),
            Image::Qcow2(image) => image.write(offset, buffers),
        }
    }

    /// Gives `len` bytes from `offset` on back to the host, if that can be done. What is read there afterwards is anything.
    ///
    /// # Errors
    /// Those of fallocate(2), but that it can't be done.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match &self.image {
            Image::Raw(image) => image.discard(offset, len),
            Image::Qcow2(image) => image.discard(offset, len),
        }
    }

    /// Makes `len` bytes from `offset` on read as zeros; with `unmap` gives them back to the host where it can.
    ///
    /// # Errors
    /// Those of fallocate(2) and pwritev(2).
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        match &self.image {
            Image::Raw(image) => image.write_zeroes(offset, len, unmap),
            Image::Qcow2(image) => image.write_zeroes(offset, len, unmap),
        }
    }
}

/// The file, locked, and its size.
fn open(path: &Path, read_only: bool) -> Result<(File, u64), DiskError> {
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
    Ok((file, size))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::tests::TempFile;

    fn raw(path: &Path, read_only: bool) -> Result<Disk, DiskError> {
        Disk::open(&DiskOption { read_only, ..path.into() })
    }

    #[test]
    fn bad_disks_are_named() {
        let open = |file: &TempFile| raw(&file.0, false).unwrap_err();
        assert!(matches!(open(&TempFile::new("d-empty", &[])), DiskError::Empty(_)));
        assert!(matches!(open(&TempFile::new("d-odd", &[0; 513])), DiskError::Size { size: 513, .. }));
        let qcow = TempFile::new("d-qcow", b"QFI\xFB\0\0\0\x03rest");
        assert!(matches!(open(&qcow), DiskError::Format { format: "qcow2", .. }));
        let error = raw(Path::new("/nonexistent/disk"), false).unwrap_err().to_string();
        assert!(error.contains("--disk /nonexistent/disk") && error.contains("truncate"), "{error}");
        assert!(matches!(raw(&std::env::temp_dir(), false), Err(DiskError::Kind(_))));
        assert!(matches!(raw(Path::new("/dev/null"), false), Err(DiskError::Kind(_))));
    }

    #[test]
    fn writers_lock_each_other_out() {
        let file = TempFile::new("d-lock", &[0; 512]);
        let reader = raw(&file.0, true).unwrap();
        let other = raw(&file.0, true).unwrap();
        assert!(matches!(raw(&file.0, false), Err(DiskError::Locked(_))));
        drop((reader, other));
        let writer = raw(&file.0, false).unwrap();
        assert!(matches!(raw(&file.0, true), Err(DiskError::Locked(_))));
        drop(writer);
    }

    #[test]
    fn reads_and_writes_scatter_and_gather() {
        let file = TempFile::new("d-io", &[0; 1024]);
        let disk = raw(&file.0, false).unwrap();
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
}
