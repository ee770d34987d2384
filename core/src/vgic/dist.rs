// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The distributor frame (IHI 0069, 12.9), offsets 0..0x10000. Absent: extended SPIs, GICD_STATUSR,
//! NMIs; reserved and absent registers are RAZ/WI.
//!
//! Any SPI may be raised by a message: a write of its INTID to GICD_SETSPI_NSR. The Secure twins at 0x50 and 0x58
//! ignore writes, as with one Security state they have to.

use super::regs::{Bank, Banked, settled, well_formed};
use super::{FIRST_SPI, Flags, Groups, Kicks, Memory, Vgic};
use crate::addr::VcpuId;

const GICD_CTLR: u64 = 0x0000;
const GICD_TYPER: u64 = 0x0004;
const GICD_IIDR: u64 = 0x0008;
/// Write-only, by word or halfword.
const GICD_SETSPI_NSR: u64 = 0x0040;
const GICD_CLRSPI_NSR: u64 = 0x0048;
/// GICD_IROUTER<n> is at 0x6000 + 8 n, n >= 32.
const GICD_IROUTER: u64 = 0x6000;
const GICD_IROUTER_END: u64 = 0x8000;

const CTLR_ENABLE_GRP0: u64 = 1 << 0;
const CTLR_ENABLE_GRP1: u64 = 1 << 1;
const CTLR_ARE: u64 = 1 << 4;
const CTLR_DS: u64 = 1 << 6;
const CTLR_RWP: u64 = 1 << 31;

/// GICD_TYPER.MBIS: message-based SPIs.
const TYPER_MBIS: u64 = 1 << 16;
/// GICD_TYPER.IDbits: INTIDs have ten bits.
const TYPER_ID_BITS: u64 = 9 << 19;

/// INTID in GICD_SETSPI_NSR and GICD_CLRSPI_NSR.
const MESSAGE_INTID: u64 = 0x1FFF;

/// GICD_IROUTER.Interrupt_Routing_Mode.
const IROUTER_ANY: u64 = 1 << 31;
/// Aff2.Aff1.Aff0; no Aff3, as GICD_TYPER.A3V says.
const IROUTER_AFFINITY: u64 = 0x00FF_FFFF;

/// GICx_IIDR: ProductID 'G', revision 1. No JEP106 code is ours, so Implementer is 0.
pub(super) const IIDR: u64 = 0x4700_1000;

/// Identification registers at the end of a frame: GICx_PIDR2.ArchRev says GICv3; CIDR the preamble.
pub(super) fn identification(offset: u64) -> u64 {
    match offset {
        0xFFE8 => 0x3B,
        0xFFF0 => 0x0D,
        0xFFF4 => 0xF0,
        0xFFF8 => 0x05,
        0xFFFC => 0xB1,
        _ => 0,
    }
}

/// The SPI whose GICD_IROUTER, or half of it, is at `offset`.
#[inline]
fn routed(offset: u64, size: u8) -> Option<u32> {
    if !(GICD_IROUTER..GICD_IROUTER_END).contains(&offset) || !matches!(size, 4 | 8) {
        return None;
    }
    let intid = u32::try_from(offset.checked_sub(GICD_IROUTER)? >> 3).ok()?;
    (intid >= FIRST_SPI).then_some(intid)
}

impl<M: Memory> Vgic<M> {
    /// vCPU `from` reads `size` bytes at `offset` of the distributor. Zero where nothing is.
    pub fn dist_read(&mut self, from: VcpuId, offset: u64, size: u8) -> u64 {
        let _ = from; // nothing here is banked: affinity routing is always on
        if !well_formed(offset, size) {
            return 0;
        }
        if let Some(register) = Banked::decode(offset, size) {
            return self.banked_read(Bank::Shared, register);
        }
        if let Some(intid) = routed(offset, size) {
            let router = self.irq(VcpuId(0), intid).map_or(0, |irq| {
                let any = if irq.has(Flags::ANY) { IROUTER_ANY } else { 0 };
                u64::from(irq.affinity()) | any
            });
            return if offset & 4 == 0 { router } else { 0 };
        }
        if size != 4 {
            return 0;
        }
        match offset {
            GICD_CTLR => {
                let mut ctlr = CTLR_ARE | CTLR_DS;
                for (bit, on) in [
                    (CTLR_ENABLE_GRP0, self.groups.group0),
                    (CTLR_ENABLE_GRP1, self.groups.group1),
                    (CTLR_RWP, self.vcpus.iter().flatten().any(|vcpu| vcpu.stale)),
                ] {
                    ctlr |= if on { bit } else { 0 };
                }
                ctlr
            }
            // CPUNumber is 0 where affinity routing can't be turned off.
            GICD_TYPER => TYPER_ID_BITS | TYPER_MBIS | u64::from(self.end().div_ceil(32).saturating_sub(1)),
            GICD_IIDR => IIDR,
            _ => identification(offset),
        }
    }

    /// vCPU `from` writes `size` bytes at `offset` of the distributor. Ignored where nothing is.
    pub fn dist_write(&mut self, from: VcpuId, offset: u64, size: u8, value: u64) -> Kicks {
        if !well_formed(offset, size) {
            return Kicks::NONE;
        }
        let kicks = if let Some(register) = Banked::decode(offset, size) {
            self.banked_write(Bank::Shared, register, value)
        } else if let Some(intid) = routed(offset, size) {
            self.route(intid, offset, value)
        } else if matches!(offset, GICD_SETSPI_NSR | GICD_CLRSPI_NSR) && matches!(size, 2 | 4) {
            self.message((value & MESSAGE_INTID) as u32, offset == GICD_SETSPI_NSR)
        } else if offset == GICD_CTLR && size == 4 {
            self.enable_groups(value & CTLR_ENABLE_GRP0 != 0, value & CTLR_ENABLE_GRP1 != 0)
        } else {
            Kicks::NONE
        };
        kicks.without(from)
    }

    /// vCPUs inside the guest whose list registers know better what a read of this distributor
    /// register would say, or have to give something up before a write to it is exact. Normally
    /// nobody; EL2 may kick them and repeat the access when they are out.
    pub fn held_elsewhere(&self, offset: u64, size: u8) -> Kicks {
        let register = Banked::decode(offset, size).filter(|_| well_formed(offset, size));
        register.map_or(Kicks::NONE, |register| self.banked_holders(Bank::Shared, register))
    }

    /// Whether a read of this distributor register needs no [`Vgic::sync`] before it: no list register knows more.
    pub fn dist_settled(offset: u64, size: u8) -> bool {
        settled(offset, size, &[GICD_TYPER, GICD_IIDR])
    }

    /// GICD_IROUTER. What is active or in a list register stays there until it is deactivated or
    /// comes back; then it goes where it belongs.
    fn route(&mut self, intid: u32, offset: u64, value: u64) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        // Writing the upper half changes nothing: there is no Aff3.
        if offset & 4 == 0 {
            self.update(VcpuId(0), intid, &mut kicks, |irq| {
                irq.set_affinity((value & IROUTER_AFFINITY) as u32);
                irq.set(Flags::ANY, value & IROUTER_ANY != 0);
            });
        }
        kicks
    }

    /// GICD_SETSPI_NSR and GICD_CLRSPI_NSR.
    fn message(&mut self, intid: u32, set: bool) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        if intid >= FIRST_SPI {
            self.update(VcpuId(0), intid, &mut kicks, |irq| irq.message(set));
        }
        kicks
    }

    /// GICD_CTLR.EnableGrp0 and EnableGrp1. All vCPUs choose their list registers anew.
    fn enable_groups(&mut self, group0: bool, group1: bool) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        let (before, groups) = (self.groups, Groups { group0, group1 });
        if before == groups {
            return kicks;
        }
        let disables = before.group0 && !group0 || before.group1 && !group1;
        self.groups = groups;
        for vcpu in self.vcpus.iter_mut().flatten() {
            vcpu.dirty = true;
            vcpu.stale |= disables && vcpu.inside && vcpu.used > 0;
        }
        kicks |= self.present;
        kicks
    }
}
