// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio 1.2 devices: what they have in common, apart from how they are reached
//! ([`mmio`] is the transport).
//!
//! A device is configured by the transport under its lock, then activated: it takes its queues and
//! serves them in threads of its own, woken by eventfds that the hypervisor signals straight from
//! the guest's notification. No lock is shared with the vCPUs while requests flow.

pub mod balloon;
pub mod blk;
pub mod mmio;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// A device's interrupt: an eventfd tied to the virtual GIC, and the reasons that the driver reads
/// and acknowledges.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
}

impl Interrupt {
    /// An interrupt that signals `line`.
    pub fn new(line: EventFd) -> Self {
        Self { line, status: AtomicU32::new(0) }
    }

    /// Used buffers wait in a queue.
    pub fn used_buffer(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration, or the device's status, has changed.
    pub fn config_change(&self) {
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    fn raise(&self, reason: u32) {
        // The guest must find the reason when the interrupt reaches it.
        self.status.fetch_or(reason, Ordering::Release);
        if let Err(error) = self.line.write(1) {
            tracing::warn!("virtio interrupt lost: {error}");
        }
    }

    /// Reasons that are not acknowledged yet.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::Acquire)
    }

    /// The driver has seen `reasons`.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::AcqRel);
    }

    fn clear(&self) {
        self.status.store(0, Ordering::Release);
    }
}

/// A queue that is ready for use, and what the guest's notification of it signals.
#[derive(Debug)]
pub struct ReadyQueue {
    /// Which of the device's queues.
    pub index: u16,
    /// The queue. Its addresses have been checked against guest memory.
    pub queue: Queue,
    /// The notification.
    pub notify: Arc<EventFd>,
}

/// What a device gets when its driver is ready.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory.
    pub memory: GuestMemoryMmap,
    /// Features that the driver accepted.
    pub features: u64,
    /// The device's interrupt.
    pub interrupt: Arc<Interrupt>,
    /// The queues that the driver enabled.
    pub queues: Vec<ReadyQueue>,
}

/// A virtio device, whatever the transport.
pub trait VirtioDevice: Send {
    /// Device ID (virtio 1.2, section 5).
    fn device_id(&self) -> u32;
    /// Features offered.
    fn features(&self) -> u64;
    /// Largest size of each queue, powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// Reads configuration space; bytes behind its end stay as they are.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes configuration space; most devices let the driver change nothing.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// Starts to serve the queues.
    ///
    /// # Errors
    /// No thread or file descriptor left.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;
    /// Stops serving; returns when no request is in flight.
    fn reset(&mut self);
}
