// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The bodies of the targets `blk`, `net`, `console`, `rng`, `balloon`, `transport` and `vhost_user`: a driver's register accesses and what it
//! writes into memory, against virtio-mmio and the device behind it, while the other end talks. A panic of any thread is a
//! finding, and a reset that does not end.
//!
//! A device serves all executions of its thread, as it would serve a guest that starts over and over: each begins with a reset and
//! empty memory. With the feature `inline-workers` devices serve their queues in this thread.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};

use gz::bus::MmioDevice;
use gz::devices::virtio::balloon::{Balloon, Size};
use gz::devices::virtio::blk::{Blk, backend::Disk, options::DiskOption};
use gz::devices::virtio::console::backend::{Slot, Socket};
use gz::devices::virtio::console::{Console, Port};
use gz::devices::virtio::fs::{self as folder, options::FsOption};
use gz::devices::virtio::mmio::MmioTransport;
use gz::devices::virtio::net::backend::passt::Passt;
use gz::devices::virtio::net::{Cable, Net, options::Mac};
use gz::devices::virtio::rng::Rng;
use gz::devices::virtio::vhost_user::options::{Kind, VhostUserOption};
use gz::devices::virtio::vhost_user::{Setup, VhostUser, link::Link};
use gz::devices::virtio::{Activation, VirtioDevice};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const MEMORY: usize = 0x1_0000;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
/// What [`Guest::bring_up`] gives a queue: descriptors, what is available, what is used.
const RINGS: [(u64, u32); 3] = [(0x80, 0), (0x90, 0x100), (0xA0, 0x200)];
const RINGS_SIZE: u32 = 0x400;
const QUEUE_SIZE: u32 = 16;

/// `blk`: a raw disk of 16 sectors.
pub fn blk(data: &[u8]) {
    thread_local!(static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) });
    GUEST.with_borrow_mut(|guest| guest.get_or_insert_with(|| Guest::new(disk(), None)).execute(data));
}

/// `net`: two pairs of queues; what the other ends send is the stream that passt would send, the same to both.
pub fn net(data: &[u8]) {
    thread_local!(static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) });
    GUEST.with_borrow_mut(|guest| {
        // A stream that is cut, or in the middle of a frame, would stay so.
        if guest.as_ref().is_some_and(|guest| guest.heard) {
            *guest = None;
        }
        thread_local!(static MEMORY: GuestMemoryMmap = memory());
        guest.get_or_insert_with(|| network(MEMORY.with(Clone::clone))).execute(data);
    });
}

/// `console`: two ports and their control queues, a program at one of them.
pub fn console(data: &[u8]) {
    thread_local!(static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) });
    GUEST.with_borrow_mut(|guest| guest.get_or_insert_with(ports).execute(data));
}

/// `rng`.
pub fn rng(data: &[u8]) {
    thread_local!(static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) });
    let new = || Guest::new(Box::new(Rng::default()), None);
    GUEST.with_borrow_mut(|guest| guest.get_or_insert_with(new).execute(data));
}

/// `balloon`: what is given back is whole pages, and nothing that wraps.
pub fn balloon(data: &[u8]) {
    thread_local!(static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) });
    let new = || {
        let give = |run: gz::devices::virtio::balloon::request::Run| {
            assert!(run.size != 0 && (run.address | run.size).is_multiple_of(4096));
            assert!(run.address.checked_add(run.size).is_some());
        };
        Guest::new(Box::new(Balloon::new(Size::new(7), Arc::new(give))), None)
    };
    GUEST.with_borrow_mut(|guest| guest.get_or_insert_with(new).execute(data));
}

/// `transport`: a device with queues of all sizes, which only gets what it may rely on.
pub fn transport(data: &[u8]) {
    thread_local!(static GUEST: RefCell<Option<Guest>> = const { RefCell::new(None) });
    let new = || Guest::new(Box::new(Picky { active: false }), None);
    GUEST.with_borrow_mut(|guest| guest.get_or_insert_with(new).execute(data));
}

/// `vhost_user`: the first byte is the kind of device, the second how much of the rest is what the program says from the start.
/// It says no more then, and has gone when the other end is to speak.
pub fn vhost_user(data: &[u8]) {
    let [kind, len, rest @ ..] = data else { return };
    let (said, steps) = rest.split_at(usize::from(*len).min(rest.len()));
    let (setup, config_size) = if kind % 2 == 0 {
        let option = VhostUserOption { kind: Kind::Block, socket: PathBuf::from("/nowhere") };
        (Setup::of(&option), Kind::Block.config_size())
    } else {
        (folder::setup(&FsOption { tag: "tag".into(), socket: PathBuf::from("/nowhere") }), 0)
    };
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    // What is not said is not waited for.
    let _ = theirs.write_all(said);
    let _ = theirs.shutdown(Shutdown::Write);
    let Ok(link) = Link::with(&setup, ours, config_size) else { return };
    thread_local!(static MEMORY: GuestMemoryMmap = shareable_memory());
    let device = VhostUser::new(setup, Arc::new(Mutex::new(link))).expect("a device");
    let mut guest = Guest::with_memory(Box::new(device), Some(theirs), MEMORY.with(Clone::clone));
    guest.leaves = true;
    guest.execute(steps);
}

/// Memory of a guest.
pub(crate) fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory")
}

/// Memory that another program could map.
fn shareable_memory() -> GuestMemoryMmap {
    let path = file();
    let file = std::fs::File::create_new(&path).expect("a file");
    file.set_len(MEMORY as u64).expect("a file");
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).expect("a file");
    let _ = std::fs::remove_file(&path);
    let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).expect("memory")
}

/// What a process needs first.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panics_count();
        #[cfg(feature = "inline-workers")]
        keep_heap();
    });
}

/// A thread's panic is everybody's.
fn panics_count() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        std::process::abort();
    }));
}

/// What is freed stays the heap's. Buffers of 64 KiB go and come with each life of a device: by default the kernel had the pages each time.
#[cfg(feature = "inline-workers")]
fn keep_heap() {
    for (option, value) in [(libc::M_MMAP_THRESHOLD, 1 << 24), (libc::M_TRIM_THRESHOLD, 1 << 28)] {
        // SAFETY: it changes nothing of what is allocated.
        assert_eq!(unsafe { libc::mallopt(option, value) }, 1);
    }
}

fn file() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("gz-fuzz-{}-{number}", std::process::id()))
}

fn disk() -> Box<dyn VirtioDevice> {
    let path = file();
    std::fs::write(&path, [0x5A; 16 * 512]).expect("a disk");
    let disk = Disk::open(&DiskOption { queues: 2, ..path.as_path().into() }).expect("a disk");
    let _ = std::fs::remove_file(&path);
    Box::new(Blk::new(disk))
}

fn network(memory: GuestMemoryMmap) -> Guest {
    let (cables, mut ends): (Vec<Cable>, Vec<UnixStream>) = (0..2)
        .map(|_| {
            let (ours, theirs) = UnixStream::pair().expect("sockets");
            (Arc::new(Mutex::new(Passt::new(ours, None).expect("a cable"))) as Cable, theirs)
        })
        .unzip();
    let second = ends.pop().expect("two ends");
    second.set_nonblocking(true).expect("a socket");
    let mut guest = Guest::with_memory(Box::new(Net::new(cables, Mac::random())), ends.pop(), memory);
    guest.second = Some(second);
    guest
}

fn ports() -> Guest {
    let paths = [file(), file()];
    let end = |path: &PathBuf| Slot::new(Box::new(Socket::listen(path).expect("a port")));
    let ports = paths.iter().map(|path| Port { name: "port".into(), end: end(path) }).collect();
    let client = UnixStream::connect(&paths[0]).expect("a client");
    paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
    Guest::new(Box::new(Console::ports(ports)), Some(client))
}

/// Does nothing, but looks at what it gets.
struct Picky {
    active: bool,
}

impl VirtioDevice for Picky {
    fn device_id(&self) -> u32 {
        1
    }

    fn features(&self) -> u64 {
        u64::MAX
    }

    fn queue_sizes(&self) -> &[u16] {
        &[1, 2, 16, 256, 1024, 32768, 16]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        use virtio_queue::QueueT;
        assert!(!std::mem::replace(&mut self.active, true), "activated twice");
        assert!(activation.features >> 32 & 1 == 1, "a legacy driver");
        for ready in &activation.queues {
            let queue = &ready.queue;
            let size = u64::from(queue.size());
            assert!(size.is_power_of_two() && size <= self.queue_sizes()[usize::from(ready.index)].into());
            let rings = [(queue.desc_table(), 16 * size), (queue.avail_ring(), 6 + 2 * size)];
            for (start, len) in rings.into_iter().chain([(queue.used_ring(), 6 + 8 * size)]) {
                // The last 2 bytes are there only with VIRTIO_F_EVENT_IDX.
                assert!(start.checked_add(len - 2).is_some_and(|end| end <= MEMORY as u64));
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.active = false;
    }
}

/// A driver that does what the input says.
struct Guest {
    transport: MmioTransport,
    memory: GuestMemoryMmap,
    peer: Option<UnixStream>,
    /// Another one like it.
    second: Option<UnixStream>,
    /// The other end has sent something.
    heard: bool,
    /// It does not send, but leaves.
    leaves: bool,
    /// Where the rings are since the last honest start.
    rings: u32,
}

impl Guest {
    fn new(device: Box<dyn VirtioDevice>, peer: Option<UnixStream>) -> Self {
        Self::with_memory(device, peer, memory())
    }

    fn with_memory(device: Box<dyn VirtioDevice>, peer: Option<UnixStream>, memory: GuestMemoryMmap) -> Self {
        prepare();
        if let Some(peer) = &peer {
            peer.set_nonblocking(true).expect("a socket");
        }
        let line = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
        let transport = MmioTransport::new(device, memory.clone(), line, false).expect("a transport");
        Self { transport, memory, peer, second: None, heard: false, leaves: false, rings: 0 }
    }

    /// Steps: a register and its value, memory, what the other end sends, an honest start, a descriptor, a buffer for the device.
    fn execute(&mut self, data: &[u8]) {
        self.set(STATUS, 0);
        self.memory.write_slice(&[0; MEMORY], GuestAddress(0)).expect("memory");
        let mut rest = data;
        while let Some((step, more)) = rest.split_first() {
            let (now, later) = more.split_at(more.len().min(8));
            rest = later;
            let mut word = [0; 8];
            word[..now.len()].copy_from_slice(now);
            let [low, high, value @ .., a, b] = word;
            let (at, value) = (u16::from_le_bytes([low, high]), u32::from_le_bytes(value));
            match step % 8 {
                0 => self.set(u64::from(at % 0x200), value),
                1 => {
                    self.transport.read(u64::from(at % 0x200), &mut [0; 8][..1 + (value % 8) as usize]);
                }
                2 => drop(self.memory.write_slice(&word[2..], GuestAddress(at.into()))),
                3 => self.notify(value % 8),
                4 => self.peer(rest),
                5 => self.bring_up(at, value),
                6 => self.descriptor(at, value, a, b),
                _ => self.offer(low.into(), high.into()),
            }
        }
        self.set(STATUS, 0);
    }

    fn set(&self, register: u64, value: u32) {
        // What a program is told when a device starts or stops has room.
        if self.leaves
            && matches!(register, QUEUE_READY | STATUS)
            && let Some(mut peer) = self.peer.as_ref()
        {
            while peer.read(&mut [0; 4096]).is_ok_and(|count| count != 0) {}
        }
        self.transport.write(register, &value.to_le_bytes());
    }

    fn get(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data);
        u32::from_le_bytes(data)
    }

    fn notify(&self, queue: u32) {
        self.set(0x50, queue);
        #[cfg(feature = "inline-workers")]
        gz::devices::virtio::worker::inline::turn();
    }

    fn peer(&mut self, rest: &[u8]) {
        let Some(peer) = &mut self.peer else { return };
        self.heard = true;
        if self.leaves {
            self.peer = None;
            return self.notify(0);
        }
        for end in [Some(peer), self.second.as_mut()].into_iter().flatten() {
            let _ = end.write(rest.get(..64).unwrap_or(rest));
            let _ = end.read(&mut [0; 4096]);
        }
        self.notify(0);
    }

    /// All queues, with rings that begin at `base`, and the features of `without` missing.
    fn bring_up(&mut self, base: u16, without: u32) {
        for status in [0, 1, 3] {
            self.set(STATUS, status);
        }
        for half in [0, 1] {
            self.set(0x14, half);
            self.set(0x24, half);
            self.set(0x20, self.get(0x10) & if half == 0 { !without } else { 1 });
        }
        self.set(STATUS, 11);
        self.rings = u32::from(base & 0xF000);
        for queue in 0..8 {
            self.set(0x30, queue);
            if self.get(0x34) == 0 {
                break;
            }
            self.set(0x38, QUEUE_SIZE);
            for (register, offset) in RINGS {
                self.set(register, self.rings + queue * RINGS_SIZE + offset);
            }
            self.set(0x44, 1);
        }
        self.set(STATUS, 15);
    }

    /// Where a ring of such a queue is.
    fn ring(&self, queue: u32, ring: usize) -> u64 {
        u64::from(self.rings + queue % 8 * RINGS_SIZE + RINGS[ring].1)
    }

    /// Descriptor `number % 16` of a queue, for a buffer below 64 KiB.
    fn descriptor(&self, number: u16, place: u32, flags: u8, next: u8) {
        let (queue, index) = (u32::from(number) / QUEUE_SIZE, u64::from(u32::from(number) % QUEUE_SIZE));
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&place.to_le_bytes()[..2]);
        bytes[8..10].copy_from_slice(&place.to_le_bytes()[2..]);
        bytes[12] = flags & 7;
        bytes[14] = next % (QUEUE_SIZE as u8 + 1);
        let _ = self.memory.write_slice(&bytes, GuestAddress(self.ring(queue, 0) + index * 16));
    }

    /// Makes a chain available, and tells the device.
    fn offer(&self, queue: u32, head: u16) {
        let ring = self.ring(queue, 1);
        let index: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap_or(0);
        let slot = u64::from(u32::from(index) % QUEUE_SIZE);
        let _ = self.memory.write_obj(head % (QUEUE_SIZE as u16 + 1), GuestAddress(ring + 4 + 2 * slot));
        let _ = self.memory.write_obj(index.wrapping_add(1), GuestAddress(ring + 2));
        self.notify(queue % 8);
    }
}
