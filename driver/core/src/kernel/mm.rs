// SPDX-License-Identifier: GPL-2.0-only
//! The creator's address space, and pinning its pages.

use core::ffi::c_void;
use core::ptr::{self, NonNull};

use super::error::{Error, Result, code::EFAULT, code::EINVAL};
use super::file::MemoryFile;
use crate::broken::{Mistake, broken};
use crate::sys;

/// A reference to an address space; keeps the structure, not the mappings.
pub struct Mm(NonNull<c_void>);

// SAFETY: reference-counted by the kernel.
unsafe impl Send for Mm {}
// SAFETY: only compared, and dropped.
unsafe impl Sync for Mm {}

impl Mm {
    /// The caller's.
    pub fn current() -> Result<Self> {
        // SAFETY: no preconditions.
        NonNull::new(unsafe { sys::gzk_mm_grab() }).map(Self).ok_or(EINVAL)
    }

    /// Is it the caller's?
    pub fn is_current(&self) -> bool {
        // SAFETY: only compared.
        broken(Mistake::AnyProcess) || unsafe { sys::gzk_mm_is_current(self.0.as_ptr()) != 0 }
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        // SAFETY: drops the reference that `current` took.
        unsafe { sys::gzk_mm_drop(self.0.as_ptr()) }
    }
}

/// Is the caller's `[start, start + size)` wholly mapped? EFAULT: nothing at `start`; EINVAL: a hole behind, or guest memory that
/// is not all of one file, in its order. Such a file comes back with its page at `start`.
pub fn check_user_range(start: u64, size: u64) -> Result<Option<(MemoryFile, u64)>> {
    let (mut file, mut page) = (ptr::null_mut(), 0);
    // SAFETY: both are valid for a write.
    Error::check(unsafe { sys::gzk_user_range_check(start, size, &mut file, &mut page) })?;
    // SAFETY: the shim took a reference for us.
    Ok(NonNull::new(file).map(|file| (unsafe { MemoryFile::from_raw(file) }, page)))
}

/// Allocates 2^`order` zeroed page frames in one piece: the first PFN.
pub fn alloc_frames(order: u32) -> Result<u64> {
    let mut pfn = 0;
    // SAFETY: pfn is valid for a write.
    Error::check(unsafe { sys::gzk_frames_alloc(order, &mut pfn) }).map(|_| pfn)
}

/// From here on the page frames of a piece from [`alloc_frames`] are freed one by one, with order 0.
pub fn split_frames(pfn: u64, order: u32) {
    // SAFETY: by the callers' books, as for pins.
    unsafe { sys::gzk_frames_split(pfn, order) }
}

/// Frees what the caller had from [`alloc_frames`], and nobody uses any more.
pub fn free_frames(pfn: u64, order: u32) {
    // SAFETY: by the callers' books, as for pins.
    unsafe { sys::gzk_frames_free(pfn, order) }
}

/// Pins pages of the caller from `addr` on, into `pfns`. How many, at least one.
pub fn pin(addr: u64, pfns: &mut [u64]) -> Result<usize> {
    if pfns.is_empty() {
        return Err(EINVAL);
    }
    // SAFETY: pointer and length are those of the slice.
    let got = unsafe { sys::gzk_pin(addr, pfns.len(), pfns.as_mut_ptr()) };
    match usize::try_from(got) {
        Ok(n) if n > 0 && n <= pfns.len() => Ok(n),
        Ok(_) => Err(EFAULT),
        Err(_) => Err(Error::check(got as i32).err().unwrap_or(EFAULT)),
    }
}

/// Unpins pages, overwriting the slice. The caller recorded these pins, and forgets them.
pub fn unpin(pfns: &mut [u64]) {
    if !pfns.is_empty() {
        // SAFETY: pointer and length are those of the slice.
        unsafe { sys::gzk_unpin(pfns.as_mut_ptr(), pfns.len()) }
    }
}

/// Pins the 2 MiB of the caller at `addr`, a multiple of that, if they are one huge page: its first PFN.
pub fn pin_block(addr: u64) -> Option<u64> {
    let mut pfn = 0;
    // SAFETY: pfn is valid for a write.
    (unsafe { sys::gzk_pin_block(addr, &mut pfn) } == 1).then_some(pfn)
}

/// Unpins it. The caller recorded this pin, and forgets it.
pub fn unpin_block(pfn: u64) {
    // SAFETY: by the callers' books, as for pins.
    unsafe { sys::gzk_unpin_block(pfn) }
}

/// While it lives, page frames may be hidden from readers of the kernel's own map (`/proc/kcore`, dumps), until they are freed. They
/// touch user space with the other side of this lock held: it is taken before any lock that a fault of user space takes.
pub struct Hiding(());

impl Hiding {
    /// Waits for those who are reading.
    pub fn begin() -> Self {
        // SAFETY: ended once, by drop.
        unsafe { sys::gzk_frames_hide_begin() };
        Self(())
    }

    /// Hides page frames that came from [`alloc_frames`].
    pub fn hide(&self, pfn: u64, count: u64) {
        // SAFETY: begun, and by the callers' books the frames are allocated.
        unsafe { sys::gzk_frames_hide(pfn, count) }
    }
}

impl Drop for Hiding {
    fn drop(&mut self) {
        // SAFETY: begun by `begin`.
        unsafe { sys::gzk_frames_hide_end() }
    }
}
