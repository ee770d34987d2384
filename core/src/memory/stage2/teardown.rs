// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The end of a VM's tables, in batches.
//!
//! The first step clears the valid bit of every root entry, keeping the rest of the descriptor, and
//! drops all of the VMID's TLB entries. From then on no walk gets past the root, even on a CPU that
//! still has the root in VTTBR_EL2, so the later steps read, report and free without any TLB
//! maintenance. It is bounded: a root has at most 8192 entries, 1024 for 40 bits of IPA.
//!
//! ```text
//!  alive --first step--> dying at 0 --step--> dying at n --step--> ... --> dying at the end: Done
//! ```
//! A dying [`Stage2`] refuses every change, and translates nothing.

use super::descriptor::{Entry, Leaf, Level, TABLE_OR_PAGE, VALID};
use super::{Mapped, Stage2, TableMemory, Tlb, read, slot, span, write};
use crate::addr::{Ipa, PAGE_SHIFT, Pa};
use crate::memory::{IpaRange, PaRange};

/// How far a teardown has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Progress {
    /// Call again.
    More,
    /// All entries are gone and all tables below the root are free. The root is zero again, and
    /// still the caller's to free.
    Done,
}

/// How an area was left.
enum Left {
    /// At this address, for want of budget.
    At(u64),
    Finished,
}

impl Stage2 {
    /// One step of destroying the tables, restartable at any later time.
    ///
    /// Reports each block and page to `visit`, exactly once, in ascending order; it can no longer be
    /// reached by the VM, so `visit` may release, scrub and return it. `budget` is in pages: a
    /// block counts as its pages, an empty entry as one. At least one entry is done per step.
    pub fn teardown_step<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        budget: u64,
        mut visit: impl FnMut(&mut M, Mapped),
    ) -> Progress {
        let from = match self.dying {
            Some(from) => from,
            None => {
                self.cut_off(mem, tlb);
                self.dying = Some(0);
                self.changes = self.changes.wrapping_add(1);
                0
            }
        };
        let end = self.ipa_end();
        let Ok(area) = IpaRange::new(Ipa(0), end) else { return Progress::Done };
        if from >= end {
            return Progress::Done;
        }
        let mut budget = budget.max(1);
        match teardown(mem, (self.root, self.start, area), from, &mut budget, &mut visit) {
            Left::At(next) => {
                self.dying = Some(next);
                Progress::More
            }
            Left::Finished => {
                self.dying = Some(end);
                Progress::Done
            }
        }
    }

    /// Whether teardown has begun.
    pub const fn is_dying(&self) -> bool {
        self.dying.is_some()
    }

    /// Take every root entry out of the hardware's sight.
    fn cut_off<M: TableMemory + ?Sized, T: Tlb + ?Sized>(&self, mem: &mut M, tlb: &mut T) {
        for index in 0..self.ipa_end().wrapping_shr(self.start.shift()) {
            let (page, index) = slot(self.root, index);
            let descriptor = mem.read(page, index);
            if descriptor & VALID != 0 {
                mem.write(page, index, descriptor & !VALID);
            }
        }
        tlb.invalidate_all(self.vmid);
    }
}

/// Tear down one table from `from` on. Frees the tables below it, not the table itself.
fn teardown<M: TableMemory + ?Sized>(
    mem: &mut M,
    (table, level, area): (Pa, Level, IpaRange),
    from: u64,
    budget: &mut u64,
    visit: &mut impl FnMut(&mut M, Mapped),
) -> Left {
    let first = from.saturating_sub(area.start().0).wrapping_shr(level.shift());
    let last = area.size().wrapping_sub(1).wrapping_shr(level.shift());
    for index in first..=last {
        let Some(ipa) = span(level, area, index) else { continue };
        if *budget == 0 {
            return Left::At(ipa.start().0.max(from));
        }
        match revive(mem, table, level, index) {
            Entry::Invalid(_) => *budget = budget.saturating_sub(1),
            Entry::Leaf(Leaf { pa, attrs }) => {
                *budget = budget.saturating_sub(ipa.size() >> PAGE_SHIFT);
                write(mem, table, level, index, Entry::EMPTY);
                if let Ok(pa) = PaRange::new(pa, ipa.size()) {
                    visit(mem, Mapped { ipa, pa, attrs });
                }
                continue;
            }
            Entry::Table(child) => {
                if let Some(below) = level.next() {
                    match teardown(mem, (child, below, ipa), from, budget, visit) {
                        left @ Left::At(_) => return left,
                        Left::Finished => {}
                    }
                }
                write(mem, table, level, index, Entry::EMPTY);
                mem.free_table(child);
                continue;
            }
        }
        // A note: leave a clean root behind.
        if read(mem, table, level, index) != Entry::EMPTY {
            write(mem, table, level, index, Entry::EMPTY);
        }
    }
    Left::Finished
}

/// An entry, whether or not [`Stage2::cut_off`] has taken its valid bit: a leaf without it still has
/// its access flag, a table its type bit, where an annotation has neither.
fn revive<M: TableMemory + ?Sized>(mem: &M, table: Pa, level: Level, index: u64) -> Entry {
    let (page, index) = slot(table, index);
    let descriptor = mem.read(page, index);
    let dead = descriptor & VALID == 0 && descriptor & (super::descriptor::ACCESS_FLAG | TABLE_OR_PAGE) != 0;
    Entry::decode(if dead { descriptor | VALID } else { descriptor }, level)
}
