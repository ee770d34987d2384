// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A hostile guest driver against virtio-mmio and the devices behind it: random registers, random rings (those of all queues in
//! one place, too), random requests, while the other end talks. Whatever it does, nothing panics or hangs, a read-only disk
//! stays as it is, no disk changes its size, and after a reset the device works again.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use gz::bus::MmioDevice;
use gz::devices::virtio::VirtioDevice;
use gz::devices::virtio::blk::{Blk, backend::Disk, options::DiskOption};
use gz::devices::virtio::console::backend::{Slot, Socket};
use gz::devices::virtio::console::{Console, Port};
use gz::devices::virtio::mmio::MmioTransport;
use gz::devices::virtio::net::backend::passt::Passt;
use gz::devices::virtio::net::{Cable, Net, options::Mac};
use gz::devices::virtio::rng::Rng;
use proptest::prelude::*;
use virtio_bindings::virtio_mmio as reg;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: u64 = 0x1_0000;
const DISK: usize = 16 * 512;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const QUEUE: u16 = 16;
/// VIRTIO_F_EVENT_IDX and indirect descriptors.
const RING_FEATURES: u32 = 3 << 28;

/// What the driver does next.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Read(u64, usize),
    Descriptor { index: u16, address: u64, len: u32, flags: u16, next: u16 },
    Header { address: u64, kind: u32, sector: u64 },
    Available { slot: u16, head: u16, index: u16 },
    BringUp,
    BringUpAll,
    Notify(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let address = prop_oneof![8 => 0x4000..MEMORY, 1 => 0..MEMORY + 0x1000, 1 => any::<u64>()];
    let len =
        prop_oneof![4 => Just(16_u32), 4 => Just(512), 2 => Just(1), 2 => 0..0x2000_u32, 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..4_u16, 1 => any::<u16>()];
    let kind = prop_oneof![4 => 0..2_u32, 2 => Just(4), 2 => Just(8), 1 => any::<u32>()];
    let sector = prop_oneof![4 => 0..20_u64, 1 => any::<u64>()];
    let value = prop::collection::vec(any::<u8>(), 1..9);
    let step = prop_oneof![
        1 => (0..0x200_u64, value).prop_map(|(offset, data)| Step::Write(offset, data)),
        1 => (0..0x200_u64, 1..9_usize).prop_map(|(offset, len)| Step::Read(offset, len)),
        8 => (0..QUEUE, address.clone(), len, flags, 0..QUEUE + 2).prop_map(
            |(index, address, len, flags, next)| Step::Descriptor { index, address, len, flags, next }
        ),
        4 => (address, kind, sector)
            .prop_map(|(address, kind, sector)| Step::Header { address, kind, sector }),
        4 => (0..QUEUE, 0..QUEUE + 2, 0..QUEUE + 2)
            .prop_map(|(slot, head, index)| Step::Available { slot, head, index }),
        2 => Just(Step::BringUp),
        2 => Just(Step::BringUpAll),
        4 => (0..5_u32).prop_map(Step::Notify),
    ];
    prop::collection::vec(step, 1..60)
}

/// Panics of any thread: the device's own threads would only log theirs.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            default(info);
        }));
    });
}

struct Guest {
    transport: MmioTransport,
    memory: GuestMemoryMmap,
}

impl Guest {
    fn with_disk(disk: Disk) -> Self {
        Self::new(Box::new(Blk::new(disk)))
    }

    fn new(device: Box<dyn VirtioDevice>) -> Self {
        count_panics();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let transport = MmioTransport::new(device, memory.clone(), line, false).unwrap();
        Self { transport, memory }
    }

    fn set(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    fn get(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// As an honest driver does it.
    fn bring_up(&self) {
        for status in [0, 1, 3] {
            self.set(reg::VIRTIO_MMIO_STATUS, status);
        }
        self.negotiate();
        self.queue(0);
        self.set(reg::VIRTIO_MMIO_STATUS, 15);
    }

    /// As no driver does it: with all features but those of the rings, and with rings that all queues share.
    fn bring_up_all(&self) {
        for status in [0, 1, 3] {
            self.set(reg::VIRTIO_MMIO_STATUS, status);
        }
        self.set(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
        self.set(
            reg::VIRTIO_MMIO_DRIVER_FEATURES,
            self.get(reg::VIRTIO_MMIO_DEVICE_FEATURES) & !RING_FEATURES,
        );
        self.negotiate();
        for queue in 0.. {
            self.set(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
            if self.get(reg::VIRTIO_MMIO_QUEUE_NUM_MAX) == 0 {
                break;
            }
            self.queue(queue);
        }
        self.set(reg::VIRTIO_MMIO_STATUS, 15);
    }

    fn negotiate(&self) {
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        self.set(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
        self.set(reg::VIRTIO_MMIO_STATUS, 11);
    }

    fn queue(&self, queue: u32) {
        self.set(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        self.set(reg::VIRTIO_MMIO_QUEUE_NUM, QUEUE.into());
        let addresses = [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, DESCRIPTORS),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, AVAILABLE),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, USED),
        ];
        for (register, address) in addresses {
            self.set(register, address as u32);
            self.set(register + 4, 0);
        }
        self.set(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    fn store<T: vm_memory::ByteValued>(&self, value: T, address: u64) {
        // A driver can't write outside of its memory either.
        let _ = self.memory.write_obj(value, GuestAddress(address));
    }

    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + 16 * u64::from(index);
        self.store(address, at);
        self.store(len, at + 8);
        self.store(flags, at + 12);
        self.store(next, at + 14);
    }

    fn header(&self, address: u64, kind: u32, sector: u64) {
        self.store(kind, address);
        self.store(sector, address.saturating_add(8));
    }

    fn step(&self, step: Step) {
        match step {
            Step::Write(offset, data) => assert!(self.transport.write(offset, &data).is_none()),
            Step::Read(offset, len) => self.transport.read(offset, &mut vec![0; len]),
            Step::Descriptor { index, address, len, flags, next } => {
                self.descriptor(index, address, len, flags, next);
            }
            Step::Header { address, kind, sector } => self.header(address, kind, sector),
            Step::Available { slot, head, index } => {
                self.store(head, AVAILABLE + 4 + 2 * u64::from(slot));
                self.store(index, AVAILABLE + 2);
            }
            Step::BringUp => self.bring_up(),
            Step::BringUpAll => self.bring_up_all(),
            Step::Notify(queue) => self.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue),
        }
    }

    /// All of them; `between` is done after each. The device can be reset afterwards, and none of its threads panicked.
    fn survives(&self, steps: Vec<Step>, mut between: impl FnMut()) {
        for step in steps {
            self.step(step);
            between();
        }
        self.set(reg::VIRTIO_MMIO_STATUS, 0);
        assert_eq!(self.get(reg::VIRTIO_MMIO_STATUS), 0);
        assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the device panicked");
    }

    /// Reads sector 3, honestly; returns its first byte.
    fn read_a_sector(&self) -> u8 {
        // Reset first: the device may still be at work in the memory that is cleared here.
        self.set(reg::VIRTIO_MMIO_STATUS, 0);
        self.memory.write_slice(&[0; 0x3000], GuestAddress(DESCRIPTORS)).unwrap();
        self.bring_up();
        self.header(0x4000, 0, 3);
        self.store(0xEE_u8, 0x5000);
        self.descriptor(0, 0x4000, 16, 1, 1);
        self.descriptor(1, 0x6000, 512, 3, 2);
        self.descriptor(2, 0x5000, 1, 2, 0);
        self.store(1_u16, AVAILABLE + 2);
        self.set(reg::VIRTIO_MMIO_QUEUE_NOTIFY, 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap() != 1 {
            assert!(Instant::now() < deadline, "the device is dead");
            std::thread::yield_now();
        }
        assert_eq!(self.memory.read_obj::<u8>(GuestAddress(0x5000)).unwrap(), 0);
        self.memory.read_obj(GuestAddress(0x6000)).unwrap()
    }
}

struct Image(PathBuf);

impl Image {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("gz-hostile-{}-{name}", std::process::id()));
        fs::write(&path, [0x5A; DISK]).unwrap();
        Self(path)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_read_only_disk_survives_any_driver(steps in steps()) {
        let image = Image::new("ro");
        let guest = Guest::with_disk(Disk::open(&DiskOption { read_only: true, ..image.0.as_path().into() }).unwrap());
        steps.into_iter().for_each(|step| guest.step(step));
        guest.set(reg::VIRTIO_MMIO_STATUS, 0);
        prop_assert_eq!(guest.get(reg::VIRTIO_MMIO_STATUS), 0);
        prop_assert_eq!(guest.read_a_sector(), 0x5A);
        drop(guest);
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the device panicked");
        prop_assert!(fs::read(&image.0).unwrap() == [0x5A; DISK]);
    }

    #[test]
    fn a_disk_keeps_its_size(steps in steps()) {
        let image = Image::new("rw");
        let guest = Guest::with_disk(Disk::open(&DiskOption::from(image.0.as_path())).unwrap());
        steps.into_iter().for_each(|step| guest.step(step));
        guest.read_a_sector();
        drop(guest);
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), 0, "a thread of the device panicked");
        prop_assert_eq!(fs::metadata(&image.0).unwrap().len(), DISK as u64);
    }

    #[test]
    fn a_network_survives_any_driver(steps in steps(), pairs in 1..3_usize) {
        let (mut cables, mut peers) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            let (ours, peer) = UnixStream::pair().unwrap();
            peer.set_nonblocking(true).unwrap();
            cables.push(Arc::new(Mutex::new(Passt::new(ours, None).unwrap())) as Cable);
            peers.push(peer);
        }
        let guest = Guest::new(Box::new(Net::new(cables, Mac::random())));
        let frame = [&[0, 0, 5, 220][..], &[0x22; 1500]].concat();
        guest.survives(steps, || {
            // What does not go in whole would cut the stream: the other end is dead then, which is a case, too.
            for peer in &mut peers {
                let _ = peer.write(&frame);
                let _ = peer.read(&mut [0; 9000]);
            }
        });
    }

    #[test]
    fn ports_survive_any_driver(steps in steps()) {
        let path = std::env::temp_dir().join(format!("gz-hostile-{}-port", std::process::id()));
        let slot = || Slot::new(Box::new(Socket::listen(&path).unwrap()));
        let port = Port { name: "port".into(), end: slot() };
        let _ = fs::remove_file(&path);
        let other = Port { name: "other".into(), end: slot() };
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_nonblocking(true).unwrap();
        let guest = Guest::new(Box::new(Console::ports(vec![port, other])));
        guest.survives(steps, || {
            let _ = client.write(&[0x33; 700]);
            let _ = client.read(&mut [0; 9000]);
        });
    }

    #[test]
    fn random_numbers_survive_any_driver(steps in steps()) {
        Guest::new(Box::new(Rng::default())).survives(steps, || ());
    }
}
