// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The body of the target `vsock`: a socket device with a peer. The driver, the peer's gz and the host all send what they like. A panic
//! of any thread is a finding, a reset that does not end, and a packet that comes out with another sender or receiver than it may have.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use gz::bus::MmioDevice;
use gz::devices::virtio::mmio::MmioTransport;
use gz::devices::virtio::vsock::backend::peers::Exchange;
use gz::devices::virtio::vsock::backend::{Host, Uplink};
use gz::devices::virtio::vsock::request::{Header, check};
use gz::devices::virtio::vsock::switch::{Slot, Switched};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use crate::devices::{MEMORY, memory, prepare};

const OURS: u64 = 3;
const PEER: u64 = 4;
const HOST: u64 = 2;
const STATUS: u64 = 0x70;
const NOTIFY: u64 = 0x50;
/// Rings of 16, a KiB each; buffers for what is sent, of which a packet takes any part.
const RINGS: u64 = 0x1000;
const SENT: u64 = 0x4000;

/// A host that sends back what it is sent.
#[derive(Default)]
struct Echo(VecDeque<Vec<u8>>);

impl Uplink for Echo {
    fn features(&self, wanted: u64) -> u64 {
        wanted
    }

    fn start(&mut self, _features: u64) -> io::Result<Box<dyn Host>> {
        Ok(Box::new(Self::default()))
    }

    fn stop(&mut self) {}
}

impl Host for Echo {
    fn send(&mut self, packet: &[u8]) -> io::Result<bool> {
        let header = check(packet).expect("a packet");
        assert_eq!((header.src_cid, header.dst_cid), (OURS, HOST));
        let room = self.0.len() < 4;
        if room {
            self.0.push_back(packet.into());
        }
        Ok(room)
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> io::Result<bool> {
        let next = self.0.pop_front();
        let there = next.is_some();
        *packet = next.unwrap_or_default();
        Ok(there)
    }

    fn wake(&mut self) {}

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

fn sockets() -> (OwnedFd, UnixStream) {
    let mut fds = [0; 2];
    // SAFETY: the array has room for both, which are ours then.
    let [one, other] = unsafe {
        let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        assert_eq!(libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()), 0);
        fds.map(|fd| OwnedFd::from_raw_fd(fd))
    };
    (one, UnixStream::from(other))
}

/// A packet's header of eight bytes: mostly such that it belongs to one of few connections.
fn header(word: [u8; 8], src: u64, dst: u64) -> Header {
    let [op, kind, ours, theirs, len, flags, low, high] = word;
    let room = u32::from(low) | u32::from(high) << 8;
    Header {
        src_cid: if flags & 0xF0 == 0xF0 { u64::from(high) } else { src },
        dst_cid: dst,
        src_port: u32::from(ours % 4),
        dst_port: u32::from(theirs % 4),
        len: if flags & 8 == 0 { u32::from(len) } else { u32::from(len) << (flags & 31) },
        kind: if kind < 250 { 1 + u16::from(kind) % 2 } else { kind.into() },
        op: u16::from(op) % 9,
        flags: flags.into(),
        buf_alloc: room,
        fwd_cnt: room / 2,
    }
}

/// Steps of a kind and eight bytes.
pub fn vsock(data: &[u8]) {
    prepare();
    thread_local!(static GUEST: GuestMemoryMmap = memory());
    let memory = GUEST.with(Clone::clone);
    memory.write_slice(&[0; MEMORY], GuestAddress(0)).expect("memory");
    let (ours, mut peer) = sockets();
    let exchange = Slot::new(Exchange::joined(OURS, PEER, ours));
    let device = Switched::new(OURS, Box::new(Echo::default()), exchange);
    let line = EventFd::new(libc::EFD_NONBLOCK).expect("an eventfd");
    let transport = MmioTransport::new(Box::new(device), memory.clone(), line, false).expect("a transport");
    let set = |register: u64, value: u32| drop(transport.write(register, &value.to_le_bytes()));
    bring_up(&transport);
    let mut given = [0_u16; 2];
    for step in data.chunks_exact(9) {
        let [kind, word @ ..] = step.first_chunk::<9>().copied().unwrap_or_default();
        let [low, high, ..] = word;
        let at = u64::from(u16::from_le_bytes([low, high]));
        let place = SENT + u64::from(given[1] % 16) * 0x400;
        let mut give = |queue: usize, address: u64, len: u32, flags: u16| {
            let (ring, n) = (RINGS + 0x400 * queue as u64, u64::from(given[queue] % 16));
            let descriptor = [address, u64::from(len) | u64::from(flags) << 32];
            let _ = memory.write_obj(descriptor, GuestAddress(ring + 16 * n));
            let _ = memory.write_obj(n as u16, GuestAddress(ring + 0x104 + 2 * n));
            given[queue] = given[queue].wrapping_add(1);
            let _ = memory.write_obj(given[queue], GuestAddress(ring + 0x102));
            set(NOTIFY, queue as u32);
        };
        match kind % 9 {
            0 => set(at % 0x200, u32::from_le_bytes([word[2], word[3], word[4], word[5]])),
            1 => drop(memory.write_slice(&word[2..], GuestAddress(at))),
            2 | 3 => {
                let receiver =
                    if kind % 9 == 2 { PEER } else { [HOST, OURS, 9, u64::MAX][usize::from(kind >> 4) % 4] };
                let header = header(word, OURS, receiver);
                let _ = memory.write_slice(&header.to_bytes(), GuestAddress(place));
                give(1, place, 44_u32.saturating_add(header.len), 0);
            }
            4 => give(0, 0x8000 + at / 2, u32::from(word[2]) << (word[3] % 12), 2),
            5 | 6 => {
                let header = header(word, PEER, OURS);
                let mut packet = header.to_bytes().to_vec();
                packet.resize(44 + header.len.min(1 << 17) as usize, word[0]);
                let _ = peer.write(&packet);
            }
            7 if word[0] < 128 => drop(peer.write(&[word[0] % 2])),
            7 => drop(peer.write(&word[..usize::from(word[1] % 9)])),
            _ if word[0] < 8 => {
                bring_up(&transport);
                given = [0; 2];
            }
            _ => listen(&mut peer),
        }
        #[cfg(feature = "inline-workers")]
        gz::devices::virtio::worker::inline::turn();
    }
    set(STATUS, 0);
    listen(&mut peer);
}

/// What the peer's gz gets is of this guest, for that one.
fn listen(peer: &mut UnixStream) {
    let mut message = vec![0; 1 << 17];
    while let Ok(len @ 1..) = peer.read(&mut message) {
        if len > 1 {
            let header = check(&message[..len]).expect("a packet");
            assert_eq!((header.src_cid, header.dst_cid), (OURS, PEER));
        }
    }
}

/// Resets, and has all queues with all features but those of the rings.
fn bring_up(transport: &MmioTransport) {
    let set = |register: u64, value: u32| drop(transport.write(register, &value.to_le_bytes()));
    for status in [0, 1, 3] {
        set(STATUS, status);
    }
    for (half, features) in [(0, 2), (1, 1)] {
        set(0x24, half);
        set(0x20, features);
    }
    set(STATUS, 11);
    for queue in 0..3 {
        set(0x30, queue);
        set(0x38, 16);
        for (register, offset) in [(0x80, 0), (0x90, 0x100), (0xA0, 0x200)] {
            set(register, RINGS as u32 + queue * 0x400 + offset);
        }
        set(0x44, 1);
    }
    set(STATUS, 15);
}
