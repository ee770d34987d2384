// SPDX-License-Identifier: GPL-2.0-only
//! Which page of the host lies under which page of a slot.
//!
//! A two-level table: blocks of 512 pages (2 MiB, aligned in guest space), 8 bytes a page, allocated on the first touch.
//!
//! Invariant: an entry stands for exactly one page taken from the slot's [`Source`]. Dropping the table gives everything
//! back; so it must only be dropped when the hypervisor has let go of the pages.

use gzvm_abi::PAGE_SIZE;
use zerocopy::FromZeros;

use crate::broken::{Mistake, broken};
use crate::counters::PINNED_PAGES;
use crate::device::BLOCK_PAGES;
use crate::kernel::file::MemoryFile;
use crate::kernel::{KBox, KVec, Result, code, mm, task};

/// Where a slot's pages come from.
pub enum Source {
    /// Whatever the creator has mapped from this address on; pinned.
    User(u64),
    /// A file of guest memory, from this page on.
    File(MemoryFile, u64),
}

impl Source {
    /// Takes pages from the slot's page `n` on. How many, at least one; their PFNs are in `pfns` then.
    fn take(&self, n: u64, pfns: &mut [u64]) -> Result<usize> {
        match self {
            Self::User(address) => {
                let offset = n.checked_mul(PAGE_SIZE).ok_or(code::EFAULT)?;
                let got = mm::pin(address.checked_add(offset).ok_or(code::EFAULT)?, pfns)?;
                PINNED_PAGES.add(got as u64);
                Ok(got)
            }
            Self::File(file, first) => file.take(first.saturating_add(n), pfns),
        }
    }

    /// Gives back what was taken; overwrites the PFNs.
    fn put(&self, n: u64, pfns: &mut [u64]) {
        match self {
            Self::User(_) if broken(Mistake::KeepPins) => {}
            Self::User(_) => {
                PINNED_PAGES.sub(pfns.len() as u64);
                mm::unpin(pfns);
            }
            Self::File(file, first) => file.put(first.saturating_add(n), pfns.len() as u64),
        }
    }
}

#[derive(FromZeros)]
#[repr(C)]
struct Block {
    /// Entries that are not zero.
    used: u64,
    /// PFN + 1, or 0 for nothing.
    entries: [u64; BLOCK_PAGES as usize],
}

/// The pages of one slot.
pub struct Pins {
    gfn: u64,
    source: Source,
    blocks: KVec<Option<KBox<Block>>>,
}

/// Number of the block of a guest page, and the page's index in it.
fn split(gfn: u64) -> (u64, usize) {
    (gfn / BLOCK_PAGES, (gfn % BLOCK_PAGES) as usize)
}

impl Pins {
    /// None yet, for the guest pages `[gfn, gfn + pages)`.
    pub fn new(gfn: u64, pages: u64, source: Source) -> Result<Self> {
        let first_block = gfn / BLOCK_PAGES;
        let last = gfn.checked_add(pages).and_then(|end| end.checked_sub(1)).ok_or(code::EINVAL)?;
        let n = (last / BLOCK_PAGES).saturating_sub(first_block).saturating_add(1);
        let n = usize::try_from(n).map_err(|_| code::ENOMEM)?;
        Ok(Self { gfn, source, blocks: KVec::filled(n, || None)? })
    }

    fn place(&self, block: u64) -> Option<usize> {
        block.checked_sub(self.gfn / BLOCK_PAGES)?.try_into().ok()
    }

    fn block(&self, block: u64) -> Option<&Block> {
        self.blocks.get(self.place(block)?)?.as_deref()
    }

    fn block_mut(&mut self, block: u64) -> Option<&mut Block> {
        let place = self.place(block)?;
        self.blocks.get_mut(place)?.as_deref_mut()
    }

    /// Takes pages from `gfn` on, none of which is here yet, and records them. They lie in one block. How many, at least
    /// one; their PFNs are in `pfns` then.
    pub fn take(&mut self, gfn: u64, pfns: &mut [u64]) -> Result<usize> {
        let place = self.place(split(gfn).0).ok_or(code::EINVAL)?;
        let slot = self.blocks.get_mut(place).ok_or(code::EINVAL)?;
        if slot.is_none() {
            *slot = Some(KBox::zeroed()?);
        }
        let n = gfn.checked_sub(self.gfn).ok_or(code::EINVAL)?;
        let got = self.source.take(n, pfns)?;
        let taken = pfns.get_mut(..got).ok_or(code::EINVAL)?;
        if let Err(e) = self.record(gfn, taken) {
            // Not reached: the callers looked. What has no entry must not stay.
            self.source.put(n, taken);
            return Err(e);
        }
        Ok(got)
    }

    /// The file of guest memory that the pages are of, and its page under `gfn`.
    pub fn file(&self, gfn: u64) -> Option<(&MemoryFile, u64)> {
        match &self.source {
            Source::User(_) => None,
            Source::File(file, first) => Some((file, first.checked_add(gfn.checked_sub(self.gfn)?)?)),
        }
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

    /// Records pages from `gfn` on, where there are none, in one block. If that is not so, EINVAL or EEXIST: all of them stay
    /// the caller's.
    fn record(&mut self, gfn: u64, pfns: &[u64]) -> Result {
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
        Ok(())
    }

    /// Gives back what there is under `pages` pages from `gfn` on, which lie in one block.
    pub fn release(&mut self, gfn: u64, pages: u64) {
        let (number, index) = split(gfn);
        let Some(place) = self.place(number) else { return };
        let Some(slot) = self.blocks.get_mut(place) else { return };
        let Some(block) = slot.as_deref_mut() else { return };
        let end = index.saturating_add(pages as usize).min(block.entries.len());
        let entries = block.entries.get_mut(index..end).unwrap_or_default();
        let given = empty(&self.source, gfn.saturating_sub(self.gfn), entries);
        block.used = block.used.saturating_sub(given);
        if block.used == 0 {
            *slot = None;
        }
    }
}

/// Gives back the pages that these entries, of the slot's page `n` and those behind, stand for. How many.
fn empty(source: &Source, n: u64, entries: &mut [u64]) -> u64 {
    let (mut at, mut given) = (n, 0_u64);
    for run in entries.chunk_by_mut(|a, b| (*a == 0) == (*b == 0)) {
        let pages = run.len() as u64;
        if run.first() != Some(&0) {
            run.iter_mut().for_each(|entry| *entry = entry.wrapping_sub(1));
            source.put(at, run);
            run.fill(0);
            given = given.saturating_add(pages);
        }
        at = at.wrapping_add(pages);
    }
    given
}

impl Drop for Pins {
    fn drop(&mut self) {
        // The first block's first entry may lie before the slot: nothing is there, but it counts.
        let mut gfn = self.gfn - self.gfn % BLOCK_PAGES;
        for block in self.blocks.iter_mut() {
            if let Some(block) = block.as_deref_mut() {
                empty(&self.source, gfn.wrapping_sub(self.gfn), &mut block.entries);
                task::cond_resched();
            }
            gfn = gfn.saturating_add(BLOCK_PAGES);
        }
    }
}
