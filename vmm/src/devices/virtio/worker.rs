// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A thread that serves one queue: woken by the guest's notification, ended by the device's reset.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use virtio_queue::Error;
use vmm_sys_util::eventfd::EventFd;

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

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        let Some(thread) = self.thread.take() else { return };
        if self.notify.write(1).is_err() || thread.join().is_err() {
            tracing::warn!("virtio-{}: the worker thread did not end well", self.name);
        }
    }
}
