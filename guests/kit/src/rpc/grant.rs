// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that goes with a call from one protected VM to another: what has no room in a message, without a copy by the hypervisor.
//!
//! ```text
//!   caller   Pages ── lend ──► Grant ── Channel::exchange_with ──► Pages     borrowed all the while: nobody else gets at them
//!                                        │ call         ▲ reply, or whatever else ends the call
//!   service                              ▼              │
//!                      Asked::granted ── view ──► View ─┴─ Service::reply
//! ```
//! Only for reading: what a service has to say goes into its reply.

use core::marker::PhantomData;
use core::time::Duration;

use gzvm_abi::guest::{
    VM_MEM_MOST_PAGES, VM_MEM_READ, VM_MEM_READ_WRITE, VM_MEM_RECLAIM, VM_MEM_RELINQUISH, VM_MEM_RETRIEVE,
    VM_MEM_SHARE,
};
use gzvm_abi::rpc as abi;
use spin::{Mutex, MutexGuard};

use super::{Channel, Doorbell, Error, Message, Peer, Token, at, call, micros};
use crate::{exception, machine};

const PAGE: usize = 4096;

/// Memory to lend: so many pages, 16 at the most.
///
/// # Invariants
/// Zero whenever nothing is lent, so that what was lent once is shown to nobody later.
#[repr(C, align(4096))]
pub struct Pages<const N: usize>([[u8; PAGE]; N]);

impl<const N: usize> Default for Pages<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Pages<N> {
    /// Some.
    pub const fn new() -> Self {
        const { assert!(N > 0 && N <= VM_MEM_MOST_PAGES, "as many as one call may lend") };
        Self([[0; PAGE]; N])
    }

    /// For a call: `bytes` bytes, which `fill` writes when it is certain who gets them. `None`: that has no room.
    pub fn lend<F: FnOnce(&mut [u8])>(&mut self, bytes: usize, fill: F) -> Option<Grant<'_, F>> {
        let pages = bytes.div_ceil(PAGE).max(1);
        let memory = self.0.get_mut(..pages)?.as_flattened_mut();
        Some(Grant { memory, bytes, fill })
    }
}

/// What goes with a call: [`Pages::lend`].
pub struct Grant<'a, F> {
    /// Whole pages, zero.
    memory: &'a mut [u8],
    bytes: usize,
    fill: F,
}

/// Memory that another VM may read until this is dropped.
struct Loan<'a> {
    handle: u64,
    memory: &'a mut [u8],
}

impl<'a> Loan<'a> {
    fn new(memory: &'a mut [u8], borrower: u16) -> Result<Self, Error> {
        // Written below, so from a pointer that may be written by.
        let (ipa, pages) = (memory.as_mut_ptr() as u64, memory.len() / PAGE);
        let x = call(VM_MEM_SHARE, [ipa, pages as u64, borrower.into(), VM_MEM_READ])?;
        Ok(Self { handle: x[1], memory })
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        // Refused where it came back with the end of the call: of a handle there is no other use.
        let _ = call(VM_MEM_RECLAIM, [self.handle]);
        self.memory.fill(0);
    }
}

impl Channel {
    /// As [`exchange`](Self::exchange), with memory that the peer may read until this returns, however it does.
    ///
    /// # Errors
    /// Besides those of `exchange`: [`Error::NotSupported`] in a plain VM, [`Error::Invalid`] if the peer is one, or the host.
    pub fn exchange_with<F: FnOnce(&mut [u8])>(
        &self,
        bell: &Doorbell,
        question: &Message,
        answer: &mut Message,
        grant: Grant<'_, F>,
        time: Option<Duration>,
    ) -> Result<Peer, Error> {
        let loan = Loan::new(grant.memory, self.peer()?.vm)?;
        // A loan is for whoever has that id by then, and the host can end a VM and make another one in between. The peer is still
        // there: so it had its id all the time, and the loan is for it. Before that there is nothing to read.
        self.peer()?;
        (grant.fill)(&mut loan.memory[..grant.bytes]);
        self.exchange_by(bell, answer, time, || self.call_with(question, &loan, time))
    }

    fn call_with(&self, message: &Message, loan: &Loan, time: Option<Duration>) -> Result<Token, Error> {
        let args = [self.0, at(message), message.bytes as u64, micros(time), loan.handle];
        call(abi::CALL_WITH, args).map(|x| Token(x[1]))
    }
}

/// What came with a call.
#[derive(PartialEq, Eq, Debug)]
pub struct Granted {
    loan: u64,
    pages: u64,
    rights: u64,
}

/// Where it is looked at, one at a time.
static WINDOW: Mutex<()> = Mutex::new(());

impl Granted {
    /// Of x10 to x12 of RECEIVE.
    pub(super) fn of([loan, pages, rights]: [u64; 3]) -> Self {
        Self { loan, pages: pages.min(VM_MEM_MOST_PAGES as u64), rights }
    }

    /// How many bytes these are: whole pages.
    pub fn bytes(&self) -> usize {
        self.pages as usize * PAGE
    }

    /// Whether the caller lets this VM write, too.
    pub fn writable(&self) -> bool {
        self.rights == VM_MEM_READ_WRITE
    }

    /// Maps it. [`Error::Invalid`]: the caller has withdrawn it; [`Error::Again`]: another one is being looked at.
    pub fn view(&self) -> Result<View<'_>, Error> {
        const GIB: u64 = 1 << 30;
        let window = WINDOW.try_lock().ok_or(Error::Again)?;
        // Nothing else is behind memory, and what is there is mapped as memory is.
        let end = machine::get().memory.iter().map(machine::Range::end).max().ok_or(Error::Invalid)?;
        let at = end.next_multiple_of(GIB);
        call(VM_MEM_RETRIEVE, [self.loan, at, self.pages])?;
        Ok(View { loan: self.loan, at, bytes: self.bytes(), _window: window, granted: PhantomData })
    }
}

/// The memory of a call, mapped until this is dropped. It is the caller's, who may change it at any time, and take it away.
pub struct View<'a> {
    loan: u64,
    at: u64,
    bytes: usize,
    _window: MutexGuard<'static, ()>,
    /// Whose call has not been answered.
    granted: PhantomData<&'a Granted>,
}

impl View<'_> {
    /// Copies what is there from `offset` on; what is looked at twice has to be copied first. [`Error::Invalid`]: there is not so
    /// much, or the caller has taken it away, and `to` has anything in it.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), Error> {
        let fits = offset.checked_add(to.len()).is_some_and(|end| end <= self.bytes);
        let from = (self.at as usize + offset) as *const u8;
        if !fits {
            return Err(Error::Invalid);
        }
        // Not all at once: each byte that is not there takes an exception.
        for (part, to) in to.chunks_mut(PAGE).enumerate() {
            let copied = exception::expect(|| {
                for (n, byte) in to.iter_mut().enumerate() {
                    // SAFETY: inside the window, which is mapped, and no object of this guest's. Where the hypervisor has taken
                    // the page, the load is skipped and has any result.
                    *byte = unsafe { from.add(part * PAGE + n).read_volatile() };
                }
            });
            copied.map_err(|_| Error::Invalid)?;
        }
        Ok(())
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        // Refused where it is gone already.
        let _ = call(VM_MEM_RELINQUISH, [self.loan]);
    }
}
