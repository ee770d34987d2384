// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Targets over their committed corpora, and over mutations of these, in `cargo test`. GZVM_ROUNDS makes it longer.

use std::fs;
use std::path::Path;

/// xorshift64*, so that runs repeat.
fn next(state: &mut u64) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize
}

/// Runs `body` on all of `corpus`/`name`, and `each` mutations of each file there.
pub fn replay(corpus: &Path, name: &str, each: usize, body: fn(&[u8])) {
    let rounds = std::env::var("GZVM_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize);
    let mut state = 0x9E37_79B9;
    let mut files: Vec<_> =
        fs::read_dir(corpus.join(name)).expect("a corpus").map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{name} has no corpus");
    for file in files {
        let seed = fs::read(&file).unwrap();
        body(&seed);
        for _ in 0..rounds * each {
            let mut data = seed.clone();
            for _ in 0..1 + next(&mut state) % 4 {
                let length = data.len().max(1);
                let at = next(&mut state) % length;
                match next(&mut state) % 4 {
                    0 => data.truncate(at),
                    1 => data.extend_from_within(at.min(data.len())..),
                    2 => data.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << (at % 8)),
                    _ => data.iter_mut().skip(at).take(4).for_each(|b| *b = next(&mut state) as u8),
                }
            }
            data.truncate(1 << 16);
            body(&data);
        }
    }
}
