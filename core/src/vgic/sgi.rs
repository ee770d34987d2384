// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Software-generated interrupts: writes to ICC_SGI1R_EL1, ICC_SGI0R_EL1, ICC_ASGI1R_EL1.
//!
//! GICv3 keeps no sender: an SGI is one pending bit of the target. With one Security state a write
//! to ICC_SGI1R_EL1 raises an SGI of either group, the other two raise those of group 0 only.

use super::{Kicks, Memory, Vgic};
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

    /// vCPUs addressed by Aff3.Aff2.Aff1, RangeSelector and TargetList: see [`affinity`](super::affinity). Those that
    /// can't exist are left out.
    fn targets(self) -> Kicks {
        const NEVER_SET: u64 = 0xFF << 48 | 0xF << 44 | 0xFF << 32;
        if broken(Mistake::CutTargets) {
            return Kicks(self.0 & 0xFFFF);
        }
        let aff1 = (self.0 >> 16 & 0xFF) as u32;
        let list = (self.0 & 0xFFFF).checked_shl(aff1.saturating_mul(16)).unwrap_or(0);
        Kicks(if self.0 & NEVER_SET == 0 { list } else { 0 })
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
        let (groups, intid) = (self.groups, request.intid());
        let targets = if request.others() { self.present.without(from) } else { request.targets() };
        for v in targets.iter() {
            let Some(vcpu) = self.present_mut(v) else { continue };
            if vcpu.raise_sgi(intid, group1, groups) {
                kicks.add(v);
            }
        }
        kicks.without(from)
    }
}
