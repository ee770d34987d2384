// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What all CPUs must be able to do if it is to be used at all, since a VM may run on any of them.

use core::sync::atomic::{AtomicU8, Ordering};

/// Decided once, by what comes first: somebody who relies on it, or a CPU that can't.
pub struct Decision(AtomicU8);

/// VMIDs of sixteen bits.
pub static WIDE_VMIDS: Decision = Decision::new();
/// FEAT_S2FWB: stage 2 makes guests' accesses to RAM cacheable.
pub static FORCED_WRITE_BACK: Decision = Decision::new();

const OPEN: u8 = 0;
const USED: u8 = 1;
const REFUSED: u8 = 2;

impl Decision {
    const fn new() -> Self {
        Self(AtomicU8::new(OPEN))
    }

    fn decide(&self, what: u8) -> bool {
        match self.0.compare_exchange(OPEN, what, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(_) => true,
            Err(decided) => decided == what,
        }
    }

    /// Whether all CPUs can, those that come up later too: it is relied on from now on.
    pub fn rely(&self) -> bool {
        self.decide(USED)
    }

    /// Of each CPU that comes up: whether it can. False: it can't, and it is too late for that.
    pub fn joins(&self, able: bool) -> bool {
        able || self.decide(REFUSED)
    }
}
