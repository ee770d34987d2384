// SPDX-License-Identifier: GPL-2.0-only
//! File descriptors of VMs, vCPUs, and guest memory.

use core::ffi::c_void;
use core::ops::Deref;
use core::ptr::{self, NonNull};

use super::error::{Error, Result};
use super::{Arc, KBox};
use crate::channel::Channel;
use crate::guest_memory::GuestMemory;
use crate::sys;
use crate::vm::{VcpuFile, Vm};

/// A new descriptor that owns the reference.
pub fn vm_fd(vm: Arc<Vm>) -> Result<i64> {
    let raw = vm.into_raw();
    // SAFETY: the file gets the reference, and gives it back in gzr_vm_release.
    match Error::check(unsafe { sys::gzk_vm_fd(raw) }) {
        Ok(fd) => Ok(fd.into()),
        Err(e) => {
            // SAFETY: the reference stayed ours.
            drop(unsafe { Arc::<Vm>::from_raw(raw) });
            Err(e)
        }
    }
}

/// The VM whose file this descriptor is. EBADF, EINVAL.
pub fn vm_of(fd: i32) -> Result<Arc<Vm>> {
    let (mut file, mut vm) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: both are valid for a write.
    Error::check(unsafe { sys::gzk_vm_get(fd, &mut file, &mut vm) })?;
    // SAFETY: the file's reference, which we hold the file for.
    let found = Arc::clone(unsafe { Arc::<Vm>::borrow_raw(&vm) });
    // SAFETY: the reference that gzk_vm_get took.
    unsafe { sys::gzk_vm_put(file) };
    Ok(found)
}

/// A new descriptor that owns the reference.
pub fn channel_fd(channel: Arc<Channel>) -> Result<i64> {
    let raw = channel.into_raw();
    // SAFETY: the file gets the reference, and gives it back in gzr_channel_release.
    match Error::check(unsafe { sys::gzk_channel_fd(raw) }) {
        Ok(fd) => Ok(fd.into()),
        Err(e) => {
            // SAFETY: the reference stayed ours.
            drop(unsafe { Arc::<Channel>::from_raw(raw) });
            Err(e)
        }
    }
}

/// A new descriptor that owns the box.
pub fn vcpu_fd(index: u32, vcpu: KBox<VcpuFile>) -> Result<i64> {
    let raw = vcpu.into_raw();
    // SAFETY: the file gets the box, and gives it back in gzr_vcpu_release.
    match Error::check(unsafe { sys::gzk_vcpu_fd(index, raw) }) {
        Ok(fd) => Ok(fd.into()),
        Err(e) => {
            // SAFETY: the box stayed ours.
            drop(unsafe { KBox::<VcpuFile>::from_raw(raw) });
            Err(e)
        }
    }
}

/// A new descriptor that owns the box.
pub fn memory_fd(memory: KBox<GuestMemory>) -> Result<i64> {
    let raw = memory.into_raw();
    // SAFETY: the file gets the box, and gives it back in gzr_memory_release.
    match Error::check(unsafe { sys::gzk_memory_fd(raw) }) {
        Ok(fd) => Ok(fd.into()),
        Err(e) => {
            // SAFETY: the box stayed ours.
            drop(unsafe { KBox::<GuestMemory>::from_raw(raw) });
            Err(e)
        }
    }
}

/// A reference to a file of guest memory, which keeps it open.
///
/// # Invariants
/// The pointer is such a file, and this is one of its references.
pub struct MemoryFile(NonNull<c_void>);

// SAFETY: reference-counted by the kernel.
unsafe impl Send for MemoryFile {}
// SAFETY: the object behind it is Sync, and the shim's calls may come from anywhere.
unsafe impl Sync for MemoryFile {}

impl MemoryFile {
    /// # Safety
    /// `file` is a file of guest memory, and its reference passes to us.
    pub unsafe fn from_raw(file: NonNull<c_void>) -> Self {
        Self(file)
    }

    /// Takes pages out of all mappings of user space.
    pub fn unmap(&self, page: u64, pages: u64) {
        // SAFETY: type invariant.
        unsafe { sys::gzk_memory_unmap(self.0.as_ptr(), page, pages) }
    }
}

impl Deref for MemoryFile {
    type Target = GuestMemory;
    fn deref(&self) -> &GuestMemory {
        // SAFETY: the object lives as long as its file, of which we hold a reference.
        unsafe { &*sys::gzk_memory_of(self.0.as_ptr()).cast::<GuestMemory>() }
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and not used again.
        unsafe { sys::gzk_memory_put(self.0.as_ptr()) }
    }
}

/// An access of user space that waits for its page.
pub struct UserFault(*mut c_void);

impl UserFault {
    /// # Safety
    /// `fault` came with `gzr_memory_fault`, which has not returned while this value lives.
    pub unsafe fn from_raw(fault: *mut c_void) -> Self {
        Self(fault)
    }

    /// Maps the page there.
    pub fn insert(&mut self, pfn: u64) -> Result {
        // SAFETY: by the type's promise.
        Error::check(unsafe { sys::gzk_memory_insert(self.0, pfn) }).map(drop)
    }
}
