// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who this protected VM is: its measurement, kept by the hypervisor.

use core::fmt;

use gzvm_abi::digest::{self, Digest};
use gzvm_abi::guest::{self, measurement};

use crate::machine;

/// The measurement as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measurement {
    /// The register.
    pub value: Digest,
    /// How often it was extended.
    pub extends: u32,
    /// It changes no more.
    pub sealed: bool,
    /// The hypervisor's firmware started this VM.
    pub firmware: bool,
}

impl fmt::Display for Measurement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Reads it; none in a plain VM.
pub fn read() -> Option<Measurement> {
    let conduit = machine::get().conduit;
    let half = |n| match conduit.call(guest::MEASUREMENT_READ.into(), &[n]) {
        [0, results @ ..] => Some(results),
        _ => None,
    };
    loop {
        let [a, b, state] = half(0)?;
        let [c, d, again] = half(1)?;
        // Another vCPU may extend it in between.
        if state == again {
            return Some(Measurement {
                value: digest::from_words([a, b, c, d]),
                extends: (state >> measurement::EXTENDS_SHIFT) as u32,
                sealed: state & measurement::SEALED != 0,
                firmware: state & measurement::FIRMWARE != 0,
            });
        }
    }
}

/// Adds a digest. Refused, with the hypervisor's status, once it is sealed.
pub fn extend(digest: &Digest) -> Result<(), u64> {
    status(guest::MEASUREMENT_EXTEND, &digest::words(digest))
}

/// Ends that.
pub fn seal() -> Result<(), u64> {
    status(guest::MEASUREMENT_SEAL, &[])
}

fn status(function: u32, args: &[u64]) -> Result<(), u64> {
    match machine::get().conduit.call(function.into(), args)[0] {
        0 => Ok(()),
        status => Err(status),
    }
}
