// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SHA-256 of what is to be started.

use core::arch::asm;

use gzvm_firmware_verify::manifest::Hash;

/// The digest of `bytes`. The CPU's vector registers may be used from now on.
pub fn digest(bytes: &[u8]) -> Hash {
    if !gzvm_sha256::available() {
        return gzvm_sha256::software(bytes);
    }
    // SAFETY: CPACR_EL1.FPEN; no code but ours uses these registers before the payload, which sets it anew.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3_u64 << 20, options(nostack, preserves_flags)) };
    // SAFETY: there, not trapped, and Rust's code here uses no vector registers.
    unsafe { gzvm_sha256::by_instructions(bytes) }
}
