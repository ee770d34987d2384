// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The body of the target `devices`: a driver's register accesses and what it writes into memory, against virtio-mmio and the
//! device behind it. A panic of any thread is a finding, and a reset that does not end.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once};

use gz::bus::MmioDevice;
use gz::devices::virtio::VirtioDevice;
use gz::devices::virtio::blk::{Blk, backend::Disk, options::DiskOption};
use gz::devices::virtio::console::backend::{Slot, Socket};
use gz::devices::virtio::console::{Console, Port};
use gz::devices::virtio::mmio::MmioTransport;
use gz::devices::virtio::net::backend::passt::Passt;
use gz::devices::virtio::net::{Net, options::Mac};
use gz::devices::virtio::rng::Rng;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const MEMORY: usize = 0x1_0000;
const STATUS: u64 = 0x70;

/// A thread's panic is everybody's.
fn panics_count() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            default(info);
            std::process::abort();
        }));
    });
}

/// What the device is, and who is at its other end.
fn device(kind: u8) -> (Box<dyn VirtioDevice>, Option<UnixStream>) {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("gz-fuzz-{}-{number}", std::process::id()));
    match kind % 4 {
        0 => {
            fs::write(&path, [0x5A; 16 * 512]).expect("a disk");
            let disk = Disk::open(&DiskOption::from(path.as_path())).expect("a disk");
            let _ = fs::remove_file(&path);
            (Box::new(Blk::new(disk)), None)
        }
        1 => {
            let (ours, theirs) = UnixStream::pair().expect("sockets");
            let cable = Arc::new(Mutex::new(Passt::new(ours, None).expect("a cable")));
            (Box::new(Net::new(cable, Mac::random())), Some(theirs))
        }
        2 => {
            let end = Slot::new(Box::new(Socket::listen(&path).expect("a port")));
            let client = UnixStream::connect(&path).expect("a client");
            (Box::new(Console::ports(vec![Port { name: "port".into(), end }])), Some(client))
        }
        _ => (Box::new(Rng::default()), None),
    }
}

/// The first byte is the device; then steps: a register and its value, memory, what the other end sends, an honest start.
pub fn devices(data: &[u8]) {
    panics_count();
    let Some((kind, mut rest)) = data.split_first() else { return };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
    let (device, mut peer) = device(*kind);
    if let Some(peer) = &peer {
        peer.set_nonblocking(true).expect("a socket");
    }
    let line = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    let transport = MmioTransport::new(device, memory.clone(), line, false).expect("a transport");
    let set = |register: u64, value: u32| drop(transport.write(register, &value.to_le_bytes()));
    while let Some((step, more)) = rest.split_first() {
        let (now, later) = more.split_at(more.len().min(8));
        rest = later;
        let mut word = [0; 8];
        word[..now.len()].copy_from_slice(now);
        let [low, high, value @ .., _, _] = word;
        let (at, value) = (u64::from(u16::from_le_bytes([low, high])), u32::from_le_bytes(value));
        match step % 6 {
            0 => set(at % 0x200, value),
            1 => transport.read(at % 0x200, &mut [0; 8][..1 + (value % 8) as usize]),
            2 => drop(memory.write_slice(&word[2..], GuestAddress(at))),
            3 => set(0x50, value % 5),
            4 => {
                if let Some(peer) = &mut peer {
                    let _ = peer.write(rest.get(..64).unwrap_or(rest));
                    let _ = peer.read(&mut [0; 4096]);
                }
            }
            _ => bring_up(&transport, at & 0xF000),
        }
    }
    set(STATUS, 0);
}

/// All queues, with rings that begin at `base`, and all features but those of the rings.
fn bring_up(transport: &MmioTransport, base: u64) {
    let set = |register: u64, value: u32| drop(transport.write(register, &value.to_le_bytes()));
    let get = |register: u64| {
        let mut data = [0; 4];
        transport.read(register, &mut data);
        u32::from_le_bytes(data)
    };
    for status in [0, 1, 3] {
        set(STATUS, status);
    }
    for half in [0, 1] {
        set(0x14, half);
        set(0x24, half);
        set(0x20, get(0x10) & if half == 0 { !(3 << 28) } else { 1 });
    }
    set(STATUS, 11);
    for queue in 0..8 {
        set(0x30, queue);
        set(0x38, 16);
        for (register, offset) in [(0x80, 0), (0x90, 0x100), (0xA0, 0x200)] {
            set(register, base as u32 + queue * 0x400 + offset);
        }
        set(0x44, 1);
    }
    set(STATUS, 15);
}
