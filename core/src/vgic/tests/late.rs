// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random operations with kicks that take effect whenever they do. Only what may not depend on that is checked:
//! nothing lost, nothing invented.

use super::invariants;
use super::machine::v;
use super::oracle::VCPUS;
use super::property::Pair;
use super::random::{Bit, IDS, check_list_registers, id, priority, sgi, spi};
use proptest::prelude::*;

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
    let to = || prop::option::weighted(0.8, 0..VCPUS);
    prop_oneof![
        2 => vcpu().prop_map(Late::Enter),
        2 => vcpu().prop_map(Late::Exit),
        3 => vcpu().prop_map(Late::Kick),
        8 => (spi(), vcpu()).prop_map(|(id, n)| Late::Pulse(id, n)),
        4 => (vcpu(), 0..1u64 << VCPUS, sgi()).prop_map(|(n, t, id)| Late::Sgi(n, t, id)),
        2 => (vcpu(), id()).prop_map(|(n, id)| Late::Pend(n, id)),
        3 => (vcpu(), id(), any::<bool>()).prop_map(|(n, id, on)| Late::Enable(n, id, on)),
        2 => (vcpu(), id(), priority()).prop_map(|(n, id, p)| Late::Priority(n, id, p)),
        4 => (vcpu(), spi(), to()).prop_map(|(n, id, to)| Late::Route(n, id, to)),
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
    let mut m = Pair::new(VCPUS, nr_lrs).machine;
    m.prompt = false;
    let mut ledger = Ledger::default();
    let mut guests: [Vec<u32>; VCPUS] = Default::default();
    let mut off = [false; VCPUS];
    for op in ops {
        if let Late::Enter(n) | Late::Exit(n) | Late::Kick(n) | Late::Acknowledge(n) | Late::End(n) = *op
            && off[n]
        {
            continue;
        }
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
            // Who turns off has ended all it began.
            Late::Power(n, on) => {
                if off[n] == on && guests[n].is_empty() {
                    m.set_power(n, on);
                    off[n] = !on;
                }
            }
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
    (0..VCPUS).filter(|&n| off[n]).for_each(|n| m.set_power(n, true));
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

/// 100,000 operations with 4 to 16 list registers, and some more with 1 to 3.
#[test]
fn late_kicks_lose_nothing() {
    let strategy = prop::collection::vec(late(), 1..400);
    check_list_registers("late_kicks_lose_nothing", 44, &strategy, |nr_lrs, ops| run_late(nr_lrs, &ops));
}
