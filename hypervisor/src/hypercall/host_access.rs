// SPDX-License-Identifier: Apache-2.0 OR MIT
//! HOST_ACCESS: for a driver that takes a protected VM's pages out of the host's mappings before they leave its stage 2.

use gzvm_abi::hypercall::host_access;
use gzvm_core::addr::{PAGE_SIZE, Pa};
use gzvm_core::memory::ownership::State;

use super::{Args, Error, Results, tuple};
use crate::guest::registry;
use crate::guest::vcpu::Pending;
use crate::host;
use crate::platform;

/// HOST_ACCESS: x1 = what, see [`host_access`].
pub fn host_access([what, x2, x3, ..]: Args) -> Result<Results, Error> {
    match what {
        host_access::QUERY => query(x2, x3),
        host_access::ANNOUNCE => {
            let vm = registry::get(x2)?;
            vm.vm().ok_or(Error::Invalid)?.memory.lock().announce_unshare();
            Ok([0; 3])
        }
        host_access::UNSHARE => {
            let (vm, n) = tuple(x2)?;
            let vm = vm.vm().ok_or(Error::Invalid)?;
            let slot = vm.vcpus.get(usize::from(n)).ok_or(Error::Invalid)?;
            let mut slot = slot.try_lock().ok_or(Error::Busy)?;
            let vcpu = slot.as_deref_mut().ok_or(Error::Invalid)?;
            let Some(Pending::Unshare(ipa)) = vcpu.pending else { return Err(Error::Invalid) };
            vcpu.finish_unshare(vm, ipa);
            Ok([0; 3])
        }
        _ => Err(Error::Invalid),
    }
}

/// Of `pages` pages from `pfn` on: the mask of those that the host may access, and of those that are its alone. It learns
/// no more than by touching them.
fn query(pfn: u64, pages: u64) -> Result<Results, Error> {
    if pages == 0 || pages > host_access::MOST {
        return Err(Error::Invalid);
    }
    let first = Pa::from_frame(pfn).ok_or(Error::Invalid)?;
    let ownership = platform::ownership().lock();
    let (mut visible, mut own) = (0u64, 0u64);
    for n in 0..pages {
        let state = ownership.state(Pa(first.0.wrapping_add(n.wrapping_mul(PAGE_SIZE))));
        let state = state.map_err(|_| Error::Invalid)?;
        visible |= u64::from(host::sees(state)) << n;
        own |= u64::from(state == State::Host) << n;
    }
    Ok([visible, own, 0])
}
