// SPDX-License-Identifier: GPL-2.0-only
//! Locks, and the place where a vCPU thread sleeps.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use super::error::{Result, code::ENOMEM, code::ERESTARTSYS};
use crate::sys;

/// Lock classes, for lockdep.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Class {
    /// A vCPU's run lock.
    Vcpu = 0,
    /// A VM's memory.
    Memory = 1,
    /// A VM's irqfds.
    Irqfds = 2,
    /// Creation of a VM's vCPUs.
    Create = 3,
    /// A VM's ioeventfds.
    IoEventFds = 4,
    /// A file of guest memory.
    GuestMemory = 5,
    /// A VM's list of channels.
    Channels = 6,
    /// A channel's pages.
    Channel = 7,
}

/// A sleeping lock.
pub struct Mutex<T> {
    raw: NonNull<c_void>,
    data: UnsafeCell<T>,
}

// SAFETY: owns a T.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: hands out the T to one thread at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// Allocates the kernel's mutex.
    pub fn new(class: Class, data: T) -> Result<Self> {
        // SAFETY: no preconditions.
        let raw = NonNull::new(unsafe { sys::gzk_mutex_new(class as u32) }).ok_or(ENOMEM)?;
        Ok(Self { raw, data: UnsafeCell::new(data) })
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        // SAFETY: raw is a mutex while self lives.
        unsafe { sys::gzk_mutex_lock(self.raw.as_ptr()) };
        MutexGuard(self)
    }

    /// Waits for the lock; ERESTARTSYS if a signal comes first.
    pub fn lock_interruptible(&self) -> Result<MutexGuard<'_, T>> {
        // SAFETY: raw is a mutex while self lives.
        match unsafe { sys::gzk_mutex_lock_interruptible(self.raw.as_ptr()) } {
            0 => Ok(MutexGuard(self)),
            _ => Err(ERESTARTSYS),
        }
    }
}

impl<T> Drop for Mutex<T> {
    fn drop(&mut self) {
        // SAFETY: raw is a mutex, unlocked since guards borrow self.
        unsafe { sys::gzk_mutex_free(self.raw.as_ptr()) }
    }
}

/// The lock is held.
pub struct MutexGuard<'a, T>(&'a Mutex<T>);

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.0.data.get() }
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held.
        unsafe { &mut *self.0.data.get() }
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the lock is held.
        unsafe { sys::gzk_mutex_unlock(self.0.raw.as_ptr()) }
    }
}

/// Where one thread sleeps until any context wakes it.
///
/// A wake-up between [`clear`](Self::clear) and [`sleep`](Self::sleep) is not lost: sleep returns at once.
pub struct Waiter(NonNull<c_void>);

// SAFETY: the shim's waiter is made for use from any context.
unsafe impl Send for Waiter {}
// SAFETY: as above; only the holder of the vCPU's run lock clears and sleeps.
unsafe impl Sync for Waiter {}

impl Waiter {
    /// Allocates it.
    pub fn new() -> Result<Self> {
        // SAFETY: no preconditions.
        NonNull::new(unsafe { sys::gzk_waiter_new() }).map(Self).ok_or(ENOMEM)
    }

    /// Forgets earlier wake-ups. To be called before looking for what they announced.
    pub fn clear(&self) {
        // SAFETY: valid while self lives.
        unsafe { sys::gzk_waiter_clear(self.0.as_ptr()) }
    }

    /// Wakes. To be called after making visible what it announces. Any context.
    pub fn wake(&self) {
        // SAFETY: valid while self lives.
        unsafe { sys::gzk_waiter_wake(self.0.as_ptr()) }
    }

    /// Sleeps until woken, signalled, or `ns` have passed.
    pub fn sleep(&self, ns: u64) {
        // SAFETY: valid while self lives.
        unsafe { sys::gzk_waiter_sleep(self.0.as_ptr(), ns) }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // SAFETY: no one sleeps there, since sleeping borrows self.
        unsafe { sys::gzk_waiter_free(self.0.as_ptr()) }
    }
}

/// Where those wait who poll a file, and for what: bits of [`bell`](gzvm_abi::rpc::bell).
pub struct Poll(NonNull<c_void>);

// SAFETY: the shim's object is made for use from any context.
unsafe impl Send for Poll {}
// SAFETY: as above.
unsafe impl Sync for Poll {}

impl Poll {
    /// Allocates it.
    pub fn new() -> Result<Self> {
        // SAFETY: no preconditions.
        NonNull::new(unsafe { sys::gzk_poll_new() }).map(Self).ok_or(ENOMEM)
    }

    /// For C.
    pub fn as_ptr(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// There is this now: wakes. Any context.
    pub fn set(&self, what: u32) {
        // SAFETY: valid while self lives.
        unsafe { sys::gzk_poll_set(self.0.as_ptr(), what) }
    }

    /// There may be no more of this.
    pub fn clear(&self, what: u32) {
        // SAFETY: valid while self lives.
        unsafe { sys::gzk_poll_clear(self.0.as_ptr(), what) }
    }
}

impl Drop for Poll {
    fn drop(&mut self) {
        // SAFETY: the file that is polled keeps the owner of self.
        unsafe { sys::gzk_poll_free(self.0.as_ptr()) }
    }
}
