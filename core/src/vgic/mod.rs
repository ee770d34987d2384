// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual GICv3 of one VM: distributor, redistributors, and what goes into list registers.
//!
//! ```text
//!   IRQ_LINE      GICD/GICR accesses      ICC_SGIxR_EL1, ICC_DIR_EL1
//!       |                 |                         |
//!   +---v-----------------v-------------------------v---+
//!   | lines.rs        dist.rs redist.rs regs.rs  sgi.rs |     physical PPI (timer)
//!   |            one irq::Irq per interrupt             |<--- set_hw_ppi
//!   +--------------------+------------------------^-----+
//!                  flush | lr.rs                  | sync
//!                   +----v------------------------+----+
//!                   |  CpuInterface: ICH_LR, ICH_HCR   |  read and written by EL2
//!                   +----------------------------------+
//! ```
//!
//! Pure logic: EL2 (`hypervisor/`) owns the lock around a [`Vgic`], reads and writes the ICH_*_EL2
//! registers, and acts on [`Kicks`]. Register behaviour follows the GIC architecture specification
//! (Arm IHI 0069) with one Security state (GICD_CTLR.DS = 1), affinity routing always on, five
//! priority bits, no LPIs. Reset state is what KVM gives its guests (everything in group 1).
//!
//! # What the caller guarantees
//! 1. [`Vgic::flush`] before entering a vCPU, and [`Vgic::sync`] with the list registers and
//!    ICH_HCR_EL2 read back before anything is asked or changed on behalf of that vCPU (its GIC
//!    accesses, SGIs, WFI), before its CPU runs anything else, and on each kick, timer or maintenance
//!    interrupt ([`Vgic::turn_over`] is both). Exits that do nothing of that kind may return with the list registers as they are.
//!    If [`Vgic::needs_flush`] says no, both may be left out. For an SGI, and for reads of registers that are
//!    [settled](Vgic::dist_settled), the list registers may stay as they are, as they do when another vCPU acts: afterwards
//!    [`Vgic::outdated`] says whether `sync` and `flush` are due.
//! 2. Every vCPU in returned [`Kicks`] is made to exit if it runs in the guest (it then syncs and
//!    flushes) and is woken if it waits; those that [`Vgic::sync`] returns just as the others. A kick
//!    that comes between flush and entry must not be lost. The vCPU that caused the change is never in
//!    its own [`Kicks`]: it flushes anyway.
//! 3. A vCPU runs on CPUs with at least as many list registers as [`Vgic::add_vcpu`] was told.
//!
//! # Where the truth is
//! Software's view of an interrupt is in its [`irq::Irq`]. While it sits in a list register of a vCPU
//! that has been flushed and not synced ("inside"), that list register holds the truth of its active
//! bit and of the pending bit moved there. Others may change the interrupt meanwhile: the change is
//! noted, the vCPU is kicked, and `sync` merges both. Reads of pending and active bits meanwhile are
//! as of its last entry; [`Vgic::held_elsewhere`] says whom to kick first for an exact answer.
//!
//! # Resampled lines
//! For level-triggered lines of devices outside EL2, whose VMM looks at the device again after each
//! interrupt: [`Vgic::set_resample`] marks an SPI, [`Vgic::set_level`] raises it. When the guest ends it
//! (EOI, ICC_DIR_EL1, GICD_ICACTIVER), the vGIC lowers the line and [`Vgic::take_resampled`] gives out
//! the INTID, once for each end that nobody has fetched yet. EL2 asks after each [`Vgic::sync`],
//! [`Vgic::deactivate`], [`Vgic::dist_write`] and [`Vgic::remove_vcpu`], until there is none; what
//! it leaves waits. Such an interrupt asks for a maintenance interrupt at its end (LR.EOI), so the
//! end is known at once. An end that came just before the mark, and is found only after it, is told too: whoever is
//! told looks at the device, and finds that nothing has changed.
//!
//! # Invariants
//! - An interrupt is in at most one list register of one vCPU.
//! - An active interrupt is kept, enabled or not, until it is deactivated. It stays with the vCPU
//!   that acknowledged it even when GICD_IROUTER changes; its next pending state goes to the new one.
//! - The most urgent presentable interrupt of a vCPU always gets a list register, so guests progress
//!   however many are active. Nothing that stays outside is forgotten: ICH_HCR_EL2 asks for a
//!   maintenance interrupt at the moment room appears, never one that is asserted at once.
//!
//! # Memory
//! A [`Vgic`] is below a page (4 KiB) with its first [`INLINE_SPIS`] SPIs. What not every VM has is
//! lent by EL2 in boxes ([`Memory`]): a [`VcpuState`] for each vCPU (some 400 bytes), and [`MoreSpis`]
//! (6 KiB). Boxes that are no longer needed are given back, so that they can be freed outside the lock.

mod dist;
mod irq;
mod lines;
mod lr;
mod private;
mod redist;
mod regs;
mod sgi;
#[cfg(test)]
mod tests;

use crate::addr::VcpuId;
use core::ops::{BitOr, BitOrAssign, DerefMut};
use irq::{Flags, Irq};

pub use lines::BadIntId;
pub use lr::{CpuInterface, Hcr};
pub use private::VcpuState;
pub use redist::REDIST_SIZE;

/// Most vCPUs of a VM. Limited by [`Kicks`].
pub const MAX_VCPUS: usize = 64;
/// Most list registers of a CPU (architectural maximum).
pub const MAX_LRS: usize = 16;
/// Most shared peripheral interrupts: INTIDs 32 to 1019.
pub const MAX_SPIS: usize = 988;
/// SPIs that need no [`MoreSpis`].
pub const INLINE_SPIS: usize = 256;
/// SGIs and PPIs of each vCPU.
const PRIVATE: usize = 32;
const FIRST_SPI: u32 = 32;
const FIRST_PPI: u32 = 16;
const SPI_WORDS: usize = MAX_SPIS.div_ceil(64);

const _: () = assert!(MAX_VCPUS <= 64);

/// How the owner of a [`Vgic`] allocates: there is no heap at EL2.
pub trait Memory {
    /// An owned `T`.
    type Box<T>: DerefMut<Target = T>;
}

/// vCPUs whose virtual interrupts changed: kick those that run, wake those that wait.
#[must_use = "a vCPU that is not kicked may sleep for ever"]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Kicks(
    /// Bit n: vCPU n.
    pub u64,
);

impl Kicks {
    /// Nobody.
    pub const NONE: Self = Self(0);

    /// One vCPU.
    pub fn of(vcpu: VcpuId) -> Self {
        Self(bit(vcpu))
    }

    /// Whether there is nobody to kick.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `vcpu` is to be kicked.
    pub fn contains(self, vcpu: VcpuId) -> bool {
        self.0 & bit(vcpu) != 0
    }

    /// The vCPUs, lowest first.
    pub fn iter(self) -> impl Iterator<Item = VcpuId> {
        ones(self.0).map(|n| VcpuId(u16::try_from(n).unwrap_or(u16::MAX)))
    }

    fn add(&mut self, vcpu: VcpuId) {
        self.0 |= bit(vcpu);
    }

    fn without(self, vcpu: VcpuId) -> Self {
        Self(self.0 & !bit(vcpu))
    }
}

impl BitOr for Kicks {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Kicks {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// MPIDR_EL1.Aff2.Aff1.Aff0 of a vCPU. Sixteen vCPUs per Aff1, since an SGI's target list has
/// sixteen bits.
pub const fn affinity(vcpu: VcpuId) -> u32 {
    let v = vcpu.0 as u32;
    (v & 0xF) | (v >> 4) << 8
}

/// The vCPU of an affinity, whether it exists or not. Nothing where no vCPU can have it.
pub const fn vcpu_of(affinity: u32) -> Option<VcpuId> {
    if affinity & 0xFF > 0xF || affinity >> 16 != 0 {
        return None;
    }
    let v = (affinity >> 8) << 4 | (affinity & 0xF);
    if v < MAX_VCPUS as u32 { Some(VcpuId(v as u16)) } else { None }
}

/// GICD_CTLR.EnableGrp0 and EnableGrp1.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
struct Groups {
    group0: bool,
    group1: bool,
}

impl Groups {
    /// Whether the distributor forwards interrupts of this one's group.
    fn forward(self, irq: &Irq) -> bool {
        if irq.has(Flags::GROUP1) { self.group1 } else { self.group0 }
    }

    /// Whether a vCPU has to deal with the interrupt: the one that is concerned.
    #[inline]
    fn due(self, irq: &Irq) -> bool {
        irq.active() || irq.in_lr() || (irq.presentable() && self.forward(irq))
    }
}

/// The SPIs past [`INLINE_SPIS`].
pub struct MoreSpis([Irq; MAX_SPIS - INLINE_SPIS]);

impl Default for MoreSpis {
    fn default() -> Self {
        Self([Irq::RESET; MAX_SPIS - INLINE_SPIS])
    }
}

/// The number of SPIs can't change any more. What was given for more of them.
pub struct SpisFixed<M: Memory>(pub Option<M::Box<MoreSpis>>);

/// The virtual GICv3 of one VM. See the module's text for what its caller guarantees.
pub struct Vgic<M: Memory> {
    /// SPIs that exist: INTIDs 32..32 + nr_spis.
    nr_spis: u16,
    groups: Groups,
    /// Kicks found where none could be returned; part of the next answer.
    owed: Kicks,
    /// Bit n: SPI n is [`Irq::busy`].
    spi_busy: [u64; SPI_WORDS],
    /// Bit n: word n of `spi_busy` is not zero.
    spi_words: u32,
    spis: [Irq; INLINE_SPIS],
    more: Option<M::Box<MoreSpis>>,
    /// Those of `vcpus` that are there.
    present: Kicks,
    /// Who takes interrupts that any vCPU may take: the first that is awake, on, or at least there.
    any: Option<VcpuId>,
    /// Bit n: SPI n is resampled; and it has been ended, which is still to be told.
    resample: [u64; SPI_WORDS],
    ended: [u64; SPI_WORDS],
    /// Bits in `ended`.
    due: u16,
    vcpus: [Option<M::Box<VcpuState>>; MAX_VCPUS],
}

impl<M: Memory> Vgic<M> {
    /// A distributor in reset state with SPIs 32 to `nr_spis` + 31, and no vCPUs. `nr_spis` is
    /// rounded up to a multiple of 32 and limited to 32..=[`MAX_SPIS`]; without `more`, to
    /// [`INLINE_SPIS`].
    pub fn new(nr_spis: usize, more: Option<M::Box<MoreSpis>>) -> Self {
        Self {
            nr_spis: limit_spis(nr_spis, more.is_some()),
            groups: Groups::default(),
            owed: Kicks::NONE,
            spi_busy: [0; SPI_WORDS],
            spi_words: 0,
            spis: [Irq::RESET; INLINE_SPIS],
            more,
            present: Kicks::NONE,
            any: None,
            resample: [0; SPI_WORDS],
            ended: [0; SPI_WORDS],
            due: 0,
            vcpus: [const { None }; MAX_VCPUS],
        }
    }

    /// Gives the VM another number of SPIs, as [`Vgic::new`] counts them, all in reset state, and the box
    /// of the former ones back. Only while there is no vCPU: otherwise `more` comes back.
    pub fn set_spis(
        &mut self,
        nr_spis: usize,
        more: Option<M::Box<MoreSpis>>,
    ) -> Result<Option<M::Box<MoreSpis>>, SpisFixed<M>> {
        if !self.present.is_empty() {
            return Err(SpisFixed(more));
        }
        self.nr_spis = limit_spis(nr_spis, more.is_some());
        let former = core::mem::replace(&mut self.more, more);
        self.resample = [0; SPI_WORDS];
        self.ended = [0; SPI_WORDS];
        self.due = 0;
        self.reset();
        Ok(former)
    }

    /// Whether it has a [`MoreSpis`].
    pub fn has_more_spis(&self) -> bool {
        self.more.is_some()
    }

    /// Gives the VM vCPU `v` in reset state, on CPUs with `nr_lrs` list registers (one more than
    /// ICH_VTR_EL2.ListRegs). Its state lives in `state`. The box of a vCPU that it replaces comes back, or `state`
    /// itself past [`MAX_VCPUS`].
    pub fn add_vcpu(
        &mut self,
        v: VcpuId,
        nr_lrs: usize,
        mut state: M::Box<VcpuState>,
    ) -> Option<M::Box<VcpuState>> {
        self.unload(v);
        let Some(place) = self.vcpus.get_mut(usize::from(v.0)) else { return Some(state) };
        *state = VcpuState {
            dirty: true,
            nr_lrs: u8::try_from(nr_lrs.clamp(1, MAX_LRS)).unwrap_or(1),
            ..VcpuState::RESET
        };
        let former = place.replace(state);
        self.present.add(v);
        self.choose_any();
        former
    }

    /// Takes vCPU `v` away, and gives its box back. SPIs it had not acknowledged go on to whoever they
    /// are routed to; those active on it are deactivated, since nobody is left to do that.
    pub fn remove_vcpu(&mut self, v: VcpuId) -> (Kicks, Option<M::Box<VcpuState>>) {
        let mut kicks = core::mem::take(&mut self.owed);
        // As if it had exited before it ran.
        self.unload(v);
        let Some(state) = self.vcpus.get_mut(usize::from(v.0)).and_then(Option::take) else {
            return (kicks, None);
        };
        self.present = self.present.without(v);
        self.choose_any();
        // What is active is busy.
        for word in ones(self.spi_words.into()) {
            for intid in self.busy_in(word) {
                self.update_ending(v, intid, &mut kicks, |irq| irq.holder() == Some(v) && irq.deactivate());
            }
        }
        (kicks.without(v), Some(state))
    }

    /// Puts distributor and redistributors in reset state. vCPUs stay; none may be inside the guest.
    /// Marks of resampled lines stay too, and those that were high are told: whoever drives them looks again.
    pub fn reset(&mut self) {
        self.resample_all();
        self.groups = Groups::default();
        self.owed = Kicks::NONE;
        self.spi_busy = [0; SPI_WORDS];
        self.spi_words = 0;
        self.spis.fill(Irq::RESET);
        if let Some(more) = self.more.as_mut() {
            more.0.fill(Irq::RESET);
        }
        for vcpu in self.vcpus.iter_mut().flatten() {
            **vcpu = VcpuState { dirty: true, nr_lrs: vcpu.nr_lrs, ..VcpuState::RESET };
        }
        self.choose_any();
    }

    /// Tells that PSCI turned `v` on or off: interrupts for any vCPU avoid those that are off. A vCPU that
    /// is off keeps what is pending for it and active on it; but with its CPU interface in reset state when
    /// it comes on, no EOI will be about what it had acknowledged before.
    pub fn set_power(&mut self, v: VcpuId, on: bool) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.off = !on;
        }
        if on {
            self.forget_acknowledges(v);
        }
        self.recheck_any(&mut kicks);
        kicks.without(v)
    }

    fn forget_acknowledges(&mut self, v: VcpuId) {
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.irqs.iter_mut().for_each(Irq::forget_acknowledge);
        }
        for word in 0..SPI_WORDS {
            for n in ones(self.spi_busy.get(word).copied().unwrap_or(0)) {
                let held = self.spi_mut(word.saturating_mul(64).saturating_add(n as usize));
                if let Some(irq) = held.filter(|irq| irq.holder() == Some(v)) {
                    irq.forget_acknowledge();
                }
            }
        }
    }

    // --- lookups ------------------------------------------------------------------------------

    /// First INTID that does not exist.
    fn end(&self) -> u32 {
        FIRST_SPI.saturating_add(u32::from(self.nr_spis))
    }

    fn present(&self, v: VcpuId) -> Option<&VcpuState> {
        self.vcpus.get(usize::from(v.0))?.as_deref()
    }

    fn present_mut(&mut self, v: VcpuId) -> Option<&mut VcpuState> {
        self.vcpus.get_mut(usize::from(v.0))?.as_deref_mut()
    }

    /// SPI `spi`, counted from 0, which is below `nr_spis`.
    fn spi(&self, spi: usize) -> Option<&Irq> {
        match self.spis.get(spi) {
            None => self.more.as_ref()?.0.get(spi.checked_sub(INLINE_SPIS)?),
            found => found,
        }
    }

    fn spi_mut(&mut self, spi: usize) -> Option<&mut Irq> {
        match self.spis.get_mut(spi) {
            None => self.more.as_mut()?.0.get_mut(spi.checked_sub(INLINE_SPIS)?),
            found => found,
        }
    }

    /// Interrupt `intid` as vCPU `v` sees it.
    #[inline]
    fn irq(&self, v: VcpuId, intid: u32) -> Option<&Irq> {
        match intid.checked_sub(FIRST_SPI) {
            None => self.present(v)?.irqs.get(intid as usize),
            Some(spi) if spi < u32::from(self.nr_spis) => self.spi(spi as usize),
            Some(_) => None,
        }
    }

    #[inline]
    fn irq_mut(&mut self, v: VcpuId, intid: u32) -> Option<&mut Irq> {
        match intid.checked_sub(FIRST_SPI) {
            None => self.present_mut(v)?.irqs.get_mut(intid as usize),
            Some(spi) if spi < u32::from(self.nr_spis) => self.spi_mut(spi as usize),
            Some(_) => None,
        }
    }

    /// Where a new pending state of an interrupt in `v`'s view goes.
    fn target(&self, v: VcpuId, intid: u32, irq: &Irq) -> Option<VcpuId> {
        if intid < FIRST_SPI {
            return Some(v);
        }
        if irq.has(Flags::ANY) {
            return self.any;
        }
        vcpu_of(irq.affinity()).filter(|&t| self.present.contains(t))
    }

    /// To be called when a vCPU comes, goes, or changes its power or GICR_WAKER.
    fn choose_any(&mut self) {
        self.any = self.present.iter().min_by_key(|&v| {
            let (off, asleep) = self.present(v).map_or((true, true), |c| (c.off, !c.awake));
            (off, asleep, v)
        });
    }

    /// The vCPU that has to deal with the interrupt as it is now.
    fn concerned(&self, v: VcpuId, intid: u32, irq: &Irq) -> Option<VcpuId> {
        if intid < FIRST_SPI {
            return Some(v);
        }
        match irq.holder() {
            Some(holder) if irq.active() || irq.in_lr() => Some(holder),
            _ => self.target(v, intid, irq),
        }
    }

    // --- changes --------------------------------------------------------------------------------

    /// Changes one interrupt, and notes who has to look at it. The only way to do so outside lr.rs.
    fn update<R>(
        &mut self,
        v: VcpuId,
        intid: u32,
        kicks: &mut Kicks,
        change: impl FnOnce(&mut Irq) -> R,
    ) -> Option<R> {
        let result = change(self.irq_mut(v, intid)?);
        self.changed(v, intid, kicks);
        Some(result)
    }

    /// As [`Vgic::update`], for changes that may end the interrupt, and say whether they did.
    fn update_ending(
        &mut self,
        v: VcpuId,
        intid: u32,
        kicks: &mut Kicks,
        change: impl FnOnce(&mut Irq) -> bool,
    ) {
        if self.update(v, intid, kicks, change) == Some(true) && intid >= FIRST_SPI {
            self.note_end(intid, kicks);
        }
    }

    /// Keeps the busy bitmap true, and kicks the vCPU concerned if there is something for it to do.
    fn changed(&mut self, v: VcpuId, intid: u32, kicks: &mut Kicks) {
        let groups = self.groups;
        let Some(spi) = intid.checked_sub(FIRST_SPI) else {
            if self.present_mut(v).is_some_and(|vcpu| vcpu.note(intid, groups)) {
                kicks.add(v);
            }
            return;
        };
        let Some(irq) = self.irq(v, intid).copied() else { return };
        let (mask, here) = (1u64.wrapping_shl(spi), 1u32.wrapping_shl(spi / 64));
        if let Some(word) = self.spi_busy.get_mut((spi / 64) as usize) {
            *word = if irq.busy() { *word | mask } else { *word & !mask };
            self.spi_words = if *word == 0 { self.spi_words & !here } else { self.spi_words | here };
        }
        if groups.due(&irq)
            && let Some(concerned) = self.concerned(v, intid, &irq)
        {
            self.kick(concerned, kicks);
        }
    }

    fn kick(&mut self, v: VcpuId, kicks: &mut Kicks) {
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.dirty = true;
            kicks.add(v);
        }
    }

    /// The answer to "which vCPU is any?" may have changed.
    fn recheck_any(&mut self, kicks: &mut Kicks) {
        let before = self.any;
        self.choose_any();
        if self.any == before {
            return;
        }
        for word in ones(self.spi_words.into()) {
            for intid in self.busy_in(word) {
                if self.irq(VcpuId(0), intid).is_some_and(|irq| irq.has(Flags::ANY)) {
                    self.changed(VcpuId(0), intid, kicks);
                }
            }
        }
    }

    /// INTIDs of the busy SPIs in a word of `spi_busy`, as it is now.
    fn busy_in(&self, word: u32) -> impl Iterator<Item = u32> + use<M> {
        let busy = self.spi_busy.get(word as usize).copied().unwrap_or(0);
        let first = word.saturating_mul(64).saturating_add(FIRST_SPI);
        ones(busy).map(move |n| first.saturating_add(n))
    }
}

/// A number of SPIs that a VM may be asked to have: as GICD_TYPER.ITLinesNumber can say it.
pub fn valid_spis(asked: u64) -> Option<usize> {
    let spis = usize::try_from(asked).ok().filter(|spis| (32..=MAX_SPIS).contains(spis))?;
    (spis.is_multiple_of(32) || spis == MAX_SPIS).then_some(spis)
}

fn limit_spis(wanted: usize, more: bool) -> u16 {
    let most = if more { MAX_SPIS } else { INLINE_SPIS };
    let rounded = wanted.clamp(1, most).next_multiple_of(32).min(most);
    u16::try_from(rounded).unwrap_or(32)
}

/// Positions of the set bits, lowest first.
fn ones(mut bits: u64) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let n = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (n < 64).then_some(n)
    })
}

fn bit(v: VcpuId) -> u64 {
    1u64.checked_shl(u32::from(v.0)).unwrap_or(0)
}
