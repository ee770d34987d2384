// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-net by the host kernel's vhost_net: it moves frames between the queues and a tap interface by itself; we set up and
//! tear down.
//!
//! One life of the guest has one file of /dev/vhost-net.

use std::fs::File;
use std::io;
use std::sync::Arc;

use anyhow::Context;
use vhost::VhostBackend;
use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net as Kernel;
use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::GuestMemoryMmap;

use super::options::Mac;
use super::{Cable, OFFLOADS, OURS, QUEUES, config, lock};
use crate::devices::virtio::{Activation, RING_FEATURES, VirtioDevice, handover, read_bytes};

/// The kernel's device, opened for each life.
pub const KERNEL: &str = "/dev/vhost-net";

/// A network interface that the kernel serves.
pub struct KernelNet {
    kernel: Kernel<Arc<GuestMemoryMmap>>,
    cable: Cable,
    tap: File,
    mac: Mac,
    /// What the kernel knows of the rings and their buffers.
    rings: u64,
    running: bool,
}

impl KernelNet {
    /// A device without a driver, at the other end of its cable a tap interface.
    ///
    /// # Errors
    /// No such kernel module, or no permission.
    pub fn open(cable: Cable, mac: Mac, memory: &GuestMemoryMmap) -> anyhow::Result<Self> {
        let kernel = Kernel::new(Arc::new(memory.clone()))
            .context("--net ..,vhost: /dev/vhost-net (is the kernel's module vhost_net loaded?)")?;
        kernel.set_owner().context("--net ..,vhost")?;
        let known = kernel.get_features().context("--net ..,vhost")?;
        let tap = lock(&cable).file().try_clone_to_owned().context("--net ..,vhost")?.into();
        let rings = known & (RING_FEATURES | 1 << VIRTIO_NET_F_MRG_RXBUF);
        Ok(Self { kernel, cable, tap, mac, rings, running: false })
    }

    fn start(&self, activation: Activation) -> anyhow::Result<()> {
        let Activation { memory, features, interrupt, queues } = activation;
        anyhow::ensure!(queues.len() == QUEUES.len(), "a queue is missing");
        // To the kernel ACCESS_PLATFORM is an IOMMU of its own; addresses need no translation. Offloads are the tap's.
        self.kernel.set_features(features & self.rings & !(1 << VIRTIO_F_ACCESS_PLATFORM))?;
        self.kernel.set_mem_table(&handover::regions(&memory))?;
        lock(&self.cable).set_offloads(features)?;
        for ready in &queues {
            handover::hand_over(&self.kernel, None, &interrupt, ready)?;
        }
        for ready in &queues {
            self.kernel.set_backend(ready.index.into(), Some(&self.tap))?;
        }
        Ok(())
    }
}

impl VirtioDevice for KernelNet {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.rings | OURS | OFFLOADS
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&config(self.mac, true), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        self.running = true;
        self.start(activation).map_err(io::Error::other)
    }

    fn reset(&mut self) {
        if !std::mem::take(&mut self.running) {
            return;
        }
        for index in 0..QUEUES.len() {
            // Returns when no frame is in flight.
            if let Err(error) = self.kernel.set_backend(index, None) {
                tracing::warn!("virtio-net: {error}");
            }
        }
    }
}
