// SPDX-License-Identifier: GPL-2.0-only
//! What the C shim calls. Pointers become objects here, and results become numbers.

use core::ffi::c_void;

use crate::channel::Channel;
use crate::guest_memory::GuestMemory;
use crate::hypercall::to_long;
use crate::irqfd::IrqFd;
use crate::kernel::file::UserFault;
use crate::kernel::print::SeqFile;
use crate::kernel::{Arc, KBox};
use crate::vm::{VcpuFile, Vm};
use crate::{counters, device};

/// The module is loaded: 0, or a negative errno after telling why in the log.
#[unsafe(no_mangle)]
pub extern "C" fn gzr_init() -> i32 {
    device::probe().map_or_else(|e| e.to_errno(), |()| 0)
}

/// An ioctl of `/dev/gzvm`.
#[unsafe(no_mangle)]
pub extern "C" fn gzr_dev_ioctl(cmd: u32, arg: u64) -> i64 {
    to_long(device::ioctl(cmd, arg))
}

/// An ioctl of a VM's file.
///
/// # Safety
/// `vm` is a VM file's private data, and the file is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_vm_ioctl(vm: *mut c_void, cmd: u32, arg: u64) -> i64 {
    // SAFETY: the file holds a reference, and is open during the call.
    let vm = unsafe { Arc::<Vm>::borrow_raw(&vm) };
    to_long(Vm::ioctl(vm, cmd, arg))
}

/// A VM's file is closed.
///
/// # Safety
/// `vm` is the file's private data, not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_vm_release(vm: *mut c_void) {
    // SAFETY: the file's reference passes to us.
    Vm::release(unsafe { Arc::from_raw(vm) });
}

/// An ioctl of a vCPU's file.
///
/// # Safety
/// `vcpu` is a vCPU file's private data, and the file is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_vcpu_ioctl(vcpu: *mut c_void, cmd: u32, arg: u64) -> i64 {
    // SAFETY: the file owns it, and is open during the call.
    let vcpu = unsafe { &*vcpu.cast::<VcpuFile>() };
    to_long(vcpu.ioctl(cmd, arg))
}

/// User space maps a vCPU's file: its page goes to `*page`, and stays as long as the file. 0 or a negative errno.
///
/// # Safety
/// As [`gzr_vcpu_ioctl`]; `page` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_vcpu_run_page(vcpu: *mut c_void, page: *mut *mut c_void) -> i32 {
    // SAFETY: the file owns it, and is open during the call.
    let vcpu = unsafe { &*vcpu.cast::<VcpuFile>() };
    match vcpu.run_page() {
        Ok(at) => {
            // SAFETY: by the caller's promise.
            unsafe { page.write(at) };
            0
        }
        Err(e) => e.to_errno(),
    }
}

/// A channel's file is read: the bytes, or a negative errno.
///
/// # Safety
/// `channel` is a channel file's private data, and the file is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_channel_read(channel: *mut c_void, to: u64, len: u64) -> i64 {
    // SAFETY: the file holds a reference, and is open during the call.
    to_long(unsafe { Arc::<Channel>::borrow_raw(&channel) }.read(to, len))
}

/// It is written.
///
/// # Safety
/// As [`gzr_channel_read`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_channel_write(channel: *mut c_void, from: u64, len: u64) -> i64 {
    // SAFETY: as above.
    to_long(unsafe { Arc::<Channel>::borrow_raw(&channel) }.write(from, len))
}

/// An ioctl of it.
///
/// # Safety
/// As [`gzr_channel_read`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_channel_ioctl(channel: *mut c_void, cmd: u32, arg: u64) -> i64 {
    // SAFETY: as above.
    to_long(unsafe { Arc::<Channel>::borrow_raw(&channel) }.ioctl(cmd, arg))
}

/// Where those wait who poll it; as long as the file.
///
/// # Safety
/// As [`gzr_channel_read`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_channel_poll(channel: *mut c_void) -> *mut c_void {
    // SAFETY: as above.
    unsafe { Arc::<Channel>::borrow_raw(&channel) }.poll()
}

/// It is closed.
///
/// # Safety
/// `channel` is the file's private data, not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_channel_release(channel: *mut c_void) {
    // SAFETY: the file's reference passes to us.
    unsafe { Arc::<Channel>::from_raw(channel) }.close();
}

/// A vCPU's file is closed.
///
/// # Safety
/// `vcpu` is the file's private data, not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_vcpu_release(vcpu: *mut c_void) {
    // SAFETY: the file's box passes to us.
    drop(unsafe { KBox::<VcpuFile>::from_raw(vcpu) });
}

/// Someone maps these pages of a file of guest memory: 0, or a negative errno if it has no such pages.
///
/// # Safety
/// `memory` is the file's private data, and the file is open.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_memory_map(memory: *mut c_void, page: u64, pages: u64) -> i32 {
    // SAFETY: the file owns it, and is open during the call.
    let memory = unsafe { &*memory.cast::<GuestMemory>() };
    memory.check_map(page, pages).map_or_else(|e| e.to_errno(), |()| 0)
}

/// Bytes of a file of guest memory.
///
/// # Safety
/// As [`gzr_memory_map`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_memory_size(memory: *mut c_void) -> u64 {
    // SAFETY: the file owns it, and is open during the call.
    unsafe { &*memory.cast::<GuestMemory>() }.size()
}

/// User space touched a page of a mapping that is not there. 0: it is now.
///
/// # Safety
/// As [`gzr_memory_map`]; `fault` is what `gzk_memory_insert` takes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_memory_fault(memory: *mut c_void, page: u64, fault: *mut c_void) -> i32 {
    // SAFETY: the file owns it, and is open during the call.
    let memory = unsafe { &*memory.cast::<GuestMemory>() };
    // SAFETY: by the caller's promise.
    let mut fault = unsafe { UserFault::from_raw(fault) };
    memory.fault(page, |pfn| fault.insert(pfn)).map_or_else(|e| e.to_errno(), |()| 0)
}

/// A file of guest memory is closed, and no mapping of it is left.
///
/// # Safety
/// `memory` is the file's private data, not used again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_memory_release(memory: *mut c_void) {
    // SAFETY: the file's box passes to us.
    drop(unsafe { KBox::<GuestMemory>::from_raw(memory) });
}

/// A watched eventfd was signalled. Atomic context.
///
/// # Safety
/// `owner` was given to `gzk_irqfd_watch`, and `gzk_irqfd_free` has not returned since.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_irqfd_signalled(owner: *mut c_void) {
    // SAFETY: an irqfd frees its watch before itself.
    unsafe { &*owner.cast::<IrqFd>() }.signalled();
}

/// A watched eventfd is gone. On the workqueue.
///
/// # Safety
/// As [`gzr_irqfd_signalled`]; the watch may be freed during the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_irqfd_hangup(owner: *mut c_void) {
    let owner = owner.cast::<IrqFd>();
    // The reference to the irqfd ends with this statement; that to the VM lasts to the end.
    // SAFETY: whoever ends an irqfd waits for this call, unless it is this call.
    let vm = Arc::clone(unsafe { &*owner }.vm());
    vm.irqfds().hangup(owner);
}

/// Someone reads debugfs' `counters`.
///
/// # Safety
/// `seq` is the kernel's `seq_file`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gzr_counters_show(seq: *mut c_void) {
    // SAFETY: by the caller's promise.
    counters::show(&mut unsafe { SeqFile::from_raw(seq) });
}
