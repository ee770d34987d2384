// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What goes into list registers ([`Vgic::flush`]) and what comes back ([`Vgic::sync`]).
//!
//! # Who gets a list register
//! If all that is pending or active fits, all of it, in any order. Otherwise, in this order:
//! 1. the most urgent presentable interrupt, so that it can preempt whatever is active;
//! 2. active interrupts by the group priority of their acknowledge: the next to be ended first;
//! 3. other presentable interrupts, by priority.
//!
//! "Urgent" counts interrupts of a group that the guest's CPU interface has disabled last.
//!
//! # How EL2 gets control when room appears
//! - Presentable ones left outside: NPIE, when no list register is pending any more. One is, on
//!   entry, so each such exit follows an acknowledge: no livelock. If the guest turns a group on or
//!   off, VGrp*IE, since that changes the order.
//! - Active ones left outside: an EOI of one counts in EOICount, and LRENPIE says so; ICC_DIR_EL1 is
//!   trapped (TDIR), see [`Vgic::deactivate`].
//! - One that is resampled, or an active one that has more to come (its level is high, its pending
//!   state belongs to another vCPU or at another priority): the EOI bit of its list register.
//!
//! UIE is not used: "one or none valid" is asserted at once with a single list register.
//!
//! # Limits
//! - TDIR needs ICH_VTR_EL2.TDS. Without it (first revisions of some cores) EOImode 1 works only as
//!   long as everything active fits and stays on its vCPU.
//! - A guest that switches to EOImode 1 is not trapped: ICC_DIR_EL1 for another vCPU's SPI works from
//!   the next flush on.
//! - Handlers end what they acknowledged, latest first (the architecture demands it with EOImode 0).
//!   If a guest deactivates one of those by GICD_ICACTIVER *and* then ends it, while active ones are
//!   outside, another of its interrupts may be deactivated.

use super::irq::{Irq, LrState};
use super::private::HwPpi;
use super::{FIRST_SPI, Flags, Groups, Kicks, MAX_LRS, Memory, Vgic, ones};
use crate::addr::{IntId, VcpuId};
use crate::broken::{Mistake, broken};
use bitflags::bitflags;

bitflags! {
    /// ICH_HCR_EL2.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Hcr: u32 {
        /// Virtual CPU interface enabled.
        const EN = 1 << 0;
        /// Maintenance interrupt when at most one list register is valid.
        const UIE = 1 << 1;
        /// Maintenance interrupt when EOICount is not zero.
        const LRENPIE = 1 << 2;
        /// Maintenance interrupt when no list register is pending.
        const NPIE = 1 << 3;
        /// Maintenance interrupt when group 0 is enabled.
        const VGRP0EIE = 1 << 4;
        /// Maintenance interrupt when group 0 is disabled.
        const VGRP0DIE = 1 << 5;
        /// Maintenance interrupt when group 1 is enabled.
        const VGRP1EIE = 1 << 6;
        /// Maintenance interrupt when group 1 is disabled.
        const VGRP1DIE = 1 << 7;
        /// Trap ICC_DIR_EL1.
        const TDIR = 1 << 14;
    }
}

/// ICH_HCR_EL2.EOIcount, bits 31:27.
const HCR_EOI_COUNT_SHIFT: u32 = 27;

const VMCR_VENG0: u32 = 1 << 0;
const VMCR_VENG1: u32 = 1 << 1;
/// Binary point 0 serves group 1 too.
const VMCR_VCBPR: u32 = 1 << 4;
/// EOImode: the guest's EOI drops priority only, ICC_DIR_EL1 deactivates.
const VMCR_VEOIM: u32 = 1 << 9;
const VMCR_VBPR1_SHIFT: u32 = 18;
const VMCR_VBPR0_SHIFT: u32 = 21;
const VMCR_VPMR_SHIFT: u32 = 24;

/// What EL2 writes to and reads from the virtual CPU interface.
///
/// `flush` fills `hcr` and `lr`; `sync` looks at `hcr` (for EOIcount), `vmcr` and `lr`. The rest is
/// the guest's, for EL2 to save and restore.
#[derive(Clone, Debug, Default)]
pub struct CpuInterface {
    /// ICH_HCR_EL2.
    pub hcr: u32,
    /// ICH_VMCR_EL2.
    pub vmcr: u32,
    /// ICH_LR<n>_EL2. `flush` leaves zeroes from `used` on, so what an earlier entry left in a
    /// register can be overwritten from here.
    pub lr: [u64; MAX_LRS],
    /// List registers that hold something.
    pub used: u8,
    /// ICH_AP0R<n>_EL2.
    pub ap0r: [u32; 4],
    /// ICH_AP1R<n>_EL2.
    pub ap1r: [u32; 4],
}

impl CpuInterface {
    /// Nothing in the list registers, and nothing that EL2 waits for or the guest has left to be counted.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        self.used == 0 && self.hcr == Hcr::EN.bits()
    }
}

/// What was put in a list register, to recognise it when it comes back.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub intid: u16,
    priority: u8,
    /// Pending because the line is high, not because of a latch.
    from_line: bool,
}

impl Slot {
    pub const EMPTY: Self = Self { intid: 0, priority: 0, from_line: false };

    pub fn of(candidate: Candidate, from_line: bool) -> Self {
        let intid = u16::try_from(candidate.intid).unwrap_or(0);
        Self { intid, priority: candidate.priority, from_line }
    }

    /// What the register says now.
    pub fn state(self, lr: ListRegister) -> LrState {
        LrState {
            pending: lr.pending(),
            active: lr.active() && !broken(Mistake::LostActive),
            priority: self.priority,
            from_line: self.from_line,
        }
    }
}

/// ICH_LR<n>_EL2.
#[derive(Clone, Copy)]
pub(super) struct ListRegister(pub u64);

impl ListRegister {
    const PENDING: u64 = 1 << 62;
    const ACTIVE: u64 = 1 << 63;
    const HW: u64 = 1 << 61;
    const GROUP1: u64 = 1 << 60;
    const PRIORITY_SHIFT: u32 = 48;
    const PINTID_SHIFT: u32 = 32;
    /// Maintenance interrupt when it becomes inactive (HW = 0 only).
    const EOI: u64 = 1 << 41;

    fn pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }

    fn active(self) -> bool {
        self.0 & Self::ACTIVE != 0
    }
}

/// An interrupt that wants a list register. Order is the order in which they get one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    rank: Rank,
    /// Of an active one the group priority, by which the guest's CPU interface has nested it.
    order: u8,
    priority: u8,
    pub intid: u32,
}

/// A list register as it is filled.
pub(super) struct Loaded {
    pub lr: u64,
    /// The latched pending bit is in it.
    pub take_latch: bool,
    /// It is pending because the line is high.
    pub from_line: bool,
}

impl Candidate {
    /// What an interrupt that is in no list register wants of the vCPU that it concerns.
    #[inline]
    pub fn of(intid: u32, irq: &Irq, groups: Groups, vmcr: u32) -> Option<Self> {
        if irq.in_lr() {
            return None;
        }
        if irq.active() {
            let priority = irq.active_priority();
            let order = group_priority(vmcr, irq.has(Flags::GROUP1), priority);
            return Some(Self { rank: Rank::Active, order, priority, intid });
        }
        if !irq.presentable() || !groups.forward(irq) {
            return None;
        }
        let gate = if irq.has(Flags::GROUP1) { VMCR_VENG1 } else { VMCR_VENG0 };
        let rank = if vmcr & gate != 0 { Rank::Presentable } else { Rank::Gated };
        Some(Self { rank, order: irq.priority, priority: irq.priority, intid })
    }

    /// Its list register. `follows`: pending along with active, since it will be presented here as soon as it is deactivated:
    /// then no exit is needed. (A level is never pending while active: it may be low by then.)
    pub fn compose(self, irq: &Irq, follows: bool, pintid: Option<u16>, resampled: bool) -> Loaded {
        let active = self.rank == Rank::Active;
        let take_latch = irq.latched() && (!active || follows);
        let from_line = !active && !take_latch;
        let more = resampled || (active && irq.pending() && !follows) || irq.line_pending();

        let mut lr = u64::from(self.intid);
        lr |= u64::from(self.priority) << ListRegister::PRIORITY_SHIFT;
        lr |= if irq.has(Flags::GROUP1) { ListRegister::GROUP1 } else { 0 };
        lr |= if active { ListRegister::ACTIVE } else { 0 };
        lr |= if take_latch || from_line { ListRegister::PENDING } else { 0 };
        lr |= match pintid {
            // Pending and active excludes HW; a latch has no physical counterpart.
            Some(pintid) if !irq.latched() => {
                ListRegister::HW | u64::from(pintid) << ListRegister::PINTID_SHIFT
            }
            // The physical PPI is EL2's to deactivate then: it needs to know when.
            Some(_) => ListRegister::EOI,
            None if more => ListRegister::EOI,
            None => 0,
        };
        Loaded { lr, take_latch, from_line }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The most urgent presentable one.
    First,
    Active,
    Presentable,
    /// Presentable, in a group that the guest's CPU interface has disabled.
    Gated,
}

/// What does not fit, by kind.
#[derive(Default)]
struct Demand {
    first: Option<Candidate>,
    presentable: usize,
    active: usize,
}

impl<M: Memory> Vgic<M> {
    /// Chooses what goes into the list registers of `v` and how EL2 gets control back. Right before
    /// entry, with `cpu.vmcr` as the guest has it.
    ///
    /// A second flush without entry in between is allowed: it starts with a [`Vgic::sync`] of `cpu`,
    /// which must still be what the first one made.
    pub fn flush(&mut self, v: VcpuId, cpu: &mut CpuInterface) {
        if self.present(v).is_some_and(|vcpu| vcpu.inside) {
            self.owed = self.sync(v, cpu);
        }
        cpu.hcr = Hcr::EN.bits();
        let before = core::mem::take(&mut cpu.used);
        let Some(vcpu) = self.present_mut(v) else {
            cpu.lr = [0; MAX_LRS];
            return;
        };
        let (nr_lrs, busy) = (u32::from(vcpu.nr_lrs), vcpu.busy);
        vcpu.inside = true;
        vcpu.dirty = false;

        let mut left = Demand::default();
        if self.all_fit(busy, nr_lrs) {
            // However many of them want a list register, there is one for each.
            let groups = self.groups;
            if let Some(vcpu) = self.present_mut(v) {
                for intid in ones(busy.into()) {
                    vcpu.load_if_candidate(v, intid, groups, cpu);
                }
            }
            for word in ones(self.spi_words.into()) {
                for intid in self.busy_in(word) {
                    self.load_if_candidate(v, intid, cpu);
                }
            }
        } else {
            left = self.choose(v, cpu, nr_lrs as usize);
        }
        for n in cpu.used..before {
            if let Some(lr) = cpu.lr.get_mut(usize::from(n)) {
                *lr = 0;
            }
        }
        cpu.hcr = self.control(&left, cpu.vmcr).bits();
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.used = cpu.used;
        }
    }

    /// [`Vgic::sync`], [`Vgic::set_hw_ppi`] and [`Vgic::flush`] in one, for a vCPU whose list registers have been read back. Whether
    /// the PPI is [in flight](Vgic::hw_ppi_in_flight), and what `sync` found.
    pub fn turn_over(
        &mut self,
        v: VcpuId,
        cpu: &mut CpuInterface,
        intid: IntId,
        pintid: u32,
        level: bool,
    ) -> (bool, Kicks) {
        let ppi = HwPpi { intid: intid.0, pintid: u16::try_from(pintid).unwrap_or(0), level };
        let groups = self.groups;
        let quiet = self.owed.is_empty() && self.spi_words == 0;
        if quiet
            && cpu.hcr >> HCR_EOI_COUNT_SHIFT == 0
            && cpu.vmcr & VMCR_VEOIM == 0
            && let Some(vcpu) = self.present_mut(v)
            && vcpu.all_fit()
        {
            cpu.hcr = Hcr::EN.bits();
            return (vcpu.turn_over(v, groups, cpu, ppi), Kicks::NONE);
        }
        let kicks = self.sync(v, cpu);
        self.set_hw_ppi(v, intid, pintid, level);
        self.flush(v, cpu);
        (self.hw_ppi_in_flight(v, intid), kicks)
    }

    /// Whether there is a list register for each of these private interrupts and for all SPIs that are busy.
    fn all_fit(&self, busy: u32, nr_lrs: u32) -> bool {
        let at_most_one = busy & busy.wrapping_sub(1) == 0 && self.spi_words == 0;
        at_most_one || self.busy_spis().saturating_add(busy.count_ones()) <= nr_lrs
    }

    /// Loads the most urgent candidates, and says what is left.
    #[cold]
    fn choose(&mut self, v: VcpuId, cpu: &mut CpuInterface, nr_lrs: usize) -> Demand {
        let demand = self.demand(v, cpu.vmcr);
        let overflow = demand.presentable.saturating_add(demand.active) > nr_lrs;
        let mut chosen = [None; MAX_LRS];
        let room = chosen.get_mut(..nr_lrs).unwrap_or_default();
        self.for_each_candidate(v, cpu.vmcr, |candidate| {
            let first = demand.first == Some(candidate);
            insert(room, Candidate { rank: if first { Rank::First } else { candidate.rank }, ..candidate });
        });

        let mut left = demand;
        for candidate in chosen.into_iter().flatten() {
            match candidate.rank {
                Rank::Active => left.active = left.active.saturating_sub(1),
                _ => left.presentable = left.presentable.saturating_sub(1),
            }
            self.load(v, candidate, overflow, cpu);
        }
        left
    }

    fn load_if_candidate(&mut self, v: VcpuId, intid: u32, cpu: &mut CpuInterface) {
        let candidate = self.irq(v, intid).and_then(|irq| self.candidate(v, intid, irq, cpu.vmcr));
        if let Some(candidate) = candidate {
            self.load(v, candidate, false, cpu);
        }
    }

    /// How many SPIs are busy.
    fn busy_spis(&self) -> u32 {
        let words = ones(self.spi_words.into()).filter_map(|word| self.spi_busy.get(word as usize));
        words.fold(0, |sum, word| sum.saturating_add(word.count_ones()))
    }

    /// Takes back what is in the list registers of `v`. After every exit that followed a
    /// [`Vgic::flush`], with `cpu.lr` (those in use), `cpu.hcr` and `cpu.vmcr` read back. Otherwise it
    /// does nothing.
    pub fn sync(&mut self, v: VcpuId, cpu: &CpuInterface) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        let Some(vcpu) = self.present(v).filter(|vcpu| vcpu.inside) else { return kicks };
        let used = usize::from(vcpu.used);
        // With EOImode 1 only ICC_DIR_EL1 deactivates, and that is trapped when it matters. (QEMU
        // counts the EOIs too.)
        if cpu.vmcr & VMCR_VEOIM == 0 {
            for _ in 0..cpu.hcr >> HCR_EOI_COUNT_SHIFT {
                self.end_outside(v, cpu.vmcr, &mut kicks);
            }
        }
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.inside = false;
            vcpu.stale = false;
            vcpu.used = 0;
            vcpu.dirty |= used > 0;
        }
        let groups = self.groups;
        for (n, &lr) in cpu.lr.iter().enumerate().take(used) {
            let Some(vcpu) = self.present_mut(v) else { break };
            let Some(slot) = vcpu.slots.get(n).copied() else { break };
            let lr = ListRegister(lr);
            if u32::from(slot.intid) < FIRST_SPI {
                vcpu.fold(slot, lr, groups);
            } else {
                self.update_ending(v, slot.intid.into(), &mut kicks, |irq| irq.fold(slot.state(lr)));
            }
        }
        kicks.without(v)
    }

    /// Whether an interrupt waits for `v` that would end its WFI: presentable, its group enabled in
    /// the CPU interface too, and more urgent than ICC_PMR_EL1. `v` has been synced. The running
    /// priority is not looked at: WFI may end early.
    pub fn has_deliverable(&self, v: VcpuId, vmcr: u32) -> bool {
        let mut found = false;
        self.for_each_candidate(v, vmcr, |candidate| {
            let unmasked = u32::from(candidate.priority) < vmcr >> VMCR_VPMR_SHIFT;
            found |= candidate.rank == Rank::Presentable && unmasked;
        });
        found
    }

    /// Whether `v` needs [`Vgic::flush`] before and [`Vgic::sync`] after the next entry. If not, its
    /// virtual CPU interface can stay as the last flush left it, with all list registers empty.
    pub fn needs_flush(&self, v: VcpuId) -> bool {
        self.present(v).is_some_and(|vcpu| vcpu.dirty || vcpu.inside || vcpu.used > 0)
    }

    /// Whether something changed for `v` since its last flush, so that it has to sync and flush again.
    pub fn outdated(&self, v: VcpuId) -> bool {
        self.present(v).is_some_and(|vcpu| vcpu.dirty)
    }

    /// vCPU `v` has written `intid` to ICC_DIR_EL1 and that was trapped (TDIR). Any vCPU may
    /// deactivate an SPI.
    pub fn deactivate(&mut self, v: VcpuId, intid: IntId) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        if self.irq(v, intid.0).is_some_and(|irq| irq.active() || irq.in_lr()) {
            self.update_ending(v, intid.0, &mut kicks, Irq::deactivate);
        }
        kicks.without(v)
    }

    /// Takes everything back from `v` as if it had not run since its flush.
    pub(super) fn unload(&mut self, v: VcpuId) {
        let Some(vcpu) = self.present(v).filter(|vcpu| vcpu.inside) else { return };
        let used = usize::from(vcpu.used);
        let mut ignored = Kicks::NONE;
        for n in 0..used {
            let Some(slot) = self.slot(v, n) else { break };
            self.update_ending(v, u32::from(slot.intid), &mut ignored, |irq| {
                irq.fold(LrState {
                    pending: true,
                    active: irq.active(),
                    priority: slot.priority,
                    from_line: slot.from_line,
                })
            });
        }
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.inside = false;
            vcpu.stale = false;
            vcpu.used = 0;
        }
    }

    /// What the last flush of `v` put into list register `n`.
    fn slot(&self, v: VcpuId, n: usize) -> Option<Slot> {
        self.present(v)?.slots.get(n).copied()
    }

    // --- choosing ---------------------------------------------------------------------------------

    /// Calls `f` with everything that wants a list register of `v`.
    fn for_each_candidate(&self, v: VcpuId, vmcr: u32, mut f: impl FnMut(Candidate)) {
        let Some(vcpu) = self.present(v) else { return };
        let private = ones(u64::from(vcpu.busy));
        let shared = ones(self.spi_words.into()).flat_map(|word| self.busy_in(word));
        for intid in private.chain(shared) {
            if let Some(irq) = self.irq(v, intid)
                && let Some(candidate) = self.candidate(v, intid, irq, vmcr)
            {
                f(candidate);
            }
        }
    }

    fn candidate(&self, v: VcpuId, intid: u32, irq: &Irq, vmcr: u32) -> Option<Candidate> {
        let candidate = Candidate::of(intid, irq, self.groups, vmcr)?;
        (self.concerned(v, intid, irq) == Some(v)).then_some(candidate)
    }

    fn demand(&self, v: VcpuId, vmcr: u32) -> Demand {
        let mut demand = Demand::default();
        self.for_each_candidate(v, vmcr, |candidate| {
            if candidate.rank == Rank::Active {
                demand.active = demand.active.saturating_add(1);
            } else {
                demand.presentable = demand.presentable.saturating_add(1);
                demand.first = Some(demand.first.map_or(candidate, |first| first.min(candidate)));
            }
        });
        demand
    }

    /// ICH_HCR_EL2 for what is left outside.
    fn control(&self, left: &Demand, vmcr: u32) -> Hcr {
        let mut hcr = Hcr::EN;
        if left.presentable > 0 {
            hcr |= Hcr::NPIE;
            hcr |= if vmcr & VMCR_VENG0 != 0 { Hcr::VGRP0DIE } else { Hcr::VGRP0EIE };
            hcr |= if vmcr & VMCR_VENG1 != 0 { Hcr::VGRP1DIE } else { Hcr::VGRP1EIE };
        }
        if left.active > 0 {
            hcr |= Hcr::LRENPIE | Hcr::TDIR;
        }
        // An SPI may be deactivated by another vCPU than the one that has it in a list register.
        if vmcr & VMCR_VEOIM != 0 && self.present.0.count_ones() > 1 {
            hcr |= Hcr::TDIR;
        }
        hcr
    }

    /// Moves an interrupt to the next list register. `overflow`: others wait outside, so it is not decided here whose turn is next.
    fn load(&mut self, v: VcpuId, candidate: Candidate, overflow: bool, cpu: &mut CpuInterface) {
        let (intid, groups) = (candidate.intid, self.groups);
        if intid < FIRST_SPI {
            if let Some(vcpu) = self.present_mut(v) {
                vcpu.load(v, candidate, groups, !overflow, cpu);
            }
            return;
        }
        let Some(irq) = self.irq(v, intid).copied() else { return };
        let resampled = self.resampled(intid);
        let follows = !overflow
            && irq.follows()
            && groups.forward(&irq)
            && self.target(v, intid, &irq) == Some(v)
            // Its end is to be seen, and with more pending there is no maintenance interrupt.
            && !resampled;
        let loaded = candidate.compose(&irq, follows, None, resampled);
        if let Some(irq) = self.irq_mut(v, intid) {
            irq.load(v, loaded.take_latch);
        }
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.put(candidate, loaded.lr, loaded.from_line, cpu);
        }
    }

    /// The guest ended an interrupt that was in no list register. EOIs nest, so it is the most urgent
    /// of those acknowledged, as the binary points have it.
    fn end_outside(&mut self, v: VcpuId, vmcr: u32, kicks: &mut Kicks) {
        let mut ended: Option<(bool, Candidate)> = None;
        self.for_each_candidate(v, vmcr, |candidate| {
            if candidate.rank == Rank::Active {
                let irq = self.irq(v, candidate.intid);
                let acked = irq.is_some_and(|irq| irq.has(Flags::ACKED));
                let key = (!acked, candidate);
                ended = Some(ended.map_or(key, |other| other.min(key)));
            }
        });
        if let Some((_, Candidate { intid, .. })) = ended {
            self.update_ending(v, intid, kicks, Irq::deactivate);
        }
    }
}

/// The part of a priority that decides on preemption (IHI 0069, "Priority grouping"). ICC_BPR1_EL1 names
/// the group priority's lowest bit, ICC_BPR0_EL1 the one below.
fn group_priority(vmcr: u32, group1: bool, priority: u8) -> u8 {
    let bits = if group1 && vmcr & VMCR_VCBPR == 0 {
        vmcr >> VMCR_VBPR1_SHIFT & 7
    } else {
        (vmcr >> VMCR_VBPR0_SHIFT & 7).saturating_add(1)
    };
    priority & 0xFFu8.checked_shl(bits).unwrap_or(0)
}

/// Keeps the first `room.len()` candidates, in order.
fn insert(room: &mut [Option<Candidate>], new: Candidate) {
    let mut new = new;
    for place in room {
        match place {
            Some(old) if *old <= new || broken(Mistake::NoUrgency) => {}
            Some(old) => core::mem::swap(old, &mut new),
            None => {
                *place = Some(new);
                return;
            }
        }
    }
}
