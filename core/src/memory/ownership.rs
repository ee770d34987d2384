// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who owns RAM: a [`State`] for every granule, at the cost of blocks.
//!
//! Two levels over up to 16 banks of RAM, in storage that EL2 reserves at boot:
//! ```text
//!  blocks: one u32 per 2 MiB     [ Host | Host | MIXED | Vm(3) | ... ]
//!                                                 |
//!  pages: one u32 per 4 KiB            [ Host Host Vm(3) Host ... 512 of them ]
//! ```
//! A block whose granules agree is one entry. When they part, its 512 page entries are filled in;
//! when they agree again, the block is one entry again. So a transition allocates nothing, and a
//! run of whole blocks costs one entry each. The page entries of a uniform block are not read, and
//! need no initial value.
//!
//! # Rules
//! * A run is checked in full before its first granule changes: [`Ownership::check`] gives a
//!   [`Permit`], which borrows the table, so that nothing can change before [`Permit::commit`]. In
//!   between, the caller changes the stage-2 tables, which may still fail for want of memory.
//! * What is not RAM is refused ([`OwnershipError::NotRam`]), also a run that only touches it.
//! * A page leaves a VM by [`Ownership::take`], or the hypervisor by [`Ownership::spare`], and returns to the host as [`Scrubbed`];
//!   there is no other way but at boot. The VM's stage-2 mapping is gone, TLB included, before `take`: a return from
//!   `Stage2::unmap`, or the call of the visitor in `Stage2::teardown_step`, says so.
//!
//! Lock order: vCPU, VM, host's stage 2, then this table, then the pool.

use super::granule::{Refused, Step, next};
use super::{PaRange, outward};
use crate::addr::{BLOCK_2M, PAGE_SHIFT, Pa, VmId};
use crate::broken::{Mistake, broken};
use arrayvec::ArrayVec;

pub use super::granule::{Loan, State, Transition};

/// The most banks of RAM that a machine may have.
pub const MAX_BANKS: usize = 16;
/// One past the largest physical address (FEAT_LPA).
const MAX_PA: u64 = 1 << 52;
/// Pages in a block.
const PAGES: usize = 512;
/// A block entry that says: see the pages.
const MIXED: u32 = 0xFFFF_FFFF;

/// Why a transition was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnershipError {
    /// The address is not RAM.
    #[error("{0} is not RAM")]
    NotRam(Pa),
    /// The granule's state does not allow it.
    #[error("{at} is {state:?}")]
    Denied {
        /// The first granule that stands in the way.
        at: Pa,
        /// Its state.
        state: State,
    },
    /// The granule is mapped 65,535 times already.
    #[error("too many mappings of {0}")]
    Overflow(Pa),
}

/// Why a table could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// More than [`MAX_BANKS`].
    #[error("too many banks of RAM")]
    TooManyBanks,
    /// Two banks overlap.
    #[error("banks of RAM overlap at {0}")]
    Overlap(Pa),
    /// A bank passes 2^52, the largest physical address of the architecture.
    #[error("RAM beyond the largest physical address")]
    OutOfReach,
    /// The storage is smaller than [`Sizes`] asks for.
    #[error("too little storage for the ownership table")]
    Storage,
}

/// How many `u32` a table takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Entries for blocks. These are initialised by [`Ownership::new`].
    pub blocks: usize,
    /// Entries for pages. These may hold anything at first.
    pub pages: usize,
}

impl Sizes {
    /// What a table for these banks takes.
    pub fn of(banks: &[PaRange]) -> Self {
        let blocks = banks.iter().fold(0usize, |sum, b| sum.saturating_add(blocks_of(b)));
        Self { blocks, pages: blocks.saturating_mul(PAGES) }
    }
}

/// Blocks that a bank touches.
fn blocks_of(bank: &PaRange) -> usize {
    let first = bank.start().0 / BLOCK_2M;
    let last = bank.end().0.wrapping_sub(1) / BLOCK_2M;
    usize::try_from(last.wrapping_sub(first).wrapping_add(1)).unwrap_or(usize::MAX)
}

/// Granules by state; for all of RAM they add up to the same at all times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counts {
    /// [`State::Hypervisor`].
    pub hypervisor: u64,
    /// [`State::Host`].
    pub host: u64,
    /// [`State::HostShared`], whatever the count.
    pub host_shared: u64,
    /// [`State::Vm`].
    pub vm: u64,
    /// [`State::VmShared`].
    pub vm_shared: u64,
    /// [`State::Lent`] and [`State::Retrieved`].
    pub lent: u64,
    /// [`State::Dirty`].
    pub dirty: u64,
}

impl Counts {
    fn of(&mut self, state: State) -> &mut u64 {
        match state {
            State::Hypervisor => &mut self.hypervisor,
            State::Host => &mut self.host,
            State::HostShared(_) => &mut self.host_shared,
            State::Vm(_) => &mut self.vm,
            State::VmShared(_) => &mut self.vm_shared,
            State::Lent(_) | State::Retrieved(_) => &mut self.lent,
            State::Dirty => &mut self.dirty,
        }
    }
}

struct Bank {
    ram: PaRange,
    /// The index of the block entry for the bank's first (perhaps partial) block.
    first_block: usize,
}

/// The part of a run within one block.
#[derive(Clone, Copy)]
struct Chunk {
    part: PaRange,
    /// All of the block that is RAM of this bank.
    whole: PaRange,
    /// Index of the block's entry.
    block: usize,
}

/// What becomes of the entry of a block whose granules agree.
struct Change {
    block: usize,
    old: State,
    new: State,
}

/// The ownership table of a machine's RAM.
pub struct Ownership<'m> {
    banks: ArrayVec<Bank, MAX_BANKS>,
    blocks: &'m mut [u32],
    pages: &'m mut [u32],
    counts: Counts,
}

impl<'m> Ownership<'m> {
    /// A table for these banks, in which all is the hypervisor's; see [`Sizes`] for the storage.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn new(banks: &[PaRange], blocks: &'m mut [u32], pages: &'m mut [u32]) -> Result<Self, SetupError> {
        let need = Sizes::of(banks);
        if blocks.len() < need.blocks || pages.len() < need.pages {
            return Err(SetupError::Storage);
        }
        let mut list = ArrayVec::<Bank, MAX_BANKS>::new();
        let mut counts = Counts::default();
        let mut first_block = 0usize;
        for ram in banks {
            if ram.end().0 > MAX_PA {
                return Err(SetupError::OutOfReach);
            }
            if list.iter().any(|b| b.ram.overlaps(ram)) {
                return Err(SetupError::Overlap(ram.start()));
            }
            list.try_push(Bank { ram: *ram, first_block }).map_err(|_| SetupError::TooManyBanks)?;
            first_block = first_block.saturating_add(blocks_of(ram));
            counts.hypervisor = counts.hypervisor.saturating_add(ram.pages());
        }
        blocks.fill(State::Hypervisor.encode());
        Ok(Self { banks: list, blocks, pages, counts })
    }

    /// Granules by state.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether all of `range` is RAM.
    pub fn is_ram(&self, range: PaRange) -> bool {
        self.chunks(range).all(|c| c.is_ok())
    }

    /// The state of the granule at `pa`.
    ///
    /// # Errors
    /// [`OwnershipError::NotRam`].
    pub fn state(&self, pa: Pa) -> Result<State, OwnershipError> {
        let page = PaRange::page_of(pa).ok_or(OwnershipError::NotRam(pa))?;
        let chunk = self.chunks(page).next().ok_or(OwnershipError::NotRam(pa))??;
        Ok(self.entry(chunk.block, Some(page.start())))
    }

    /// The runs of equal state within `range`, in ascending order, one per block or page: equal
    /// neighbours are not merged.
    ///
    /// # Errors
    /// [`OwnershipError::NotRam`] for the first address that is not; runs before it were visited.
    pub fn for_each(
        &self,
        range: PaRange,
        mut visit: impl FnMut(PaRange, State),
    ) -> Result<(), OwnershipError> {
        for chunk in self.chunks(range) {
            let chunk = chunk?;
            if self.is_mixed(chunk.block) {
                pages_of(chunk.part).for_each(|p| visit(p, self.entry(chunk.block, Some(p.start()))));
            } else {
                visit(chunk.part, self.entry(chunk.block, None));
            }
        }
        Ok(())
    }

    /// Check that all of `range` may make `transition`.
    ///
    /// # Errors
    /// See [`OwnershipError`].
    pub fn check<'o>(
        &'o mut self,
        range: PaRange,
        transition: Transition,
    ) -> Result<Permit<'o, 'm>, OwnershipError> {
        self.permit(range, Step::Ordinary(transition))
    }

    /// Check and commit at once, where no table has to change in between.
    ///
    /// # Errors
    /// See [`OwnershipError`]; nothing was changed.
    pub fn apply(&mut self, range: PaRange, transition: Transition) -> Result<(), OwnershipError> {
        self.check(range, transition)?.commit();
        Ok(())
    }

    /// Take `range`, all of it VM `vm`'s, from it: the VM is gone, or gave it up, and its mapping is
    /// gone, TLB included. Nobody can reach it then.
    ///
    /// # Errors
    /// See [`OwnershipError`].
    pub fn take(&mut self, range: PaRange, vm: VmId) -> Result<Dirty, OwnershipError> {
        self.permit(range, Step::Take(vm))?.commit();
        Ok(Dirty { all: range, left: range })
    }

    /// The hypervisor has no use any more for `range`, which the host gave it. Nobody can reach it then.
    ///
    /// # Errors
    /// See [`OwnershipError`].
    pub fn spare(&mut self, range: PaRange) -> Result<Dirty, OwnershipError> {
        self.permit(range, Step::Spare)?.commit();
        Ok(Dirty { all: range, left: range })
    }

    /// Return scrubbed memory to the host, which may map it again after this.
    ///
    /// # Errors
    /// Never for a token of this table; with one of another table, see [`OwnershipError`].
    pub fn give_back(&mut self, memory: Scrubbed) -> Result<PaRange, OwnershipError> {
        self.permit(memory.0, Step::GiveBack)?.commit();
        Ok(memory.0)
    }

    fn permit<'o>(&'o mut self, range: PaRange, step: Step) -> Result<Permit<'o, 'm>, OwnershipError> {
        let mut only = None;
        for chunk in self.chunks(range) {
            let chunk = chunk?;
            if !self.is_mixed(chunk.block) {
                let state = self.entry(chunk.block, None);
                let new = next(state, step).map_err(|r| refusal(r, chunk.part.start(), state))?;
                if range == chunk.whole {
                    only = Some(Change { block: chunk.block, old: state, new });
                }
                if broken(Mistake::FirstPartOnly) {
                    break;
                }
                continue;
            }
            for page in pages_of(chunk.part) {
                let state = self.entry(chunk.block, Some(page.start()));
                next(state, step).map_err(|r| refusal(r, page.start(), state))?;
                if broken(Mistake::FirstPartOnly) {
                    break;
                }
            }
        }
        Ok(Permit { table: self, range, step, only })
    }

    fn commit(&mut self, range: PaRange, step: Step) {
        let mut rest = Some(range);
        while let Some(range) = rest {
            // One chunk at a time: the iterator borrows the table.
            let Some(Ok(chunk)) = self.chunks(range).next() else { return };
            self.commit_chunk(chunk, step);
            rest = range.split_first(chunk.part.pages()).1;
        }
    }

    fn commit_chunk(&mut self, chunk: Chunk, step: Step) {
        if !self.is_mixed(chunk.block) {
            let old = self.entry(chunk.block, None);
            let Ok(new) = next(old, step) else { return };
            if chunk.part == chunk.whole || old == new {
                self.commit_block(Change { block: chunk.block, old, new }, chunk.part.pages());
                return;
            }
            // Part of a uniform block: write out what it says.
            if let Some(pages) = self.pages_mut(chunk.block) {
                pages.fill(old.encode());
            }
            self.set_block(chunk.block, MIXED);
        }
        for page in pages_of(chunk.part) {
            let old = self.entry(chunk.block, Some(page.start()));
            let Ok(new) = next(old, step) else { return };
            if let Some(entry) = self.pages_mut(chunk.block).and_then(|p| p.get_mut(page_index(page.start())))
            {
                *entry = new.encode();
            }
            self.count(old, new, 1);
        }
        self.make_uniform(chunk);
    }

    /// What becomes of a block's entry, or stays, for so many pages in a transition.
    #[inline(always)]
    fn commit_block(&mut self, change: Change, pages: u64) {
        self.set_block(change.block, change.new.encode());
        self.count(change.old, change.new, pages);
    }

    /// Make the block one entry again where all its granules agree. Looks around the part that was changed first.
    fn make_uniform(&mut self, chunk: Chunk) {
        let first = page_index(chunk.whole.start()) as u64;
        let last = page_index(Pa(chunk.whole.end().0.wrapping_sub(1))) as u64;
        let behind = page_index(chunk.part.end()) as u64;
        let Some(pages) = self.pages_mut(chunk.block) else { return };
        let page = |index: u64| pages.get(usize::try_from(index).ok()?).copied();
        let Some(state) = page(page_index(chunk.part.start()) as u64) else { return };
        let of_bank = |index: &u64| (first..=last).contains(index);
        if outward(behind).filter(of_bank).all(|index| page(index) == Some(state)) {
            self.set_block(chunk.block, state);
        }
    }

    #[inline(always)]
    fn count(&mut self, old: State, new: State, pages: u64) {
        let from = self.counts.of(old);
        *from = from.wrapping_sub(pages);
        let to = self.counts.of(new);
        *to = to.wrapping_add(pages);
    }

    fn chunks(&self, range: PaRange) -> Chunks<'_> {
        Chunks { banks: &self.banks, rest: Some(range) }
    }

    #[inline(always)]
    fn is_mixed(&self, block: usize) -> bool {
        self.blocks.get(block) == Some(&MIXED)
    }

    /// The state of a uniform block, or of the page of a block. What can't be read is the
    /// hypervisor's, which allows nothing to anyone.
    #[inline(always)]
    fn entry(&self, block: usize, page: Option<Pa>) -> State {
        let entry = match (self.blocks.get(block), page) {
            (Some(&MIXED), Some(pa)) => {
                let index = block.saturating_mul(PAGES).saturating_add(page_index(pa));
                self.pages.get(index)
            }
            (entry, _) => entry,
        };
        entry.and_then(|e| State::decode(*e)).unwrap_or(State::Hypervisor)
    }

    #[inline(always)]
    fn set_block(&mut self, block: usize, value: u32) {
        if let Some(entry) = self.blocks.get_mut(block) {
            *entry = value;
        }
    }

    fn pages_mut(&mut self, block: usize) -> Option<&mut [u32]> {
        let first = block.checked_mul(PAGES)?;
        self.pages.get_mut(first..first.checked_add(PAGES)?)
    }
}

fn refusal(refused: Refused, at: Pa, state: State) -> OwnershipError {
    match refused {
        Refused::State => OwnershipError::Denied { at, state },
        Refused::Overflow => OwnershipError::Overflow(at),
    }
}

/// The index of a page in its block, 0 to 511.
fn page_index(pa: Pa) -> usize {
    ((pa.0 >> PAGE_SHIFT) & 511) as usize
}

/// Each page of a run.
fn pages_of(run: PaRange) -> impl Iterator<Item = PaRange> {
    (run.start().frame()..run.end().frame()).filter_map(|f| PaRange::from_frames(f, 1).ok())
}

struct Chunks<'a> {
    banks: &'a [Bank],
    rest: Option<PaRange>,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk, OwnershipError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let range = self.rest?;
        let chunk = chunk_at(self.banks, range).ok_or(OwnershipError::NotRam(range.start()));
        self.rest = match &chunk {
            Ok(chunk) => range.split_first(chunk.part.pages()).1,
            Err(_) => None,
        };
        Some(chunk)
    }
}

/// The first chunk of a run, where it starts in RAM.
#[inline]
fn chunk_at(banks: &[Bank], range: PaRange) -> Option<Chunk> {
    let at = range.start();
    let bank = banks.iter().find(|b| b.ram.contains(at))?;
    let block = PaRange::new(at.align_down(BLOCK_2M), BLOCK_2M).ok()?;
    let whole = bank.ram.intersection(&block)?;
    let offset = (at.0 / BLOCK_2M).checked_sub(bank.ram.start().0 / BLOCK_2M)?;
    let block = bank.first_block.checked_add(usize::try_from(offset).ok()?)?;
    Some(Chunk { part: whole.intersection(&range)?, whole, block })
}

/// A run that was checked, and that nobody can change before it is committed or dropped.
#[must_use = "checked, but not committed"]
pub struct Permit<'o, 'm> {
    table: &'o mut Ownership<'m>,
    range: PaRange,
    step: Step,
    /// All that changes, where the run is no more than one entry.
    only: Option<Change>,
}

impl Permit<'_, '_> {
    /// The run.
    pub const fn range(&self) -> PaRange {
        self.range
    }

    /// Make the transition, which can't fail any more.
    pub fn commit(self) {
        match self.only {
            Some(change) => self.table.commit_block(change, self.range.pages()),
            None => self.table.commit(self.range, self.step),
        }
    }
}

/// Memory taken from a VM, or that the hypervisor can spare. All of it stays nobody's until the last page is scrubbed ([`Dirty::scrub`]), so that it comes
/// back as one run ([`Ownership::give_back`]).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the memory would be lost until reset"]
pub struct Dirty {
    all: PaRange,
    /// What has to be scrubbed yet: the end of it.
    left: PaRange,
}

impl Dirty {
    /// What has to be scrubbed yet.
    pub const fn left(&self) -> PaRange {
        self.left
    }

    /// Overwrites the next `pages`, at least one, with `zero`, which also cleans the data cache to the point of coherency,
    /// and returns only when that is done.
    ///
    /// # Errors
    /// More is left, to be scrubbed by further calls.
    pub fn scrub(self, pages: u64, zero: impl FnOnce(PaRange)) -> Result<Scrubbed, Self> {
        let (now, later) = self.left.split_first(pages);
        zero(now);
        let later = later.filter(|_| !broken(Mistake::PartlyScrubbed));
        later.map_or(Ok(Scrubbed(self.all)), |left| Err(Self { left, ..self }))
    }
}

/// Memory that holds nothing of its former owner.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the memory would be lost until reset"]
pub struct Scrubbed(PaRange);

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod tests;
