// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tags of bytes under a secret key, by POLYVAL (RFC 8452): for code that is compiled without vector registers, the firmware of
//! protected VMs.
//!
//! POLYVAL is a universal hash: to whoever knows nothing of the key, two different messages of at most n blocks have the same
//! tag with a probability of n / 2^128. It is no collision-resistant hash: with the key, anybody makes two messages of one tag.
//!
//! ```text
//!  message = bytes | zeros | bytes' length (8 bytes, little-endian) | 8 zeros      in chunks of 256 bytes
//! ```

#![cfg_attr(not(test), no_std)]

/// Bytes of a chunk: sixteen blocks, between which nothing is reduced.
const CHUNK: usize = 256;
const BLOCKS: usize = CHUNK / 16;

/// An element of the field: bit n is the coefficient of x^n.
type Element = u128;
/// The key's highest power first, which is the first block's.
type Powers = [Element; BLOCKS];

/// a * b * x^-128 ("dot" of RFC 8452).
const fn dot(a: Element, b: Element) -> Element {
    /// x^-1: of x^128 + x^127 + x^126 + x^121 + 1, divided by x.
    const ONE_LESS: Element = 0xE1 << 120;
    let mut product = 0;
    let mut bit = 0;
    while bit < 128 {
        // No branch that depends on the key.
        product ^= b & (a >> bit & 1).wrapping_neg();
        product = product >> 1 ^ ONE_LESS & (product & 1).wrapping_neg();
        bit += 1;
    }
    product
}

/// The message's last chunk, or two.
fn last(rest: &[u8], length: usize) -> ([u8; 2 * CHUNK], usize) {
    let mut last = [0; 2 * CHUNK];
    last[..rest.len()].copy_from_slice(rest);
    let end = if rest.len() <= CHUNK - 16 { CHUNK } else { 2 * CHUNK };
    last[end - 16..end - 8].copy_from_slice(&(length as u64).to_le_bytes());
    (last, end)
}

/// The tag, where `add` puts chunks into a sum.
fn tag(key: [u64; 2], bytes: &[u8], add: impl Fn(&mut Element, &Powers, &[[u8; CHUNK]])) -> [u64; 2] {
    let key = Element::from(key[0]) | Element::from(key[1]) << 64;
    let mut powers = [key; BLOCKS];
    for n in (0..BLOCKS - 1).rev() {
        powers[n] = dot(powers[n + 1], key);
    }
    let (chunks, rest) = bytes.as_chunks();
    let (last, end) = last(rest, bytes.len());
    let mut sum = 0;
    for chunks in [chunks, last[..end].as_chunks().0] {
        if !chunks.is_empty() {
            add(&mut sum, &powers, chunks);
        }
    }
    [sum as u64, (sum >> 64) as u64]
}

/// The tag of `bytes`, on any CPU, bit by bit: what [`by_instructions`] is compared with.
pub fn software(key: [u64; 2], bytes: &[u8]) -> [u64; 2] {
    tag(key, bytes, |sum, powers, chunks| {
        for block in chunks.as_flattened().as_chunks().0 {
            *sum = dot(*sum ^ Element::from_le_bytes(*block), powers[BLOCKS - 1]);
        }
    })
}

#[cfg(target_arch = "aarch64")]
pub use instructions::{Instructions, by_instructions};

#[cfg(target_arch = "aarch64")]
mod instructions {
    use core::arch::{asm, global_asm};
    use core::array;

    use super::{BLOCKS, CHUNK, Element, Powers, tag};

    global_asm!(include_str!("polyval.S"));

    /// For each two blocks of a chunk, what the low halves are multiplied with, the high ones, and their sums.
    type Table = [[[u64; 2]; 3]; BLOCKS / 2];
    /// `count` chunks at `data`, at least one, go into `sum`. Vector registers are zero afterwards.
    type Chunks =
        unsafe extern "C" fn(sum: &mut Element, table: &Table, data: *const [u8; CHUNK], count: usize);

    unsafe extern "C" {
        fn polyval_chunks_pmull(sum: &mut Element, table: &Table, data: *const [u8; CHUNK], count: usize);
        fn polyval_chunks_sha3(sum: &mut Element, table: &Table, data: *const [u8; CHUNK], count: usize);
    }

    fn table(powers: &Powers) -> Table {
        let pairs = powers.as_chunks().0;
        array::from_fn(|n| {
            let pair: [Element; 2] = pairs[n];
            let (low, high) = (pair.map(|power| power as u64), pair.map(|power| (power >> 64) as u64));
            [low, high, [low[0] ^ high[0], low[1] ^ high[1]]]
        })
    }

    /// What a CPU multiplies and adds by.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Instructions {
        /// FEAT_PMULL.
        Pmull,
        /// That and FEAT_SHA3, for its EOR3.
        PmullSha3,
    }

    impl Instructions {
        /// Those that this CPU has, the fastest first.
        pub fn available() -> impl Iterator<Item = Self> {
            let features: u64;
            // SAFETY: reads an ID register.
            unsafe {
                asm!("mrs {}, id_aa64isar0_el1", out(reg) features, options(nomem, nostack, preserves_flags));
            }
            let pmull = features >> 4 & 0xF >= 2;
            let sha3 = pmull && features >> 32 & 0xF >= 1;
            sha3.then_some(Self::PmullSha3).into_iter().chain(pmull.then_some(Self::Pmull))
        }
    }

    /// The tag of `bytes`, by the CPU's instructions.
    ///
    /// # Safety
    /// They are [available](Instructions::available), are not trapped, and nobody needs what is in the vector registers.
    pub unsafe fn by_instructions(which: Instructions, key: [u64; 2], bytes: &[u8]) -> [u64; 2] {
        let add: Chunks = match which {
            Instructions::Pmull => polyval_chunks_pmull,
            Instructions::PmullSha3 => polyval_chunks_sha3,
        };
        tag(key, bytes, |sum, powers, chunks| {
            // SAFETY: the caller's promise; the chunks are there.
            unsafe { add(sum, &table(powers), chunks.as_ptr(), chunks.len()) }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polyval::{
        Polyval,
        universal_hash::{KeyInit, UniversalHash},
    };

    /// RFC 8452, appendix A: two blocks.
    #[test]
    fn vector_of_the_rfc() {
        let element = |digits: &str| Element::from_str_radix(digits, 16).unwrap().swap_bytes();
        let h = element("25629347589242761d31f826ba4b757b");
        let x1 = element("4f4f95668c83dfb6401762bb2d01a262");
        let x2 = element("d1a24ddd2721d006bbe45f20d3c9f362");
        assert_eq!(dot(dot(x1, h) ^ x2, h), element("f7a3b47b846119fae5b7866cf5e5b77e"));
    }

    fn noise(length: usize, mut state: u64) -> Vec<u8> {
        (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect()
    }

    /// Another implementation, of the message that the documentation says.
    fn library(key: [u64; 2], bytes: &[u8]) -> [u64; 2] {
        let key = (Element::from(key[0]) | Element::from(key[1]) << 64).to_le_bytes();
        let mut hash = Polyval::new(&key.into());
        let mut message = bytes.to_vec();
        message.resize((bytes.len() + 16).next_multiple_of(CHUNK) - 16, 0);
        message.extend((bytes.len() as u128).to_le_bytes());
        hash.update_padded(&message);
        let sum = Element::from_le_bytes(hash.finalize().into());
        [sum as u64, (sum >> 64) as u64]
    }

    const KEY: [u64; 2] = [0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210];

    #[test]
    fn as_another_implementation() {
        for length in (0..600).chain([1000, 4096, 70_001]) {
            let message = noise(length, length as u64);
            let expected = library(KEY, &message);
            assert_eq!(software(KEY, &message), expected, "{length} bytes");
            #[cfg(target_arch = "aarch64")]
            for which in Instructions::available() {
                // SAFETY: they are there, and a function call keeps none of these registers whole.
                let tag = unsafe { by_instructions(which, KEY, &message) };
                assert_eq!(tag, expected, "{length} bytes by {which:?}");
            }
        }
    }

    #[test]
    fn every_bit_and_the_length_count() {
        let message = noise(520, 7);
        let tag = software(KEY, &message);
        for bit in 0..8 * message.len() {
            let mut changed = message.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(software(KEY, &changed), tag, "bit {bit}");
        }
        let mut longer = message.clone();
        longer.push(0);
        assert_ne!(software(KEY, &longer), tag, "a zero more");
        assert_ne!(software([KEY[0], KEY[1] ^ 1], &message), tag, "another key");
    }
}
