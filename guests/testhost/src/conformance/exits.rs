// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The exit table (ABI 3.5), each exit provoked by a guest, and what must be in the shared page.
//! Payload words are read by offset, as the table has them.

use core::sync::atomic::Ordering::SeqCst;

use gzvm_abi::hypercall::Function;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{arch, cases, check, check_eq, gic, machine, timer};

use super::{leaves_nothing, programs, start_second, stop_second};
use crate::guest_runs::{LAST_EXIT, power_off, store};
use crate::pages;
use crate::programs::RAM;
use crate::vm::{RAM_PAGES, Vm};

pub const CASES: &[Case] = cases!["exit":
    mmio, hypercall_relinquish, hypercall_relinquish_refused, hypercall_ptp, hypercall_others_stay, irq,
    exception_page_fault, fail_entry, system_event_shutdown, system_event_reset, system_event_reset2, idle,
    idle_with_timer, idle_of_a_vcpu_that_is_off, ipi, watch, never_unknown_debug_internal_error_shutdown_gz,
];

const MMIO: u32 = 0x9292_0001;
const HYPERCALL: u32 = 0x9292_0002;
const IRQ: u32 = 0x9292_0003;
const EXCEPTION: u32 = 0x9292_0004;
const FAIL_ENTRY: u32 = 0x9292_0006;
const SYSTEM_EVENT: u32 = 0x9292_0008;
const IDLE: u32 = 0x9292_000B;
const IPI: u32 = 0x9292_000D;
const WATCH: u32 = 0x9292_0041;

fn word(vm: &Vm, offset: u64) -> u64 {
    pages::get(vm.shared[0] + offset)
}

fn half(vm: &Vm, offset: u64) -> u32 {
    pages::get(vm.shared[0] + offset)
}

/// All of the payload from `offset` on is zero.
fn zero_from(vm: &Vm, offset: u64, what: &str) -> Outcome {
    for at in (offset..264).step_by(4) {
        check_eq!(half(vm, at), 0, "{what}: bytes at {at}");
    }
    Ok(())
}

/// RUN until an exit that is neither the driver's page fault nor the host's interrupt.
fn step(vm: &Vm, vcpu: u16) -> Result<u32, Verdict> {
    let start = timer::now();
    loop {
        let reason = vm.run_once(vcpu);
        match reason {
            EXCEPTION => {
                let gpa: u64 = pages::get(vm.shared[vcpu as usize] + 16);
                check!(vm.map(gpa & !0xFFF).ok(), "MAP_GUEST of {gpa:#x}");
            }
            IRQ => {
                arch::irq_enable();
                arch::isb();
                arch::irq_disable();
            }
            _ => return Ok(reason),
        }
        check!(timer::now() - start < 10 * timer::frequency(), "no exit but {reason:#x}");
    }
}

fn expect(vm: &Vm, vcpu: u16, reason: u32, what: &str) -> Outcome {
    let exit = step(vm, vcpu)?;
    check_eq!(exit, reason, "{what}: exit");
    check_eq!(pages::get::<u32>(vm.shared[vcpu as usize]), reason, "{what}: exit_reason in the page");
    Ok(())
}

/// MMIO: address @8, data @16, size @24, register @32, write @36.
fn mmio() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::accesses(), 1)?;
        let access = |offset: u64, size: u64, register: u32, write: u32, what: &str| -> Outcome {
            expect(&vm, 0, MMIO, what)?;
            check_eq!(word(&vm, 8), 0x9_0000 + offset, "{what}: phys_addr @8");
            check_eq!(word(&vm, 24), size, "{what}: size @24");
            check_eq!(half(&vm, 32), register, "{what}: reg_nr @32");
            check_eq!(half(&vm, 36), write, "{what}: is_write @36, and padding");
            zero_from(&vm, 40, what)
        };
        const DATA: u64 = 0x8877_6655_4433_2211;
        for (offset, size) in [(0x11, 1), (0x12, 2), (0x14, 4), (0x18, 8)] {
            access(offset, size, 2, 1, "store")?;
            let mask = u64::MAX >> (64 - 8 * size);
            check_eq!(word(&vm, 16), DATA & mask, "data @16 of a store of {size}");
        }
        for (offset, size, value) in [
            (0x21, 1, 0x88),
            (0x22, 2, 0xFFFF_FFFF_FFFF_9988),
            (0x24, 4, 0xFFFF_FFFF_BBAA_9988),
            (0x28, 8, 0xFFEE_DDCC_BBAA_9988u64),
        ] {
            access(offset, size, 3, 0, "load")?;
            check_eq!(word(&vm, 16), 0, "data @16 of a load of {size}");
            pages::write(vm.shared[0] + 16, 0xFFEE_DDCC_BBAA_9988);
            access(0x40, 8, 3, 1, "store of what was loaded")?;
            check_eq!(word(&vm, 16), value, "register after a load of {size}");
        }
        vm.destroy().map(drop)
    })
}

/// HYPERCALL: args[8] @8. The page has left the VM; the guest's x0 is the hypervisor's business.
fn hypercall_relinquish() -> Outcome {
    leaves_nothing(|| {
        let memory = pages::take(512, 2 << 20);
        pages::write(memory + 0x1000, 0x1111);
        let mut vm = Vm::with_memory(crate::programs::relinquishes(), 1, memory)?;
        store(&mut vm, 0x10, 0x1111, "word before")?;
        expect(&vm, 0, HYPERCALL, "MEM_RELINQUISH")?;
        check_eq!((word(&vm, 8), word(&vm, 16)), (0xC600_0009, RAM + 0x1000), "args[0], args[1]");
        zero_from(&vm, 24, "MEM_RELINQUISH")?;
        // What user space writes there does not come to the guest.
        pages::write(vm.shared[0] + 8, 0x5555);
        store(&mut vm, 0x18, 0, "answer")?;
        let before = vm.faults;
        let other = pages::take(1, 4096);
        pages::write(other, 0x3333);
        crate::vm::clean(other, 4096);
        check_eq!(vm.run_once(0), EXCEPTION, "exit of the next touch");
        check_eq!(word(&vm, 16), RAM + 0x1000, "fault_gpa @16");
        let mapped = vm.call(Function::MapGuest, &[0, other >> 12, (RAM + 0x1000) >> 12, 1]);
        check!(mapped.ok(), "MAP_GUEST of another page: x0 = {:#x}", mapped.x0);
        store(&mut vm, 0x20, 0x3333, "word of the page that is there now")?;
        check_eq!(vm.faults, before, "further faults");
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// An address that is no page's, or not mapped memory: -3, and the host hears nothing.
fn hypercall_relinquish_refused() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::relinquishes_wrongly(), 1)?;
        store(&mut vm, 0x10, -3i64 as u64, "answer for an unaligned address")?;
        store(&mut vm, 0x18, -3i64 as u64, "answer for a device")?;
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// args[1] = 0 virtual, 1 physical counter; args[0..3] come back as the guest's x0..x3.
fn hypercall_ptp() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::asks_times(), 1)?;
        for counter in [0, 1u64] {
            expect(&vm, 0, HYPERCALL, "PTP")?;
            check_eq!((word(&vm, 8), word(&vm, 16)), (0x8600_0001, counter), "args[0], args[1]");
            zero_from(&vm, 24, "PTP")?;
            for n in 0..8 {
                pages::write(vm.shared[0] + 8 + 8 * n, (counter + 1) << 60 | (0x100 + n));
            }
            for (n, offset) in [0x10, 0x18, 0x20, 0x28].into_iter().enumerate() {
                store(&mut vm, offset, (counter + 1) << 60 | (0x100 + n as u64), "x0 to x3 of PTP")?;
            }
        }
        store(&mut vm, 0x30, u64::MAX, "PTP of counter 2")?;
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// crosvm has no use for other calls: they are answered at EL2, and never exit.
fn hypercall_others_stay() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(crate::programs::calls_unknown(), 1)?;
        store(&mut vm, 0x10, u64::MAX, "an unknown call")?;
        store(&mut vm, 0x18, u64::MAX, "the host's CREATE_VM from a guest")?;
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// A physical interrupt stays pending for the host, which takes it as soon as it is back.
fn irq() -> Outcome {
    use core::sync::atomic::AtomicU32;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    leaves_nothing(|| {
        let vm = Vm::new(crate::programs::spins(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        gic::set_handler(|intid| {
            if intid == machine::get().timer_intid {
                timer::disarm();
                TAKEN.fetch_add(1, SeqCst);
            }
        });
        gic::enable(machine::get().timer_intid);
        TAKEN.store(0, SeqCst);
        for round in 0..10 {
            timer::arm_at(timer::now() + timer::frequency() / 1000);
            let mut runs = 0;
            while TAKEN.load(SeqCst) == round {
                check_eq!(vm.run_once(0), IRQ, "round {round}: exit");
                check_eq!(half(&vm, 0), IRQ, "round {round}: exit_reason in the page");
                arch::irq_enable();
                arch::isb();
                arch::irq_disable();
                runs += 1;
                check!(runs < 1000, "round {round}: the interrupt is not pending after RUN");
            }
        }
        vm.destroy().map(drop)
    })
}

/// EXCEPTION with a page fault: exception @8 = 1, fault_gpa @16, all else zero. Unanswered, it comes again.
fn exception_page_fault() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(crate::programs::reads_all(), 1)?;
        for round in 0..2 {
            // Nothing of an earlier exit may shine through.
            for at in (8..264).step_by(8) {
                pages::write(vm.shared[0] + at, u64::MAX);
            }
            check_eq!(vm.run_once(0), EXCEPTION, "exit {round}");
            check_eq!(half(&vm, 0), EXCEPTION, "exit_reason in the page");
            check_eq!((half(&vm, 8), half(&vm, 12)), (1, 0), "exception @8, error_code @12");
            check_eq!(word(&vm, 16), RAM, "fault_gpa @16 of the first instruction");
            zero_from(&vm, 24, "reserved")?;
        }
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        for page in 1..RAM_PAGES {
            check_eq!(vm.run_once(0), EXCEPTION, "exit at page {page}");
            check_eq!(word(&vm, 16), RAM + page * 4096 + 0xFF8, "fault_gpa: the very address");
            check!(vm.map(RAM + page * 4096).ok(), "MAP_GUEST of page {page}");
        }
        vm.run_to_store(0)?;
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// FAIL_ENTRY: reason @8, CPU @16. Of a vCPU that is not there only x1 tells.
fn fail_entry() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(crate::programs::counts(), 1)?;
        check_eq!(call(Function::Run, &[vm.tuple(1)]).values[0], FAIL_ENTRY.into(), "RUN of an absent vCPU");
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        LAST_EXIT.store(0, SeqCst);
        start_second(vm.tuple(0))?;
        let runs = timer::wait_ms(5000, || {
            crate::vm::clean(vm.memory + 0x800, 8);
            pages::read(vm.memory + 0x800) > 0
        });
        // Condemned while the vCPU runs: it leaves, and nothing enters any more.
        let dying = call(Function::DestroyVm, &[vm.id.into(), 1]);
        let told = timer::wait_ms(5000, || LAST_EXIT.load(SeqCst) == FAIL_ENTRY);
        stop_second()?;
        check!(runs, "the guest does not run");
        check_eq!(dying.x0 as i32, -33, "DESTROY_VM meanwhile");
        check!(told, "last exit of RUN in a condemned VM: {:#x}", LAST_EXIT.load(SeqCst));
        check_eq!(half(&vm, 0), FAIL_ENTRY, "exit_reason in the page");
        check_eq!((word(&vm, 8), word(&vm, 16)), (3, 1), "reason @8 (dying), CPU @16");
        zero_from(&vm, 24, "FAIL_ENTRY")?;
        vm.destroy().map(drop)
    })
}

/// SYSTEM_EVENT: type @8, ndata @12, data @16.
fn system_event_shutdown() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(crate::programs::reads_one(), 1)?;
        vm.run_to_store(0)?;
        expect(&vm, 0, SYSTEM_EVENT, "SYSTEM_OFF")?;
        check_eq!((half(&vm, 8), half(&vm, 12)), (1, 0), "type @8, ndata @12");
        zero_from(&vm, 16, "SYSTEM_OFF")?;
        vm.destroy().map(drop)
    })
}

fn system_event_reset() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(crate::programs::asks_time(), 1)?;
        expect(&vm, 0, HYPERCALL, "PTP")?;
        for _ in 0..4 {
            expect(&vm, 0, MMIO, "result")?;
        }
        expect(&vm, 0, SYSTEM_EVENT, "SYSTEM_RESET")?;
        check_eq!((half(&vm, 8), half(&vm, 12)), (2, 0), "type @8, ndata @12");
        zero_from(&vm, 16, "SYSTEM_RESET")?;
        vm.destroy().map(drop)
    })
}

/// The type and cookie of SYSTEM_RESET2 go along.
fn system_event_reset2() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::resets_with_cookie(), 1)?;
        expect(&vm, 0, SYSTEM_EVENT, "SYSTEM_RESET2")?;
        check_eq!((half(&vm, 8), half(&vm, 12)), (2, 2), "type @8, ndata @12");
        check_eq!((word(&vm, 16), word(&vm, 24)), (0x8000_0005, 0x1122_0000_0000_7788), "data: type, cookie");
        zero_from(&vm, 32, "SYSTEM_RESET2")?;
        vm.destroy().map(drop)
    })
}

/// What the driver reads before it sleeps: vtimer_delay @144, vtimer_migrate @152 of the second page.
fn sleeps_for(vm: &Vm, vcpu: u16) -> Result<u64, Verdict> {
    let state = vm.shared[vcpu as usize] + 4096;
    let (delay, migrate): (u64, u32) = (pages::get(state + 144), pages::get(state + 152));
    check!(migrate != 0 && delay != 0, "delay {delay}, migrate {migrate}: the driver would not sleep");
    check!(delay <= 30 * timer::frequency(), "a delay of {delay} ticks overflows the driver's conversion");
    Ok(delay)
}

/// WFI without a timer: a long sleep, not a busy loop.
fn idle() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::waits(), 1)?;
        for round in 0..3 {
            expect(&vm, 0, IDLE, "WFI")?;
            let delay = sleeps_for(&vm, 0)?;
            check!(delay >= timer::frequency() / 100, "round {round}: a delay of {delay} ticks only");
        }
        vm.destroy().map(drop)
    })
}

/// WFI with the timer set: about as long as it has to go, and the hypervisor finds it expired by itself.
fn idle_with_timer() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(crate::programs::sleeps(), 1)?;
        let mut sleeps = 0;
        let reason = loop {
            let reason = step(&vm, 0)?;
            if reason != IDLE {
                break reason;
            }
            // The guest asks for 50 ms.
            let delay = sleeps_for(&vm, 0)?;
            check!(delay <= timer::frequency() / 20, "a delay of {delay} ticks for a timer of 50 ms");
            let end = timer::now() + delay;
            while timer::now() < end {
                arch::cpu_relax();
            }
            sleeps += 1;
            check!(sleeps < 100, "the guest does not wake");
        };
        check_eq!(reason, MMIO, "exit");
        check!(sleeps > 0, "no IDLE exit");
        check_eq!((word(&vm, 8), word(&vm, 16)), (0x9_0010, 27), "INTID of the timer");
        store(&mut vm, 0x18, 1, "not early")?;
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// All vCPUs are run from the start; those that are off park until CPU_ON, also with an interrupt for them.
fn idle_of_a_vcpu_that_is_off() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(crate::programs::spins(), 2)?;
        let pc = call(Function::SetOneReg, &[vm.tuple(1), 0x6030_0000_0010_0040, RAM]);
        check!(pc.ok(), "SET_ONE_REG of a vCPU that is off");
        let ppi = call(Function::IrqLine, &[vm.tuple(1), 2 << 24 | 23, 1]);
        check!(ppi.ok(), "IRQ_LINE for a vCPU that is off: x0 = {:#x}", ppi.x0);
        for _ in 0..3 {
            expect(&vm, 1, IDLE, "RUN of a vCPU that is off")?;
            sleeps_for(&vm, 1)?;
        }
        vm.destroy().map(drop)
    })
}

/// The receiver of an SGI sleeps: the sender exits, so that the driver wakes it.
fn ipi() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::sends_sgi(), 2)?;
        expect(&vm, 1, IDLE, "RUN of vCPU 1 that is off")?;
        // CPU_ON of a vCPU that parks wakes it, too.
        expect(&vm, 0, IPI, "CPU_ON")?;
        store(&mut vm, 0x10, 0, "CPU_ON's answer")?;
        for _ in 0..2 {
            expect(&vm, 1, IDLE, "WFI of vCPU 1")?;
        }
        expect(&vm, 0, IPI, "SGI to a sleeper")?;
        // Ours: who is to be woken. The public driver does not look, and wakes all.
        check_eq!(word(&vm, 8), 1 << 1, "vCPUs to wake @8");
        store(&mut vm, 0x18, 0, "the sender goes on")?;
        expect(&vm, 1, MMIO, "the receiver")?;
        check_eq!(pages::read(vm.shared[1] + 16), 3, "INTID it stored");
        vm.destroy().map(drop)
    })
}

/// Ours: kind @8, action @12, count @16, pc @24, pstate @32, esr @40, far @48, sp @56, x29 @64, x30 @72. Killed,
/// the VM is over.
fn watch() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::breaks(), 1)?;
        let set = call(Function::SetWatch, &[vm.id.into(), 1 << 3, 3, 0]);
        check!(set.ok(), "SET_WATCH: x0 = {:#x}", set.x0);
        expect(&vm, 0, WATCH, "BRK")?;
        check_eq!((half(&vm, 8), half(&vm, 12), word(&vm, 16)), (1 << 3, 3, 1), "kind, action, count");
        check_eq!((word(&vm, 24), word(&vm, 32) & 0xF), (RAM + 16, 5), "pc, mode");
        check_eq!((word(&vm, 40), word(&vm, 48)), (0xF200_0009, 0), "esr, far");
        check_eq!((word(&vm, 56), word(&vm, 64), word(&vm, 72)), (0x5000, 0x2929, 0x3030), "sp, x29, x30");
        zero_from(&vm, 80, "WATCH")?;
        for _ in 0..2 {
            expect(&vm, 0, SYSTEM_EVENT, "after the event")?;
            check_eq!(half(&vm, 8), 3, "type: crash");
        }
        vm.destroy().map(drop)
    })
}

/// Exits that crosvm has no good answer to. A guest's own exceptions are its own.
fn never_unknown_debug_internal_error_shutdown_gz() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::own_exceptions(), 1)?;
        expect(&vm, 0, MMIO, "after BRK, UDF, HVC #1, SMC")?;
        check_eq!((word(&vm, 8), word(&vm, 16)), (0x9_0010, 3), "exceptions that the guest took");
        expect(&vm, 0, MMIO, "SMC's answer")?;
        check_eq!((word(&vm, 8), word(&vm, 16)), (0x9_0018, u64::MAX), "SMC's answer");
        expect(&vm, 0, SYSTEM_EVENT, "SYSTEM_OFF")?;
        vm.destroy().map(drop)
    })
}
