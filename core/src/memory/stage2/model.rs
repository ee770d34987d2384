// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random changes against a model: a list of intervals. After each, every interval is translated by
//! an independent walker, and allocation has failed at every point where it could.

use super::fake::{Handle, Machine, Translation};
use super::*;
use proptest::prelude::*;
use std::cell::RefCell;

const PAGE: u64 = 4096;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Unmapped(u32),
    /// At IPA + offset (wrapping).
    Mapped(u64, Attrs),
}

/// What stands between each edge and the next.
struct Model {
    edges: Vec<u64>,
    is: Vec<Is>,
    pa_end: u64,
}

#[derive(Clone, Debug)]
enum Call {
    Map { offset: u64, attrs: Attrs, over: u32 },
    Unmap,
    Annotate(u32),
    Protect(Attrs),
    Coalesce,
}

impl Model {
    fn intervals(&self, range: IpaRange) -> impl Iterator<Item = usize> + use<> {
        let at = |a: Ipa| self.edges.binary_search(&a.0).unwrap();
        at(range.start())..at(range.end())
    }

    fn call(&mut self, range: IpaRange, call: &Call) -> Result<(), MapError> {
        let all = self.intervals(range);
        match *call {
            Call::Map { offset, attrs, over } => {
                let pa = range.start().0.wrapping_add(offset);
                if pa > self.pa_end || self.pa_end - pa < range.size() {
                    return Err(MapError::PaOutOfRange);
                }
                let new = Is::Mapped(offset, attrs);
                let fits = |is| is == new || is == Is::Unmapped(0) || is == Is::Unmapped(over);
                let mut all = all;
                if let Some(bad) = all.find(|i| !fits(self.is[*i])) {
                    return Err(MapError::Conflict(Ipa(self.edges[bad])));
                }
                self.intervals(range).for_each(|i| self.is[i] = new);
            }
            Call::Unmap => all.for_each(|i| self.is[i] = Is::Unmapped(0)),
            Call::Annotate(note) => all.for_each(|i| self.is[i] = Is::Unmapped(note)),
            Call::Protect(attrs) => {
                let mut all = all;
                if let Some(bad) = all.find(|i| matches!(self.is[*i], Is::Unmapped(_))) {
                    return Err(MapError::NotMapped(Ipa(self.edges[bad])));
                }
                for i in self.intervals(range) {
                    let Is::Mapped(offset, _) = self.is[i] else { unreachable!() };
                    self.is[i] = Is::Mapped(offset, attrs);
                }
            }
            Call::Coalesce => {}
        }
        Ok(())
    }

    /// By the implementation's own walk, and by the machine's.
    fn compare(&self, s2: &Stage2, m: &Machine) {
        for (i, is) in self.is.iter().enumerate() {
            let (start, end) = (self.edges[i], self.edges[i + 1]);
            for ipa in [start, start + 0xabc, end - PAGE, end - 1] {
                let walk = s2.walk(m, Ipa(ipa));
                match (*is, m.translate(ipa)) {
                    (Is::Unmapped(note), Translation::Fault { descriptor, level }) => {
                        assert_eq!(descriptor, u64::from(note) << 32);
                        let Walk::Unmapped { note: n, level: l } = walk else { panic!("{ipa:#x}: {walk:?}") };
                        assert_eq!((n.0, u32::from(l.number())), (note, level));
                    }
                    (Is::Mapped(offset, attrs), Translation::Mapped { pa, attributes, level }) => {
                        assert_eq!(pa, ipa.wrapping_add(offset));
                        assert_eq!(attributes, bits(attrs));
                        let Walk::Mapped { pa: p, attrs: a, level: l } = walk else {
                            panic!("{ipa:#x}: {walk:?}")
                        };
                        assert_eq!((p.0, a, u32::from(l.number())), (pa, attrs, level));
                    }
                    (want, got) => panic!("{ipa:#x}: {want:?}, but {got:?}"),
                }
            }
        }
    }

    /// Where a whole block is one thing, and aligned, it is a block. A GiB may have tables of pages that were not looked at,
    /// unless all of it was.
    fn assert_coalesced(&self, range: IpaRange, s2: &Stage2, m: &Machine) {
        for (size, top) in [(M2, Level::L1), (G1, Level::L1)] {
            if size == G1 && s2.start > top {
                continue;
            }
            for i in self.intervals(range) {
                let block = self.edges[i] & !(size - 1);
                if size == G1 && (block < range.start().0 || range.end().0 < block + size) {
                    continue;
                }
                let first = self.edges.partition_point(|e| *e <= block) - 1;
                let beyond = self.edges.partition_point(|e| *e < block + size);
                let one = self.is[first..beyond].iter().all(|is| *is == self.is[i]);
                if let (true, Is::Mapped(offset, _)) = (one, self.is[i])
                    && offset.is_multiple_of(size)
                {
                    let Walk::Mapped { level, .. } = s2.walk(m, Ipa(block)) else { panic!() };
                    assert!(level.entry_size() >= size, "{block:#x} is in pieces of {level:?}");
                }
            }
        }
    }
}

/// The attribute bits of a leaf, by the Arm ARM (D8.3.1.2, stage 2).
fn bits(attrs: Attrs) -> u64 {
    let mut bits = 1 << 10 | 0b11 << 8;
    bits |= match attrs.memory {
        MemoryType::Normal => 0b1111 << 2,
        MemoryType::Forced => 0b0110 << 2,
        MemoryType::Device => 0b0001 << 2,
    };
    bits |= u64::from(attrs.read) << 6 | u64::from(attrs.write) << 7;
    bits |= u64::from(!attrs.execute) << 54 | u64::from(attrs.software.get()) << 55;
    bits
}

/// Page, 2 MiB, 1 GiB and 512 GiB borders and what is next to them.
fn edges(ipa_bits: u8) -> Vec<u64> {
    let end = 1u64 << ipa_bits;
    let mut edges = vec![0, end - G1, end - M2, end - PAGE, end];
    for g in [0, 1, 2, 511, 512, 513] {
        for m in [0, 1, 2, 511] {
            for p in [0, 1, 2, 511] {
                edges.push(g * G1 + m * M2 + p * PAGE);
            }
        }
    }
    edges.retain(|e| *e <= end);
    edges.sort_unstable();
    edges.dedup();
    edges
}

fn attrs() -> impl Strategy<Value = Attrs> {
    let software = (0u8..16).prop_map(|b| SoftwareBits::new(b).unwrap());
    prop_oneof![
        4 => Just(Attrs::RAM),
        2 => Just(Attrs { memory: MemoryType::Forced, ..Attrs::RAM }),
        2 => Just(Attrs::RAM_RO),
        2 => Just(Attrs::DEVICE),
        1 => Just(Attrs::RAM_NX),
        1 => software.prop_map(|s| Attrs::RAM.with_software(s)),
    ]
}

fn calls() -> impl Strategy<Value = Call> {
    let offset = prop_oneof![
        6 => Just(0u64),
        2 => Just(G1),
        1 => Just(G1.wrapping_neg()),
        2 => Just(M2),
        1 => Just(M2.wrapping_neg()),
        2 => Just(PAGE),
        1 => Just(PAGE.wrapping_neg()),
        1 => Just((1 << 47) - PAGE),
    ];
    let over = prop_oneof![2 => Just(0u32), 1 => 1..3u32];
    prop_oneof![
        6 => (offset, attrs(), over).prop_map(|(offset, attrs, over)| Call::Map { offset, attrs, over }),
        3 => Just(Call::Unmap),
        2 => (1..3u32).prop_map(Call::Annotate),
        2 => attrs().prop_map(Call::Protect),
        1 => Just(Call::Coalesce),
    ]
}

/// A start, and a length, as indices of edges; mostly short, sometimes everything.
fn steps() -> impl Strategy<Value = Vec<(prop::sample::Index, usize, Call)>> {
    let length = prop_oneof![4 => 1..4usize, 3 => 4..20usize, 1 => Just(1000usize)];
    prop::collection::vec((any::<prop::sample::Index>(), length, calls()), 1..40)
}

fn run(ipa_bits: u8, steps: &[(prop::sample::Index, usize, Call)], budget: u64) {
    let edges = edges(ipa_bits);
    let mut s2 = Stage2::new(Pa(0x4001_0000), ipa_bits, 48, 3).unwrap();
    let root_pages = Stage2::root_pages(ipa_bits) as u64;
    let mut machine = Machine::new(0x4001_0000, root_pages, s2.start.number().into());
    let mut model = Model { is: vec![Is::Unmapped(0); edges.len() - 1], edges, pa_end: 1 << 48 };

    for (number, (start, length, call)) in steps.iter().enumerate() {
        let first = start.index(model.edges.len() - 1);
        let start = model.edges[first];
        let mut end = model.edges[(first + length).min(model.edges.len() - 1)];
        if let Call::Map { offset, .. } = call {
            // Not millions of entries in one call.
            let most = match offset & (G1 - 1) {
                0 if s2.start == Level::L0 => 600 * G1,
                0 => u64::MAX,
                o if o & (M2 - 1) == 0 && s2.start == Level::L1 => 2 * G1 + M2,
                o if o & (M2 - 1) == 0 => G1,
                _ => 2 * M2,
            };
            let limit = start.saturating_add(most);
            end = end.min(model.edges[model.edges.partition_point(|e| *e <= limit) - 1]);
            if end <= start {
                continue;
            }
        }
        let range = IpaRange::new(Ipa(start), end - start).unwrap();
        let want = model.call(range, call);
        let before = machine.content().clone();
        let counted = machine.invalidations;
        let mut allowance = 0;
        let got = loop {
            machine.allowance = allowance;
            let cell = RefCell::new(&mut machine);
            let (mem, tlb) = (&mut Handle(&cell), &mut Handle(&cell));
            let got = match *call {
                Call::Map { offset, attrs, over } => {
                    let pa = Pa(start.wrapping_add(offset));
                    match s2.vacancy(mem, range) {
                        Some(vacancy) if number % 2 == 0 => s2.fill(mem, tlb, vacancy, pa, attrs),
                        _ => s2.map_over(mem, tlb, range, pa, attrs, Annotation(over)),
                    }
                }
                Call::Unmap => s2.unmap(mem, tlb, range),
                Call::Annotate(note) => s2.annotate(mem, tlb, range, Annotation(note)),
                Call::Protect(attrs) => s2.protect(mem, tlb, range, attrs),
                Call::Coalesce => s2.coalesce(mem, tlb, range).map(|_| ()),
            };
            machine.assert_clean();
            if got != Err(MapError::OutOfTables(OutOfTables)) {
                break got;
            }
            assert!(*machine.content() == before, "a failed call changed the tables");
            assert_eq!(machine.invalidations, counted, "a failed call was not silent");
            allowance += 1;
            assert!(allowance < 20);
        };
        assert_eq!(machine.allowance, 0, "tables taken that were not needed, or not reserved");
        assert_eq!(got, want, "{call:?} of {range:x?}");
        if got.is_err() {
            assert!(*machine.content() == before, "a refused call changed the tables");
        }
        if let Call::Map { .. } = call {
            assert_eq!(machine.invalidations, counted, "new mappings need no TLB maintenance");
        }
        machine.assert_tidy();
        model.compare(&s2, &machine);
        if let Call::Coalesce = call {
            model.assert_coalesced(range, &s2, &machine);
        }
    }

    teardown(&mut s2, &mut machine, &model, budget);
}

/// Everything mapped is reported once, in order, and all tables come back.
fn teardown(s2: &mut Stage2, machine: &mut Machine, model: &Model, budget: u64) {
    let mut at = 0;
    let mut next = |seen: Mapped| {
        assert!(seen.ipa.start().0 >= at);
        at = seen.ipa.end().0;
        let i = model.edges.partition_point(|e| *e <= seen.ipa.start().0) - 1;
        let Is::Mapped(offset, attrs) = model.is[i] else { panic!("{seen:?}") };
        assert_eq!((seen.attrs, seen.pa.start().0), (attrs, seen.ipa.start().0.wrapping_add(offset)));
        seen.ipa.size()
    };
    let mut listed = vec![];
    let all = IpaRange::new(Ipa(0), 1 << s2.ipa_bits()).unwrap();
    s2.for_each(machine, all, |m| {
        listed.push(m);
        true
    });
    let mut seen = vec![];
    loop {
        let cell = RefCell::new(&mut *machine);
        let (mem, tlb) = (&mut Handle(&cell), &mut Handle(&cell));
        let progress = s2.teardown_step(mem, tlb, budget, |_, mapped| seen.push(mapped));
        machine.assert_clean();
        if progress == Progress::Done {
            break;
        }
    }
    assert_eq!(seen, listed);
    let bytes: u64 = seen.into_iter().map(&mut next).sum();
    let want: u64 = (0..model.is.len())
        .filter(|i| matches!(model.is[*i], Is::Mapped(..)))
        .map(|i| model.edges[i + 1] - model.edges[i])
        .sum();
    assert_eq!(bytes, want);
    assert!(machine.allocated.is_empty(), "tables lost");
    assert!(machine.content().values().flatten().all(|d| *d == 0), "the root is not clean");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_concatenated_tables(steps in steps(), budget in prop_oneof![1..9u64, Just(512), Just(u64::MAX)]) {
        run(40, &steps, budget);
    }

    #[test]
    fn one_table(steps in steps()) {
        run(39, &steps, 4096);
    }

    #[test]
    fn sixteen_tables_at_level_2(steps in steps()) {
        run(34, &steps, 4096);
    }

    #[test]
    fn four_levels(steps in steps()) {
        run(48, &steps, 1 << 20);
    }
}
