// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Workers as threads.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::EventFd;

use super::Serve;
use crate::devices::virtio::Interrupt;
use crate::events;
use crate::sandbox;

/// The thread, and how to end it. Dropped: the thread has ended, and no request is in flight.
pub struct Worker {
    name: &'static str,
    thread: Option<JoinHandle<()>>,
    stop: EventFd,
}

impl Worker {
    /// Lets `server` serve, until it fails: then the driver is told that it has to reset the device.
    ///
    /// # Errors
    /// No thread or file descriptor left.
    pub fn start(
        name: &'static str,
        notifications: Vec<Arc<EventFd>>,
        interrupt: Arc<Interrupt>,
        mut server: impl Serve,
    ) -> io::Result<Self> {
        let stop = EventFd::new(libc::EFD_CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let thread = thread::Builder::new().name(format!("gz-{name}")).spawn(move || {
            sandbox::narrow(server.role());
            loop {
                if let Err(error) = server.serve() {
                    tracing::warn!("virtio-{name}: the guest broke its queue: {error}");
                    return interrupt.needs_reset();
                }
                match wait(&stopped, &notifications, &server) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return tracing::warn!("virtio-{name}: {error}"),
                }
            }
        })?;
        Ok(Self { name, thread: Some(thread), stop })
    }
}

/// Waits until there may be more to do; false: it is time to stop.
fn wait(stop: &EventFd, notifications: &[Arc<EventFd>], server: &impl Serve) -> io::Result<bool> {
    let mut fds = vec![events::readable(events::as_fd(stop))];
    fds.extend(notifications.iter().map(|notify| events::readable(events::as_fd(notify))));
    fds.extend(server.sources());
    let timeout = server.timeout().and_then(|time| Timespec::try_from(time).ok());
    events::wait(&mut fds, timeout.as_ref())?;
    let ready = |fd: &PollFd| fd.revents().contains(PollFlags::IN);
    for (fd, notify) in fds.iter().skip(1).zip(notifications) {
        if ready(fd) {
            notify.read()?;
        }
    }
    Ok(!fds.first().is_some_and(ready))
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.stop.write(1).is_err() || thread.join().is_err() {
            tracing::warn!("virtio-{}: the worker thread did not end well", self.name);
        }
    }
}
