// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exception watching of a guest that runs: sees what `gzvm_core::platform::watch` names, and acts by the VM's policy.
//!
//! ```text
//!  guest takes an exception --> breakpoint at its vector --> judged --> event? --> RUN exits, or goes on
//!                                                               |
//!                                the vector's first instruction by software step, breakpoints off <--+
//! ```
//! Between a guest's write of VBAR_EL1 and the next exit of any kind the breakpoints stand on the old vectors, where
//! the CPU has no FEAT_FGT: an exception in that window is missed. With it the write itself comes here.
//!
//! While a VM is watched its own software step works, hardware breakpoints of its own do not.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gzvm_abi::run as abi;
use gzvm_abi::watch::{action, kind};
use gzvm_core::platform::watch::{Limiter, Mask, Stall, Taken, VECTORS};
use gzvm_core::vcpu::syndrome::SysregAccess;
use gzvm_core::vm::lifecycle::Cause as EndCause;

use super::outcome::{Exit, Next};
use super::run::Running;
use crate::arch::debug::{self, El1Exception};
use crate::arch::lock::Mutex;
use crate::arch::percpu::PerCpu;
use crate::arch::{cpu, timer};

/// PSTATE.SS.
const PSTATE_SS: u64 = 1 << 21;
/// PSTATE.D.
const PSTATE_D: u64 = 1 << 9;

/// Exception classes of a lower EL that MDCR_EL2.TDE brings.
mod class {
    pub const BREAKPOINT: u64 = 0x30;
    pub const STEP: u64 = 0x32;
    pub const WATCHPOINT: u64 = 0x34;
    pub const BRK: u64 = 0x3C;
}

/// A VM's watch. Set before it first runs.
pub struct VmWatch {
    mask: AtomicU32,
    action: AtomicU32,
    /// Deadline of a stall in ticks.
    stall: AtomicU64,
    /// Events so far, those that were not reported included.
    pub events: AtomicU64,
    limiter: Mutex<Limiter>,
}

impl VmWatch {
    /// Nothing is watched.
    pub fn new() -> Self {
        Self {
            mask: AtomicU32::new(0),
            action: AtomicU32::new(action::REPORT),
            stall: AtomicU64::new(u64::MAX),
            events: AtomicU64::new(0),
            limiter: Mutex::new(Limiter::new()),
        }
    }

    /// What is watched.
    #[inline(always)]
    pub fn mask(&self) -> Mask {
        Mask::new(self.mask.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// What is watched and what is done then, if anything is.
    pub fn fact(&self) -> Option<(u32, u32)> {
        let bits = self.mask.load(Ordering::Relaxed);
        (bits != 0).then(|| (bits, self.action.load(Ordering::Relaxed)))
    }

    /// Watches `bits`, which have been checked.
    pub fn set(&self, bits: u32, action: u32, stall: u64) {
        self.action.store(action, Ordering::Relaxed);
        self.stall.store(stall, Ordering::Relaxed);
        self.mask.store(bits, Ordering::Relaxed);
    }
}

/// A vCPU's part.
#[derive(Default)]
pub struct VcpuWatch {
    /// The first instruction of a vector is being stepped over.
    step: bool,
    stall: Stall,
    /// What the last WATCH exit tells.
    pub event: abi::Watch,
}

/// A watched run, while it lasts.
pub struct Watched {
    mask: Mask,
    /// Writes of VBAR_EL1 trap.
    fgt: bool,
    /// Up to when time in the guest has been counted.
    counted: u64,
    /// When a stall is looked for at the latest: the host finds nothing then, and comes again.
    look: Option<u64>,
    /// The guest did something since.
    pub progress: bool,
}

/// Where and what.
struct Place {
    pc: u64,
    pstate: u64,
    esr: u64,
    far: u64,
}

impl Running<'_> {
    /// As `run_until_exit`, with the watch on.
    #[cold]
    pub fn run_watched(&mut self, mask: Mask) -> Exit {
        let fgt = PerCpu::this().with(|s| {
            s.debug.begin_watch(s.features.fgt);
            s.features.fgt
        });
        let now = timer::now();
        let look = mask.has(kind::STALL).then(|| {
            let left = self.vcpu.watch.stall.left(self.vm.watch.stall.load(Ordering::Relaxed));
            now.saturating_add(left)
        });
        self.watched = Some(Watched { mask, fgt, counted: now, look, progress: false });
        if look.is_some() {
            self.set_alarm();
        }
        let exit = self.run_until_exit();
        if let Some(watched) = self.watched.take() {
            if watched.progress {
                self.vcpu.watch.stall.progress();
            }
            let ran = timer::now().wrapping_sub(watched.counted);
            let _ = self.vcpu.watch.stall.ran(ran, u64::MAX);
            let mdscr = self.vcpu.effective_mdscr();
            PerCpu::this().with(|s| s.debug.end_watch(watched.fgt, mdscr));
        }
        exit
    }

    /// When the watch wants the CPU back (physical count).
    pub fn watch_deadline(&self) -> Option<u64> {
        self.watched.as_ref().and_then(|watched| watched.look)
    }

    fn guest_mdscr(&self) -> u64 {
        self.vcpu.effective_mdscr() & (debug::MDSCR_SS | debug::MDSCR_KDE)
    }

    /// Before each entry.
    #[cold]
    pub fn arm_watch(&mut self) {
        let step = self.vcpu.watch.step;
        if let Some(watched) = &self.watched {
            let (vectors, mdscr) = (watched.mask.vectors(), self.guest_mdscr());
            PerCpu::this().with(|s| s.debug.arm_watch(vectors, step, mdscr));
        }
        if step {
            self.vcpu.regs.pstate |= PSTATE_SS;
        }
    }

    fn watches(&self, kind: u32) -> bool {
        self.watched.as_ref().is_some_and(|w| w.mask.has(kind))
    }

    /// A synchronous exception that no guest makes by itself, if it is one of the watch's own.
    #[cold]
    pub fn watched_sync(&mut self, esr: u64) -> Option<Next> {
        self.watched.as_ref()?;
        match esr >> 26 & 0x3F {
            class::BREAKPOINT => Some(self.vector_hit()),
            class::STEP => Some(self.stepped(esr)),
            class::BRK => Some(self.brk(esr)),
            // Not to be: they are off.
            class::WATCHPOINT => Some(Next::Resume),
            _ => None,
        }
    }

    /// A trapped write of VBAR_EL1: the breakpoints move with it.
    #[cold]
    pub fn watched_vbar(&mut self, access: SysregAccess) -> bool {
        if self.watched.is_none() || access.key() != (3, 0, 12, 0, 0) || access.read {
            return false;
        }
        let value = self.vcpu.regs.x.get(usize::from(access.rt)).copied().unwrap_or(0);
        debug::set_guest_vbar(value);
        self.skip();
        true
    }

    /// The guest is about to run the first instruction of one of its vectors.
    fn vector_hit(&mut self) -> Next {
        let el1 = El1Exception::read();
        if !VECTORS.contains(&self.vcpu.regs.pc.wrapping_sub(el1.vbar)) {
            // An old vector: the breakpoints move before the guest goes on.
            return Next::Resume;
        }
        self.vcpu.watch.step = true;
        let taken = Taken {
            esr: el1.esr,
            far: el1.far,
            spsr: el1.spsr,
            pan: debug::guest_sets_pan(),
            instruction: self.instruction(el1.elr),
        };
        match taken.judge() {
            Some(kind) if self.watches(kind) => {
                let place = Place { pc: el1.elr, pstate: el1.spsr, esr: el1.esr, far: el1.far };
                self.event(kind, &place)
            }
            _ => Next::Resume,
        }
    }

    /// One instruction is done.
    fn stepped(&mut self, esr: u64) -> Next {
        let pstate = self.vcpu.regs.pstate;
        if core::mem::take(&mut self.vcpu.watch.step) {
            self.vcpu.regs.pstate = pstate & !PSTATE_SS;
            return Next::Resume;
        }
        // The guest's own step, which came here instead of to its EL1. There it would be masked by D, or by KDE = 0.
        let user = pstate & 0xF == 0;
        if user {
            self.inject_class(esr, class::STEP);
        } else if self.guest_mdscr() & debug::MDSCR_KDE != 0 && pstate & PSTATE_D == 0 {
            self.inject_class(esr, class::STEP | 1);
        } else {
            self.vcpu.regs.pstate |= PSTATE_SS;
        }
        Next::Resume
    }

    /// BRK: the guest gets it in any case.
    fn brk(&mut self, esr: u64) -> Next {
        let place = self.here(esr);
        let user = place.pstate & 0xF == 0;
        self.inject_class(esr, class::BRK);
        let kind = if user { kind::USER_BREAKPOINT } else { kind::BREAKPOINT };
        if self.watches(kind) { self.event(kind, &place) } else { Next::Resume }
    }

    fn inject_class(&mut self, esr: u64, class: u64) {
        self.inject(esr & 0x03FF_FFFF | class << 26, 0);
        // PC is at a vector, where its breakpoint would hit: this exception has been seen.
        self.vcpu.watch.step = true;
    }

    /// EL2 has just answered an access with an external abort.
    pub fn external_abort(&mut self, esr: u64, far: u64) -> Next {
        let place = Place { esr, far, ..self.here(esr) };
        self.inject(esr, far);
        if self.watches(kind::EXTERNAL) { self.event(kind::EXTERNAL, &place) } else { Next::Resume }
    }

    /// An SError while the guest had the CPU. The host gets it in any case.
    #[cold]
    pub fn watched_serror(&mut self) -> Next {
        if self.watches(kind::SERROR)
            && let next @ Next::Exit(_) = self.event(kind::SERROR, &self.here(cpu::esr()))
        {
            return next;
        }
        Next::Exit(Exit::Irq)
    }

    /// A physical interrupt: time to look whether the guest gets anywhere.
    #[cold]
    pub fn watched_interrupt(&mut self) -> Next {
        let next = self.handle_interrupt();
        let limit = self.vm.watch.stall.load(Ordering::Relaxed);
        let Some(watched) = &mut self.watched else { return next };
        let now = timer::now();
        let ticks = now.wrapping_sub(core::mem::replace(&mut watched.counted, now));
        let progress = core::mem::take(&mut watched.progress);
        if progress {
            self.vcpu.watch.stall.progress();
        }
        let stalled = !progress && self.vcpu.watch.stall.ran(ticks, limit);
        if matches!(next, Next::Exit(Exit::Again)) {
            return next;
        }
        let event = if self.watches(kind::ABORT) && self.recursion() {
            let el1 = El1Exception::read();
            let place = Place { pc: el1.elr, pstate: el1.spsr, esr: el1.esr, far: el1.far };
            self.event(kind::ABORT, &place)
        } else if stalled && self.watches(kind::STALL) {
            self.event(kind::STALL, &self.here(0))
        } else {
            return next;
        };
        match event {
            Next::Resume => next,
            exit => exit,
        }
    }

    /// EL1's vector can't be fetched: it faults there again and again. No breakpoint comes before that fault.
    fn recursion(&self) -> bool {
        const INSTRUCTION_ABORT: u64 = 0x21;
        let (el1, pc) = (El1Exception::read(), self.vcpu.regs.pc);
        el1.elr == pc
            && el1.esr >> 26 & 0x3F == INSTRUCTION_ABORT
            && VECTORS.contains(&pc.wrapping_sub(el1.vbar))
    }

    fn here(&self, esr: u64) -> Place {
        Place { pc: self.vcpu.regs.pc, pstate: self.vcpu.regs.pstate & !PSTATE_SS, esr, far: 0 }
    }

    /// Something watched has happened: counted, and acted on.
    fn event(&mut self, kind: u32, place: &Place) -> Next {
        let count = self.vm.watch.events.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let action = self.vm.watch.action.load(Ordering::Relaxed);
        match action {
            action::PAUSE => drop(self.vm.pause()),
            action::RESET => self.vm.end(EndCause::Reset { data: [0; 2] }),
            action::KILL => self.vm.end(EndCause::Crash),
            _ => {
                if !self.vm.watch.limiter.lock().pass(timer::now(), timer::frequency()) {
                    return Next::Resume;
                }
            }
        }
        if self.vm.protected() {
            // The kind is all that the host gets to know.
            self.vcpu.watch.event = abi::Watch { kind, action, count, ..Default::default() };
            return Next::Exit(Exit::Watch);
        }
        let (sp_el0, sp_el1) = debug::guest_stacks();
        let [.., fp, lr] = self.vcpu.regs.x;
        self.vcpu.watch.event = abi::Watch {
            kind,
            action,
            count,
            pc: place.pc,
            pstate: place.pstate,
            esr: place.esr,
            far: place.far,
            sp: if place.pstate & 1 == 0 { sp_el0 } else { sp_el1 },
            fp,
            lr,
        };
        Next::Exit(Exit::Watch)
    }
}
