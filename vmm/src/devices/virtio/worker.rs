// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A thread that serves one queue: woken by the guest's notification, ended by the device's reset; and the loop over the queue.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;

/// The thread, and how to end it. Dropped: the thread has ended, and no request is in flight.
pub struct Worker {
    name: &'static str,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    notify: Arc<EventFd>,
}

impl Worker {
    /// Calls `serve` at once and after each notification, until it fails.
    ///
    /// # Errors
    /// No thread left.
    pub fn start(
        name: &'static str,
        notify: Arc<EventFd>,
        mut serve: impl FnMut() -> Result<(), Error> + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, woken) = (stop.clone(), notify.clone());
        let thread = thread::Builder::new().name(format!("gz-{name}")).spawn(move || {
            // Requests may have come before the thread.
            let mut result = serve();
            while result.is_ok() && woken.read().is_ok() && !stopped.load(Ordering::Acquire) {
                result = serve();
            }
            if let Err(error) = result {
                // What is left of the queue can't be trusted; only a reset by the driver helps.
                tracing::warn!("virtio-{name}: the guest broke its queue: {error}");
            }
        })?;
        Ok(Self { name, thread: Some(thread), stop, notify })
    }
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
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        if self.notify.write(1).is_err() || thread.join().is_err() {
            tracing::warn!("virtio-{}: the worker thread did not end well", self.name);
        }
    }
}
