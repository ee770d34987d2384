// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The last lines of the log, in RAM. The ring starts with a magic number so that it can be found
//! in a memory dump, or after a reset that kept RAM.

use core::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

const SIZE: usize = 16 * 1024;
const MAGIC: u64 = u64::from_le_bytes(*b"GZVMLOG1");

/// A ring of bytes that any CPU may append to.
#[repr(C)]
pub struct Ring {
    magic: AtomicU64,
    /// Bytes ever written; the next goes to `written % SIZE`.
    written: AtomicUsize,
    bytes: [AtomicU8; SIZE],
}

/// The log. All zero, so that the image file need not have it.
pub static RING: Ring = Ring {
    magic: AtomicU64::new(0),
    written: AtomicUsize::new(0),
    bytes: [const { AtomicU8::new(0) }; SIZE],
};

impl Ring {
    /// Appends `bytes`, over the oldest.
    pub fn append(&self, bytes: &[u8]) {
        self.magic.store(MAGIC, Ordering::Relaxed);
        let mut at = self.written.fetch_add(bytes.len(), Ordering::Relaxed);
        for b in bytes {
            self.bytes[at % SIZE].store(*b, Ordering::Relaxed);
            at = at.wrapping_add(1);
        }
    }

    /// Where it is.
    pub fn address(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }
}
