// SPDX-License-Identifier: GPL-2.0-only
//! Kernel memory: every allocation can fail, and says so.

use core::ffi::c_void;
use core::marker::PhantomData;
use core::mem::{align_of, size_of};
use core::ops::{Deref, DerefMut};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, fence};

use zerocopy::FromZeros;

use super::error::{Result, code::ENOMEM};
use crate::sys;

/// The allocator's guarantee for every size used here (kmalloc: at least 8).
const ALIGN: usize = 8;

/// Zeroed memory for `n` values.
fn alloc<T>(n: usize) -> Result<NonNull<T>> {
    const { assert!(align_of::<T>() <= ALIGN && size_of::<T>() > 0) };
    let size = size_of::<T>().checked_mul(n).ok_or(ENOMEM)?;
    // SAFETY: allocating has no preconditions.
    NonNull::new(unsafe { sys::gzk_alloc(size) }.cast()).ok_or(ENOMEM)
}

/// # Safety
/// `p` came from [`alloc`], and no one uses it any more.
unsafe fn free<T>(p: NonNull<T>) {
    // SAFETY: by the caller's promise.
    unsafe { sys::gzk_free(p.as_ptr().cast::<c_void>()) }
}

/// An owned value in kernel memory.
///
/// # Invariants
/// The pointer is to an initialised value in memory from [`alloc`], and this is its only owner.
pub struct KBox<T>(NonNull<T>, PhantomData<T>);

// SAFETY: owns a T, like T itself.
unsafe impl<T: Send> Send for KBox<T> {}
// SAFETY: shares a T, like T itself.
unsafe impl<T: Sync> Sync for KBox<T> {}

impl<T> KBox<T> {
    /// Moves `value` to kernel memory; drops it if there is none.
    pub fn new(value: T) -> Result<Self> {
        let p = alloc::<T>(1)?;
        // SAFETY: p is valid for a T.
        unsafe { p.write(value) };
        Ok(Self(p, PhantomData))
    }

    /// All zero, without a copy on the stack.
    pub fn zeroed() -> Result<Self>
    where
        T: FromZeros,
    {
        // INVARIANT: zeroes are a valid T.
        Ok(Self(alloc::<T>(1)?, PhantomData))
    }

    /// The address of the value, stable until it is dropped.
    pub fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }

    /// Gives the value to C; [`from_raw`](Self::from_raw) takes it back.
    pub fn into_raw(self) -> *mut c_void {
        let p = self.0.as_ptr().cast();
        core::mem::forget(self);
        p
    }

    /// # Safety
    /// `p` came from [`into_raw`](Self::into_raw) of the same type, and no one uses it any more.
    pub unsafe fn from_raw(p: *mut c_void) -> Self {
        // SAFETY: into_raw gave a non-null pointer.
        Self(unsafe { NonNull::new_unchecked(p.cast()) }, PhantomData)
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: type invariant.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for KBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: type invariant; borrowed mutably, so alone.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for KBox<T> {
    fn drop(&mut self) {
        // SAFETY: type invariant; the value is not used after this.
        unsafe {
            ptr::drop_in_place(self.0.as_ptr());
            free(self.0);
        }
    }
}

/// A growing array.
///
/// # Invariants
/// `cap` is 0, or `data` is memory from [`alloc`] for `cap` values, of which the first `len` are initialised.
pub struct KVec<T> {
    data: NonNull<T>,
    len: usize,
    cap: usize,
    owns: PhantomData<T>,
}

// SAFETY: owns values of T.
unsafe impl<T: Send> Send for KVec<T> {}
// SAFETY: shares values of T.
unsafe impl<T: Sync> Sync for KVec<T> {}

impl<T> KVec<T> {
    /// Empty; allocates nothing.
    pub const fn new() -> Self {
        Self { data: NonNull::dangling(), len: 0, cap: 0, owns: PhantomData }
    }

    /// `n` values made by `make`.
    pub fn filled(n: usize, mut make: impl FnMut() -> T) -> Result<Self> {
        let mut v = Self { data: alloc(n.max(1))?, len: 0, cap: n.max(1), owns: PhantomData };
        for at in 0..n {
            // SAFETY: at < cap.
            unsafe { v.data.add(at).write(make()) };
            v.len = at + 1;
        }
        Ok(v)
    }

    /// Makes room for one more, so that the next [`push_within_capacity`](Self::push_within_capacity) succeeds.
    pub fn reserve_one(&mut self) -> Result {
        if self.len < self.cap {
            return Ok(());
        }
        let cap = self.cap.checked_mul(2).ok_or(ENOMEM)?.max(8);
        let data = alloc::<T>(cap)?;
        // SAFETY: both are valid for len values, and apart; the old memory is not used again.
        unsafe {
            ptr::copy_nonoverlapping(self.data.as_ptr(), data.as_ptr(), self.len);
            if self.cap != 0 {
                free(self.data);
            }
        }
        self.data = data;
        self.cap = cap;
        Ok(())
    }

    /// Appends, or gives the value back if there is no room.
    pub fn push_within_capacity(&mut self, value: T) -> core::result::Result<(), T> {
        if self.len == self.cap {
            return Err(value);
        }
        // SAFETY: len < cap.
        unsafe { self.data.add(self.len).write(value) };
        self.len += 1;
        Ok(())
    }

    /// Inserts before `index`, or gives the value back if there is no room.
    pub fn insert_within_capacity(&mut self, index: usize, value: T) -> core::result::Result<(), T> {
        if self.len == self.cap || index > self.len {
            return Err(value);
        }
        // SAFETY: index <= len < cap; the values from index on move up by one, and the gap is filled.
        unsafe {
            let at = self.data.add(index);
            ptr::copy(at.as_ptr(), at.add(1).as_ptr(), self.len - index);
            at.write(value);
        }
        self.len += 1;
        Ok(())
    }

    /// Takes one out, keeping the order.
    pub fn remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        self.len -= 1;
        // SAFETY: index is below the old len; the values behind it move down by one.
        unsafe {
            let at = self.data.add(index);
            let value = at.read();
            ptr::copy(at.add(1).as_ptr(), at.as_ptr(), self.len - index);
            Some(value)
        }
    }

    /// Takes one out; the last takes its place.
    pub fn swap_remove(&mut self, index: usize) -> Option<T> {
        if index >= self.len {
            return None;
        }
        self.len -= 1;
        // SAFETY: both are below the old len; afterwards each value is owned once.
        unsafe {
            let value = self.data.add(index).read();
            if index != self.len {
                self.data.add(index).write(self.data.add(self.len).read());
            }
            Some(value)
        }
    }

    /// Takes the last one out.
    pub fn pop(&mut self) -> Option<T> {
        self.swap_remove(self.len.checked_sub(1)?)
    }
}

impl<T> Deref for KVec<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: type invariant.
        unsafe { core::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for KVec<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: type invariant; borrowed mutably, so alone.
        unsafe { core::slice::from_raw_parts_mut(self.data.as_ptr(), self.len) }
    }
}

impl<T> Drop for KVec<T> {
    fn drop(&mut self) {
        while let Some(value) = self.pop() {
            drop(value);
        }
        if self.cap != 0 {
            // SAFETY: type invariant; empty now.
            unsafe { free(self.data) }
        }
    }
}

struct Counted<T> {
    refs: AtomicUsize,
    value: T,
}

/// A value with several owners.
///
/// # Invariants
/// The pointer is to initialised memory from [`alloc`], of whose references this is one.
#[repr(transparent)]
pub struct Arc<T>(NonNull<Counted<T>>, PhantomData<Counted<T>>);

// SAFETY: shares and may drop a T.
unsafe impl<T: Send + Sync> Send for Arc<T> {}
// SAFETY: shares and may drop a T.
unsafe impl<T: Send + Sync> Sync for Arc<T> {}

impl<T> Arc<T> {
    /// Moves `value` to kernel memory; drops it if there is none.
    pub fn new(value: T) -> Result<Self> {
        let p = alloc::<Counted<T>>(1)?;
        // SAFETY: p is valid for the value.
        unsafe { p.write(Counted { refs: AtomicUsize::new(1), value }) };
        Ok(Self(p, PhantomData))
    }

    /// Gives this reference to C.
    pub fn into_raw(self) -> *mut c_void {
        let p = self.0.as_ptr().cast();
        core::mem::forget(self);
        p
    }

    /// # Safety
    /// `p` came from [`into_raw`](Self::into_raw) of the same type; its reference passes to the result.
    pub unsafe fn from_raw(p: *mut c_void) -> Self {
        // SAFETY: into_raw gave a non-null pointer.
        Self(unsafe { NonNull::new_unchecked(p.cast()) }, PhantomData)
    }

    /// Sees C's reference as one of Rust.
    ///
    /// # Safety
    /// `p` came from [`into_raw`](Self::into_raw) of the same type, and that reference outlives `'a`.
    pub unsafe fn borrow_raw(p: &*mut c_void) -> &Self {
        // SAFETY: an Arc is a non-null pointer to what into_raw gave.
        unsafe { &*ptr::from_ref(p).cast::<Self>() }
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        // SAFETY: type invariant. The count can't wrap: each reference stands for an open file or eventfd.
        unsafe { self.0.as_ref() }.refs.fetch_add(1, Ordering::Relaxed);
        Self(self.0, PhantomData)
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: type invariant.
        unsafe { &self.0.as_ref().value }
    }
}

impl<T> Drop for Arc<T> {
    fn drop(&mut self) {
        // SAFETY: type invariant; the last owner drops.
        unsafe {
            if self.0.as_ref().refs.fetch_sub(1, Ordering::Release) == 1 {
                fence(Ordering::Acquire);
                ptr::drop_in_place(self.0.as_ptr());
                free(self.0);
            }
        }
    }
}

/// A place that is filled at most once, and read without a lock from any context.
///
/// # Invariants
/// Null, or from [`KBox::into_raw`].
pub struct OnceBox<T>(AtomicPtr<T>, PhantomData<T>);

impl<T> OnceBox<T> {
    /// Empty.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()), PhantomData)
    }

    /// What is there.
    pub fn get(&self) -> Option<&T> {
        // SAFETY: type invariant; it stays until self is dropped.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// Fills it, unless it is filled.
    pub fn set(&self, value: KBox<T>) -> core::result::Result<(), KBox<T>> {
        let p = value.into_raw();
        match self.0.compare_exchange(ptr::null_mut(), p.cast(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            // SAFETY: just made, and not published.
            Err(_) => Err(unsafe { KBox::from_raw(p) }),
        }
    }

    /// Takes it out.
    pub fn take(&mut self) -> Option<KBox<T>> {
        let p = core::mem::replace(self.0.get_mut(), ptr::null_mut());
        // SAFETY: type invariant; borrowed mutably, so alone.
        (!p.is_null()).then(|| unsafe { KBox::from_raw(p.cast()) })
    }
}

impl<T> Drop for OnceBox<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}
