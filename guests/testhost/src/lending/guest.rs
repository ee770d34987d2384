// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests that do what they are told, and pairs of them.

use gzvm_abi::guest;
use gzvm_abi::run::{Mmio, exit};
use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::check_eq;
use gzvm_guest_kit::exception::ec;

use super::program::{Operation, obeys};
use super::{OK, PAGE, SECRET, WINDOW};
use crate::abuse::counters;
use crate::pages;
use crate::programs::{DEVICE, RAM};
use crate::vm::Vm;

/// A VM that does what it is told.
pub struct Guest(pub Vm);

/// x0, x1, x2, and the syndrome of an exception.
pub type Answer = [u64; 4];

impl Guest {
    pub fn new() -> Result<Self, Verdict> {
        Ok(Self(Vm::protected(obeys(), 1)?))
    }

    /// One that is not protected.
    pub fn plain() -> Result<Self, Verdict> {
        Ok(Self(Vm::new(obeys(), 1)?))
    }

    /// One that was given these features.
    pub fn with_features(mask: u64) -> Result<Self, Verdict> {
        Ok(Self(Vm::protected_with_features(obeys(), mask)?))
    }

    pub fn id(&self) -> u64 {
        self.0.id.into()
    }

    /// Until an exit that is not the driver's own business. A busy vCPU of a public driver rests now and then.
    pub fn run(&mut self) -> Result<u32, Verdict> {
        loop {
            match self.0.run(0)? {
                exit::IDLE => {}
                reason => return Ok(reason),
            }
        }
    }

    /// Up to where the guest knows what to do.
    pub fn tell(&mut self, what: Operation, args: [u64; 5]) -> Outcome {
        for (n, value) in [what as u64].into_iter().chain(args).enumerate() {
            let reason = self.run()?;
            let mmio = Mmio::read(&self.0.report(0));
            check_eq!(reason, exit::MMIO, "exit at argument {n}");
            check_eq!((mmio.phys_addr - DEVICE, mmio.is_write), (0x40 + 8 * n as u64, 0), "argument {n}");
            self.0.answer(0, value);
        }
        Ok(())
    }

    pub fn answer(&mut self) -> Result<Answer, Verdict> {
        check_eq!(self.run()?, exit::MMIO, "exit at the first result");
        self.rest_of_answer()
    }

    /// As [`answer`](Self::answer), after the exit that tells the first.
    pub fn rest_of_answer(&mut self) -> Result<Answer, Verdict> {
        let mut answer = Answer::default();
        for (n, value) in (0u64..).zip(&mut answer) {
            let reason = if n == 0 { exit::MMIO } else { self.run()? };
            let mmio = Mmio::read(&self.0.report(0));
            check_eq!((reason, mmio.is_write), (exit::MMIO, 1), "exit at result {n}");
            check_eq!(mmio.phys_addr - DEVICE, 0x10 + 8 * n, "result {n} told at");
            *value = u64::from_le_bytes(mmio.data);
        }
        Ok(answer)
    }

    pub fn ask(&mut self, what: Operation, args: [u64; 5]) -> Result<Answer, Verdict> {
        self.tell(what, args)?;
        self.answer()
    }

    pub fn call(&mut self, function: u32, args: [u64; 4]) -> Result<Answer, Verdict> {
        let [x1, x2, x3, x4] = args;
        let answer = self.ask(Operation::Call, [function.into(), x1, x2, x3, x4])?;
        check_eq!(answer[3], 0, "exception at a call");
        Ok(answer)
    }

    pub fn status(&mut self, function: u32, args: [u64; 4]) -> Result<u64, Verdict> {
        Ok(self.call(function, args)?[0])
    }

    pub fn load(&mut self, at: u64) -> Result<u64, Verdict> {
        let [value, _, _, esr] = self.ask(Operation::Load, [0, at, 0, 0, 0])?;
        check_eq!(esr, 0, "syndrome of a load from {at:#x}");
        Ok(value)
    }

    pub fn store(&mut self, at: u64, value: u64) -> Outcome {
        let esr = self.ask(Operation::Store, [0, at, value, 0, 0])?[3];
        check_eq!(esr, 0, "syndrome of a store to {at:#x}");
        Ok(())
    }

    /// An external abort, and nothing for the host.
    pub fn aborts(&mut self, what: Operation, at: u64) -> Outcome {
        let esr = self.ask(what, [0, at, SECRET, 0, 0])?[3];
        let class = if matches!(what, Operation::Run) { ec::INSTRUCTION_ABORT } else { ec::DATA_ABORT };
        check_eq!(esr >> 26, u64::from(class), "exception class at {at:#x}");
        check_eq!(esr & 0x3F, 0x10, "fault status at {at:#x}: external abort");
        Ok(())
    }

    pub fn loses(&mut self, at: u64) -> Outcome {
        self.aborts(Operation::Load, at)?;
        self.aborts(Operation::Store, at)
    }

    /// Shares some pages from [`PAGE`] on; the handle.
    pub fn share(&mut self, with: &Guest, pages: u64, rights: u64) -> Result<u64, Verdict> {
        let [status, handle, ..] = self.call(guest::VM_MEM_SHARE, [PAGE, pages, with.id(), rights])?;
        check_eq!(status, OK, "VM_MEM_SHARE");
        Ok(handle)
    }

    pub fn retrieve(&mut self, handle: u64, at: u64, pages: u64) -> Result<u64, Verdict> {
        self.status(guest::VM_MEM_RETRIEVE, [handle, at, pages, 0])
    }

    pub fn relinquish(&mut self, handle: u64) -> Result<u64, Verdict> {
        self.status(guest::VM_MEM_RELINQUISH, [handle, 0, 0, 0])
    }

    pub fn reclaim(&mut self, handle: u64) -> Result<u64, Verdict> {
        self.status(guest::VM_MEM_RECLAIM, [handle, 0, 0, 0])
    }

    /// The host's address of its memory at `ipa`.
    pub fn at(&self, ipa: u64) -> u64 {
        self.0.memory + (ipa - RAM)
    }

    pub fn destroy(self) -> Outcome {
        self.0.destroy().map(drop)
    }
}

/// Two guests, of which the first has shared its page with the second, which has it at [`WINDOW`]; and the handle.
pub fn lender_and_borrower(rights: u64) -> Result<(Guest, Guest, u64), Verdict> {
    let (mut a, mut b) = (Guest::new()?, Guest::new()?);
    a.store(PAGE, SECRET)?;
    let handle = a.share(&b, 1, rights)?;
    check_eq!(b.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE");
    Ok((a, b, handle))
}

/// With the counters as they were, and all memory back.
pub fn leaving_nothing(test: impl FnOnce() -> Outcome) -> Outcome {
    let before = counters()?;
    test()?;
    check_eq!(counters()?, before, "counters afterwards");
    pages::reset();
    Ok(())
}
