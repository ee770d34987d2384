// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What one protected VM lends to others, and what it has borrowed: its [`Book`], of fixed size.
//!
//! A loan is made by its owner for a borrower that it names, and stays in the owner's book until the owner takes it back:
//! ```text
//!             retrieve                     reclaim
//!   offered -----------> at an IPA of the ---------> gone
//!      |  ^------------- borrower's                    ^
//!      |    relinquish                                 |
//!      +-----------------------------------------------+
//! ```
//! The borrower is one VM among all that there ever were ([`Party`]): who comes after it under the same id gets nothing.
//! A [`Handle`] is no secret. Who may use it is decided by who calls.

use super::IpaRange;
use super::ownership::Loan;
use crate::addr::{Pa, VmId};
use crate::broken::{Mistake, broken};
use arrayvec::ArrayVec;
use gzvm_abi::guest::{VM_MEM_MOST_LOANS, VM_MEM_MOST_PAGES};

/// The physical pages of a loan.
pub type Pages = ArrayVec<Pa, VM_MEM_MOST_PAGES>;

/// A loan's name, which is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub u64);

impl Handle {
    /// The handle of the loan with this number, which no other has.
    pub const fn new(number: u64, owner: VmId) -> Self {
        Self(number << 16 | owner.0 as u64)
    }

    /// Whose loan it is.
    pub const fn owner(self) -> VmId {
        VmId(self.0 as u16)
    }
}

/// A VM, told from others that had or will have its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// Its id.
    pub id: VmId,
    /// How many VMs there were before it.
    pub generation: u64,
}

/// A loan, as its owner's book has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub handle: Handle,
    /// Owner, borrower, rights.
    pub loan: Loan,
    /// The borrower's generation.
    pub generation: u64,
    /// What is lent.
    pub pages: Pages,
    /// Where the borrower has it mapped.
    pub at: Option<IpaRange>,
}

impl Entry {
    /// Whether `who` may map it in so many pages: it is for `who`, and nobody has it.
    pub fn is_for(&self, who: Party, pages: u64) -> bool {
        let borrower = Party { id: self.loan.borrower, generation: self.generation };
        let known = who == borrower
            || broken(Mistake::LentToAnybody)
            || broken(Mistake::LentToNext) && who.id == borrower.id;
        known && self.at.is_none() && pages == self.pages.len() as u64
    }
}

/// The book is full: so many loans at a time and no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What a VM lends, and what it has borrowed.
#[derive(Debug, Default)]
pub struct Book {
    lent: ArrayVec<Entry, VM_MEM_MOST_LOANS>,
    borrowed: ArrayVec<Handle, VM_MEM_MOST_LOANS>,
}

impl Book {
    /// Whether it has room for one more loan that the VM makes.
    pub const fn can_lend(&self) -> bool {
        !self.lent.is_full()
    }

    /// Whether it has room for one more loan that the VM takes.
    pub const fn can_borrow(&self) -> bool {
        !self.borrowed.is_full()
    }

    /// The VM lends.
    ///
    /// # Errors
    /// [`Full`].
    pub fn lend(&mut self, entry: Entry) -> Result<(), Full> {
        self.lent.try_push(entry).map_err(|_| Full)
    }

    /// The VM has borrowed.
    ///
    /// # Errors
    /// [`Full`].
    pub fn borrow(&mut self, handle: Handle) -> Result<(), Full> {
        self.borrowed.try_push(handle).map_err(|_| Full)
    }

    /// A loan that the VM has made.
    pub fn lent(&mut self, handle: Handle) -> Option<&mut Entry> {
        self.lent.iter_mut().find(|entry| entry.handle == handle)
    }

    /// Whether the VM has borrowed this.
    pub fn has_borrowed(&self, handle: Handle) -> bool {
        self.borrowed.contains(&handle)
    }

    /// The loan that the VM made is over.
    pub fn end(&mut self, handle: Handle) {
        self.lent.retain(|entry| entry.handle != handle);
    }

    /// The VM has it no longer.
    pub fn returned(&mut self, handle: Handle) {
        self.borrowed.retain(|borrowed| *borrowed != handle);
    }

    /// One of the loans that it has made.
    pub fn any_lent(&self) -> Option<Handle> {
        self.lent.last().map(|entry| entry.handle)
    }

    /// One of the loans that it has taken.
    pub fn any_borrowed(&self) -> Option<Handle> {
        self.borrowed.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Ipa;

    fn entry(number: u64) -> Entry {
        let loan = Loan { owner: VmId(3), borrower: VmId(5), write: true };
        let pages = [Pa(0x4000_0000), Pa(0x4800_0000)].into_iter().collect();
        Entry { handle: Handle::new(number, VmId(3)), loan, generation: 9, pages, at: None }
    }

    #[test]
    fn only_the_named_vm_while_nobody_has_it() {
        let mut entry = entry(1);
        let party = |id, generation| Party { id: VmId(id), generation };
        assert!(entry.is_for(party(5, 9), 2));
        for (who, pages) in [
            (party(5, 10), 2),
            (party(5, 8), 2),
            (party(3, 9), 2),
            (party(6, 9), 2),
            (party(5, 9), 1),
            (party(5, 9), 3),
        ] {
            assert!(!entry.is_for(who, pages), "{who:?} {pages}");
        }
        entry.at = IpaRange::new(Ipa(0x1000), 0x2000).ok();
        assert!(!entry.is_for(party(5, 9), 2));
    }

    #[test]
    fn handles_name_one_loan_of_one_owner() {
        assert_eq!(Handle::new(7, VmId(0xFFFE)).owner(), VmId(0xFFFE));
        assert_ne!(Handle::new(7, VmId(1)), Handle::new(8, VmId(1)));
        assert_ne!(Handle::new(7, VmId(1)), Handle::new(7, VmId(2)));
    }

    #[test]
    fn a_book_has_its_end() {
        let mut book = Book::default();
        for n in 0..VM_MEM_MOST_LOANS as u64 {
            assert!(book.can_lend() && book.can_borrow());
            assert_eq!(book.lend(entry(n)), Ok(()));
            assert_eq!(book.borrow(Handle(n)), Ok(()));
        }
        assert!(!book.can_lend() && !book.can_borrow());
        assert_eq!(book.lend(entry(99)), Err(Full));
        assert_eq!(book.borrow(Handle(99)), Err(Full));
        let five = entry(5);
        assert_eq!(book.lent(five.handle), Some(&mut five.clone()));
        book.end(five.handle);
        assert_eq!(book.lent(five.handle), None);
        assert!(book.can_lend() && book.lent(entry(6).handle).is_some());
        assert!(book.has_borrowed(Handle(5)) && !book.has_borrowed(Handle(99)));
        book.returned(Handle(5));
        assert!(!book.has_borrowed(Handle(5)) && book.has_borrowed(Handle(6)));
        while let Some(handle) = book.any_lent() {
            book.end(handle);
        }
        while let Some(handle) = book.any_borrowed() {
            book.returned(handle);
        }
        assert!(book.can_lend() && book.can_borrow());
    }
}
