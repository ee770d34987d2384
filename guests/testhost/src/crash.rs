// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `el2-crash=KIND` among the boot arguments: makes a hypervisor of the feature `crash-test` crash
//! (what the numbers mean: hypervisor/src/hypercall/crash.rs), on the first CPU. With
//! `el2-crash-on=all`, on all CPUs at the same time.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use gzvm_guest_kit::smccc::{Conduit, NOT_SUPPORTED};
use gzvm_guest_kit::{machine, println, smp, timer};

/// Not in `gzvm_abi`: it is no part of the ABI.
const CRASH: u64 = 0xFB00_107E;

static READY: AtomicUsize = AtomicUsize::new(0);

/// Whether there was such an argument.
pub fn run() -> bool {
    let Some(kind) = machine::get().arg("el2-crash") else { return false };
    println!("testhost: el2-crash={kind}");
    if machine::get().arg("el2-crash-on") == Some("all") {
        for cpu in 1..smp::count() {
            if let Err(e) = smp::start(cpu, crash) {
                println!("testhost: CPU {cpu} does not start: {e}");
            }
        }
    } else {
        READY.store(smp::count() - 1, SeqCst);
    }
    crash();
    true
}

fn crash() {
    let kind = machine::get().arg("el2-crash").and_then(|kind| kind.parse().ok()).unwrap_or(u64::MAX);
    READY.fetch_add(1, SeqCst);
    timer::wait_ms(10_000, || READY.load(SeqCst) >= smp::count());
    let [x0, ..] = Conduit::Hvc.call(CRASH, &[kind]);
    let what = if x0 as i64 == NOT_SUPPORTED { "there is no such call" } else { "it came back" };
    println!("testhost: el2-crash: {what} ({x0:#x})");
}
