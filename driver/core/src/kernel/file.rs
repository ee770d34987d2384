// SPDX-License-Identifier: GPL-2.0-only
//! File descriptors of VMs and vCPUs.

use super::error::{Error, Result};
use super::{Arc, KBox};
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
