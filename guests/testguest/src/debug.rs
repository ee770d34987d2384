// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hardware breakpoints and watchpoints of the guest's own.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{
    MAX_CPUS, arch, cases, check, check_eq, exception, fail, read_sysreg, skip, user, write_sysreg,
};

use crate::sysregs::{encoding, execute, execute_with, mrs};
use crate::util::{Below, below, everywhere, exit_of_kind, test_device};

pub const CASES: &[Case] = cases!["debug":
    as_many_as_the_id_register_says, registers_hold_what_is_written, breakpoint_at_el0, watchpoint_at_el0,
    off_without_enable, watchpoints_stay_with_their_cpu,
];

const NOP: u32 = 0xD503_201F;
/// MDSCR_EL1: MDE, KDE.
const MDE: u64 = 1 << 15;
const KDE: u64 = 1 << 13;
/// DBGBCR: enabled, EL0, all four bytes.
const BREAK_EL0: u64 = 1 | 0b10 << 1 | 0xF << 5;
/// DBGWCR: enabled, EL0, loads and stores, all bytes of a double word.
const WATCH_EL0: u64 = 1 | 0b10 << 1 | 0b11 << 3 | 0xFF << 5;
/// The same for EL1.
const WATCH_EL1: u64 = 1 | 0b01 << 1 | 0b11 << 3 | 0xFF << 5;
const BREAKPOINT_BELOW: u64 = 0x30;
const WATCHPOINT_BELOW: u64 = 0x34;
const WATCHPOINT_HERE: u32 = 0x35;

fn counts() -> (u32, u32) {
    let dfr0 = read_sysreg!("id_aa64dfr0_el1");
    ((dfr0 >> 12 & 0xF) as u32 + 1, (dfr0 >> 20 & 0xF) as u32 + 1)
}

/// Debug exceptions by `mdscr` while `f` runs, with the OS lock open; all off again afterwards.
fn enabled<T>(mdscr: u64, f: impl FnOnce() -> T) -> T {
    write_sysreg!("S2_0_C1_C0_4", 0); // OSLAR_EL1
    write_sysreg!("mdscr_el1", mdscr);
    arch::isb();
    let result = f();
    write_sysreg!("mdscr_el1", 0);
    write_sysreg!("S2_0_C0_C0_5", 0); // DBGBCR0_EL1
    write_sysreg!("S2_0_C0_C0_7", 0); // DBGWCR0_EL1
    arch::isb();
    result
}

fn as_many_as_the_id_register_says() -> Outcome {
    let (breakpoints, watchpoints) = counts();
    check!(breakpoints >= 2 && watchpoints >= 2, "{breakpoints} breakpoints, {watchpoints} watchpoints");
    if below() != Below::Gzvm {
        skip!("what is beyond them is undefined, but not everywhere");
    }
    for n in 0..16 {
        for (op2, count) in [(4, breakpoints), (5, breakpoints), (6, watchpoints), (7, watchpoints)] {
            let there = execute(mrs(encoding(2, 0, 0, n, op2))).is_ok();
            check_eq!(there, n < count, "register {n} of op2 {op2}");
        }
    }
    Ok(())
}

fn registers_hold_what_is_written() -> Outcome {
    let (breakpoints, watchpoints) = counts();
    let address = 0x0000_1234_5678_9AB8;
    for n in 0..breakpoints.max(watchpoints) {
        let mut all = [(4, address), (6, address), (5, 0), (7, 0)];
        all.iter_mut().for_each(|(_, v)| *v += if *v == 0 { 0 } else { u64::from(n) * 16 });
        for (op2, value) in
            all.into_iter().filter(|(op2, _)| n < if *op2 < 6 { breakpoints } else { watchpoints })
        {
            let e = encoding(2, 0, 0, n, op2);
            check!(execute_with(mrs(e) & !(1 << 21), value).is_ok(), "write of register {n} of op2 {op2}");
            check_eq!(execute(mrs(e)), Ok(value), "register {n} of op2 {op2}");
        }
    }
    Ok(())
}

fn breakpoint_at_el0() -> Outcome {
    write_sysreg!("S2_0_C0_C0_4", user::address() + 8);
    write_sysreg!("S2_0_C0_C0_5", BREAK_EL0);
    const ADD_X0_1: u32 = 0x9100_0400;
    let (esr, x0) = enabled(MDE, || {
        // It survives exits.
        (0..20).for_each(exit_of_kind);
        if let Some(device) = test_device() {
            device.read32(0);
        }
        user::run(&[ADD_X0_1, ADD_X0_1, ADD_X0_1], 0)
    });
    check_eq!(esr >> 26, BREAKPOINT_BELOW, "class");
    check_eq!(x0, 2, "instructions before it");
    Ok(())
}

const LDR_X0_X0: u32 = 0xF940_0000;

fn watchpoint_at_el0() -> Outcome {
    // The code's own page is what EL0 can read.
    let watched = user::address() + 64;
    write_sysreg!("S2_0_C0_C0_6", watched);
    write_sysreg!("S2_0_C0_C0_7", WATCH_EL0);
    let (esr, far) = enabled(MDE, || {
        let (esr, _) = user::run(&[LDR_X0_X0], watched);
        (esr, read_sysreg!("far_el1"))
    });
    check_eq!(esr >> 26, WATCHPOINT_BELOW, "class");
    check_eq!(far, watched, "FAR");
    write_sysreg!("S2_0_C0_C0_7", WATCH_EL0);
    let (esr, _) = enabled(MDE, || user::run(&[LDR_X0_X0], watched + 8));
    check_eq!(esr >> 26, u64::from(exception::ec::SVC), "class of a load beside it");
    Ok(())
}

/// Not with MDE clear, and not while the OS lock is set.
fn off_without_enable() -> Outcome {
    const SVC: u64 = exception::ec::SVC as u64;
    write_sysreg!("S2_0_C0_C0_4", user::address());
    write_sysreg!("S2_0_C0_C0_5", BREAK_EL0);
    let (esr, _) = enabled(0, || user::run(&[NOP], 0));
    check_eq!(esr >> 26, SVC, "class without MDE");
    write_sysreg!("S2_0_C0_C0_5", BREAK_EL0);
    let (locked, open) = enabled(MDE, || {
        write_sysreg!("S2_0_C1_C0_4", 1);
        arch::isb();
        let locked = user::run(&[NOP], 0).0;
        write_sysreg!("S2_0_C1_C0_4", 0);
        arch::isb();
        (locked, user::run(&[NOP], 0).0)
    });
    check_eq!(locked >> 26, SVC, "class with the OS lock");
    check_eq!(open >> 26, BREAKPOINT_BELOW, "class without it");
    Ok(())
}

static WATCHED: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// Each CPU watches a variable of its own, and nothing but that.
fn watchpoints_stay_with_their_cpu() -> Outcome {
    everywhere(|| {
        let cpu = arch::cpu_index();
        let count = gzvm_guest_kit::smp::count();
        let touch = |n: usize| exception::expect(|| WATCHED[n].store(1, SeqCst));
        write_sysreg!("S2_0_C0_C0_6", WATCHED[cpu].as_ptr() as u64);
        write_sysreg!("S2_0_C0_C0_7", WATCH_EL1);
        enabled(MDE | KDE, || {
            // PSTATE.D masks debug exceptions of the level that takes them.
            // SAFETY: nothing but the watchpoint is enabled.
            unsafe { core::arch::asm!("msr daifclr, #8", options(nostack)) };
            let outcome = (0..200).try_for_each(|round| {
                exit_of_kind(round);
                for n in 0..count {
                    match touch(n) {
                        Ok(()) if n == cpu => fail!("round {round}: CPU {cpu} missed its watchpoint"),
                        Err(e) if n != cpu => fail!("round {round}: CPU {cpu} at {n}'s: {e}"),
                        Err(e) => check_eq!(e.class(), WATCHPOINT_HERE, "class"),
                        Ok(()) => {}
                    }
                }
                Ok(())
            });
            // SAFETY: masks them again.
            unsafe { core::arch::asm!("msr daifset, #8", options(nostack)) };
            outcome
        })
    })
}
