// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sleep: WFI, and PSCI's standby and power-down states.
//!
//! | | ends with | goes on |
//! |---|---|---|
//! | WFI, standby | an interrupt that its CPU interface would signal | behind the instruction |
//! | power-down | an interrupt that the distributor forwards: the CPU interface is off | at its entry point, in reset state |
//!
//! A sleeper leaves RUN with IDLE and the ticks until its timers. Whether it sleeps is decided under
//! the vGIC lock: who makes something pending later sees that it does. One in a power-down state is
//! asked anew by each RUN, and the host need not know that it is more than WFI. Its vGIC and timers
//! are kept; the rest of it is gone.

use core::sync::atomic::Ordering;

use gzvm_core::broken::{Mistake, broken};
use gzvm_core::platform::timer::{Timer, earlier};

use super::outcome::{Exit, Next};
use super::run::{GUEST_VTIMER, Running, longest_idle};
use super::vcpu::Vcpu;
use super::vm::Vm;
use crate::arch::percpu::PerCpu;
use crate::arch::sysreg;

/// ICH_VMCR_EL2 of a CPU interface that holds nothing back: both groups on, all priorities.
const NOTHING_HELD_BACK: u32 = 0xFF << 24 | 3;

/// The virtual timer of the guest that has the CPU.
fn timer_in_cpu() -> Timer {
    Timer::new(sysreg::read!("cntv_ctl_el0"), sysreg::read!("cntv_cval_el0"))
}

/// Ticks until the first of the vCPU's timers fires, at most the longest sleep.
fn delay(vcpu: &Vcpu, virt: &Timer, now: u64) -> u64 {
    let first = earlier(virt.deadline(now), vcpu.ptimer.timer.deadline(now));
    let longest = longest_idle();
    first.filter(|_| !broken(Mistake::Oversleep)).map_or(longest, |at| at.saturating_sub(now).min(longest))
}

/// For a vCPU in a power-down state: stays idle for so many ticks, unless a wake-up is pending. `virt`
/// is its virtual timer. Its interrupts are not in list registers.
fn stays_down(vm: &Vm, vcpu: &mut Vcpu, virt: &Timer) -> Option<u64> {
    if vcpu.ptimer.in_use() {
        vcpu.wake_others |= vm.drive_ptimer(vcpu);
    }
    let now = vm.count();
    let pintid = PerCpu::this().gic().map_or(0, |gic| gic.vtimer);
    let mut vgic = vm.vgic.lock();
    vgic.set_hw_ppi(vcpu.id, GUEST_VTIMER, pintid, virt.line(now));
    if vgic.has_deliverable(vcpu.id, NOTHING_HELD_BACK) {
        return None;
    }
    vm.idle.get(usize::from(vcpu.id.0))?.store(true, Ordering::SeqCst);
    Some(delay(vcpu, virt, now))
}

/// RUN of a vCPU in a power-down state: it stays there, or starts at its entry point.
pub fn resume(vm: &Vm, vcpu: &mut Vcpu) -> Option<Exit> {
    let (entry, context) = vcpu.resume?;
    let virt = Timer::new(vcpu.timer.ctl, vcpu.timer.cval);
    if let Some(delay) = stays_down(vm, vcpu, &virt) {
        return Some(Exit::Idle(delay));
    }
    vcpu.wake(entry, context);
    None
}

impl Running<'_> {
    /// WFI, or PSCI standby: goes on if there is something to do, else tells the driver until when
    /// there is not.
    pub fn wait_for_interrupt(&mut self) -> Next {
        self.progress();
        self.unload();
        let vmcr = self.vcpu.gic.vmcr;
        let virt = timer_in_cpu();
        let now = self.vm.count();
        if virt.line(now) {
            return Next::Resume;
        }
        if self.vcpu.ptimer.in_use() {
            self.vcpu.wake_others |= self.vm.drive_ptimer(self.vcpu);
        }
        let delay = delay(self.vcpu, &virt, now);
        let id = self.vcpu.id;
        let idle = &self.vm.idle[usize::from(id.0)];
        {
            let vgic = self.vm.vgic.lock();
            if vgic.has_deliverable(id, vmcr) {
                return Next::Resume;
            }
            idle.store(true, Ordering::SeqCst);
        }
        Next::Exit(Exit::Idle(delay))
    }

    /// PSCI power-down: each RUN from here on asks whether it is over. With `may_return` and a wake-up pending,
    /// the call returns SUCCESS instead.
    pub fn power_down(&mut self, entry: u64, context: u64, may_return: bool) -> Next {
        self.unload();
        let delay = stays_down(self.vm, self.vcpu, &timer_in_cpu());
        if may_return && delay.is_none() {
            self.vcpu.regs.x[0] = 0;
            return Next::Resume;
        }
        self.vcpu.resume = Some((entry, context));
        Next::Exit(Exit::Idle(delay.unwrap_or(0)))
    }
}
