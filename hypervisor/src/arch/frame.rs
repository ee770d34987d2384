// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The register frames that `vectors.S` fills and empties. Their layout is the assembly's.

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

unsafe extern "C" {
    fn enter_guest(regs: *mut GuestRegs) -> u64;
    fn enter_host(x0: u64, x1: u64, x2: u64, x3: u64, pc: u64, spsr: u64) -> !;
}

/// What took the CPU out of a guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExitKind {
    /// Synchronous exception; ESR_EL2 tells.
    Sync,
    /// Physical IRQ.
    Irq,
    /// Physical FIQ.
    Fiq,
    /// SError.
    SError,
}

/// PSTATE of EL1 with its own stack and everything masked.
pub const PSTATE_EL1H_MASKED: u64 = 0x3C5;

/// Runs a guest with these registers until the next exception to EL2.
///
/// # Safety
/// The guest's EL1 registers, stage 2, traps and vectors must be in place on this CPU, and PSTATE
/// must select EL1 or EL0.
#[inline(always)]
pub unsafe fn run(regs: &mut GuestRegs) -> ExitKind {
    // SAFETY: `regs` is exclusively ours for the duration; the rest is the caller's promise.
    match unsafe { enter_guest(regs) } {
        0 => ExitKind::Sync,
        1 => ExitKind::Irq,
        2 => ExitKind::Fiq,
        _ => ExitKind::SError,
    }
}

/// Leaves EL2 for the host's EL1, with nothing of EL2 in the registers.
///
/// # Safety
/// The host's EL1 state, stage 2 and vectors must be in place on this CPU.
pub unsafe fn start_host(x0: u64, pc: u64) -> ! {
    // SAFETY: the caller's promise; the stack is given up, nothing on it is needed any more.
    unsafe { enter_host(x0, 0, 0, 0, pc, PSTATE_EL1H_MASKED) }
}
