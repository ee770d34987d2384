// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM's stage-2 translation: VMSAv8-64, 4 KiB granule, blocks of 2 MiB and 1 GiB, concatenated
//! root tables (Arm ARM D8.2).
//!
//! The tables themselves are reached through [`TableMemory`] and their cached copies dropped through
//! [`Tlb`]; EL2 implements both on the machine, the tests on a `HashMap`.
//!
//! # What a call promises
//! * It checks the whole range first, then takes all the tables it will need, then changes entries.
//!   An error therefore means that **nothing changed**, and no table was spent.
//! * Break-before-make: a valid entry is replaced by another one only through an invalid one and a
//!   TLB invalidation. Only a change of permissions or software bits is written in place. While an
//!   entry is broken, another CPU may take a translation fault for memory that is in fact mapped:
//!   the fault handler takes the VM's lock, calls [`Stage2::walk`], and where that says "mapped"
//!   just returns to the VM.
//! * When a call that takes a mapping or a permission away returns, the TLB is clean. Tables that it
//!   emptied go back to [`TableMemory::free_table`] only after that.
//! * Addresses beyond the VM's IPA size or the machine's PA size are errors, never cut (XSA-301).
//!
//! # Invariants of the tables
//! No table below the root is entirely empty, or filled with one same annotation: such a table gives
//! way to one entry above. (Tables that could be one *block* stay until [`Stage2::coalesce`].)
//!
//! # Cost
//! Proportional to the entries touched, not to the bytes. A call is not preemptible: the caller
//! bounds the range. Only [`Stage2::teardown_step`] has a budget.

mod coalesce;
mod descriptor;
mod edit;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod model;
mod teardown;
#[cfg(test)]
mod tests;

use super::{IpaRange, PaRange};
use crate::addr::{Ipa, PAGE_SIZE, Pa};
use descriptor::{Entry, Leaf};
use edit::{Edit, Op};

pub use descriptor::{Annotation, Attrs, Level, MemoryType, SoftwareBits};
pub use teardown::Progress;

/// Entries in one 4 KiB table.
pub const ENTRIES: usize = 512;
/// The smallest IPA size that every core supports (Arm ARM: T0SZ at most 39).
pub const MIN_IPA_BITS: u8 = 25;
/// The largest IPA and PA size without FEAT_LPA2.
pub const MAX_BITS: u8 = 48;

/// No page left for a table: the VM's allowance or the pool is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no page left for a translation table")]
pub struct OutOfTables;

/// Table pages, as the CPU that runs this code reaches them.
pub trait TableMemory {
    /// Entry `index` (below 512) of the table at `table`; a single-copy atomic load.
    fn read(&self, table: Pa, index: usize) -> u64;
    /// Store an entry: single-copy atomic, and visible to every table walker after all earlier
    /// stores (`dsb ishst` before it where the descriptor is a valid one).
    fn write(&mut self, table: Pa, index: usize, descriptor: u64);
    /// A zeroed 4 KiB page, charged to the VM.
    ///
    /// # Errors
    /// Where the VM's allowance or the pool is used up.
    fn alloc_table(&mut self) -> Result<Pa, OutOfTables>;
    /// Give a page back. No table walker can reach it any more. Its content is stale, not zero.
    fn free_table(&mut self, table: Pa);
}

/// TLB maintenance, complete (`dsb`) when a call returns, for all CPUs of the inner shareable domain.
///
/// Each call first waits for the stores before it to be visible to walkers (`dsb ishst`). On cores
/// with CVE-2025-10263 it repeats TLBI and DSB.
pub trait Tlb {
    /// Drop what is cached for `range` of VM `vmid`; with stage 1 combined, too.
    ///
    /// `last_level_only`: only blocks and pages were changed, no table was unlinked.
    fn invalidate(&mut self, vmid: u16, range: IpaRange, last_level_only: bool);
    /// Drop all that is cached for VM `vmid`.
    fn invalidate_all(&mut self, vmid: u16);
}

/// Why tables could not be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The IPA size is not in 25..=48.
    #[error("IPA size not supported")]
    IpaBits,
    /// The PA size is not in 32..=48.
    #[error("PA size not supported")]
    PaBits,
    /// The root is not aligned to its own size, or lies beyond the PA size.
    #[error("root table misplaced")]
    Root,
}

/// Why a change of the tables was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The IPA range passes the VM's IPA size.
    #[error("IPA out of range")]
    IpaOutOfRange,
    /// The PA is not on a page boundary, or the range passes the machine's PA size.
    #[error("PA out of range")]
    PaOutOfRange,
    /// Something else is mapped or noted at this IPA (the first such entry's start).
    #[error("conflicting mapping at {0}")]
    Conflict(Ipa),
    /// Nothing is mapped at this IPA (the first such entry's start).
    #[error("nothing mapped at {0}")]
    NotMapped(Ipa),
    /// No page for a table: give the VM more and call again.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// Teardown has begun.
    #[error("the VM is being destroyed")]
    Dying,
}

/// What one IPA translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// It is mapped.
    Mapped {
        /// The physical address of exactly this IPA.
        pa: Pa,
        /// What is allowed there.
        attrs: Attrs,
        /// The level of the block or page; its size is [`Level::entry_size`].
        level: Level,
    },
    /// It is not mapped.
    Unmapped {
        /// The note in the entry.
        note: Annotation,
        /// The level of the invalid entry: a block of its [`Level::entry_size`] around the IPA is
        /// unmapped as a whole.
        level: Level,
    },
    /// It is beyond the IPA size: the hardware gives an address size or translation fault at level 0.
    OutOfRange,
}

/// A block or page found in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Where the VM sees it.
    pub ipa: IpaRange,
    /// Where it is.
    pub pa: PaRange,
    /// What is allowed there.
    pub attrs: Attrs,
}

impl Mapped {
    /// The physical side of what `window` shares with it.
    pub fn within(&self, window: IpaRange) -> Option<PaRange> {
        let part = self.ipa.intersection(&window)?;
        let offset = part.start().0.wrapping_sub(self.ipa.start().0);
        PaRange::new(self.pa.start().checked_add(offset)?, part.size()).ok()
    }
}

/// The stage-2 tables of one VM, or of the host.
#[derive(Debug)]
pub struct Stage2 {
    root: Pa,
    start: Level,
    ipa_bits: u8,
    pa_bits: u8,
    vmid: u16,
    /// `Some` once teardown has begun: the first IPA not yet torn down.
    dying: Option<u64>,
    /// Changes so far; by it a [`Vacancy`] is known to be one still.
    changes: u64,
}

/// Entries that [`Stage2::vacancy`] found empty.
#[derive(Clone, Copy, Debug)]
pub struct Vacancy {
    table: Pa,
    level: Level,
    from: u64,
    to: u64,
    ipa: IpaRange,
    changes: u64,
}

impl Vacancy {
    /// Whether its entries can lead to `pa` and on.
    fn suits(&self, pa: Pa) -> bool {
        pa.is_aligned(self.level.entry_size())
    }
}

/// The level where the walk starts: the lowest that can be reached by concatenating at most 16
/// tables, so that walks are short (Arm ARM D8.2.2).
const fn start_level(ipa_bits: u8) -> Level {
    match ipa_bits {
        0..=34 => Level::L2,
        35..=43 => Level::L1,
        _ => Level::L0,
    }
}

impl Stage2 {
    /// How many contiguous pages the root takes for `ipa_bits`: 1, or 2 to 16 concatenated tables.
    /// The first must be aligned to the size of all of them.
    pub const fn root_pages(ipa_bits: u8) -> usize {
        let one_table = start_level(ipa_bits).shift().wrapping_add(9);
        match (ipa_bits as u32).checked_sub(one_table) {
            None => 1,
            Some(extra) => 1usize.wrapping_shl(extra),
        }
    }

    /// Tables for a VM with `ipa_bits` of address space on a machine with `pa_bits`, with the zeroed
    /// root at `root` ([`Self::root_pages`]; the caller's, also afterwards).
    ///
    /// # Errors
    /// Sizes outside 25..=48 (IPA) or 32..=48 (PA), or a root that is misaligned or out of reach.
    pub fn new(root: Pa, ipa_bits: u8, pa_bits: u8, vmid: u16) -> Result<Self, ConfigError> {
        if !(MIN_IPA_BITS..=MAX_BITS).contains(&ipa_bits) {
            return Err(ConfigError::IpaBits);
        }
        if !(32..=MAX_BITS).contains(&pa_bits) {
            return Err(ConfigError::PaBits);
        }
        let size = (Self::root_pages(ipa_bits) as u64).wrapping_mul(PAGE_SIZE);
        let end = root.checked_add(size).ok_or(ConfigError::Root)?;
        if !root.is_aligned(size) || end.0 > 1u64.wrapping_shl(pa_bits.into()) {
            return Err(ConfigError::Root);
        }
        Ok(Self { root, start: start_level(ipa_bits), ipa_bits, pa_bits, vmid, dying: None, changes: 0 })
    }

    /// The root table, for VTTBR_EL2.BADDR.
    pub const fn root(&self) -> Pa {
        self.root
    }

    /// VTCR_EL2.T0SZ and VTCR_EL2.SL0.
    pub const fn vtcr_fields(&self) -> (u8, u8) {
        let sl0 = match self.start {
            Level::L0 => 2,
            Level::L1 => 1,
            _ => 0,
        };
        (64u8.wrapping_sub(self.ipa_bits), sl0)
    }

    /// The VMID that TLB invalidations name.
    pub const fn vmid(&self) -> u16 {
        self.vmid
    }

    /// Use another VMID from now on. The caller has invalidated what is cached under the old one, or
    /// does so before anyone else gets it.
    pub fn set_vmid(&mut self, vmid: u16) {
        self.vmid = vmid;
    }

    /// Bits of IPA; addresses from `1 << ipa_bits` up do not exist in this VM.
    pub const fn ipa_bits(&self) -> u8 {
        self.ipa_bits
    }

    /// Map `ipa` to `pa` with the largest blocks that alignment allows.
    ///
    /// Where (part of) the range is mapped to the same place with the same attributes already, that
    /// is fine, whatever the block size: two vCPUs may fault on one page at once.
    ///
    /// # Errors
    /// [`MapError::Conflict`] where anything else is mapped, or an annotation stands.
    pub fn map<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        ipa: IpaRange,
        pa: Pa,
        attrs: Attrs,
    ) -> Result<(), MapError> {
        self.map_over(mem, tlb, ipa, pa, attrs, Annotation::NONE)
    }

    /// As [`Self::map`], but where `over` stands as annotation that counts as free, too: the way back
    /// for memory that had gone to owner `over`.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn map_over<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        ipa: IpaRange,
        pa: Pa,
        attrs: Attrs,
        over: Annotation,
    ) -> Result<(), MapError> {
        self.check_output(pa, ipa.size())?;
        if let Some(vacancy) = self.vacancy(mem, ipa).filter(|vacancy| vacancy.suits(pa)) {
            self.put(mem, vacancy, Leaf { pa, attrs });
            return Ok(());
        }
        let offset = pa.0.wrapping_sub(ipa.start().0);
        self.edit(mem, tlb, ipa, Op::Map { offset, attrs, over })
    }

    /// Finds `ipa` empty, not even with a note, and all of it whole entries of one table that is there: the commonest place to map,
    /// and [`Self::fill`] does it at the least cost. `None` may be empty, too.
    pub fn vacancy<M: TableMemory + ?Sized>(&self, mem: &M, ipa: IpaRange) -> Option<Vacancy> {
        let (table, level, first, end) = self.lowest_table(mem, ipa.start())?;
        let size = level.entry_size();
        let whole = ipa.start().is_aligned(size) && ipa.end().is_aligned(size);
        if level == Level::L0 || !whole || ipa.end().0 > end {
            return None;
        }
        let index = |address: Ipa| address.0.wrapping_sub(first).wrapping_shr(level.shift());
        let (from, to) = (index(ipa.start()), index(ipa.end()));
        let empty = |index| {
            let (page, slot) = slot(table, index);
            mem.read(page, slot) == 0
        };
        let changes = self.changes;
        (from..to).all(empty).then_some(Vacancy { table, level, from, to, ipa, changes })
    }

    /// Maps what was found empty to `pa`, as [`Self::map`] does.
    ///
    /// # Errors
    /// As [`Self::map`].
    pub fn fill<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        vacancy: Vacancy,
        pa: Pa,
        attrs: Attrs,
    ) -> Result<(), MapError> {
        if vacancy.changes != self.changes || !vacancy.suits(pa) {
            return self.map(mem, tlb, vacancy.ipa, pa, attrs);
        }
        self.check_output(pa, vacancy.ipa.size())?;
        self.put(mem, vacancy, Leaf { pa, attrs });
        Ok(())
    }

    #[inline]
    fn put<M: TableMemory + ?Sized>(&mut self, mem: &mut M, vacancy: Vacancy, first: Leaf) {
        let Vacancy { table, level, from, to, .. } = vacancy;
        self.changes = self.changes.wrapping_add(1);
        let mut descriptor = Entry::Leaf(first).encode(level);
        for index in from..to {
            let (page, slot) = slot(table, index);
            mem.write(page, slot, descriptor);
            descriptor = descriptor.wrapping_add(level.entry_size());
        }
    }

    fn check_output(&self, pa: Pa, size: u64) -> Result<(), MapError> {
        let out = PaRange::new(pa, size).map_err(|_| MapError::PaOutOfRange)?;
        if out.end().0 > 1u64.wrapping_shl(self.pa_bits.into()) {
            return Err(MapError::PaOutOfRange);
        }
        Ok(())
    }

    /// Unmap `ipa`, splitting blocks that reach beyond it. What is not mapped stays so; annotations
    /// go as well.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`] where a split needs a table.
    pub fn unmap<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        ipa: IpaRange,
    ) -> Result<(), MapError> {
        self.edit(mem, tlb, ipa, Op::Set(Annotation::NONE))
    }

    /// Unmap `ipa` and leave a note there, which [`Self::walk`] returns and which [`Self::map`]
    /// respects.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    pub fn annotate<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        ipa: IpaRange,
        note: Annotation,
    ) -> Result<(), MapError> {
        self.edit(mem, tlb, ipa, Op::Set(note))
    }

    /// Give all of `ipa`, which must be mapped, other attributes, splitting blocks that reach beyond
    /// it.
    ///
    /// # Errors
    /// [`MapError::NotMapped`] where a part is not mapped, [`MapError::OutOfTables`].
    pub fn protect<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        ipa: IpaRange,
        attrs: Attrs,
    ) -> Result<(), MapError> {
        self.edit(mem, tlb, ipa, Op::Protect(attrs))
    }

    /// Translate one address as the hardware would.
    pub fn walk<M: TableMemory + ?Sized>(&self, mem: &M, ipa: Ipa) -> Walk {
        if ipa.0 >= self.ipa_end() {
            return Walk::OutOfRange;
        }
        if self.dying.is_some() {
            return Walk::Unmapped { note: Annotation::NONE, level: self.start };
        }
        let mut table = self.root;
        let mut level = self.start;
        let mut base = 0u64;
        loop {
            let index = ipa.0.wrapping_sub(base).wrapping_shr(level.shift());
            base = base.wrapping_add(index.wrapping_shl(level.shift()));
            match read(mem, table, level, index) {
                Entry::Invalid(note) => return Walk::Unmapped { note, level },
                Entry::Leaf(Leaf { pa, attrs }) => {
                    let pa = Pa(pa.0.wrapping_add(ipa.0.wrapping_sub(base)));
                    return Walk::Mapped { pa, attrs, level };
                }
                Entry::Table(next) => match level.next() {
                    Some(below) => (table, level) = (next, below),
                    // Level 3 has no tables: `Entry::decode` never says so.
                    None => return Walk::Unmapped { note: Annotation::NONE, level },
                },
            }
        }
    }

    /// Each block and page that overlaps `ipa`, in ascending order and whole, until `visit` says stop
    /// (false).
    pub fn for_each<M: TableMemory + ?Sized>(
        &self,
        mem: &M,
        ipa: IpaRange,
        mut visit: impl FnMut(Mapped) -> bool,
    ) {
        let mut at = ipa.start().0;
        while at < ipa.end().0 {
            let Some((table, level, first, end)) = self.lowest_table(mem, Ipa(at)) else { return };
            let size = level.entry_size();
            // Entry by entry, until one leads to a table: a walk for each would be most of the time.
            while at < ipa.end().0 && at < end {
                let base = Ipa(at).align_down(size);
                match read(mem, table, level, at.wrapping_sub(first).wrapping_shr(level.shift())) {
                    Entry::Table(_) => break,
                    Entry::Invalid(_) => {}
                    Entry::Leaf(Leaf { pa, attrs }) => {
                        if let (Ok(ipa), Ok(pa)) = (IpaRange::new(base, size), PaRange::new(pa, size))
                            && !visit(Mapped { ipa, pa, attrs })
                        {
                            return;
                        }
                    }
                }
                at = base.0.wrapping_add(size);
            }
        }
    }

    /// The table that has the last entry of `ipa`'s walk; its level, the IPA of its first entry, and that behind its last.
    fn lowest_table<M: TableMemory + ?Sized>(&self, mem: &M, ipa: Ipa) -> Option<(Pa, Level, u64, u64)> {
        if ipa.0 >= self.ipa_end() || self.dying.is_some() {
            return None;
        }
        let (mut table, mut level, mut first, mut end) = (self.root, self.start, 0u64, self.ipa_end());
        loop {
            let index = ipa.0.wrapping_sub(first).wrapping_shr(level.shift());
            let Entry::Table(next) = read(mem, table, level, index) else { break };
            let Some(below) = level.next() else { break };
            first = first.wrapping_add(index.wrapping_shl(level.shift()));
            end = first.wrapping_add(level.entry_size());
            (table, level) = (next, below);
        }
        Some((table, level, first, end))
    }

    fn edit<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        range: IpaRange,
        op: Op,
    ) -> Result<(), MapError> {
        let all = self.check(range)?;
        self.changes = self.changes.wrapping_add(1);
        Edit { mem, tlb, op, range, vmid: self.vmid }.run(self.root, self.start, all)
    }

    /// The VM's whole address space, which contains `range`.
    fn check(&self, range: IpaRange) -> Result<IpaRange, MapError> {
        if self.dying.is_some() {
            return Err(MapError::Dying);
        }
        match IpaRange::new(Ipa(0), self.ipa_end()) {
            Ok(all) if all.covers(&range) => Ok(all),
            _ => Err(MapError::IpaOutOfRange),
        }
    }

    /// One past the last IPA.
    const fn ipa_end(&self) -> u64 {
        1u64.wrapping_shl(self.ipa_bits as u32)
    }
}

/// Where entry `index` is: the root may be several tables in a row.
#[inline]
const fn slot(table: Pa, index: u64) -> (Pa, usize) {
    let page = Pa(table.0.wrapping_add((index >> 9).wrapping_mul(PAGE_SIZE)));
    (page, (index & 511) as usize)
}

#[inline]
fn read<M: TableMemory + ?Sized>(mem: &M, table: Pa, level: Level, index: u64) -> Entry {
    let (page, index) = slot(table, index);
    Entry::decode(mem.read(page, index), level)
}

#[inline]
fn write<M: TableMemory + ?Sized>(mem: &mut M, table: Pa, level: Level, index: u64, entry: Entry) {
    let (page, index) = slot(table, index);
    mem.write(page, index, entry.encode(level));
}

/// What entry `index` of a table at `level` for `area` spans. `None` never occurs for addresses
/// below 2^48.
#[inline]
fn span(level: Level, area: IpaRange, index: u64) -> Option<IpaRange> {
    let base = area.start().0.wrapping_add(index.wrapping_shl(level.shift()));
    IpaRange::new(Ipa(base), level.entry_size()).ok()
}
