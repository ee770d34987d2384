// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random operations, on the machine and on the oracle.
//!
//! [`agrees_with_the_oracle`]: kicks take effect at once, so both must agree on every acknowledge,
//! wake-up and register. [`late_kicks_lose_nothing`]: kicks take effect whenever they do, so only what
//! may not depend on that is checked: nothing lost, nothing invented.

use super::invariants;
use super::machine::{Machine, TIMER, v};
use super::oracle::{Oracle, VCPUS};
use proptest::prelude::*;

/// Few interrupts, so that random operations meet. The timer is one of them.
const IDS: [u32; 14] = [0, 1, 15, 16, TIMER, 32, 33, 34, 35, 36, 63, 64, 65, 95];
const SPIS: std::ops::Range<usize> = 5..14;
/// Few priorities, some equal.
const PRIORITIES: [u8; 5] = [0x20, 0x40, 0x40, 0xA0, 0xF0];

/// Bit registers that random operations write, by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bit {
    Enable = 0x100,
    Disable = 0x180,
    Pend = 0x200,
    Unpend = 0x280,
    Activate = 0x300,
    Deactivate = 0x380,
}

#[derive(Clone, Debug)]
enum Op {
    Enter(usize),
    Exit(usize),
    /// IRQ_LINE.
    Line(u32, usize, bool),
    /// A driven line.
    Level(u32, usize, bool),
    Timer(usize, bool),
    /// A line that falls at the EOI.
    Resample(u32, bool),
    /// From, targets, INTID.
    Sgi(usize, u64, u32),
    Bit(usize, Bit, u32),
    Priority(usize, u32, u8),
    Edge(usize, u32, bool),
    Group(usize, u32, bool),
    Route(usize, u32, Option<usize>),
    Distributor(usize, u64),
    Pmr(usize, u8),
    CpuGroups(usize, u32),
    SplitEoi(usize, bool),
    Acknowledge(usize),
    End(usize),
    Dir(usize, usize),
    Wfi(usize),
    Compare(usize),
    /// To a CPU that has so many list registers more than the VM uses.
    Migrate(usize, usize),
    Power(usize, bool),
    /// GICR_WAKER.
    Wake(usize, bool),
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = || 0..VCPUS;
    let id = || prop::sample::select(&IDS[..]);
    let spi = || prop::sample::select(&IDS[SPIS]);
    let line = || prop::sample::select(&IDS[3..]).prop_filter("EL2's", |&id| id != TIMER);
    let bit = prop::sample::select(
        &[Bit::Enable, Bit::Enable, Bit::Disable, Bit::Pend, Bit::Unpend, Bit::Activate, Bit::Deactivate][..],
    );
    let priority = || prop::sample::select(&PRIORITIES[..]);
    prop_oneof![
        2 => vcpu().prop_map(Op::Enter),
        2 => vcpu().prop_map(Op::Exit),
        8 => (line(), vcpu(), any::<bool>()).prop_map(|(id, n, on)| Op::Line(id, n, on)),
        4 => (line(), vcpu(), any::<bool>()).prop_map(|(id, n, on)| Op::Level(id, n, on)),
        3 => (vcpu(), any::<bool>()).prop_map(|(n, on)| Op::Timer(n, on)),
        2 => (spi(), any::<bool>()).prop_map(|(id, on)| Op::Resample(id, on)),
        4 => (vcpu(), 0..1u64 << VCPUS, prop::sample::select(&IDS[..3])).prop_map(|(n, t, id)| Op::Sgi(n, t, id)),
        8 => (vcpu(), bit, id()).prop_map(|(n, bit, id)| Op::Bit(n, bit, id)),
        2 => (vcpu(), id(), priority()).prop_map(|(n, id, p)| Op::Priority(n, id, p)),
        2 => (vcpu(), id(), any::<bool>()).prop_map(|(n, id, on)| Op::Edge(n, id, on)),
        1 => (vcpu(), id(), any::<bool>()).prop_map(|(n, id, on)| Op::Group(n, id, on)),
        3 => (vcpu(), spi(), prop::option::of(vcpu())).prop_map(|(n, id, to)| Op::Route(n, id, to)),
        1 => (vcpu(), prop_oneof![3 => Just(3u64), 1 => 0..4u64]).prop_map(|(n, g)| Op::Distributor(n, g)),
        1 => (vcpu(), prop_oneof![2 => Just(0xF8), 1 => priority()]).prop_map(|(n, p)| Op::Pmr(n, p)),
        2 => (vcpu(), prop_oneof![2 => Just(3u32), 2 => 0..4u32]).prop_map(|(n, g)| Op::CpuGroups(n, g)),
        1 => (vcpu(), any::<bool>()).prop_map(|(n, on)| Op::SplitEoi(n, on)),
        12 => vcpu().prop_map(Op::Acknowledge),
        8 => vcpu().prop_map(Op::End),
        5 => (vcpu(), 0..8usize).prop_map(|(n, i)| Op::Dir(n, i)),
        2 => vcpu().prop_map(Op::Wfi),
        1 => vcpu().prop_map(Op::Compare),
        2 => (vcpu(), 0..4usize).prop_map(|(n, more)| Op::Migrate(n, more)),
        1 => (vcpu(), any::<bool>()).prop_map(|(n, on)| Op::Power(n, on)),
        1 => (vcpu(), any::<bool>()).prop_map(|(n, on)| Op::Wake(n, on)),
    ]
}

/// What one vCPU's software knows.
#[derive(Clone, Debug, Default)]
struct Guest {
    /// Acknowledged and not ended, oldest first.
    handling: Vec<u32>,
    /// Ended with EOImode 1, not deactivated.
    ended: Vec<u32>,
}

struct Pair {
    nr_lrs: usize,
    machine: Machine,
    oracle: Oracle,
    guests: [Guest; VCPUS],
}

impl Pair {
    fn new(nr_lrs: usize) -> Self {
        let (machine, oracle) = (Machine::new(VCPUS, nr_lrs), Oracle::new());
        let mut pair = Self { nr_lrs, machine, oracle, guests: Default::default() };
        pair.apply(&Op::Distributor(0, 3));
        for n in 0..VCPUS {
            for (place, &id) in IDS.iter().enumerate() {
                if id < 32 || n == 0 {
                    pair.apply(&Op::Bit(n, Bit::Enable, id));
                    pair.apply(&Op::Priority(n, id, PRIORITIES[place % PRIORITIES.len()]));
                }
            }
        }
        pair
    }

    /// Whether software of any vCPU still has to end or deactivate `id`.
    fn in_use(&self, n: usize, id: u32) -> bool {
        let uses = |g: &Guest| g.handling.contains(&id) || g.ended.contains(&id);
        if id < 32 { uses(&self.guests[n]) } else { self.guests.iter().any(uses) }
    }

    fn apply(&mut self, op: &Op) {
        let (machine, oracle) = (&mut self.machine, &mut self.oracle);
        match *op {
            Op::Enter(n) => machine.enter(n),
            Op::Exit(n) => machine.exit(n),
            Op::Line(id, n, level) => {
                machine.set_line(id, n, level);
                oracle.irq(n, id).set_line(level);
            }
            Op::Level(id, n, level) => {
                machine.set_level(id, n, level);
                oracle.irq(n, id).set_level(level);
            }
            Op::Timer(n, level) => {
                machine.set_timer(n, level);
                oracle.irq(n, TIMER).line = level;
            }
            Op::Resample(id, on) => {
                machine.set_resample(id, on);
                let irq = oracle.irq(0, id);
                irq.resample = on;
                irq.due &= on;
            }
            Op::Sgi(n, targets, id) => {
                machine.sgi1(n, targets | u64::from(id) << 24);
                (0..VCPUS).filter(|t| targets >> t & 1 == 1).for_each(|t| oracle.irq(t, id).pend());
            }
            Op::Bit(n, bit, id) => {
                // Deactivation behind the back of a handler leaves the hypervisor guessing what the
                // handler's EOI is about when not all fits into list registers.
                let deactivates = bit == Bit::Deactivate || bit == Bit::Activate;
                if deactivates && self.in_use(n, id) {
                    return;
                }
                let (machine, oracle) = (&mut self.machine, &mut self.oracle);
                machine.write_bit(n, bit as u64, id);
                let irq = oracle.irq(n, id);
                match bit {
                    Bit::Enable => irq.enabled = true,
                    Bit::Disable => irq.enabled = false,
                    Bit::Pend => irq.pend(),
                    Bit::Unpend => irq.unpend(),
                    Bit::Activate => irq.activate(),
                    Bit::Deactivate => irq.deactivate(),
                }
            }
            Op::Priority(n, id, priority) => {
                machine.write_priority(n, id, priority);
                oracle.irq(n, id).priority = priority;
            }
            Op::Edge(n, id, edge) => {
                if id == TIMER || id < 16 {
                    return;
                }
                let (frame, at) = (id / 16 * 4, id % 16 * 2 + 1);
                let now = if id < 32 {
                    machine.read_redist(n, n, 0x1_0C00 + u64::from(frame), 4)
                } else {
                    machine.read(n, 0xC00 + u64::from(frame), 4)
                };
                let value = now & !(1 << at) | u64::from(edge) << at;
                if id < 32 {
                    machine.write_redist(n, n, 0x1_0C00 + u64::from(frame), 4, value);
                } else {
                    machine.write(n, 0xC00 + u64::from(frame), 4, value);
                }
                oracle.irq(n, id).edge = edge;
            }
            Op::Group(n, id, group1) => {
                let word = u64::from(id / 32) * 4;
                let mask = 1 << (id % 32);
                let put = |now: u64| if group1 { now | mask } else { now & !mask };
                if id < 32 {
                    let now = machine.read_redist(n, n, 0x1_0080, 4);
                    machine.write_redist(n, n, 0x1_0080, 4, put(now));
                } else {
                    let now = machine.read(n, 0x80 + word, 4);
                    machine.write(n, 0x80 + word, 4, put(now));
                }
                oracle.irq(n, id).group1 = group1;
            }
            Op::Route(n, id, to) => {
                machine.route(n, id, to.map_or(1 << 31, |to| to as u64));
                oracle.irq(n, id).route = to;
            }
            Op::Distributor(n, groups) => {
                machine.write(n, 0, 4, groups);
                oracle.group0 = groups & 1 != 0;
                oracle.group1 = groups & 2 != 0;
            }
            Op::Pmr(n, pmr) => {
                machine.cpus[n].set_pmr(pmr);
                oracle.cpus[n].pmr = pmr;
            }
            Op::CpuGroups(n, groups) => {
                machine.cpus[n].set_groups(groups);
                oracle.cpus[n].group0 = groups & 1 != 0;
                oracle.cpus[n].group1 = groups & 2 != 0;
                machine.settle();
            }
            Op::SplitEoi(n, on) => {
                // Software changes the mode while nothing is active, and then exits for some reason.
                if self.guests.iter().all(|g| g.handling.is_empty() && g.ended.is_empty()) {
                    machine.exit(n);
                    machine.cpus[n].set_split_eoi(on);
                    let (vgic, cpu) = (&mut machine.vgic, &mut machine.cpus[n]);
                    vgic.flush(v(n), &mut cpu.regs);
                    machine.kicked |= machine.vgic.sync(v(n), &machine.cpus[n].regs);
                    oracle.cpus[n].split_eoi = on;
                }
            }
            Op::Acknowledge(n) => {
                let expected = oracle.acknowledge(n);
                assert_eq!(machine.acknowledge(n), expected, "vCPU {n} acknowledges");
                self.guests[n].handling.extend(expected);
            }
            Op::End(n) => {
                if let Some(id) = self.guests[n].handling.pop() {
                    machine.end(n, id);
                    oracle.end(n, id);
                    if oracle.cpus[n].split_eoi {
                        self.guests[n].ended.push(id);
                    }
                }
            }
            Op::Dir(n, index) => {
                // SPIs of either vCPU, private ones of this.
                let others = (0..VCPUS).filter(|&m| m != n).flat_map(|m| &self.guests[m].ended);
                let others = others.filter(|&&id| id >= 32);
                let all: Vec<u32> = self.guests[n].ended.iter().chain(others).copied().collect();
                if all.is_empty() || !oracle.cpus[n].split_eoi {
                    return;
                }
                let id = all[index % all.len()];
                machine.dir(n, id);
                oracle.irq(n, id).deactivate();
                for (m, guest) in self.guests.iter_mut().enumerate() {
                    guest.ended.retain(|&e| e != id || id < 32 && m != n);
                }
            }
            Op::Wfi(n) => {
                machine.exit(n);
                machine.vgic.set_hw_ppi(v(n), crate::addr::IntId(TIMER), TIMER, machine.timer[n]);
                let wakes = machine.vgic.has_deliverable(v(n), machine.cpus[n].regs.vmcr);
                assert_eq!(wakes, oracle.wakes(n), "vCPU {n} waits");
            }
            Op::Compare(n) => self.compare(n),
            Op::Migrate(n, more) => machine.migrate(n, (self.nr_lrs + more).min(16)),
            Op::Power(n, on) => {
                machine.set_power(n, on);
                oracle.cpus[n].off = !on;
            }
            Op::Wake(n, on) => {
                machine.write_redist(n, n, 0x14, 4, if on { 0 } else { 2 });
                oracle.cpus[n].awake = on;
            }
        }
        self.machine.settle();
        while let Some(id) = self.machine.vgic.take_resampled() {
            let due = std::mem::take(&mut self.oracle.irq(0, id.0).due);
            assert!(due, "{id:?} has not been ended");
        }
        let untold = self.oracle.shared.iter().find(|(_, irq)| irq.due);
        assert!(untold.is_none(), "ended and not told: {untold:?}");
        invariants::check(&self.machine.vgic);
    }

    /// All pending, active and enabled bits.
    fn compare(&mut self, n: usize) {
        (0..VCPUS).for_each(|m| self.machine.exit(m));
        for id in IDS {
            if id == TIMER {
                continue; // its level is sampled on entry only
            }
            let irq = self.oracle.irq(n, id).clone();
            for (base, expected) in [
                (Bit::Enable, irq.enabled),
                (Bit::Disable, irq.enabled),
                (Bit::Pend, irq.pending()),
                (Bit::Unpend, irq.pending()),
                (Bit::Activate, irq.active),
                (Bit::Deactivate, irq.active),
            ] {
                let seen = self.machine.read_bit(n, base as u64, id);
                assert_eq!(seen, expected, "{base:?} of {id} for vCPU {n}");
            }
        }
    }

    /// Lets both vCPUs end what they have begun and take what waits.
    fn finish(&mut self) {
        for n in 0..VCPUS {
            while !self.guests[n].handling.is_empty() {
                self.apply(&Op::End(n));
            }
        }
        for n in (0..VCPUS).cycle().take(2 * VCPUS) {
            self.apply(&Op::Timer(n, false));
            if !self.oracle.cpus[n].split_eoi {
                // Nobody else could.
                continue;
            }
            while let Some(&id) = self.guests[n].ended.first() {
                self.machine.dir(n, id);
                self.oracle.irq(n, id).deactivate();
                self.guests.iter_mut().for_each(|g| g.ended.retain(|&e| e != id || id < 32));
                self.guests[n].ended.retain(|&e| e != id);
            }
        }
        for id in IDS.into_iter().skip(3).filter(|&id| id != TIMER) {
            (0..VCPUS).for_each(|n| self.apply(&Op::Level(id, n, false)));
        }
        for _ in 0..2 * IDS.len() {
            for n in 0..VCPUS {
                self.apply(&Op::Acknowledge(n));
                self.apply(&Op::End(n));
                self.apply(&Op::Dir(n, 0));
            }
        }
        (0..VCPUS).for_each(|n| self.compare(n));
    }
}

/// Together at least 100,000 operations in each test.
const CASES: u32 = 500;
const OPS: std::ops::Range<usize> = 200..240;

fn cases(cases: u32) -> ProptestConfig {
    let failure_persistence = None;
    ProptestConfig { cases, failure_persistence, max_shrink_iters: 20_000, ..Default::default() }
}

/// Operations whose outcome doesn't depend on when a kick arrives, as long as it does.
#[derive(Clone, Debug)]
enum Late {
    Enter(usize),
    Exit(usize),
    /// The kick arrives.
    Kick(usize),
    Pulse(u32, usize),
    Sgi(usize, u64, u32),
    Pend(usize, u32),
    Enable(usize, u32, bool),
    Priority(usize, u32, u8),
    Route(usize, u32, Option<usize>),
    Acknowledge(usize),
    End(usize),
    Migrate(usize, usize),
    Power(usize, bool),
}

fn late() -> impl Strategy<Value = Late> {
    let vcpu = || 0..VCPUS;
    let id = || prop::sample::select(&IDS[..]);
    let spi = || prop::sample::select(&IDS[SPIS]);
    let to = prop_oneof![2 => Just(Some(0)), 2 => Just(Some(1)), 1 => Just(Some(2)), 1 => Just(None)];
    let priority = prop::sample::select(&PRIORITIES[..]);
    prop_oneof![
        2 => vcpu().prop_map(Late::Enter),
        2 => vcpu().prop_map(Late::Exit),
        3 => vcpu().prop_map(Late::Kick),
        8 => (spi(), vcpu()).prop_map(|(id, n)| Late::Pulse(id, n)),
        4 => (vcpu(), 0..1u64 << VCPUS, prop::sample::select(&IDS[..3])).prop_map(|(n, t, id)| Late::Sgi(n, t, id)),
        2 => (vcpu(), id()).prop_map(|(n, id)| Late::Pend(n, id)),
        3 => (vcpu(), id(), any::<bool>()).prop_map(|(n, id, on)| Late::Enable(n, id, on)),
        2 => (vcpu(), id(), priority).prop_map(|(n, id, p)| Late::Priority(n, id, p)),
        4 => (vcpu(), spi(), to).prop_map(|(n, id, to)| Late::Route(n, id, to)),
        10 => vcpu().prop_map(Late::Acknowledge),
        8 => vcpu().prop_map(Late::End),
        2 => (vcpu(), 0..4usize).prop_map(|(n, more)| Late::Migrate(n, more)),
        1 => (vcpu(), any::<bool>()).prop_map(|(n, on)| Late::Power(n, on)),
    ]
}

/// Counts what happened to each interrupt of each vCPU (SPIs: of vCPU 0).
#[derive(Default)]
struct Ledger(std::collections::BTreeMap<(usize, u32), Account>);

#[derive(Default, Clone, Copy, Debug)]
struct Account {
    raised: u32,
    taken: u32,
    /// Raised and not taken since.
    waiting: bool,
    active: bool,
}

impl Ledger {
    fn of(&mut self, n: usize, id: u32) -> &mut Account {
        self.0.entry((if id < 32 { n } else { 0 }, id)).or_default()
    }

    fn raise(&mut self, n: usize, id: u32) {
        let account = self.of(n, id);
        account.raised += 1;
        account.waiting = true;
    }

    fn take(&mut self, n: usize, id: u32) {
        let account = self.of(n, id);
        account.taken += 1;
        account.waiting = false;
        assert!(!account.active, "{id} acknowledged twice");
        account.active = true;
        assert!(account.taken <= account.raised, "{id} invented: {account:?}");
    }
}

fn run_late(nr_lrs: usize, ops: &[Late]) {
    let mut m = Pair::new(nr_lrs).machine;
    m.prompt = false;
    let mut ledger = Ledger::default();
    let mut guests: [Vec<u32>; VCPUS] = Default::default();
    for op in ops {
        match *op {
            Late::Enter(n) => m.enter(n),
            Late::Exit(n) => m.exit(n),
            Late::Kick(n) => {
                if m.inside[n] && m.kicked.contains(v(n)) {
                    m.exit(n);
                    m.enter(n);
                }
            }
            Late::Pulse(id, n) => {
                m.set_line(id, n, true);
                ledger.raise(n, id);
            }
            Late::Sgi(n, targets, id) => {
                m.sgi1(n, targets | u64::from(id) << 24);
                (0..VCPUS).filter(|t| targets >> t & 1 == 1).for_each(|t| ledger.raise(t, id));
            }
            Late::Pend(n, id) => {
                m.write_bit(n, Bit::Pend as u64, id);
                ledger.raise(n, id);
            }
            Late::Enable(n, id, on) => {
                m.write_bit(n, if on { Bit::Enable } else { Bit::Disable } as u64, id);
            }
            Late::Migrate(n, more) => m.migrate(n, (nr_lrs + more).min(16)),
            Late::Power(n, on) => m.set_power(n, on),
            Late::Priority(n, id, priority) => m.write_priority(n, id, priority),
            Late::Route(n, id, to) => m.route(n, id, to.map_or(1 << 31, |to| to as u64)),
            Late::Acknowledge(n) => {
                // Without the exits that a settled machine would make first.
                m.enter(n);
                if let Some(id) = m.cpus[n].acknowledge() {
                    ledger.take(n, id);
                    guests[n].push(id);
                }
                m.settle();
            }
            Late::End(n) => {
                if let Some(id) = guests[n].pop() {
                    m.end(n, id);
                    ledger.of(n, id).active = false;
                }
            }
        }
        invariants::check(&m.vgic);
    }
    (0..VCPUS).for_each(|n| m.set_power(n, true));
    // All kicks arrive, everything is enabled, everyone takes all there is.
    m.prompt = true;
    m.settle();
    for n in 0..VCPUS {
        IDS.into_iter().for_each(|id| m.write_bit(n, Bit::Enable as u64, id));
    }
    for n in (0..VCPUS).cycle().take(2 * VCPUS) {
        while let Some(id) = guests[n].pop() {
            m.end(n, id);
            ledger.of(n, id).active = false;
        }
        while let Some(id) = m.acknowledge(n) {
            ledger.take(n, id);
            m.end(n, id);
            ledger.of(n, id).active = false;
        }
    }
    for (who, account) in &ledger.0 {
        assert!(!account.waiting, "lost: {who:?} {account:?}");
    }
}

proptest! {
    #![proptest_config(cases(CASES))]

    #[test]
    fn late_kicks_lose_nothing(
        nr_lrs in prop_oneof![1..=16usize, 1..=4usize],
        ops in prop::collection::vec(late(), OPS),
    ) {
        run_late(nr_lrs, &ops);
    }

    #[test]
    fn agrees_with_the_oracle(
        nr_lrs in prop_oneof![1..=16usize, 1..=4usize],
        split in prop::array::uniform3(any::<bool>()),
        group0 in prop::sample::subsequence(&IDS[..], 0..8),
        ops in prop::collection::vec(op(), OPS),
    ) {
        let mut pair = Pair::new(nr_lrs);
        (0..VCPUS).for_each(|n| pair.apply(&Op::SplitEoi(n, split[n])));
        group0.iter().for_each(|&id| pair.apply(&Op::Group(0, id, false)));
        ops.iter().for_each(|op| pair.apply(op));
        pair.finish();
    }
}
