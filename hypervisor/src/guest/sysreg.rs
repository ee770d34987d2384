// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's trapped system registers, as `gzvm_core::vcpu::registers` has them; what that table does
//! not name is undefined to the guest.

use gzvm_core::addr::IntId;
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::platform::id_registers::{self, Given};
use gzvm_core::vcpu::registers::{self, Trap};
use gzvm_core::vcpu::syndrome::{self, SysregAccess};
use gzvm_core::vgic::Kicks;

use super::outcome::Next;
use super::run::Running;
use super::vcpu::Vcpu;
use crate::arch::cpu;
use crate::arch::debug::{BCR_MASK, MDSCR_KDE, MDSCR_MDE, MDSCR_SS, Owner, WCR_MASK};
use crate::arch::percpu::PerCpu;

/// ICC_SGI1R_EL1, by which a guest sends its IPIs.
const ICC_SGI1R: (u8, u8, u8, u8, u8) = (3, 0, 12, 11, 5);
/// ESR_EL2 of a write, but for Rt.
pub(super) const SGI1R_WRITE: u64 = syndrome::esr_of_write(ICC_SGI1R);

impl Vcpu {
    /// MDSCR_EL1 as it may be in the CPU. The OS lock keeps all debug exceptions off.
    pub fn effective_mdscr(&self) -> u64 {
        if self.os_lock { 0 } else { self.mdscr & (MDSCR_SS | MDSCR_KDE | MDSCR_MDE) }
    }

    /// The guest has enabled debug exceptions, so its breakpoints and watchpoints have to be in the CPU.
    pub fn uses_debug(&self) -> bool {
        self.effective_mdscr() & (MDSCR_SS | MDSCR_MDE) != 0
    }
}

impl Running<'_> {
    /// One trapped MRS or MSR.
    #[inline]
    pub fn sysreg(&mut self, access: SysregAccess) -> Next {
        // The hot one does without the table.
        if access.key() == ICC_SGI1R && !access.read {
            let kicks = self.sgi1(access.rt);
            self.skip();
            return self.after_kicks(kicks);
        }
        self.by_table(access)
    }

    /// A write of ICC_SGI1R_EL1.
    #[inline(always)]
    pub(super) fn sgi1(&mut self, rt: u8) -> Kicks {
        let value = self.vcpu.regs.x.get(usize::from(rt)).copied().unwrap_or(0);
        let id = self.vcpu.id;
        self.with_vgic_of_others(|vgic| vgic.sgi1r_write(id, value))
    }

    #[inline(never)]
    fn by_table(&mut self, access: SysregAccess) -> Next {
        let Some(trap) = registers::trap(access.key(), access.read) else {
            if broken(Mistake::UnknownRegisters) {
                self.skip();
            } else if !self.watched_vbar(access) {
                self.inject_undefined();
            }
            return Next::Resume;
        };
        if trap == Trap::PhysicalTimer {
            return self.timer_register(access);
        }
        if access.read {
            match self.read(trap, access) {
                Some(value) => {
                    if let Some(x) = self.vcpu.regs.x.get_mut(usize::from(access.rt)) {
                        *x = value;
                    }
                    self.skip();
                }
                None => self.inject_undefined(),
            }
            return Next::Resume;
        }
        let value = self.vcpu.regs.x.get(usize::from(access.rt)).copied().unwrap_or(0);
        match self.write(trap, access.crm, value) {
            Some(next) => {
                self.skip();
                next
            }
            None => {
                self.inject_undefined();
                Next::Resume
            }
        }
    }

    fn read(&self, trap: Trap, access: SysregAccess) -> Option<u64> {
        Some(match trap {
            Trap::Constant(value) => value,
            Trap::IdRegister => {
                let given = Given { sve: self.vcpu.fp.has_sve() };
                id_registers::filter(given, access.crm, access.op2, cpu::id_register(access.crm, access.op2))
            }
            // OS lock implemented (OSLM = 0b10).
            Trap::OsLockStatus => 1 << 3 | u64::from(self.vcpu.os_lock) << 1,
            Trap::DebugControl => self.vcpu.mdscr,
            Trap::BreakpointValue
            | Trap::BreakpointControl
            | Trap::WatchpointValue
            | Trap::WatchpointControl => {
                let n = debug_index(trap, access.crm)?;
                if debug_owner() == Owner::Watch {
                    return Some(0);
                }
                let debug = &self.vcpu.debug;
                match trap {
                    Trap::BreakpointValue => debug.bvr[n],
                    Trap::BreakpointControl => debug.bcr[n],
                    Trap::WatchpointValue => debug.wvr[n],
                    _ => debug.wcr[n],
                }
            }
            // Write-only: `registers::trap` has refused the read.
            Trap::Sgi1 | Trap::AliasSgi1 | Trap::Sgi0 | Trap::Deactivate | Trap::OsLockAccess => return None,
            // `timer_register` has them.
            Trap::PhysicalTimer => return None,
        })
    }

    fn write(&mut self, trap: Trap, crm: u8, value: u64) -> Option<Next> {
        let id = self.vcpu.id;
        let kicks = match trap {
            Trap::AliasSgi1 => self.with_vgic_of_others(|vgic| vgic.asgi1r_write(id, value)),
            Trap::Sgi0 => self.with_vgic_of_others(|vgic| vgic.sgi0r_write(id, value)),
            Trap::Deactivate => self.vgic().deactivate(id, IntId((value & 0xFF_FFFF) as u32)),
            Trap::Constant(_) => return Some(Next::Resume),
            Trap::OsLockAccess => {
                self.vcpu.os_lock = value & 1 != 0;
                self.debug_changed();
                return Some(Next::Resume);
            }
            Trap::DebugControl => {
                self.vcpu.mdscr = value;
                self.debug_changed();
                return Some(Next::Resume);
            }
            Trap::BreakpointValue
            | Trap::BreakpointControl
            | Trap::WatchpointValue
            | Trap::WatchpointControl => {
                let n = debug_index(trap, crm)?;
                if debug_owner() != Owner::Watch {
                    let debug = &mut self.vcpu.debug;
                    match trap {
                        Trap::BreakpointValue => debug.bvr[n] = value,
                        Trap::BreakpointControl => debug.bcr[n] = value & BCR_MASK,
                        Trap::WatchpointValue => debug.wvr[n] = value & !3,
                        _ => debug.wcr[n] = value & WCR_MASK,
                    }
                    self.debug_changed();
                }
                return Some(Next::Resume);
            }
            // Read-only: `registers::trap` has refused the write.
            Trap::IdRegister | Trap::OsLockStatus => return None,
            // `sysreg` and `timer_register` have them.
            Trap::Sgi1 | Trap::PhysicalTimer => return None,
        };
        Some(self.after_kicks(kicks))
    }

    /// The guest's debug registers have changed: what of them belongs into the CPU goes there.
    fn debug_changed(&mut self) {
        let vcpu = &*self.vcpu;
        PerCpu::this().with(|s| {
            if vcpu.uses_debug() {
                s.debug.take(Owner::Guest, &vcpu.debug);
            } else {
                s.debug.give_back(Owner::Guest);
            }
        });
        cpu::set_guest_mdscr(vcpu.effective_mdscr());
    }
}

fn debug_owner() -> Owner {
    PerCpu::this().with(|s| s.debug.owner())
}

/// Which breakpoint or watchpoint a register is of; None past those that the CPU has.
fn debug_index(trap: Trap, crm: u8) -> Option<usize> {
    let count = PerCpu::this().with(|s| match trap {
        Trap::BreakpointValue | Trap::BreakpointControl => s.debug.counts().breakpoints,
        _ => s.debug.counts().watchpoints,
    });
    (crm < count).then_some(usize::from(crm))
}
