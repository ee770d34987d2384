// SPDX-License-Identifier: GPL-2.0-only
//! Pages shared with the hypervisor by physical address.

use core::ffi::c_void;
use core::mem::{align_of, size_of};
use core::ptr::NonNull;

use zerocopy::{FromBytes, IntoBytes};

use super::error::{Error, Result, code::ENOMEM};
use crate::sys;

/// 2^ORDER contiguous pages.
///
/// # Invariants
/// The pointer is to that many pages, owned here. They are only read and written as plain bytes that need no validity,
/// because the hypervisor writes them during hypercalls.
pub struct Pages<const ORDER: u32> {
    at: NonNull<c_void>,
    pa: u64,
}

// SAFETY: plain memory.
unsafe impl<const ORDER: u32> Send for Pages<ORDER> {}
// SAFETY: all access is by volatile copies of plain data; the callers hold a lock where order matters.
unsafe impl<const ORDER: u32> Sync for Pages<ORDER> {}

impl<const ORDER: u32> Pages<ORDER> {
    /// Bytes.
    pub const SIZE: usize = 4096 << ORDER;

    /// Allocates them, zeroed.
    pub fn new() -> Result<Self> {
        let mut pa = 0;
        // SAFETY: pa is valid for a write.
        let at = NonNull::new(unsafe { sys::gzk_pages_alloc(ORDER, &mut pa) }).ok_or(ENOMEM)?;
        Ok(Self { at, pa })
    }

    /// Their address in the kernel, for C.
    pub fn as_ptr(&self) -> *mut c_void {
        self.at.as_ptr()
    }

    /// Their physical address.
    pub fn pa(&self) -> u64 {
        self.pa
    }

    fn typed<T, const OFF: usize>(&self) -> *mut T {
        const { assert!(OFF + size_of::<T>() <= Self::SIZE && OFF.is_multiple_of(align_of::<T>())) };
        // SAFETY: inside the pages, as just asserted.
        unsafe { self.at.as_ptr().byte_add(OFF).cast() }
    }

    /// Copies a value out.
    pub fn load<T: FromBytes, const OFF: usize>(&self) -> T {
        // SAFETY: in bounds and aligned, and any bytes are a T.
        unsafe { self.typed::<T, OFF>().read_volatile() }
    }

    /// Whether the words from FROM to END are all zero.
    pub fn is_zero<const FROM: usize, const END: usize>(&self) -> bool {
        const { assert!(FROM <= END && END <= Self::SIZE && FROM.is_multiple_of(8) && END.is_multiple_of(8)) };
        let words = self.typed::<u64, FROM>();
        // SAFETY: inside the pages, as just asserted. Without a branch for each: this is on the way of every fault.
        (0..(END - FROM) / 8).fold(0, |all, n| all | unsafe { words.add(n).read_volatile() }) == 0
    }

    /// Copies a value in.
    pub fn store<T: IntoBytes, const OFF: usize>(&self, value: T) {
        // SAFETY: in bounds and aligned.
        unsafe { self.typed::<T, OFF>().write_volatile(value) }
    }

    /// The pages as an array.
    pub fn as_mut_array<T: FromBytes + IntoBytes, const N: usize>(&mut self) -> &mut [T; N] {
        // SAFETY: in bounds and aligned, any bytes are a T, borrowed mutably, and no hypercall is under way, since those
        // borrow self too.
        unsafe { &mut *self.typed::<[T; N], 0>() }
    }

    /// Copies LEN bytes at OFF from user space.
    pub fn copy_from_user<const OFF: usize, const LEN: usize>(&self, from: u64) -> Result {
        let to = self.typed::<[u8; LEN], OFF>();
        // SAFETY: in bounds.
        Error::check(unsafe { sys::gzk_user_read(to.cast(), from, LEN) }).map(drop)
    }

    /// Copies `len` (at most all) bytes at the start from user space.
    pub fn fill_from_user(&self, from: u64, len: usize) -> Result {
        let len = len.min(Self::SIZE);
        // SAFETY: in bounds.
        Error::check(unsafe { sys::gzk_user_read(self.at.as_ptr(), from, len) }).map(drop)
    }

    /// Copies `len` bytes at OFF from user space, as far as the pages go.
    pub fn copy_in<const OFF: usize>(&self, from: u64, len: usize) -> Result {
        let to = self.typed::<u8, OFF>();
        // SAFETY: in bounds.
        Error::check(unsafe { sys::gzk_user_read(to.cast(), from, len.min(Self::SIZE - OFF)) }).map(drop)
    }

    /// Copies `len` bytes at OFF to user space, as far as the pages go.
    pub fn copy_out<const OFF: usize>(&self, to: u64, len: usize) -> Result {
        let from = self.typed::<u8, OFF>();
        // SAFETY: in bounds.
        Error::check(unsafe { sys::gzk_user_write(to, from.cast(), len.min(Self::SIZE - OFF)) }).map(drop)
    }

    /// Copies LEN bytes at OFF to user space.
    pub fn copy_to_user<const OFF: usize, const LEN: usize>(&self, to: u64) -> Result {
        let from = self.typed::<[u8; LEN], OFF>();
        // SAFETY: in bounds.
        Error::check(unsafe { sys::gzk_user_write(to, from.cast(), LEN) }).map(drop)
    }
}

impl<const ORDER: u32> Drop for Pages<ORDER> {
    fn drop(&mut self) {
        // SAFETY: type invariant.
        unsafe { sys::gzk_pages_free(self.at.as_ptr(), ORDER) }
    }
}
