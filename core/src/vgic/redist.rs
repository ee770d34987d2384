// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU's redistributor: RD_base at 0..0x10000, SGI_base at 0x10000..0x20000 (IHI 0069, 12.10 and
//! 12.11). No LPIs, so GICR_PROPBASER, GICR_PENDBASER and the invalidation registers are RAZ/WI.
//! Any vCPU may access any redistributor.

use super::dist::{IIDR, identification};
use super::regs::{Bank, Banked, settled, well_formed};
use super::{Kicks, Memory, Vgic, affinity};
use crate::addr::VcpuId;

/// Bytes of one redistributor; vCPU n's is n times as far from the first.
pub const REDIST_SIZE: u64 = 0x2_0000;
const SGI_BASE: u64 = 0x1_0000;

const GICR_CTLR: u64 = 0x0000;
const GICR_IIDR: u64 = 0x0004;
const GICR_TYPER: u64 = 0x0008;
const GICR_TYPER_HIGH: u64 = 0x000C;
const GICR_WAKER: u64 = 0x0014;

const CTLR_RWP_SHIFT: u32 = 3;
const TYPER_LAST: u64 = 1 << 4;
const WAKER_PROCESSOR_SLEEP: u64 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u64 = 1 << 2;

impl<M: Memory> Vgic<M> {
    /// vCPU `from` reads `size` bytes at `offset` of the redistributor of `target`. Zero where nothing
    /// is, or where there is no such vCPU.
    pub fn redist_read(&mut self, from: VcpuId, target: VcpuId, offset: u64, size: u8) -> u64 {
        let _ = from; // every vCPU sees the same
        let Some(vcpu) = self.present(target) else { return 0 };
        if !well_formed(offset, size) {
            return 0;
        }
        if let Some(offset) = offset.checked_sub(SGI_BASE) {
            let register = Banked::decode(offset, size);
            return register.map_or(0, |reg| self.banked_read(Bank::Private(target), reg));
        }
        match (offset, size) {
            (GICR_CTLR, 4) => u64::from(vcpu.stale) << CTLR_RWP_SHIFT,
            (GICR_IIDR, 4) => IIDR,
            (GICR_TYPER, 8) => self.redist_typer(target),
            (GICR_TYPER, 4) => self.redist_typer(target) & 0xFFFF_FFFF,
            (GICR_TYPER_HIGH, 4) => self.redist_typer(target) >> 32,
            (GICR_WAKER, 4) => {
                if vcpu.awake {
                    0
                } else {
                    WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP
                }
            }
            (_, 4) => identification(offset),
            _ => 0,
        }
    }

    /// vCPU `from` writes `size` bytes at `offset` of the redistributor of `target`. Ignored where
    /// nothing is, or where there is no such vCPU.
    pub fn redist_write(&mut self, from: VcpuId, target: VcpuId, offset: u64, size: u8, value: u64) -> Kicks {
        if self.present(target).is_none() || !well_formed(offset, size) {
            return Kicks::NONE;
        }
        let kicks = if let Some(offset) = offset.checked_sub(SGI_BASE) {
            match Banked::decode(offset, size) {
                Some(register) => self.banked_write(Bank::Private(target), register, value),
                None => Kicks::NONE,
            }
        } else if (offset, size) == (GICR_WAKER, 4) {
            self.set_awake(target, value & WAKER_PROCESSOR_SLEEP == 0)
        } else {
            Kicks::NONE
        };
        kicks.without(from)
    }

    /// As [`Vgic::held_elsewhere`], for the redistributor of `target`.
    pub fn held_elsewhere_redist(&self, target: VcpuId, offset: u64, size: u8) -> Kicks {
        let sgi_offset = offset.checked_sub(SGI_BASE).filter(|_| well_formed(offset, size));
        let register = sgi_offset.and_then(|offset| Banked::decode(offset, size));
        register.map_or(Kicks::NONE, |reg| self.banked_holders(Bank::Private(target), reg))
    }

    /// As [`Vgic::dist_settled`], for a redistributor.
    pub fn redist_settled(offset: u64, size: u8) -> bool {
        match offset.checked_sub(SGI_BASE) {
            Some(offset) => settled(offset, size, &[]),
            None => matches!(offset, GICR_IIDR | GICR_TYPER | GICR_TYPER_HIGH | GICR_WAKER),
        }
    }

    fn redist_typer(&self, target: VcpuId) -> u64 {
        let last = self.present.0.checked_shr(u32::from(target.0)) == Some(1);
        u64::from(affinity(target)) << 32 | u64::from(target.0) << 8 | if last { TYPER_LAST } else { 0 }
    }

    /// GICR_WAKER.ProcessorSleep. It holds nothing back, as in KVM, whose guests rely on that; it
    /// matters to the choice of a vCPU for interrupts that any may take.
    fn set_awake(&mut self, target: VcpuId, awake: bool) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        if let Some(vcpu) = self.present_mut(target) {
            vcpu.awake = awake;
        }
        self.recheck_any(&mut kicks);
        kicks
    }
}
