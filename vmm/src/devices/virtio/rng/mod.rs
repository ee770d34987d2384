// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-rng (virtio 1.2, section 5.4): the host kernel's random numbers.

pub mod request;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::{Error, Queue};
use vm_memory::GuestMemoryMmap;

use super::worker::{self, Serve, Worker};
use super::{Activation, Interrupt, RING_FEATURES, ReadyQueue, VirtioDevice};

const QUEUE_SIZE: u16 = 64;

/// A source of random numbers as a virtio device.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, interrupt, queues, .. } = activation;
        let Some(ReadyQueue { queue, notify, .. }) = queues.into_iter().next() else { return Ok(()) };
        let server = Server { memory, queue, interrupt: interrupt.clone() };
        self.worker = Some(Worker::start("rng", vec![notify], interrupt, server)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// What the thread works on.
struct Server {
    memory: GuestMemoryMmap,
    queue: Queue,
    interrupt: Arc<Interrupt>,
}

impl Serve for Server {
    fn serve(&mut self) -> Result<(), Error> {
        let Self { memory, queue, interrupt } = self;
        worker::serve(queue, memory, interrupt, |chain| request::fill(memory, chain))
    }
}
