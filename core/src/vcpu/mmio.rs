// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's device access on its way to user space and back.
//!
//! Everything about the access is remembered here; of what comes back in the shared page only the
//! data is used, cut to the access's size.

use super::syndrome::DataAccess;

/// A load that waits for its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingLoad {
    access: DataAccess,
}

/// Keeps the low `size` bytes.
pub const fn truncate(value: u64, size: u8) -> u64 {
    match size {
        1 => value & 0xFF,
        2 => value & 0xFFFF,
        4 => value & 0xFFFF_FFFF,
        _ => value,
    }
}

impl PendingLoad {
    /// Remembers a load; a store needs nothing.
    pub const fn of(access: DataAccess) -> Option<Self> {
        if access.write { None } else { Some(Self { access }) }
    }

    /// The transfer register and the value that it gets for `data`, little-endian. None for XZR.
    #[inline]
    pub const fn complete(&self, data: u64) -> (u8, u64) {
        let value = truncate(data, self.access.size);
        let bits = (self.access.size as u32).wrapping_mul(8);
        let value = if self.access.sign_extend && bits < 64 {
            let shift = 64u32.wrapping_sub(bits);
            ((value << shift) as i64 >> shift) as u64
        } else {
            value
        };
        (self.access.rt, if self.access.sixty_four { value } else { value & 0xFFFF_FFFF })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(size: u8, sign_extend: bool, sixty_four: bool) -> PendingLoad {
        PendingLoad::of(DataAccess { size, sign_extend, sixty_four, rt: 7, write: false }).unwrap()
    }

    #[test]
    fn loads_extend_as_the_instruction_says() {
        assert_eq!(load(1, false, false).complete(0xFFFF_FF80), (7, 0x80));
        assert_eq!(load(1, true, false).complete(0x80), (7, 0xFFFF_FF80));
        assert_eq!(load(1, true, true).complete(0x80), (7, 0xFFFF_FFFF_FFFF_FF80));
        assert_eq!(load(4, true, true).complete(0x8000_0000), (7, 0xFFFF_FFFF_8000_0000));
        assert_eq!(load(8, false, true).complete(u64::MAX), (7, u64::MAX));
        assert_eq!(load(2, false, true).complete(u64::MAX), (7, 0xFFFF));
    }

    #[test]
    fn stores_wait_for_nothing() {
        let access = DataAccess { size: 4, sign_extend: false, sixty_four: false, rt: 0, write: true };
        assert_eq!(PendingLoad::of(access), None);
    }
}
