// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The exits that come most often, answered from the vector: nothing but general registers is saved, and the loop
//! (`run`) does not hear of them.
//!
//! | exit | answered here if |
//! |---|---|
//! | HVC | the answer is a constant |
//! | write of ICC_SGI1R_EL1 | always |
//! | load from a GIC frame | no list register knows better |
//! | IRQ | it is the guest's timer, a kick, or maintenance |
//!
//! All else is declined before anything has been done, and the loop does it. So is everything while the VM is watched. What the
//! loop looks at before each entry (interrupts to load, vCPUs to wake, resampled lines) can't have changed by an exit of
//! the first three kinds; where it may have, `settled` asks.

use gzvm_abi::counter::Counter;
use gzvm_core::platform::smccc;
use gzvm_core::vcpu::mmio::PendingLoad;
use gzvm_core::vcpu::syndrome::{self, Cause, FaultKind};
use gzvm_core::vm::lifecycle::Gate;

use super::run::Running;
use super::sysreg::SGI1R_WRITE;
use crate::arch::cpu;
use crate::arch::frame::{Answer, ExitKind, Guest, GuestRegs, KEPT_BY_RUST, step};
use crate::arch::percpu::count;

impl Guest for Running<'_> {
    fn regs(&mut self) -> &mut GuestRegs {
        &mut self.vcpu.regs
    }

    #[inline(always)]
    fn answer(&mut self, kind: ExitKind) -> Answer {
        if self.watched.is_some() {
            return Answer::decline(kind);
        }
        match kind {
            ExitKind::Sync => match cpu::esr() {
                syndrome::ESR_HVC_0 => self.quick_call(),
                esr if syndrome::without_rt(esr) == SGI1R_WRITE => self.quick_sgi(esr),
                esr if syndrome::is_no_load(esr) => DECLINE,
                esr => self.quick_load(esr),
            },
            ExitKind::Irq => self.quick_interrupt(),
            _ => Answer::decline(kind),
        }
    }
}

/// Nothing has been done: the loop does it.
const DECLINE: Answer = Answer::decline(ExitKind::Sync);

impl Running<'_> {
    #[inline(always)]
    fn quick_call(&mut self) -> Answer {
        let Some(value) = smccc::constant(self.vcpu.regs.x[0]) else { return DECLINE };
        self.vcpu.regs.x[0] = value;
        count(Counter::GuestExit);
        count(Counter::GuestHvc);
        Answer::GO_ON
    }

    #[inline(never)]
    fn quick_sgi(&mut self, esr: u64) -> Answer {
        count(Counter::GuestSysreg);
        let kicks = self.sgi1(syndrome::rt(esr));
        step();
        self.vcpu.wake_others |= self.vm.kick(kicks);
        self.settled()
    }

    #[inline(never)]
    fn quick_load(&mut self, esr: u64) -> Answer {
        let Cause::DataAbort(abort, Some(access)) = syndrome::decode(esr) else { return DECLINE };
        if abort.kind != FaultKind::Translation || abort.s1ptw || KEPT_BY_RUST.contains(&access.rt) {
            return DECLINE;
        }
        let Some(load) = PendingLoad::of(access) else { return DECLINE };
        let ipa = syndrome::fault_ipa(cpu::fault_ipa_page(), cpu::far());
        let Some((frame, offset)) = self.gic_frame(ipa) else { return DECLINE };
        let Some(data) = self.gic_read_settled(frame, offset, access.size) else { return DECLINE };
        count(Counter::GuestExit);
        count(Counter::GuestGicMmio);
        let (register, value) = load.complete(data);
        if let Some(x) = self.vcpu.regs.x.get_mut(usize::from(register)) {
            *x = value;
        }
        step();
        Answer::GO_ON
    }

    #[inline(never)]
    fn quick_interrupt(&mut self) -> Answer {
        if self.own_interrupt(self.gic.pending()) { self.settled() } else { Answer::decline(ExitKind::Irq) }
    }

    /// Goes on if nothing is left for the loop to do.
    #[inline(always)]
    fn settled(&self) -> Answer {
        let vcpu = &self.vcpu;
        if self.loaded
            && vcpu.wake_others == 0
            && vcpu.resampled.is_empty()
            && self.vm.life.gate() == Gate::Open
        {
            count(Counter::GuestExit);
            return Answer::GO_ON;
        }
        Answer::STOP
    }
}
