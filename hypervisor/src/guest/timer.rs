// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's physical counter and timer (CNTPCT, CNTP_*): emulated, since the machine's are the host's.
//!
//! `gzvm_core::platform::timer` has the arithmetic. Here: the line goes to the vGIC as a level of PPI
//! 14, and while the vCPU runs, the EL2 timer fires at the earlier of its deadline and the host's. A
//! guest that uses neither pays for neither.
//!
//! CNTPOFF_EL2 (FEAT_ECV) could show the count without a trap, but is not used: whether it works is
//! firmware's to say (SCR_EL3.ECVEn) and not to be seen from EL2, QEMU 10 without EL3 ignores it, and
//! it would move the host's CNTP as well.

use gzvm_core::addr::IntId;
use gzvm_core::platform::timer::{Register, Timer, earlier};
use gzvm_core::vcpu::syndrome::SysregAccess;

use super::outcome::Next;
use super::run::Running;
use super::vcpu::Vcpu;
use super::vm::Vm;
use crate::arch::percpu::PerCpu;
use crate::arch::timer;

/// INTID of the physical timer in guests (the ABI's device tree: PPI 14).
const GUEST_PTIMER: IntId = IntId(30);

/// A vCPU's physical timer.
#[derive(Clone, Copy, Default)]
pub struct PhysicalTimer {
    /// Its registers.
    pub timer: Timer,
    /// What the vGIC was told of its line last.
    line: bool,
}

impl PhysicalTimer {
    /// Reset state. The line is lowered with the next entry.
    pub fn reset(&mut self) {
        self.timer = Timer::default();
    }

    /// The line is high, or may rise by itself.
    pub const fn in_use(&self) -> bool {
        self.timer.enabled() || self.line
    }
}

impl Vm {
    /// The guest's count, virtual and physical alike.
    pub fn count(&self) -> u64 {
        timer::now().wrapping_sub(self.cntvoff())
    }

    /// Tells the vGIC the level of a vCPU's physical timer. The vCPUs that sleep and have to be woken.
    #[cold]
    pub fn drive_ptimer(&self, vcpu: &mut Vcpu) -> u64 {
        let level = vcpu.ptimer.timer.line(self.count());
        vcpu.ptimer.line = level;
        let kicks = self.vgic.lock().set_level(GUEST_PTIMER, Some(vcpu.id), level);
        kicks.map_or(0, |kicks| self.kick(kicks))
    }
}

impl Running<'_> {
    /// A trapped access that may be to the physical counter or timer; undefined if it is not.
    pub fn timer_register(&mut self, access: SysregAccess) -> Next {
        let Some(register) = Register::of(access.key()) else {
            self.inject_undefined();
            return Next::Resume;
        };
        let now = self.vm.count();
        let x = self.vcpu.regs.x.get_mut(usize::from(access.rt));
        if access.read {
            let value = self.vcpu.ptimer.timer.read(register, now);
            if let Some(x) = x {
                *x = value;
            }
        } else {
            let value = x.map_or(0, |x| *x);
            if !self.vcpu.ptimer.timer.write(register, value, now) {
                self.inject_undefined();
                return Next::Resume;
            }
            if self.vcpu.ptimer.timer.line(now) != self.vcpu.ptimer.line {
                self.unload();
            }
            self.set_alarm();
        }
        self.skip();
        Next::Resume
    }

    /// The EL2 timer fires at the earliest of the host's deadline, this vCPU's, and its watch's. With the
    /// guest's world in the CPU.
    #[cold]
    pub fn set_alarm(&self) {
        let deadline = self.vcpu.ptimer.timer.deadline(self.vm.count());
        let guest = deadline.map(|count| count.saturating_add(self.vm.cntvoff()));
        let el2 = earlier(guest, self.watch_deadline());
        PerCpu::this().with(|s| timer::arm_deadlines(&s.host_timer, el2));
    }

    /// The EL2 timer has fired. Whether it did so for the guest: its line has risen since the vGIC was told.
    #[cold]
    pub fn ptimer_fired(&mut self) -> bool {
        if self.vcpu.ptimer.line || !self.vcpu.ptimer.timer.line(self.vm.count()) {
            return false;
        }
        self.set_alarm();
        self.unload();
        true
    }
}
