// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A qcow2 image, by the crate imago. It opens no other file, whatever the image names: one with a backing or data file is
//! refused. What is written is in the image for certain after a flush, or when the disk is closed.

use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};
use vm_memory::{Bytes, VolatileSlice};

/// Most bytes on their way at once: imago works on memory that nobody else writes.
const CHUNK: usize = 1 << 18;

/// The image.
#[derive(Debug)]
pub struct Qcow2(Mutex<FormatAccess<imago::file::File>>);

impl Qcow2 {
    /// The image in `file`, which is open, and locked.
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        let options = StorageOpenOptions::new().write(!read_only);
        let storage = imago::file::File::from_open_file(file, options)?;
        let builder = imago::qcow2::Qcow2::<imago::file::File>::builder(storage).write(!read_only);
        let image = builder.open(DenyImplicitOpenGate::default())?;
        Ok(Self(Mutex::new(FormatAccess::new(image))))
    }

    fn image(&self) -> MutexGuard<'_, FormatAccess<imago::file::File>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the disk in it.
    pub fn size(&self) -> u64 {
        self.image().size()
    }

    /// Makes what has been written last.
    pub fn flush(&self) -> io::Result<()> {
        let image = self.image();
        image.flush()?;
        image.sync()
    }

    /// Fills `buffers` from `offset` on.
    pub fn read(&self, offset: u64, buffers: &[VolatileSlice]) -> io::Result<()> {
        let image = self.image();
        each_chunk(offset, buffers, |offset, chunk, slice| {
            image.read(&mut *chunk, offset)?;
            slice.write_slice(chunk, 0).map_err(io::Error::other)
        })
    }

    /// Writes `buffers` from `offset` on.
    pub fn write(&self, offset: u64, buffers: &[VolatileSlice]) -> io::Result<()> {
        let image = self.image();
        each_chunk(offset, buffers, |offset, chunk, slice| {
            slice.read_slice(chunk, 0).map_err(io::Error::other)?;
            image.write(&*chunk, offset)
        })
    }

    /// Frees what whole clusters there are.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.image().discard_to_any(offset, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(()),
            result => result,
        }
    }

    /// Whole clusters become such that read as zeros; `unmap` frees them.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mut image = self.image();
        if unmap { image.discard_to_zero(offset, len) } else { image.write_zeroes(offset, len) }
    }
}

/// Calls `work` with each part of `buffers`: its offset, as much memory of ours, and where it is in the guest's.
fn each_chunk(
    mut offset: u64,
    buffers: &[VolatileSlice],
    mut work: impl FnMut(u64, &mut [u8], &VolatileSlice) -> io::Result<()>,
) -> io::Result<()> {
    let most = buffers.iter().map(VolatileSlice::len).max().unwrap_or(0).min(CHUNK);
    let mut memory = vec![0; most];
    for buffer in buffers {
        let mut done = 0;
        while done < buffer.len() {
            let len = most.min(buffer.len() - done);
            let Some(chunk) = memory.get_mut(..len) else { break };
            let slice = buffer.subslice(done, len).map_err(io::Error::other)?;
            work(offset, chunk, &slice)?;
            done += len;
            offset = offset.saturating_add(len as u64);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::tests::TempFile;
    use imago::{FormatCreateBuilder, Storage, StorageCreateOptions};

    fn create(name: &str, size: u64, backing: Option<&str>) -> TempFile {
        let file = TempFile::new(name, &[]);
        let options = StorageCreateOptions::new().filename(&file.0).overwrite(true);
        let storage = imago::file::File::create_open(options).unwrap();
        let mut builder = imago::qcow2::Qcow2::<imago::file::File>::create_builder(storage).size(size);
        if let Some(backing) = backing {
            builder = builder.backing(backing.into(), "raw".into());
        }
        builder.create().unwrap();
        file
    }

    fn open(file: &TempFile, read_only: bool) -> io::Result<Qcow2> {
        let options = File::options().read(true).write(!read_only).open(&file.0)?;
        Qcow2::new(options, read_only)
    }

    fn read(image: &Qcow2, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xEE; len];
        image.read(offset, &[VolatileSlice::from(&mut data[..])]).unwrap();
        data
    }

    #[test]
    fn what_is_written_stays() {
        let file = create("q-io", 64 << 20, None);
        let image = open(&file, false).unwrap();
        assert_eq!(image.size(), 64 << 20);
        let (mut a, mut b) = (vec![1; 1000], vec![2; CHUNK + 24]);
        let at = (32 << 20) - 500;
        image.write(at, &[VolatileSlice::from(&mut a[..]), VolatileSlice::from(&mut b[..])]).unwrap();
        drop(image);
        let image = open(&file, true).unwrap();
        let got = read(&image, at - 1, CHUNK + 1024 + 2);
        assert_eq!((got[0], got[1], got[1000], got[1001]), (0, 1, 1, 2));
        assert_eq!((got[CHUNK + 1024], got[CHUNK + 1025]), (2, 0));
        assert!(image.write(0, &[VolatileSlice::from(&mut a[..])]).is_err(), "read-only");
        assert!(
            image
                .read(64 << 20, &[VolatileSlice::from(&mut a[..])])
                .is_ok_and(|()| a.iter().all(|b| *b == 0))
        );
    }

    #[test]
    fn zeros_and_discards() {
        let file = create("q-zero", 4 << 20, None);
        let image = open(&file, false).unwrap();
        let mut data = vec![7; 1 << 20];
        image.write(0, &[VolatileSlice::from(&mut data[..])]).unwrap();
        image.write_zeroes(512, 100_000, false).unwrap();
        image.write_zeroes(200_000, 400_000, true).unwrap();
        image.discard(700_000, 200_000).unwrap();
        image.flush().unwrap();
        let got = read(&image, 0, 1 << 20);
        let zero = |from: usize, to: usize| got[from..to].iter().all(|byte| *byte == 0);
        assert!(zero(512, 100_512) && zero(200_000, 600_000));
        for at in [511, 100_512, 199_999, 600_000, 699_999, 900_000] {
            assert_eq!(got[at], 7, "{at}");
        }
    }

    #[test]
    fn other_files_are_not_opened() {
        let secret = TempFile::new("q-secret", &[9; 4096]);
        let file = create("q-backed", 4096, Some(secret.0.to_str().unwrap()));
        let error = open(&file, false).unwrap_err();
        assert!(error.to_string().contains("denied"), "{error}");
        assert!(open(&TempFile::new("q-raw", &[0; 4096]), false).is_err());
    }
}
