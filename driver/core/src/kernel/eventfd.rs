// SPDX-License-Identifier: GPL-2.0-only
//! Eventfds: signalled by us, or watched by us.

use core::ffi::c_void;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicBool, Ordering};

use super::error::{Error, Result, code::EINVAL};
use crate::sys;

/// A reference to an eventfd.
#[derive(PartialEq, Eq)]
pub struct EventFd(NonNull<c_void>);

// SAFETY: reference-counted by the kernel, usable from any context.
unsafe impl Send for EventFd {}
// SAFETY: as above.
unsafe impl Sync for EventFd {}

impl EventFd {
    /// Of the caller's descriptor. EBADF, EINVAL if it is no eventfd.
    pub fn get(fd: i32) -> Result<Self> {
        let mut ctx = ptr::null_mut();
        // SAFETY: ctx is valid for a write.
        Error::check(unsafe { sys::gzk_eventfd_get(fd, &mut ctx) })?;
        NonNull::new(ctx).map(Self).ok_or(EINVAL)
    }

    /// Adds one. Any context.
    pub fn signal(&self) {
        // SAFETY: self holds a reference.
        unsafe { sys::gzk_eventfd_signal(self.0.as_ptr()) }
    }

    /// Identifies the eventfd.
    pub fn key(&self) -> usize {
        self.0.as_ptr().addr()
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // SAFETY: drops the reference that `get` took.
        unsafe { sys::gzk_eventfd_put(self.0.as_ptr()) }
    }
}

/// An eventfd watched from the kernel: its owner is told of signals and of the end, until this is dropped.
pub struct Watch {
    raw: NonNull<c_void>,
    key: usize,
    in_hangup: AtomicBool,
}

// SAFETY: the shim's object may be freed by any thread.
unsafe impl Send for Watch {}
// SAFETY: `start` is called once, by the thread that made it; the rest is read only.
unsafe impl Sync for Watch {}

impl Watch {
    /// Takes hold of the caller's eventfd; tells nothing yet. EBADF, EINVAL.
    pub fn new(fd: i32) -> Result<Self> {
        let (mut raw, mut ctx) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: both are valid for a write.
        Error::check(unsafe { sys::gzk_irqfd_new(fd, &mut raw, &mut ctx) })?;
        let raw = NonNull::new(raw).ok_or(EINVAL)?;
        Ok(Self { raw, key: ctx.addr(), in_hangup: AtomicBool::new(false) })
    }

    /// Starts telling `owner`. `fd` is that of [`new`](Self::new); EBADF if it became another's.
    ///
    /// # Safety
    /// `owner` is what `gzr_irqfd_signalled` and `gzr_irqfd_hangup` expect, until this is dropped.
    pub unsafe fn start(&self, fd: i32, owner: *mut c_void) -> Result {
        // SAFETY: raw is live until dropped; owner by the caller's promise.
        Error::check(unsafe { sys::gzk_irqfd_watch(self.raw.as_ptr(), fd, owner) }).map(drop)
    }

    /// Identifies the eventfd, like [`EventFd::key`].
    pub fn key(&self) -> usize {
        self.key
    }

    /// It is the hang-up itself that will drop this, and so must not wait for itself.
    pub fn ends_in_hangup(&self) {
        self.in_hangup.store(true, Ordering::Relaxed);
    }
}

/// Waits for the hang-ups that are under way. Never called by one.
pub fn flush_hangups() {
    // SAFETY: may be called from any process context but that of a hang-up.
    unsafe { sys::gzk_irqfd_flush() }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // SAFETY: raw is live, and self is used up. The shim waits for calls of the owner under way.
        unsafe { sys::gzk_irqfd_free(self.raw.as_ptr(), (*self.in_hangup.get_mut()).into()) }
    }
}
