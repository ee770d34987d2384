// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The register file survives exits and preemption: general, FP/SIMD and system registers.

use core::arch::global_asm;

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{arch, cases, check, check_eq, gic, machine, read_sysreg, skip, timer, write_sysreg};

use crate::util::{everywhere, exit_of_kind, test_device};

pub const CASES: &[Case] = cases!["registers":
    general_survive_hvc, general_survive_gic_access, general_survive_sgi_write,
    general_survive_user_mmio, general_survive_preemption, fp_survives, system_registers_survive,
    counter_never_goes_back,
    pointer_authentication_keys_survive,
];

/// Long enough for some host ticks.
const PREEMPTION_MS: u64 = 200;

unsafe extern "C" {
    safe fn gpr_hvc(address: u64, pattern: u64) -> u64;
    safe fn gpr_smc(address: u64, pattern: u64) -> u64;
    fn gpr_load(address: u64, pattern: u64) -> u64;
    fn gpr_store(address: u64, pattern: u64) -> u64;
    safe fn gpr_sgi(address: u64, pattern: u64) -> u64;
    safe fn gpr_loop(address: u64, pattern: u64) -> u64;
    pub(crate) safe fn fp_fill(pattern: u64);
    pub(crate) safe fn fp_check(pattern: u64) -> u64;
}

const PATTERN: u64 = 0xA5C3_0000_1234_0000;

fn general_survive_hvc() -> Outcome {
    for i in 0..100 {
        let pattern = PATTERN.rotate_left(i);
        let changed = match machine::get().conduit {
            Conduit::Hvc => gpr_hvc(0, pattern),
            Conduit::Smc => gpr_smc(0, pattern),
        };
        check_eq!(changed, 0, "x4..x30 changed by PSCI_VERSION, round {i}");
    }
    Ok(())
}

fn general_survive_gic_access() -> Outcome {
    let address = gic::distributor().base() + gic::gicd::TYPER as u64;
    for i in 0..100 {
        let pattern = PATTERN.rotate_left(i);
        // SAFETY: a read-only register of the distributor.
        check_eq!(unsafe { gpr_load(address, pattern) }, 0, "x4..x30 changed by a load, round {i}");
        // SAFETY: as above; the store is ignored.
        check_eq!(unsafe { gpr_store(address, pattern) }, 0, "x4..x30 changed by a store, round {i}");
    }
    Ok(())
}

fn general_survive_sgi_write() -> Outcome {
    for i in 0..100 {
        check_eq!(gpr_sgi(0, PATTERN.rotate_left(i)), 0, "x4..x30 changed, round {i}");
    }
    Ok(())
}

fn general_survive_user_mmio() -> Outcome {
    let Some(device) = test_device() else { skip!("no test device") };
    for i in 0..100 {
        // SAFETY: the test device has no side effects.
        let changed = unsafe { gpr_load(device.base(), PATTERN.rotate_left(i)) };
        check_eq!(changed, 0, "x4..x30 changed, round {i}");
    }
    Ok(())
}

fn general_survive_preemption() -> Outcome {
    everywhere(|| {
        let end = timer::now() + timer::frequency() / 1000 * PREEMPTION_MS;
        let pattern = PATTERN.rotate_right(8 * arch::cpu_index() as u32);
        while timer::now() < end {
            check_eq!(gpr_loop(100_000, pattern), 0, "x4..x30 changed on CPU {}", arch::cpu_index());
        }
        Ok(())
    })
}

fn fp_survives() -> Outcome {
    everywhere(|| {
        let cpu = arch::cpu_index() as u64;
        let end = timer::now() + timer::frequency() / 1000 * PREEMPTION_MS;
        let mut round = 0;
        // A masked interrupt wakes from WFI only if it is enabled.
        gic::enable(machine::get().timer_intid);
        while timer::now() < end {
            let pattern = (cpu + 1) * 0x0101_0101_0101_0000 + round;
            // Rounding mode and cumulative flags: bits every CPU has.
            write_sysreg!("S3_3_C4_C4_0", (cpu & 3) << 22); // FPCR
            write_sysreg!("S3_3_C4_C4_1", (round + cpu) & 0x1F); // FPSR
            fp_fill(pattern);
            for i in 0..40 {
                exit_of_kind(i);
            }
            if round % 4 == 0 {
                timer::arm_in(20_000);
                arch::wfi();
                timer::disarm();
            }
            check_eq!(fp_check(pattern), 0, "V registers changed on CPU {cpu}, round {round}");
            check_eq!(read_sysreg!("S3_3_C4_C4_0"), (cpu & 3) << 22, "FPCR on CPU {cpu}");
            check_eq!(read_sysreg!("S3_3_C4_C4_1"), (round + cpu) & 0x1F, "FPSR on CPU {cpu}");
            round += 1;
        }
        Ok(())
    })
}

fn system_registers_survive() -> Outcome {
    everywhere(|| {
        let pattern = 0x1111_2222_3333_4440 * (arch::cpu_index() as u64 + 1);
        macro_rules! with {
            ($(($reg:literal, $value:expr)),* $(,)?) => {
                $(write_sysreg!($reg, $value);)*
                arch::isb();
                let end = timer::now() + timer::frequency() / 1000 * PREEMPTION_MS;
                let mut i = 0;
                while timer::now() < end {
                    exit_of_kind(i);
                    i += 1;
                    $(check_eq!(read_sysreg!($reg), $value, "{} on CPU {}", $reg, arch::cpu_index());)*
                }
            };
        }
        with![
            ("tpidr_el0", pattern),
            ("tpidrro_el0", pattern ^ 0xFF),
            ("sp_el0", pattern & !15),
            ("contextidr_el1", pattern & 0xFFFF_FFFF),
            ("far_el1", pattern ^ 0xF0),
            ("esr_el1", pattern & 0xFFFF),
            ("afsr0_el1", 0),
            ("csselr_el1", 0),
            ("mair_el1", 0x04FF | (arch::cpu_index() as u64) << 56),
            ("cntv_cval_el0", pattern),
            ("cntkctl_el1", 3),
            ("elr_el1", pattern & !3),
            ("spsr_el1", 0x3C5),
            ("ttbr1_el1", 0x1000 * (arch::cpu_index() as u64 + 1)),
        ];
        write_sysreg!("mair_el1", 0x04FF);
        arch::isb();
        Ok(())
    })
}

fn pointer_authentication_keys_survive() -> Outcome {
    // APA, API, GPA, GPI; APA3 and GPA3 in the next register.
    let isar1 = read_sysreg!("S3_0_C0_C6_1");
    let isar2 = read_sysreg!("S3_0_C0_C6_2");
    if isar1 & 0xFF00_0FF0 == 0 && isar2 & 0xFF00 == 0 {
        skip!("no pointer authentication");
    }
    everywhere(|| {
        macro_rules! keys {
            ($(($i:literal, $reg:literal)),* $(,)?) => {
                let pattern = 0x0F1E_2D3C_4B5A_6978_u64.rotate_left(8 * arch::cpu_index() as u32);
                $(write_sysreg!($reg, pattern + $i);)*
                arch::isb();
                let end = timer::now() + timer::frequency() / 1000 * PREEMPTION_MS;
                let mut i = 0;
                while timer::now() < end {
                    exit_of_kind(i);
                    i += 1;
                    $(check_eq!(read_sysreg!($reg), pattern + $i, "key register {} on CPU {}", $i, arch::cpu_index());)*
                }
            };
        }
        keys![
            (0, "S3_0_C2_C1_0"),
            (1, "S3_0_C2_C1_1"),
            (2, "S3_0_C2_C1_2"),
            (3, "S3_0_C2_C1_3"),
            (4, "S3_0_C2_C2_0"),
            (5, "S3_0_C2_C2_1"),
            (6, "S3_0_C2_C2_2"),
            (7, "S3_0_C2_C2_3"),
            (8, "S3_0_C2_C3_0"),
            (9, "S3_0_C2_C3_1"),
        ];
        Ok(())
    })
}

fn counter_never_goes_back() -> Outcome {
    everywhere(|| {
        let end = timer::now() + timer::frequency() / 1000 * PREEMPTION_MS;
        let mut last = timer::now();
        let mut i = 0;
        while last < end {
            exit_of_kind(i);
            i += 1;
            let now = timer::now();
            check!(now >= last, "from {last:#x} to {now:#x}");
            last = now;
        }
        Ok(())
    })
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd

    // u64 name(x0 = for the operation, x1 = pattern): how many of x4..x30 the operation changed
    .macro  gpr_case name, op:vararg
    .global \name
\name:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    str     x1, [sp, #96]
    .irp    n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    add     x\n, x1, #\n
    .endr
    \op
    ldr     x1, [sp, #96]
    mov     x2, #0
    .irp    n, 4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    add     x3, x1, #\n
    cmp     x3, x\n
    cinc    x2, x2, ne
    .endr
    mov     x0, x2
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret
    .endm

    .macro  gpr_op_hvc
    mov     w0, #0x84000000
    hvc     #0
    .endm
    .macro  gpr_op_smc
    mov     w0, #0x84000000
    smc     #0
    .endm
    .macro  gpr_op_loop
1:  subs    x0, x0, #1
    b.ne    1b
    .endm
    .macro  gpr_op_sgi
    mov     x0, #(15 << 24)
    msr     S3_0_C12_C11_5, x0
    .endm

    .section .text.registers, "ax"
    gpr_case gpr_hvc, gpr_op_hvc
    gpr_case gpr_smc, gpr_op_smc
    gpr_case gpr_load, ldr w3, [x0]
    gpr_case gpr_store, str wzr, [x0]
    gpr_case gpr_sgi, gpr_op_sgi
    gpr_case gpr_loop, gpr_op_loop

    .global fp_fill
fp_fill:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    fmov    d\n, x1
    mvn     x1, x1
    mov     v\n\().d[1], x1
    .endr
    ret

    .global fp_check
fp_check:
    mov     x3, #0
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    fmov    x2, d\n
    cmp     x1, x2
    cinc    x3, x3, ne
    mvn     x1, x1
    mov     x2, v\n\().d[1]
    cmp     x1, x2
    cinc    x3, x3, ne
    .endr
    mov     x0, x3
    ret
    "#
);
