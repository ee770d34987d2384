// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Software-generated interrupts: writes to ICC_SGI1R_EL1, ICC_SGI0R_EL1, ICC_ASGI1R_EL1.
//!
//! GICv3 keeps no sender: an SGI is one pending bit of the target. With one Security state a write
//! to ICC_SGI1R_EL1 raises an SGI of either group, the other two raise those of group 0 only.

use super::{Kicks, Memory, Vgic, irq::Flags, ones, vcpu_of};
use crate::addr::VcpuId;
use crate::broken::{Mistake, broken};

/// The common layout of the three registers (IHI 0069, ICC_SGI1R_EL1).
#[derive(Clone, Copy)]
struct SgiRequest(u64);

impl SgiRequest {
    fn intid(self) -> u32 {
        (self.0 >> 24 & 0xF) as u32
    }

    /// Interrupt Routing Mode: everyone but the sender.
    fn others(self) -> bool {
        self.0 & 1 << 40 != 0
    }

    /// vCPUs addressed by Aff3.Aff2.Aff1, RangeSelector and TargetList. Those that can't exist are
    /// left out.
    fn targets(self) -> impl Iterator<Item = VcpuId> {
        let aff3 = self.0 >> 48 & 0xFF;
        let aff2 = self.0 >> 32 & 0xFF;
        let aff1 = self.0 >> 16 & 0xFF;
        let range = self.0 >> 44 & 0xF;
        ones(self.0 & 0xFFFF).filter_map(move |n| {
            if broken(Mistake::CutTargets) {
                return vcpu_of(n);
            }
            let affinity = aff2 << 16 | aff1 << 8 | range << 4 | u64::from(n);
            if aff3 != 0 {
                return None;
            }
            vcpu_of(u32::try_from(affinity).ok()?)
        })
    }
}

impl<M: Memory> Vgic<M> {
    /// vCPU `from` writes `value` to ICC_SGI1R_EL1.
    pub fn sgi1r_write(&mut self, from: VcpuId, value: u64) -> Kicks {
        self.sgi(from, SgiRequest(value), true)
    }

    /// vCPU `from` writes `value` to ICC_SGI0R_EL1.
    pub fn sgi0r_write(&mut self, from: VcpuId, value: u64) -> Kicks {
        self.sgi(from, SgiRequest(value), false)
    }

    /// vCPU `from` writes `value` to ICC_ASGI1R_EL1.
    pub fn asgi1r_write(&mut self, from: VcpuId, value: u64) -> Kicks {
        self.sgi(from, SgiRequest(value), false)
    }

    fn sgi(&mut self, from: VcpuId, request: SgiRequest, group1: bool) -> Kicks {
        let mut kicks = core::mem::take(&mut self.owed);
        let mut targets = Kicks::NONE;
        if request.others() {
            targets = self.present.without(from);
        } else {
            request.targets().for_each(|v| targets.add(v));
        }
        for v in targets.iter() {
            self.update(v, request.intid(), &mut kicks, |irq| {
                if group1 || !irq.has(Flags::GROUP1) {
                    irq.pend();
                }
            });
        }
        kicks.without(from)
    }
}
