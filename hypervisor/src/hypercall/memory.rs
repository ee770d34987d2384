// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SET_MEMREGION, MEMREGION_PURPOSE, MAP_GUEST, MAP_GUEST_BLOCK, UNMAP_GUEST, REMOVE_MEMREGION, GIVE_MEMORY, SET_DTB_CONFIG.

use gzvm_abi::hypercall::REGION_BUFFER_SIZE;
use gzvm_core::addr::{BLOCK_2M, Ipa, PAGE_SIZE, Pa};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::memory::given::MOST_BLOCKS;
use gzvm_core::memory::slots::{RegionBuffer, SetRegion};
use gzvm_core::memory::stage2::Progress;
use gzvm_core::memory::{IpaRange, PaRange};
use gzvm_core::vm::lifecycle::Gate;

use super::{Args, Error, Results};
use crate::guest::memory::VmMemory;
use crate::guest::registry;
use crate::mem::host;
use crate::platform;

/// Pages that one MAP_GUEST or MAP_GUEST_BLOCK maps at the most.
pub const MOST_PAGES: u64 = 512;

/// Pages that one populating SET_MEMREGION maps at the most: a bound on the time of the call.
const MOST_POPULATED: u64 = 32768;

/// Pages that one UNMAP_GUEST or REMOVE_MEMREGION takes back at the most; of a block of 2 MiB, all.
const MOST_UNMAPPED: u64 = 32;

/// MEMREGION_PURPOSE: x1 = VM, x2 = GPA, x3 = bytes, x4 = flags.
pub fn announce([id, gpa, size, flags, ..]: Args) -> Result<Results, Error> {
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    vm.memory.lock().slots.announce(Ipa(gpa), size, flags).map_err(|_| Error::Invalid)?;
    Ok([0; 3])
}

/// SET_MEMREGION: x1 = VM, x2 = buffer bytes, x3 = PA of the buffer. The first call for a slot
/// registers it; later ones populate it with the buffer's constituents.
pub fn set_region([id, size, pa, ..]: Args) -> Result<Results, Error> {
    if size != REGION_BUFFER_SIZE {
        return Err(Error::Invalid);
    }
    // One copy; what the host writes meanwhile is not looked at.
    let mut copy = [0u8; REGION_BUFFER_SIZE as usize];
    host::read(&platform::ownership().lock(), Pa(pa), &mut copy).map_err(|_| Error::Fault)?;
    let buffer = RegionBuffer::parse(&copy).map_err(|_| Error::Invalid)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let mut memory = vm.memory.lock();
    match memory.slots.set_region(buffer.header()).map_err(|_| Error::Invalid)? {
        SetRegion::Registered(_) => Ok([0; 3]),
        SetRegion::Populate(..) if buffer.header().total_pages > MOST_POPULATED => Err(Error::Invalid),
        SetRegion::Populate(..) => {
            let mut again = [0; REGION_BUFFER_SIZE as usize];
            let buffer = if broken(Mistake::BufferAgain) {
                host::read(&platform::ownership().lock(), Pa(pa), &mut again).map_err(|_| Error::Fault)?;
                RegionBuffer::parse(&again).map_err(|_| Error::Invalid)?
            } else {
                buffer
            };
            let constituents = buffer.constituents().map_err(|_| Error::Invalid)?;
            for run in constituents {
                let (ipa, pa) = run;
                memory.map(ipa, pa.start())?;
            }
            Ok([0; 3])
        }
    }
}

/// MAP_GUEST: x1 = VM, x2 = slot, x3 = host PFN, x4 = guest GFN, x5 = pages.
pub fn map([id, slot, pfn, gfn, pages, ..]: Args) -> Result<Results, Error> {
    if pages == 0 || pages > MOST_PAGES {
        return Err(Error::Invalid);
    }
    let slot = u32::try_from(slot).map_err(|_| Error::Invalid)?;
    let pa = Pa::from_frame(pfn).ok_or(Error::Invalid)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let mut memory = vm.memory.lock();
    let ipa = memory.slots.pages_of(slot, gfn, pages).map_err(|_| Error::Invalid)?;
    memory.map(ipa, pa)?;
    Ok([0; 3])
}

/// MAP_GUEST_BLOCK: x1 = VM, x2 = slot, x3 = first GFN, x4 = pages (0: 512); PFNs in the mailbox.
pub fn map_block([id, slot, gfn, pages, ..]: Args) -> Result<Results, Error> {
    let pages = if pages == 0 { MOST_PAGES } else { pages };
    if pages > MOST_PAGES {
        return Err(Error::Invalid);
    }
    let slot = u32::try_from(slot).map_err(|_| Error::Invalid)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let mut memory = vm.memory.lock();
    let ipa = memory.slots.pages_of(slot, gfn, pages).map_err(|_| Error::Invalid)?;
    let mut frames = [0u64; MOST_PAGES as usize];
    let frames = &mut frames[..pages as usize];
    let mailbox = memory.mailbox.as_ref().ok_or(Error::Invalid)?;
    mailbox.read(0, zerocopy::IntoBytes::as_mut_bytes(frames));
    map_runs(&mut memory, ipa, frames)?;
    Ok([0; 3])
}

/// Maps pages at `ipa`, contiguous ones in one go so that they can become blocks.
fn map_runs(memory: &mut VmMemory, ipa: IpaRange, frames: &[u64]) -> Result<(), Error> {
    let mut at = ipa.start().0;
    for run in frames.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        let Some(pa) = run.first().and_then(|f| Pa::from_frame(*f)) else { return Err(Error::Invalid) };
        let bytes = (run.len() as u64).wrapping_mul(PAGE_SIZE);
        let part = IpaRange::new(Ipa(at), bytes).map_err(|_| Error::Invalid)?;
        memory.map(part, pa)?;
        at = at.wrapping_add(bytes);
    }
    Ok(())
}

/// GIVE_MEMORY: x1 = VM, x2 = first PFN of 2 MiB of the host's, for the VM's tables. Results: how many such blocks it has; with
/// x1 = x2 = 0, how many a VM may have.
pub fn give([id, pfn, ..]: Args) -> Result<Results, Error> {
    if (id, pfn) == (0, 0) {
        return Ok([MOST_BLOCKS as u64, 0, 0]);
    }
    let block = Pa::from_frame(pfn).and_then(|pa| PaRange::new(pa, BLOCK_2M).ok()).ok_or(Error::Invalid)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    if vm.life.gate() == Gate::Gone {
        return Err(Error::Invalid);
    }
    let blocks = vm.memory.lock().take_for_tables(block)?;
    Ok([blocks, 0, 0])
}

/// UNMAP_GUEST: x1 = VM, x2 = first GFN, x3 = pages, all in one slot. Busy: the same call again goes on. When
/// it succeeds, no vCPU reaches the pages any more, also one that runs, and they are the host's alone.
pub fn unmap([id, gfn, pages, ..]: Args) -> Result<Results, Error> {
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let mut memory = vm.memory.lock();
    let range = memory.slots.pages_of_any(gfn, pages).map_err(|_| Error::Invalid)?;
    match memory.unmap_step(range, MOST_UNMAPPED)? {
        Progress::More => Err(Error::Busy),
        Progress::Done => Ok([0; 3]),
    }
}

/// REMOVE_MEMREGION: x1 = VM, x2 = slot. Busy: call again; the slot is there until it succeeds.
pub fn remove_region([id, slot, ..]: Args) -> Result<Results, Error> {
    let slot = u32::try_from(slot).map_err(|_| Error::Invalid)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let mut memory = vm.memory.lock();
    let range = memory.slots.by_number(slot).map_err(|_| Error::Invalid)?.range;
    match memory.unmap_step(range, MOST_UNMAPPED)? {
        Progress::More => Err(Error::Busy),
        Progress::Done => {
            memory.slots.remove(slot).map_err(|_| Error::Invalid)?;
            Ok([0; 3])
        }
    }
}

/// SET_DTB_CONFIG: x1 = VM, x2 = GPA, x3 = bytes. Plain VMs need no help with their device tree.
pub fn device_tree([id, _gpa, _size, ..]: Args) -> Result<Results, Error> {
    registry::get(id)?;
    Ok([0; 3])
}
