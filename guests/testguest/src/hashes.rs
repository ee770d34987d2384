// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the firmware of protected VMs computes by the CPU's instructions is what software computes: code that no PC can test.

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{cases, check_eq, skip};
use gzvm_polyval::Instructions;

pub const CASES: &[Case] = cases!["hashes":
    sha256, polyval,
];

/// Lengths around each border of blocks, chunks and padding, and some of many chunks.
fn lengths() -> impl Iterator<Item = usize> {
    (0..530).chain([1000, 1024, 4000, 4096])
}

/// Bytes of which none is like the next, nor like those a block further on.
fn message() -> [u8; 4096] {
    let mut state = 1_u32;
    core::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
}

fn sha256() -> Outcome {
    if !gzvm_sha256::available() {
        skip!("no FEAT_SHA256");
    }
    let message = message();
    for length in lengths() {
        let bytes = &message[..length];
        // SAFETY: there, not trapped (the kit's boot code), and the guest's code uses no vector registers.
        let hash = unsafe { gzvm_sha256::by_instructions(bytes) };
        check_eq!(hash, gzvm_sha256::software(bytes), "{length} bytes");
    }
    Ok(())
}

fn polyval() -> Outcome {
    if Instructions::available().next().is_none() {
        skip!("no FEAT_PMULL");
    }
    let message = message();
    for length in lengths() {
        let bytes = &message[..length];
        let key = [0xFEDC_BA98_7654_3210 ^ length as u64, 0x8000_0000_0000_0001];
        let expected = gzvm_polyval::software(key, bytes);
        for which in Instructions::available() {
            // SAFETY: as above.
            let tag = unsafe { gzvm_polyval::by_instructions(which, key, bytes) };
            check_eq!(tag, expected, "{length} bytes by {which:?}");
        }
    }
    Ok(())
}
