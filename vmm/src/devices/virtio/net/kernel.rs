// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-net by the host kernel's vhost_net: it moves frames between the queues and a tap interface by itself; we set up and
//! tear down, and serve the control queue, if there is one.
//!
//! One life of the guest has one file of /dev/vhost-net for each pair of queues.

use std::fs::File;
use std::io;
use std::sync::Arc;

use anyhow::Context;
use vhost::VhostBackend;
use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net as Kernel;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::GuestMemoryMmap;

use super::control::{Control, Pairs};
use super::interface::Interface;
use super::options::Mac;
use super::{Cable, OFFLOADS, lock};
use crate::devices::virtio::worker::Worker;
use crate::devices::virtio::{Activation, Interrupt, RING_FEATURES, ReadyQueue, VirtioDevice, handover};
use crate::sandbox::Role;

/// The kernel's device, opened for each life.
pub const KERNEL: &str = "/dev/vhost-net";

/// A network interface that the kernel serves.
pub struct KernelNet {
    interface: Interface,
    pairs: Vec<Arc<Pair>>,
    /// What the kernel knows of the rings and their buffers.
    rings: u64,
    control: Option<Worker>,
    running: bool,
}

/// A pair of queues.
struct Pair {
    kernel: Kernel<Arc<GuestMemoryMmap>>,
    cable: Cable,
    tap: File,
}

impl Pair {
    fn open(cable: &Cable, memory: &GuestMemoryMmap) -> anyhow::Result<Self> {
        let kernel = Kernel::new(Arc::new(memory.clone()))
            .context("--net ..,vhost: /dev/vhost-net (is the kernel's module vhost_net loaded?)")?;
        kernel.set_owner().context("--net ..,vhost")?;
        let tap = lock(cable).file().try_clone_to_owned().context("--net ..,vhost")?.into();
        Ok(Self { kernel, cable: cable.clone(), tap })
    }

    /// Prepares the queues. The kernel serves them from [`connect`](Self::connect) on.
    fn prepare(
        &self,
        rings: u64,
        memory: &GuestMemoryMmap,
        interrupt: &Interrupt,
        queues: Vec<ReadyQueue>,
    ) -> anyhow::Result<()> {
        self.kernel.set_features(rings)?;
        self.kernel.set_mem_table(&handover::regions(memory))?;
        for ready in queues {
            // The kernel counts those of each pair from 0.
            let ready = ReadyQueue { index: ready.index % 2, ..ready };
            handover::hand_over(&self.kernel, None, interrupt, &ready)?;
        }
        Ok(())
    }

    fn connect(&self) -> vhost::Result<()> {
        (0..2).try_for_each(|index| self.kernel.set_backend(index, Some(&self.tap)))
    }

    fn disconnect(&self) {
        for index in 0..2 {
            // Returns when no frame is in flight.
            if let Err(error) = self.kernel.set_backend(index, None) {
                tracing::warn!("virtio-net: {error}");
            }
        }
    }

    /// Takes a pair that is not the first into use, or out of it.
    fn switch(&self, on: bool) -> io::Result<()> {
        if on {
            lock(&self.cable).attach(true)?;
            let Err(error) = self.connect() else { return Ok(()) };
            self.switch(false)?;
            return Err(io::Error::other(error));
        }
        // First: what the kernel has taken for the driver goes back to the tap, which drops it.
        self.disconnect();
        lock(&self.cable).attach(false)
    }
}

impl KernelNet {
    /// A device without a driver, at the other end of its cables a tap interface.
    ///
    /// # Errors
    /// No such kernel module, or no permission.
    pub fn open(cables: &[Cable], mac: Mac, memory: &GuestMemoryMmap) -> anyhow::Result<Self> {
        let mut pairs = Vec::with_capacity(cables.len());
        let mut rings = RING_FEATURES | 1 << VIRTIO_NET_F_MRG_RXBUF;
        for cable in cables {
            let pair = Pair::open(cable, memory)?;
            rings &= pair.kernel.get_features().context("--net ..,vhost")?;
            pairs.push(Arc::new(pair));
        }
        Ok(Self { interface: Interface::new(mac, pairs.len()), pairs, rings, control: None, running: false })
    }

    fn start(&mut self, activation: Activation) -> anyhow::Result<()> {
        let Activation { memory, features, interrupt, queues } = activation;
        let (queues, control) = self.interface.sort(queues, features);
        anyhow::ensure!(queues.first().is_some_and(|first| first.len() == 2), "a queue is missing");
        let count = queues.len();
        // Offloads are the tap's.
        let rings = handover::features(features & self.rings);
        for (pair, queues) in self.pairs.iter().zip(queues) {
            pair.prepare(rings, &memory, &interrupt, queues)?;
            lock(&pair.cable).set_offloads(features)?;
        }
        if let Some(first) = self.pairs.first() {
            first.connect()?;
        }
        if let Some(ReadyQueue { queue, notify, .. }) = control {
            let pairs = self.pairs.clone();
            let switch = move |pair, on| match pairs.get(usize::from(pair)) {
                Some(pair) => pair.switch(on),
                None => Err(io::ErrorKind::NotFound.into()),
            };
            let pairs = Pairs::new(count, features, switch);
            let server = Control { memory, queue, interrupt: interrupt.clone(), pairs, role: Role::Switch };
            self.control = Some(Worker::start("net-control", vec![notify], interrupt, server)?);
        }
        Ok(())
    }
}

impl VirtioDevice for KernelNet {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        self.rings | self.interface.features() | OFFLOADS
    }

    fn queue_sizes(&self) -> &[u16] {
        self.interface.queue_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.interface.read_config(true, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        self.running = true;
        self.start(activation).map_err(io::Error::other)
    }

    fn reset(&mut self) {
        self.control = None;
        if !std::mem::take(&mut self.running) {
            return;
        }
        if let Some((first, others)) = self.pairs.split_first() {
            first.disconnect();
            for pair in others {
                if let Err(error) = pair.switch(false) {
                    tracing::warn!("virtio-net: {error}");
                }
            }
        }
    }
}
