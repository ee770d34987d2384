// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's calls for random numbers (TRNG firmware interface 1.0, Arm DEN0098). Where they come from:
//! [`entropy`](super::entropy).

/// TRNG_VERSION.
pub const VERSION: u32 = 0x8400_0050;
/// TRNG_FEATURES.
pub const FEATURES: u32 = 0x8400_0051;
/// TRNG_GET_UUID.
pub const GET_UUID: u32 = 0x8400_0052;
/// TRNG_RND, by 32-bit registers.
pub const RND32: u32 = 0x8400_0053;
/// TRNG_RND, by 64-bit registers.
pub const RND64: u32 = 0xC400_0053;

/// Version 1.0.
pub const VERSION_1_0: u64 = 0x1_0000;
/// No such call.
pub const NOT_SUPPORTED: u64 = -1i64 as u64;
/// A number of bits that can't be asked for.
pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
/// Nothing at the moment: the guest may ask again.
pub const NO_ENTROPY: u64 = -3i64 as u64;

/// Names this back end: 81da4da6-41b6-4d13-a0f7-6d20e5a5dd4c, the bytes in order from the lowest of w0.
const UUID: [u8; 16] =
    [0x81, 0xDA, 0x4D, 0xA6, 0x41, 0xB6, 0x4D, 0x13, 0xA0, 0xF7, 0x6D, 0x20, 0xE5, 0xA5, 0xDD, 0x4C];

/// What EL2 does with a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// x0; x1..x3 stay as they are.
    One(u64),
    /// x0..x3.
    Four([u64; 4]),
    /// So many random bits, in x1..x3 by [`bits`].
    Random(Request),
}

/// A number of random bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    count: u8,
    wide: bool,
}

/// Whether `fid` is of this interface (owner 4, functions 0x50..=0x5F).
pub const fn is_trng(fid: u32) -> bool {
    matches!(fid & !0x4000_0000, 0x8400_0050..=0x8400_005F)
}

/// Decides on a call with x1 = `arg`. Without a source (`available`) there is no such interface.
pub fn decide(fid: u32, arg: u64, available: bool) -> Answer {
    if !available {
        return Answer::One(NOT_SUPPORTED);
    }
    match fid {
        VERSION => Answer::One(VERSION_1_0),
        FEATURES => match arg as u32 {
            VERSION | FEATURES | GET_UUID | RND32 | RND64 => Answer::One(0),
            _ => Answer::One(NOT_SUPPORTED),
        },
        GET_UUID => {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(UUID.as_chunks::<4>().0) {
                *word = u64::from(u32::from_le_bytes(*bytes));
            }
            Answer::Four(words)
        }
        RND32 => random(u64::from(arg as u32), false),
        RND64 => random(arg, true),
        _ => Answer::One(NOT_SUPPORTED),
    }
}

fn random(count: u64, wide: bool) -> Answer {
    let most = if wide { 192 } else { 96 };
    match u8::try_from(count) {
        Ok(count @ 1..) if u64::from(count) <= most => Answer::Random(Request { count, wide }),
        _ => Answer::One(INVALID_PARAMETERS),
    }
}

/// x0..x3 of a call that has got its random bits: the lowest in x3, the highest in x1, zeroes above them.
pub fn bits(request: Request, random: [u64; 3]) -> [u64; 4] {
    let width = if request.wide { 64 } else { 32 };
    let mut left = u32::from(request.count);
    let mut registers = [0; 4];
    // x3, x2, x1.
    for (register, word) in registers.iter_mut().rev().zip(random) {
        let here = left.min(width);
        *register = word & u64::MAX.checked_shr(64u32.saturating_sub(here)).unwrap_or(0);
        left = left.saturating_sub(here);
    }
    registers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_source_there_is_nothing() {
        for fid in 0x8400_0050..0x8400_0060 {
            for fid in [fid, fid | 0x4000_0000] {
                assert!(is_trng(fid));
                assert_eq!(decide(fid, 64, false), Answer::One(NOT_SUPPORTED), "{fid:#x}");
            }
        }
        assert!(!is_trng(0x8400_004F) && !is_trng(0x8400_0060) && !is_trng(0x0400_0050));
    }

    #[test]
    fn version_features_and_name() {
        assert_eq!(decide(VERSION, 0, true), Answer::One(0x1_0000));
        for fid in [VERSION, FEATURES, GET_UUID, RND32, RND64] {
            assert_eq!(decide(FEATURES, 0xDEAD_0000_0000_0000 | u64::from(fid), true), Answer::One(0));
        }
        for fid in [0, 0x8400_0054, 0xC400_0050, 0xC400_0052, 0x8400_0003, u32::MAX] {
            assert_eq!(decide(FEATURES, fid.into(), true), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
        for fid in [0x8400_0054, 0x8400_005F, 0xC400_0050, 0xC400_0051, 0xC400_0052] {
            assert_eq!(decide(fid, 0, true), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
        let Answer::Four(words) = decide(GET_UUID, 0, true) else { panic!() };
        assert!(words.iter().all(|word| word >> 32 == 0) && words[0] as u32 != u32::MAX);
    }

    #[test]
    fn numbers_of_bits() {
        for (fid, most) in [(RND32, 96), (RND64, 192)] {
            for count in [0, most + 1, 255, 256, 257, 1 << 31] {
                assert_eq!(decide(fid, count, true), Answer::One(INVALID_PARAMETERS), "{count}");
            }
            for count in 1..=most {
                let Answer::Random(request) = decide(fid, count, true) else { panic!("{count}") };
                let registers = bits(request, [u64::MAX; 3]);
                assert_eq!(registers[0], 0);
                let ones: u32 = registers.iter().map(|register| register.count_ones()).sum();
                assert_eq!(u64::from(ones), count);
                // Low ones first, and no hole.
                let width = if fid == RND64 { 64 } else { 32 };
                for (n, register) in registers[1..].iter().rev().enumerate() {
                    let here = count.saturating_sub(n as u64 * width).min(width);
                    let want = if here == 64 { u64::MAX } else { (1 << here) - 1 };
                    assert_eq!(*register, want, "{count} bits, register {n}");
                }
            }
        }
        // Of a 32-bit call only the lower half counts.
        assert!(matches!(decide(RND32, 1 << 32 | 5, true), Answer::Random(_)));
        assert_eq!(decide(RND64, 1 << 32 | 5, true), Answer::One(INVALID_PARAMETERS));
    }
}
