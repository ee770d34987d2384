// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Running a vCPU: one loop from RUN to the exit that the host has to know of.
//!
//! ```text
//!  RUN --> answer of the last exit --> world in --> [ load vGIC --> guest --> exit ] --> world out
//!                                                     ^                         |
//!                                                     +---- handled at EL2 -----+
//! ```
//! The virtual CPU interface stays loaded across exits that have nothing to do with interrupts; it
//! is unloaded (synced) before anything that looks at the vGIC. Another CPU that changes something
//! for this vCPU kicks it, so a loaded interface is never stale for longer than a kick takes.

use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::arch::lock::MutexGuard;
use gzvm_abi::counter::Counter;
use gzvm_abi::run::{self as abi, exit};
use gzvm_core::addr::{IntId, VcpuId};
use gzvm_core::platform::psci::Power;
use gzvm_core::vgic::Kicks;
use gzvm_core::vm::lifecycle::Gate;
use zerocopy::IntoBytes;

use super::emulate;
use super::outcome::{Exit, Next, PAYLOAD};
use super::sleep;
use super::vcpu::{Pending, Vcpu};
use super::vm::{Vgic, Vm};
use super::watch::Watched;
use crate::arch::cpu;
use crate::arch::frame::{self, ExitKind};
use crate::arch::gic::{self, CpuGic};
use crate::arch::percpu::{PerCpu, count, kick};
use crate::arch::world::{self, GuestWorld};
use crate::arch::{barrier, sysreg, timer};
use crate::mem::boxed::PageBox;

/// INTID of the virtual timer in guests (the ABI's device tree: PPI 11).
pub const GUEST_VTIMER: IntId = IntId(27);
/// Longest sleep asked of the driver, in seconds: its tick conversion overflows near 30.
const LONGEST_IDLE: u64 = 20;
/// And under a driver that may miss a wake-up.
const SHORT_IDLES_PER_SECOND: u64 = 20;
/// How often a thread gives up its CPU that comes back to RUN whatever the host's scheduler wants, and for how long.
const RESTS_PER_SECOND: u64 = 100;
const RESTS_LENGTH: u64 = 50_000;

/// A vCPU that is being run on this CPU.
pub struct Running<'a> {
    /// Its VM.
    pub vm: &'a Vm,
    /// Itself.
    pub vcpu: &'a mut Vcpu,
    pub(super) gic: &'static CpuGic,
    /// The list registers hold this vCPU's interrupts.
    pub(super) loaded: bool,
    /// They are loaded without the vGIC having given anything: all of them are empty.
    empty: bool,
    /// The list registers are this vCPU's since RUN, if only empty ones.
    written: bool,
    /// List registers that may hold something, if only of another vCPU.
    filled: u8,
    /// The guest timer's physical interrupt has been set active by us.
    timer_active: bool,
    /// An SError came, which is handed to the host.
    serror: bool,
    /// The VM's exceptions are watched.
    pub watched: Option<Watched>,
}

/// RUN: x1 of the hypercall.
pub fn run(vm: &Vm, id: VcpuId) -> u32 {
    let n = usize::from(id.0);
    let Some(slot) = vm.vcpus.get(n) else { return exit::FAIL_ENTRY };
    // Two threads may have the same vCPU's file: the second one is told so.
    let Some(mut guard) = slot.try_lock() else { return exit::FAIL_ENTRY };
    let Some(vcpu) = guard.as_deref_mut() else { return exit::FAIL_ENTRY };
    let mut outcome = match vm.life.gate() {
        gate @ (Gate::Open | Gate::First) => {
            if gate == Gate::First {
                vm.begin();
            }
            vm.idle[n].store(false, Ordering::SeqCst);
            enter(vm, vcpu)
        }
        Gate::Parked => {
            // The host has answered by now, and may write the page while the VM is paused.
            // What it answered may have been but a step of an access.
            take_answer(vm, vcpu).unwrap_or_else(|| vm.told())
        }
        Gate::Over | Gate::Gone => vm.told(),
    };
    if !WAKES_AFTERWARDS.load(Ordering::Relaxed) {
        outcome = rest(vcpu, outcome);
    }
    count(outcome.counter());
    outcome.publish(vcpu, vm)
}

/// The public driver's loop goes back to RUN after an interrupt without looking at the scheduler: a kernel that does not preempt
/// itself never takes the CPU away from a busy vCPU, and one that waits for a vCPU behind it waits forever. So such a vCPU goes to
/// sleep for a moment, which lets others run.
fn rest(vcpu: &mut Vcpu, outcome: Exit) -> Exit {
    let now = timer::now();
    match outcome {
        Exit::Irq if now.wrapping_sub(vcpu.rested) > timer::frequency() / RESTS_PER_SECOND => {
            vcpu.rested = now;
            Exit::Idle((timer::frequency() / RESTS_LENGTH).max(1))
        }
        // Whoever comes back at once has not slept.
        Exit::Irq | Exit::Ipi(_) | Exit::Again => outcome,
        _ => {
            vcpu.rested = now;
            outcome
        }
    }
}

fn enter(vm: &Vm, vcpu: &mut Vcpu) -> Exit {
    if vcpu.pending.is_some()
        && let Some(exit) = take_answer(vm, vcpu)
    {
        return exit;
    }
    let sleepers = core::mem::take(&mut vcpu.wake_others);
    if sleepers != 0 {
        return Exit::Ipi(sleepers);
    }
    if !vcpu.resampled.is_empty() {
        return Exit::Resampled;
    }
    let start = {
        let mut power = vm.power.lock();
        match power.get(vcpu.id) {
            Power::Off | Power::Absent => {
                vm.idle[usize::from(vcpu.id.0)].store(true, Ordering::SeqCst);
                return Exit::Idle(longest_idle());
            }
            _ => power.take_start(vcpu.id),
        }
    };
    if let Some((entry, context)) = start {
        vcpu.reset(entry, context);
        let kicks = vm.vgic.lock().set_power(vcpu.id, true);
        vcpu.wake_others |= vm.kick(kicks);
    }
    if vcpu.resume.is_some()
        && let Some(exit) = sleep::resume(vm, vcpu)
    {
        return exit;
    }
    let this = PerCpu::this();
    let Some(gic) = this.gic() else { return Exit::FailEntry(abi::reason::UNEXPECTED_EXIT) };
    count(Counter::GuestEntry);
    gic.enable_own();
    let priority_mask = gic::unmask_priorities();

    // Announced before the counter's offset is read: a pause that moves it waits for whoever runs.
    let id = usize::from(vcpu.id.0);
    vm.running[id].store(this.index as u32 + 1, Ordering::SeqCst);
    let (t0sz, sl0) = vm.vtcr_fields;
    this.with(|s| {
        let world = GuestWorld {
            el1: &vcpu.el1,
            timer: &vcpu.timer,
            cntvoff: vm.cntvoff(),
            vttbr: vm.vttbr,
            vtcr: world::vtcr(t0sz, sl0, &s.features),
            hcr: vm.hcr,
            vmpidr: vcpu.mpidr(),
            vpidr: cpu::midr(),
            debug: vcpu.uses_debug().then_some(&vcpu.debug),
        };
        s.enter_guest_world(&world);
    });
    // vCPUs share a VMID, but each believes its TLB to be its own.
    let mark = vcpu.id.0 as u8 + 1;
    if vm.last_vcpu.get(this.index).is_none_or(|last| last.swap(mark, Ordering::Relaxed) != mark) {
        barrier::tlbi_vmalle1();
    }
    gic.restore_interface(&vcpu.gic);
    this.guest_state.store(kick::GUEST, Ordering::SeqCst);

    let mut running = Running {
        vm,
        vcpu,
        gic,
        loaded: false,
        empty: false,
        written: false,
        filled: this.with(|s| s.filled_lrs),
        timer_active: false,
        serror: false,
        watched: None,
    };
    // From here on a kick reaches us; what was decided before is looked at now.
    let outcome = if vm.life.gate() == Gate::Open {
        if running.vcpu.ptimer.timer.enabled() {
            running.set_alarm();
        }
        match vm.watch.mask() {
            mask if mask.any() => running.run_watched(mask),
            _ => running.run_until_exit(),
        }
    } else {
        Exit::Again
    };

    vm.out_of_the_guest(id);
    if this.guest_state.swap(kick::HOST, Ordering::SeqCst) == kick::KICKED {
        gic.drain_kick();
    }
    running.unload();
    let serror = running.serror;
    let filled = running.filled;
    if running.timer_active {
        gic.deactivate_vtimer();
    }
    gic.save_interface(&mut vcpu.gic);
    this.with(|s| {
        s.filled_lrs = filled;
        s.leave_guest_world(&mut vcpu.el1, &mut vcpu.timer, &mut vcpu.fp);
    });
    gic::restore_priorities(priority_mask);
    if serror {
        this.with(|s| s.pend_host_serror());
    }
    match outcome {
        // Out because the gate is shut, and so out that it counts.
        Exit::Again => vm.told(),
        outcome => outcome,
    }
}

/// What the host answered to the last exit goes into the registers; what else has to be asked comes
/// back.
fn take_answer(vm: &Vm, vcpu: &mut Vcpu) -> Option<Exit> {
    match vcpu.pending {
        None => {}
        Some(Pending::Unshare(ipa)) => {
            vcpu.pending = None;
            vcpu.finish_unshare(vm, ipa);
        }
        Some(Pending::Load(load)) => {
            vcpu.pending = None;
            let (register, value) = load.complete(mmio_data(vcpu));
            if let Some(x) = vcpu.regs.x.get_mut(usize::from(register)) {
                *x = value;
            }
            vcpu.regs.step();
        }
        Some(Pending::Ptp) => {
            vcpu.pending = None;
            let mut args = [0u64; 8];
            vcpu.shared.read(PAYLOAD, args.as_mut_bytes());
            vcpu.regs.x[..4].copy_from_slice(&args[..4]);
        }
        Some(Pending::Emulation(emulation)) => {
            vcpu.pending = None;
            let data = mmio_data(vcpu);
            return emulate::answered(vcpu, emulation, data);
        }
    }
    None
}

/// Of the answer to an MMIO exit only the data counts.
fn mmio_data(vcpu: &Vcpu) -> u64 {
    vcpu.shared.load(PAYLOAD + offset_of!(abi::Mmio, data) as u64)
}

/// The driver wakes a vCPU after, not before, it has raised its interrupt. Ours does, and says who it
/// is by EXT_INFO. The public one, and whichever has only just said PROBE, wakes first: a vCPU that goes to sleep again in between
/// would miss the interrupt, so its sleeps are short.
pub static WAKES_AFTERWARDS: AtomicBool = AtomicBool::new(false);

/// How long a vCPU without a timer sleeps in the driver, in ticks.
pub fn longest_idle() -> u64 {
    if WAKES_AFTERWARDS.load(Ordering::Relaxed) {
        timer::frequency().saturating_mul(LONGEST_IDLE)
    } else {
        timer::frequency() / SHORT_IDLES_PER_SECOND
    }
}

/// Whether an interrupt that was pending in a list register is so no longer.
fn takes_interrupt(before: &[u64], after: &[u64]) -> bool {
    const PENDING: u64 = 1 << 62;
    before.iter().zip(after).any(|(before, after)| before & !after & PENDING != 0)
}

impl Running<'_> {
    /// The loop.
    pub fn run_until_exit(&mut self) -> Exit {
        loop {
            if !self.loaded {
                self.load();
            }
            if !self.vcpu.resampled.is_empty() {
                return Exit::Resampled;
            }
            if self.watched.is_some() {
                self.arm_watch();
            }
            // SAFETY: `enter` put the guest's world in place; PSTATE is EL1 or EL0 (reset value,
            // checked in SET_ONE_REG, or the guest's own).
            let kind = unsafe { frame::run(self) };
            count(Counter::GuestExit);
            let next = match kind {
                ExitKind::Answered if self.vm.life.gate() != Gate::Open => Next::Exit(Exit::Again),
                ExitKind::Answered => Next::Resume,
                ExitKind::Sync => self.handle_sync(),
                ExitKind::Irq | ExitKind::Fiq if self.watched.is_some() => self.watched_interrupt(),
                ExitKind::Irq | ExitKind::Fiq => self.handle_interrupt(),
                ExitKind::SError => {
                    self.serror = true;
                    self.watched_serror()
                }
            };
            match next {
                // A WFI may end early: the sleeper goes first, and this vCPU comes back to its own.
                Next::Exit(Exit::Idle(_)) | Next::Resume if self.vcpu.wake_others != 0 => {
                    return Exit::Ipi(core::mem::take(&mut self.vcpu.wake_others));
                }
                // Nor does it sleep on what the driver waits for.
                Next::Exit(Exit::Idle(_)) if !self.vcpu.resampled.is_empty() => return Exit::Resampled,
                Next::Exit(exit) => return exit,
                Next::Resume => {}
            }
        }
    }

    /// Puts the vCPU's interrupts into the list registers.
    fn load(&mut self) {
        if self.vcpu.ptimer.in_use() {
            self.vcpu.wake_others |= self.vm.drive_ptimer(self.vcpu);
        }
        let level = self.timer_asserted();
        let mut vgic = self.vm.vgic.lock();
        self.vcpu.fetch_resampled(&mut vgic);
        vgic.set_hw_ppi(self.vcpu.id, GUEST_VTIMER, self.gic.vtimer, level);
        if !level && self.vcpu.gic.is_empty() && !vgic.needs_flush(self.vcpu.id) {
            // Nothing was in the list registers, and nothing wants to be: they stay as they are.
            drop(vgic);
            if !self.written {
                self.put(false);
            }
            (self.loaded, self.empty) = (true, true);
            return;
        }
        vgic.flush(self.vcpu.id, &mut self.vcpu.gic);
        let in_flight = vgic.hw_ppi_in_flight(self.vcpu.id, GUEST_VTIMER);
        drop(vgic);
        self.put(in_flight);
    }

    /// Takes the vCPU's interrupts out of the list registers, and puts in what is due now.
    fn reload(&mut self) {
        if !self.loaded || self.watched.is_some() || self.vcpu.ptimer.in_use() {
            // The loop loads.
            return self.unload();
        }
        self.gic.read_lrs(&mut self.vcpu.gic);
        let level = self.timer_asserted();
        let vcpu = &mut *self.vcpu;
        let mut vgic = self.vm.vgic.lock();
        let (in_flight, kicks) = vgic.turn_over(vcpu.id, &mut vcpu.gic, GUEST_VTIMER, self.gic.vtimer, level);
        vcpu.fetch_resampled(&mut vgic);
        drop(vgic);
        self.put(in_flight);
        self.vcpu.wake_others |= self.vm.kick(kicks);
    }

    /// Writes what is due to the list registers, and the timer's physical state that goes with it.
    #[inline(always)]
    fn put(&mut self, in_flight: bool) {
        if in_flight != self.timer_active {
            if in_flight {
                self.gic.activate_vtimer();
            } else {
                self.gic.deactivate_vtimer();
            }
            self.timer_active = in_flight;
        }
        self.gic.write_lrs(&self.vcpu.gic, self.filled);
        self.filled = self.vcpu.gic.used;
        (self.loaded, self.empty, self.written) = (true, false, true);
    }

    /// Takes them out again: the vGIC knows all there is to know about this vCPU.
    pub fn unload(&mut self) {
        if self.loaded {
            if self.watched.is_some() {
                self.look_for_progress();
            }
            self.gic.read_lrs(&mut self.vcpu.gic);
            if self.empty && self.vcpu.gic.is_empty() {
                // The vGIC knows all there is to know.
                self.loaded = false;
                return;
            }
            let kicks = {
                let mut vgic = self.vm.vgic.lock();
                let kicks = vgic.sync(self.vcpu.id, &self.vcpu.gic);
                self.vcpu.fetch_resampled(&mut vgic);
                kicks
            };
            self.loaded = false;
            self.vcpu.wake_others |= self.vm.kick(kicks);
        }
    }

    /// Whether the guest has taken an interrupt since the list registers were written.
    #[cold]
    fn look_for_progress(&mut self) {
        let before = self.vcpu.gic.lr;
        self.gic.read_lrs(&mut self.vcpu.gic);
        if takes_interrupt(&before, &self.vcpu.gic.lr) {
            self.progress();
        }
    }

    /// The guest gets somewhere: for a watch on stalls.
    pub fn progress(&mut self) {
        if let Some(watched) = &mut self.watched {
            watched.progress = true;
        }
    }

    /// The vGIC, with this vCPU's interrupts in it.
    pub fn vgic(&mut self) -> MutexGuard<'_, PageBox<Vgic>> {
        self.unload();
        self.vm.vgic.lock()
    }

    /// Something that concerns others' interrupts first of all, such as an SGI to them: this vCPU's list registers are
    /// left alone unless it concerned them too.
    pub fn with_vgic_of_others(&mut self, act: impl FnOnce(&mut Vgic) -> Kicks) -> Kicks {
        let (kicks, outdated) = {
            let mut vgic = self.vm.vgic.lock();
            (act(&mut vgic), vgic.outdated(self.vcpu.id))
        };
        if outdated {
            self.reload();
        }
        kicks
    }

    /// Resumes, unless one of the vCPUs that were kicked sleeps: then the driver has to know.
    pub fn after_kicks(&self, kicks: Kicks) -> Next {
        match self.vm.kick(kicks) {
            0 => Next::Resume,
            sleepers => Next::Exit(Exit::Ipi(sleepers)),
        }
    }

    /// The guest's timer output: CNTV_CTL_EL0.{ENABLE, ISTATUS} and not IMASK. Its registers are in
    /// the CPU.
    fn timer_asserted(&self) -> bool {
        sysreg::read!("cntv_ctl_el0") & 7 == 5
    }

    /// A physical interrupt that is the guest's or EL2's, not the host's.
    #[inline(always)]
    pub fn own_interrupt(&mut self, pending: u32) -> bool {
        if pending == self.gic.vtimer && self.timer_asserted() {
            count(Counter::GuestTimer);
            self.progress();
            // It signals, so it is not active, whatever we set before.
            self.timer_active = false;
        } else if Some(pending) == self.gic.kick {
            count(Counter::GuestKick);
            self.gic.take_kick();
            // From here on a new kick is a new SGI; what was changed before is seen by `reload`.
            PerCpu::this().guest_state.store(kick::GUEST, Ordering::SeqCst);
        } else if pending == self.gic.maintenance {
            count(Counter::GuestMaintenance);
        } else {
            return false;
        }
        self.reload();
        true
    }

    /// A physical interrupt.
    pub fn handle_interrupt(&mut self) -> Next {
        let pending = self.gic.pending();
        if self.own_interrupt(pending) {
            return if self.vm.life.gate() == Gate::Open { Next::Resume } else { Next::Exit(Exit::Again) };
        }
        if pending == self.gic.deadline && self.ptimer_fired() {
            count(Counter::GuestTimer);
            Next::Resume
        } else if pending == gic::NONE {
            // Withdrawn meanwhile, or in a group that is not ours: the host finds out.
            self.unload();
            Next::Exit(Exit::Irq)
        } else {
            count(Counter::GuestIrq);
            Next::Exit(Exit::Irq)
        }
    }
}
