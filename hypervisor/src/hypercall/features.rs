// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VM_FEATURES: what a VM is given beyond what all have.

use core::sync::atomic::Ordering;

use gzvm_abi::hypercall::vm_feature::SVE;

use super::{Args, Error, Results};
use crate::arch::fp;
use crate::guest::registry;

/// VM_FEATURES: x1 = VM id, x2 = mask; 0 and 0 ask. Result: those that the machine has. Invalid: unknown ones, or
/// the VM has had a vCPU; not supported: the machine lacks one.
pub fn give([id, mask, ..]: Args) -> Result<Results, Error> {
    let have = if fp::sve_everywhere() { SVE } else { 0 };
    if mask & !SVE != 0 {
        return Err(Error::Invalid);
    }
    if mask & !have != 0 {
        return Err(Error::NotSupported);
    }
    if (id, mask) != (0, 0) {
        let vm = registry::get(id)?;
        let vm = vm.vm().ok_or(Error::Invalid)?;
        // Nobody adds a vCPU meanwhile.
        vm.life.hold(|_| {
            if vm.vcpu_count.load(Ordering::SeqCst) != 0 {
                return Err(Error::Invalid);
            }
            vm.sve.store(mask & SVE != 0, Ordering::SeqCst);
            Ok(())
        })?;
    }
    Ok([have, 0, 0])
}
