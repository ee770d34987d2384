// SPDX-License-Identifier: GPL-2.0-only
//! The creator's address space, and pinning its pages.

use core::ffi::c_void;
use core::ptr::NonNull;

use super::error::{Error, Result, code::EFAULT, code::EINVAL};
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
        unsafe { sys::gzk_mm_is_current(self.0.as_ptr()) != 0 }
    }
}

impl Drop for Mm {
    fn drop(&mut self) {
        // SAFETY: drops the reference that `current` took.
        unsafe { sys::gzk_mm_drop(self.0.as_ptr()) }
    }
}

/// Is the caller's `[start, start + size)` wholly mapped? EFAULT: nothing at `start`; EINVAL: a hole behind.
pub fn check_user_range(start: u64, size: u64) -> Result {
    // SAFETY: takes plain numbers.
    Error::check(unsafe { sys::gzk_user_range_check(start, size) }).map(drop)
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
