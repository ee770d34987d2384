// SPDX-License-Identifier: GPL-2.0-only
//! Which page of the host lies under which page of a slot.
//!
//! A two-level table: blocks of 512 pages (2 MiB, aligned in guest space), 8 bytes a page, allocated on the first touch.
//!
//! Invariant: an entry stands for exactly one pin. Dropping the table unpins everything; so it must only be dropped when
//! the hypervisor has let go of the pages.

use core::cell::Cell;

use zerocopy::FromZeros;

use crate::counters::PINNED_PAGES;
use crate::device::BLOCK_PAGES;
use crate::kernel::{KBox, KVec, Result, code, mm, task};

/// Pages that are unpinned together.
const UNPIN_BATCH: usize = 64;

#[derive(FromZeros)]
#[repr(C)]
struct Block {
    /// Entries that are not zero.
    used: u64,
    /// PFN + 1, or 0 for nothing.
    entries: [u64; BLOCK_PAGES as usize],
}

/// The pins of one slot.
pub struct Pins {
    first_block: u64,
    blocks: KVec<Option<KBox<Block>>>,
}

/// Number of the block of a guest page, and the page's index in it.
fn split(gfn: u64) -> (u64, usize) {
    (gfn / BLOCK_PAGES, (gfn % BLOCK_PAGES) as usize)
}

impl Pins {
    /// None yet, for the guest pages `[gfn, gfn + pages)`.
    pub fn new(gfn: u64, pages: u64) -> Result<Self> {
        let first_block = gfn / BLOCK_PAGES;
        let last = gfn.checked_add(pages).and_then(|end| end.checked_sub(1)).ok_or(code::EINVAL)?;
        let n = (last / BLOCK_PAGES).saturating_sub(first_block).saturating_add(1);
        let n = usize::try_from(n).map_err(|_| code::ENOMEM)?;
        Ok(Self { first_block, blocks: KVec::filled(n, || None)? })
    }

    fn place(&self, block: u64) -> Option<usize> {
        block.checked_sub(self.first_block)?.try_into().ok()
    }

    fn block(&self, block: u64) -> Option<&Block> {
        self.blocks.get(self.place(block)?)?.as_deref()
    }

    fn block_mut(&mut self, block: u64) -> Option<&mut Block> {
        let place = self.place(block)?;
        self.blocks.get_mut(place)?.as_deref_mut()
    }

    /// Allocates what recording pins in the block of `gfn` needs.
    pub fn prepare(&mut self, gfn: u64) -> Result {
        let place = self.place(split(gfn).0).ok_or(code::EINVAL)?;
        let slot = self.blocks.get_mut(place).ok_or(code::EINVAL)?;
        if slot.is_none() {
            *slot = Some(KBox::zeroed()?);
        }
        Ok(())
    }

    /// Is nothing pinned in the block of `gfn`?
    pub fn block_is_empty(&self, gfn: u64) -> bool {
        self.block(split(gfn).0).is_none_or(|b| b.used == 0)
    }

    /// The PFN under `gfn`.
    pub fn get(&self, gfn: u64) -> Option<u64> {
        let (block, index) = split(gfn);
        self.block(block)?.entries.get(index)?.checked_sub(1)
    }

    /// Records pins under the pages from `gfn` on, which have none and lie in one [prepared](Self::prepare) block. If that is
    /// not so, EINVAL or EEXIST: all of them stay the caller's.
    pub fn record(&mut self, gfn: u64, pfns: &[u64]) -> Result {
        let (number, index) = split(gfn);
        let block = self.block_mut(number).ok_or(code::EINVAL)?;
        let end = index.checked_add(pfns.len()).ok_or(code::EINVAL)?;
        let entries = block.entries.get_mut(index..end).ok_or(code::EINVAL)?;
        if entries.iter().any(|&e| e != 0) || pfns.contains(&u64::MAX) {
            return Err(code::EEXIST);
        }
        for (entry, pfn) in entries.iter_mut().zip(pfns) {
            *entry = pfn.wrapping_add(1);
        }
        block.used = block.used.saturating_add(pfns.len() as u64);
        PINNED_PAGES.add(pfns.len() as u64);
        Ok(())
    }

    /// Unpins what there is under `pages` pages from `gfn` on, which lie in one block.
    pub fn release(&mut self, gfn: u64, pages: u64) {
        let (number, index) = split(gfn);
        let Some(place) = self.place(number) else { return };
        let Some(slot) = self.blocks.get_mut(place) else { return };
        let Some(block) = slot.as_deref_mut() else { return };
        let end = index.saturating_add(pages as usize).min(block.entries.len());
        for entries in block.entries.get_mut(index..end).unwrap_or_default().chunks_mut(UNPIN_BATCH) {
            let mut pfns = [0; UNPIN_BATCH];
            let mut n = 0;
            for pfn in entries.iter_mut().filter_map(|e| core::mem::take(e).checked_sub(1)) {
                if let Some(to) = pfns.get_mut(n) {
                    *to = pfn;
                    n += 1;
                }
            }
            block.used = block.used.saturating_sub(n as u64);
            PINNED_PAGES.sub(n as u64);
            mm::unpin(pfns.get_mut(..n).unwrap_or_default());
        }
        if block.used == 0 {
            *slot = None;
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // PFNs move to the front of the array that held them.
        let cells = Cell::from_mut(self.entries.as_mut_slice()).as_slice_of_cells();
        let mut to = cells.iter();
        let mut n = 0;
        for pfn in cells.iter().filter_map(|e| e.get().checked_sub(1)) {
            if let Some(to) = to.next() {
                to.set(pfn);
                n += 1;
            }
        }
        mm::unpin(self.entries.get_mut(..n).unwrap_or_default());
        PINNED_PAGES.sub(n as u64);
        task::cond_resched();
    }
}
