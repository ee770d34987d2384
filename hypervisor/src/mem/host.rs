// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Copies to and from the host's memory.
//!
//! The host can change its memory at any time, so everything is copied once and judged on the copy
//! (see `docs/threat-model.md`). Pages must be the host's own or shared by it; the check and the
//! copy happen under the ownership lock.

use core::sync::atomic::{Ordering, fence};

use gzvm_core::addr::{PAGE_SIZE, Pa};
use gzvm_core::memory::PaRange;
use gzvm_core::memory::ownership::{Ownership, State};
use zerocopy::{FromBytes, IntoBytes};

use gzvm_core::broken::{Mistake, broken};

/// The range is not all memory of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHosts;

/// Whether the host may read and write all of `pa .. pa + bytes`.
fn check(ownership: &Ownership<'_>, pa: Pa, bytes: usize) -> Result<(), NotHosts> {
    let start = pa.align_down(PAGE_SIZE);
    let end = pa.checked_add(bytes as u64).and_then(|e| e.align_up(PAGE_SIZE)).ok_or(NotHosts)?;
    let range = PaRange::new(start, end.0.wrapping_sub(start.0)).map_err(|_| NotHosts)?;
    let mut ok = true;
    ownership
        .for_each(range, |_, state| {
            ok &= matches!(state, State::Host | State::HostShared(_) | State::VmShared(_));
        })
        .map_err(|_| NotHosts)?;
    if ok || broken(Mistake::AnyBuffer) { Ok(()) } else { Err(NotHosts) }
}

/// Copies from the host.
pub fn read(ownership: &Ownership<'_>, pa: Pa, into: &mut [u8]) -> Result<(), NotHosts> {
    check(ownership, pa, into.len())?;
    // SAFETY: RAM that is the host's, mapped at EL2; `into` is EL2's and can't overlap it. The host
    // may write it meanwhile: the copy then holds a mix, which is judged like any other content.
    unsafe { core::ptr::copy_nonoverlapping(pa.0 as *const u8, into.as_mut_ptr(), into.len()) };
    // What is read later is read from the copy.
    fence(Ordering::SeqCst);
    Ok(())
}

/// Copies to the host.
pub fn write(ownership: &Ownership<'_>, pa: Pa, from: &[u8]) -> Result<(), NotHosts> {
    check(ownership, pa, from.len())?;
    // SAFETY: as in `read`.
    unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), pa.0 as *mut u8, from.len()) };
    Ok(())
}

/// Copies an aligned word of a plain VM's memory, which is the host's too; of one whose caches are off,
/// past the cache.
pub fn read_word(
    ownership: &Ownership<'_>,
    pa: Pa,
    uncached: bool,
    into: &mut [u8; 4],
) -> Result<(), NotHosts> {
    check(ownership, pa, into.len())?;
    if uncached {
        crate::arch::barrier::clean_invalidate(pa.0 as usize, into.len());
    }
    read(ownership, pa, into)
}

/// Pages of the host that EL2 holds on to: a vCPU's shared area. They are marked as shared with a
/// VM, so that the host can't give them away while EL2 writes to them.
#[derive(Debug)]
pub struct SharedPages {
    range: PaRange,
}

impl SharedPages {
    /// Takes hold of pages that [`Ownership`] has just been told are shared.
    pub const fn new(range: PaRange) -> Self {
        Self { range }
    }

    /// The pages.
    pub const fn range(&self) -> PaRange {
        self.range
    }

    fn address(&self, offset: u64, bytes: usize) -> Option<*mut u8> {
        let end = offset.checked_add(bytes as u64)?;
        (end <= self.range.size()).then_some(self.range.start().0.wrapping_add(offset) as *mut u8)
    }

    /// Where a `T` is at `offset`, if that is a place for one.
    #[inline(always)]
    fn place<T>(&self, offset: u64) -> Option<*mut T> {
        self.address(offset, size_of::<T>())
            .filter(|_| offset.is_multiple_of(align_of::<T>() as u64))
            .map(<*mut u8>::cast)
    }

    /// The value at `offset`, a multiple of its alignment; outside of the pages, zero.
    #[inline(always)]
    pub fn load<T: FromBytes>(&self, offset: u64) -> T {
        match self.place::<T>(offset) {
            // SAFETY: in the pages, which start at a page boundary, aligned, and valid whatever the bytes; else as in
            // `read`.
            Some(from) => unsafe { from.read_volatile() },
            None => T::new_zeroed(),
        }
    }

    /// Puts a value at `offset`, a multiple of its alignment.
    #[inline(always)]
    pub fn store<T: IntoBytes>(&self, offset: u64, value: T) {
        if let Some(to) = self.place::<T>(offset) {
            // SAFETY: as in `load`.
            unsafe { to.write_volatile(value) };
        }
    }

    /// Zeroes bytes of the pages; outside of them there is nothing.
    pub fn clear(&self, offset: u64, bytes: usize) {
        if let Some(to) = self.address(offset, bytes) {
            // SAFETY: as in `read` below.
            unsafe { to.write_bytes(0, bytes) };
        }
    }

    /// Copies from the pages; outside of them there is nothing.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        if let Some(from) = self.address(offset, into.len()) {
            // SAFETY: the pages are the host's and stay so while they are marked as shared; the host
            // may write them meanwhile, as in `read` above.
            unsafe { core::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
            fence(Ordering::SeqCst);
        }
    }

    /// Copies to the pages.
    pub fn write(&self, offset: u64, from: &[u8]) {
        if let Some(to) = self.address(offset, from.len()) {
            // SAFETY: as in `read`.
            unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        }
    }
}
