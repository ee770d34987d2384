// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The CPU's noise source (FEAT_RNG, Arm ARM D24.2.153).

/// How often a CPU is asked that has nothing at the moment.
const TRIES: u32 = 16;

/// A word of RNDRRS, which is reseeded before each. Only on a CPU with FEAT_RNG.
pub fn word() -> Option<u64> {
    (0..TRIES).find_map(|_| {
        let (value, good): (u64, u64);
        // SAFETY: the register has no side effect but on the flags, which are not declared as kept.
        unsafe {
            core::arch::asm!("mrs {}, s3_3_c2_c4_1", "cset {}, ne", out(reg) value, lateout(reg) good, options(nomem, nostack));
        }
        (good != 0).then_some(value)
    })
}
