// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A thread that serves queues: woken by the guest's notifications and by what is behind the device, ended by the device's
//! reset; and the loop over a queue of requests. For fuzzing there are no threads (feature `inline-workers`).

#[cfg(feature = "inline-workers")]
pub mod inline;
#[cfg(not(feature = "inline-workers"))]
mod thread;

use std::time::Duration;

use rustix::event::PollFd;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::Interrupt;
use crate::sandbox::Role;
#[cfg(feature = "inline-workers")]
pub use inline::Worker;
#[cfg(not(feature = "inline-workers"))]
pub use thread::Worker;

/// What a worker does.
pub trait Serve: Send + 'static {
    /// Does all that can be done without waiting. Called at once, and whenever there may be more to do.
    ///
    /// # Errors
    /// The rings are nonsense.
    fn serve(&mut self) -> Result<(), Error>;

    /// What its thread may do.
    fn role(&self) -> Role {
        Role::Device
    }

    /// Files that are worth another call once they are ready, beside the notifications. Asked for after each call.
    fn sources(&self) -> Vec<PollFd<'_>> {
        Vec::new()
    }

    /// When another call is worth it in any case. Asked for after each call.
    fn timeout(&self) -> Option<Duration> {
        None
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
