// SPDX-License-Identifier: GPL-2.0-only
//! Which page of the host lies under which page of a slot.
//!
//! A two-level table: blocks of 512 pages (2 MiB, aligned in guest space). A huge page of the creator's, or a block of a file in one
//! piece, is one number there; any other block lists its pages, 8 bytes each, allocated on the first touch.
//!
//! Invariant: an entry of a list stands for exactly one page taken from the slot's [`Source`], and a run for its 512 pages; of the
//! creator's memory one pin holds them. Pages of a run may go one by one: then it is a list of what is left, and such a pin goes with the
//! last of them, as the kernel can't use a part of a huge page sooner either. Dropping the table gives everything
//! back; so it must only be dropped when the hypervisor has let go of the pages.

use core::ops::Range;

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

    /// Takes a block from the slot's page `n` on, if it is a huge page, or in one piece: its first PFN.
    fn take_block(&self, n: u64) -> Option<u64> {
        match self {
            Self::User(address) => {
                let address = address.checked_add(n.checked_mul(PAGE_SIZE)?)?;
                if !address.is_multiple_of(BLOCK_PAGES * PAGE_SIZE) {
                    return None;
                }
                let first = mm::pin_block(address)?;
                PINNED_PAGES.add(BLOCK_PAGES);
                Some(first)
            }
            Self::File(file, first) => file.take_block(first.checked_add(n)?),
        }
    }

    /// Gives a block back that was taken as one, from this PFN on.
    fn put_block(&self, n: u64, first: u64) {
        match self {
            Self::User(_) if broken(Mistake::KeepPins) => {}
            Self::User(_) => {
                PINNED_PAGES.sub(BLOCK_PAGES);
                mm::unpin_block(first);
            }
            Self::File(file, first) => file.put(first.saturating_add(n), BLOCK_PAGES),
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

/// Of an entry: the page is one of the block's run, and goes with its pin.
const OF_RUN: u64 = 1 << 63;

/// A block's pages one by one.
#[derive(FromZeros)]
#[repr(C)]
struct List {
    /// Entries that are not zero.
    used: u64,
    /// Those of them with [`OF_RUN`], and the run's first PFN.
    of_run: u64,
    run: u64,
    /// PFN + 1, or 0 for nothing.
    entries: [u64; BLOCK_PAGES as usize],
}

enum Block {
    Empty,
    /// All pages, from this PFN on, taken as one.
    Run(u64),
    List(KBox<List>),
}

/// The pages of one slot.
pub struct Pins {
    gfn: u64,
    source: Source,
    blocks: KVec<Block>,
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
        Ok(Self { gfn, source, blocks: KVec::filled(n, || Block::Empty)? })
    }

    fn place(&self, block: u64) -> Option<usize> {
        block.checked_sub(self.gfn / BLOCK_PAGES)?.try_into().ok()
    }

    fn block(&self, block: u64) -> Option<&Block> {
        self.blocks.get(self.place(block)?)
    }

    /// The list of a block; an empty one is made where there is none. ENOMEM changes nothing.
    fn list(&mut self, block: u64) -> Result<&mut List> {
        let place = self.place(block).ok_or(code::EINVAL)?;
        self.blocks.get_mut(place).ok_or(code::EINVAL)?.list(&self.source)
    }

    /// Takes the whole block that starts at `gfn`, of which nothing is here yet, if it is one piece: its first PFN.
    pub fn take_block(&mut self, gfn: u64) -> Option<u64> {
        let (number, index) = split(gfn);
        let place = self.place(number).filter(|_| index == 0)?;
        let block = self.blocks.get_mut(place).filter(|block| matches!(block, Block::Empty))?;
        let first = self.source.take_block(gfn.checked_sub(self.gfn)?)?;
        *block = Block::Run(first);
        Some(first)
    }

    /// Takes pages from `gfn` on, none of which is here yet, and records them. They lie in one block. How many, at least
    /// one; their PFNs are in `pfns` then.
    pub fn take(&mut self, gfn: u64, pfns: &mut [u64]) -> Result<usize> {
        self.list(split(gfn).0)?;
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
        match self.block(split(gfn).0) {
            None | Some(Block::Empty) => true,
            Some(Block::Run(_)) => false,
            Some(Block::List(list)) => list.used == 0,
        }
    }

    /// The PFN under `gfn`.
    pub fn get(&self, gfn: u64) -> Option<u64> {
        let (block, index) = split(gfn);
        match self.block(block)? {
            Block::Empty => None,
            Block::Run(first) => Some(first.wrapping_add(index as u64)),
            Block::List(list) => (list.entries.get(index)? & !OF_RUN).checked_sub(1),
        }
    }

    /// Records pages from `gfn` on, where there are none, in one block. If that is not so, EINVAL or EEXIST: all of them stay
    /// the caller's.
    fn record(&mut self, gfn: u64, pfns: &[u64]) -> Result {
        let (number, index) = split(gfn);
        let list = self.list(number)?;
        let end = index.checked_add(pfns.len()).ok_or(code::EINVAL)?;
        let entries = list.entries.get_mut(index..end).ok_or(code::EINVAL)?;
        if entries.iter().any(|&e| e != 0) || pfns.iter().any(|&pfn| pfn >= OF_RUN - 1) {
            return Err(code::EEXIST);
        }
        for (entry, pfn) in entries.iter_mut().zip(pfns) {
            *entry = pfn.wrapping_add(1);
        }
        list.used = list.used.saturating_add(pfns.len() as u64);
        Ok(())
    }

    /// Gives back what there is under `pages` pages from `gfn` on, which lie in one block. ENOMEM: a part of a run, and no memory
    /// to note what is left of it. All of it is here still.
    pub fn release(&mut self, gfn: u64, pages: u64) -> Result {
        let (number, index) = split(gfn);
        let n = gfn.saturating_sub(self.gfn);
        let Some(place) = self.place(number) else { return Ok(()) };
        let Some(block) = self.blocks.get_mut(place) else { return Ok(()) };
        match block {
            Block::Empty => return Ok(()),
            Block::Run(_) if pages >= BLOCK_PAGES => {
                empty(&self.source, n, block);
                return Ok(());
            }
            Block::Run(_) | Block::List(_) => {}
        }
        let list = block.list(&self.source)?;
        let end = index.saturating_add(pages as usize).min(list.entries.len());
        release(&self.source, n, list, index..end);
        if list.used == 0 {
            *block = Block::Empty;
        }
        Ok(())
    }
}

impl Block {
    /// Its pages one by one; ENOMEM changes nothing.
    fn list(&mut self, source: &Source) -> Result<&mut List> {
        if let Self::Empty | Self::Run(_) = self {
            let mut list = KBox::<List>::zeroed()?;
            if let Self::Run(first) = *self {
                list.used = BLOCK_PAGES;
                // A file takes back pages one by one.
                let mark = match source {
                    Source::User(_) => {
                        (list.of_run, list.run) = (BLOCK_PAGES, first);
                        OF_RUN
                    }
                    Source::File(..) => 0,
                };
                for (entry, pfn) in list.entries.iter_mut().zip(first..) {
                    *entry = pfn.wrapping_add(1) | mark;
                }
            }
            *self = Self::List(list);
        }
        match self {
            Self::List(list) => Ok(list),
            // Not reached.
            _ => Err(code::EINVAL),
        }
    }
}

/// Gives back all pages of a block, whose first page is the slot's page `n`.
fn empty(source: &Source, n: u64, block: &mut Block) {
    match core::mem::replace(block, Block::Empty) {
        Block::Empty => {}
        Block::Run(first) => source.put_block(n, first),
        Block::List(mut list) => release(source, n, &mut list, 0..BLOCK_PAGES as usize),
    }
}

/// Gives back the pages that these entries of a list stand for; the first of them is the slot's page `n`.
fn release(source: &Source, n: u64, list: &mut List, entries: Range<usize>) {
    let mut at = n;
    let entries = list.entries.get_mut(entries).unwrap_or_default();
    let kind = |entry: u64| (entry == 0, entry & OF_RUN);
    for same in entries.chunk_by_mut(|a, b| kind(*a) == kind(*b)) {
        let pages = same.len() as u64;
        match same.first() {
            None | Some(0) => {}
            Some(entry) => {
                list.used = list.used.saturating_sub(pages);
                if entry & OF_RUN == 0 {
                    same.iter_mut().for_each(|entry| *entry = entry.wrapping_sub(1));
                    source.put(at, same);
                } else {
                    list.of_run = list.of_run.saturating_sub(pages);
                    if list.of_run == 0 {
                        source.put_block(n, list.run);
                    }
                }
                same.fill(0);
            }
        }
        at = at.wrapping_add(pages);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // The first block's first entry may lie before the slot: nothing is there, but it counts.
        let mut gfn = self.gfn - self.gfn % BLOCK_PAGES;
        for block in self.blocks.iter_mut() {
            if !matches!(block, Block::Empty) {
                empty(&self.source, gfn.wrapping_sub(self.gfn), block);
                task::cond_resched();
            }
            gfn = gfn.saturating_add(BLOCK_PAGES);
        }
    }
}
