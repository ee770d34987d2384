// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Kernel and initrd are those that were signed: by SHA-256, or by what the hypervisor remembers of an earlier VM's firmware
//! ([`gzvm_firmware_verify::images`]).
//!
//! Keys and what is made of them are in registers and on the stack; the entry code wipes both before the payload starts.

use core::arch::asm;

use gzvm_abi::digest::words;
use gzvm_abi::guest;
use gzvm_firmware_verify::images::{self, Found, Key, Memory, Tag, Ways};
use gzvm_firmware_verify::manifest::Hash;
use gzvm_polyval::Instructions;

use crate::call::hvc4;

/// Whether `bytes` have this digest, and how that was found. The CPU's vector registers may be used from now on.
pub fn find(bytes: &[u8], digest: &Hash) -> Option<Found> {
    // SAFETY: CPACR_EL1.FPEN; no code but ours uses these registers before the payload, which sets it anew.
    unsafe { asm!("msr cpacr_el1, {}", "isb", in(reg) 3_u64 << 20, options(nostack, preserves_flags)) };
    let ways = Ways { sha256, tag: Instructions::available().next().is_some().then_some(tag) };
    images::find(bytes, digest, ways, &mut Hypervisor)
}

fn sha256(bytes: &[u8]) -> Hash {
    if !gzvm_sha256::available() {
        return gzvm_sha256::software(bytes);
    }
    // SAFETY: there, not trapped (`find`), and Rust's code here uses no vector registers.
    unsafe { gzvm_sha256::by_instructions(bytes) }
}

fn tag(key: Key, bytes: &[u8]) -> Tag {
    match Instructions::available().next() {
        // SAFETY: as above.
        Some(which) => unsafe { gzvm_polyval::by_instructions(which, key, bytes) },
        None => gzvm_polyval::software(key, bytes),
    }
}

struct Hypervisor;

impl Memory for Hypervisor {
    fn key(&mut self, digest: &Hash) -> Option<(Key, bool)> {
        let [status, low, high, known] = hvc4(guest::IMAGE_KEY, words(digest));
        (status == 0).then_some(([low, high], known != 0))
    }

    fn check(&mut self, key: Key, tag: Tag) -> bool {
        hvc4(guest::IMAGE_CHECK, [key[0], key[1], tag[0], tag[1]])[0] == 0
    }

    fn remember(&mut self, key: Key, tag: Tag) {
        hvc4(guest::IMAGE_REMEMBER, [key[0], key[1], tag[0], tag[1]]);
    }
}
