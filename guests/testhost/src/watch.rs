// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exception watching: what a guest does, what the host is told, and that the guest notices nothing.

use gzvm_abi::control::{RESUME, STATUS, state};
use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::run::{SystemEvent, Watch, exit, system_event};
use gzvm_abi::watch::{action, kind};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, Reply};
use gzvm_guest_kit::{cases, check, check_eq, fail, read_sysreg};

use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::{Vm, clean};

pub const CASES: &[Case] = cases!["watch":
    reports_and_goes_on, unwatched_guest_is_the_same, only_what_was_asked_for, host_breakpoints_survive, pause_and_resume,
    reset_and_kill, crash_before_vectors, stall_is_noticed, flood_is_cut, arguments,
];

/// Where the program `faults` expects its two vector tables.
const TABLES: [u64; 2] = [0x2000, 0x3000];
const ALL: u32 = kind::UNDEFINED | kind::ABORT | kind::BREAKPOINT | kind::USER_UNDEFINED;

fn set_watch(vm: u16, kinds: u64, action: u64, stall_ms: u64) -> Reply {
    hypercall::call(Function::SetWatch, &[vm.into(), kinds, action, stall_ms])
}

/// A VM with the program `faults` and its vectors.
fn faulty(kinds: u32, action: u32) -> Result<Vm, Verdict> {
    let vm = Vm::new(programs::faults(), 1)?;
    for table in TABLES {
        for vector in [0x200, 0x400] {
            for (i, byte) in programs::vector().iter().enumerate() {
                pages::put(vm.memory + table + vector + i as u64, *byte);
            }
        }
    }
    clean(vm.memory + TABLES[0], 0x2000);
    if kinds != 0 {
        let reply = set_watch(vm.id, kinds.into(), action.into(), 0);
        if !reply.ok() {
            return Err(Verdict::fail(format_args!("SET_WATCH: x0 = {:#x}", reply.x0)));
        }
    }
    Ok(vm)
}

/// What comes next: a store to the device, or an event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Seen {
    Store(u64, u64),
    Event(u32, u64),
}

fn next(vm: &mut Vm) -> Result<(Seen, Watch), Verdict> {
    let reason = vm.run(0)?;
    let event = Watch::read(&vm.report(0));
    match reason {
        exit::WATCH => Ok((Seen::Event(event.kind, event.pc - RAM), event)),
        exit::MMIO => {
            let mmio = gzvm_abi::run::Mmio::read(&vm.report(0));
            Ok((Seen::Store(mmio.phys_addr - programs::DEVICE, u64::from_le_bytes(mmio.data)), event))
        }
        other => Err(Verdict::fail(format_args!("exit {other:#x}"))),
    }
}

/// ESR_EL1 of the five exceptions of `faults`: undefined, BRK 7, address size, undefined, undefined at EL0.
const SYNDROMES: [u64; 5] = [0x0200_0000, 0xF200_0007, 0x9600_0000, 0x0200_0000, 0x0200_0000];

/// The five exceptions of `faults`: which of them make an event, by kind.
fn sees(vm: &mut Vm, kinds: u32) -> Outcome {
    let fgt = read_sysreg!("id_aa64mmfr0_el1") >> 56 & 0xF != 0;
    let five = [kind::UNDEFINED, kind::BREAKPOINT, kind::ABORT, kind::UNDEFINED, kind::USER_UNDEFINED];
    let mut count = 0;
    for (n, (kind, esr)) in five.into_iter().zip(SYNDROMES).enumerate() {
        let (mut seen, event) = next(vm)?;
        // The fourth follows its write of VBAR_EL1 at once: it may be missed where that does not trap.
        let missed = n == 3 && !fgt && matches!(seen, Seen::Store(..));
        if kinds & kind != 0 && !missed {
            count += 1;
            let at = pages::read(vm.memory + 0x800 + 8 * n as u64) - RAM;
            check_eq!(seen, Seen::Event(kind, at), "exception {n}");
            check_eq!(event.esr, esr, "syndrome {n}");
            check_eq!(event.count, count, "count");
            check_eq!(event.pstate & 0xF, if n == 4 { 0 } else { 5 }, "PSTATE {n}");
            if kind == kind::ABORT {
                check_eq!(event.far, 1 << 52, "address of the abort");
            }
            check_eq!((event.fp, event.lr), (0x2929, 0x3030), "x29, x30");
            (seen, _) = next(vm)?;
        }
        check_eq!(seen, Seen::Store(0x40, esr), "ESR_EL1 in the guest's handler {n}");
        check_eq!(next(vm)?.0, Seen::Store(0x10, n as u64 + 1), "behind exception {n}");
    }
    let events = hypercall::call(Function::Control, &[vm.id.into(), STATUS.into()]).values[1];
    check_eq!(events, count, "events by CONTROL");
    Ok(())
}

fn reports_and_goes_on() -> Outcome {
    let mut vm = faulty(ALL, action::REPORT)?;
    // Where each is: the program notes it before.
    sees(&mut vm, ALL)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn unwatched_guest_is_the_same() -> Outcome {
    let mut vm = faulty(0, 0)?;
    sees(&mut vm, 0)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn only_what_was_asked_for() -> Outcome {
    for kinds in [kind::UNDEFINED, kind::ABORT, kind::BREAKPOINT, kind::USER_UNDEFINED, kind::SERROR] {
        let mut vm = faulty(kinds, action::REPORT)?;
        sees(&mut vm, kinds)?;
        vm.destroy()?;
        pages::reset();
    }
    Ok(())
}

/// The host's debug registers come back.
fn host_breakpoints_survive() -> Outcome {
    use gzvm_guest_kit::write_sysreg;
    write_sysreg!("dbgbvr0_el1", 0x1234_5678);
    write_sysreg!("dbgbcr0_el1", 0x1E4);
    write_sysreg!("dbgwcr0_el1", 0x1FF8);
    let before = read_sysreg!("oslsr_el1");
    let mut vm = faulty(ALL, action::REPORT)?;
    sees(&mut vm, ALL)?;
    let values = [
        read_sysreg!("dbgbvr0_el1"),
        read_sysreg!("dbgbcr0_el1"),
        read_sysreg!("dbgwcr0_el1"),
        read_sysreg!("mdscr_el1"),
        read_sysreg!("oslsr_el1"),
    ];
    write_sysreg!("dbgbcr0_el1", 0);
    write_sysreg!("dbgwcr0_el1", 0);
    check_eq!(values, [0x1234_5678, 0x1E4, 0x1FF8, 0, before], "BVR0, BCR0, WCR0, MDSCR, OSLSR");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn pause_and_resume() -> Outcome {
    let mut vm = faulty(kind::UNDEFINED, action::PAUSE)?;
    let (seen, event) = next(&mut vm)?;
    check!(matches!(seen, Seen::Event(kind::UNDEFINED, _)), "{seen:?}");
    check_eq!(event.action, action::PAUSE, "action");
    for _ in 0..3 {
        check_eq!(vm.run_once(0), exit::IDLE, "RUN of a VM that is paused");
    }
    check!(hypercall::call(Function::Control, &[vm.id.into(), RESUME.into()]).ok(), "resume");
    check_eq!(next(&mut vm)?.0, Seen::Store(0x40, SYNDROMES[0]), "the guest's handler");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn reset_and_kill() -> Outcome {
    for (action, event, end) in [
        (action::RESET, system_event::RESET, state::RESET),
        (action::KILL, system_event::CRASH, state::CRASHED),
    ] {
        let mut vm = faulty(kind::BREAKPOINT, action)?;
        check_eq!(next(&mut vm)?.0, Seen::Store(0x40, SYNDROMES[0]), "what is not watched");
        check_eq!(next(&mut vm)?.0, Seen::Store(0x10, 1), "behind it");
        let (seen, _) = next(&mut vm)?;
        check!(matches!(seen, Seen::Event(kind::BREAKPOINT, _)), "{seen:?}");
        for _ in 0..2 {
            check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit after the event");
            check_eq!(SystemEvent::read(&vm.report(0)).type_, event, "type");
        }
        let reply = hypercall::call(Function::Control, &[vm.id.into(), STATUS.into()]);
        check_eq!((reply.values[0], reply.values[1]), (end.into(), 1), "state and events");
        vm.destroy()?;
        pages::reset();
    }
    Ok(())
}

/// A guest that crashes before it has set its vectors: they are at no memory, where it then faults for ever.
fn crash_before_vectors() -> Outcome {
    for (kinds, want) in [(kind::EXTERNAL, 0x200), (kind::UNDEFINED | kind::EXTERNAL, 0)] {
        let mut vm = Vm::new(programs::crashes(), 1)?;
        check!(set_watch(vm.id, kinds.into(), action::KILL.into(), 0).ok(), "SET_WATCH");
        check_eq!(vm.run(0)?, exit::WATCH, "exit");
        let event = Watch::read(&vm.report(0));
        let seen = if event.kind == kind::EXTERNAL { 0x200 } else { event.pc.wrapping_sub(RAM) };
        check_eq!(seen, want, "{event:x?}");
        check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit after the event");
        vm.destroy()?;
        pages::reset();
    }
    Ok(())
}

/// Interrupts masked, nothing that leads out: EL2's own timer brings the CPU back.
fn stall_is_noticed() -> Outcome {
    let mut vm = Vm::new(programs::spins(), 1)?;
    check!(set_watch(vm.id, kind::STALL.into(), action::REPORT.into(), 30).ok(), "SET_WATCH");
    for count in 1..=3 {
        check_eq!(vm.run(0)?, exit::WATCH, "exit");
        let event = Watch::read(&vm.report(0));
        check_eq!((event.kind, event.pc, event.count), (kind::STALL, RAM, count), "event");
    }
    vm.destroy()?;
    pages::reset();
    // One that sleeps and is woken gets somewhere.
    let mut vm = Vm::new(programs::sleeps(), 1)?;
    check!(set_watch(vm.id, kind::STALL.into(), action::KILL.into(), 2000).ok(), "SET_WATCH");
    loop {
        match vm.run(0)? {
            exit::IDLE | exit::MMIO => {}
            exit::SYSTEM_EVENT => break,
            other => fail!("exit {other:#x}"),
        }
    }
    check_eq!(SystemEvent::read(&vm.report(0)).type_, system_event::SHUTDOWN, "type");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// Endless recursion in the vector: all counted, few reported.
fn flood_is_cut() -> Outcome {
    let mut vm = Vm::new(programs::crashes(), 1)?;
    check!(set_watch(vm.id, kind::EXTERNAL.into(), action::REPORT.into(), 0).ok(), "SET_WATCH");
    let mut reports = 0;
    let mut last = 0;
    while last < 1000 {
        check_eq!(vm.run(0)?, exit::WATCH, "exit");
        last = Watch::read(&vm.report(0)).count;
        reports += 1;
        check!(reports < 200, "{reports} reports for {last} events");
    }
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn arguments() -> Outcome {
    let asked = set_watch(0, 0, 0, 0);
    check!(asked.ok() && asked.values[0] as u32 & ALL == ALL, "kinds {:#x}", asked.values[0]);
    let mut vm = Vm::new(programs::spins(), 1)?;
    let invalid = Some(Status::InvalidArgs);
    let unsupported = Some(Status::NotSupported);
    for kinds in [1 << 6, 1 << 11, 1 << 31, 1 << 32, u64::MAX] {
        check_eq!(set_watch(vm.id, kinds, 0, 0).status(), unsupported, "kinds {kinds:#x}");
    }
    for action in [4, 1 << 31, 1 << 32, u64::MAX] {
        check_eq!(set_watch(vm.id, 1, action, 0).status(), invalid, "action {action:#x}");
    }
    for (kinds, ms) in [(kind::STALL, 0), (kind::STALL, 3_600_001), (kind::STALL, u64::MAX), (kind::ABORT, 1)]
    {
        check_eq!(set_watch(vm.id, kinds.into(), 0, ms).status(), invalid, "{ms} ms");
    }
    check_eq!(set_watch(0xFFFF, 1, 0, 0).status(), invalid, "no such VM");
    check!(set_watch(vm.id, kind::STALL.into(), 0, 20).ok(), "a good one");
    vm.run(0)?;
    check_eq!(set_watch(vm.id, 0, 0, 0).status(), invalid, "after the first RUN");
    vm.destroy()?;
    pages::reset();
    Ok(())
}
