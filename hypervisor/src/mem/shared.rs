// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory of the hypervisor's that a device reads or writes: tables and queues of an SMMU.

use gzvm_core::addr::{PAGE_SIZE, Pa};

use super::pool::{self, Exhausted};

/// Words in pool pages, which are never given back: a device may use them at any time.
///
/// # Invariant
/// `base .. base + bytes` are pages of the pool that nothing in Rust refers to.
#[derive(Debug)]
pub struct SharedWords {
    base: Pa,
    bytes: u64,
}

impl SharedWords {
    /// Zeroed memory of at least `bytes` (a power of two), aligned to them.
    pub fn new(bytes: u64) -> Result<Self, Exhausted> {
        let pages = bytes.div_ceil(PAGE_SIZE).max(1);
        let base = pool::alloc(pages as usize, pages as usize)?;
        Ok(Self { base, bytes: pages.saturating_mul(PAGE_SIZE) })
    }

    /// Where it is.
    pub const fn base(&self) -> Pa {
        self.base
    }

    /// How large it is.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A word's address, if there is such a word.
    fn word(&self, index: u64) -> Option<*mut u64> {
        let offset = index.checked_mul(8).filter(|o| *o < self.bytes)?;
        Some((self.base.0 as *mut u64).wrapping_byte_add(offset as usize))
    }

    /// Reads word `index`; 0 where there is none.
    pub fn read(&self, index: u64) -> u64 {
        // SAFETY: an aligned word inside the pages (invariant); a device may write it, hence volatile.
        self.word(index).map_or(0, |word| unsafe { word.read_volatile() })
    }

    /// Writes word `index`, if there is one.
    pub fn write(&mut self, index: u64, value: u64) {
        if let Some(word) = self.word(index) {
            // SAFETY: an aligned word inside the pages (invariant); a device may read it, hence volatile.
            unsafe { word.write_volatile(value) };
        }
    }
}
