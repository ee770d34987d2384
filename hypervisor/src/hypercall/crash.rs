// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mistakes on demand, for the tests of EL2's own protection and of its crash reports, and for those of the tests themselves
//! ([`gzvm_core::broken`]). Only in images built with the feature `crash-test`; no other image has these calls.

use core::hint::black_box;

use gzvm_core::broken;
use gzvm_core::fdt::machine::HostImage;

use crate::arch::provoke;

/// The call: x1 = what to do.
const FID: u32 = 0xFB00_107E;
/// The call: x1 = the mistake to make from now on.
const FID_BREAK: u32 = 0xFB00_107F;

/// Does what the host asks for, if this is one of the calls; whether it was answered. The first comes back only if the protection
/// failed, or x1 is none of the numbers below.
pub fn intercept(x: &mut [u64]) -> bool {
    match x {
        [fid, kind, ..] if *fid as u32 == FID => {
            crash(*kind);
            false
        }
        _ => intercept_break(x),
    }
}

/// The second call, which is a guest's too.
pub fn intercept_break(x: &mut [u64]) -> bool {
    match x {
        [fid, mistake, ..] if *fid as u32 == FID_BREAK => {
            broken::set(*mistake);
            *fid = 0;
            true
        }
        _ => false,
    }
}

/// `el2-break=N` among the host's boot arguments: the mistake of what is done once, at boot.
pub fn break_at_boot(host: Option<&HostImage<'_>>) {
    let mut arguments = host.map_or("", |host| host.bootargs).split_ascii_whitespace();
    if let Some(mistake) = arguments.find_map(|argument| argument.strip_prefix("el2-break=")?.parse().ok()) {
        broken::set(mistake);
        log::warn!("broken on purpose: {mistake}");
    }
}

#[inline(never)]
fn crash(kind: u64) {
    match kind {
        0 => panic!("crash test"),
        1 => provoke::read_unmapped(),
        2 => _ = overflow_stack(0),
        3 => provoke::write_text(),
        4 => provoke::write_rodata(),
        5 => provoke::execute_data(),
        6 => provoke::undefined_instruction(),
        7 => crate::console::crash_inside(),
        _ => return,
    }
    log::error!("crash test: kind {kind} went through");
}

/// Ends at the guard page. A frame is smaller than that page.
#[inline(never)]
fn overflow_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 32]);
    if depth == u64::MAX {
        return 0;
    }
    overflow_stack(depth + 1).wrapping_add(black_box(&frame)[0])
}
