// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The measurement of a protected VM: who it is, for itself and for others ([`gzvm_core::vm::identity`]).
//!
//! It is made when it is first asked for, which changes nothing: what goes into it is fixed from the VM's first RUN on, since
//! whoever sets it holds the state of its life ([`Life::hold`](super::life::Life::hold)).

use core::sync::atomic::Ordering;

use gzvm_abi::digest::from_words;
use gzvm_abi::guest::{self, MEASUREMENT_SEALED, measurement};
use gzvm_abi::hypercall::vm_feature::SVE;
use gzvm_core::platform::smccc::INVALID_PARAMETER;
use gzvm_core::vm::identity::{Facts, Identity, Measurement, Sealed};

use super::firmware;
use super::outcome::Next;
use super::run::Running;
use super::vm::Vm;
use gzvm_core::broken::{Mistake, broken};

impl Vm {
    fn facts(&self) -> Facts {
        Facts {
            firmware: self.firmware_entry().and_then(firmware::fact),
            features: if self.sve.load(Ordering::SeqCst) { SVE } else { 0 },
            watch: self.watch.fact().filter(|_| !broken(Mistake::HiddenWatch)),
            breakable: cfg!(feature = "crash-test"),
        }
    }

    /// Does something with the measurement; a plain VM has none, nor has one that has not run.
    pub fn measured<R>(&self, then: impl FnOnce(&mut Measurement) -> R) -> Option<R> {
        if !self.protected() || !self.life.state().has_begun() {
            return None;
        }
        let mut measurement = self.measurement.lock();
        Some(then(measurement.get_or_insert_with(|| Measurement::begin(&self.facts()))))
    }

    /// Who it is.
    pub fn identity(&self) -> Identity {
        Identity { vm: self.party, protected: self.protected(), measurement: self.measured(|m| *m) }
    }

    /// Half of the measurement in two words, and its state; nothing where there is none.
    pub fn measurement_half(&self, half: u64) -> Option<[u64; 3]> {
        let with = if self.firmware_entry().is_some() { measurement::FIRMWARE } else { 0 };
        self.measured(|m| {
            let sealed = if m.sealed() { measurement::SEALED } else { 0 };
            let [low, high] = m.half(half)?;
            Some([low, high, u64::from(m.extends()) << measurement::EXTENDS_SHIFT | with | sealed])
        })?
    }
}

impl Running<'_> {
    /// One of the calls about the measurement.
    pub(super) fn measurement(&mut self, fid: u32) -> Next {
        let [_, x1, x2, x3, x4, ..] = self.vcpu.regs.x;
        let sealed = |done: Option<Result<(), Sealed>>| match done {
            Some(Ok(())) => 0,
            Some(Err(Sealed)) => MEASUREMENT_SEALED,
            None => INVALID_PARAMETER,
        };
        let vm = self.vm;
        let x = &mut self.vcpu.regs.x;
        match fid {
            guest::MEASUREMENT_EXTEND => {
                x[0] = sealed(vm.measured(|m| m.extend(&from_words([x1, x2, x3, x4]))));
            }
            guest::MEASUREMENT_SEAL if broken(Mistake::NoSeal) => x[0] = 0,
            guest::MEASUREMENT_SEAL => x[0] = sealed(vm.measured(Measurement::seal)),
            _ => match vm.measurement_half(x1) {
                Some([low, high, state]) => [x[0], x[1], x[2], x[3]] = [0, low, high, state],
                None => x[0] = INVALID_PARAMETER,
            },
        }
        Next::Resume
    }
}
