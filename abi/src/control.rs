// SPDX-License-Identifier: Apache-2.0 OR MIT
//! [`Function::Control`](crate::hypercall::Function::Control): a VM's power as the host sees and sets it.

/// Nothing but the answer.
pub const STATUS: u32 = 0;
/// vCPUs leave the guest and park. [`Busy`](crate::hypercall::Status::Busy) until the last is out.
pub const PAUSE: u32 = 1;
/// They may run again; the caller wakes them.
pub const RESUME: u32 = 2;

/// Result x1.
pub mod state {
    /// No vCPU has run yet.
    pub const CREATED: u32 = 0;
    /// It runs.
    pub const RUNNING: u32 = 1;
    /// Paused.
    pub const PAUSED: u32 = 2;
    /// The guest has suspended itself.
    pub const SUSPENDED: u32 = 3;
    /// Over: powered off.
    pub const OFF: u32 = 4;
    /// Over: it asked for a reset.
    pub const RESET: u32 = 5;
    /// Over: given up.
    pub const CRASHED: u32 = 6;
    /// Being destroyed.
    pub const DYING: u32 = 7;
}
