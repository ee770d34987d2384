// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Device registers at EL2 (identity mapped).

/// A device's register frame.
///
/// # Invariant
/// `base .. base + size` is device memory, mapped at EL2 by boot, and not in any RAM bank.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    base: u64,
    size: u64,
}

macro_rules! access {
    ($read:ident, $write:ident, $ty:ty, $load:literal, $store:literal, $reg:literal) => {
        /// Reads a register; offsets outside the frame read as zero.
        #[inline(always)]
        pub fn $read(&self, offset: u64) -> $ty {
            if offset.saturating_add(size_of::<$ty>() as u64) > self.size {
                return 0;
            }
            let value: $ty;
            // SAFETY: inside the frame, which is mapped device memory (invariant).
            unsafe {
                core::arch::asm!(concat!($load, " {v", $reg, "}, [{a}]"), v = out(reg) value,
                    a = in(reg) self.base.wrapping_add(offset), options(nostack, preserves_flags));
            }
            value
        }

        /// Writes a register; offsets outside the frame do nothing.
        #[inline(always)]
        pub fn $write(&self, offset: u64, value: $ty) {
            if offset.saturating_add(size_of::<$ty>() as u64) > self.size {
                return;
            }
            // SAFETY: inside the frame, which is mapped device memory (invariant).
            unsafe {
                core::arch::asm!(concat!($store, " {v", $reg, "}, [{a}]"), v = in(reg) value,
                    a = in(reg) self.base.wrapping_add(offset), options(nostack, preserves_flags));
            }
        }
    };
}

impl Frame {
    /// A frame.
    ///
    /// # Safety
    /// The range must be device memory that boot maps (or will map before the first access) at EL2,
    /// and whose registers EL2 may access.
    pub const unsafe fn new(base: u64, size: u64) -> Self {
        Self { base, size }
    }

    access!(read8, write8, u8, "ldrb", "strb", ":w");
    access!(read32, write32, u32, "ldr", "str", ":w");

    /// Reads a 64-bit register as two halves (GICR_TYPER may be read so).
    pub fn read64(&self, offset: u64) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset.wrapping_add(4))) << 32
    }
}
