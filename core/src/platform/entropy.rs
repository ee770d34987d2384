// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Entropy for guests: raw words of a noise source, tested all the time and conditioned (NIST SP 800-90B).
//!
//! ```text
//!  source ─► words ─► bytes ─► repetition count, adaptive proportion ─► SHA-256 ─► 192 bits
//! ```
//! Of each byte of the source half its bits are believed to be entropy ([`BITS_PER_BYTE`]), and twice as much as comes out
//! goes into the hash. A source that fails a test gives nothing until it has passed the start-up tests
//! again, in full.
//!
//! What one call costs is bounded: [`STARTUP_WORDS`] and [`WORDS_PER_DRAW`] words, one hash.

use sha2::{Digest, Sha256};

/// Entropy that a byte of the source is credited with.
pub const BITS_PER_BYTE: u32 = 4;
/// Words of the source that are hashed for one result: 512 bits, credited with 256.
pub const WORDS_PER_DRAW: usize = 8;
/// Words that are tested and thrown away before the first result (4.3: at least 1024 samples).
pub const STARTUP_WORDS: u32 = 128;

/// Repetition count test (4.4.1): so many equal bytes in a row are a failure; 1 + 30 / [`BITS_PER_BYTE`], rounded up:
/// one false alarm in 2^30.
const REPETITIONS: u32 = 1 + 30u32.div_ceil(BITS_PER_BYTE);
/// Adaptive proportion test (4.4.2): window in bytes.
const WINDOW: u32 = 512;
/// So many bytes in a window that equal its first are a failure: 1 + the quantile of the binomial distribution of 512
/// samples with probability 2^-4, at 1 - 2^-30. A test computes it.
const PROPORTION: u32 = 71;

/// A source has failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// It gives nothing at the moment.
    Dry,
    /// A health test has failed.
    Unhealthy,
}

/// The two continuous tests.
#[derive(Clone, Copy, Default, Debug)]
struct Health {
    last: u8,
    /// How often `last` has come in a row; 0 before the first sample.
    repeated: u32,
    first: u8,
    /// Samples of the window so far.
    seen: u32,
    /// Those of them that equal `first`.
    equal: u32,
}

impl Health {
    /// Whether the source is still good, with this sample.
    fn sample(&mut self, byte: u8) -> bool {
        if self.repeated != 0 && byte == self.last {
            self.repeated = self.repeated.saturating_add(1);
        } else {
            self.last = byte;
            self.repeated = 1;
        }
        if self.seen == WINDOW {
            // A byte between two windows: the next begins with another one of a word.
            self.seen = 0;
            self.equal = 0;
        } else {
            if self.seen == 0 {
                self.first = byte;
            }
            self.equal = self.equal.saturating_add(u32::from(byte == self.first));
            self.seen = self.seen.saturating_add(1);
        }
        self.repeated < REPETITIONS && self.equal < PROPORTION
    }
}

/// What makes random numbers of a source.
#[derive(Clone, Copy, Default, Debug)]
pub struct Generator {
    health: Health,
    /// Words that have passed since the start, up to [`STARTUP_WORDS`].
    started: u32,
}

impl Generator {
    /// One that has tested nothing yet.
    pub const fn new() -> Self {
        let health = Health { last: 0, repeated: 0, first: 0, seen: 0, equal: 0 };
        Self { health, started: 0 }
    }

    /// 192 bits. `source` gives a word, or none if it has none after a reasonable time.
    ///
    /// # Errors
    /// The source is dry, or not to be trusted.
    pub fn draw(&mut self, mut source: impl FnMut() -> Option<u64>) -> Result<[u64; 3], Failure> {
        while self.started < STARTUP_WORDS {
            self.word(&mut source)?;
            self.started = self.started.saturating_add(1);
        }
        let mut hash = Sha256::new();
        for _ in 0..WORDS_PER_DRAW {
            hash.update(self.word(&mut source)?.to_le_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let mut result = [0; 3];
        for (word, bytes) in result.iter_mut().zip(digest.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        Ok(result)
    }

    fn word(&mut self, source: &mut impl FnMut() -> Option<u64>) -> Result<u64, Failure> {
        let word = source().ok_or(Failure::Dry)?;
        // All bytes are looked at, whatever the first says.
        let bad = word.to_le_bytes().into_iter().filter(|byte| !self.health.sample(*byte)).count();
        if bad == 0 {
            Ok(word)
        } else {
            *self = Self::new();
            Err(Failure::Unhealthy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator of the test's own (splitmix64).
    fn noise(mut state: u64) -> impl FnMut() -> Option<u64> {
        move || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            Some(z ^ z >> 31)
        }
    }

    /// P[X >= k] of 512 samples with probability 1/16.
    fn tail(k: u32) -> f64 {
        let ln = |n: u32| (1..=n).map(|i| f64::from(i).ln()).sum::<f64>();
        (k..=WINDOW)
            .map(|i| {
                let choose = ln(WINDOW) - ln(i) - ln(WINDOW - i);
                let p = f64::from(i) * (1f64 / 16.0).ln() + f64::from(WINDOW - i) * (15f64 / 16.0).ln();
                (choose + p).exp()
            })
            .sum()
    }

    #[test]
    fn cutoffs_are_those_of_the_standard() {
        assert_eq!(REPETITIONS, 9);
        let alarm = 2f64.powi(-30);
        assert!(tail(PROPORTION) <= alarm && tail(PROPORTION - 1) > alarm);
    }

    #[test]
    fn good_sources_stay_good() {
        let mut generator = Generator::new();
        let mut source = noise(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20_000 {
            let words = generator.draw(&mut source).unwrap();
            assert!(words.into_iter().all(|word| seen.insert(word)));
        }
    }

    #[test]
    fn the_first_result_costs_the_start_up_tests_and_none_costs_more() {
        let mut generator = Generator::new();
        for cost in [STARTUP_WORDS as usize + WORDS_PER_DRAW, WORDS_PER_DRAW, WORDS_PER_DRAW] {
            let (mut calls, mut source) = (0, noise(5));
            generator
                .draw(|| {
                    calls += 1;
                    source()
                })
                .unwrap();
            assert_eq!(calls, cost);
        }
    }

    #[test]
    fn results_are_hashes() {
        let mut generator = Generator { started: STARTUP_WORDS, ..Generator::new() };
        let words = [1u64, 2, 3, 4, 5, 6, 7, 8].map(|n| n.wrapping_mul(0x0102_0408_1020_4081));
        let mut at = words.into_iter();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let digest = Sha256::digest(&bytes);
        let result = generator.draw(|| at.next()).unwrap();
        assert_eq!(result.map(u64::to_le_bytes).concat(), digest[..24]);
    }

    #[test]
    fn a_stuck_byte_is_found() {
        for stuck in [0, 0xFF, 0x5A] {
            let mut generator = Generator::new();
            let mut source = noise(3);
            generator.draw(&mut source).unwrap();
            let word = u64::from_le_bytes([stuck; 8]);
            // Eight of them may be chance, nine are not.
            let mut calls = 0;
            let failure = generator.draw(|| {
                calls += 1;
                Some(word)
            });
            assert_eq!((failure, calls <= 2), (Err(Failure::Unhealthy), true), "{stuck:#x}");
        }
    }

    /// Two bytes of each word are always the same: never twice in a row, but far too often. Whichever they are, a
    /// window begins with one of them at last.
    #[test]
    fn frequent_bytes_are_found() {
        for (n, m) in [(0, 4), (3, 6), (1, 7)] {
            let mut generator = Generator { started: STARTUP_WORDS, ..Generator::new() };
            let mut source = noise(9);
            let stuck =
                |word: u64| word & !(0xFF << (8 * n) | 0xFF << (8 * m)) | 0x77 << (8 * n) | 0x77 << (8 * m);
            let failed = (0..80).any(|_| generator.draw(|| source().map(stuck)) == Err(Failure::Unhealthy));
            assert!(failed, "bytes {n} and {m}");
        }
    }

    #[test]
    fn a_failed_source_starts_over() {
        let mut generator = Generator::new();
        let mut source = noise(4);
        generator.draw(&mut source).unwrap();
        assert_eq!(generator.draw(|| Some(0)), Err(Failure::Unhealthy));
        let mut calls = 0;
        generator
            .draw(|| {
                calls += 1;
                source()
            })
            .unwrap();
        assert_eq!(calls, STARTUP_WORDS as usize + WORDS_PER_DRAW);
    }

    #[test]
    fn a_dry_source_gives_nothing_and_costs_nothing_of_what_passed() {
        let mut generator = Generator::new();
        let mut source = noise(7);
        let mut left = STARTUP_WORDS;
        let dry = generator.draw(|| {
            left = left.checked_sub(1)?;
            source()
        });
        assert_eq!((dry, generator.started), (Err(Failure::Dry), STARTUP_WORDS));
        assert!(generator.draw(&mut source).is_ok());
    }
}
