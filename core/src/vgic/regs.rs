// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers that hold a field for each interrupt. The distributor has them for SPIs, the SGI_base
//! frame of each redistributor, at the same offsets, for SGIs and PPIs.
//!
//! Allowed accesses (IHI 0069, 12.1.3): words everywhere, bytes for priorities, doublewords for
//! 64-bit registers. All others, and unaligned ones, read as zero and are ignored.

use super::irq::{Flags, Irq, PRIORITY_MASK};
use super::{FIRST_PPI, FIRST_SPI, Kicks, Memory, Vgic};
use crate::addr::VcpuId;
use crate::broken::{Mistake, broken};
use core::ops::Range;

/// Which field of an interrupt a register shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Field {
    /// IGROUPR.
    Group,
    /// ISENABLER, ICENABLER.
    Enable { set: bool },
    /// ISPENDR, ICPENDR.
    Pending { set: bool },
    /// ISACTIVER, ICACTIVER.
    Active { set: bool },
    /// IPRIORITYR.
    Priority,
    /// ICFGR.
    Config,
}

/// A decoded access: a field of the interrupts `first..first + count`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Banked {
    field: Field,
    first: u32,
    count: u32,
}

/// Whether an access of `size` bytes at `offset` is one that the architecture knows.
pub(super) fn well_formed(offset: u64, size: u8) -> bool {
    matches!(size, 1 | 2 | 4 | 8) && offset & u64::from(size).wrapping_sub(1) == 0
}

impl Banked {
    /// Decodes an access to offset 0..0x1000 of the distributor or of SGI_base.
    #[inline]
    pub fn decode(offset: u64, size: u8) -> Option<Self> {
        let offset = u32::try_from(offset).ok()?;
        let (field, base, per_byte) = match offset {
            0x080..0x100 => (Field::Group, 0x080, 8),
            0x100..0x180 => (Field::Enable { set: true }, 0x100, 8),
            0x180..0x200 => (Field::Enable { set: false }, 0x180, 8),
            0x200..0x280 => (Field::Pending { set: true }, 0x200, 8),
            0x280..0x300 => (Field::Pending { set: false }, 0x280, 8),
            0x300..0x380 => (Field::Active { set: true }, 0x300, 8),
            0x380..0x400 => (Field::Active { set: false }, 0x380, 8),
            0x400..0x800 => (Field::Priority, 0x400, 1),
            0xC00..0xD00 => (Field::Config, 0xC00, 4),
            _ => return None,
        };
        if size != 4 && !(size == 1 && field == Field::Priority) && !broken(Mistake::AnyWidth) {
            return None;
        }
        Some(Self {
            field,
            first: offset.checked_sub(base)?.checked_mul(per_byte)?,
            count: u32::from(size).checked_mul(per_byte)?,
        })
    }

    pub fn intids(self) -> Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }

    /// Each interrupt of the register with the position of its field.
    fn fields(self) -> impl Iterator<Item = (u32, u32)> {
        let width = match self.field {
            Field::Priority => 8,
            Field::Config => 2,
            _ => 1,
        };
        self.intids().zip((0u32..64).step_by(width))
    }

    /// Whether the access reads or changes what list registers may know better.
    pub fn volatile(self) -> bool {
        matches!(self.field, Field::Pending { .. } | Field::Active { .. })
    }

    fn get(self, irq: &Irq) -> u64 {
        match self.field {
            Field::Group => irq.has(Flags::GROUP1).into(),
            Field::Enable { .. } => irq.has(Flags::ENABLED).into(),
            Field::Pending { .. } => irq.pending().into(),
            Field::Active { .. } => irq.active().into(),
            Field::Priority => irq.priority.into(),
            Field::Config => u64::from(irq.has(Flags::EDGE)) << 1,
        }
    }

    /// Whether writing `bits` (one interrupt's field) changes anything at all.
    fn writes(self, intid: u32, bits: u64) -> bool {
        match self.field {
            Field::Enable { .. } | Field::Pending { .. } | Field::Active { .. } => bits & 1 != 0,
            Field::Group | Field::Priority => true,
            // SGIs are edge-triggered for ever.
            Field::Config => intid >= FIRST_PPI,
        }
    }

    /// Whether that ended the interrupt.
    fn put(self, irq: &mut Irq, bits: u64) -> bool {
        match self.field {
            Field::Group => irq.set(Flags::GROUP1, bits & 1 != 0),
            Field::Enable { set } => irq.set(Flags::ENABLED, set),
            Field::Pending { set: true } => irq.pend(),
            Field::Pending { set: false } => irq.unpend(),
            Field::Active { set: true } => irq.activate(),
            Field::Active { set: false } => return irq.deactivate(),
            Field::Priority => irq.priority = (bits & u64::from(PRIORITY_MASK)) as u8,
            Field::Config => irq.set(Flags::EDGE, bits & 2 != 0),
        }
        false
    }
}

/// Whether what an access reads is nothing that list registers may know better: fields but pending and active, and the
/// registers in `others`.
#[inline]
pub(super) fn settled(offset: u64, size: u8, others: &[u64]) -> bool {
    match Banked::decode(offset, size) {
        Some(register) => !register.volatile(),
        None => others.contains(&offset),
    }
}

/// Which half of the interrupts a frame shows. With affinity routing the other half is RAZ/WI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bank {
    /// The distributor's SPIs.
    Shared,
    /// A vCPU's SGIs and PPIs.
    Private(VcpuId),
}

impl Bank {
    fn shows(self, intid: u32) -> bool {
        (intid >= FIRST_SPI) == (self == Self::Shared)
    }

    fn view(self) -> VcpuId {
        match self {
            Self::Shared => VcpuId(0),
            Self::Private(v) => v,
        }
    }
}

impl<M: Memory> Vgic<M> {
    pub(super) fn banked_read(&self, bank: Bank, register: Banked) -> u64 {
        let mut value = 0;
        for (intid, at) in register.fields().filter(|&(intid, _)| bank.shows(intid)) {
            if let Some(irq) = self.irq(bank.view(), intid) {
                value |= register.get(irq).wrapping_shl(at);
            }
        }
        value
    }

    pub(super) fn banked_write(&mut self, bank: Bank, register: Banked, value: u64) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        for (intid, at) in register.fields().filter(|&(intid, _)| bank.shows(intid)) {
            let bits = value.wrapping_shr(at);
            if !register.writes(intid, bits) {
                continue;
            }
            self.update_ending(bank.view(), intid, &mut kicks, |irq| register.put(irq, bits));
            if register.field == (Field::Enable { set: false }) {
                self.mark_stale(bank.view(), intid);
            }
            // The physical PPI behind it is active until the vCPU comes by, and interrupts again only then.
            let hardware = |irq: &Irq| irq.has(Flags::HARDWARE);
            if register.field == (Field::Active { set: false })
                && self.irq(bank.view(), intid).is_some_and(hardware)
            {
                self.kick(bank.view(), &mut kicks);
            }
        }
        kicks
    }

    /// Makes GICx_CTLR.RWP read as one until the vCPU that has `intid` in a list register exits.
    fn mark_stale(&mut self, v: VcpuId, intid: u32) {
        let holder = self.irq(v, intid).filter(|irq| irq.in_lr()).and_then(Irq::holder);
        if let Some(vcpu) = holder.and_then(|h| self.present_mut(h)) {
            vcpu.stale = true;
        }
    }

    /// vCPUs with an interrupt of the register in a list register right now.
    pub(super) fn banked_holders(&self, bank: Bank, register: Banked) -> Kicks {
        let mut holders = Kicks::NONE;
        if register.volatile() {
            for intid in register.intids().filter(|&intid| bank.shows(intid)) {
                let irq = self.irq(bank.view(), intid).filter(|irq| irq.in_lr());
                if let Some(holder) = irq.and_then(Irq::holder) {
                    holders.add(holder);
                }
            }
        }
        holders
    }
}
