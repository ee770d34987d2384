// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exception watching: [`Function::SetWatch`](crate::hypercall::Function::SetWatch), and what its events say
//! ([`Watch`](crate::run::Watch)).

/// What can be watched, one bit each; an event's kind is one of them.
pub mod kind {
    /// EL1 executed an undefined instruction, or one in an illegal state.
    pub const UNDEFINED: u32 = 1 << 0;
    /// EL1 took an instruction or data abort that was its own.
    pub const ABORT: u32 = 1 << 1;
    /// An SError came while the guest had the CPU.
    pub const SERROR: u32 = 1 << 2;
    /// EL1 executed BRK.
    pub const BREAKPOINT: u32 = 1 << 3;
    /// A vCPU ran for so long without progress.
    pub const STALL: u32 = 1 << 4;
    /// The hypervisor answered an access with an external abort: nothing is at that address.
    pub const EXTERNAL: u32 = 1 << 5;
    /// EL0 executed an undefined instruction.
    pub const USER_UNDEFINED: u32 = 1 << 8;
    /// EL0 took an abort, or EL1 for it (page faults of programs among them).
    pub const USER_ABORT: u32 = 1 << 9;
    /// EL0 executed BRK.
    pub const USER_BREAKPOINT: u32 = 1 << 10;
    /// All of them.
    pub const ALL: u32 = 0x73F;
}

/// What an event comes to.
pub mod action {
    /// It is reported and counted, and the vCPU goes on.
    pub const REPORT: u32 = 0;
    /// The VM is paused.
    pub const PAUSE: u32 = 1;
    /// The VM ends with a reset.
    pub const RESET: u32 = 2;
    /// The VM ends with a crash.
    pub const KILL: u32 = 3;
}
