// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A GICv3 as its specification describes it to software: no list registers, nothing limited,
//! everything happens at once. Slow and simple.

use std::collections::{BTreeMap, BTreeSet};

pub const VCPUS: usize = 3;

#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    pub enabled: bool,
    pub group1: bool,
    pub edge: bool,
    pub priority: u8,
    pub latch: bool,
    /// The latch was set by pulses of the line only.
    pub pulse: bool,
    pub line: bool,
    pub active: bool,
    pub active_priority: u8,
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

    pub fn deactivate(&mut self) {
        if std::mem::take(&mut self.active) && self.resample {
            self.line = false;
            self.due = true;
        }
    }

    pub fn activate(&mut self) {
        if !self.active {
            self.active = true;
            self.active_priority = self.priority;
        }
    }
}

/// One CPU interface.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    pub running: BTreeSet<u8>,
    pub pmr: u8,
    pub group0: bool,
    pub group1: bool,
    pub split_eoi: bool,
    /// PSCI has it off; GICR_WAKER says awake.
    pub off: bool,
    pub awake: bool,
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
        let cpu = Interface { pmr: 0xF8, group0: true, group1: true, ..Interface::default() };
        Self {
            shared: (32..96).map(|n| (n, irq.clone())).collect(),
            private: std::array::from_fn(|_| private().collect()),
            cpus: std::array::from_fn(|_| cpu.clone()),
            group0: false,
            group1: false,
        }
    }

    pub fn irq(&mut self, v: usize, id: u32) -> &mut Interrupt {
        let bank = if id < 32 { &mut self.private[v] } else { &mut self.shared };
        bank.get_mut(&id).unwrap()
    }

    /// The vCPU that takes interrupts that any may take: one that is on and awake, if there is one.
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

    /// What ICC_IARx_EL1 of `v` would return.
    pub fn highest(&self, v: usize) -> Option<u32> {
        let (id, irq) = self.presented(v).min_by_key(|(id, i)| (i.priority, *id))?;
        let cpu = &self.cpus[v];
        let running = cpu.running.first().copied().unwrap_or(0xFF);
        (irq.priority < cpu.pmr && irq.priority < running).then_some(id)
    }

    pub fn acknowledge(&mut self, v: usize) -> Option<u32> {
        let id = self.highest(v)?;
        let irq = self.irq(v, id);
        irq.unpend();
        irq.active = true;
        irq.active_priority = irq.priority;
        let priority = irq.priority;
        self.cpus[v].running.insert(priority);
        Some(id)
    }

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
}
