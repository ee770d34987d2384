// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Signals: the kick that gets a vCPU out of the guest, those that end the VM in order, and those
//! that end us at once but must not leave the terminal raw.

use std::sync::mpsc::Sender;
use std::thread;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::exit::EndReason;
use crate::terminal;

/// Signals that end the VM in order.
const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
/// Signals of our own mistakes.
const FATAL: [libc::c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];

/// The signal that interrupts RUN; its handler does nothing.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn ignore(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Restores the terminal, and lets the default action follow: the signal is raised again, as one
/// that somebody sent would not come back by itself.
extern "C" fn fatal(signal: libc::c_int) {
    terminal::restore();
    // SAFETY: async-signal-safe. The handler is reset by now; the signal waits for our return.
    unsafe { libc::raise(signal) };
}

/// Installs the handlers, and a thread that turns ending signals into [`EndReason::Signal`].
///
/// To be called before any other thread is started: threads inherit the signal mask.
///
/// # Errors
/// The kernel refused, or no thread is left.
pub fn install(end: Sender<EndReason>) -> std::io::Result<()> {
    // Without SA_RESTART, so that RUN returns EINTR.
    register_signal_handler(kick_signal(), ignore)?;
    for signal in FATAL {
        // SAFETY: an all-zero sigaction is a valid one (default action, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = fatal as *const () as usize;
        // The handler runs once, then the default action ends us. On its own stack, as the
        // ordinary one may be what overflowed.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
        // SAFETY: `action` is complete; `fatal` only calls async-signal-safe functions.
        if unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    // SAFETY: sigemptyset initialises the set.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is ours, the signal numbers are valid.
    unsafe {
        libc::sigemptyset(&mut set);
        for signal in ENDING.into_iter().filter(|&signal| !is_ignored(signal)) {
            libc::sigaddset(&mut set, signal);
        }
        // After a stop, the shell has changed the terminal.
        libc::sigaddset(&mut set, libc::SIGCONT);
        libc::sigaddset(&mut set, libc::SIGWINCH);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    thread::Builder::new().name("gz-signals".into()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: set and result are valid for the call.
            if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
                continue;
            }
            if signal == libc::SIGWINCH {
                terminal::tell_resized();
            } else if signal == libc::SIGCONT {
                terminal::raw_again();
            } else if end.send(EndReason::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Whoever started us wants this signal ignored (nohup; a background job of a script).
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is valid to be overwritten.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only reads the present action into `action`.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}
