// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A thread that serves queues: woken by the guest's notifications and by what is behind the device, ended by the device's
//! reset; and the loop over a queue of requests.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags};
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use crate::events;
use crate::sandbox::{self, Role};

/// What a worker does.
pub trait Serve: Send + 'static {
    /// Does all that can be done without waiting. Called at once, and whenever there may be more to do.
    ///
    /// # Errors
    /// The rings are nonsense.
    fn serve(&mut self) -> Result<(), Error>;

    /// Files that are worth another call once they are ready, beside the notifications. Asked for after each call.
    fn sources(&self) -> Vec<PollFd<'_>> {
        Vec::new()
    }
}

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
            sandbox::narrow(Role::Device);
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
    events::wait(&mut fds, None)?;
    let ready = |fd: &PollFd| fd.revents().contains(PollFlags::IN);
    for (fd, notify) in fds.iter().skip(1).zip(notifications) {
        if ready(fd) {
            notify.read()?;
        }
    }
    Ok(!fds.first().is_some_and(ready))
}

/// Serves `queue` until it is empty; `execute` does a request, and says how many bytes it wrote for the guest.
///
/// # Errors
/// The rings are nonsense.
pub fn serve<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    interrupt: &Interrupt,
    mut execute: impl FnMut(DescriptorChain<&'m GuestMemoryMmap>) -> u32,
) -> Result<(), Error> {
    loop {
        queue.disable_notification(memory)?;
        let mut served = false;
        while let Some(chain) = queue.iter(memory)?.next() {
            let head = chain.head_index();
            let written = execute(chain);
            queue.add_used(memory, head, written)?;
            served = true;
        }
        if served && queue.needs_notification(memory)? {
            interrupt.used_buffer();
        }
        if !queue.enable_notification(memory)? {
            return Ok(());
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        if self.stop.write(1).is_err() || thread.join().is_err() {
            tracing::warn!("virtio-{}: the worker thread did not end well", self.name);
        }
    }
}
