// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupt inputs: what the VMM raises, and physical PPIs that belong to a vCPU.
//!
//! The ABI's IRQ_LINE has neither a reliable de-assert nor an EOI notification, so level 1 is a
//! pulse: pending once, also while active, and not again after the EOI, however GICD_ICFGR is set.
//! True levels ([`Vgic::set_level`]) are for our own extension.

use super::private::HwPpi;
use super::{FIRST_PPI, FIRST_SPI, Flags, Kicks, Memory, Vgic};
use crate::addr::{IntId, VcpuId};

/// Not an interrupt that has an input: an SGI, past the last SPI, or a PPI of no vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no such interrupt line")]
pub struct BadIntId;

impl<M: Memory> Vgic<M> {
    /// IRQ_LINE: `level` true makes the interrupt pending once. False lowers a level-triggered line
    /// and withdraws what it raised and nobody acknowledged; an edge-triggered one ignores it.
    ///
    /// `target` names the vCPU of a PPI and is ignored for SPIs.
    pub fn set_line(&mut self, intid: IntId, target: Option<VcpuId>, level: bool) -> Result<Kicks, BadIntId> {
        let v = self.input(intid, target)?;
        let mut kicks = core::mem::take(&mut self.owed);
        self.update(v, intid.0, &mut kicks, |irq| if level { irq.pulse() } else { irq.lower() });
        Ok(kicks)
    }

    /// Drives a line to `level` until the next call: a level-triggered interrupt is pending again
    /// after each EOI while it is high; an edge-triggered one is pending once per rise.
    pub fn set_level(
        &mut self,
        intid: IntId,
        target: Option<VcpuId>,
        level: bool,
    ) -> Result<Kicks, BadIntId> {
        let v = self.input(intid, target)?;
        let mut kicks = core::mem::take(&mut self.owed);
        self.update(v, intid.0, &mut kicks, |irq| irq.drive(level));
        Ok(kicks)
    }

    /// Marks SPI `intid` as resampled, or no longer: see the module's text above.
    pub fn set_resample(&mut self, intid: IntId, on: bool) -> Result<Kicks, BadIntId> {
        let spi = intid.0.checked_sub(FIRST_SPI).filter(|_| intid.0 < self.end()).ok_or(BadIntId)?;
        let (mut kicks, mask) = (core::mem::take(&mut self.owed), 1u64.wrapping_shl(spi));
        let word = (spi / 64) as usize;
        if let Some(marks) = self.resample.get_mut(word) {
            *marks = if on { *marks | mask } else { *marks & !mask };
        }
        if !on
            && let Some(ended) = self.ended.get_mut(word)
            && *ended & mask != 0
        {
            *ended &= !mask;
            self.due = self.due.saturating_sub(1);
        }
        // In a list register, it needs the EOI bit.
        self.changed(VcpuId(0), intid.0, &mut kicks);
        Ok(kicks)
    }

    /// Whether [`Vgic::take_resampled`] has something to give.
    #[inline(always)]
    pub fn has_resampled(&self) -> bool {
        self.due != 0
    }

    /// A resampled SPI that the guest has ended, each once: its line is low now.
    pub fn take_resampled(&mut self) -> Option<IntId> {
        if self.due == 0 {
            return None;
        }
        self.due = self.due.saturating_sub(1);
        let (word, bits) = self.ended.iter_mut().enumerate().find(|(_, bits)| **bits != 0)?;
        let n = bits.trailing_zeros();
        *bits &= bits.wrapping_sub(1);
        Some(IntId((word as u32).saturating_mul(64).saturating_add(n).saturating_add(FIRST_SPI)))
    }

    /// Whether SPI `intid` is resampled.
    pub(super) fn resampled(&self, intid: u32) -> bool {
        let Some(spi) = intid.checked_sub(FIRST_SPI) else { return false };
        self.resample.get((spi / 64) as usize).is_some_and(|word| word.wrapping_shr(spi) & 1 != 0)
    }

    /// The guest has ended SPI `intid`.
    pub(super) fn note_end(&mut self, intid: u32, kicks: &mut Kicks) {
        if self.resampled(intid) {
            self.update(VcpuId(0), intid, kicks, |irq| irq.drive(false));
            self.tell(intid.saturating_sub(FIRST_SPI));
        }
    }

    /// All resampled lines that are high count as ended.
    pub(super) fn resample_all(&mut self) {
        for spi in 0..u32::from(self.nr_spis) {
            let intid = spi.saturating_add(FIRST_SPI);
            if self.resampled(intid) && self.irq(VcpuId(0), intid).is_some_and(|irq| irq.has(Flags::LINE)) {
                self.tell(spi);
            }
        }
    }

    fn tell(&mut self, spi: u32) {
        let mask = 1u64.wrapping_shl(spi);
        if let Some(word) = self.ended.get_mut((spi / 64) as usize)
            && *word & mask == 0
        {
            *word |= mask;
            self.due = self.due.saturating_add(1);
        }
    }

    /// PPI `intid` of `v` is the physical PPI `pintid` of the CPU that runs it, and has this level.
    /// To be called between `sync` and `flush`, at least when the level may have changed.
    ///
    /// It goes to list registers with HW = 1, so that the guest's deactivation deactivates the
    /// physical one. After an acknowledge the level counts as low until this is called again: if the
    /// timer is still asserted then, the physical interrupt fires again after the deactivation.
    /// No kick is needed, since only the CPU that is about to run `v` knows the level.
    pub fn set_hw_ppi(&mut self, v: VcpuId, intid: IntId, pintid: u32, level: bool) {
        let ppi = HwPpi { intid: intid.0, pintid: u16::try_from(pintid).unwrap_or(0), level };
        let groups = self.groups;
        if let Some(vcpu) = self.present_mut(v) {
            vcpu.set_hw_ppi(ppi, groups);
        }
    }

    /// Whether the physical PPI behind `intid` has to be active while `v` runs on this CPU: it is
    /// active or pending for the guest, and would otherwise only interrupt again. EL2 writes the
    /// physical active state to this, both ways, on each entry where the guest owns the PPI.
    pub fn hw_ppi_in_flight(&self, v: VcpuId, intid: IntId) -> bool {
        self.present(v).is_some_and(|vcpu| vcpu.hw_ppi_in_flight(intid.0))
    }

    /// The vCPU in whose view to look `intid` up.
    fn input(&self, intid: IntId, target: Option<VcpuId>) -> Result<VcpuId, BadIntId> {
        let v = match intid.0 {
            ..FIRST_PPI => return Err(BadIntId),
            FIRST_PPI..FIRST_SPI => target.ok_or(BadIntId)?,
            _ => VcpuId(0),
        };
        self.irq(v, intid.0).map(|_| v).ok_or(BadIntId)
    }
}
