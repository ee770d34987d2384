// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SHA-256 (FIPS 180-4) by the instructions of FEAT_SHA256, which take a twentieth of the time, for code that is compiled without
//! vector registers: the firmware of protected VMs, and EL2 as it boots. Elsewhere in software.

#![no_std]

use sha2::{Digest, Sha256};

/// SHA-256 of `bytes`, in software.
pub fn software(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(target_arch = "aarch64")]
pub use instructions::{available, by_instructions};

#[cfg(target_arch = "aarch64")]
mod instructions {
    use core::arch::{asm, global_asm};

    global_asm!(include_str!("sha256.S"));

    unsafe extern "C" {
        /// `blocks` blocks of 64 bytes at `data`, at least one, go into `state`. Changes vector registers.
        fn sha256_blocks(state: &mut [u32; 8], data: *const u8, blocks: usize);
    }

    const BLOCK: usize = 64;
    /// FIPS 180-4, 5.3.3.
    const INITIAL: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];

    /// Whether the CPU has FEAT_SHA256.
    pub fn available() -> bool {
        let features: u64;
        // SAFETY: reads an ID register.
        unsafe {
            asm!("mrs {}, id_aa64isar0_el1", out(reg) features, options(nomem, nostack, preserves_flags));
        }
        features >> 12 & 0xF != 0
    }

    /// SHA-256 of `bytes`, by the CPU's instructions.
    ///
    /// # Safety
    /// They are there ([`available`]), are not trapped, and nobody needs what is in the vector registers.
    pub unsafe fn by_instructions(bytes: &[u8]) -> [u8; 32] {
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        // Padding: a one, zeros, the length in bits.
        let mut last = [0; 2 * BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        last[rest.len()] = 0x80;
        let end = if rest.len() < BLOCK - 8 { BLOCK } else { 2 * BLOCK };
        last[end - 8..end].copy_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());

        let mut state = INITIAL;
        for blocks in [blocks, last[..end].as_chunks().0] {
            if !blocks.is_empty() {
                // SAFETY: the caller's promise; the blocks are there.
                unsafe { sha256_blocks(&mut state, blocks.as_ptr().cast(), blocks.len()) };
            }
        }
        let mut hash = [0; 32];
        for (to, word) in hash.as_chunks_mut().0.iter_mut().zip(state) {
            *to = word.to_be_bytes();
        }
        hash
    }
}
