// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Our stage-2 tables against the crate aarch64-paging: it reads what we wrote, and it builds the
//! same mapping, and both must come out alike, descriptor for descriptor.
//!
//! It has no concatenated roots, so each of ours is to it a table of its own.

use aarch64_paging::descriptor::{PhysicalAddress, Stage2Attributes as S2, VirtualAddress};
use aarch64_paging::paging::{
    Constraints, MemoryRegion, PageTable, RootTable, Stage2 as Regime, Translation,
};
use gzvm_core::addr::{Ipa, Pa};
use gzvm_core::memory::IpaRange;
use gzvm_core::memory::stage2::{Attrs, MemoryType, OutOfTables, SoftwareBits, Stage2, TableMemory, Tlb};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE: u64 = 4096;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;
const ROOT: u64 = 0x1_0000;

#[repr(C, align(4096))]
struct Page([AtomicU64; 512]);

/// Memory that both sides can use. Pages are never freed: it is a test.
#[derive(Clone, Default)]
struct Ram(Rc<RefCell<BTreeMap<u64, &'static Page>>>);

impl Ram {
    fn add(&self, pa: u64) {
        let page = Box::leak(Box::new(Page([const { AtomicU64::new(0) }; 512])));
        assert!(self.0.borrow_mut().insert(pa, page).is_none());
    }

    fn page(&self, pa: u64) -> &'static Page {
        self.0.borrow()[&pa]
    }

    fn next(&self) -> u64 {
        let pa = 0x4000_0000 + self.0.borrow().len() as u64 * PAGE;
        self.add(pa);
        pa
    }
}

impl TableMemory for Ram {
    fn read(&self, table: Pa, index: usize) -> u64 {
        self.page(table.0).0[index].load(Ordering::Relaxed)
    }
    fn write(&mut self, table: Pa, index: usize, descriptor: u64) {
        self.page(table.0).0[index].store(descriptor, Ordering::Relaxed);
    }
    fn alloc_table(&mut self) -> Result<Pa, OutOfTables> {
        Ok(Pa(self.next()))
    }
    fn free_table(&mut self, _: Pa) {}
}

struct NoTlb;

impl Tlb for NoTlb {
    fn invalidate(&mut self, _: u16, _: IpaRange, _: bool) {}
    fn invalidate_all(&mut self, _: u16) {}
}

/// aarch64-paging's view of the memory. The first table it asks for is `root`.
struct View {
    ram: Ram,
    root: Option<u64>,
}

impl Translation<S2> for View {
    fn allocate_table(&mut self) -> (NonNull<PageTable<S2>>, PhysicalAddress) {
        let pa = self.root.take().unwrap_or_else(|| self.ram.next());
        (NonNull::from(self.ram.page(pa)).cast(), PhysicalAddress(pa as usize))
    }
    unsafe fn deallocate_table(&mut self, _: NonNull<PageTable<S2>>) {}
    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<S2>> {
        NonNull::from(self.ram.page(pa.0 as u64)).cast()
    }
}

type Table = RootTable<Regime, View>;

/// The root tables at `root`, as aarch64-paging sees them, each with the first IPA it translates.
fn tables(ram: &Ram, root: u64, ipa_bits: u8) -> Vec<(u64, Table)> {
    let level = if ipa_bits > 43 {
        0
    } else if ipa_bits > 34 {
        1
    } else {
        2
    };
    let span = 512 << (39 - 9 * level);
    (0..Stage2::root_pages(ipa_bits) as u64)
        .map(|n| {
            let view = View { ram: ram.clone(), root: Some(root + n * PAGE) };
            (n * span, RootTable::new(view, level as usize, Regime))
        })
        .collect()
}

/// IPA, bytes, PA, attributes.
type Leaf = (u64, u64, u64, usize);

fn leaves(tables: &[(u64, Table)]) -> Vec<Leaf> {
    let mut all = vec![];
    for (base, table) in tables {
        let region = MemoryRegion::new(0, table.size());
        table
            .walk_range(&region, &mut |range, descriptor, level| {
                if descriptor.is_valid() {
                    assert_eq!(descriptor.is_table_or_page(), level == 3);
                    let flags = descriptor.flags() - S2::TABLE_OR_PAGE;
                    assert!((flags - S2::all()).is_empty(), "unknown bits: {flags:?}");
                    let start = base + range.start().0 as u64;
                    all.push((start, range.len() as u64, descriptor.output_address().0 as u64, flags.bits()));
                }
                Ok(())
            })
            .unwrap();
    }
    all
}

/// Leaves that continue each other, as one.
fn runs(leaves: Vec<Leaf>) -> Vec<Leaf> {
    let mut runs: Vec<Leaf> = vec![];
    for leaf in leaves {
        match runs.last_mut() {
            Some(last) if last.0 + last.1 == leaf.0 && last.2 + last.1 == leaf.2 && last.3 == leaf.3 => {
                last.1 += leaf.1;
            }
            _ => runs.push(leaf),
        }
    }
    runs
}

fn flags(attrs: Attrs) -> S2 {
    let mut flags = S2::VALID | S2::ACCESS_FLAG | S2::SH_INNER;
    flags |= match attrs.memory {
        MemoryType::Normal => S2::MEMATTR_NORMAL_INNER_WB | S2::MEMATTR_NORMAL_OUTER_WB,
        // The crate has no names for HCR_EL2.FWB = 1 (Arm ARM D8.6.6: MemAttr[2:0] = 0b110).
        MemoryType::Forced => S2::from_bits_retain(0b0110 << 2),
        MemoryType::Device => S2::MEMATTR_DEVICE_nGnRE,
    };
    flags |= match (attrs.read, attrs.write) {
        (false, false) => S2::S2AP_ACCESS_NONE,
        (true, false) => S2::S2AP_ACCESS_RO,
        (false, true) => S2::S2AP_ACCESS_WO,
        (true, true) => S2::S2AP_ACCESS_RW,
    };
    if !attrs.execute {
        flags |= S2::XN;
    }
    let software = [S2::SWFLAG_0, S2::SWFLAG_1, S2::SWFLAG_2, S2::SWFLAG_3];
    for (i, bit) in software.into_iter().enumerate() {
        if attrs.software.get() & 1 << i != 0 {
            flags |= bit;
        }
    }
    flags
}

fn map_oracle(tables: &mut [(u64, Table)], range: IpaRange, pa: u64, flags: S2) {
    let size = tables[0].1.size() as u64;
    for (base, table) in tables {
        let start = range.start().0.max(*base);
        let end = range.end().0.min(*base + size);
        if start < end {
            let pa = PhysicalAddress(pa.wrapping_add(start - range.start().0) as usize);
            let region = MemoryRegion::from(
                VirtualAddress((start - *base) as usize)..VirtualAddress((end - *base) as usize),
            );
            table.map_range(&region, pa, flags, Constraints::NO_CONTIGUOUS_HINT).unwrap();
        }
    }
}

fn attrs() -> impl Strategy<Value = Attrs> {
    let memory = prop_oneof![Just(MemoryType::Normal), Just(MemoryType::Forced), Just(MemoryType::Device)];
    (any::<[bool; 3]>(), memory, 0u8..16).prop_map(|([read, write, execute], memory, software)| Attrs {
        read,
        write,
        execute,
        memory,
        software: SoftwareBits::new(software).unwrap(),
    })
}

/// A start, a size, a PA: off from each other by a page, 2 MiB, 1 GiB, or not.
fn mappings(ipa_bits: u8) -> impl Strategy<Value = (IpaRange, u64, Attrs)> {
    let end = 1u64 << ipa_bits;
    let near = |unit: u64, n: u64| (0..n).prop_map(move |i| i * unit);
    let start = (
        prop_oneof![Just(0), Just(512 * G1 - 2 * G1), Just(end - 4 * G1)],
        near(G1, 4),
        prop_oneof![near(M2, 3), Just(G1 - M2)],
        prop_oneof![Just(0), near(PAGE, 3), Just(M2 - PAGE)],
    )
        .prop_map(|(a, b, c, d)| a + b + c + d);
    let size =
        prop_oneof![near(PAGE, 4), near(M2, 3), near(G1, 3), (0..3 * M2 / PAGE).prop_map(|n| n * PAGE)];
    let offset = prop_oneof![
        4 => Just(0u64),
        2 => near(G1, 9),
        2 => near(M2, 9),
        1 => near(PAGE, 9),
    ];
    (start, size, offset, attrs()).prop_filter_map("not a range", move |(start, size, offset, attrs)| {
        let size = if offset % M2 != 0 { size.min(2 * M2) } else { size };
        let range = IpaRange::new(Ipa(start % end), size.min(end - start % end)).ok()?;
        Some((range, range.start().0 + offset, attrs))
    })
}

#[derive(Clone, Debug)]
enum Call {
    Map,
    Unmap,
    Protect,
}

fn check(ipa_bits: u8, calls: &[(Call, (IpaRange, u64, Attrs))], exact: bool) {
    let (ram, theirs) = (Ram::default(), Ram::default());
    for n in 0..Stage2::root_pages(ipa_bits) as u64 {
        ram.add(ROOT + n * PAGE);
        theirs.add(ROOT + n * PAGE);
    }
    let mut s2 = Stage2::new(Pa(ROOT), ipa_bits, 48, 1).unwrap();
    let mut oracle = tables(&theirs, ROOT, ipa_bits);
    let (mem, tlb) = (&mut ram.clone(), &mut NoTlb);
    for (call, (range, pa, attrs)) in calls {
        match call {
            Call::Map => {
                if s2.map(mem, tlb, *range, Pa(*pa), *attrs).is_ok() {
                    map_oracle(&mut oracle, *range, *pa, flags(*attrs));
                }
            }
            Call::Unmap => {
                s2.unmap(mem, tlb, *range).unwrap();
                // The address means nothing, but it computes with it.
                map_oracle(&mut oracle, *range, range.start().0, S2::empty());
            }
            Call::Protect => {
                // It has no change of attributes without a new address: map each run again.
                if s2.protect(mem, tlb, *range, *attrs).is_ok() {
                    for (ipa, size, pa, _) in runs(leaves(&oracle)) {
                        let run = IpaRange::new(Ipa(ipa), size).unwrap();
                        if let Some(part) = run.intersection(range) {
                            let pa = pa + (part.start().0 - ipa);
                            map_oracle(&mut oracle, part, pa, flags(*attrs));
                        }
                    }
                }
            }
        }
        let ours = leaves(&tables(&ram, ROOT, ipa_bits));
        let want = leaves(&oracle);
        if exact {
            assert_eq!(ours, want, "{call:?} {range:x?}");
        } else {
            assert_eq!(runs(ours), runs(want), "{call:?} {range:x?}");
        }
    }
}

fn calls(ipa_bits: u8) -> impl Strategy<Value = Vec<(Call, (IpaRange, u64, Attrs))>> {
    let call = prop_oneof![4 => Just(Call::Map), 2 => Just(Call::Unmap), 1 => Just(Call::Protect)];
    prop::collection::vec((call, mappings(ipa_bits)), 1..20)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    /// Fresh mappings: the same blocks, the same bits.
    #[test]
    fn same_descriptors(
        bits in prop::sample::select(vec![34u8, 39, 40, 43, 48]),
        mappings in prop::collection::vec(mappings(34), 1..6),
    ) {
        let calls: Vec<_> = mappings.into_iter().map(|m| (Call::Map, m)).collect();
        check(bits, &calls, true);
    }

    /// After any history: the same translations.
    #[test]
    fn same_translations_two_roots(calls in calls(40)) {
        check(40, &calls, false);
    }

    #[test]
    fn same_translations_sixteen_roots_at_level_2(calls in calls(34)) {
        check(34, &calls, false);
    }

    #[test]
    fn same_translations_four_levels(calls in calls(48)) {
        check(48, &calls, false);
    }
}
