// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where the hypervisor puts its own memory: one contiguous range, out of everybody's way.

use super::machine::Region;
use crate::addr::BLOCK_2M;

/// The highest 2 MiB aligned range of `size` bytes (rounded up to 2 MiB) that lies in one bank and
/// touches nothing of `taken`. High, so that the host keeps its low memory and its large blocks.
pub fn place(banks: &[Region], taken: impl Iterator<Item = Region> + Clone, size: u64) -> Option<Region> {
    let size = size.checked_next_multiple_of(BLOCK_2M)?;
    banks.iter().filter_map(|bank| place_in(bank, taken.clone(), size)).max_by_key(|r| r.base)
}

fn place_in(bank: &Region, taken: impl Iterator<Item = Region> + Clone, size: u64) -> Option<Region> {
    let mut base = bank.end().checked_sub(size)? & !BLOCK_2M.wrapping_sub(1);
    loop {
        if base < bank.base {
            return None;
        }
        let candidate = Region { base, size };
        // Each round moves below at least one taken range, so this ends.
        match taken.clone().filter(|t| t.size > 0 && t.overlaps(&candidate)).map(|t| t.base).min() {
            None => return Some(candidate),
            Some(lowest) => base = lowest.checked_sub(size)? & !BLOCK_2M.wrapping_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: u64 = 1 << 20;

    fn region(base: u64, size: u64) -> Region {
        Region { base: base * M, size: size * M }
    }

    #[test]
    fn the_highest_free_range_wins() {
        let banks = [region(1024, 2048), region(8192, 8)];
        let taken = [region(8192, 1), region(3070, 2), region(3040, 3)];
        assert_eq!(place(&banks, taken.into_iter(), 6 * M), Some(region(8194, 6)));
        assert_eq!(place(&banks, taken.into_iter(), 8 * M), Some(region(3062, 8)));
        assert_eq!(place(&banks, taken.into_iter(), 24 * M), Some(region(3046, 24)));
        assert_eq!(place(&banks, taken.into_iter(), 40 * M), Some(region(3000, 40)));
        assert_eq!(place(&banks, taken.into_iter(), 4096 * M), None);
        assert_eq!(place(&[], taken.into_iter(), M), None);
    }
}
