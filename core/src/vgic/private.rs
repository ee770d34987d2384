// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is one vCPU's alone: its SGIs and PPIs, and the bookkeeping of its list registers.
//!
//! SGIs and the timer are what most exits are about. They are routed nowhere and nobody else holds them, so here they
//! go through list registers and back without a look at the rest of the VM.

use super::irq::Irq;
use super::lr::{Candidate, CpuInterface, ListRegister, Slot};
use super::{FIRST_PPI, Flags, Groups, MAX_LRS, PRIVATE, ones};
use crate::addr::VcpuId;

/// A PPI that is a physical one of the CPU that runs the vCPU, and the level of its line.
#[derive(Clone, Copy)]
pub(super) struct HwPpi {
    pub intid: u32,
    pub pintid: u16,
    pub level: bool,
}

/// The private part of a vCPU: redistributor, and bookkeeping of its list registers.
pub struct VcpuState {
    /// Flushed and not synced: its list registers may be live.
    pub(super) inside: bool,
    /// Something changed since the last flush.
    pub(super) dirty: bool,
    /// Inside, with something in a list register that has been disabled since: GICx_CTLR.RWP.
    pub(super) stale: bool,
    /// GICR_WAKER.ProcessorSleep cleared.
    pub(super) awake: bool,
    /// PSCI has turned it off: not a candidate for 1-of-N interrupts.
    pub(super) off: bool,
    pub(super) nr_lrs: u8,
    pub(super) used: u8,
    /// Bit n: INTID n is [`Irq::busy`].
    pub(super) busy: u32,
    pub(super) irqs: [Irq; PRIVATE],
    /// Physical INTID behind PPI 16 + n, 0 where there is none.
    pub(super) pintids: [u16; 16],
    pub(super) slots: [Slot; MAX_LRS],
}

impl VcpuState {
    /// Reset state.
    pub(super) const RESET: Self = Self {
        inside: false,
        dirty: false,
        stale: false,
        awake: false,
        off: false,
        nr_lrs: 0,
        used: 0,
        busy: 0,
        irqs: {
            let mut irqs = [Irq::RESET; PRIVATE];
            let (sgis, _) = irqs.split_at_mut(16);
            let mut rest = sgis;
            while let [first, tail @ ..] = rest {
                *first = Irq::RESET_SGI;
                rest = tail;
            }
            irqs
        },
        pintids: [0; 16],
        slots: [Slot::EMPTY; MAX_LRS],
    };

    /// Keeps `busy` true after a change of one of its own. Whether it has to deal with that.
    #[inline]
    pub(super) fn note(&mut self, intid: u32, groups: Groups) -> bool {
        let Some(irq) = self.irqs.get(intid as usize) else { return false };
        let mask = 1u32.wrapping_shl(intid);
        self.busy = if irq.busy() { self.busy | mask } else { self.busy & !mask };
        let due = groups.due(irq);
        self.dirty |= due;
        due
    }

    /// SGI `intid` is raised, if it is of group 0 or may be of `group1`. Whether there is something to do about it.
    pub(super) fn raise_sgi(&mut self, intid: u32, group1: bool, groups: Groups) -> bool {
        if let Some(irq) = self.irqs.get_mut(intid as usize)
            && (group1 || !irq.has(Flags::GROUP1))
        {
            irq.pend();
        }
        self.note(intid, groups)
    }

    #[inline]
    pub(super) fn set_hw_ppi(&mut self, ppi: HwPpi, groups: Groups) {
        let Some(n) = ppi.intid.checked_sub(FIRST_PPI) else { return };
        let (Some(physical), Some(irq)) =
            (self.pintids.get_mut(n as usize), self.irqs.get_mut(ppi.intid as usize))
        else {
            return;
        };
        *physical = ppi.pintid;
        if irq.has(Flags::HARDWARE) && irq.has(Flags::LINE) == ppi.level {
            return;
        }
        irq.set(Flags::HARDWARE, true);
        irq.set(Flags::LINE, ppi.level);
        self.note(ppi.intid, groups);
    }

    /// The physical PPI behind `intid`.
    fn pintid(&self, intid: u32, irq: Irq) -> Option<u16> {
        let n = intid.checked_sub(FIRST_PPI).filter(|_| irq.has(Flags::HARDWARE))?;
        self.pintids.get(n as usize).copied().filter(|&p| p != 0)
    }

    /// Moves `intid`, one of its own and in no list register, to the next one if it wants one.
    #[inline]
    pub(super) fn load_if_candidate(
        &mut self,
        v: VcpuId,
        intid: u32,
        groups: Groups,
        cpu: &mut CpuInterface,
    ) {
        let candidate =
            self.irqs.get(intid as usize).and_then(|irq| Candidate::of(intid, irq, groups, cpu.vmcr));
        if let Some(candidate) = candidate {
            self.load(v, candidate, groups, true, cpu);
        }
    }

    /// Moves one of its own to the next list register. `all_fit`: no other waits for one.
    pub(super) fn load(
        &mut self,
        v: VcpuId,
        candidate: Candidate,
        groups: Groups,
        all_fit: bool,
        cpu: &mut CpuInterface,
    ) {
        let Some(irq) = self.irqs.get(candidate.intid as usize).copied() else { return };
        let follows = all_fit && irq.follows() && groups.forward(&irq);
        let pintid = self.pintid(candidate.intid, irq);
        let loaded = candidate.compose(&irq, follows, pintid, false);
        if let Some(irq) = self.irqs.get_mut(candidate.intid as usize) {
            irq.load(v, loaded.take_latch);
        }
        self.put(candidate, loaded.lr, loaded.from_line, cpu);
    }

    /// Fills the next list register, and notes with what.
    pub(super) fn put(&mut self, candidate: Candidate, lr: u64, from_line: bool, cpu: &mut CpuInterface) {
        let n = usize::from(cpu.used);
        if let (Some(to), Some(note)) = (cpu.lr.get_mut(n), self.slots.get_mut(n)) {
            *to = lr;
            *note = Slot::of(candidate, from_line);
            cpu.used = cpu.used.saturating_add(1);
        }
    }

    /// Whether the physical PPI behind `intid` has to be active: see `Vgic::hw_ppi_in_flight`.
    pub(super) fn hw_ppi_in_flight(&self, intid: u32) -> bool {
        let irq = self.irqs.get(intid as usize).filter(|_| intid >= FIRST_PPI);
        irq.is_some_and(|irq| irq.has(Flags::HARDWARE) && (irq.active() || irq.has(Flags::LINE)))
    }

    /// Whether there is a list register for each of its own, even with one more.
    pub(super) fn all_fit(&self) -> bool {
        // Counting takes longer than the usual answer.
        let at_most_one = self.busy & self.busy.wrapping_sub(1) == 0;
        (at_most_one && self.nr_lrs > 1) || self.busy.count_ones() < u32::from(self.nr_lrs)
    }

    /// `Vgic::turn_over` where no SPI is in any state and [all fit](Self::all_fit).
    pub(super) fn turn_over(
        &mut self,
        v: VcpuId,
        groups: Groups,
        cpu: &mut CpuInterface,
        ppi: HwPpi,
    ) -> bool {
        let before = core::mem::take(&mut cpu.used);
        if self.inside {
            for n in 0..usize::from(self.used) {
                if let (Some(slot), Some(lr)) = (self.slots.get(n).copied(), cpu.lr.get(n).copied()) {
                    self.fold(slot, ListRegister(lr), groups);
                }
            }
        }
        self.set_hw_ppi(ppi, groups);
        for intid in ones(self.busy.into()) {
            self.load_if_candidate(v, intid, groups, cpu);
        }
        for n in cpu.used..before {
            if let Some(lr) = cpu.lr.get_mut(usize::from(n)) {
                *lr = 0;
            }
        }
        (self.inside, self.dirty, self.stale, self.used) = (true, false, false, cpu.used);
        self.hw_ppi_in_flight(ppi.intid)
    }

    /// Takes one of its own back from the list register in which it was as `slot` says.
    #[inline]
    pub(super) fn fold(&mut self, slot: Slot, lr: ListRegister, groups: Groups) {
        if let Some(irq) = self.irqs.get_mut(usize::from(slot.intid)) {
            irq.fold(slot.state(lr));
            self.note(slot.intid.into(), groups);
        }
    }
}

impl Default for VcpuState {
    fn default() -> Self {
        Self::RESET
    }
}
