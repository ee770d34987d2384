// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio 1.2 devices: what they have in common, apart from how they are reached
//! ([`mmio`] and [`pci`] are the transports).
//!
//! A device is configured by the transport under its lock, then activated: it takes its queues and
//! serves them in threads of its own, woken by eventfds (one a queue) that the hypervisor signals straight from
//! the guest's notification. No lock is shared with the vCPUs while requests flow.
//!
//! Each device is a folder with the same files: `mod.rs` is the device (features, configuration, activation), `request.rs` what
//! one buffer of the guest's means, `backend` what is behind the device on the host. What a driver writes is judged once, in a copy;
//! a driver that breaks its rings has to reset the device, and no other is harmed.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod fs;
pub mod handover;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod rng;
pub mod transport;
pub mod vhost_user;
pub mod vsock;
pub mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

/// What every device offers: virtio 1, and what the split rings can do.
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Reads the configuration space `config` at `offset`; bytes behind its end stay as they are.
pub fn read_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let available = usize::try_from(offset).ok().and_then(|offset| config.get(offset..));
    for (to, from) in data.iter_mut().zip(available.unwrap_or_default()) {
        *to = *from;
    }
}

/// A device's interrupt: an eventfd tied to the virtual GIC, and the reasons that the driver reads
/// and acknowledges.
#[derive(Debug)]
pub struct Interrupt {
    line: EventFd,
    status: AtomicU32,
    broken: AtomicBool,
    /// Somebody else signals the line.
    delegated: AtomicBool,
    /// Changes of the configuration that did not come from the driver.
    generation: AtomicU32,
}

impl Interrupt {
    /// An interrupt that signals `line`.
    pub fn new(line: EventFd) -> Self {
        Self {
            line,
            status: AtomicU32::new(0),
            broken: AtomicBool::new(false),
            delegated: AtomicBool::new(false),
            generation: AtomicU32::new(0),
        }
    }

    /// Used buffers wait in a queue.
    pub fn used_buffer(&self) {
        self.raise(VIRTIO_MMIO_INT_VRING);
    }

    /// The configuration, or the device's status, has changed.
    pub fn config_change(&self) {
        self.generation.fetch_add(1, Ordering::Release);
        self.raise(VIRTIO_MMIO_INT_CONFIG);
    }

    /// The device can't go on; the driver finds that in the status.
    pub fn needs_reset(&self) {
        self.broken.store(true, Ordering::Release);
        self.config_change();
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    /// The line, for a back end that interrupts by itself when it has used buffers. Each interrupt may be for them from here on.
    pub fn delegate(&self) -> &EventFd {
        self.delegated.store(true, Ordering::Release);
        &self.line
    }

    fn broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
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
        self.status.load(Ordering::Acquire) | self.delegated_reasons()
    }

    /// The driver has seen `reasons`.
    pub fn acknowledge(&self, reasons: u32) {
        self.status.fetch_and(!reasons, Ordering::AcqRel);
    }

    /// Reasons that are not acknowledged yet, which are from here on.
    fn take(&self) -> u32 {
        self.status.swap(0, Ordering::AcqRel) | self.delegated_reasons()
    }

    /// What an interrupt may be for that somebody else has signalled.
    fn delegated_reasons(&self) -> u32 {
        if self.delegated.load(Ordering::Acquire) { VIRTIO_MMIO_INT_VRING } else { 0 }
    }

    fn clear(&self) {
        self.status.store(0, Ordering::Release);
        self.broken.store(false, Ordering::Release);
        self.delegated.store(false, Ordering::Release);
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

/// The queues with these two numbers, of a device that has one for each way; and what notifications of them signal.
fn both_ways(
    queues: Vec<ReadyQueue>,
    receive: u16,
    transmit: u16,
) -> (Option<Queue>, Option<Queue>, Vec<Arc<EventFd>>) {
    let (mut to_driver, mut from_driver, mut notifications) = (None, None, Vec::with_capacity(2));
    for ready in queues {
        match ready.index {
            index if index == receive => to_driver = Some(ready.queue),
            index if index == transmit => from_driver = Some(ready.queue),
            _ => continue,
        }
        notifications.push(ready.notify);
    }
    (to_driver, from_driver, notifications)
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

/// What the devices' tests have in common.
#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use virtio_queue::{DescriptorChain, QueueT};
    use vm_memory::GuestAddress;

    /// The device writes this descriptor.
    pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;

    /// 64 KiB from 0, of which a [`MockSplitQueue`] uses the start.
    pub fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
    }

    /// Descriptors (address, length, flags) that follow one another from `first` on.
    pub fn descriptors(first: u16, parts: &[(u64, u32, u16)]) -> Vec<RawDescriptor> {
        let last = parts.len() - 1;
        let next = |n: usize| if n == last { 0 } else { VRING_DESC_F_NEXT as u16 };
        (first + 1..)
            .zip(parts.iter().enumerate())
            .map(|(following, (n, &(address, len, flags)))| {
                RawDescriptor::from(Descriptor::new(address, len, flags | next(n), following))
            })
            .collect()
    }

    /// A chain of them.
    pub fn chain<'m>(
        memory: &'m GuestMemoryMmap,
        parts: &[(u64, u32, u16)],
    ) -> DescriptorChain<&'m GuestMemoryMmap> {
        let ring = MockSplitQueue::new(memory, 16);
        ring.add_desc_chains(&descriptors(0, parts), 0).unwrap();
        ring.create_queue::<Queue>().unwrap().pop_descriptor_chain(memory).unwrap()
    }

    #[test]
    fn configuration_ends_where_it_ends() {
        let mut data = [7; 4];
        read_bytes(&[1, 2, 3], 2, &mut data);
        assert_eq!(data, [3, 7, 7, 7]);
        read_bytes(&[1, 2, 3], 3, &mut data);
        read_bytes(&[1, 2, 3], u64::MAX, &mut data);
        assert_eq!(data, [3, 7, 7, 7]);
    }
}
