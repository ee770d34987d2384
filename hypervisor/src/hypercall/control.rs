// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CONTROL: pause, resume and state of a VM.

use core::sync::atomic::Ordering;

use gzvm_abi::control::{PAUSE, RESUME, STATUS, state};
use gzvm_core::vm::lifecycle::{Cause, State};

use super::{Args, Error, Results};
use crate::guest::registry;

/// CONTROL: x1 = VM id, x2 = what. Result: its state. Invalid for a VM that is over; busy while a pause is under
/// way.
pub fn control([id, what, ..]: Args) -> Result<Results, Error> {
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let now = match u32::try_from(what).map_err(|_| Error::Invalid)? {
        STATUS => vm.life.state(),
        PAUSE => {
            let now = vm.pause().map_err(|_| Error::Invalid)?;
            if vm.anybody_runs() {
                return Err(Error::Busy);
            }
            now
        }
        RESUME if matches!(vm.life.state(), State::Paused(_)) && vm.anybody_runs() => {
            return Err(Error::Busy);
        }
        RESUME => vm.resume().map_err(|_| Error::Invalid)?,
        _ => return Err(Error::Invalid),
    };
    Ok([u64::from(number(now)), vm.watch.events.load(Ordering::Relaxed), 0])
}

const fn number(of: State) -> u32 {
    match of {
        State::Created => state::CREATED,
        State::Running => state::RUNNING,
        State::Paused(_) => state::PAUSED,
        State::Suspended => state::SUSPENDED,
        State::Ended(Cause::PowerOff) => state::OFF,
        State::Ended(Cause::Reset { .. }) => state::RESET,
        State::Ended(Cause::Crash) => state::CRASHED,
        State::Dying => state::DYING,
    }
}
