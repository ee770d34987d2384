// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SHA-256 of what is to be started: by the CPU's instructions where it has them, which takes a twentieth of the time.

use core::arch::{asm, global_asm};

use gzvm_firmware_verify::manifest::{self, Hash};

global_asm!(include_str!("sha256.S"));

unsafe extern "C" {
    /// `blocks` blocks of 64 bytes at `data`, at least one, go into `state`. Changes vector registers, which Rust does not use here.
    fn sha256_blocks(state: &mut [u32; 8], data: *const u8, blocks: usize);
}

const BLOCK: usize = 64;
/// FIPS 180-4, 5.3.3.
const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> Hash {
    if !has_instructions() {
        return manifest::sha256(bytes);
    }
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    // Padding: a one, zeros, the length in bits.
    let mut last = [0; 2 * BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    last[rest.len()] = 0x80;
    let end = if rest.len() < BLOCK - 8 { BLOCK } else { 2 * BLOCK };
    last[end - 8..end].copy_from_slice(&(bytes.len() as u64 * 8).to_be_bytes());

    let mut state = INITIAL;
    add(&mut state, blocks);
    add(&mut state, last[..end].as_chunks().0);
    let mut hash = [0; 32];
    for (to, word) in hash.as_chunks_mut().0.iter_mut().zip(state) {
        *to = word.to_be_bytes();
    }
    hash
}

fn add(state: &mut [u32; 8], blocks: &[[u8; BLOCK]]) {
    if !blocks.is_empty() {
        // SAFETY: the CPU has the instructions and lets us use them ([`has_instructions`]); the blocks are there.
        unsafe { sha256_blocks(state, blocks.as_ptr().cast(), blocks.len()) };
    }
}

/// Whether the CPU has FEAT_SHA256; if so, it may be used from now on.
fn has_instructions() -> bool {
    let features: u64;
    // SAFETY: reads an ID register.
    unsafe { asm!("mrs {}, id_aa64isar0_el1", out(reg) features, options(nomem, nostack, preserves_flags)) };
    if features >> 12 & 0xF == 0 {
        return false;
    }
    // SAFETY: CPACR_EL1.FPEN; no code but ours uses these registers before the payload, which sets it anew.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3_u64 << 20, options(nostack, preserves_flags)) };
    true
}
