// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the random tests share: seeds, and the few values that make random operations meet.
//!
//! Each run takes another seed and says it on standard error, passed or not. `GZVM_SEED=n` repeats a run,
//! `GZVM_ROUNDS=n` makes it n times as long.

use super::machine::TIMER;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Few interrupts. The timer is one of them.
pub const IDS: [u32; 14] = [0, 1, 15, 16, TIMER, 32, 33, 34, 35, 36, 63, 64, 65, 95];
const SPIS: std::ops::Range<usize> = 5..14;
/// Few priorities, some equal.
pub const PRIORITIES: [u8; 5] = [0x20, 0x40, 0x40, 0xA0, 0xF0];

/// Bit registers, by offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bit {
    Enable = 0x100,
    Disable = 0x180,
    Pend = 0x200,
    Unpend = 0x280,
    Activate = 0x300,
    Deactivate = 0x380,
}

pub fn id() -> impl Strategy<Value = u32> {
    prop::sample::select(&IDS[..])
}

pub fn spi() -> impl Strategy<Value = u32> {
    prop::sample::select(&IDS[SPIS])
}

pub fn sgi() -> impl Strategy<Value = u32> {
    prop::sample::select(&IDS[..3])
}

/// One that has an input, and not EL2's.
pub fn line() -> impl Strategy<Value = u32> {
    prop::sample::select(&IDS[3..]).prop_filter("EL2's", |&id| id != TIMER)
}

pub fn priority() -> impl Strategy<Value = u8> {
    prop::sample::select(&PRIORITIES[..])
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}: not a number")))
}

/// How many times as long a run is.
fn rounds() -> u32 {
    u32::try_from(number("GZVM_ROUNDS").unwrap_or(1)).expect("GZVM_ROUNDS")
}

/// The seed of this run, said aloud. `cargo test` keeps what is printed, so it goes around that.
pub fn seed(test: &str) -> u64 {
    let seed = number("GZVM_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
        now.as_nanos() as u64
    });
    let _ = writeln!(std::io::stderr(), "{test}: GZVM_SEED={seed}");
    seed
}

/// Runs `test` on `cases` random values.
pub fn check<S: Strategy>(seed: u64, cases: u32, strategy: &S, test: impl Fn(S::Value)) {
    let config = ProptestConfig {
        cases: cases * rounds(),
        failure_persistence: None,
        max_shrink_iters: 5_000,
        ..ProptestConfig::default()
    };
    let run = |value| {
        test(value);
        Ok(())
    };
    // The cheapest: most of the time is spent on random numbers.
    let seed = [seed.to_le_bytes(), (!seed).to_le_bytes()].concat();
    let rng = TestRng::from_seed(RngAlgorithm::XorShift, &seed);
    match TestRunner::new_with_rng(config, rng).run(strategy, run) {
        Ok(()) => {}
        Err(TestError::Fail(why, value)) => panic!("{why}\nminimal failing input: {value:?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

/// As [`check`], for each number of list registers from 1 to 16.
pub fn check_list_registers<S: Strategy>(
    name: &str,
    cases: u32,
    strategy: &S,
    test: impl Fn(usize, S::Value),
) {
    let seed = seed(name);
    for nr_lrs in 1..=16usize {
        check(seed.wrapping_add(nr_lrs as u64), cases, strategy, |value| {
            let run = std::panic::AssertUnwindSafe(|| test(nr_lrs, value));
            if let Err(panic) = std::panic::catch_unwind(run) {
                eprintln!("with {nr_lrs} list registers, GZVM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        });
    }
}
