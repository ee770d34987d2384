// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-balloon (virtio 1.2, section 5.5): the guest gives memory back to the host, and takes it again.
//!
//! - [`request`]: one buffer: which pages it names.
//! - here: the device, and the threads that serve its queues.
//!
//! Pages that go into the balloon, or that the guest reports as free, are dropped from our memory first and
//! taken from the guest then ([`Giver`]). In this order nothing can come apart: a page that the guest touches in
//! between is the old one, which goes with the second step. Deflating needs nothing: a touched page faults in, zeroed.
//!
//! There is no statistics queue: the numbers of queues behind it would depend on what the driver accepts.

pub mod request;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::{Error, Queue};
use vm_memory::GuestMemoryMmap;

use super::worker::{self, Serve, Worker};
use super::{Activation, Interrupt, RING_FEATURES, ReadyQueue, VirtioDevice, read_bytes};
use request::Run;

/// The guest may take pages back from the balloon rather than kill a process (5.5.3).
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
/// The guest reports free pages.
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

const QUEUE_SIZE: u16 = 128;
/// Queues, by number: inflate, deflate, free page reporting.
const QUEUES: [u16; 3] = [QUEUE_SIZE; 3];
const DEFLATE: u16 = 1;
const REPORTING: u16 = 2;

/// Gives a run of the guest's pages back to the host. Pages that are no RAM are left alone.
pub type Giver = Arc<dyn Fn(Run) + Send + Sync>;

/// The size that the balloon should have, and the size it has, in pages. Shared with whoever controls it.
#[derive(Debug, Default)]
pub struct Size {
    target: AtomicU32,
    actual: AtomicU32,
}

impl Size {
    /// A balloon that should have `pages`.
    pub fn new(pages: u32) -> Arc<Self> {
        Arc::new(Self { target: AtomicU32::new(pages), actual: AtomicU32::new(0) })
    }

    /// What it should have.
    pub fn target(&self) -> u32 {
        self.target.load(Ordering::Relaxed)
    }

    /// It should have `pages` from now on; the driver is to be told of the change.
    pub fn set_target(&self, pages: u32) {
        self.target.store(pages, Ordering::Relaxed);
    }

    /// What the guest says it has given back.
    pub fn actual(&self) -> u32 {
        self.actual.load(Ordering::Relaxed)
    }
}

/// A balloon as a virtio device.
pub struct Balloon {
    size: Arc<Size>,
    give: Giver,
    workers: Vec<Worker>,
}

impl Balloon {
    /// A device without a driver.
    pub fn new(size: Arc<Size>, give: Giver) -> Self {
        Self { size, give, workers: Vec::new() }
    }

    /// num_pages and actual.
    fn config(&self) -> [u8; 8] {
        let mut config = [0; 8];
        let (target, actual) = config.split_at_mut(4);
        target.copy_from_slice(&self.size.target().to_le_bytes());
        actual.copy_from_slice(&self.size.actual().to_le_bytes());
        config
    }
}

impl VirtioDevice for Balloon {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn features(&self) -> u64 {
        RING_FEATURES | 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1 << VIRTIO_BALLOON_F_REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    /// The driver tells the size it has reached; all else in the configuration is ours.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (4, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            self.size.actual.store(u32::from_le_bytes(data), Ordering::Relaxed);
            tracing::debug!("balloon: {} pages", self.size.actual());
        }
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, interrupt, queues, .. } = activation;
        for ReadyQueue { index, queue, notify } in queues {
            let server = Server {
                index,
                give: self.give.clone(),
                memory: memory.clone(),
                queue,
                interrupt: interrupt.clone(),
            };
            self.workers.push(Worker::start("balloon", vec![notify], interrupt.clone(), server)?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
        self.size.actual.store(0, Ordering::Relaxed);
    }
}

/// What a thread works on.
struct Server {
    index: u16,
    give: Giver,
    memory: GuestMemoryMmap,
    queue: Queue,
    interrupt: Arc<Interrupt>,
}

impl Serve for Server {
    fn serve(&mut self) -> Result<(), Error> {
        let Self { index, give, memory, queue, interrupt } = self;
        worker::serve(queue, memory, interrupt, |chain| {
            match *index {
                DEFLATE => {}
                REPORTING => request::reported(chain, |run| give(run)),
                _ => request::inflated(memory, chain, |run| give(run)),
            }
            0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::{Duration, Instant};
    use virtio_bindings::virtio_ring::VRING_DESC_F_WRITE;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;

    fn balloon(pages: u32) -> (Balloon, Arc<Mutex<Vec<Run>>>) {
        let given: Arc<Mutex<Vec<Run>>> = Arc::default();
        let log = given.clone();
        let give: Giver = Arc::new(move |run| log.lock().unwrap().push(run));
        (Balloon::new(Size::new(pages), give), given)
    }

    #[test]
    fn config_tells_the_target_and_takes_the_size_reached() {
        let (mut balloon, _) = balloon(0x1234);
        balloon.write_config(4, &7_u32.to_le_bytes());
        balloon.write_config(0, &9_u32.to_le_bytes());
        balloon.write_config(5, &9_u32.to_le_bytes());
        balloon.write_config(4, &[9; 2]);
        let mut config = [0; 8];
        balloon.read_config(0, &mut config);
        assert_eq!(config, [0x34, 0x12, 0, 0, 7, 0, 0, 0]);
        let mut beyond = [5; 4];
        balloon.read_config(u64::MAX, &mut beyond);
        balloon.read_config(8, &mut beyond);
        assert_eq!(beyond, [5; 4]);
        balloon.size.set_target(0x55);
        balloon.read_config(0, &mut config);
        assert_eq!(config, [0x55, 0, 0, 0, 7, 0, 0, 0]);
        balloon.reset();
        assert_eq!((balloon.size.actual(), balloon.size.target()), (0, 0x55));
    }

    /// One buffer in queue `index`; what was given back.
    fn serve(index: u16, descriptor: Descriptor, content: &[u32]) -> Vec<Run> {
        let (mut balloon, given) = balloon(0);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        for (at, pfn) in (0x8000..).step_by(4).zip(content) {
            memory.write_obj(*pfn, GuestAddress(at)).unwrap();
        }
        let ring = MockSplitQueue::new(&memory, 16);
        ring.build_desc_chain(&[RawDescriptor::from(descriptor)]).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let notify = Arc::new(EventFd::new(0).unwrap());
        balloon
            .activate(Activation {
                memory: memory.clone(),
                features: balloon.features(),
                interrupt: Arc::new(Interrupt::new(line.try_clone().unwrap())),
                queues: vec![ReadyQueue { index, queue: ring.create_queue().unwrap(), notify }],
            })
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while line.read().is_err() {
            assert!(Instant::now() < deadline, "no interrupt");
            std::thread::sleep(Duration::from_millis(1));
        }
        balloon.reset();
        assert!(balloon.workers.is_empty());
        let given = given.lock().unwrap();
        given.clone()
    }

    #[test]
    fn inflating_gives_pages_back_and_deflating_does_not() {
        let pfns = [0x80012, 0x80010, 0x80011];
        let buffer = Descriptor::new(0x8000, 12, 0, 0);
        assert_eq!(serve(0, buffer, &pfns), [Run { address: 0x8001_0000, size: 0x3000 }]);
        assert_eq!(serve(DEFLATE, Descriptor::new(0x8000, 12, 0, 0), &pfns), []);
    }

    #[test]
    fn reported_pages_are_given_back() {
        let buffer = Descriptor::new(0x8020_0000, 0x20_0000, VRING_DESC_F_WRITE as u16, 0);
        assert_eq!(serve(REPORTING, buffer, &[]), [Run { address: 0x8020_0000, size: 0x20_0000 }]);
    }
}
