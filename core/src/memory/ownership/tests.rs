// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The table against a simple, slow specification: one map entry per granule, rules as prose.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

const MIB: u64 = 1 << 20;

/// Starts and ends off block boundaries; a second bank adjoins it in mid-block; a third lies apart,
/// within one block.
fn banks() -> Vec<PaRange> {
    [(0x4010_0000, 5 * MIB + 0x3000), (0x4060_3000, 3 * MIB), (0x8000_8000, 0x10000)]
        .map(|(start, size)| PaRange::new(Pa(start), size).unwrap())
        .to_vec()
}

fn leak(n: usize) -> &'static mut [u32] {
    // Nothing may depend on what the storage holds at first.
    vec![0xDEAD_BEEF; n].leak()
}

fn table(banks: &[PaRange]) -> Ownership<'static> {
    let sizes = Sizes::of(banks);
    Ownership::new(banks, leak(sizes.blocks), leak(sizes.pages)).unwrap()
}

fn run(start: u64, size: u64) -> PaRange {
    PaRange::new(Pa(start), size).unwrap()
}

/// The specification. A granule has an owner, viewers, may be lent, and may be dirty.
#[derive(Clone, Debug, PartialEq)]
struct Granule {
    owner: Owner,
    /// Mappings that are not the owner's: in unprotected VMs for the host's, the host's for a VM's.
    viewers: u32,
    lent: Option<Lent>,
}

/// A protected VM's page that VM `to` may map, and has `mapped`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lent {
    to: u16,
    write: bool,
    mapped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Hypervisor,
    Host,
    Vm(u16),
    Nobody,
}

struct Spec(BTreeMap<u64, Granule>);

#[derive(Clone, Debug)]
enum Ask {
    Transition(Transition),
    Take(u16),
    Spare,
    GiveBack,
}

impl Spec {
    /// One granule's future, or a refusal.
    fn ask(granule: &Granule, ask: &Ask) -> Option<Granule> {
        let g = |owner, viewers| Some(Granule { owner, viewers, lent: None });
        let alone = granule.viewers == 0 && granule.lent.is_none();
        // The page of the loan's owner is lent to its borrower with its rights.
        let as_lent = |loan: &Loan, mapped| {
            let lent = Lent { to: loan.borrower.0, write: loan.write, mapped };
            (granule.owner == Owner::Vm(loan.owner.0) && granule.lent == Some(lent)).then_some(lent)
        };
        let mapped = |lent, mapped| Some(Granule { lent: Some(Lent { mapped, ..lent }), ..granule.clone() });
        match *ask {
            Ask::Transition(Transition::HostToHypervisor) if granule.owner == Owner::Host && alone => {
                g(Owner::Hypervisor, 0)
            }
            Ask::Transition(Transition::HypervisorToHost) if granule.owner == Owner::Hypervisor => {
                g(Owner::Host, 0)
            }
            Ask::Transition(Transition::DonateToVm(vm)) if granule.owner == Owner::Host && alone => {
                g(Owner::Vm(vm.0), 0)
            }
            Ask::Transition(Transition::ShareWithVm)
                if granule.owner == Owner::Host && granule.viewers < 65535 =>
            {
                g(Owner::Host, granule.viewers + 1)
            }
            Ask::Transition(Transition::UnshareWithVm) if granule.owner == Owner::Host && !alone => {
                g(Owner::Host, granule.viewers - 1)
            }
            Ask::Transition(Transition::VmShare(vm)) if granule.owner == Owner::Vm(vm.0) && alone => {
                g(granule.owner, 1)
            }
            Ask::Transition(Transition::VmUnshare(vm))
                if granule.owner == Owner::Vm(vm.0) && granule.viewers != 0 =>
            {
                g(granule.owner, 0)
            }
            Ask::Transition(Transition::VmLend(loan))
                if granule.owner == Owner::Vm(loan.owner.0)
                    && alone
                    && loan.borrower != loan.owner
                    && loan.borrower.0 < 4096 =>
            {
                mapped(Lent { to: loan.borrower.0, write: loan.write, mapped: false }, false)
            }
            Ask::Transition(Transition::VmRetrieve(loan)) => mapped(as_lent(&loan, false)?, true),
            Ask::Transition(Transition::VmRelinquish(loan)) => mapped(as_lent(&loan, true)?, false),
            Ask::Transition(Transition::VmReclaim(loan)) => as_lent(&loan, false).and(g(granule.owner, 0)),
            Ask::Take(vm) if granule.owner == Owner::Vm(vm) && granule.lent.is_none() => g(Owner::Nobody, 0),
            Ask::Spare if granule.owner == Owner::Hypervisor => g(Owner::Nobody, 0),
            Ask::GiveBack if granule.owner == Owner::Nobody => g(Owner::Host, 0),
            _ => None,
        }
    }

    /// All of a run or nothing.
    fn apply(&mut self, range: PaRange, ask: &Ask) -> bool {
        let mut after = vec![];
        for frame in range.start().frame()..range.end().frame() {
            match self.0.get(&frame).and_then(|g| Self::ask(g, ask)) {
                Some(g) => after.push((frame, g)),
                None => return false,
            }
        }
        self.0.extend(after);
        true
    }
}

fn granule(state: State) -> Granule {
    let lent = |loan: Loan, mapped| {
        (Owner::Vm(loan.owner.0), 0, Some(Lent { to: loan.borrower.0, write: loan.write, mapped }))
    };
    let (owner, viewers, lent) = match state {
        State::Hypervisor => (Owner::Hypervisor, 0, None),
        State::Host => (Owner::Host, 0, None),
        State::HostShared(n) => {
            assert_ne!(n, 0);
            (Owner::Host, n.into(), None)
        }
        State::Vm(vm) => (Owner::Vm(vm.0), 0, None),
        State::VmShared(vm) => (Owner::Vm(vm.0), 1, None),
        State::Lent(loan) => lent(loan, false),
        State::Retrieved(loan) => lent(loan, true),
        State::Dirty => (Owner::Nobody, 0, None),
    };
    Granule { owner, viewers, lent }
}

fn compare(table: &Ownership<'_>, spec: &Spec) {
    let mut counts = Counts::default();
    for (frame, want) in &spec.0 {
        let state = table.state(Pa(frame << 12)).unwrap();
        assert_eq!(granule(state), *want, "frame {frame:#x}");
        *counts.of(state) += 1;
    }
    assert_eq!(table.counts(), counts);
    // A block is one entry whenever its granules agree.
    for bank in &table.banks {
        for chunk in table.chunks(bank.ram).map(Result::unwrap) {
            let mut states = pages_of(chunk.whole).map(|p| table.state(p.start()).unwrap());
            let first = states.next().unwrap();
            assert_eq!(!table.is_mixed(chunk.block), states.all(|s| s == first), "{:?}", chunk.whole);
        }
    }
}

fn asks() -> impl Strategy<Value = Ask> {
    let vm = || (1u16..3).prop_map(VmId);
    let loan =
        || (vm(), vm(), any::<bool>()).prop_map(|(owner, borrower, write)| Loan { owner, borrower, write });
    let lending = prop_oneof![
        2 => loan().prop_map(Transition::VmLend),
        1 => loan().prop_map(Transition::VmRetrieve),
        1 => loan().prop_map(Transition::VmRelinquish),
        1 => loan().prop_map(Transition::VmReclaim),
    ];
    prop_oneof![
        1 => Just(Ask::Transition(Transition::HostToHypervisor)),
        3 => Just(Ask::Transition(Transition::HypervisorToHost)),
        2 => vm().prop_map(|v| Ask::Transition(Transition::DonateToVm(v))),
        2 => Just(Ask::Transition(Transition::ShareWithVm)),
        2 => Just(Ask::Transition(Transition::UnshareWithVm)),
        1 => vm().prop_map(|v| Ask::Transition(Transition::VmShare(v))),
        1 => vm().prop_map(|v| Ask::Transition(Transition::VmUnshare(v))),
        4 => lending.prop_map(Ask::Transition),
        2 => vm().prop_map(|v| Ask::Take(v.0)),
        1 => Just(Ask::Spare),
        2 => Just(Ask::GiveBack),
    ]
}

/// Frames where something changes: bank and block edges, and their neighbours.
fn ranges() -> impl Strategy<Value = PaRange> {
    let mut edges = vec![];
    for bank in banks() {
        for pa in [bank.start().0, bank.end().0] {
            edges.extend([pa - 4096, pa, pa + 4096]);
        }
    }
    for block in [0x4020_0000u64, 0x4040_0000, 0x4060_0000, 0x4080_0000] {
        edges.extend([block - 4096, block, block + 4096, block + 0x7000]);
    }
    edges.sort_unstable();
    edges.dedup();
    let n = edges.len();
    // Mostly neighbouring edges, so that later steps meet what earlier ones did.
    (0..n - 1, prop_oneof![3 => 1..3usize, 1 => 3..n]).prop_map(move |(i, span)| {
        let end = edges[(i + span).min(n - 1)];
        run(edges[i], end - edges[i])
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// Threat 5: random sequences, every granule compared after every step.
    #[test]
    fn sequences(steps in prop::collection::vec((ranges(), asks()), 1..60)) {
        let banks = banks();
        let mut table = table(&banks);
        let mut spec = Spec(
            banks
                .iter()
                .flat_map(|b| b.start().frame()..b.end().frame())
                .map(|f| (f, Granule { owner: Owner::Hypervisor, viewers: 0, lent: None }))
                .collect(),
        );
        compare(&table, &spec);
        for (range, ask) in &steps {
            let expected = spec.apply(*range, ask);
            let did = match ask {
                Ask::Transition(t) => table.apply(*range, *t).is_ok(),
                Ask::Take(vm) => table.take(*range, VmId(*vm)).map(|dirty| drop(dirty.scrub(u64::MAX, |_| {}))).is_ok(),
                Ask::Spare => table.spare(*range).map(|dirty| drop(dirty.scrub(u64::MAX, |_| {}))).is_ok(),
                // As if some token had been kept; the state of each granule is what counts.
                Ask::GiveBack => table.give_back(Scrubbed(*range)).is_ok(),
            };
            prop_assert_eq!(did, expected, "{:?} of {:?}", ask, range);
            compare(&table, &spec);
        }
    }
}

/// Every state against every step, by the specification.
#[test]
fn whole_transition_table() {
    let vms = [VmId(1), VmId(2), VmId(0xFFFE)];
    let mut states = vec![State::Hypervisor, State::Host, State::Dirty];
    states.extend([1, 2, 0xFFFE, 0xFFFF].map(State::HostShared));
    states.extend(vms.map(State::Vm));
    states.extend(vms.map(State::VmShared));
    let both = |(owner, borrower)| [false, true].map(|write| Loan { owner, borrower, write });
    let pairs = vms.iter().flat_map(|owner| [1, 2, 3, 0xFFF].map(|n| (*owner, VmId(n))));
    let loans: Vec<_> = pairs.filter(|(owner, borrower)| owner != borrower).flat_map(both).collect();
    states.extend(loans.iter().copied().flat_map(|loan| [State::Lent(loan), State::Retrieved(loan)]));
    use Transition as T;
    let mut asks = [T::HostToHypervisor, T::HypervisorToHost, T::ShareWithVm, T::UnshareWithVm]
        .map(Ask::Transition)
        .to_vec();
    for vm in vms {
        asks.extend([T::DonateToVm(vm), T::VmShare(vm), T::VmUnshare(vm)].map(Ask::Transition));
        asks.push(Ask::Take(vm.0));
    }
    // And to itself, and to a VM that no entry can name.
    let odd = [(vms[0], vms[0]), (vms[0], VmId(0x1000)), (vms[0], vms[2])].into_iter().flat_map(both);
    for loan in loans.into_iter().chain(odd) {
        asks.extend(
            [T::VmLend(loan), T::VmRetrieve(loan), T::VmRelinquish(loan), T::VmReclaim(loan)]
                .map(Ask::Transition),
        );
    }
    asks.extend([Ask::Spare, Ask::GiveBack]);
    for &state in &states {
        assert_eq!(State::decode(state.encode()), Some(state));
        assert_ne!(state.encode(), MIXED);
        for ask in &asks {
            let step = match ask {
                Ask::Transition(t) => Step::Ordinary(*t),
                Ask::Take(vm) => Step::Take(VmId(*vm)),
                Ask::Spare => Step::Spare,
                Ask::GiveBack => Step::GiveBack,
            };
            let got = next(state, step).ok().map(granule);
            assert_eq!(got, Spec::ask(&granule(state), ask), "{state:?} {ask:?}");
        }
    }
    assert_eq!(State::decode(0), Some(State::Hypervisor));
    for entry in [0xDEAD_BEEF, MIXED, 0x10, 0x1_0013, 10, 0xF] {
        assert_eq!(State::decode(entry), None, "{entry:#x}");
    }
}

#[test]
fn blocks_cost_blocks() {
    // Also where RAM ends in mid-block.
    let banks = banks();
    let mut table_of_parts = table(&banks);
    for bank in &banks {
        table_of_parts.apply(*bank, Transition::HypervisorToHost).unwrap();
    }
    assert!(table_of_parts.pages.iter().all(|p| *p == 0xDEAD_BEEF));

    let ram = run(0x4000_0000, 1 << 30);
    let mut table = table(&[ram]);
    table.apply(ram, Transition::HypervisorToHost).unwrap();
    table.apply(ram, Transition::DonateToVm(VmId(3))).unwrap();
    assert!(table.pages.iter().all(|p| *p == 0xDEAD_BEEF), "no page entry was touched");
    let dirty = table.take(run(0x4020_0000, 0x20_0000), VmId(3)).unwrap();
    let mut scrubbed = None;
    let clean = dirty.scrub(512, |r| scrubbed = Some(r)).unwrap();
    assert_eq!(scrubbed, Some(run(0x4020_0000, 0x20_0000)));
    table.give_back(clean).unwrap();
    assert!(table.pages.iter().all(|p| *p == 0xDEAD_BEEF));
    table.apply(run(0x4020_0000, 4096), Transition::ShareWithVm).unwrap();
    assert!(table.is_mixed(1));
    table.apply(run(0x4020_0000, 4096), Transition::UnshareWithVm).unwrap();
    assert!(!table.is_mixed(1));
    let mut runs = vec![];
    table.for_each(run(0x401f_f000, 0x3000), |r, s| runs.push((r, s))).unwrap();
    assert_eq!(runs, [(run(0x401f_f000, 4096), State::Vm(VmId(3))), (run(0x4020_0000, 8192), State::Host)]);
}

/// Threat 2: what wraps, is not RAM, or straddles its end.
#[test]
fn not_ram() {
    let mut table = table(&banks());
    let refused = [
        (0, 4096, 0),
        (0x400f_f000, 4096, 0x400f_f000),
        (0x400f_f000, 8192, 0x400f_f000),
        (0x4090_2000, 8192, 0x4090_3000),
        (0x4010_0000, 1 << 30, 0x4090_3000),
        (1 << 47, 4096, 1 << 47),
        (1 << 63, 4096, 1 << 63),
        (u64::MAX - 0x1fff, 4096, u64::MAX - 0x1fff),
        // The same address with an unused high bit.
        (1 << 52 | 0x4010_0000, 4096, 1 << 52 | 0x4010_0000),
    ];
    for (start, size, at) in refused {
        let error = OwnershipError::NotRam(Pa(at));
        assert_eq!(table.apply(run(start, size), Transition::HypervisorToHost), Err(error));
        assert!(table.take(run(start, size), VmId(1)).is_err());
        assert!(!table.is_ram(run(start, size)));
    }
    assert_eq!(table.state(Pa(u64::MAX)), Err(OwnershipError::NotRam(Pa(u64::MAX))));
    assert_eq!(
        table.counts(),
        Counts { hypervisor: (8 * MIB + 0x3000 + 0x10000) >> 12, ..Counts::default() }
    );
    // Across two banks that adjoin is RAM.
    table.apply(run(0x4060_0000, 0x10000), Transition::HypervisorToHost).unwrap();
}

#[test]
fn denied_names_the_first_in_the_way() {
    let mut table = table(&banks());
    table.apply(run(0x4010_0000, 0x3000), Transition::HypervisorToHost).unwrap();
    table.apply(run(0x4010_1000, 0x1000), Transition::ShareWithVm).unwrap();
    assert_eq!(
        table.apply(run(0x4010_0000, 0x3000), Transition::HostToHypervisor),
        Err(OwnershipError::Denied { at: Pa(0x4010_1000), state: State::HostShared(1) })
    );
    for _ in 1..0xFFFF {
        table.apply(run(0x4010_1000, 0x1000), Transition::ShareWithVm).unwrap();
    }
    assert_eq!(
        table.apply(run(0x4010_0000, 0x3000), Transition::ShareWithVm),
        Err(OwnershipError::Overflow(Pa(0x4010_1000)))
    );
    assert_eq!(table.state(Pa(0x4010_0000)), Ok(State::Host), "nothing changed");
    // Dropping a permit changes nothing.
    drop(table.check(run(0x4010_0000, 0x1000), Transition::DonateToVm(VmId(1))));
    assert_eq!(table.state(Pa(0x4010_0000)), Ok(State::Host));
}

#[test]
fn setup() {
    let make = |banks: &[PaRange], less: usize| {
        let sizes = Sizes::of(banks);
        Ownership::new(banks, leak(sizes.blocks - less), leak(sizes.pages)).err()
    };
    assert_eq!(make(&banks(), 0), None);
    assert_eq!(make(&banks(), 1), Some(SetupError::Storage));
    assert_eq!(make(&[], 0), None);
    let twice = [run(0x1000, 0x2000), run(0x2000, 0x1000)];
    assert_eq!(make(&twice, 0), Some(SetupError::Overlap(Pa(0x2000))));
    let many: Vec<_> = (0..17).map(|n| run(n << 30, 4096)).collect();
    assert_eq!(make(&many, 0), Some(SetupError::TooManyBanks));
    assert_eq!(make(&many[..16], 0), None);
    assert_eq!(make(&[run(1 << 52, 4096)], 0), Some(SetupError::OutOfReach));
    assert_eq!(Sizes::of(&[run(0x401f_f000, 0x2000)]), Sizes { blocks: 2, pages: 1024 });
}

#[test]
fn dirty_memory_is_scrubbed_in_parts_and_comes_back_whole() {
    let mut t = table(&banks());
    let memory = run(0x4020_0000, 2 * MIB);
    let vm = VmId(7);
    t.apply(memory, Transition::HypervisorToHost).unwrap();
    t.apply(memory, Transition::DonateToVm(vm)).unwrap();
    let dirty = t.take(memory, vm).unwrap();
    let mut parts = vec![];
    // Never nothing, and no more than there is.
    let dirty = dirty.scrub(3, |part| parts.push(part)).unwrap_err();
    assert_eq!(dirty.left(), run(0x4020_3000, 2 * MIB - 0x3000));
    let dirty = dirty.scrub(0, |part| parts.push(part)).unwrap_err();
    assert_eq!(t.state(Pa(0x4020_0000)), Ok(State::Dirty), "what is scrubbed waits for the rest");
    let scrubbed = dirty.scrub(u64::MAX, |part| parts.push(part)).unwrap();
    assert_eq!(
        parts,
        [run(0x4020_0000, 0x3000), run(0x4020_3000, 0x1000), run(0x4020_4000, 2 * MIB - 0x4000)]
    );
    assert!(!t.is_mixed(1), "one entry for all of it");
    assert_eq!(t.give_back(scrubbed), Ok(memory));
    assert_eq!(t.state(Pa(0x403F_F000)), Ok(State::Host));
    assert_eq!(t.counts().dirty, 0);
    assert!(t.pages.iter().all(|page| *page == 0xDEAD_BEEF), "no page entry was touched");
}
