// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The register frames that `vectors.S` fills and empties. Their layout is the assembly's.

use super::sysreg::{read, write};

/// General registers of the host, on the EL2 stack while EL2 works for it.
#[repr(C)]
pub struct HostFrame {
    /// x0..x30.
    pub x: [u64; 31],
    /// ELR_EL2: where to go back to.
    pub elr: u64,
    /// SPSR_EL2.
    pub spsr: u64,
    pad: u64,
}
const _: () = assert!(size_of::<HostFrame>() == 272);

impl HostFrame {
    /// Steps over an A64 instruction that EL2 has done; see [`GuestRegs::step`].
    pub fn step(&mut self) {
        self.elr = self.elr.wrapping_add(4);
        self.spsr &= !STEP_BITS;
    }
}

/// PSTATE.{BTYPE, SS}: they belong to an instruction that is done.
const STEP_BITS: u64 = 3 << 10 | 1 << 21;

/// General registers of a guest.
#[derive(Clone, Default)]
#[repr(C)]
pub struct GuestRegs {
    /// x0..x30.
    pub x: [u64; 31],
    /// Program counter.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
}

impl GuestRegs {
    /// Steps over an A64 instruction that EL2 has done. (AArch32 is hidden from guests.)
    pub fn step(&mut self) {
        self.pc = self.pc.wrapping_add(4);
        self.pstate &= !STEP_BITS;
    }
}

/// What [`run`] runs.
pub trait Guest {
    /// Its registers.
    fn regs(&mut self) -> &mut GuestRegs;

    /// An exception, straight from the vector. x0..x30 are in [`regs`](Self::regs), where all but x20..x28 may be
    /// changed; PC and PSTATE are in the CPU ([`step`]).
    fn answer(&mut self, kind: ExitKind) -> Answer;
}

/// What becomes of an exception that [`Guest::answer`] has looked at: what `guest_exit` wants to hear.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Answer(u64);

impl Answer {
    /// The guest goes on.
    pub const GO_ON: Self = Self(0);
    /// All is done, but [`run`] is to return [`ExitKind::Answered`].
    pub const STOP: Self = Self(ExitKind::Answered as u64);

    /// [`run`] returns it: nothing has been done yet.
    pub const fn decline(kind: ExitKind) -> Self {
        Self(kind as u64)
    }
}

/// Steps the guest in [`Guest::answer`] over an A64 instruction that EL2 has done.
#[inline(always)]
pub fn step() {
    write!("elr_el2", read!("elr_el2").wrapping_add(4));
    write!("spsr_el2", read!("spsr_el2") & !STEP_BITS);
}

/// General registers that [`Guest::answer`] may not change.
pub const KEPT_BY_RUST: core::ops::RangeInclusive<u8> = 20..=28;

unsafe extern "C" {
    fn enter_guest(regs: *mut GuestRegs, guest: *mut (), answer: *const ()) -> u64;
    fn enter_host(x0: u64, x1: u64, x2: u64, x3: u64, pc: u64, spsr: u64) -> !;
}

/// What took the CPU out of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum ExitKind {
    /// Synchronous exception; ESR_EL2 tells.
    Sync = 1,
    /// Physical IRQ.
    Irq,
    /// Physical FIQ.
    Fiq,
    /// SError.
    SError,
    /// [`Guest::answer`] has answered it, and wants a look at the rest.
    Answered,
}

/// PSTATE of EL1 with its own stack and everything masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3C5;

/// Runs a guest until an exception to EL2 that it does not answer from the vector.
///
/// # Safety
/// The guest's EL1 registers, stage 2, traps and vectors must be in place on this CPU, and PSTATE
/// must select EL1 or EL0.
#[inline(always)]
pub unsafe fn run<G: Guest>(guest: &mut G) -> ExitKind {
    let regs = core::ptr::from_mut(guest.regs());
    let answer = answer::<G> as *const ();
    // SAFETY: `guest` and its registers are exclusively ours for the duration; `answer` is what `enter_guest` calls it
    // for. The rest is the caller's promise.
    kind(unsafe { enter_guest(regs, core::ptr::from_mut(guest).cast(), answer) })
}

/// By the number that `vectors.S` gives it.
#[inline(always)]
fn kind(reason: u64) -> ExitKind {
    match reason {
        1 => ExitKind::Sync,
        2 => ExitKind::Irq,
        3 => ExitKind::Fiq,
        4 => ExitKind::SError,
        _ => ExitKind::Answered,
    }
}

/// What `guest_exit` calls.
extern "C" fn answer<G: Guest>(guest: &mut G, reason: u64) -> Answer {
    guest.answer(kind(reason))
}

/// Leaves EL2 for the host's EL1, with nothing of EL2 in the registers.
///
/// # Safety
/// The host's EL1 state, stage 2 and vectors must be in place on this CPU.
pub unsafe fn start_host(x0: u64, pc: u64) -> ! {
    // SAFETY: the caller's promise; the stack is given up, nothing on it is needed any more.
    unsafe { enter_host(x0, 0, 0, 0, pc, PSTATE_EL1H_MASKED) }
}
