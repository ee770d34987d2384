// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The images that firmware has verified since boot ([`gzvm_core::vm::images`]), for the firmware of protected VMs.
//!
//! Who may ask: a VM that started with the hypervisor's firmware, until that seals the measurement. Before, no other code than
//! the firmware's has run there, and what is remembered is its word.

use gzvm_abi::digest::from_words;
use gzvm_abi::guest::{self, MEASUREMENT_SEALED};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::platform::smccc::{INVALID_PARAMETER, NOT_SUPPORTED};
use gzvm_core::vm::images::Images;

use super::outcome::Next;
use super::random;
use super::run::Running;
use crate::arch::lock::Mutex;

/// Made when it is first asked for; never without entropy.
static IMAGES: Mutex<Option<Images>> = Mutex::new(None);

fn images<R>(then: impl FnOnce(&mut Images) -> R) -> Option<R> {
    let mut images = IMAGES.lock();
    if images.is_none() && random::available() {
        *images = Some(Images::new([random::draw().ok()?, random::draw().ok()?]));
    }
    images.as_mut().map(then)
}

impl Running<'_> {
    /// One of the calls about images.
    #[cold]
    pub(super) fn image(&mut self, fid: u32) -> Next {
        let firmware = self.vm.firmware_entry().is_some() || broken(Mistake::AnybodysImages);
        let sealed = self.vm.measured(|m| m.sealed());
        let [_, x1, x2, x3, x4, ..] = self.vcpu.regs.x;
        let (key, tag) = ([x1, x2], [x3, x4]);
        let x = &mut self.vcpu.regs.x;
        let done = match (sealed, fid) {
            (None, _) => Some(NOT_SUPPORTED),
            (Some(true), _) if !broken(Mistake::PayloadsImages) => Some(MEASUREMENT_SEALED),
            _ if !firmware => Some(NOT_SUPPORTED),
            (_, guest::IMAGE_KEY) => images(|images| {
                let key = images.key(&from_words([x1, x2, x3, x4]));
                [x[1], x[2], x[3]] = [key[0], key[1], images.knows(key).into()];
                0
            }),
            (_, guest::IMAGE_CHECK) => {
                images(|images| if images.check(key, tag) { 0 } else { INVALID_PARAMETER })
            }
            (_, _) => images(|images| {
                images.remember(key, tag);
                0
            }),
        };
        x[0] = done.unwrap_or(NOT_SUPPORTED);
        Next::Resume
    }
}
