// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SET_WATCH: which of a VM's exceptions the host wants to know of.

use gzvm_abi::watch::{action, kind};
use gzvm_core::platform::watch::Mask;
use gzvm_core::vm::lifecycle::State;

use super::{Args, Error, Results};
use crate::arch::percpu::PerCpu;
use crate::arch::timer;
use crate::guest::registry;

/// Longest deadline of a stall: an hour.
const LONGEST_STALL_MS: u64 = 3_600_000;

/// What this CPU can watch: breakpoints may be too few.
fn supported() -> u32 {
    let breakpoints = PerCpu::this().with(|s| s.debug.counts().breakpoints);
    let bits = kind::ALL;
    let enough = |bits| Mask::new(bits).is_some_and(|m| m.breakpoints() <= breakpoints);
    if enough(bits) { bits } else { bits & !(kind::USER_UNDEFINED | kind::USER_ABORT) }
}

/// SET_WATCH: x1 = VM id, x2 = kinds, x3 = action, x4 = deadline of a stall in ms. Only before the VM first runs.
/// With x1 = 0: nothing is set. Result: the kinds that can be watched.
pub fn set([id, kinds, action, stall_ms, ..]: Args) -> Result<Results, Error> {
    if id == 0 {
        return Ok([u64::from(supported()), 0, 0]);
    }
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let kinds = u32::try_from(kinds).map_err(|_| Error::NotSupported)?;
    if kinds & !supported() != 0 {
        return Err(Error::NotSupported);
    }
    let action = u32::try_from(action).ok().filter(|a| *a <= action::KILL).ok_or(Error::Invalid)?;
    let stall = match kinds & kind::STALL {
        0 if stall_ms == 0 => u64::MAX,
        0 => return Err(Error::Invalid),
        _ if !(1..=LONGEST_STALL_MS).contains(&stall_ms) => return Err(Error::Invalid),
        _ => (timer::frequency() / 1000).saturating_mul(stall_ms).max(1),
    };
    // Nothing runs meanwhile.
    vm.life.hold(|state| {
        if state != State::Created {
            return Err(Error::Invalid);
        }
        vm.watch.set(kinds, action, stall);
        Ok([u64::from(supported()), 0, 0])
    })
}
