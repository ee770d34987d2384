// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The exit handler of a VM: the one place through which every end goes, and every pause.
//!
//! `gzvm_core::vm::lifecycle` decides, this acts: the gate is shut, vCPUs that run are kicked out, and each takes its
//! interrupts and its timer with it as it leaves (`run::enter`). What the threads are told is [`Vm::told`].
//!
//! # Invariants
//! - The gate is written under the state's lock, and always before the kicks.
//! - A vCPU reads the gate after it has put itself into `Vm::running`, so it sees a gate that was shut before
//!   its kick could reach it.
//! - A host that is told of the end, or that a pause is complete, is told after the last vCPU has left.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gzvm_abi::run::{reason, system_event};
use gzvm_core::vgic::Kicks;
use gzvm_core::vm::lifecycle::{Cause, Event, Gate, Refused, State};

use super::outcome::Exit;
use super::run::longest_idle;
use super::vm::Vm;
use crate::arch::lock::Mutex;
use crate::arch::timer;
use gzvm_core::broken::{Mistake, broken};

/// A VM's state and what follows from it.
pub struct Life {
    gate: AtomicU32,
    state: Mutex<State>,
    /// CNTVOFF_EL2: the guest's counter starts at zero with the VM, and stands still while it is paused.
    cntvoff: AtomicU64,
    /// The count at which it stands still while paused: as the last vCPU left the guest, which may have seen it.
    paused_at: AtomicU64,
}

impl Life {
    /// A VM that begins now.
    pub fn new() -> Self {
        Self {
            gate: AtomicU32::new(State::Created.gate() as u32),
            state: Mutex::new(State::Created),
            cntvoff: AtomicU64::new(timer::now()),
            paused_at: AtomicU64::new(0),
        }
    }

    /// What RUN may do.
    #[inline(always)]
    pub fn gate(&self) -> Gate {
        if broken(Mistake::NoGate) {
            return Gate::Open;
        }
        Gate::from_number(self.gate.load(Ordering::SeqCst))
    }

    /// The state just now.
    pub fn state(&self) -> State {
        *self.state.lock()
    }

    /// Does something while the state is this one. Takes no lock.
    pub fn hold<R>(&self, then: impl FnOnce(State) -> R) -> R {
        let state = self.state.lock();
        then(*state)
    }

    /// One step; `then` runs under the lock, with the state before and after.
    fn step(&self, event: Event, then: impl FnOnce(State, State)) -> Result<State, Refused> {
        let mut state = self.state.lock();
        let next = state.step(event)?;
        then(*state, next);
        *state = next;
        self.gate.store(next.gate() as u32, Ordering::SeqCst);
        Ok(next)
    }
}

impl Vm {
    /// CNTVOFF_EL2.
    #[inline(always)]
    pub fn cntvoff(&self) -> u64 {
        self.life.cntvoff.load(Ordering::Relaxed)
    }

    /// The VM ends; the first cause counts. Its vCPUs leave the guest; RUN tells the cause from here on.
    pub fn end(&self, cause: Cause) {
        if self.life.step(Event::End(cause), |_, _| {}).is_ok() {
            let _ = self.kick(Kicks(u64::MAX));
        }
    }

    /// The VM is to go: running vCPUs leave, and nothing runs or is added from here on.
    pub fn condemn(&self) {
        if self.life.gate() != Gate::Gone {
            let _ = self.life.step(Event::Condemn, |_, _| {});
            if !broken(Mistake::NoKick) {
                let _ = self.kick(Kicks(u64::MAX));
            }
        }
    }

    /// vCPUs leave the guest and park, and the guest's counter stands still. The state then; complete once
    /// nobody [runs](Self::anybody_runs).
    pub fn pause(&self) -> Result<State, Refused> {
        let state = self.life.step(Event::Pause, |before, _| {
            if matches!(before.gate(), Gate::Open | Gate::First) {
                self.life.paused_at.store(timer::now(), Ordering::Relaxed);
            }
        })?;
        let _ = self.kick(Kicks(u64::MAX));
        Ok(state)
    }

    /// A vCPU has executed its last instruction for now.
    #[inline(always)]
    pub fn out_of_the_guest(&self, vcpu: usize) {
        if self.life.gate() != Gate::Open {
            self.life.paused_at.fetch_max(timer::now(), Ordering::Relaxed);
        }
        if let Some(running) = self.running.get(vcpu) {
            running.store(0, Ordering::SeqCst);
        }
    }

    /// vCPUs may run again. Not while a vCPU is still on its way out: its counter would go backwards. The caller
    /// wakes those that are parked in the driver.
    pub fn resume(&self) -> Result<State, Refused> {
        self.life.step(Event::Resume, |before, after| {
            if before != after {
                let still = timer::now().wrapping_sub(self.life.paused_at.load(Ordering::Relaxed));
                self.life.cntvoff.fetch_add(still, Ordering::Relaxed);
            }
        })
    }

    /// The first RUN. Refused if the VM has been paused or ended just now: RUN sees that next.
    pub fn begin(&self) {
        let _ = self.life.step(Event::Run, |_, _| {});
    }

    /// Whether a vCPU is in the guest, or on its way in or out.
    pub fn anybody_runs(&self) -> bool {
        self.running.iter().any(|r| r.load(Ordering::SeqCst) != 0)
    }

    /// What RUN answers while the gate is not open. "Come again" where another vCPU is still on its way out: who is
    /// told of the end may rely on it.
    pub fn told(&self) -> Exit {
        match self.life.state() {
            State::Ended(_) if self.anybody_runs() => Exit::Again,
            State::Ended(Cause::PowerOff) => Exit::SystemEvent(system_event::SHUTDOWN, [0; 2]),
            State::Ended(Cause::Reset { data }) => Exit::SystemEvent(system_event::RESET, data),
            State::Ended(Cause::Crash) => Exit::SystemEvent(system_event::CRASH, [0; 2]),
            State::Dying => Exit::FailEntry(reason::DYING),
            State::Paused(_) => Exit::Idle(longest_idle()),
            // Resumed meanwhile.
            State::Created | State::Running | State::Suspended => Exit::Again,
        }
    }
}
