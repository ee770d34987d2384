// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Waiting for files and eventfds.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vmm_sys_util::eventfd::EventFd;

/// `event` as a file to wait for.
pub fn as_fd(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor belongs to `event`, which outlives this borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// One file that is readable, or at its end.
pub fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// Waits until one of `fds` is ready, the time is over, or a signal comes.
///
/// # Errors
/// Those of poll(2).
pub fn wait(fds: &mut [PollFd], timeout: Option<&Timespec>) -> io::Result<()> {
    match poll(fds, timeout) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
