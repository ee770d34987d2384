// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The terminal on standard input: raw while the guest has it, as it was on every way out.
//!
//! The ways out: [`RawMode`] is dropped; a panic (the hook calls [`restore`]); an ending signal
//! (ends the VM, which drops the guard); a fatal one (its handler calls [`restore`]). Only SIGKILL
//! can't be helped.
//!
//! Raw means: keys reach the guest one by one, unechoed, Ctrl-C included. Output processing stays
//! on, so that our own messages look right.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

const STDIN: libc::c_int = libc::STDIN_FILENO;

struct Modes {
    original: libc::termios,
    raw: libc::termios,
}

/// Set once, before it is needed: handlers of fatal signals read it.
static MODES: OnceLock<Modes> = OnceLock::new();
static IS_RAW: AtomicBool = AtomicBool::new(false);

/// What standard input is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// A terminal that is ours.
    Terminal,
    /// A terminal whose foreground is another job: reading would stop us.
    Background,
    /// A pipe, file or the like.
    Other,
}

/// What standard input is.
pub fn input() -> Input {
    // SAFETY: isatty, tcgetpgrp and getpgrp touch no memory.
    unsafe {
        if libc::isatty(STDIN) == 0 {
            return Input::Other;
        }
        // Without job control (a shell that is init) there is no foreground job; nobody stops us.
        match libc::tcgetpgrp(STDIN) {
            group if group > 0 && group != libc::getpgrp() => Input::Background,
            _ => Input::Terminal,
        }
    }
}

/// The terminal is raw until this is dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Makes the terminal raw.
    ///
    /// # Errors
    /// Those of tcgetattr(3) and tcsetattr(3).
    pub fn enter() -> io::Result<Self> {
        // SAFETY: termios is plain data that tcgetattr fills in.
        let mut original: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `original` is valid for the call.
        if unsafe { libc::tcgetattr(STDIN, &mut original) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let modes = MODES.get_or_init(|| Modes { original, raw: make_raw(original) });
        set(&modes.raw)?;
        IS_RAW.store(true, Ordering::SeqCst);
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal what it was, if it is raw. Async-signal-safe.
pub fn restore() {
    if IS_RAW.swap(false, Ordering::SeqCst)
        && let Some(modes) = MODES.get()
    {
        let _ = set(&modes.original);
    }
}

static RESIZED: OnceLock<EventFd> = OnceLock::new();

/// Columns and rows of the terminal; zeros if there is none.
pub fn size() -> (u16, u16) {
    let size =
        rustix::termios::tcgetwinsize(io::stdin()).or_else(|_| rustix::termios::tcgetwinsize(io::stdout()));
    size.map_or((0, 0), |size| (size.ws_col, size.ws_row))
}

/// Signalled when the terminal's size has changed.
///
/// # Errors
/// No file descriptor left.
pub fn resized() -> io::Result<&'static EventFd> {
    let event = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)?;
    Ok(RESIZED.get_or_init(|| event))
}

/// Tells who wants to know that the size has changed.
pub fn tell_resized() {
    if let Some(event) = RESIZED.get() {
        let _ = event.write(1);
    }
}

/// Makes the terminal raw after a stop and continue, if it should be.
pub fn raw_again() {
    if IS_RAW.load(Ordering::SeqCst)
        && let Some(modes) = MODES.get()
        && input() == Input::Terminal
    {
        let _ = set(&modes.raw);
    }
}

fn set(mode: &libc::termios) -> io::Result<()> {
    // SAFETY: `mode` is valid for the call; tcsetattr is async-signal-safe.
    match unsafe { libc::tcsetattr(STDIN, libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn make_raw(mut mode: libc::termios) -> libc::termios {
    mode.c_iflag &= !(libc::IGNBRK
        | libc::BRKINT
        | libc::PARMRK
        | libc::ISTRIP
        | libc::INLCR
        | libc::IGNCR
        | libc::ICRNL
        | libc::IXON);
    mode.c_lflag &= !(libc::ECHO | libc::ECHONL | libc::ICANON | libc::ISIG | libc::IEXTEN);
    mode.c_cflag = mode.c_cflag & !libc::CSIZE | libc::CS8;
    mode.c_cc[libc::VMIN] = 1;
    mode.c_cc[libc::VTIME] = 0;
    mode
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_keeps_output_processing() {
        // SAFETY: termios is plain data.
        let mut mode: libc::termios = unsafe { std::mem::zeroed() };
        mode.c_oflag = libc::OPOST | libc::ONLCR;
        mode.c_lflag = libc::ISIG | libc::ECHO | libc::ICANON;
        let raw = make_raw(mode);
        assert_eq!(raw.c_oflag, mode.c_oflag);
        assert_eq!(raw.c_lflag, 0);
        assert_eq!(raw.c_cc[libc::VMIN], 1);
    }

    #[test]
    fn restore_without_raw_mode_does_nothing() {
        restore();
        raw_again();
        assert!(!IS_RAW.load(Ordering::SeqCst));
    }
}
