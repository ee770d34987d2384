// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CREATE_VM, DESTROY_VM, GET_STATISTICS, INFORM_EXIT.

use gzvm_core::memory::stage2::Progress;

use super::{Args, Error, Results};
use crate::guest::registry;

/// Most pages that one DESTROY_VM call works off, whatever the host asks; as many where it says nothing (before generation F).
pub const MOST_PER_CALL: u64 = 96;

/// CREATE_VM: x1 = type; only type 0 exists. Result x1 = id.
pub fn create([kind, ..]: Args) -> Result<Results, Error> {
    if kind != 0 {
        return Err(Error::Invalid);
    }
    registry::work_off(MOST_PER_CALL);
    let id = registry::create()?;
    Ok([u64::from(id.0), 0, 0])
}

/// DESTROY_VM: x1 = id, x2 = pages per call. Busy: call again. Drivers before generation F say no number, and do not call
/// again: what they leave is worked off by CREATE_VM and CREATE_VCPU, and here.
pub fn destroy([id, pages, ..]: Args) -> Result<Results, Error> {
    let budget = if pages == 0 { MOST_PER_CALL } else { pages.min(MOST_PER_CALL) };
    // Whoever is inside is told to leave; nobody comes in any more.
    if let Ok(vm) = registry::get(id)
        && let Some(vm) = vm.vm()
    {
        vm.condemn();
        if pages == 0 {
            registry::abandon(vm);
        }
    }
    let mut slot = registry::lock_for_destruction(id)?;
    match registry::destroy_step(&mut slot, budget) {
        Progress::More => Err(Error::Busy),
        Progress::Done => {
            drop(slot);
            if pages == 0 {
                registry::work_off(MOST_PER_CALL);
            }
            Ok([0; 3])
        }
    }
}

/// GET_STATISTICS: x1 = id. Results: bytes spent on the VM, bytes shared with it.
pub fn statistics([id, ..]: Args) -> Result<Results, Error> {
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    Ok([vm.metadata_bytes(), 0, 0])
}

/// INFORM_EXIT: x1 = id. The hypervisor has nothing to do about it.
pub fn inform_exit([id, ..]: Args) -> Result<Results, Error> {
    registry::get(id)?;
    Ok([0; 3])
}
