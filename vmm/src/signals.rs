// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Signals: the kick that gets a vCPU out of the guest, those that end the VM in order, and those
//! that end us at once but must not leave the terminal raw; among them the one for a system call that the sandbox forbids.

use std::sync::mpsc::Sender;
use std::thread;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::exit::{CODE_VMM_ERROR, EndReason};
use crate::sandbox::{self, Role};
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

/// Where siginfo holds the number of a forbidden call: a 32-bit word of it, behind three of every signal's, padding, and
/// the call's address.
const SI_SYSCALL: usize = 6;

/// Tells which system call the sandbox forbade, and ends the process.
extern "C" fn forbidden_call(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore();
    // SAFETY: the kernel gives a complete siginfo to a handler that was installed with SA_SIGINFO.
    let number = unsafe { info.cast::<i32>().add(SI_SYSCALL).read() };
    let mut line = *b"gz: sandbox: system call      is not allowed\n";
    let mut rest = number.unsigned_abs();
    for digit in line[25..29].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    // SAFETY: async-signal-safe; the line is valid. There is nobody to tell of a failure.
    unsafe {
        libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len());
        libc::_exit(CODE_VMM_ERROR.into());
    }
}

/// The handler for `signal`, on a stack of its own.
fn handle(signal: libc::c_int, handler: usize, flags: libc::c_int) -> std::io::Result<()> {
    // SAFETY: an all-zero sigaction is a valid one (default action, empty mask).
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    // The ordinary stack may be what overflowed.
    action.sa_flags = flags | libc::SA_ONSTACK;
    // SAFETY: `action` is complete; the handlers only call async-signal-safe functions.
    match unsafe { libc::sigaction(signal, &action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Signals that wait to be taken by [`Blocked::start`].
pub struct Blocked(libc::sigset_t);

/// Installs the handlers, and blocks the signals that end the VM in order.
///
/// To be called before any thread is started: threads inherit the signal mask.
///
/// # Errors
/// The kernel refused.
pub fn install() -> std::io::Result<Blocked> {
    // Without SA_RESTART, so that RUN returns EINTR.
    register_signal_handler(kick_signal(), ignore)?;
    for signal in FATAL {
        // The handler runs once, then the default action ends us.
        handle(signal, fatal as *const () as usize, libc::SA_RESETHAND)?;
    }
    handle(libc::SIGSYS, forbidden_call as *const () as usize, libc::SA_SIGINFO)?;
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
    Ok(Blocked(set))
}

impl Blocked {
    /// Starts a thread that turns ending signals into [`EndReason::Signal`].
    ///
    /// # Errors
    /// No thread left.
    pub fn start(self, end: Sender<EndReason>) -> std::io::Result<()> {
        thread::Builder::new().name("gz-signals".into()).spawn(move || {
            sandbox::narrow(Role::Helper);
            loop {
                let mut signal = 0;
                // SAFETY: set and result are valid for the call.
                if unsafe { libc::sigwait(&self.0, &mut signal) } != 0 {
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
}

/// Whoever started us wants this signal ignored (nohup; a background job of a script).
fn is_ignored(signal: libc::c_int) -> bool {
    // SAFETY: an all-zero sigaction is valid to be overwritten.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only reads the present action into `action`.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}
