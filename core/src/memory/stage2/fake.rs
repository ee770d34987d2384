// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A machine for tests: table pages, a table walker that caches as much as the architecture allows,
//! and a checker of break-before-make. Knows nothing of the code under test but the two traits, and
//! reads descriptors by the Arm ARM's numbers.

use super::{OutOfTables, TableMemory, Tlb};
use crate::addr::Pa;
use crate::memory::IpaRange;
use std::collections::{BTreeMap, BTreeSet};

/// Bits that may change on a live leaf: S2AP, XN, software bits (Arm ARM D8.16.1).
const IN_PLACE: u64 = 0b11 << 6 | 0b11 << 53 | 0b1111 << 55;
const ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;

type Slot = (u64, usize);

#[derive(Clone)]
pub struct Machine {
    pub root: u64,
    root_pages: u64,
    start: u32,
    tables: BTreeMap<u64, [u64; 512]>,
    /// Where each table that a walk can reach stands: its level and the first address it translates.
    /// A walk may also go through a link that is only cached any more.
    place: BTreeMap<u64, (u32, u64)>,
    /// Valid descriptors that a slot no longer holds, and that may still be cached.
    stale: BTreeMap<Slot, BTreeSet<u64>>,
    next_table: u64,
    /// Allocations that still succeed.
    pub allowance: u64,
    pub allocated: BTreeSet<u64>,
    pub invalidations: u64,
    pub invalidated_all: u64,
}

/// What the hardware's walk finds: output address and the attribute bits of the descriptor, or the
/// invalid descriptor; and the level.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Translation {
    Mapped { pa: u64, attributes: u64, level: u32 },
    Fault { descriptor: u64, level: u32 },
}

impl Machine {
    pub fn new(root: u64, root_pages: u64, start: u32) -> Self {
        let mut m = Self {
            root,
            root_pages,
            start,
            tables: BTreeMap::new(),
            place: BTreeMap::new(),
            stale: BTreeMap::new(),
            next_table: 0x7_0000_0000,
            allowance: u64::MAX,
            allocated: BTreeSet::new(),
            invalidations: 0,
            invalidated_all: 0,
        };
        for n in 0..root_pages {
            m.tables.insert(root + n * 4096, [0; 512]);
            m.place.insert(root + n * 4096, (start, n << (shift(start) + 9)));
        }
        m
    }

    /// The walk of Arm ARM D8.2 for a stage-2 regime with concatenated tables.
    pub fn translate(&self, ipa: u64) -> Translation {
        let mut level = self.start;
        let first = ipa >> shift(level);
        assert!(first < 512 * self.root_pages, "beyond the input size");
        let mut descriptor = self.tables[&(self.root + first / 512 * 4096)][(first % 512) as usize];
        loop {
            let offset = ipa & ((1 << shift(level)) - 1);
            match (descriptor & 0b11, level) {
                (0b00 | 0b10, _) => return Translation::Fault { descriptor, level },
                (0b01, 1 | 2) | (0b11, 3) => {
                    let base = descriptor & ADDRESS;
                    assert_eq!(base & ((1 << shift(level)) - 1), 0, "misaligned block: {descriptor:#x}");
                    assert_ne!(descriptor & 1 << 10, 0, "access flag clear");
                    return Translation::Mapped {
                        pa: base + offset,
                        attributes: descriptor & !ADDRESS & !0b11,
                        level,
                    };
                }
                (0b11, _) => {
                    let table = descriptor & ADDRESS;
                    level += 1;
                    descriptor = self.tables[&table][(ipa >> shift(level)) as usize & 511];
                }
                _ => panic!("reserved descriptor {descriptor:#x} at level {level}"),
            }
        }
    }

    /// After a call: nothing stale is cached.
    pub fn assert_clean(&self) {
        assert!(self.stale.is_empty(), "stale: {:x?}", self.stale);
    }

    /// All tables and what they hold.
    pub fn content(&self) -> &BTreeMap<u64, [u64; 512]> {
        &self.tables
    }

    /// All tables below the root are linked, and none is empty or uniform.
    pub fn assert_tidy(&self) {
        let linked: BTreeSet<u64> = self.place.keys().copied().filter(|t| !self.is_root(*t)).collect();
        assert_eq!(linked, self.allocated, "tables lost");
        for t in &self.allocated {
            let table = &self.tables[t];
            let uniform = table[0] & 1 == 0 && table.iter().all(|d| *d == table[0]);
            assert!(!uniform, "a table that says {:#x} throughout", table[0]);
        }
    }

    fn is_root(&self, table: u64) -> bool {
        (self.root..self.root + self.root_pages * 4096).contains(&table)
    }

    /// A walk can reach this table from now on, and all below.
    fn link(&mut self, table: u64, at: (u32, u64)) {
        let entries = *self.tables.get(&table).unwrap_or_else(|| panic!("link to no table: {table:#x}"));
        if let Some(old) = self.place.insert(table, at) {
            assert_eq!(old, at, "a table linked twice");
        }
        for (i, child) in links(at.0, &entries) {
            self.link(child, (at.0 + 1, at.1 + ((i as u64) << shift(at.0))));
        }
    }

    /// Forget what no walk can reach any more.
    fn prune(&mut self) {
        let mut reachable = BTreeSet::new();
        let mut todo: Vec<u64> = (0..self.root_pages).map(|n| self.root + n * 4096).collect();
        while let Some(table) = todo.pop() {
            let level = self.place[&table].0;
            if reachable.insert(table) {
                todo.extend(links(level, &self.tables[&table]).map(|(_, child)| child));
                let stale = self.stale.range((table, 0)..=(table, 511)).flat_map(|(_, set)| set);
                todo.extend(stale.filter(|d| level < 3 && **d & 0b11 == 0b11).map(|d| d & ADDRESS));
            }
        }
        self.place.retain(|table, _| reachable.contains(table));
    }

    fn drop_cached(&mut self, last_level_only: bool, covers: impl Fn(u64, u64) -> bool) {
        let place = &self.place;
        self.stale.retain(|slot, set| {
            let (level, base) = place[&slot.0];
            let start = base + ((slot.1 as u64) << shift(level));
            if covers(start, start + (1 << shift(level))) {
                set.retain(|d| last_level_only && level < 3 && d & 0b11 == 0b11);
            }
            !set.is_empty()
        });
        self.prune();
    }
}

/// The tables that a table links to.
fn links(level: u32, table: &[u64; 512]) -> impl Iterator<Item = (usize, u64)> + use<> {
    let table = *table;
    (0..512).filter(move |i| level < 3 && table[*i] & 0b11 == 0b11).map(move |i| (i, table[i] & ADDRESS))
}

fn shift(level: u32) -> u32 {
    [39, 30, 21, 12][level as usize]
}

impl TableMemory for Machine {
    fn read(&self, table: Pa, index: usize) -> u64 {
        self.tables.get(&table.0).unwrap_or_else(|| panic!("read of no table at {table:?}"))[index]
    }

    fn write(&mut self, table: Pa, index: usize, descriptor: u64) {
        let slot = (table.0, index);
        let entry = self.tables.get_mut(&table.0).unwrap_or_else(|| panic!("write to no table at {table:?}"));
        let old = std::mem::replace(&mut entry[index], descriptor);
        let Some(&(level, base)) = self.place.get(&table.0) else { return };
        if old & 1 == 1 && old != descriptor {
            self.stale.entry(slot).or_default().insert(old);
        }
        if descriptor & 1 == 0 {
            return;
        }
        for old in self.stale.get(&slot).into_iter().flatten() {
            let leaf = |d: u64| level == 3 || d & 2 == 0;
            let in_place = leaf(*old) && leaf(descriptor) && (old ^ descriptor) & !IN_PLACE == 0;
            assert!(in_place, "break before make: {old:#x} to {descriptor:#x} at level {level}");
        }
        if level < 3 && descriptor & 2 != 0 {
            self.link(descriptor & ADDRESS, (level + 1, base + ((index as u64) << shift(level))));
        }
    }

    fn alloc_table(&mut self) -> Result<Pa, OutOfTables> {
        self.allowance = self.allowance.checked_sub(1).ok_or(OutOfTables)?;
        let table = self.next_table;
        self.next_table += 4096;
        self.tables.insert(table, [0; 512]);
        self.allocated.insert(table);
        Ok(Pa(table))
    }

    fn free_table(&mut self, table: Pa) {
        assert!(self.allocated.remove(&table.0), "double free of {table:?}");
        assert!(!self.place.contains_key(&table.0), "{table:?} freed while a walk can reach it");
        assert!(self.stale.keys().all(|slot| slot.0 != table.0), "{table:?} freed, entries still cached");
        self.tables.remove(&table.0);
    }
}

impl Tlb for Machine {
    fn invalidate(&mut self, _vmid: u16, range: IpaRange, last_level_only: bool) {
        self.invalidations += 1;
        let (start, end) = (range.start().0, range.end().0);
        self.drop_cached(last_level_only, |s, e| start <= s && e <= end);
    }

    fn invalidate_all(&mut self, _vmid: u16) {
        self.invalidated_all += 1;
        self.drop_cached(false, |_, _| true);
    }
}

/// The one machine, as table memory and as TLB at once.
pub struct Handle<'a, 'b>(pub &'a std::cell::RefCell<&'b mut Machine>);

impl TableMemory for Handle<'_, '_> {
    fn read(&self, table: Pa, index: usize) -> u64 {
        self.0.borrow().read(table, index)
    }
    fn write(&mut self, table: Pa, index: usize, descriptor: u64) {
        self.0.borrow_mut().write(table, index, descriptor);
    }
    fn alloc_table(&mut self) -> Result<Pa, OutOfTables> {
        self.0.borrow_mut().alloc_table()
    }
    fn free_table(&mut self, table: Pa) {
        self.0.borrow_mut().free_table(table);
    }
}

impl Tlb for Handle<'_, '_> {
    fn invalidate(&mut self, vmid: u16, range: IpaRange, last_level_only: bool) {
        self.0.borrow_mut().invalidate(vmid, range, last_level_only);
    }
    fn invalidate_all(&mut self, vmid: u16) {
        self.0.borrow_mut().invalidate_all(vmid);
    }
}
