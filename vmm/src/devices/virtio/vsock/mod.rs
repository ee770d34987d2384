// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-vsock (virtio 1.2, section 5.10): programs of the guest, of the host and of other guests talk by ordinary AF_VSOCK sockets.
//!
//! - [`options`]: what the command line says of it.
//! - here: the device of a guest that talks to the host only. The host kernel's vhost_vsock serves its queues in guest memory; we set up
//!   and tear down.
//! - [`switch`]: the device of a guest that has peers, since the kernel knows no way from guest to guest.
//! - [`backend`]: the other ends of a switch: the kernel again, and the gz of other guests.
//! - [`request`]: packets in and out of the guest's buffers.
//! - [`connections`]: who has connections with a peer, and what may be sent.
//!
//! One life of the guest has one file of /dev/vhost-vsock. When it is closed all connections are reset, so that the host's
//! programs see a guest that has gone, however it went; the kernel also sees to it that no two guests have an address.

pub mod backend;
pub mod connections;
pub mod options;
pub mod request;
pub mod switch;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use anyhow::Context;
use vhost::VhostBackend;
use vhost::vhost_kern::vsock::Vsock as Kernel;
use vhost::vsock::VhostVsock;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vm_memory::GuestMemoryMmap;

use super::{Activation, RING_FEATURES, VirtioDevice, handover, read_bytes};

/// Messages with ends, beside streams.
const VIRTIO_VSOCK_F_SEQPACKET: u32 = 1;

const QUEUE_SIZE: u16 = 256;
/// Queues, by number: to the driver, from the driver, events. There are no events.
const QUEUES: [u16; 3] = [QUEUE_SIZE, QUEUE_SIZE, 16];
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Those that the kernel serves.
const SERVED: u16 = 2;

/// The kernel's device, opened for each life.
pub const KERNEL: &str = "/dev/vhost-vsock";

/// The host's address.
const CID_HOST: u64 = 2;
/// Lowest address of a guest: those below are the hypervisor's, the host's, and reserved.
pub const CID_MIN: u64 = 3;
/// Highest: the next one means any.
pub const CID_MAX: u64 = u32::MAX as u64 - 1;

/// The kernel's device for the guest with the address `cid`. Rings are in `memory`.
fn open(cid: u64, memory: &GuestMemoryMmap) -> anyhow::Result<Kernel<Arc<GuestMemoryMmap>>> {
    let kernel = Kernel::new(Arc::new(memory.clone()))
        .context("--vsock: /dev/vhost-vsock (is the kernel's module vhost_vsock loaded?)")?;
    kernel.set_owner().context("--vsock")?;
    kernel.set_guest_cid(cid).with_context(|| format!("--vsock {cid}: does another guest have it?"))?;
    Ok(kernel)
}

/// A socket device whose queues the kernel serves.
pub struct Vsock {
    kernel: Kernel<Arc<GuestMemoryMmap>>,
    cid: u64,
    features: u64,
    running: bool,
}

impl Vsock {
    /// The device of the guest with the address `cid` and this memory.
    ///
    /// # Errors
    /// No such kernel module, no permission, or somebody has the address.
    pub fn open(cid: u64, memory: &GuestMemoryMmap) -> anyhow::Result<Self> {
        let kernel = open(cid, memory)?;
        let known = kernel.get_features().context("--vsock")?;
        let features = (RING_FEATURES | 1 << VIRTIO_VSOCK_F_SEQPACKET) & known;
        Ok(Self { kernel, cid, features, running: false })
    }
}

impl VirtioDevice for Vsock {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, features, interrupt, queues } = activation;
        let served = || queues.iter().filter(|ready| ready.index < SERVED);
        if served().count() != usize::from(SERVED) {
            return Err(io::Error::other("a queue is missing"));
        }
        self.kernel.set_features(handover::features(features)).map_err(io::Error::other)?;
        self.kernel.set_mem_table(&handover::regions(&memory)).map_err(io::Error::other)?;
        for ready in served() {
            handover::hand_over(&self.kernel, None, &interrupt, ready).map_err(io::Error::other)?;
        }
        self.kernel.start().map_err(io::Error::other)?;
        self.running = true;
        Ok(())
    }

    fn reset(&mut self) {
        if std::mem::take(&mut self.running)
            && let Err(error) = self.kernel.stop()
        {
            tracing::warn!("virtio-vsock: {error}");
        }
    }
}
