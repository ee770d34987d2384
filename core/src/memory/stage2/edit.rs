// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One change of a range: check, reserve, commit, flush.
//!
//! All changes go through [`Edit::run`], which differ only in [`Op`] and in what [`Edit::action`]
//! says to a single entry. `plan` and `commit` walk the same entries and ask the same question, so
//! what was checked is what is done. A table walker on another CPU sees, at any moment, each entry as
//! it was, as it will be, or invalid.

use super::descriptor::{Annotation, Attrs, Entry, Leaf, Level};
use super::{MapError, TableMemory, Tlb, read, span, write};
use crate::addr::Pa;
use crate::memory::{IpaRange, outward};

/// What to do to a range.
#[derive(Clone, Copy)]
pub(super) enum Op {
    /// Map to IPA + `offset` (wrapping). `over` counts as free.
    Map { offset: u64, attrs: Attrs, over: Annotation },
    /// Unmap and leave a note.
    Set(Annotation),
    /// Change attributes.
    Protect(Attrs),
}

/// What to do to one entry.
enum Action {
    Keep,
    /// Put this block, page or note there.
    Replace(Entry),
    /// Go on in the table of the level below; where there is none yet, one that means the same is
    /// made first.
    Descend(Level),
}

/// A table that is there, or one that would have to be made, and then would say the same everywhere.
#[derive(Clone, Copy)]
enum Source {
    Table(Pa),
    Uniform(Entry),
}

pub(super) struct Edit<'a, M: ?Sized, T: ?Sized> {
    pub mem: &'a mut M,
    pub tlb: &'a mut T,
    pub op: Op,
    pub range: IpaRange,
    pub vmid: u16,
}

/// Tables that no entry points to, threaded through their own first entries.
///
/// A link is an invalid descriptor, so a table may be put here while a TLB's walk cache still knows
/// it. Must be emptied with [`TableList::release`], after that cache has been invalidated.
#[must_use = "the tables in it would be lost"]
struct TableList {
    head: Option<Pa>,
}

impl TableList {
    /// Bit 1 tells a link to the page at 0 from the end.
    const LINK: u64 = 0b10;

    const fn new() -> Self {
        Self { head: None }
    }

    fn push<M: TableMemory + ?Sized>(&mut self, mem: &mut M, table: Pa) {
        mem.write(table, 0, self.head.map_or(0, |next| next.0 | Self::LINK));
        self.head = Some(table);
    }

    /// A table whose first entry is zero.
    fn pop<M: TableMemory + ?Sized>(&mut self, mem: &mut M) -> Option<Pa> {
        let table = self.head?;
        let link = mem.read(table, 0);
        self.head = (link & Self::LINK != 0).then_some(Pa(link & !Self::LINK));
        mem.write(table, 0, 0);
        Some(table)
    }

    fn release<M: TableMemory + ?Sized>(mut self, mem: &mut M) {
        while let Some(table) = self.pop(mem) {
            mem.free_table(table);
        }
    }
}

/// What the commit leaves to be done at its end.
struct Pending {
    /// Tables taken before the first change.
    reserve: TableList,
    /// Tables unlinked, which a walk cache may still know.
    detached: TableList,
    /// From the first to the last entry that was taken away or changed.
    stale: Option<IpaRange>,
    /// Whether a table was unlinked.
    tables: bool,
}

impl Pending {
    fn mark_stale(&mut self, span: IpaRange) {
        self.stale = match self.stale {
            None => Some(span),
            Some(old) => {
                let start = old.start().min(span.start());
                let end = old.end().max(span.end());
                IpaRange::new(start, end.0.wrapping_sub(start.0)).ok()
            }
        };
    }
}

impl<M: TableMemory + ?Sized, T: Tlb + ?Sized> Edit<'_, M, T> {
    pub(super) fn run(mut self, root: Pa, start: Level, all: IpaRange) -> Result<(), MapError> {
        let tables = self.plan(Source::Table(root), start, all)?;
        let mut pending = Pending {
            reserve: self.reserve(tables)?,
            detached: TableList::new(),
            stale: None,
            tables: false,
        };
        let result = self.commit(root, start, all, &mut pending);
        if let Some(stale) = pending.stale {
            self.tlb.invalidate(self.vmid, stale, !pending.tables);
        }
        pending.detached.release(self.mem);
        pending.reserve.release(self.mem);
        result
    }

    /// Check every entry of a table for `area`, and count the tables that the commit will take.
    fn plan(&self, source: Source, level: Level, area: IpaRange) -> Result<u64, MapError> {
        let mut tables = 0u64;
        for (index, span) in entries(level, area, self.range) {
            let entry = match source {
                Source::Table(table) => read(self.mem, table, level, index),
                Source::Uniform(entry) => entry.child(level, index),
            };
            let Action::Descend(below) = self.action(entry, level, span)? else { continue };
            let source = match entry {
                Entry::Table(table) => Source::Table(table),
                uniform => {
                    tables = tables.saturating_add(1);
                    // Nothing descends from level 3, and what was checked here holds for each page.
                    if below == Level::L3 {
                        continue;
                    }
                    Source::Uniform(uniform)
                }
            };
            tables = tables.saturating_add(self.plan(source, below, span)?);
        }
        Ok(tables)
    }

    /// What `self.op` means for one entry that spans `span`.
    fn action(&self, entry: Entry, level: Level, span: IpaRange) -> Result<Action, MapError> {
        let covered = self.range.covers(&span);
        let base = span.start();
        // Ranges are whole pages, so an entry of level 3 is always covered, and never descended from.
        let descend = level.next().map_or(Action::Keep, Action::Descend);
        Ok(match (self.op, entry) {
            (Op::Map { offset, attrs, over }, _) => {
                let pa = Pa(base.0.wrapping_add(offset));
                match entry {
                    Entry::Table(_) => descend,
                    Entry::Leaf(old) if old == (Leaf { pa, attrs }) => Action::Keep,
                    Entry::Invalid(note) if note == Annotation::NONE || note == over => {
                        if covered && level != Level::L0 && pa.is_aligned(level.entry_size()) {
                            Action::Replace(Entry::Leaf(Leaf { pa, attrs }))
                        } else {
                            descend
                        }
                    }
                    _ => return Err(MapError::Conflict(base.max(self.range.start()))),
                }
            }
            (Op::Set(note), _) if entry == Entry::Invalid(note) => Action::Keep,
            (Op::Set(note), _) if covered => Action::Replace(Entry::Invalid(note)),
            (Op::Set(_), _) => descend,
            (Op::Protect(_), Entry::Table(_)) => descend,
            (Op::Protect(_), Entry::Invalid(_)) => {
                return Err(MapError::NotMapped(base.max(self.range.start())));
            }
            (Op::Protect(attrs), Entry::Leaf(old)) if old.attrs == attrs => Action::Keep,
            (Op::Protect(attrs), Entry::Leaf(old)) if covered => {
                Action::Replace(Entry::Leaf(Leaf { pa: old.pa, attrs }))
            }
            (Op::Protect(_), Entry::Leaf(_)) => descend,
        })
    }

    fn reserve(&mut self, tables: u64) -> Result<TableList, MapError> {
        let mut list = TableList::new();
        for _ in 0..tables {
            match self.mem.alloc_table() {
                Ok(table) => list.push(self.mem, table),
                Err(error) => {
                    list.release(self.mem);
                    return Err(error.into());
                }
            }
        }
        Ok(list)
    }

    /// Change every entry. Fails only where `plan` counted wrong.
    fn commit(
        &mut self,
        table: Pa,
        level: Level,
        area: IpaRange,
        pending: &mut Pending,
    ) -> Result<(), MapError> {
        for (index, span) in entries(level, area, self.range) {
            let old = read(self.mem, table, level, index);
            let below = match self.action(old, level, span)? {
                Action::Keep => continue,
                Action::Replace(new) => {
                    self.replace((table, level, index), span, (old, new), pending);
                    continue;
                }
                Action::Descend(below) => below,
            };
            if let Entry::Table(child) = old {
                self.commit(child, below, span, pending)?;
                if let Op::Set(note) = self.op
                    && self.is_uniform(child, below, Entry::Invalid(note), span)
                {
                    let new = Entry::Invalid(note);
                    self.replace((table, level, index), span, (old, new), pending);
                }
            } else {
                let child = self.build(old, below, span, pending)?;
                if old.is_valid() {
                    write(self.mem, table, level, index, Entry::EMPTY);
                    self.tlb.invalidate(self.vmid, span, true);
                }
                write(self.mem, table, level, index, Entry::Table(child));
            }
        }
        Ok(())
    }

    /// Change one entry into a block, page or note.
    fn replace(
        &mut self,
        (table, level, index): (Pa, Level, u64),
        span: IpaRange,
        (old, new): (Entry, Entry),
        pending: &mut Pending,
    ) {
        match (old, new) {
            (Entry::Invalid(_), _) => {}
            // Only the memory type of a live entry must not change in place (Arm ARM D8.16.1).
            (Entry::Leaf(from), Entry::Leaf(to)) if from.attrs.memory == to.attrs.memory => {
                pending.mark_stale(span);
            }
            (Entry::Leaf(_), Entry::Leaf(_)) => {
                write(self.mem, table, level, index, Entry::EMPTY);
                self.tlb.invalidate(self.vmid, span, true);
            }
            (Entry::Leaf(_) | Entry::Table(_), _) => pending.mark_stale(span),
        }
        write(self.mem, table, level, index, new);
        if let (Entry::Table(child), Some(below)) = (old, level.next()) {
            pending.tables = true;
            detach(self.mem, child, below, &mut pending.detached);
        }
    }

    /// A table at `level`, not yet linked, that says what `entry` says, but for the change in the
    /// range.
    fn build(
        &mut self,
        entry: Entry,
        level: Level,
        area: IpaRange,
        pending: &mut Pending,
    ) -> Result<Pa, MapError> {
        let table = match pending.reserve.pop(self.mem) {
            Some(table) => table,
            None => self.mem.alloc_table()?,
        };
        // Most of it stays as it was, and there descriptors differ by their addresses alone; where it was empty, a new table is, too.
        let first = entry.child(level, 0).encode(level);
        let step = if matches!(entry, Entry::Leaf(_)) { level.entry_size() } else { 0 };
        for index in (0..super::ENTRIES as u64).filter(|_| first != 0) {
            if span(level, area, index).is_some_and(|span| !self.range.overlaps(&span)) {
                self.mem.write(table, index as usize, first.wrapping_add(index.wrapping_mul(step)));
            }
        }
        for (index, span) in entries(level, area, self.range) {
            let old = entry.child(level, index);
            let new = match self.action(old, level, span)? {
                Action::Keep => old,
                Action::Replace(new) => new,
                Action::Descend(below) => Entry::Table(self.build(old, below, span, pending)?),
            };
            if new != Entry::EMPTY {
                write(self.mem, table, level, index, new);
            }
        }
        Ok(table)
    }

    /// Whether all of a table, which spans `span`, says `want`.
    ///
    /// Looks first just behind the range that was changed: where anything is left, it is most likely
    /// there, so that taking page after page from a full table does not scan it each time.
    fn is_uniform(&self, table: Pa, level: Level, want: Entry, span: IpaRange) -> bool {
        let end = self.range.end().0.min(span.end().0);
        let first = end.wrapping_sub(span.start().0).wrapping_shr(level.shift());
        let want = want.encode(level);
        outward(first).all(|i| self.mem.read(table, i as usize) == want)
    }
}

/// Put an unlinked table and all below it on the list.
fn detach<M: TableMemory + ?Sized>(mem: &mut M, table: Pa, level: Level, list: &mut TableList) {
    if let Some(below) = level.next().filter(|_| level != Level::L3) {
        for index in 0..super::ENTRIES as u64 {
            if let Entry::Table(child) = read(mem, table, level, index) {
                detach(mem, child, below, list);
            }
        }
    }
    list.push(mem, table);
}

/// The entries of a table for `area` that share something with `range`, and what each spans.
fn entries(level: Level, area: IpaRange, range: IpaRange) -> impl Iterator<Item = (u64, IpaRange)> {
    let part = area.intersection(&range);
    let index = move |addr: u64| addr.wrapping_sub(area.start().0).wrapping_shr(level.shift());
    // Where nothing is shared, from 1 to 0: nothing.
    let (first, last) = part.map_or((1, 0), |p| (index(p.start().0), index(p.end().0.wrapping_sub(1))));
    (first..=last).map_while(move |index| Some((index, span(level, area, index)?)))
}
