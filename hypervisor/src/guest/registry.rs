// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The VMs that exist.
//!
//! A VM's id is its VMID. Up to [`NARROW_VMS`] of them fit the eight bits that every CPU has; the ids above are used when those are
//! taken, and where all CPUs have sixteen.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use gzvm_core::addr::VmId;
use gzvm_core::memory::stage2::Progress;
use spin::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::vm::{CreateError, Vm};
use crate::arch::decision::WIDE_VMIDS;
use crate::mem::boxed::PageBox;

/// Most VMs at a time.
pub const MAX_VMS: usize = 1023;
/// VMIDs 1..=255 exist on every CPU.
const NARROW_VMS: usize = 255;

type Slot = RwLock<Option<PageBox<Vm>>>;

static SLOTS: [Slot; MAX_VMS] = [const { RwLock::new(None) }; MAX_VMS];
/// Where the search for a free slot begins: ids are not reused at once. And in the wide part.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static NEXT_WIDE: AtomicUsize = AtomicUsize::new(0);
/// VMs with narrow ids.
static NARROW: AtomicUsize = AtomicUsize::new(0);

/// VMs and vCPUs that exist, for the counters.
pub static VMS: AtomicU64 = AtomicU64::new(0);
/// See [`VMS`].
pub static VCPUS: AtomicU64 = AtomicU64::new(0);

/// VMs that are [abandoned](Vm::abandoned).
static ABANDONED: AtomicUsize = AtomicUsize::new(0);
/// Where the next search for one begins: none waits for another.
static NEXT_ABANDONED: AtomicUsize = AtomicUsize::new(0);

/// A VM that can't go away while this is held.
pub struct VmRef {
    guard: RwLockReadGuard<'static, Option<PageBox<Vm>>>,
}

impl VmRef {
    /// The VM.
    pub fn vm(&self) -> Option<&Vm> {
        self.guard.as_deref()
    }
}

fn slot(id: u64) -> Option<&'static Slot> {
    let index = usize::try_from(id).ok()?.checked_sub(1)?;
    SLOTS.get(index)
}

/// Why a VM can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// There is none with this id.
    NoVm,
    /// It is being taken apart just now.
    Busy,
}

/// The VM with this id. Its slot's [`VmRef::vm`] is never empty.
pub fn get(id: u64) -> Result<VmRef, LookupError> {
    let slot = slot(id).ok_or(LookupError::NoVm)?;
    let guard = slot.try_read().ok_or(LookupError::Busy)?;
    if guard.is_none() { Err(LookupError::NoVm) } else { Ok(VmRef { guard }) }
}

/// Makes a VM.
pub fn create() -> Result<VmId, CreateError> {
    // With hundreds of VMs nobody looks at hundreds of slots for nothing.
    let narrow = match NARROW.load(Ordering::Relaxed) {
        ..NARROW_VMS => create_among(0, NARROW_VMS, &NEXT),
        _ => Err(CreateError::TooMany),
    };
    match narrow {
        Err(CreateError::TooMany) if WIDE_VMIDS.rely() => {
            create_among(NARROW_VMS, MAX_VMS - NARROW_VMS, &NEXT_WIDE)
        }
        other => other,
    }
}

/// Makes a VM in one of `count` slots from `first` on.
fn create_among(first: usize, count: usize, next: &AtomicUsize) -> Result<VmId, CreateError> {
    let start = next.fetch_add(1, Ordering::Relaxed);
    for n in 0..count {
        let index = first + start.wrapping_add(n) % count;
        // A VM that exists is not locked for writing, not even for a moment: a call that comes in meanwhile would miss it.
        if SLOTS[index].try_read().is_none_or(|slot| slot.is_some()) {
            continue;
        }
        let Some(mut guard) = SLOTS[index].try_write() else { continue };
        if guard.is_none() {
            let id = VmId(index as u16 + 1);
            *guard = Some(Vm::new(id)?);
            VMS.fetch_add(1, Ordering::Relaxed);
            if index < NARROW_VMS {
                NARROW.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(id);
        }
    }
    Err(CreateError::TooMany)
}

/// The slot of a VM for taking it apart, if nobody is inside it.
pub fn lock_for_destruction(id: u64) -> Result<RwLockWriteGuard<'static, Option<PageBox<Vm>>>, LookupError> {
    let slot = slot(id).ok_or(LookupError::NoVm)?;
    let guard = slot.try_write().ok_or(LookupError::Busy)?;
    if guard.is_none() { Err(LookupError::NoVm) } else { Ok(guard) }
}

/// A step of taking the VM in a locked slot apart; the slot is empty when it is done.
pub fn destroy_step(slot: &mut Option<PageBox<Vm>>, budget: u64) -> Progress {
    let Some(vm) = slot.as_deref_mut() else { return Progress::Done };
    let progress = vm.destroy_step(budget);
    if progress == Progress::Done {
        if vm.abandoned.load(Ordering::Relaxed) {
            ABANDONED.fetch_sub(1, Ordering::Relaxed);
        }
        if usize::from(vm.party.id.0) <= NARROW_VMS {
            NARROW.fetch_sub(1, Ordering::Relaxed);
        }
        *slot = None;
        VMS.fetch_sub(1, Ordering::Relaxed);
    }
    progress
}

/// The driver will not ask for the VM again.
pub fn abandon(vm: &Vm) {
    if !vm.abandoned.swap(true, Ordering::Relaxed) {
        ABANDONED.fetch_add(1, Ordering::Relaxed);
    }
}

/// A step of taking apart one of the VMs whose driver has called DESTROY_VM and does not come again.
pub fn work_off(budget: u64) {
    if ABANDONED.load(Ordering::Relaxed) == 0 {
        return;
    }
    let start = NEXT_ABANDONED.fetch_add(1, Ordering::Relaxed);
    let abandoned =
        |vm: &Option<PageBox<Vm>>| vm.as_deref().is_some_and(|vm| vm.abandoned.load(Ordering::Relaxed));
    for n in 0..MAX_VMS {
        let slot = &SLOTS[start.wrapping_add(n) % MAX_VMS];
        // For others not even for a moment, as above.
        if !slot.try_read().is_some_and(|vm| abandoned(&vm)) {
            continue;
        }
        if let Some(mut vm) = slot.try_write()
            && abandoned(&vm)
        {
            let _ = destroy_step(&mut vm, budget);
            return;
        }
    }
}
