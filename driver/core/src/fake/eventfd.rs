// SPDX-License-Identifier: GPL-2.0-only
//! Eventfds, and those that the driver watches.

use std::collections::BTreeSet;
use std::ffi::c_void;

use super::{EBADF, EINVAL, File, fake};

#[derive(Default)]
pub struct EventFd {
    pub refs: u32,
    pub count: u64,
    pub open: bool,
    pub(super) watchers: BTreeSet<usize>,
}

pub(super) struct Watch {
    pub(super) ctx: usize,
    pub(super) owner: usize,
}

/// A new eventfd.
pub fn eventfd() -> i32 {
    fake(|k| {
        let ctx = k.handle();
        k.eventfds.insert(ctx, EventFd { open: true, ..EventFd::default() });
        k.new_fd(File::EventFd(ctx))
    })
}

/// The eventfd's state.
pub fn eventfd_count(fd: i32) -> u64 {
    fake(|k| match k.files[&fd] {
        File::EventFd(ctx) => k.eventfds[&ctx].count,
        other => panic!("{other:?} is no eventfd"),
    })
}

/// Adds one to an eventfd from user space.
pub fn eventfd_write(fd: i32) {
    let ctx = fake(|k| match k.files[&fd] {
        File::EventFd(ctx) => ctx,
        other => panic!("{other:?} is no eventfd"),
    });
    // SAFETY: the context exists.
    unsafe { gzk_eventfd_signal(ctx as *mut c_void) }
}

pub unsafe fn gzk_eventfd_get(fd: i32, ctx: *mut *mut c_void) -> i32 {
    fake(|k| {
        if k.fails() {
            return EBADF;
        }
        let Some(&file) = k.files.get(&fd) else { return EBADF };
        let File::EventFd(handle) = file else { return EINVAL };
        k.eventfds.get_mut(&handle).unwrap().refs += 1;
        // SAFETY: as promised by the caller.
        unsafe { *ctx = std::ptr::without_provenance_mut(handle) };
        0
    })
}

pub unsafe fn gzk_eventfd_put(ctx: *mut c_void) {
    fake(|k| k.eventfds.get_mut(&ctx.addr()).unwrap().refs -= 1);
}

pub unsafe fn gzk_eventfd_signal(ctx: *mut c_void) {
    let owners: Vec<usize> = fake(|k| {
        let eventfd = k.eventfds.get_mut(&ctx.addr()).unwrap();
        if eventfd.watchers.is_empty() {
            eventfd.count += 1;
        }
        eventfd.watchers.iter().map(|w| k.watches[w].owner).collect()
    });
    for owner in owners {
        // SAFETY: watched until it is freed.
        unsafe { crate::entry::gzr_irqfd_signalled(owner as *mut c_void) }
    }
}

pub unsafe fn gzk_irqfd_new(fd: i32, out: *mut *mut c_void, ctx: *mut *mut c_void) -> i32 {
    // SAFETY: as promised by the caller.
    let ret = unsafe { gzk_eventfd_get(fd, ctx) };
    if ret != 0 {
        return ret;
    }
    fake(|k| {
        let handle = k.handle();
        // SAFETY: as promised by the caller.
        unsafe {
            k.watches.insert(handle, Watch { ctx: (*ctx).addr(), owner: 0 });
            *out = std::ptr::without_provenance_mut(handle);
        }
        0
    })
}

pub unsafe fn gzk_irqfd_watch(p: *mut c_void, fd: i32, owner: *mut c_void) -> i32 {
    let pending = fake(|k| {
        if k.fails() {
            return Err(EBADF);
        }
        let watch = k.watches.get_mut(&p.addr()).unwrap();
        if k.files.get(&fd) != Some(&File::EventFd(watch.ctx)) {
            return Err(EBADF);
        }
        watch.owner = owner.expose_provenance();
        let eventfd = k.eventfds.get_mut(&watch.ctx).unwrap();
        eventfd.watchers.insert(p.addr());
        Ok(eventfd.count > 0)
    });
    match pending {
        Err(e) => e,
        Ok(pending) => {
            if pending {
                // SAFETY: the caller's owner.
                unsafe { crate::entry::gzr_irqfd_signalled(owner) }
            }
            0
        }
    }
}

pub unsafe fn gzk_irqfd_free(p: *mut c_void, _from_hangup: i32) {
    fake(|k| {
        let watch = k.watches.remove(&p.addr()).expect("no watch");
        let eventfd = k.eventfds.get_mut(&watch.ctx).unwrap();
        eventfd.watchers.remove(&p.addr());
        eventfd.refs -= 1;
    });
}

/// Here, hang-ups are handled at once.
pub unsafe fn gzk_irqfd_flush() {}
