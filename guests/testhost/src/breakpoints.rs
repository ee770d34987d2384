// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Breakpoints and watchpoints of the host beside those of guests that use theirs.

use core::arch::global_asm;

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{cases, check_eq, read_sysreg, write_sysreg};

use crate::guest_runs::store;
use crate::pages;
use crate::programs::programs;
use crate::vm::Vm;
use gzvm_abi::reg;

pub const CASES: &[Case] = cases!["debug": registers_of_host_and_guests_stay_apart];

programs! {
    /// Puts x0 into DBGBVR0 and DBGWVR0, enables debug exceptions, and tells both, for ever.
    uses_breakpoints = (prog_breakpoints, prog_breakpoints_end);
}

fn registers_of_host_and_guests_stay_apart() -> Outcome {
    const HOST: u64 = 0x1234_5678;
    const GUESTS: [u64; 2] = [0x8000_1000, 0x8000_2000];
    let registers = || {
        [
            read_sysreg!("dbgbvr0_el1"),
            read_sysreg!("dbgwvr0_el1"),
            read_sysreg!("mdscr_el1"),
            read_sysreg!("oslsr_el1"),
        ]
    };
    write_sysreg!("dbgbvr0_el1", HOST);
    write_sysreg!("dbgwvr0_el1", HOST);
    let before = registers();
    check_eq!((before[0], before[1]), (HOST, HOST), "DBGBVR0 and DBGWVR0 of the host");
    let mut vms = [Vm::new(uses_breakpoints(), 1)?, Vm::new(uses_breakpoints(), 1)?];
    for (vm, value) in vms.iter_mut().zip(GUESTS) {
        vm.set_reg(0, reg::X0, value)?;
    }
    for _ in 0..3 {
        for (vm, value) in vms.iter_mut().zip(GUESTS) {
            for (device, name) in [(0x10, "DBGBVR0"), (0x18, "DBGWVR0")] {
                store(vm, device, value, name)?;
                check_eq!(registers(), before, "DBGBVR0, DBGWVR0, MDSCR, OSLSR of the host");
            }
        }
    }
    for vm in vms {
        vm.destroy()?;
    }
    pages::reset();
    Ok(())
}

global_asm!(
    r#"
    .section .text.programs, "ax"
    .global prog_breakpoints, prog_breakpoints_end
    .balign 16
prog_breakpoints:
    msr     oslar_el1, xzr
    msr     dbgbvr0_el1, x0
    msr     dbgwvr0_el1, x0
    mov     x2, #0x8000             // MDSCR_EL1.MDE
    msr     mdscr_el1, x2
    isb
    mov     x1, #0x90000
1:  mrs     x2, dbgbvr0_el1
    str     x2, [x1, #0x10]
    mrs     x2, dbgwvr0_el1
    str     x2, [x1, #0x18]
    b       1b
prog_breakpoints_end:
    "#
);
