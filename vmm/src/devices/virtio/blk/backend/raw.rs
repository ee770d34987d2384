// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A raw image: sectors as they are. Reads and writes go straight between page cache and guest memory.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::fs::FallocateFlags;
use vm_memory::VolatileSlice;

/// Zeros where the file system can't make them.
const ZEROS: usize = 1 << 16;

/// The file.
#[derive(Debug)]
pub struct Raw(File);

impl Raw {
    /// It is open, and locked.
    pub fn new(file: File) -> Self {
        Self(file)
    }

    /// Makes what has been written last.
    pub fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    /// Fills `buffers` from `offset` on.
    pub fn read(&self, offset: u64, buffers: &[VolatileSlice]) -> io::Result<()> {
        // SAFETY: `transfer` hands over valid iovecs: they describe guest memory, which no Rust
        // reference covers, and the file is open.
        transfer(offset, buffers, |iovecs, count, offset| unsafe {
            libc::preadv(self.0.as_raw_fd(), iovecs, count, offset)
        })
    }

    /// Writes `buffers` from `offset` on.
    pub fn write(&self, offset: u64, buffers: &[VolatileSlice]) -> io::Result<()> {
        // SAFETY: as in `read`.
        transfer(offset, buffers, |iovecs, count, offset| unsafe {
            libc::pwritev(self.0.as_raw_fd(), iovecs, count, offset)
        })
    }

    /// Punches a hole.
    pub fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.allocate(FallocateFlags::PUNCH_HOLE, offset, len).map(drop)
    }

    /// A hole, zeros of the file system's, or written ones.
    pub fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if unmap && self.allocate(FallocateFlags::PUNCH_HOLE, offset, len)?
            || self.allocate(FallocateFlags::ZERO_RANGE, offset, len)?
        {
            return Ok(());
        }
        let mut zeros = [0; ZEROS];
        let zeros = VolatileSlice::from(&mut zeros[..]);
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done).unwrap_or(ZEROS).min(ZEROS);
            let part = zeros.subslice(0, part).map_err(io::Error::other)?;
            self.write(offset.saturating_add(done), &[part])?;
            done += part.len() as u64;
        }
        Ok(())
    }

    /// False: the file system, or the device, can't.
    fn allocate(&self, how: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        if len == 0 {
            return Ok(true);
        }
        match rustix::fs::fallocate(&self.0, how | FallocateFlags::KEEP_SIZE, offset, len) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NODEV | rustix::io::Errno::NOSYS) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Most buffers of one preadv(2) or pwritev(2).
const IOV_MAX: usize = 1024;

/// Repeats `call` until all of `buffers` is done.
fn transfer(
    offset: u64,
    buffers: &[VolatileSlice],
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
    use std::cell::RefCell;

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
