// SPDX-License-Identifier: GPL-2.0-only
//! The C shim's functions, as `shim.c` defines them. `fake/` offers the same in tests.

use core::ffi::c_void;

unsafe extern "C" {
    pub fn gzk_log(level: u32, text: *const u8, len: usize);
    #[cfg(target_os = "none")]
    pub fn gzk_bug(text: *const u8, len: usize) -> !;
    pub fn gzk_seq_write(seq: *mut c_void, text: *const u8, len: usize);

    pub fn gzk_alloc(size: usize) -> *mut c_void;
    pub fn gzk_free(p: *mut c_void);
    pub fn gzk_pages_alloc(order: u32, pa: *mut u64) -> *mut c_void;
    pub fn gzk_pages_free(p: *mut c_void, order: u32);

    pub fn gzk_user_read(to: *mut c_void, from: u64, len: usize) -> i32;
    pub fn gzk_user_write(to: u64, from: *const c_void, len: usize) -> i32;
    pub fn gzk_user_range_check(start: u64, size: u64, memory: *mut *mut c_void, page: *mut u64) -> i32;
    pub fn gzk_mm_grab() -> *mut c_void;
    pub fn gzk_mm_is_current(mm: *const c_void) -> i32;
    pub fn gzk_mm_drop(mm: *mut c_void);
    pub fn gzk_pin(addr: u64, n: usize, pfns: *mut u64) -> isize;
    pub fn gzk_unpin(pfns: *mut u64, n: usize);
    pub fn gzk_pin_block(addr: u64, pfn: *mut u64) -> i32;
    pub fn gzk_unpin_block(pfn: u64);

    pub fn gzk_mutex_new(class: u32) -> *mut c_void;
    pub fn gzk_mutex_free(m: *mut c_void);
    pub fn gzk_mutex_lock(m: *mut c_void);
    pub fn gzk_mutex_lock_interruptible(m: *mut c_void) -> i32;
    pub fn gzk_mutex_unlock(m: *mut c_void);

    pub fn gzk_signal_pending() -> i32;
    pub fn gzk_cond_resched();
    pub fn gzk_msleep(ms: u32);
    pub fn gzk_waiter_new() -> *mut c_void;
    pub fn gzk_waiter_free(w: *mut c_void);
    pub fn gzk_waiter_clear(w: *mut c_void);
    pub fn gzk_waiter_wake(w: *mut c_void);
    pub fn gzk_waiter_sleep(w: *mut c_void, ns: u64);
    pub fn gzk_counter_frequency() -> u64;
    pub fn gzk_clock_snapshot(wall_ns: *mut u64, counter: *mut u64) -> i32;

    pub fn gzk_hvc(regs: *mut u64);
    pub fn gzk_pa_bits() -> u32;

    pub fn gzk_eventfd_get(fd: i32, ctx: *mut *mut c_void) -> i32;
    pub fn gzk_eventfd_put(ctx: *mut c_void);
    pub fn gzk_eventfd_signal(ctx: *mut c_void);
    pub fn gzk_irqfd_new(fd: i32, out: *mut *mut c_void, ctx: *mut *mut c_void) -> i32;
    pub fn gzk_irqfd_watch(p: *mut c_void, fd: i32, owner: *mut c_void) -> i32;
    pub fn gzk_irqfd_free(p: *mut c_void, from_hangup: i32);
    pub fn gzk_irqfd_flush();

    pub fn gzk_frames_alloc(order: u32, pfn: *mut u64) -> i32;
    pub fn gzk_frames_hide_begin();
    pub fn gzk_frames_hide(pfn: u64, count: u64);
    pub fn gzk_frames_hide_end();
    pub fn gzk_frames_free(pfn: u64, order: u32);
    pub fn gzk_frames_split(pfn: u64, order: u32);
    pub fn gzk_memory_insert(fault: *mut c_void, pfn: u64) -> i32;
    pub fn gzk_memory_fd(memory: *mut c_void) -> i32;
    pub fn gzk_memory_of(file: *mut c_void) -> *mut c_void;
    pub fn gzk_memory_put(file: *mut c_void);
    pub fn gzk_memory_unmap(file: *mut c_void, page: u64, pages: u64);

    pub fn gzk_poll_new() -> *mut c_void;
    pub fn gzk_poll_free(p: *mut c_void);
    pub fn gzk_poll_set(p: *mut c_void, what: u32);
    pub fn gzk_poll_clear(p: *mut c_void, what: u32);
    pub fn gzk_channel_fd(channel: *mut c_void) -> i32;
    pub fn gzk_vm_get(fd: i32, file: *mut *mut c_void, vm: *mut *mut c_void) -> i32;
    pub fn gzk_vm_put(file: *mut c_void);

    pub fn gzk_vm_fd(vm: *mut c_void) -> i32;
    pub fn gzk_vcpu_fd(index: u32, vcpu: *mut c_void) -> i32;
}
