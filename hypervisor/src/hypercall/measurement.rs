// SPDX-License-Identifier: Apache-2.0 OR MIT
//! MEASUREMENT: who a protected VM is.

use gzvm_abi::digest::from_words;

use super::{Args, Error, Results};
use crate::guest::registry;
use gzvm_core::broken::{Mistake, broken};

/// MEASUREMENT: x1 = VM id, x2 = half, 0 or 1. Results: 16 bytes of the measurement, its state. Not supported: a plain VM, or
/// one that has not run yet.
pub fn measurement([id, half, digest @ .., _]: Args) -> Result<Results, Error> {
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    if half > 1 {
        return Err(Error::Invalid);
    }
    if broken(Mistake::HostExtends) {
        let _ = vm.measured(|m| m.extend(&from_words(digest)));
    }
    vm.measurement_half(half).ok_or(Error::NotSupported)
}
