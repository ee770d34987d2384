// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pages of the hypervisor: one contiguous pool, and what of it is charged to whom.
//!
//! A bitmap with one bit per page; set means taken. The pool gives out addresses, EL2 zeroes the
//! pages. Whoever asks on behalf of a VM pays from the VM's [`Account`] first, so that one VM can't
//! drain the pool (XSA-409), and "out of memory" names whose.
//!
//! # Invariants
//! `free` is the number of clear bits. Bits past the pool's end are set. No page below `hint` words
//! is free.

use super::PaRange;
use super::given::{BLOCK_PAGES, Given};
use crate::addr::{PAGE_SHIFT, PAGE_SIZE, Pa};

const BITS: u64 = 64;

/// Why there are no pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// No free run of that length and alignment.
    #[error("the hypervisor's pool has no such run of free pages")]
    PoolExhausted,
    /// The VM may not have that many.
    #[error("the VM's page allowance is used up")]
    OverLimit,
    /// Zero pages, or an alignment that is not a power of two.
    #[error("no such run of pages")]
    BadRequest,
}

/// Why a run could not be given back: a bug of the caller. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FreeError {
    /// Not (all) in the pool.
    #[error("{0} is not the pool's")]
    Foreign(Pa),
    /// A page of it is free already.
    #[error("{0} is free already")]
    DoubleFree(Pa),
    /// The account never paid for that many.
    #[error("more pages given back than charged")]
    NotCharged,
}

/// The storage for the bitmap is too small.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too little storage for the pool's bitmap")]
pub struct TooSmall;

/// A pool of pages.
pub struct Pool<'m> {
    range: PaRange,
    bitmap: &'m mut [u64],
    free: u64,
    /// Index of the first word that may have a clear bit.
    hint: u64,
}

impl<'m> Pool<'m> {
    /// `u64` words of bitmap for a pool of `pages`.
    pub const fn words(pages: u64) -> u64 {
        pages.div_ceil(BITS)
    }

    /// A pool over `range`, all free.
    ///
    /// # Errors
    /// Where `bitmap` has fewer than [`Pool::words`].
    pub fn new(range: PaRange, bitmap: &'m mut [u64]) -> Result<Self, TooSmall> {
        let words = usize::try_from(Self::words(range.pages())).map_err(|_| TooSmall)?;
        let bitmap = bitmap.get_mut(..words).ok_or(TooSmall)?;
        bitmap.fill(0);
        let tail = range.pages() & (BITS - 1);
        if let (Some(last), 1..) = (bitmap.last_mut(), tail) {
            *last = u64::MAX.wrapping_shl(tail as u32);
        }
        Ok(Self { range, bitmap, free: range.pages(), hint: 0 })
    }

    /// The pages the pool manages.
    pub const fn range(&self) -> PaRange {
        self.range
    }

    /// Free pages.
    pub const fn free_pages(&self) -> u64 {
        self.free
    }

    /// Taken pages.
    pub const fn used_pages(&self) -> u64 {
        self.range.pages().wrapping_sub(self.free)
    }

    /// A run of `pages`, at a physical address that is a multiple of `align` pages (a power of two).
    /// Not zeroed.
    ///
    /// # Errors
    /// [`AllocError::PoolExhausted`], [`AllocError::BadRequest`].
    pub fn alloc(&mut self, pages: u64, align: u64) -> Result<PaRange, AllocError> {
        if pages == 0 || !align.is_power_of_two() {
            return Err(AllocError::BadRequest);
        }
        if pages > self.free {
            return Err(AllocError::PoolExhausted);
        }
        let index = match (pages, align) {
            (1, 1) => self.first_free(),
            _ => self.find_run(pages, align),
        };
        let index = index.ok_or(AllocError::PoolExhausted)?;
        let run = self.run_at(index, pages).ok_or(AllocError::PoolExhausted)?;
        (index..index.saturating_add(pages)).for_each(|i| self.set(i, true));
        self.free = self.free.wrapping_sub(pages);
        Ok(run)
    }

    /// As [`Pool::alloc`], paid from `account`.
    ///
    /// # Errors
    /// As [`Pool::alloc`], and [`AllocError::OverLimit`]; the account is as before then.
    pub fn alloc_for(
        &mut self,
        account: &mut Account,
        pages: u64,
        align: u64,
    ) -> Result<PaRange, AllocError> {
        account.charge(pages)?;
        self.alloc(pages, align).inspect_err(|_| {
            // What was just charged can be refunded.
            let _ = account.refund(pages);
        })
    }

    /// Give a run back; not necessarily in the pieces it was allocated in.
    ///
    /// # Errors
    /// See [`FreeError`].
    pub fn free(&mut self, run: PaRange) -> Result<(), FreeError> {
        if !self.range.covers(&run) {
            return Err(FreeError::Foreign(run.start()));
        }
        let first = run.start().frame().wrapping_sub(self.range.start().frame());
        let indices = first..first.saturating_add(run.pages());
        if let Some(index) = indices.clone().find(|i| !self.is_taken(*i)) {
            let at = self.run_at(index, 1).map_or(run.start(), |r| r.start());
            return Err(FreeError::DoubleFree(at));
        }
        indices.for_each(|i| self.set(i, false));
        self.free = self.free.wrapping_add(run.pages());
        self.hint = self.hint.min(first / BITS);
        Ok(())
    }

    /// As [`Pool::free`], refunded to `account`.
    ///
    /// # Errors
    /// See [`FreeError`].
    pub fn free_for(&mut self, account: &mut Account, run: PaRange) -> Result<(), FreeError> {
        if account.used < run.pages() {
            return Err(FreeError::NotCharged);
        }
        self.free(run)?;
        account.refund(run.pages())
    }

    fn first_free(&mut self) -> Option<u64> {
        let from = usize::try_from(self.hint).ok()?;
        for (offset, word) in self.bitmap.get(from..)?.iter().enumerate() {
            if *word != u64::MAX {
                let index = self.hint.wrapping_add(offset as u64);
                self.hint = index;
                return Some(index.wrapping_mul(BITS).wrapping_add(word.trailing_ones().into()));
            }
        }
        None
    }

    fn find_run(&self, pages: u64, align: u64) -> Option<u64> {
        // Alignment is of the address, not of the index.
        let base = self.range.start().frame();
        let aligned = |index: u64| {
            let frame = base.checked_add(index)?.checked_next_multiple_of(align)?;
            frame.checked_sub(base)
        };
        let mut index = aligned(self.hint.wrapping_mul(BITS))?;
        loop {
            let end = index.checked_add(pages)?;
            if end > self.range.pages() {
                return None;
            }
            // From behind: the last taken page is where the next candidate starts.
            match (index..end).rev().find(|i| self.is_taken(*i)) {
                None => return Some(index),
                Some(taken) => index = aligned(taken.checked_add(1)?)?,
            }
        }
    }

    fn run_at(&self, index: u64, pages: u64) -> Option<PaRange> {
        let start = self.range.start().checked_add(index.checked_mul(PAGE_SIZE)?)?;
        PaRange::new(start, pages.checked_shl(PAGE_SHIFT)?).ok()
    }

    /// What is outside counts as taken.
    fn is_taken(&self, index: u64) -> bool {
        let word = usize::try_from(index / BITS).ok().and_then(|i| self.bitmap.get(i));
        word.is_none_or(|w| w & bit(index) != 0)
    }

    fn set(&mut self, index: u64, taken: bool) {
        if let Some(word) = usize::try_from(index / BITS).ok().and_then(|i| self.bitmap.get_mut(i)) {
            if taken {
                *word |= bit(index);
            } else {
                *word &= !bit(index);
            }
        }
    }
}

const fn bit(index: u64) -> u64 {
    1u64.wrapping_shl((index & (BITS - 1)) as u32)
}

/// What a VM, or the hypervisor for itself, has taken from the pool, in pages.
#[derive(Debug, PartialEq, Eq)]
pub struct Account {
    used: u64,
    limit: u64,
    /// Of `used`: tables of others that are there because of this one.
    caused: u64,
    /// What the host gave for its tables. It is paid for.
    given: Given,
}

impl Account {
    /// An empty account that may grow to `limit` pages.
    pub const fn new(limit: u64) -> Self {
        Self { used: 0, limit, caused: 0, given: Given::new() }
    }

    /// Pages charged.
    pub const fn used(&self) -> u64 {
        self.used
    }

    /// Pages it may have.
    pub const fn limit(&self) -> u64 {
        self.limit
    }

    /// What the host gave for its tables. A block's pages are as many tables of its own, which so much less has to come from the
    /// pool for; hence it may cause as many of others.
    pub const fn given(&mut self) -> &mut Given {
        &mut self.given
    }

    /// Pay for `pages`.
    ///
    /// # Errors
    /// [`AllocError::OverLimit`]; nothing was charged.
    pub fn charge(&mut self, pages: u64) -> Result<(), AllocError> {
        self.charge_up_to(pages, self.limit)
    }

    fn charge_up_to(&mut self, pages: u64, limit: u64) -> Result<(), AllocError> {
        match self.used.checked_add(pages) {
            Some(used) if used <= limit => {
                self.used = used;
                Ok(())
            }
            _ => Err(AllocError::OverLimit),
        }
    }

    /// Pay for `pages` that another's tables took because of this one.
    ///
    /// # Errors
    /// As [`charge`](Self::charge), but that what was [`given`](Self::given) counts too.
    pub fn charge_caused(&mut self, pages: u64) -> Result<(), AllocError> {
        let more = self.given.blocks().saturating_mul(BLOCK_PAGES);
        self.charge_up_to(pages, self.limit.saturating_add(more))?;
        self.caused = self.caused.saturating_add(pages);
        Ok(())
    }

    /// Another's tables gave `pages` back. Who did that may not be who caused them, so that nobody gets back more than was paid.
    pub fn refund_caused(&mut self, pages: u64) {
        let pages = pages.min(self.caused);
        self.caused = self.caused.saturating_sub(pages);
        self.used = self.used.saturating_sub(pages);
    }

    /// Get back what was paid for `pages`.
    ///
    /// # Errors
    /// [`FreeError::NotCharged`]; nothing was refunded.
    pub fn refund(&mut self, pages: u64) -> Result<(), FreeError> {
        self.used = self.used.checked_sub(pages).ok_or(FreeError::NotCharged)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn range(frame: u64, pages: u64) -> PaRange {
        PaRange::from_frames(frame, pages).unwrap()
    }

    #[test]
    fn limits() {
        let mut bits = [u64::MAX; 2];
        assert!(Pool::new(range(0x100, 129), &mut bits).is_err());
        let mut pool = Pool::new(range(0x101, 100), &mut bits).unwrap();
        for (pages, align) in [(0, 1), (1, 0), (1, 3), (1, u64::MAX)] {
            assert_eq!(pool.alloc(pages, align), Err(AllocError::BadRequest));
        }
        for pages in [101, 1 << 32, 1 << 52, u64::MAX] {
            assert_eq!(pool.alloc(pages, 1), Err(AllocError::PoolExhausted));
        }
        assert_eq!(pool.alloc(1, 1 << 63), Err(AllocError::PoolExhausted));
        assert_eq!(pool.alloc(16, 16), Ok(range(0x110, 16)));
        assert_eq!(pool.alloc(100, 1), Err(AllocError::PoolExhausted));
        for n in 0..84 {
            pool.alloc(1, 1).unwrap_or_else(|e| panic!("{n}: {e}"));
        }
        assert_eq!(pool.alloc(1, 1), Err(AllocError::PoolExhausted));
        assert_eq!((pool.free_pages(), pool.used_pages()), (0, 100));
        // The tail of the bitmap is nobody's.
        assert_eq!(pool.free(range(0x165, 1)), Err(FreeError::Foreign(Pa(0x16_5000))));
        assert_eq!(pool.free(range(0x164, 2)), Err(FreeError::Foreign(Pa(0x16_4000))));
        assert_eq!(pool.free(range(0x100, 1)), Err(FreeError::Foreign(Pa(0x10_0000))));
        pool.free(range(0x120, 2)).unwrap();
        assert_eq!(pool.free(range(0x11f, 3)), Err(FreeError::DoubleFree(Pa(0x12_0000))));
        assert_eq!(pool.free_pages(), 2);
    }

    #[test]
    fn what_came_back_is_found_again() {
        let mut bits = [0; 3];
        let mut pool = Pool::new(range(0, 192), &mut bits).unwrap();
        pool.alloc(192, 1).unwrap();
        for at in [190, 70, 3] {
            pool.free(range(at, 1)).unwrap();
            assert_eq!(pool.alloc(1, 1), Ok(range(at, 1)));
        }
        pool.free(range(60, 8)).unwrap();
        assert_eq!(pool.alloc(8, 4), Ok(range(60, 8)));
    }

    #[test]
    fn accounts() {
        let mut bits = [0; 1];
        let mut pool = Pool::new(range(1, 8), &mut bits).unwrap();
        let (mut a, mut b) = (Account::new(4), Account::new(u64::MAX));
        let four = pool.alloc_for(&mut a, 4, 1).unwrap();
        assert_eq!(pool.alloc_for(&mut a, 1, 1), Err(AllocError::OverLimit));
        assert_eq!(pool.alloc_for(&mut b, 5, 1), Err(AllocError::PoolExhausted));
        assert_eq!((a.used(), b.used()), (4, 0));
        assert_eq!(pool.free_for(&mut b, four), Err(FreeError::NotCharged));
        pool.free_for(&mut a, four).unwrap();
        assert_eq!((a.used(), pool.free_pages()), (0, 8));
    }

    #[test]
    fn what_was_given_allows_as_many_pages_of_others() {
        let mut a = Account::new(4);
        a.given().add(range(512, 512)).unwrap();
        a.charge_caused(512).unwrap();
        assert_eq!(a.charge(1), Err(AllocError::OverLimit));
        a.charge_caused(4).unwrap();
        assert_eq!(a.charge_caused(1), Err(AllocError::OverLimit));
        a.refund_caused(513);
        a.charge(1).unwrap();
        assert_eq!(a.charge(1), Err(AllocError::OverLimit));
    }

    #[test]
    fn what_was_caused_is_paid_once_and_refunded_once() {
        let mut a = Account::new(10);
        a.charge(4).unwrap();
        a.charge_caused(3).unwrap();
        assert_eq!((a.charge_caused(4), a.used()), (Err(AllocError::OverLimit), 7));
        a.refund_caused(2);
        assert_eq!(a.used(), 5);
        // Tables that another had caused.
        a.refund_caused(9);
        assert_eq!(a.used(), 4);
        a.refund_caused(1);
        assert_eq!(a.used(), 4);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn against_a_set(
            base in 0u64..200,
            size in 1u64..200,
            steps in prop::collection::vec((prop::bool::weighted(0.75), 0u64..260, 1u64..9, 0u32..4), 1..200),
        ) {
            let mut bits = [0; 4];
            let mut pool = Pool::new(range(base, size), &mut bits).unwrap();
            let mut taken = BTreeSet::new();
            for (alloc, at, pages, align) in steps {
                if alloc {
                    let align = 1 << align;
                    let fits = (base..base + size)
                        .filter(|f| f % align == 0 && f + pages <= base + size)
                        .find(|f| (*f..f + pages).all(|f| !taken.contains(&f)));
                    let got = pool.alloc(pages, align).ok();
                    prop_assert_eq!(got, fits.map(|f| range(f, pages)), "first fit");
                    taken.extend(fits.into_iter().flat_map(|f| f..f + pages));
                } else {
                    let run = base.saturating_sub(2) + at;
                    let all = (run..run + pages).all(|f| taken.contains(&f));
                    prop_assert_eq!(pool.free(range(run, pages)).is_ok(), all);
                    if all {
                        taken.retain(|f| !(run..run + pages).contains(f));
                    }
                }
                prop_assert_eq!(pool.used_pages(), taken.len() as u64);
            }
        }
    }
}
