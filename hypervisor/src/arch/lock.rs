// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The lock of EL2: crate `spin`, waiting with YIELD.
//!
//! Test-and-set, not ticket: every section is short and every contender leaves EL2's lock for much
//! longer than it holds it, so nobody starves; while in an emulator, whose CPUs are threads that the
//! machine takes off their cores, a queue would wait for the one that sleeps. `core::hint::spin_loop`
//! is ISB on arm64, which tells neither an SMT core nor an emulator that somebody waits.

use spin::RelaxStrategy;

/// Waits with YIELD.
pub struct Yield;

impl RelaxStrategy for Yield {
    #[inline(always)]
    fn relax() {
        pause();
    }
}

/// A hint that this CPU waits for another.
#[inline(always)]
pub fn pause() {
    // SAFETY: a hint.
    unsafe { core::arch::asm!("yield", options(nomem, nostack, preserves_flags)) }
}

/// Mutual exclusion between CPUs at EL2.
pub type Mutex<T> = spin::mutex::SpinMutex<T, Yield>;
/// What a locked [`Mutex`] gives.
pub type MutexGuard<'a, T> = spin::mutex::SpinMutexGuard<'a, T, Yield>;
