// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory between protected VMs: one shares pages with another that it names, which retrieves them at an address of its
//! choice; the host reaches them at no time.
//!
//! ```text
//!   owner: VM's page --share--> lent --reclaim--> VM's page
//!                                | ^
//!   borrower:           retrieve | | relinquish, or by the owner's reclaim, or by either VM's end
//!                                v |
//!                             mapped
//! ```
//! Pages, addresses and parties of a loan are in its owner's [`Book`]. A VM's book is made when it first lends or borrows,
//! out of its own account, and goes with it.
//!
//! # The end of a VM
//! Before its tables are taken apart a VM gives back what it has borrowed (unmap, TLB clean, then the page is its owner's
//! alone again: neither scrubbed nor the host's), then takes back what it lent (the same at each borrower), loan by loan within
//! the budget of a step. The first needs no other VM, so two that lend to each other can both end.
//!
//! # Locks
//! Own memory, then a channel, then [`BOOKS`], then host, ownership, pool. The memory of another VM is only tried, under [`BOOKS`]: where
//! somebody has it, or that VM is being taken apart just now, the call is made again. So nobody holds a lock that another
//! waits for while it waits itself.

use gzvm_abi::guest;
use gzvm_core::addr::{Ipa, PAGE_SIZE, VmId};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::memory::IpaRange;
use gzvm_core::memory::loans::{Book, Entry, Handle};
use gzvm_core::memory::ownership::{Loan, Transition};
use gzvm_core::memory::stage2::Progress;
use gzvm_core::platform::lending::{self, Call};
use gzvm_core::platform::smccc::INVALID_PARAMETER;
use gzvm_core::rpc::channel::Who;
use gzvm_core::rpc::exchange::Grant;

use super::memory::{MapFailure, NoPage, VmMemory};
use super::outcome::{Exit, Next};
use super::private;
use super::registry::{self, MAX_VMS};
use super::run::Running;
use super::vm::Vm;
use crate::arch::barrier;
use crate::arch::lock::Mutex;
use crate::mem::boxed::{PageBox, pages_of};

/// The books of all VMs, by their ids.
struct Books {
    of: [Option<PageBox<Book>>; MAX_VMS],
    /// Loans made so far.
    made: u64,
}

static BOOKS: Mutex<Books> = Mutex::new(Books { of: [const { None }; MAX_VMS], made: 0 });

/// Why a call is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// An argument, or whose it is.
    Invalid,
    /// A book is full, or there is no page for a book or a table.
    NoMemory,
    /// The driver has to bring this page first.
    Absent(Ipa),
    /// Another CPU is about to do something with the other VM.
    Busy,
}

impl From<MapFailure> for Failure {
    fn from(e: MapFailure) -> Self {
        match e {
            MapFailure::NoMemory => Self::NoMemory,
            _ => Self::Invalid,
        }
    }
}

impl Books {
    fn slot(&mut self, id: VmId) -> Option<&mut Option<PageBox<Book>>> {
        self.of.get_mut(usize::from(id.0).checked_sub(1)?)
    }

    fn get(&mut self, id: VmId) -> Option<&mut Book> {
        self.slot(id)?.as_deref_mut()
    }

    /// The book of `id`, whose memory this is.
    fn open(&mut self, id: VmId, memory: &mut VmMemory) -> Result<&mut Book, Failure> {
        let slot = self.slot(id).ok_or(Failure::Invalid)?;
        if slot.is_none() {
            let pages = pages_of::<Book>() as u64;
            memory.account.charge(pages).map_err(|_| Failure::NoMemory)?;
            match PageBox::new(Book::default()) {
                Ok(book) => *slot = Some(book),
                Err(_) => {
                    let _ = memory.account.refund(pages);
                    return Err(Failure::NoMemory);
                }
            }
        }
        slot.as_deref_mut().ok_or(Failure::NoMemory)
    }

    /// The loan as its owner has it.
    fn lent(&mut self, handle: Handle) -> Option<&mut Entry> {
        self.get(handle.owner())?.lent(handle)
    }

    /// The borrower, whose id and memory these are, has its loan no longer.
    fn give_back(&mut self, handle: Handle, id: VmId, memory: &mut VmMemory) -> Result<(), Failure> {
        if !self.get(id).is_some_and(|book| book.has_borrowed(handle)) {
            return Err(Failure::Invalid);
        }
        let entry = self.lent(handle).ok_or(Failure::Invalid)?;
        let at = entry.at.ok_or(Failure::Invalid)?;
        if !broken(Mistake::LentForEver) {
            memory.withdraw(at)?;
        }
        entry.at = None;
        private::lending_step(&entry.pages, Transition::VmRelinquish(entry.loan))?;
        if let Some(book) = self.get(id) {
            book.returned(handle);
        }
        Ok(())
    }

    /// The owner has its pages for itself again.
    fn reclaim(&mut self, handle: Handle) -> Result<(), Failure> {
        let entry = self.lent(handle).ok_or(Failure::Invalid)?;
        let (borrower, mapped) = (entry.loan.borrower, entry.at.is_some());
        if mapped {
            let borrower_vm = registry::get(borrower.0.into()).map_err(|_| Failure::Busy)?;
            let memory = borrower_vm.vm().and_then(|vm| vm.memory.try_lock());
            self.give_back(handle, borrower, &mut *memory.ok_or(Failure::Busy)?)?;
        }
        let book = self.get(handle.owner()).ok_or(Failure::Invalid)?;
        let entry = book.lent(handle).ok_or(Failure::Invalid)?;
        private::lending_step(&entry.pages, Transition::VmReclaim(entry.loan))?;
        book.end(handle);
        Ok(())
    }
}

/// `vm` shares pages of its own with the VM `borrower`.
fn share(vm: &Vm, pages: IpaRange, borrower: VmId, write: bool) -> Result<Handle, Failure> {
    let owner = vm.party.id;
    if borrower == owner {
        return Err(Failure::Invalid);
    }
    let other = registry::get(borrower.0.into()).map_err(|_| Failure::Invalid)?;
    // A plain VM's secrets are the host's too.
    let other =
        other.vm().filter(|vm| vm.protected() || broken(Mistake::LentToPlain)).ok_or(Failure::Invalid)?;
    let mut memory = vm.memory.lock();
    let mut books = BOOKS.lock();
    if !books.open(owner, &mut memory)?.can_lend() {
        return Err(Failure::NoMemory);
    }
    let pages = memory.private_pages(pages).map_err(|(at, why)| match why {
        NoPage::Absent => Failure::Absent(at),
        NoPage::Nowhere => Failure::Invalid,
    })?;
    let loan = Loan { owner, borrower, write };
    private::lending_step(&pages, Transition::VmLend(loan))?;
    // A borrower with its caches off is not to find what the owner overwrote in them.
    pages.iter().for_each(|page| barrier::clean_invalidate(page.0 as usize, PAGE_SIZE as usize));
    let handle = Handle::new(books.made, owner);
    books.made = books.made.wrapping_add(1);
    let entry = Entry { handle, loan, generation: other.party.generation, pages, at: None };
    books.open(owner, &mut memory)?.lend(entry).map_err(|_| Failure::NoMemory)?;
    Ok(handle)
}

/// `vm` maps at `at`, which is no GIC's, what is lent to it.
fn retrieve(vm: &Vm, handle: Handle, at: IpaRange) -> Result<Loan, Failure> {
    let mut memory = vm.memory.lock();
    let mut books = BOOKS.lock();
    if !books.open(vm.party.id, &mut memory)?.can_borrow() {
        return Err(Failure::NoMemory);
    }
    let entry = books.lent(handle).filter(|e| e.is_for(vm.party, at.pages())).ok_or(Failure::Invalid)?;
    let loan = entry.loan;
    private::lending_step(&entry.pages, Transition::VmRetrieve(loan))?;
    if let Err(e) = memory.borrow(at, &entry.pages, loan.write || broken(Mistake::LentToWrite)) {
        private::lending_step(&entry.pages, Transition::VmRelinquish(loan))?;
        return Err(e.into());
    }
    entry.at = Some(at);
    books.open(vm.party.id, &mut memory)?.borrow(handle).map_err(|_| Failure::NoMemory)?;
    Ok(loan)
}

fn relinquish(vm: &Vm, handle: Handle) -> Result<(), Failure> {
    let mut memory = vm.memory.lock();
    BOOKS.lock().give_back(handle, vm.party.id, &mut memory)
}

/// What goes with a call from `from` to `to`: a loan of the one to the other, which nobody has yet.
pub fn granted(from: Who, handle: Handle, to: Who) -> Option<Grant> {
    let (Who::Vm(from), Who::Vm(to)) = (from, to) else { return None };
    let mut books = BOOKS.lock();
    let entry = books.get(from.id)?.lent(handle)?;
    let pages = entry.pages.len() as u64;
    entry.is_for(to, pages).then_some(Grant { loan: handle, pages, write: entry.loan.write })
}

/// What `vm` granted with a call is its alone, wherever it was. False: not yet.
pub fn take_back(vm: &Vm, handle: Handle) -> bool {
    // Where the VM was faster there is none any more.
    broken(Mistake::GrantedForEver) || !matches!(reclaim(vm, handle), Err(Failure::Busy))
}

fn reclaim(vm: &Vm, handle: Handle) -> Result<(), Failure> {
    if handle.owner() != vm.party.id && !broken(Mistake::AnybodyReclaims) {
        return Err(Failure::Invalid);
    }
    BOOKS.lock().reclaim(handle)
}

/// One step of ending all loans of a VM, of some `budget` pages. Nobody is inside it.
pub fn end_step(vm: &mut Vm, budget: u64) -> Progress {
    let id = vm.party.id;
    let memory = vm.memory.get_mut();
    let mut books = BOOKS.lock();
    let mut left = budget;
    while let Some(book) = books.get(id) {
        let (borrowed, lent) = (book.any_borrowed(), book.any_lent());
        let Some(handle) = borrowed.or(lent) else { break };
        if left == 0 {
            return Progress::More;
        }
        let pages = books.lent(handle).map_or(1, |entry| entry.pages.len() as u64);
        left = left.saturating_sub(pages);
        let done =
            if borrowed.is_some() { books.give_back(handle, id, memory) } else { books.reclaim(handle) };
        match done {
            Ok(()) => {}
            Err(Failure::Busy) => return Progress::More,
            Err(e) => {
                log::error!("end of VM {id}: loan {:#x}: {e:?} (hypervisor bug)", handle.0);
                return Progress::More;
            }
        }
    }
    if !broken(Mistake::LeakBook) && books.slot(id).and_then(Option::take).is_some() {
        let _ = memory.account.refund(pages_of::<Book>() as u64);
    }
    Progress::Done
}

impl Running<'_> {
    /// One of the calls of [`lending`].
    pub(super) fn lending(&mut self, fid: u32) -> Next {
        let [_, x1, x2, x3, x4, ..] = self.vcpu.regs.x;
        let vm = self.vm;
        let done = match lending::decode(fid, [x1, x2, x3, x4]) {
            None => Err(Failure::Invalid),
            Some(Call::Id) => {
                self.vcpu.regs.x[0] = vm.party.id.0.into();
                return Next::Resume;
            }
            Some(Call::Share { pages, borrower, write }) => {
                share(vm, pages, borrower, write).map(|handle| [handle.0, x2])
            }
            Some(Call::Retrieve { at, .. }) if self.is_gics(at) => Err(Failure::Invalid),
            Some(Call::Retrieve { handle, at }) => retrieve(vm, handle, at).map(|loan| {
                let rights = if loan.write { guest::VM_MEM_READ_WRITE } else { guest::VM_MEM_READ };
                [loan.owner.0.into(), rights]
            }),
            Some(Call::Relinquish(handle)) => relinquish(vm, handle).map(|()| [x1, x2]),
            Some(Call::Reclaim(handle)) => reclaim(vm, handle).map(|()| [x1, x2]),
        };
        let x = &mut self.vcpu.regs.x;
        match done {
            Ok(results) => [x[0], x[1], x[2]] = [0, results[0], results[1]],
            Err(Failure::Invalid) => x[0] = INVALID_PARAMETER,
            Err(Failure::NoMemory) => x[0] = lending::NO_MEMORY,
            // The driver comes back, and the guest calls again.
            Err(Failure::Absent(ipa)) => return self.again(Exit::PageFault(ipa.0)),
            Err(Failure::Busy) => return self.again(Exit::Irq),
        }
        Next::Resume
    }

    fn again(&mut self, exit: Exit) -> Next {
        self.vcpu.regs.pc = self.vcpu.regs.pc.wrapping_sub(4);
        Next::Exit(exit)
    }

    /// Whether the GIC is in one of these pages.
    fn is_gics(&self, at: IpaRange) -> bool {
        (0..at.pages()).any(|n| {
            let page = Ipa(at.start().0.wrapping_add(n.wrapping_mul(PAGE_SIZE)));
            self.gic_frame(page).is_some()
        })
    }
}
