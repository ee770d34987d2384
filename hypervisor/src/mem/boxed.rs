// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A value in pages of the pool: a `Box` that can say no.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use gzvm_core::addr::{PAGE_SIZE, Pa};

use super::pool::{self, Exhausted};

/// An owned `T` in pool pages.
///
/// # Invariants
/// `ptr` points to a valid `T` in `pages_of::<T>()` pool pages that nobody else refers to.
pub struct PageBox<T> {
    ptr: NonNull<T>,
}

// SAFETY: it owns its `T`, like a Box.
unsafe impl<T: Send> Send for PageBox<T> {}
// SAFETY: it gives out shared references to `T` only through `&self`, like a Box.
unsafe impl<T: Sync> Sync for PageBox<T> {}

/// Pages that a `T` takes.
pub const fn pages_of<T>() -> usize {
    size_of::<T>().div_ceil(PAGE_SIZE as usize)
}

impl<T> PageBox<T> {
    /// Moves `value` into pages of its own.
    pub fn new(value: T) -> Result<Self, Exhausted> {
        const { assert!(align_of::<T>() <= PAGE_SIZE as usize) };
        let pages = pool::alloc(pages_of::<T>(), 1)?;
        let ptr = NonNull::new(pages.0 as *mut T).ok_or(Exhausted)?;
        // SAFETY: freshly allocated, large and aligned enough, and ours alone.
        unsafe { ptr.write(value) };
        Ok(Self { ptr })
    }

    /// All zero, without a copy on the stack.
    pub fn zeroed() -> Result<Self, Exhausted>
    where
        T: zerocopy::FromZeros,
    {
        const { assert!(align_of::<T>() <= PAGE_SIZE as usize) };
        let pages = pool::alloc(pages_of::<T>(), 1)?;
        // INVARIANT: the pool gives zeroed pages, and zeroes are a valid T.
        Ok(Self { ptr: NonNull::new(pages.0 as *mut T).ok_or(Exhausted)? })
    }

    /// Keeps the value for ever.
    pub fn leak(self) -> &'static mut T {
        let ptr = self.ptr;
        core::mem::forget(self);
        // SAFETY: valid and exclusively owned (invariant), and never freed from here on.
        unsafe { &mut *ptr.as_ptr() }
    }
}

impl<T> Deref for PageBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the invariant.
        unsafe { self.ptr.as_ref() }
    }
}

impl<T> DerefMut for PageBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the invariant.
        unsafe { self.ptr.as_mut() }
    }
}

impl<T> Drop for PageBox<T> {
    fn drop(&mut self) {
        // SAFETY: valid and owned (invariant); not used after this.
        unsafe { self.ptr.drop_in_place() };
        pool::free(Pa(self.ptr.as_ptr() as u64), pages_of::<T>());
    }
}
