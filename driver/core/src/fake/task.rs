// SPDX-License-Identifier: GPL-2.0-only
//! Messages, locks, waiting, time.

use std::ffi::c_void;

use super::{HZ, fake};

pub unsafe fn gzk_log(_level: u32, text: *const u8, len: usize) {
    // SAFETY: as promised by the caller.
    let text = unsafe { std::slice::from_raw_parts(text, len) };
    fake(|k| k.log.push(String::from_utf8_lossy(text).into_owned()));
}

pub unsafe fn gzk_seq_write(_seq: *mut c_void, text: *const u8, len: usize) {
    // SAFETY: as promised by the caller.
    let text = unsafe { std::slice::from_raw_parts(text, len) };
    fake(|k| k.seq += &String::from_utf8_lossy(text));
}

pub unsafe fn gzk_mutex_new(_class: u32) -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let handle = k.handle();
        k.mutexes.insert(handle, false);
        std::ptr::without_provenance_mut(handle)
    })
}

pub unsafe fn gzk_mutex_free(m: *mut c_void) {
    fake(|k| assert_eq!(k.mutexes.remove(&m.addr()), Some(false)));
}

pub unsafe fn gzk_mutex_lock(m: *mut c_void) {
    fake(|k| assert_eq!(k.mutexes.insert(m.addr(), true), Some(false), "deadlock"));
}

pub unsafe fn gzk_mutex_lock_interruptible(m: *mut c_void) -> i32 {
    fake(|k| {
        if k.mutexes[&m.addr()] {
            return -4;
        }
        k.mutexes.insert(m.addr(), true);
        0
    })
}

pub unsafe fn gzk_mutex_unlock(m: *mut c_void) {
    fake(|k| assert_eq!(k.mutexes.insert(m.addr(), false), Some(true)));
}

pub unsafe fn gzk_signal_pending() -> i32 {
    fake(|k| i32::from(k.signal || k.signal_at_run.is_some_and(|n| k.runs >= n)))
}

pub unsafe fn gzk_cond_resched() {}

pub unsafe fn gzk_msleep(_ms: u32) {}

pub unsafe fn gzk_waiter_new() -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let handle = k.handle();
        k.waiters.insert(handle, false);
        std::ptr::without_provenance_mut(handle)
    })
}

pub unsafe fn gzk_waiter_free(w: *mut c_void) {
    fake(|k| k.waiters.remove(&w.addr()).expect("no waiter"));
}

pub unsafe fn gzk_waiter_clear(w: *mut c_void) {
    fake(|k| k.waiters.insert(w.addr(), false).expect("no waiter"));
}

pub unsafe fn gzk_waiter_wake(w: *mut c_void) {
    fake(|k| k.waiters.insert(w.addr(), true).expect("no waiter"));
}

pub unsafe fn gzk_waiter_sleep(w: *mut c_void, ns: u64) {
    // A waiter that was woken does not sleep.
    fake(|k| {
        if !k.waiters[&w.addr()] {
            k.slept.push(ns);
        }
    });
}

pub unsafe fn gzk_counter_frequency() -> u64 {
    HZ
}

pub unsafe fn gzk_clock_snapshot(wall_ns: *mut u64, counter: *mut u64) -> i32 {
    // SAFETY: as promised by the caller.
    unsafe {
        *wall_ns = 0x0123_4567_89AB_CDEF;
        *counter = 0x10_0000_5000;
    }
    0
}

pub unsafe fn gzk_pa_bits() -> u32 {
    52
}
