// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Big blocks again, once the pages between have come back.

use super::descriptor::{Entry, Level};
use super::{MapError, Stage2, TableMemory, Tlb, read, span, write};
use crate::addr::Pa;
use crate::memory::{IpaRange, outward};

impl Stage2 {
    /// Turn each table around `ipa` whose 512 entries are one contiguous run with the same attributes
    /// into a block, from the bottom up. Returns how many tables that gave back.
    ///
    /// Needs no memory. Costs a scan of each table that overlaps `ipa`, from there outward, up to the first entry that does not fit.
    ///
    /// # Errors
    /// [`MapError::IpaOutOfRange`], [`MapError::Dying`].
    pub fn coalesce<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        ipa: IpaRange,
    ) -> Result<u64, MapError> {
        let all = self.check(ipa)?;
        self.changes = self.changes.wrapping_add(1);
        Ok(self.coalesce_table(mem, tlb, (self.root, self.start, all), ipa))
    }

    fn coalesce_table<M: TableMemory + ?Sized, T: Tlb + ?Sized>(
        &mut self,
        mem: &mut M,
        tlb: &mut T,
        (table, level, area): (Pa, Level, IpaRange),
        ipa: IpaRange,
    ) -> u64 {
        let mut freed = 0u64;
        let (Some(part), Some(below)) = (area.intersection(&ipa), level.next()) else { return 0 };
        let index = |addr: u64| addr.wrapping_sub(area.start().0).wrapping_shr(level.shift());
        for i in index(part.start().0)..=index(part.end().0.wrapping_sub(1)) {
            let (Entry::Table(child), Some(span)) = (read(mem, table, level, i), span(level, area, i)) else {
                continue;
            };
            freed = freed.saturating_add(self.coalesce_table(mem, tlb, (child, below, span), ipa));
            let end = part.end().0.min(span.end().0);
            let behind = end.wrapping_sub(span.start().0).wrapping_shr(below.shift());
            if let Some(block) = as_block(mem, child, level, below, behind) {
                write(mem, table, level, i, Entry::EMPTY);
                tlb.invalidate(self.vmid, span, false);
                write(mem, table, level, i, block);
                mem.free_table(child);
                freed = freed.saturating_add(1);
            }
        }
        freed
    }
}

/// The block at `level` that says what the table `child` says, which is looked at around `from` first.
fn as_block<M: TableMemory + ?Sized>(
    mem: &M,
    child: Pa,
    level: Level,
    below: Level,
    from: u64,
) -> Option<Entry> {
    let block = match read(mem, child, below, 0) {
        first @ Entry::Leaf(leaf) if level != Level::L0 && leaf.pa.is_aligned(level.entry_size()) => first,
        _ => return None,
    };
    // Descriptors of a run differ by their addresses alone.
    let first = mem.read(child, 0);
    let same = |i: u64| mem.read(child, i as usize) == first.wrapping_add(i.wrapping_shl(below.shift()));
    outward(from).all(same).then_some(block)
}
