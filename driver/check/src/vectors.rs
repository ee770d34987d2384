// SPDX-License-Identifier: GPL-2.0-only
//! `gzvm-check vectors SECONDS`: the host's own SVE registers keep their patterns while guests use theirs.
//!
//! The registers are filled, time passes in a loop without a call (Linux forgets them over calls), and they are
//! looked at again. Other threads do the same with other patterns.

use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Bytes of the longest vector.
const MAX_BYTES: usize = 256;
const THREADS: u64 = 4;

#[cfg(target_arch = "aarch64")]
std::arch::global_asm!(
    r#"
    .arch_extension sve
    .text
    .global gzvm_check_vectors
gzvm_check_vectors:                     // x0: pattern, x1: where to store, x2: turns
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x3, x0, #\n
    mov     z\n\().d, x3
    .endr
    ptrue   p7.d
1:  subs    x2, x2, #1
    b.ne    1b
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     z\n, [x1, #\n, mul vl]
    .endr
    cntp    x0, p7, p7.d
    ret
"#
);

#[cfg(target_arch = "aarch64")]
fn round(pattern: u64, turns: u64) -> Result<(), String> {
    unsafe extern "C" {
        fn gzvm_check_vectors(pattern: u64, area: *mut u8, turns: u64) -> u64;
    }
    let mut area = vec![0_u64; 32 * MAX_BYTES / 8];
    let active: u64;
    // SAFETY: calls the function above, which stores 32 vectors of at most 256 bytes, with everything given up that
    // it or a vector register's owner could lose.
    unsafe {
        std::arch::asm!(
            "bl {f}",
            f = sym gzvm_check_vectors,
            inout("x0") pattern => active, inout("x1") area.as_mut_ptr() => _, inout("x2") turns => _,
            out("p0") _, out("p1") _, out("p2") _, out("p3") _, out("p4") _, out("p5") _, out("p6") _, out("p7") _,
            out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _, out("v14") _,
            out("v15") _,
            clobber_abi("C"),
        );
    }
    // CNTP of an all-true predicate: the double words of a vector.
    let words = active as usize;
    for (n, vector) in area.chunks_exact(words.max(1)).take(32).enumerate() {
        let want = pattern + n as u64;
        if let Some(bad) = vector.iter().find(|word| **word != want) {
            return Err(format!("Z{n} of {words} double words holds {bad:#x}, not {want:#x}"));
        }
    }
    if (2..=32).contains(&words) { Ok(()) } else { Err(format!("P7: {words} double words")) }
}

#[cfg(not(target_arch = "aarch64"))]
fn round(_: u64, _: u64) -> Result<(), String> {
    Err("for arm64 only".to_owned())
}

fn thread(index: u64, end: Instant) -> Result<u64, String> {
    let mut rounds = 0;
    while Instant::now() < end {
        round((index + 1) * 0x0123_4567_89AB_0000 + rounds % 0x1000, 3_000_000)?;
        rounds += 1;
    }
    Ok(rounds)
}

/// `gzvm-check vectors`.
pub fn main(arguments: &[String]) -> ExitCode {
    let result = match arguments.first().map(|seconds| seconds.parse()) {
        Some(Ok(seconds)) => run(seconds),
        _ => Err("SECONDS must be given".to_owned()),
    };
    match result {
        Ok(rounds) => {
            println!("vectors: {rounds} rounds");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("vectors: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// For so many seconds, on several threads.
fn run(seconds: u64) -> Result<u64, String> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let threads: Vec<_> = (0..THREADS).map(|index| std::thread::spawn(move || thread(index, end))).collect();
    threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err("panicked".to_owned()))).sum()
}
