// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Ranges of whole pages, checked once, when they are made.
//!
//! # Invariants
//! An [`IpaRange`] or [`PaRange`] is never empty, starts and ends on a 4 KiB boundary, and its end
//! (exclusive) does not wrap: `start < end <= 2^64 - 4096`. Whatever comes from a guest or the host
//! becomes one of these before anything computes with it, so nothing behind this point has to think
//! about `base + size` overflow again. Whether the range lies within the VM's address space or
//! within RAM is the business of the table it is handed to.

use crate::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE, Pa};

/// Why three numbers are not a range of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The size is zero.
    #[error("empty range")]
    Empty,
    /// The start or the size is not a multiple of 4 KiB.
    #[error("range not aligned to pages")]
    Unaligned,
    /// The range passes the end of the 64-bit space.
    #[error("range wraps")]
    Wraps,
}

macro_rules! page_range {
    ($(#[$doc:meta])* $name:ident of $addr:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name {
            start: $addr,
            /// Bytes.
            size: u64,
        }

        impl $name {
            /// `size` bytes from `start`.
            ///
            /// # Errors
            /// Where the result would not be a range of pages; see the module's invariants.
            #[inline]
            pub const fn new(start: $addr, size: u64) -> Result<Self, RangeError> {
                if size == 0 {
                    return Err(RangeError::Empty);
                }
                if !start.is_aligned(PAGE_SIZE) || size & (PAGE_SIZE - 1) != 0 {
                    return Err(RangeError::Unaligned);
                }
                if start.checked_add(size).is_none() {
                    return Err(RangeError::Wraps);
                }
                Ok(Self { start, size })
            }

            /// `pages` pages from `start`.
            ///
            /// # Errors
            /// As [`Self::new`].
            pub const fn from_pages(start: $addr, pages: u64) -> Result<Self, RangeError> {
                match pages.checked_mul(PAGE_SIZE) {
                    Some(size) => Self::new(start, size),
                    None => Err(RangeError::Wraps),
                }
            }

            /// `pages` pages from page frame `frame`.
            ///
            /// # Errors
            /// As [`Self::new`].
            pub const fn from_frames(frame: u64, pages: u64) -> Result<Self, RangeError> {
                match $addr::from_frame(frame) {
                    Some(start) => Self::from_pages(start, pages),
                    None => Err(RangeError::Wraps),
                }
            }

            /// The page that contains `addr`; nothing for the last page of the 64-bit space.
            pub const fn page_of(addr: $addr) -> Option<Self> {
                match Self::new(addr.align_down(PAGE_SIZE), PAGE_SIZE) {
                    Ok(r) => Some(r),
                    Err(_) => None,
                }
            }

            /// The first address.
            pub const fn start(&self) -> $addr {
                self.start
            }

            /// The first address past the range.
            pub const fn end(&self) -> $addr {
                // By the invariant this never wraps.
                $addr(self.start.0.wrapping_add(self.size))
            }

            /// Bytes.
            pub const fn size(&self) -> u64 {
                self.size
            }

            /// 4 KiB pages.
            pub const fn pages(&self) -> u64 {
                self.size >> PAGE_SHIFT
            }

            /// Whether `addr` lies inside.
            pub const fn contains(&self, addr: $addr) -> bool {
                self.start.0 <= addr.0 && addr.0 < self.end().0
            }

            /// Whether all of `other` lies inside.
            pub const fn covers(&self, other: &Self) -> bool {
                self.start.0 <= other.start.0 && other.end().0 <= self.end().0
            }

            /// Whether the two share a page.
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.start.0 < other.end().0 && other.start.0 < self.end().0
            }

            /// What the two share.
            pub fn intersection(&self, other: &Self) -> Option<Self> {
                let start = self.start.max(other.start);
                let end = self.end().min(other.end());
                match end.0.checked_sub(start.0) {
                    None | Some(0) => None,
                    Some(size) => Some(Self { start, size }),
                }
            }

            /// The first `pages` pages and the rest, where there is a rest.
            ///
            /// `pages` of zero counts as one, so that a loop over `split_first` always ends.
            pub fn split_first(&self, pages: u64) -> (Self, Option<Self>) {
                let first = pages.max(1).saturating_mul(PAGE_SIZE);
                match self.size.checked_sub(first) {
                    None | Some(0) => (*self, None),
                    Some(rest) => (
                        Self { start: self.start, size: first },
                        Some(Self { start: $addr(self.start.0.wrapping_add(first)), size: rest }),
                    ),
                }
            }
        }
    };
}

page_range!(
    /// A run of a VM's pages.
    IpaRange of Ipa
);
page_range!(
    /// A run of physical pages.
    PaRange of Pa
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries() {
        const TOP: u64 = !(PAGE_SIZE - 1);
        let cases: &[(u64, u64, Result<(), RangeError>)] = &[
            (0, 0, Err(RangeError::Empty)),
            (0, 1, Err(RangeError::Unaligned)),
            (1, PAGE_SIZE, Err(RangeError::Unaligned)),
            (0, PAGE_SIZE, Ok(())),
            (0, TOP, Ok(())),
            (0, u64::MAX, Err(RangeError::Unaligned)),
            (TOP, PAGE_SIZE, Err(RangeError::Wraps)),
            (TOP - PAGE_SIZE, PAGE_SIZE, Ok(())),
            (TOP - PAGE_SIZE, 2 * PAGE_SIZE, Err(RangeError::Wraps)),
            (1 << 63, 1 << 63, Err(RangeError::Wraps)),
            (1 << 63, (1 << 63) - PAGE_SIZE, Ok(())),
        ];
        for &(start, size, want) in cases {
            assert_eq!(PaRange::new(Pa(start), size).map(|_| ()), want, "{start:#x}+{size:#x}");
            assert_eq!(IpaRange::new(Ipa(start), size).map(|_| ()), want);
        }
        assert_eq!(PaRange::from_pages(Pa(0), 1 << 52), Err(RangeError::Wraps));
        assert_eq!(PaRange::from_frames(1 << 52, 1), Err(RangeError::Wraps));
        assert_eq!(PaRange::from_frames(u64::MAX, u64::MAX), Err(RangeError::Wraps));
        assert!(PaRange::page_of(Pa(u64::MAX)).is_none());
        assert_eq!(PaRange::page_of(Pa(0x1fff)).unwrap().start(), Pa(0x1000));
    }

    #[test]
    fn sets() {
        let r = |s: u64, n: u64| PaRange::from_frames(s, n).unwrap();
        assert!(r(1, 2).overlaps(&r(2, 2)));
        assert!(!r(1, 2).overlaps(&r(3, 1)));
        assert_eq!(r(1, 4).intersection(&r(3, 9)), Some(r(3, 2)));
        assert_eq!(r(1, 2).intersection(&r(3, 1)), None);
        assert!(r(1, 4).covers(&r(1, 4)));
        assert!(!r(1, 4).covers(&r(2, 4)));
        assert_eq!(r(1, 4).split_first(1), (r(1, 1), Some(r(2, 3))));
        assert_eq!(r(1, 4).split_first(0), (r(1, 1), Some(r(2, 3))));
        assert_eq!(r(1, 4).split_first(4), (r(1, 4), None));
        assert_eq!(r(1, 4).split_first(u64::MAX), (r(1, 4), None));
    }
}
