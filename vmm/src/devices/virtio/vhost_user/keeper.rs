// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The thread beside a device in another program: passes the program's interrupts on, and sees it end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex};
#[cfg(not(feature = "inline-workers"))]
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::EventFd;

use super::{Life, WhenGone, lock};
use crate::events;
#[cfg(not(feature = "inline-workers"))]
use crate::sandbox::{self, Role};

/// How long until it is looked again whether a program listens.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

const NOTHING: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// The thread. Dropped: it has ended.
#[cfg(not(feature = "inline-workers"))]
pub struct Keeper {
    thread: Option<JoinHandle<()>>,
    stop: EventFd,
}

#[cfg(not(feature = "inline-workers"))]
impl Keeper {
    /// Keeps `life`; `call` is what the program signals.
    ///
    /// # Errors
    /// No thread or file descriptor left.
    pub fn start(life: Arc<Mutex<Life>>, call: Arc<EventFd>) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new().name("gz-vhost-user".into()).spawn(move || {
            sandbox::narrow(Role::BackEnd);
            while keep(&life, &call, &stopped, true).unwrap_or_else(|error| {
                tracing::warn!("vhost-user: {error}");
                false
            }) {}
        })?;
        Ok(Self { thread: Some(thread), stop })
    }
}

/// Waits (`patient`), and does what there is to do. False: it is time to stop.
fn keep(life: &Mutex<Life>, call: &EventFd, stop: &EventFd, patient: bool) -> io::Result<bool> {
    let (connection, notifications, waits) = {
        let life = lock(life);
        let waits = matches!(life.setup.when_gone, WhenGone::Wait);
        (life.connection(), life.notifications(), waits)
    };
    let mut fds = vec![events::readable(events::as_fd(stop)), events::readable(events::as_fd(call))];
    fds.extend(notifications.iter().map(|notify| events::readable(events::as_fd(notify))));
    if let Some(connection) = &connection {
        // SAFETY: the descriptor belongs to `connection`, which outlives this borrow.
        let fd = unsafe { BorrowedFd::borrow_raw(connection.as_raw_fd()) };
        // Nothing comes unasked but the end.
        fds.push(PollFd::from_borrowed_fd(fd, PollFlags::empty()));
    }
    let looks_again = connection.is_none() && waits;
    let at_once = (!patient).then_some(&NOTHING);
    events::wait(&mut fds, at_once.or(looks_again.then_some(&PAUSE)))?;
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    if ready.first() == Some(&true) {
        return Ok(false);
    }
    let called = ready.get(1) == Some(&true);
    if called {
        call.read()?;
    }
    for (notify, _) in notifications.iter().zip(ready.iter().skip(2)).filter(|(_, ready)| **ready) {
        notify.read()?;
    }
    let mut life = lock(life);
    if called {
        life.pass_on();
    }
    match connection {
        Some(_) if ready.last() == Some(&true) => life.lose(),
        Some(_) => {}
        None if waits => life.find(),
        None => life.refuse(),
    }
    Ok(true)
}

#[cfg(not(feature = "inline-workers"))]
impl Drop for Keeper {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.stop.write(1).is_err() || thread.join().is_err() {
            tracing::warn!("vhost-user: its thread did not end well");
        }
    }
}

/// Without a thread: see [`inline`](crate::devices::virtio::worker::inline).
#[cfg(feature = "inline-workers")]
pub struct Keeper(#[allow(dead_code)] crate::devices::virtio::worker::Worker);

#[cfg(feature = "inline-workers")]
impl Keeper {
    /// Keeps `life`; `call` is what the program signals.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn start(life: Arc<Mutex<Life>>, call: Arc<EventFd>) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_CLOEXEC)?;
        let interrupt = Arc::new(crate::devices::virtio::Interrupt::new(EventFd::new(libc::EFD_CLOEXEC)?));
        let keep = move || keep(&life, &call, &stop, false).unwrap_or(false);
        Ok(Self(crate::devices::virtio::worker::Worker::watch(interrupt, Box::new(keep))))
    }
}
