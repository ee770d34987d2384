// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A GICv3 as its specification (Arm IHI 0069) describes it to software: one Security state, affinity
//! routing, no list registers, nothing limited, everything happens at once. Slow and simple, and written
//! without a look at what it is held against.
//!
//! Beyond the specification, from `docs/abi.md`: pulses (IRQ_LINE), resampled lines; and the choice that the
//! specification leaves to the implementation, who takes an interrupt that any vCPU may take.

use std::collections::{BTreeMap, BTreeSet};

pub const VCPUS: usize = 3;

/// "Interrupt lifecycle", and the registers with a field for each interrupt.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    pub enabled: bool,
    pub group1: bool,
    pub edge: bool,
    pub priority: u8,
    /// Pending because of an edge, a message, an SGI or GICD_ISPENDR; until acknowledged or cleared.
    pub latch: bool,
    /// The latch was set by pulses of the line only.
    pub pulse: bool,
    pub line: bool,
    pub active: bool,
    /// The line falls when the interrupt is ended, and that is told.
    pub resample: bool,
    pub due: bool,
    /// None: any vCPU, see [`Oracle::any`].
    pub route: Option<usize>,
}

impl Interrupt {
    pub fn pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }

    pub fn pend(&mut self) {
        self.latch = true;
        self.pulse = false;
    }

    pub fn unpend(&mut self) {
        self.latch = false;
        self.pulse = false;
    }

    pub fn set_line(&mut self, level: bool) {
        if level {
            self.pulse |= !self.latch;
            self.latch = true;
        } else if !self.edge && self.pulse {
            self.unpend();
        }
        if !level {
            self.line = false;
        }
    }

    pub fn set_level(&mut self, level: bool) {
        if level && !self.line && self.edge {
            self.pend();
        }
        self.line = level;
    }

    /// GICD_SETSPI_NSR, GICD_CLRSPI_NSR.
    pub fn message(&mut self, set: bool) {
        match (self.edge, set) {
            (true, true) => self.pend(),
            (true, false) => self.unpend(),
            (false, _) => self.line = set,
        }
    }

    pub fn deactivate(&mut self) {
        if std::mem::take(&mut self.active) && self.resample {
            self.line = false;
            self.due = true;
        }
    }

    pub fn activate(&mut self) {
        self.active = true;
    }
}

/// One CPU interface.
#[derive(Clone, Debug)]
pub struct Interface {
    /// ICC_AP0R, ICC_AP1R: group priorities of what has been acknowledged and not dropped.
    pub running: BTreeSet<u8>,
    pub pmr: u8,
    /// ICC_BPR0_EL1, ICC_BPR1_EL1.
    pub binary_points: [u32; 2],
    /// ICC_CTLR_EL1.CBPR: the first is for both groups.
    pub common: bool,
    pub group0: bool,
    pub group1: bool,
    pub split_eoi: bool,
    /// PSCI has it off; GICR_WAKER says awake.
    pub off: bool,
    pub awake: bool,
}

impl Interface {
    fn new() -> Self {
        Self {
            running: BTreeSet::new(),
            pmr: 0xF8,
            // The smallest that five priority bits allow.
            binary_points: [2, 3],
            common: false,
            group0: true,
            group1: true,
            split_eoi: false,
            off: false,
            awake: false,
        }
    }

    /// "Priority grouping": the part of a priority that decides on preemption.
    fn group_priority(&self, irq: &Interrupt) -> u8 {
        let [point0, point1] = self.binary_points;
        let dropped_bits = if irq.group1 && !self.common { point1 } else { point0 + 1 };
        if dropped_bits >= 8 { 0 } else { irq.priority >> dropped_bits << dropped_bits }
    }

    /// "Priority masking" and "preemption".
    fn lets_through(&self, irq: &Interrupt) -> bool {
        let running = self.running.first().copied().unwrap_or(0xFF);
        irq.priority < self.pmr && self.group_priority(irq) < running
    }
}

/// Registers that raise SGIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sgi {
    /// ICC_SGI1R_EL1.
    Group1,
    /// ICC_SGI0R_EL1.
    Group0,
    /// ICC_ASGI1R_EL1.
    Other,
}

#[derive(Clone, Debug)]
pub struct Oracle {
    pub shared: BTreeMap<u32, Interrupt>,
    pub private: [BTreeMap<u32, Interrupt>; VCPUS],
    pub cpus: [Interface; VCPUS],
    pub group0: bool,
    pub group1: bool,
}

impl Oracle {
    pub fn new() -> Self {
        let irq = Interrupt { group1: true, route: Some(0), ..Interrupt::default() };
        let sgi = Interrupt { edge: true, ..irq.clone() };
        let private = || (0..32).map(|n| (n, if n < 16 { sgi.clone() } else { irq.clone() }));
        Self {
            shared: (32..96).map(|n| (n, irq.clone())).collect(),
            private: std::array::from_fn(|_| private().collect()),
            cpus: std::array::from_fn(|_| Interface::new()),
            group0: false,
            group1: false,
        }
    }

    pub fn irq(&mut self, v: usize, id: u32) -> &mut Interrupt {
        let bank = if id < 32 { &mut self.private[v] } else { &mut self.shared };
        bank.get_mut(&id).unwrap()
    }

    /// "1 of N": the choice is ours. One that is on and awake, if there is one.
    pub fn any(&self) -> usize {
        let fit = |&v: &usize| !self.cpus[v].off && self.cpus[v].awake;
        let on = |&v: &usize| !self.cpus[v].off;
        (0..VCPUS).find(fit).or_else(|| (0..VCPUS).find(on)).unwrap_or_else(|| {
            let awake = |&v: &usize| self.cpus[v].awake;
            (0..VCPUS).find(awake).unwrap_or(0)
        })
    }

    /// Interrupts that the distributor would present to `v`.
    fn presented(&self, v: usize) -> impl Iterator<Item = (u32, &Interrupt)> {
        let any = self.any();
        let shared = self.shared.iter().filter(move |(_, i)| i.route.unwrap_or(any) == v);
        self.private[v].iter().chain(shared).map(|(&id, i)| (id, i)).filter(move |(_, i)| {
            let forwarded = if i.group1 { self.group1 } else { self.group0 };
            let gate = if i.group1 { self.cpus[v].group1 } else { self.cpus[v].group0 };
            i.pending() && i.enabled && !i.active && forwarded && gate
        })
    }

    /// What ICC_IARx_EL1 of `v` would return. Among equals the specification leaves the choice; the simulated
    /// CPU interface takes the lowest INTID, too.
    pub fn highest(&self, v: usize) -> Option<u32> {
        let (id, irq) = self.presented(v).min_by_key(|(id, i)| (i.priority, *id))?;
        self.cpus[v].lets_through(irq).then_some(id)
    }

    pub fn acknowledge(&mut self, v: usize) -> Option<u32> {
        let id = self.highest(v)?;
        let irq = self.irq(v, id);
        irq.unpend();
        irq.active = true;
        let irq = irq.clone();
        let priority = self.cpus[v].group_priority(&irq);
        self.cpus[v].running.insert(priority);
        Some(id)
    }

    /// ICC_EOIRx_EL1: drops the running priority, and with EOImode 0 deactivates.
    pub fn end(&mut self, v: usize, id: u32) {
        self.cpus[v].running.pop_first();
        if !self.cpus[v].split_eoi {
            self.irq(v, id).deactivate();
        }
    }

    /// Whether `v` would wake from WFI, running priority aside.
    pub fn wakes(&self, v: usize) -> bool {
        self.presented(v).any(|(_, i)| i.priority < self.cpus[v].pmr)
    }

    /// ICC_SGI1R_EL1 and its two relatives. All vCPUs here have Aff3.Aff2.Aff1 = 0.
    pub fn sgi(&mut self, from: usize, register: Sgi, value: u64) {
        let field = |low: u32, bits: u32| value >> low & ((1 << bits) - 1);
        let [list, aff1, id, aff2, range, aff3] =
            [(0, 16), (16, 8), (24, 4), (32, 8), (44, 4), (48, 8)].map(|(low, bits)| field(low, bits));
        let all_but_self = field(40, 1) == 1;
        for v in 0..VCPUS {
            let named = [aff3, aff2, aff1, range] == [0; 4] && list >> v & 1 == 1;
            let meant = if all_but_self { v != from } else { named };
            let irq = self.irq(v, id as u32);
            // The other two registers reach group 0 only.
            if meant && (register == Sgi::Group1 || !irq.group1) {
                irq.pend();
            }
        }
    }

    /// CPU_OFF, and CPU_ON: the CPU interface starts afresh, the distributor and redistributors don't.
    pub fn set_power(&mut self, v: usize, on: bool) {
        let awake = self.cpus[v].awake;
        self.cpus[v] = Interface { off: !on, awake, ..Interface::new() };
    }
}
