// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-blk (virtio 1.2, section 5.2): an image file or block device, and queues to it.
//!
//! - [`options`]: what the command line says of it.
//! - [`backend`]: the file: opening, checking, locking, reading and writing.
//! - [`request`]: one request: from a descriptor chain to a status byte.
//! - here: the device, and the threads that serve a queue each. A flush makes last what was done before on any of them.

pub mod backend;
pub mod options;
pub mod request;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::{Error, Queue};
use vm_memory::GuestMemoryMmap;

use super::worker::{self, Serve, Worker};
use super::{Activation, Interrupt, RING_FEATURES, ReadyQueue, VirtioDevice, read_bytes};
use backend::{Disk, SECTOR_SIZE};
use request::{RANGE_SECTORS_MAX, RANGES_MAX};

const QUEUE_SIZE: u16 = 256;
/// A request has a header and a status beside its data.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;

// Fields of the configuration (5.2.4).
const CAPACITY: usize = 0;
const SEG_MAX_AT: usize = 12;
const NUM_QUEUES: usize = 34;
const MAX_DISCARD_SECTORS: usize = 36;
const MAX_DISCARD_SEG: usize = 40;
const DISCARD_SECTOR_ALIGNMENT: usize = 44;
const MAX_WRITE_ZEROES_SECTORS: usize = 48;
const MAX_WRITE_ZEROES_SEG: usize = 52;
const WRITE_ZEROES_MAY_UNMAP: usize = 56;
const CONFIG_SIZE: usize = 60;

/// A disk as a virtio device.
pub struct Blk {
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    workers: Vec<Worker>,
}

impl Blk {
    /// A device without a driver.
    pub fn new(disk: Disk) -> Self {
        let queue_sizes = vec![QUEUE_SIZE; disk.queues().into()];
        Self { disk: Arc::new(disk), queue_sizes, workers: Vec::new() }
    }
}

impl VirtioDevice for Blk {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        RING_FEATURES
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_FLUSH
            | if self.disk.queues() > 1 { 1 << VIRTIO_BLK_F_MQ } else { 0 }
            | if self.disk.read_only() {
                1 << VIRTIO_BLK_F_RO
            } else {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0_u8; CONFIG_SIZE];
        let fields: [(usize, &[u8]); 9] = [
            (CAPACITY, &(self.disk.size() / SECTOR_SIZE).to_le_bytes()),
            (SEG_MAX_AT, &SEG_MAX.to_le_bytes()),
            (NUM_QUEUES, &self.disk.queues().to_le_bytes()),
            (MAX_DISCARD_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes()),
            (MAX_DISCARD_SEG, &RANGES_MAX.to_le_bytes()),
            (DISCARD_SECTOR_ALIGNMENT, &1_u32.to_le_bytes()),
            (MAX_WRITE_ZEROES_SECTORS, &RANGE_SECTORS_MAX.to_le_bytes()),
            (MAX_WRITE_ZEROES_SEG, &RANGES_MAX.to_le_bytes()),
            (WRITE_ZEROES_MAY_UNMAP, &[1]),
        ];
        for (at, field) in fields {
            config.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
        }
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, features, interrupt, queues } = activation;
        for ReadyQueue { queue, notify, .. } in queues {
            let server = Server {
                disk: self.disk.clone(),
                memory: memory.clone(),
                queue,
                interrupt: interrupt.clone(),
                // Without the flush command, a write is done when it is on the medium (5.2.6.2).
                write_through: features >> VIRTIO_BLK_F_FLUSH & 1 == 0,
            };
            self.workers.push(Worker::start("blk", vec![notify], interrupt.clone(), server)?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.workers.clear();
    }
}

/// What the thread works on.
struct Server {
    disk: Arc<Disk>,
    memory: GuestMemoryMmap,
    queue: Queue,
    interrupt: Arc<Interrupt>,
    write_through: bool,
}

impl Serve for Server {
    fn serve(&mut self) -> Result<(), Error> {
        let Self { disk, memory, queue, interrupt, write_through } = self;
        worker::serve(queue, memory, interrupt, |chain| request::execute(disk, memory, chain, *write_through))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::tests::TempFile;
    use options::DiskOption;
    use std::time::{Duration, Instant};
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;

    #[test]
    fn config_tells_the_capacity() {
        let file = TempFile::new("blk-config", &[0; 5 * 512]);
        let blk = Blk::new(Disk::open(&DiskOption::from(file.0.as_path())).unwrap());
        let mut capacity = [0; 8];
        blk.read_config(0, &mut capacity);
        assert_eq!(u64::from_le_bytes(capacity), 5);
        let mut seg_max = [0; 4];
        blk.read_config(12, &mut seg_max);
        assert_eq!(u32::from_le_bytes(seg_max), 254);
        let mut beyond = [7; 4];
        blk.read_config(56, &mut beyond);
        assert_eq!(beyond, [1, 0, 0, 0]);
        beyond.fill(7);
        blk.read_config(58, &mut beyond);
        assert_eq!(beyond, [0, 0, 7, 7]);
        blk.read_config(u64::MAX, &mut beyond);
        assert_eq!(blk.features() >> VIRTIO_BLK_F_RO & 1, 0);
        assert_eq!((blk.features() >> VIRTIO_BLK_F_MQ & 1, blk.queue_sizes()), (0, &[256][..]));
        drop(blk);
        let blk = Blk::new(Disk::open(&DiskOption { queues: 3, ..file.0.as_path().into() }).unwrap());
        let mut queues = [0; 2];
        blk.read_config(34, &mut queues);
        assert_eq!((u16::from_le_bytes(queues), blk.queue_sizes()), (3, &[256; 3][..]));
        assert_eq!(blk.features() >> VIRTIO_BLK_F_MQ & 1, 1);
        drop(blk);
        let blk = Blk::new(Disk::open(&DiskOption { read_only: true, ..file.0.as_path().into() }).unwrap());
        assert_eq!(blk.features() >> VIRTIO_BLK_F_RO & 1, 1);
    }

    #[test]
    fn a_queue_is_served_by_its_thread() {
        let file = TempFile::new("blk-serve", &[0x33; 1024]);
        let mut blk = Blk::new(Disk::open(&DiskOption::from(file.0.as_path())).unwrap());
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let ring = MockSplitQueue::new(&memory, 16);
        let next = VRING_DESC_F_NEXT as u16;
        let write = VRING_DESC_F_WRITE as u16;
        let descriptors = [
            RawDescriptor::from(Descriptor::new(0x8000, 16, next, 1)),
            RawDescriptor::from(Descriptor::new(0x9000, 512, next | write, 2)),
            RawDescriptor::from(Descriptor::new(0xA000, 1, write, 0)),
        ];
        // Read sector 1.
        memory.write_obj(0_u64, GuestAddress(0x8000)).unwrap();
        memory.write_obj(1_u64, GuestAddress(0x8008)).unwrap();
        memory.write_obj(0xEE_u8, GuestAddress(0xA000)).unwrap();
        ring.build_desc_chain(&descriptors).unwrap();

        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let notify = Arc::new(EventFd::new(0).unwrap());
        let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
        let queue = ring.create_queue().unwrap();
        blk.activate(Activation {
            memory: memory.clone(),
            features: blk.features(),
            interrupt: interrupt.clone(),
            queues: vec![ReadyQueue { index: 0, queue, notify: notify.clone() }],
        })
        .unwrap();
        notify.write(1).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while line.read().is_err() {
            assert!(Instant::now() < deadline, "no interrupt");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(interrupt.status(), 1);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0xA000)).unwrap(), 0);
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x9000 + 508)).unwrap(), 0x3333_3333);
        blk.reset();
        assert!(blk.workers.is_empty());
    }
}
