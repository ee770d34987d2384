// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The platform's random numbers (TRNG firmware interface, Arm DEN0098).

use crate::machine;

/// TRNG_RND64.
const RND64: u64 = 0xC400_0053;
/// There is not enough just now.
const NO_ENTROPY: i64 = -3;
/// How often it is asked again then.
const TRIES: u32 = 1000;

/// Fills `bytes`. False: this machine has no source, or it gave too little; what is in `bytes` is not to be used then.
#[must_use]
pub fn fill(bytes: &mut [u8]) -> bool {
    bytes.chunks_mut(8).all(|chunk| {
        let bits = 8 * chunk.len() as u64;
        for _ in 0..TRIES {
            // The result's lowest bits are in x3.
            let [status, _, _, value] = machine::get().conduit.call(RND64, &[bits]);
            match status as i64 {
                0 => {
                    chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
                    return true;
                }
                NO_ENTROPY => {}
                _ => return false,
            }
        }
        false
    })
}
