// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pages for a VM's tables that the host gave for this VM, where the hypervisor's pool has none or the VM may have no more
//! of them: blocks of 2 MiB.
//!
//! Only the VM's own stage-2 tables are taken from them. So all are free again when these are gone, and the blocks go back whole.
//!
//! # Invariants
//! `taken` of a block is the number of set bits in its bitmap.

use super::PaRange;
use super::pool::FreeError;
use crate::addr::{BLOCK_2M, PAGE_SIZE, Pa};
use arrayvec::ArrayVec;

/// The most blocks that a VM may have.
pub const MOST_BLOCKS: usize = 16;
/// Pages in a block.
pub const BLOCK_PAGES: u64 = BLOCK_2M / PAGE_SIZE;
const WORDS: usize = BLOCK_PAGES as usize / 64;

/// Why a block was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There are [`MOST_BLOCKS`].
    #[error("the VM has as many blocks as it may have")]
    Full,
    /// Not one block, aligned to its size.
    #[error("not a block of 2 MiB")]
    NoBlock,
}

#[derive(Debug, PartialEq, Eq)]
struct Block {
    memory: PaRange,
    bitmap: [u64; WORDS],
    taken: u64,
}

/// The blocks of a VM.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Given {
    blocks: ArrayVec<Block, MOST_BLOCKS>,
}

impl Given {
    /// None.
    pub const fn new() -> Self {
        Self { blocks: ArrayVec::new_const() }
    }

    /// How many.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// One more, which nobody else has.
    ///
    /// # Errors
    /// See [`Unusable`].
    pub fn add(&mut self, memory: PaRange) -> Result<(), Unusable> {
        if memory.size() != BLOCK_2M || !memory.start().is_aligned(BLOCK_2M) {
            return Err(Unusable::NoBlock);
        }
        let block = Block { memory, bitmap: [0; WORDS], taken: 0 };
        self.blocks.try_push(block).map_err(|_| Unusable::Full)
    }

    /// A free page; not zeroed.
    pub fn take(&mut self) -> Option<Pa> {
        let block = self.blocks.iter_mut().find(|block| block.taken < BLOCK_PAGES)?;
        let (index, word) = (0u64..).zip(&mut block.bitmap).find(|(_, word)| **word != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1u64.wrapping_shl(bit);
        block.taken = block.taken.saturating_add(1);
        let page = index.wrapping_mul(64).wrapping_add(bit.into());
        block.memory.start().checked_add(page.wrapping_mul(PAGE_SIZE))
    }

    /// Takes a page back; false if it is none of these.
    ///
    /// # Errors
    /// [`FreeError::DoubleFree`].
    pub fn put_back(&mut self, page: Pa) -> Result<bool, FreeError> {
        let Some(block) = self.blocks.iter_mut().find(|block| block.memory.contains(page)) else {
            return Ok(false);
        };
        let index = page.frame() % BLOCK_PAGES;
        let bit = 1u64.wrapping_shl((index % 64) as u32);
        let word = usize::try_from(index / 64).ok().and_then(|n| block.bitmap.get_mut(n));
        match word {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                block.taken = block.taken.saturating_sub(1);
                Ok(true)
            }
            _ => Err(FreeError::DoubleFree(page)),
        }
    }

    /// The last block, which is the VM's no longer; and whether all of it was free, so that it can go back.
    pub fn remove(&mut self) -> Option<(PaRange, bool)> {
        self.blocks.pop().map(|block| (block.memory, block.taken == 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn block(n: u64) -> PaRange {
        PaRange::new(Pa(n * BLOCK_2M), BLOCK_2M).unwrap()
    }

    #[test]
    fn each_page_once_and_all_of_them() {
        let mut given = Given::new();
        assert_eq!((given.take(), given.remove()), (None, None));
        given.add(block(7)).unwrap();
        given.add(block(3)).unwrap();
        let mut pages = BTreeSet::new();
        while let Some(page) = given.take() {
            assert!(page.is_aligned(PAGE_SIZE));
            assert!(block(7).contains(page) || block(3).contains(page), "{page}");
            assert!(pages.insert(page), "{page} twice");
        }
        assert_eq!(pages.len() as u64, 2 * BLOCK_PAGES);
        let page = *pages.iter().nth(700).unwrap();
        assert_eq!(given.put_back(page), Ok(true));
        assert_eq!(given.put_back(page), Err(FreeError::DoubleFree(page)));
        assert_eq!(given.take(), Some(page), "the one that came back");
        assert_eq!(given.put_back(Pa(block(4).start().0)), Ok(false));
        // What is in use does not go back.
        for page in pages.iter().filter(|page| block(3).contains(**page)) {
            assert_eq!(given.put_back(*page), Ok(true));
        }
        assert_eq!(given.remove(), Some((block(3), true)));
        assert_eq!(given.remove(), Some((block(7), false)));
    }

    #[test]
    fn only_blocks_and_not_too_many() {
        let mut given = Given::new();
        for bad in [(BLOCK_2M / 2, BLOCK_2M), (0, BLOCK_2M / 2), (0, 2 * BLOCK_2M)] {
            assert_eq!(given.add(PaRange::new(Pa(bad.0), bad.1).unwrap()), Err(Unusable::NoBlock));
        }
        for n in 0..MOST_BLOCKS as u64 {
            given.add(block(n)).unwrap();
        }
        assert_eq!(given.add(block(99)), Err(Unusable::Full));
        assert_eq!(given.blocks(), MOST_BLOCKS as u64);
    }
}
