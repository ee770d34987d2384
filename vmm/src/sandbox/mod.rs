// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What `gz` still may do once the guest runs: what its work needs, so that a guest that takes over a device's thread gets
//! little by it.
//!
//! | what | by | when |
//! |---|---|---|
//! | files by name: those that were named on the command line, for a restart | Landlock ([`files`]) | [`enter`] |
//! | system calls of the whole process ([`Role::Main`]) | seccomp ([`calls`]) | [`enter`] |
//! | system calls of a thread ([`Role`]) | seccomp | [`narrow`], first thing in the thread |
//!
//! # Invariants
//! [`enter`] is called by the main thread while it is the only one: all others inherit what it has. Filters only ever add
//! up, so a role's calls are among those of the role that starts its threads.
//!
//! A call that is not allowed ends the process with a line that names it ([`signals::forbidden_call`](crate::signals)).

mod calls;
mod files;

use std::sync::OnceLock;

use anyhow::Context;
use seccompiler::BpfProgram;
use serde::{Deserialize, Serialize};

pub use files::Files;

/// What a thread is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Makes and unmakes the VM; starts all others.
    Main,
    /// Runs a vCPU, and what devices do at once. Starts devices' threads.
    Vcpu,
    /// Serves a device's queue.
    Device,
    /// Tells the host's kernel which of a device's queues to serve.
    Switch,
    /// Keeps a device in another program, and looks for its successor.
    BackEnd,
    /// Serves the control socket.
    Control,
    /// Signals, clocks, standard input.
    Helper,
}

/// How far the process is confined.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum Confinement {
    /// Files and system calls.
    Full,
    /// System calls; this kernel has no Landlock.
    CallsOnly,
    /// `--no-sandbox`.
    None,
}

impl std::fmt::Display for Confinement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Full => "files and system calls",
            Self::CallsOnly => "system calls only",
            Self::None => "none",
        })
    }
}

/// The filters, and how far we are confined: a property of the process.
static ENTERED: OnceLock<(Filters, Confinement)> = OnceLock::new();

struct Filters {
    vcpu: BpfProgram,
    device: BpfProgram,
    switch: BpfProgram,
    back_end: BpfProgram,
    control: BpfProgram,
    helper: BpfProgram,
}

/// One heap for all threads, to be called before any is started. glibc's allocator opens a file (`/proc/sys/vm/overcommit_memory`) the first
/// time that a thread's own heap shrinks, which no filter lets a device do; the heap of the first thread shrinks by `brk`.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's; there are no other threads yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Confines this thread, and all that it starts from now on.
///
/// # Errors
/// The kernel refused the filter. That it has no Landlock is told, and no error.
pub fn enter(files: &Files) -> anyhow::Result<()> {
    let filters = Filters {
        vcpu: calls::filter(Role::Vcpu)?,
        device: calls::filter(Role::Device)?,
        switch: calls::filter(Role::Switch)?,
        back_end: calls::filter(Role::BackEnd)?,
        control: calls::filter(Role::Control)?,
        helper: calls::filter(Role::Helper)?,
    };
    let main = calls::filter(Role::Main)?;
    let confinement = if files.confine().context("sandbox: Landlock")? {
        Confinement::Full
    } else {
        tracing::warn!(
            "this kernel has no Landlock, or it is not among the security modules of its lsm= argument: \
             which files gz could open is not confined, its system calls are"
        );
        Confinement::CallsOnly
    };
    // Before the filter: a second time is a mistake of ours.
    anyhow::ensure!(ENTERED.set((filters, confinement)).is_ok(), "sandbox: entered twice");
    seccompiler::apply_filter(&main).context("sandbox: seccomp; --no-sandbox does without")
}

/// Leaves this thread no more than its role needs, if the process is confined.
pub fn narrow(role: Role) {
    let Some((filters, _)) = ENTERED.get() else { return };
    let filter = match role {
        Role::Main => return,
        Role::Vcpu => &filters.vcpu,
        Role::Device => &filters.device,
        Role::Switch => &filters.switch,
        Role::BackEnd => &filters.back_end,
        Role::Control => &filters.control,
        Role::Helper => &filters.helper,
    };
    if let Err(error) = seccompiler::apply_filter(filter) {
        // It worked for the main thread's; the thread is still as confined as that one.
        tracing::error!("sandbox: {role:?}: {error}");
    }
}

/// How far this process is confined.
pub fn confinement() -> Confinement {
    ENTERED.get().map_or(Confinement::None, |(_, confinement)| *confinement)
}
