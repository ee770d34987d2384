// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Loads and stores of exactly one width and of the form that a stage-2 abort describes
//! (ESR_EL2.ISV: one register, no write-back).

use core::arch::asm;

/// A range of device registers.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    base: u64,
    size: usize,
}

macro_rules! access {
    ($read:ident, $write:ident, $raw_read:ident, $raw_write:ident, $ty:ty, $load:literal, $store:literal, $m:literal) => {
        /// Loads.
        ///
        /// # Safety
        /// Loading from `address` has no effect the caller does not want.
        #[inline(always)]
        pub unsafe fn $raw_read(address: u64) -> $ty {
            // The value that stays if the load is skipped by an expected exception.
            let mut value: $ty = 0;
            // SAFETY: see above.
            unsafe {
                asm!(concat!($load, " {v", $m, "}, [{a}]"), v = inout(reg) value, a = in(reg) address, options(nostack))
            };
            value
        }

        /// Stores.
        ///
        /// # Safety
        /// Storing to `address` breaks nothing that Rust relies on.
        #[inline(always)]
        pub unsafe fn $raw_write(address: u64, value: $ty) {
            // SAFETY: see above.
            unsafe {
                asm!(concat!($store, " {v", $m, "}, [{a}]"), v = in(reg) value, a = in(reg) address, options(nostack))
            };
        }

        impl Region {
            /// Reads the register at `offset`.
            #[inline(always)]
            pub fn $read(&self, offset: usize) -> $ty {
                assert!(offset + size_of::<$ty>() <= self.size);
                // SAFETY: inside the region (`new`).
                unsafe { $raw_read(self.base + offset as u64) }
            }

            /// Writes the register at `offset`.
            #[inline(always)]
            pub fn $write(&self, offset: usize, value: $ty) {
                assert!(offset + size_of::<$ty>() <= self.size);
                // SAFETY: inside the region (`new`).
                unsafe { $raw_write(self.base + offset as u64, value) }
            }
        }
    };
}

access!(read8, write8, load8, store8, u8, "ldrb", "strb", ":w");
access!(read16, write16, load16, store16, u16, "ldrh", "strh", ":w");
access!(read32, write32, load32, store32, u32, "ldr", "str", ":w");
access!(read64, write64, load64, store64, u64, "ldr", "str", ":x");

impl Region {
    /// Registers from `base` on, `size` bytes of them.
    ///
    /// # Safety
    /// They are device registers: no access in the range changes memory that Rust knows.
    pub const unsafe fn new(base: u64, size: usize) -> Self {
        Self { base, size }
    }

    /// Address of the first register.
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Bytes.
    pub const fn size(&self) -> usize {
        self.size
    }
}
