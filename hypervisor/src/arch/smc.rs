// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls to the firmware below (SMCCC 1.1: x0..x3 come back, x4..x17 are kept or lost).

/// Calls firmware.
pub fn call(args: [u64; 8]) -> [u64; 4] {
    let [a0, a1, a2, a3, a4, a5, a6, a7] = args;
    let (r0, r1, r2, r3);
    // SAFETY: firmware keeps x18..x30 and memory that is not its own (SMCCC 2.6, 2.7); which
    // functions may be called is decided by the callers (PSCI and an allow list).
    unsafe {
        core::arch::asm!(
            "smc #0",
            inlateout("x0") a0 => r0, inlateout("x1") a1 => r1, inlateout("x2") a2 => r2, inlateout("x3") a3 => r3,
            inlateout("x4") a4 => _, inlateout("x5") a5 => _, inlateout("x6") a6 => _, inlateout("x7") a7 => _,
            lateout("x8") _, lateout("x9") _, lateout("x10") _, lateout("x11") _, lateout("x12") _,
            lateout("x13") _, lateout("x14") _, lateout("x15") _, lateout("x16") _, lateout("x17") _,
            options(nostack)
        );
    }
    [r0, r1, r2, r3]
}
