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

    /// Unpins the page under `gfn`, if there is one.
    pub fn release(&mut self, gfn: u64) -> bool {
        let (number, index) = split(gfn);
        let Some(block) = self.block_mut(number) else { return false };
        let Some(entry) = block.entries.get_mut(index) else { return false };
        let Some(pfn) = core::mem::take(entry).checked_sub(1) else { return false };
        block.used = block.used.saturating_sub(1);
        PINNED_PAGES.sub(1);
        mm::unpin(&mut [pfn]);
        true
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
