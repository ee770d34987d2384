// SPDX-License-Identifier: GPL-2.0-only
//! The calling thread, and time.

use super::error::{Error, Result};
use crate::sys;

/// Has the caller to return to user space for a signal?
pub fn signal_pending() -> bool {
    // SAFETY: no preconditions.
    unsafe { sys::gzk_signal_pending() != 0 }
}

/// Lets other threads run if they should.
pub fn cond_resched() {
    // SAFETY: only called without spin locks, from process context.
    unsafe { sys::gzk_cond_resched() }
}

/// Sleeps, uninterruptibly.
pub fn msleep(ms: u32) {
    // SAFETY: only called without spin locks, from process context.
    unsafe { sys::gzk_msleep(ms) }
}

/// Ticks of the system counter as nanoseconds, rounded down, saturating.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    // SAFETY: reads a register.
    let hz = unsafe { sys::gzk_counter_frequency() };
    ticks_to_ns_at(ticks, hz)
}

/// As [`ticks_to_ns`], of a counter with `hz` ticks in a second. No 128-bit division: the kernel has none.
pub fn ticks_to_ns_at(ticks: u64, hz: u64) -> u64 {
    const NS: u64 = 1_000_000_000;
    let (Some(seconds), Some(rest)) = (ticks.checked_div(hz), ticks.checked_rem(hz)) else { return 0 };
    let part = rest.saturating_mul(NS).checked_div(hz).unwrap_or(0);
    seconds.saturating_mul(NS).saturating_add(part)
}

/// Wall clock in ns, and the system counter at that moment. EOPNOTSUPP if the clock is another counter.
pub fn clock_snapshot() -> Result<(u64, u64)> {
    let (mut wall, mut counter) = (0, 0);
    // SAFETY: both are valid for a write.
    Error::check(unsafe { sys::gzk_clock_snapshot(&mut wall, &mut counter) })?;
    Ok((wall, counter))
}
