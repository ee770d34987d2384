// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The host's accesses to the first page of a GICv3 redistributor (RD_base), where the GIC is kept from memory.
//!
//! A redistributor reads and writes tables where GICR_PROPBASER and GICR_PENDBASER point, and no SMMU stands between. So
//! the host has no LPIs: it is told so (GICR_TYPER), and can neither place tables nor enable them. Its other registers
//! there work; what is not known is read but not written.

/// GICR_CTLR: 32 bits.
const CTLR: u64 = 0x00;
/// GICR_CTLR.EnableLPIs.
const ENABLE_LPIS: u64 = 1 << 0;
/// GICR_TYPER: 64 bits.
const TYPER: u64 = 0x08;
/// GICR_TYPER.{PLPIS, VLPIS, Dirty, DirectLPI}.
const LPI_FEATURES: u64 = 0b1111;
/// GICR_STATUSR and GICR_WAKER: 32 bits.
const STATUSR: u64 = 0x10;
const WAKER: u64 = 0x14;

/// Whether an access has a width that registers there have, and is aligned to it.
pub const fn is_valid(offset: u64, size: u8) -> bool {
    matches!(size, 4 | 8) && offset & (size as u64).wrapping_sub(1) == 0
}

/// What the host reads at `offset` where the register holds `value`.
pub const fn load(offset: u64, value: u64) -> u64 {
    match offset {
        TYPER => value & !LPI_FEATURES,
        _ => value,
    }
}

/// What a store of the host's of `size` bytes puts into the register at `offset`, 32 bits wide; nothing for those that it may
/// not write.
pub const fn store(offset: u64, size: u8, value: u64) -> Option<u32> {
    match (offset, size) {
        (CTLR, 4) => Some((value & !ENABLE_LPIS) as u32),
        (STATUSR | WAKER, 4) => Some(value as u32),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_store_reaches_lpis_or_their_tables() {
        for offset in (0..0x1000).step_by(4) {
            for size in [4, 8] {
                match store(offset, size, u64::MAX) {
                    Some(value) => match offset {
                        0x00 => assert_eq!(value, 0xFFFF_FFFE),
                        0x10 | 0x14 => assert_eq!((value, size), (u32::MAX, 4)),
                        _ => panic!("{offset:#x}"),
                    },
                    None => assert!(![0, 0x10, 0x14].contains(&offset) || size == 8),
                }
            }
        }
    }

    #[test]
    fn loads_tell_of_no_lpis() {
        assert_eq!(load(0x08, 0x0000_0001_0000_003F), 0x0000_0001_0000_0030);
        assert_eq!(load(0x00, 7), 7);
        assert_eq!(load(0x0C, 0x0F), 0x0F, "the affinity");
        assert_eq!(load(0x14, u64::MAX), u64::MAX);
    }

    #[test]
    fn widths() {
        assert!(is_valid(8, 8) && is_valid(0xC, 4) && is_valid(0, 4));
        assert!(!is_valid(0xC, 8) && !is_valid(2, 4) && !is_valid(0, 1) && !is_valid(0, 2));
    }
}
