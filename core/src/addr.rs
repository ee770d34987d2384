// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Addresses and identifiers as types, so that one can't be taken for another.

use core::fmt;

/// Bytes in the translation granule that everything here uses (4 KiB).
pub const PAGE_SIZE: u64 = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a level-2 block (2 MiB).
pub const BLOCK_2M: u64 = 2 << 20;
/// Bytes in a level-1 block (1 GiB).
pub const BLOCK_1G: u64 = 1 << 30;

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $fmt:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $fmt, ")"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }
    };
}

newtype!(
    /// A physical address: what stage 2 translates to.
    Pa(u64), "{:#x}"
);
newtype!(
    /// An intermediate physical address: what a VM believes to be physical.
    Ipa(u64), "{:#x}"
);
newtype!(
    /// A VM, 1..=0xFFFE. 0 stands for "no VM" in the ABI, 0xFFFF for "invalid".
    VmId(u16), "{}"
);
newtype!(
    /// A vCPU's index within its VM.
    VcpuId(u16), "{}"
);
newtype!(
    /// A GIC interrupt identifier: 0-15 SGI, 16-31 PPI, 32-1019 SPI.
    IntId(u32), "{}"
);

macro_rules! address {
    ($name:ident) => {
        impl $name {
            /// The address `bytes` further on, or nothing where that would wrap.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(a) => Some(Self(a)),
                    None => None,
                }
            }
            /// Whether the address is a multiple of `align`, a power of two.
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & align.wrapping_sub(1) == 0
            }
            /// The address rounded down to a multiple of `align`, a power of two.
            pub const fn align_down(self, align: u64) -> Self {
                Self(self.0 & !align.wrapping_sub(1))
            }
            /// The address rounded up to a multiple of `align`, a power of two, unless that wraps.
            pub const fn align_up(self, align: u64) -> Option<Self> {
                match self.0.checked_add(align.wrapping_sub(1)) {
                    Some(a) => Some(Self(a & !align.wrapping_sub(1))),
                    None => None,
                }
            }
            /// The page frame number (address / 4 KiB).
            pub const fn frame(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }
            /// The address of page frame `n`, unless that is past the 64-bit space.
            pub const fn from_frame(n: u64) -> Option<Self> {
                match n.checked_mul(PAGE_SIZE) {
                    Some(a) => Some(Self(a)),
                    None => None,
                }
            }
        }
    };
}
address!(Pa);
address!(Ipa);
/// Bits of a physical address by their code in ID_AA64MMFR0_EL1.PARange and SMMU_IDR5.OAS, as far as granules of 4 KiB go.
pub const fn pa_bits(code: u32) -> u8 {
    match code {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}
