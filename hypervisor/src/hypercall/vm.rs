// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CREATE_VM, DESTROY_VM, GET_STATISTICS, INFORM_EXIT.

use core::sync::atomic::Ordering;

use gzvm_core::memory::stage2::Progress;

use super::{Args, Error, Results};
use crate::guest::registry;

/// Most pages that one DESTROY_VM call works off, whatever the host asks.
const MOST_PER_CALL: u64 = 4096;
/// And for hosts that say nothing (before generation F).
const DEFAULT_PER_CALL: u64 = 512;

/// CREATE_VM: x1 = type; only type 0 exists. Result x1 = id.
pub fn create([kind, ..]: Args) -> Result<Results, Error> {
    if kind != 0 {
        return Err(Error::Invalid);
    }
    let id = registry::create()?;
    Ok([u64::from(id.0), 0, 0])
}

/// DESTROY_VM: x1 = id, x2 = pages per call. Busy: call again.
pub fn destroy([id, pages, ..]: Args) -> Result<Results, Error> {
    let budget = if pages == 0 { DEFAULT_PER_CALL } else { pages.min(MOST_PER_CALL) };
    // Whoever is inside is told to leave; nobody comes in any more.
    if let Ok(vm) = registry::get(id)
        && let Some(vm) = vm.vm()
    {
        vm.condemn();
    }
    let mut slot = registry::lock_for_destruction(id)?;
    let Some(vm) = slot.as_deref_mut() else { return Err(Error::Invalid) };
    match vm.destroy_step(budget) {
        Progress::More => Err(Error::Busy),
        Progress::Done => {
            *slot = None;
            registry::VMS.fetch_sub(1, Ordering::Relaxed);
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
