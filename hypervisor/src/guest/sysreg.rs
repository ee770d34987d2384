// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's trapped system registers. What is not named here is undefined to the guest.
//!
//! `docs/architecture.md` has the table of all of them: switched, trapped here, hidden.

use gzvm_core::addr::IntId;
use gzvm_core::platform::id_registers;
use gzvm_core::vcpu::syndrome::SysregAccess;

use super::run::{Next, Running};
use crate::arch::cpu;

/// MDSCR_EL1.{SS, KDE}.
const MDSCR_STEP: u64 = 1 | 1 << 13;

impl Running<'_> {
    /// One trapped MRS or MSR.
    pub fn sysreg(&mut self, access: SysregAccess) -> Next {
        if access.read {
            match self.read(access) {
                Some(value) => {
                    if let Some(x) = self.vcpu.regs.x.get_mut(usize::from(access.rt)) {
                        *x = value;
                    }
                    self.skip();
                }
                None => return self.timer_register(access),
            }
            return Next::Resume;
        }
        let value = self.vcpu.regs.x.get(usize::from(access.rt)).copied().unwrap_or(0);
        match self.write(access, value) {
            Some(next) => {
                self.skip();
                next
            }
            None => self.timer_register(access),
        }
    }

    fn read(&self, access: SysregAccess) -> Option<u64> {
        Some(match access.key() {
            // AArch32 ID registers (CRm 1..=3) read as zero, AArch64's as the filter says.
            (3, 0, 0, crm @ 1..=3, 0..=7) => {
                let _ = crm;
                0
            }
            (3, 0, 0, crm @ 4..=7, op2) => id_registers::filter(crm, op2, cpu::id_register(crm, op2)),
            // REVIDR_EL1, AIDR_EL1, SMIDR_EL1.
            (3, 0, 0, 0, 6) | (3, 1, 0, 0, 6 | 7) => 0,
            // ICC_SRE_EL1: system registers, no bypass.
            (3, 0, 12, 12, 5) => 7,
            // ACTLR_EL1.
            (3, 0, 1, 0, 1) => 0,
            // OSLSR_EL1: OS lock implemented (OSLM = 0b10).
            (2, 0, 1, 1, 4) => 1 << 3 | u64::from(self.vcpu.os_lock) << 1,
            // MDSCR_EL1.
            (2, 0, 0, 2, 2) => self.vcpu.mdscr,
            // DBGBVR, DBGBCR, DBGWVR, DBGWCR <n>_EL1, MDCCINT_EL1, OSDLR_EL1, OSDTRRX/TX,
            // OSECCR, DBGPRCR, DBGCLAIMSET/CLR, DBGAUTHSTATUS, MDRAR: no self-hosted debug yet.
            (2, 0, 0, _, 0 | 2 | 4..=7)
            | (2, 0, 1, 3 | 4, 4)
            | (2, 0, 7, 8 | 9 | 14, 6)
            | (2, 0, 1, 0, 0) => 0,
            // MDCCSR_EL0, DBGDTR_EL0, DBGDTRRX_EL0.
            (2, 3, 0, 1 | 4 | 5, 0) => 0,
            _ => return None,
        })
    }

    fn write(&mut self, access: SysregAccess, value: u64) -> Option<Next> {
        let id = self.vcpu.id;
        let kicks = match access.key() {
            // ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1.
            (3, 0, 12, 11, 5) => self.with_vgic_of_others(|vgic| vgic.sgi1r_write(id, value)),
            (3, 0, 12, 11, 6) => self.with_vgic_of_others(|vgic| vgic.asgi1r_write(id, value)),
            (3, 0, 12, 11, 7) => self.with_vgic_of_others(|vgic| vgic.sgi0r_write(id, value)),
            // ICC_DIR_EL1, while it is trapped.
            (3, 0, 12, 11, 1) => self.vgic().deactivate(id, IntId((value & 0xFF_FFFF) as u32)),
            // ACTLR_EL1 and ICC_SRE_EL1: nothing to change in them.
            (3, 0, 1, 0, 1) | (3, 0, 12, 12, 5) => return Some(Next::Resume),
            // OSLAR_EL1.
            (2, 0, 1, 0, 4) => {
                self.vcpu.os_lock = value & 1 != 0;
                return Some(Next::Resume);
            }
            (2, 0, 0, 2, 2) => {
                self.vcpu.mdscr = value;
                // Software step works; breakpoints and watchpoints (MDE) stay off, their registers are not
                // switched.
                cpu::set_guest_mdscr(value & MDSCR_STEP);
                return Some(Next::Resume);
            }
            (2, 0, 0, _, 0 | 2 | 4..=7) | (2, 0, 1, 3 | 4, 4) | (2, 0, 7, 8 | 9, 6) | (2, 3, 0, 4 | 5, 0) => {
                return Some(Next::Resume);
            }
            _ => return None,
        };
        Some(self.after_kicks(kicks))
    }
}
