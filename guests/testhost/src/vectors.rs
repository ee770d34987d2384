// SPDX-License-Identifier: Apache-2.0 OR MIT
//! FP and SIMD registers of the host and of two guests that use them at the same time (`threats.md` 24).

use core::arch::global_asm;

use gzvm_abi::reg;
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{cases, check_eq};

use crate::guest_runs::{load, store};
use crate::pages;
use crate::programs::programs;
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["vectors": host_and_guests_stay_apart, host_keeps_its_own];

programs! {
    /// Tells what it finds in V0 and V31, fills them with its x0; then, again and again: loads, and tells 0 if they still hold that.
    fills_vectors = (prog_vectors, prog_vectors_end);
}

global_asm!(
    r#"
    .section .text.programs, "ax"
    .arch_extension fp
    .arch_extension simd
    .global prog_vectors, prog_vectors_end
    .balign 16
prog_vectors:
    mov     x20, x0
    mov     x19, #0x90000
    mov     x2, #(3 << 20)
    msr     cpacr_el1, x2           // FPEN
    isb
    fmov    x2, d0
    fmov    x3, d31
    orr     x2, x2, x3
    mov     x3, v0.d[1]
    orr     x2, x2, x3
    str     x2, [x19, #0x10]
    dup     v0.2d, x20
    dup     v31.2d, x20
1:  ldr     w4, [x19]
    fmov    x2, d0
    mov     x3, v0.d[1]
    mov     x5, v31.d[1]
    eor     x2, x2, x20
    eor     x3, x3, x20
    eor     x5, x5, x20
    orr     x2, x2, x3
    orr     x2, x2, x5
    str     x2, [x19, #0x18]
    b       1b
prog_vectors_end:
    .arch_extension nosimd
    .arch_extension nofp
    "#
);

fn fill(pattern: u64) {
    // SAFETY: V registers are not Rust's on this target.
    unsafe {
        core::arch::asm!(".arch_extension fp", "fmov d0, {0}", "fmov d31, {0}", in(reg) pattern);
    }
}

fn filled_with() -> [u64; 2] {
    let (first, last): (u64, u64);
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(".arch_extension fp", "fmov {0}, d0", "fmov {1}, d31", out(reg) first, out(reg) last);
    }
    [first, last]
}

fn host_and_guests_stay_apart() -> Outcome {
    const PATTERNS: [u64; 3] = [0x1111_2222_3333_4444, 0x5555_6666_7777_8888, 0x9999_AAAA_BBBB_CCCC];
    let mut vms = [Vm::new(fills_vectors(), 1)?, Vm::new(fills_vectors(), 1)?];
    fill(PATTERNS[2]);
    for (vm, pattern) in vms.iter_mut().zip(PATTERNS) {
        vm.set_reg(0, reg::X0, pattern)?;
        store(vm, 0x10, 0, "what a new vCPU finds in its registers")?;
        check_eq!(filled_with(), [PATTERNS[2]; 2], "d0 and d31 of the host");
    }
    for round in 0..8 {
        for vm in &mut vms {
            load(vm, 0, 4, round)?;
            // Every other time the host has its own back in between.
            if round % 2 == 0 {
                check_eq!(filled_with(), [PATTERNS[2]; 2], "d0 and d31 of the host, round {round}");
            }
            store(vm, 0x18, 0, "whether a guest's registers changed")?;
        }
        check_eq!(filled_with(), [PATTERNS[2]; 2], "d0 and d31 of the host after round {round}");
    }
    for vm in vms {
        vm.destroy()?;
    }
    pages::reset();
    Ok(())
}

/// Guests that don't use theirs.
fn host_keeps_its_own() -> Outcome {
    let mut vm = Vm::new(crate::programs::tour(), 1)?;
    for round in 0..3u64 {
        let pattern = 0xABCD_0000 + round;
        fill(pattern);
        if round % 2 == 0 {
            vm.run_to_store(0)?;
        } else {
            load(&mut vm, 0, 4, 0)?;
        }
        check_eq!(filled_with(), [pattern; 2], "d0 and d31, round {round}");
    }
    vm.destroy()?;
    pages::reset();
    Ok(())
}
