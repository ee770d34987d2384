// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The life of a VM: its end stops every vCPU and is told to every thread, and a pause holds it.

use core::sync::atomic::Ordering::SeqCst;

use gzvm_abi::control::{PAUSE, RESUME, STATUS, state};
use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::reg;
use gzvm_abi::run::{HwState, SystemEvent, exit, system_event};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, Reply};
use gzvm_guest_kit::{cases, check, check_eq, fail, gic, machine, skip, smp, timer};

use crate::guest_runs::{LAST_EXIT, STOP, TUPLE, runs_tuple};
use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["life":
    power_off_stops_everybody, reset_stops_everybody, reset2_tells_type_and_cookie,
    paused_vm_stands_still, time_never_goes_back, pause_before_the_first_run, control_arguments,
];

const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const SYSTEM_RESET2: u64 = 0xC400_0012;

fn control(vm: &Vm, what: u32) -> Reply {
    hypercall::call(Function::Control, &[vm.id.into(), what.into()])
}

fn state_of(vm: &Vm) -> u64 {
    control(vm, STATUS).values[0]
}

/// The word that the guest counts in.
fn counter(vm: &Vm) -> u64 {
    crate::vm::clean(vm.memory + 0x800, 8);
    pages::read(vm.memory + 0x800)
}

/// CPU 1 runs the vCPU until it does MMIO, or is [stopped](stop_second_cpu).
pub fn on_second_cpu(vm: &Vm, vcpu: u16) -> Outcome {
    STOP.store(false, SeqCst);
    LAST_EXIT.store(0, SeqCst);
    TUPLE.store(vm.tuple(vcpu), SeqCst);
    smp::start(1, runs_tuple).map_err(|code| Verdict::fail(format_args!("CPU 1 does not start: {code}")))
}

/// Takes CPU 1 out of it.
pub fn stop_second_cpu() -> Outcome {
    STOP.store(true, SeqCst);
    let stopped = timer::wait_ms(5000, || {
        gic::send_sgi(machine::get().cpus[1], 1);
        timer::wait_ms(1, || false);
        smp::join_if_done(1)
    });
    if stopped { Ok(()) } else { Err(Verdict::fail(format_args!("CPU 1 stays in RUN"))) }
}

/// One vCPU ends the VM by `call` while the other counts on another CPU.
fn ends_by(call: u64, event: u32, number: u32, data: &[u64]) -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let mut vm = Vm::new(programs::ends(), 2)?;
    check!(vm.map(RAM).ok(), "MAP_GUEST");
    vm.set_reg(0, reg::X0, call)?;
    check_eq!(state_of(&vm), state::CREATED.into(), "state before the first RUN");
    on_second_cpu(&vm, 1)?;
    let counts = vm.run_to_store(0);
    let running = state_of(&vm);
    let reason = vm.run(0);
    // The event has been told: from here on nobody runs.
    let first = counter(&vm);
    timer::wait_ms(20, || false);
    let second = counter(&vm);
    let told = timer::wait_ms(2000, || LAST_EXIT.load(SeqCst) == exit::SYSTEM_EVENT);
    stop_second_cpu()?;
    check!(matches!(counts, Ok((0x10, 1..))), "vCPU 1 does not count");
    check_eq!(running, state::RUNNING.into(), "state of a VM that runs");
    check_eq!(reason?, exit::SYSTEM_EVENT, "exit of the caller");
    check_eq!(first, second, "vCPU 1 after the end");
    check!(told, "exit {:#x} of the peer", LAST_EXIT.load(SeqCst));
    for vcpu in [0, 1] {
        // As often as anybody asks.
        for _ in 0..3 {
            check_eq!(vm.run(vcpu)?, exit::SYSTEM_EVENT, "a RUN after the end");
            let report = SystemEvent::read(&vm.report(vcpu));
            check_eq!(report.type_, event, "type");
            check_eq!(report.ndata as usize, data.len(), "ndata");
            check_eq!(&report.data[..data.len()], data, "data");
            let HwState { vtimer_delay, vtimer_migrate, .. } = vm.hwstate(vcpu);
            check_eq!((vtimer_delay, vtimer_migrate), (0, 0), "timer for the host");
        }
    }
    check_eq!(counter(&vm), first, "vCPU 1 after its RUNs");
    check_eq!(state_of(&vm), number.into(), "state after the end");
    for what in [PAUSE, RESUME] {
        check_eq!(control(&vm, what).status(), Some(Status::InvalidArgs), "control of a VM that is over");
    }
    let late = hypercall::call(Function::CreateVcpu, &[vm.tuple(2), pages::take(2, 4096)]);
    check_eq!(late.status(), Some(Status::InvalidArgs), "a vCPU for a VM that is over");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn power_off_stops_everybody() -> Outcome {
    ends_by(SYSTEM_OFF, system_event::SHUTDOWN, state::OFF, &[])
}

fn reset_stops_everybody() -> Outcome {
    ends_by(SYSTEM_RESET, system_event::RESET, state::RESET, &[])
}

fn reset2_tells_type_and_cookie() -> Outcome {
    ends_by(SYSTEM_RESET2, system_event::RESET, state::RESET, &[0x8000_0000, 0x1234])
}

fn pause(vm: &Vm) -> Outcome {
    let mut last = None;
    let done = timer::wait_ms(5000, || {
        last = control(vm, PAUSE).status();
        last != Some(Status::Busy)
    });
    if done && last == Some(Status::Success) {
        Ok(())
    } else {
        Err(Verdict::fail(format_args!("pause: {last:?}")))
    }
}

/// A pause of 50 ms: the guest does nothing and sees nothing of it on its clock.
fn paused_vm_stands_still() -> Outcome {
    const PAUSE_MS: u64 = 50;
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let vm = Vm::new(programs::tells_time(), 1)?;
    check!(vm.map(RAM).ok(), "MAP_GUEST");
    on_second_cpu(&vm, 0)?;
    let moves = || {
        let now = counter(&vm);
        timer::wait_ms(5000, || counter(&vm) != now)
    };
    let (runs, start) = (moves(), timer::now());
    let fresh = moves();
    let paused = pause(&vm);
    let before = counter(&vm);
    let state_then = state_of(&vm);
    timer::wait_ms(PAUSE_MS, || false);
    let after = counter(&vm);
    let parked = LAST_EXIT.load(SeqCst);
    let again = pause(&vm);
    let resumed = control(&vm, RESUME).status();
    let goes_on = moves();
    let (guest, host) = (counter(&vm) - before, timer::now() - start);
    stop_second_cpu()?;
    check!(runs && fresh, "the guest does not run");
    paused?;
    again?;
    check_eq!(state_then, state::PAUSED.into(), "state");
    check_eq!(before, after, "the guest's clock word in the pause");
    check_eq!(parked, exit::IDLE, "exit of a vCPU that is paused");
    check!(vm.hwstate(0).vtimer_migrate == 1, "no sleep for the driver");
    check_eq!(resumed, Some(Status::Success), "resume");
    check!(goes_on, "the guest does not go on");
    let pause_ticks = timer::frequency() / 1000 * PAUSE_MS;
    check!(
        guest + pause_ticks <= host + pause_ticks / 10,
        "{guest} ticks for the guest, {host} for the host"
    );
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// The counter stands still from where the guest saw it last, however late the kick reached it.
fn time_never_goes_back() -> Outcome {
    const PAUSES: u32 = 400;
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let vm = Vm::new(programs::time_goes_back(), 1)?;
    check!(vm.map(RAM).ok(), "MAP_GUEST");
    on_second_cpu(&vm, 0)?;
    let mut outcome = Ok(());
    for _ in 0..PAUSES {
        let now = counter(&vm);
        let moves = timer::wait_ms(5000, || counter(&vm) != now);
        outcome = pause(&vm).map(drop);
        let resumed = control(&vm, RESUME).ok();
        if !moves || !resumed || outcome.is_err() {
            break;
        }
    }
    stop_second_cpu()?;
    outcome?;
    check_eq!(pages::read(vm.memory + 0x808), 0, "steps back in {PAUSES} pauses");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn pause_before_the_first_run() -> Outcome {
    let mut vm = Vm::new(programs::reads_one(), 1)?;
    pause(&vm)?;
    check_eq!(vm.run_once(0), exit::IDLE, "a vCPU that never ran");
    check_eq!(control(&vm, RESUME).values[0], state::CREATED.into(), "state");
    check_eq!(control(&vm, RESUME).status(), Some(Status::Success), "resume of what is not paused");
    vm.run_to_store(0)?;
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "last exit");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn control_arguments() -> Outcome {
    let vm = Vm::new(programs::spins(), 1)?;
    for what in [3, 4, 0xFFFF_FFFF, 1 << 32, u64::MAX] {
        let reply = hypercall::call(Function::Control, &[vm.id.into(), what]);
        check_eq!(reply.status(), Some(Status::InvalidArgs), "control {what:#x}");
    }
    for id in [0, 0xFFFF, 1 << 16, u64::MAX] {
        let reply = hypercall::call(Function::Control, &[id, STATUS.into()]);
        check_eq!(reply.status(), Some(Status::InvalidArgs), "control of VM {id:#x}");
    }
    let id = vm.id;
    vm.destroy()?;
    let reply = hypercall::call(Function::Control, &[id.into(), STATUS.into()]);
    if reply.ok() {
        fail!("control of a VM that is gone: {reply:?}");
    }
    pages::reset();
    Ok(())
}
