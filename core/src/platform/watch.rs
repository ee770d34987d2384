// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exception watching: which of a guest's exceptions somebody wants to know of, without the guest's help.
//!
//! | exception | how EL2 comes to see it |
//! |---|---|
//! | synchronous, of EL1 | hardware breakpoints at VBAR_EL1 + 0x000 and + 0x200 |
//! | synchronous, of EL0 | a hardware breakpoint at VBAR_EL1 + 0x400 |
//! | BRK | MDCR_EL2.TDE routes it to EL2 |
//! | SError | HCR_EL2.AMO routes it to EL2; none is ever injected, so no vector needs a breakpoint for it |
//! | external abort by EL2 | EL2 makes it |
//! | stall | time in the guest without progress, see [`Stall`] |
//!
//! An access that EL1 makes with EL0's rights is EL0's: kernels copy to and from programs with LDTR and STTR, or with
//! PSTATE.PAN clear, and their faults there are everyday page faults.

use crate::broken::{Mistake, broken};
use gzvm_abi::watch::kind;

/// Kinds of exceptions that are watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mask(u32);

/// Offsets from VBAR_EL1 that can have a breakpoint: current EL with SP_EL0, current EL, lower EL.
pub const VECTORS: [u64; 3] = [0x000, 0x200, 0x400];

impl Mask {
    /// The mask with these bits, unless one of them means nothing.
    pub const fn new(bits: u32) -> Option<Self> {
        if bits & !kind::ALL == 0 { Some(Self(bits)) } else { None }
    }

    /// Whether this kind is watched.
    pub const fn has(self, kind: u32) -> bool {
        self.0 & kind != 0
    }

    /// Whether anything is.
    pub const fn any(self) -> bool {
        self.0 != 0
    }

    /// Which of [`VECTORS`] need a breakpoint.
    pub const fn vectors(self) -> [bool; 3] {
        let el1 = self.has(kind::UNDEFINED | kind::ABORT | kind::USER_ABORT);
        [el1, el1, self.has(kind::USER_UNDEFINED | kind::USER_ABORT)]
    }

    /// Breakpoints that it takes.
    pub fn breakpoints(self) -> u8 {
        self.vectors().map(u8::from).iter().sum()
    }
}

/// An exception that EL1 has just taken, from its registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// The guest has PSTATE.PAN set at its exceptions (FEAT_PAN, and SCTLR_EL1.SPAN = 0): where it is clear, it was
    /// cleared on purpose.
    pub pan: bool,
    /// The instruction at ELR_EL1, where it can be read.
    pub instruction: Option<u32>,
}

const PSTATE_PAN: u64 = 1 << 22;

impl Taken {
    /// What it is, if it is anything that can be watched.
    pub fn judge(&self) -> Option<u32> {
        let user = self.spsr & 0xF == 0;
        let undefined = if user { kind::USER_UNDEFINED } else { kind::UNDEFINED };
        let abort = if user { kind::USER_ABORT } else { kind::ABORT };
        Some(match self.esr >> 26 & 0x3F {
            // Unknown reason, illegal execution state, branch target, pointer authentication.
            0x00 | 0x0E | 0x0D | 0x1C => undefined,
            // Instruction abort, PC alignment, SP alignment.
            0x20 | 0x21 | 0x22 | 0x26 => abort,
            0x24 => kind::USER_ABORT,
            0x25 if self.is_for_user() => kind::USER_ABORT,
            0x25 => kind::ABORT,
            _ => return None,
        })
    }

    /// A data abort of EL1 with EL0's rights, in the lower half of the address space.
    fn is_for_user(&self) -> bool {
        let lower_half = self.far >> 55 & 1 == 0;
        let unprivileged = self.instruction.is_some_and(is_unprivileged);
        lower_half && (unprivileged || self.pan && self.spsr & PSTATE_PAN == 0)
    }
}

/// LDTR, STTR and their narrower forms: "Load/store register (unprivileged)", Arm ARM C4.1.94.
pub const fn is_unprivileged(instruction: u32) -> bool {
    instruction & 0x3F20_0C00 == 0x3800_0800
}

/// Time that a vCPU spends in the guest without progress. Progress is: it waits for an interrupt, takes one, or
/// calls its firmware. Time that the host does not give it does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stall {
    ran: u64,
}

impl Stall {
    /// It made progress.
    pub fn progress(&mut self) {
        self.ran = 0;
    }

    /// It ran for so many ticks. True once for each `limit` without progress.
    pub fn ran(&mut self, ticks: u64, limit: u64) -> bool {
        self.ran = self.ran.saturating_add(ticks);
        let over = self.ran >= limit;
        if over {
            self.ran = 0;
        }
        over
    }

    /// Ticks that are left of `limit`.
    pub const fn left(&self, limit: u64) -> u64 {
        limit.saturating_sub(self.ran)
    }
}

/// Lets so many events through in a row, and so many a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limiter {
    /// Events that may still pass, as of `at`.
    left: u64,
    /// When it was filled up last.
    at: u64,
}

impl Limiter {
    /// Events in a row.
    pub const BURST: u64 = 16;
    /// Events a second in the long run.
    pub const PER_SECOND: u64 = 8;

    /// A full one.
    pub const fn new() -> Self {
        Self { left: Self::BURST, at: 0 }
    }

    /// Whether an event at `now` passes; `frequency` ticks are a second.
    pub fn pass(&mut self, now: u64, frequency: u64) -> bool {
        if broken(Mistake::Flood) {
            return true;
        }
        let step = frequency.checked_div(Self::PER_SECOND).unwrap_or(0).max(1);
        let new = now.wrapping_sub(self.at).checked_div(step).unwrap_or(0);
        if new > 0 {
            self.left = self.left.saturating_add(new).min(Self::BURST);
            self.at = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl Default for Limiter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EL1H: u64 = 0x5 | PSTATE_PAN;
    const KERNEL: u64 = 0xFFFF_8000_1234_5678;
    const LDR: u32 = 0xF940_0020;
    const LDTR: u32 = 0xF840_0820;

    fn taken(class: u64, spsr: u64, far: u64) -> Taken {
        Taken { esr: class << 26, far, spsr, pan: true, instruction: Some(LDR) }
    }

    #[test]
    fn classes() {
        let of = |class, spsr| taken(class, spsr, KERNEL).judge();
        for class in 0..64 {
            let (kernel, user) = match class {
                0x00 | 0x0D | 0x0E | 0x1C => (Some(kind::UNDEFINED), Some(kind::USER_UNDEFINED)),
                0x20 | 0x21 | 0x22 | 0x26 => (Some(kind::ABORT), Some(kind::USER_ABORT)),
                0x24 => (Some(kind::USER_ABORT), Some(kind::USER_ABORT)),
                0x25 => (Some(kind::ABORT), Some(kind::ABORT)),
                _ => (None, None),
            };
            assert_eq!((of(class, EL1H), of(class, 0)), (kernel, user), "class {class:#x}");
        }
    }

    /// A kernel's null pointer is its own fault, its copies for programs are not.
    #[test]
    fn accesses_for_programs_are_theirs() {
        let null = taken(0x25, EL1H, 0x10);
        assert_eq!(null.judge(), Some(kind::ABORT));
        assert_eq!(Taken { instruction: None, ..null }.judge(), Some(kind::ABORT));
        assert_eq!(Taken { instruction: Some(LDTR), ..null }.judge(), Some(kind::USER_ABORT));
        assert_eq!(Taken { spsr: 0x5, ..null }.judge(), Some(kind::USER_ABORT));
        // Without PAN its bit says nothing.
        assert_eq!(Taken { spsr: 0x5, pan: false, ..null }.judge(), Some(kind::ABORT));
        // Nothing of a program's is in the upper half.
        assert_eq!(
            Taken { spsr: 0x5, instruction: Some(LDTR), far: KERNEL, ..null }.judge(),
            Some(kind::ABORT)
        );
    }

    #[test]
    fn unprivileged_instructions() {
        // ldtr x0, [x1]; ldtr w0; ldtrb; ldtrh; ldtrsb x; ldtrsw; sttr; sttrb, as the assembler makes them.
        for yes in
            [LDTR, 0xB840_0820, 0x3840_0820, 0x7840_0820, 0x3880_0820, 0xB880_0820, 0xF800_0820, 0x3800_0820]
        {
            assert!(is_unprivileged(yes), "{yes:#x}");
        }
        // ldr; ldur; ldr post-index; ldr pre-index; ldr register; ldp; ldr q (SIMD, bit 26); nop.
        for no in
            [LDR, 0xF840_0020, 0xF840_0420, 0xF840_0C20, 0xF862_6820, 0xA940_0420, 0x3CC0_0820, 0xD503_201F]
        {
            assert!(!is_unprivileged(no), "{no:#x}");
        }
    }

    #[test]
    fn masks_and_breakpoints() {
        assert_eq!(Mask::new(kind::ALL + 1), None);
        assert_eq!(Mask::new(1 << 6), None);
        let count = |bits| Mask::new(bits).unwrap().breakpoints();
        assert_eq!(count(0), 0);
        assert_eq!(
            count(kind::SERROR | kind::BREAKPOINT | kind::STALL | kind::EXTERNAL | kind::USER_BREAKPOINT),
            0
        );
        assert_eq!(count(kind::UNDEFINED), 2);
        assert_eq!(count(kind::ABORT), 2);
        assert_eq!(count(kind::USER_UNDEFINED), 1);
        assert_eq!(count(kind::ALL), 3);
    }

    #[test]
    fn a_stall_is_told_once_a_deadline() {
        let mut stall = Stall::default();
        assert!(!stall.ran(60, 100));
        assert_eq!(stall.left(100), 40);
        assert!(stall.ran(40, 100));
        assert!(!stall.ran(99, 100));
        stall.progress();
        assert!(!stall.ran(99, 100));
        assert!(stall.ran(u64::MAX, 100));
        assert!(stall.ran(1, 0));
    }

    #[test]
    fn floods_are_cut() {
        let mut limiter = Limiter::new();
        let passed = (0..1000).filter(|n| limiter.pass(1_000_000 + n, 1_000_000)).count();
        assert!(passed as u64 <= Limiter::BURST + 1, "{passed}");
        // A second later some pass again, and in the long run no more than so many a second.
        let passed = (0..100_000).filter(|n| limiter.pass(2_000_000 + n * 100, 1_000_000)).count();
        let most = Limiter::BURST + 10 * Limiter::PER_SECOND + 8;
        assert!((10 * Limiter::PER_SECOND / 2..=most).contains(&(passed as u64)), "{passed}");
        assert!(Limiter::new().pass(0, 0));
    }
}
