// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests with peers: their drivers at the one end, and what is between them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::backend::peers::Exchange;
use super::backend::{Host, Uplink};
use super::request::{HEADER_SIZE, Header, PACKET_MAX, SEQPACKET, STREAM, op};
use super::switch::{Slot, Switched};
use crate::devices::virtio::tests::WRITE;
use crate::devices::virtio::{Activation, Interrupt, ReadyQueue, VirtioDevice};
use crate::events;

const SIZE: u16 = 16;
/// Size of the driver's buffers for what it receives; its rings, a page each; the buffers.
const BUFFER: u64 = 4096;
const RINGS: [u64; 2] = [0x1000, 0x2000];
const BUFFERS: [u64; 2] = [0x1_0000, 0x4_0000];

/// A host whose programs are the test.
#[derive(Clone)]
struct Programs(Arc<Mutex<State>>, Arc<EventFd>);

#[derive(Default)]
struct State {
    to: VecDeque<Vec<u8>>,
    from: Vec<Vec<u8>>,
    full: bool,
}

impl Programs {
    fn new() -> Self {
        Self(Arc::default(), Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()))
    }

    /// Changes what there is.
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.0.lock().unwrap());
        self.1.write(1).unwrap();
        result
    }
}

impl Host for Programs {
    fn send(&mut self, packet: &[u8]) -> io::Result<bool> {
        let mut state = self.0.lock().unwrap();
        if !state.full {
            state.from.push(packet.into());
        }
        Ok(!state.full)
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> io::Result<bool> {
        let next = self.0.lock().unwrap().to.pop_front();
        let there = next.is_some();
        *packet = next.unwrap_or_default();
        Ok(there)
    }

    fn wake(&mut self) {
        let _ = self.1.read();
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        vec![events::as_fd(&self.1)]
    }
}

impl Uplink for Programs {
    fn features(&self, wanted: u64) -> u64 {
        wanted
    }

    fn start(&mut self, _features: u64) -> io::Result<Box<dyn Host>> {
        Ok(Box::new(self.clone()))
    }

    fn stop(&mut self) {}
}

/// A guest with its driver.
struct Guest {
    cid: u64,
    device: Switched,
    programs: Programs,
    memory: GuestMemoryMmap,
    notify: Option<[Arc<EventFd>; 2]>,
    /// Buffers given, and taken back, of both queues.
    given: [u16; 2],
    taken: [u16; 2],
    /// It gives its buffers back.
    receives: bool,
}

impl Guest {
    fn new(cid: u64, exchange: Exchange) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let programs = Programs::new();
        let device = Switched::new(cid, Box::new(programs.clone()), Slot::new(exchange));
        let mut guest = Self {
            cid,
            device,
            programs,
            memory,
            notify: None,
            given: [0; 2],
            taken: [0; 2],
            receives: true,
        };
        guest.start();
        guest
    }

    fn start(&mut self) {
        let events = [(), ()].map(|()| Arc::new(EventFd::new(0).unwrap()));
        for ring in RINGS {
            self.memory.write_slice(&[0; 0x1000], GuestAddress(ring)).unwrap();
        }
        (self.given, self.taken) = ([0; 2], [0; 2]);
        let queues = (0..).zip(RINGS).zip(&events).map(|((index, ring), notify)| {
            let mut queue = Queue::new(SIZE).unwrap();
            queue.set_desc_table_address(Some(ring as u32), Some(0));
            queue.set_avail_ring_address(Some(ring as u32 + 0x400), Some(0));
            queue.set_used_ring_address(Some(ring as u32 + 0x800), Some(0));
            queue.set_ready(true);
            ReadyQueue { index, queue, notify: notify.clone() }
        });
        let activation = Activation {
            memory: self.memory.clone(),
            features: self.device.features(),
            interrupt: Arc::new(Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())),
            queues: queues.collect(),
        };
        self.notify = Some(events);
        if self.receives {
            (0..SIZE).for_each(|n| self.give(0, n, BUFFER as u32));
        }
        self.device.activate(activation).unwrap();
    }

    fn give(&mut self, queue: usize, buffer: u16, len: u32) {
        let (ring, n) = (RINGS[queue], u64::from(buffer));
        let stride = [BUFFER, 0x1_0000 + 0x1000][queue];
        let address = BUFFERS[queue] + n * stride % 0xA_0000;
        let flags = [WRITE, 0][queue];
        let descriptor = [address, u64::from(len) | u64::from(flags) << 32];
        self.memory.write_obj(descriptor, GuestAddress(ring + 16 * n)).unwrap();
        let slot = u64::from(self.given[queue] % SIZE);
        self.memory.write_obj(buffer, GuestAddress(ring + 0x404 + 2 * slot)).unwrap();
        self.given[queue] += 1;
        self.memory
            .store(self.given[queue], GuestAddress(ring + 0x402), std::sync::atomic::Ordering::Release)
            .unwrap();
        self.notify.as_ref().unwrap()[queue].write(1).unwrap();
    }

    /// The next buffer that the device has used.
    fn take(&mut self, queue: usize, wait: Duration) -> Option<(u16, u32)> {
        let ring = RINGS[queue];
        let end = Instant::now() + wait;
        loop {
            let index: u16 =
                self.memory.load(GuestAddress(ring + 0x802), std::sync::atomic::Ordering::Acquire).unwrap();
            if index != self.taken[queue] {
                break;
            }
            if Instant::now() > end {
                return None;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let slot = u64::from(self.taken[queue] % SIZE);
        let [buffer, len]: [u32; 2] = self.memory.read_obj(GuestAddress(ring + 0x804 + 8 * slot)).unwrap();
        self.taken[queue] += 1;
        Some((buffer as u16, len))
    }

    /// Sends a packet, which the device takes within some time.
    fn offers(&mut self, header: Header, payload: &[u8], wait: Duration) -> bool {
        let packet = [&Header { len: payload.len() as u32, ..header }.to_bytes()[..], payload].concat();
        // One after the other, so it is always the first buffer.
        self.memory.write_slice(&packet, GuestAddress(BUFFERS[1])).unwrap();
        self.give(1, 0, packet.len() as u32);
        self.take(1, wait).is_some()
    }

    fn sends(&mut self, header: Header, payload: &[u8]) {
        assert!(self.offers(header, payload, Duration::from_secs(20)), "not taken: {header:?}");
    }

    fn got(&mut self, wait: Duration) -> Option<(Header, Vec<u8>)> {
        let (buffer, len) = self.take(0, wait)?;
        let mut packet = vec![0; len as usize];
        let at = BUFFERS[0] + u64::from(buffer) * BUFFER;
        self.memory.read_slice(&mut packet, GuestAddress(at)).unwrap();
        self.give(0, buffer, BUFFER as u32);
        let header = Header::of(&packet).unwrap();
        assert_eq!(header.len as usize, packet.len() - HEADER_SIZE);
        Some((header, packet.split_off(HEADER_SIZE)))
    }

    /// The next packet's operation, and its payload.
    fn receives(&mut self) -> (u16, Vec<u8>) {
        let (header, payload) = self.got(Duration::from_secs(20)).expect("a packet");
        assert_eq!(header.dst_cid, self.cid);
        (header.op, payload)
    }

    fn receives_nothing(&mut self) {
        assert_eq!(self.got(Duration::from_millis(50)), None);
    }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

/// Guests 3 and 4, which are peers, and know of each other.
fn pair() -> (Guest, Guest) {
    let (one, other) = sockets();
    let mut guests =
        (Guest::new(3, Exchange::joined(3, 4, one)), Guest::new(4, Exchange::joined(4, 3, other)));
    // Until the one knows that the other is up it is refused.
    while {
        guests.0.sends(from_3(op::REQUEST), &[]);
        let header = guests.0.got(Duration::from_millis(20));
        header.is_some_and(|(header, _)| header.op == op::RST)
    } {}
    assert_eq!(guests.1.receives().0, op::REQUEST);
    guests.1.sends(from_4(op::RESPONSE), &[]);
    assert_eq!(guests.0.receives().0, op::RESPONSE);
    guests
}

/// Between port 1 of guest 3 and port 2 of guest 4, with 100,000 bytes of room.
fn from_3(op: u16) -> Header {
    let (kind, buf_alloc) = (STREAM, 100_000);
    Header { src_cid: 3, dst_cid: 4, src_port: 1, dst_port: 2, kind, op, buf_alloc, ..Header::default() }
}

fn from_4(op: u16) -> Header {
    Header { src_cid: 4, dst_cid: 3, src_port: 2, dst_port: 1, ..from_3(op) }
}

#[test]
fn guests_talk() {
    let (mut a, mut b) = pair();
    let payload: Vec<u8> = (0..60_000_u32).map(|n| (n % 251) as u8).collect();
    a.sends(from_3(op::RW), &payload);
    let mut came = Vec::new();
    while came.len() < payload.len() {
        let (op, part) = b.receives();
        assert_eq!(op, op::RW);
        came.extend(part);
    }
    assert_eq!(came, payload);
    b.sends(from_4(op::RW), b"answer");
    assert_eq!(a.receives(), (op::RW, b"answer".to_vec()));
    b.sends(from_4(op::SHUTDOWN), &[]);
    assert_eq!(a.receives().0, op::SHUTDOWN);
    a.sends(from_3(op::RST), &[]);
    assert_eq!(b.receives().0, op::RST);
    a.sends(from_3(op::RW), &[1]);
    assert_eq!(a.receives().0, op::RST);
    b.receives_nothing();
}

#[test]
fn messages_keep_their_ends() {
    let (mut a, mut b) = pair();
    let of = |op| Header { kind: SEQPACKET, src_port: 7, ..from_3(op) };
    let back = |op| Header { kind: SEQPACKET, dst_port: 7, ..from_4(op) };
    a.sends(of(op::REQUEST), &[]);
    assert_eq!(b.receives().0, op::REQUEST);
    b.sends(back(op::RESPONSE), &[]);
    assert_eq!(a.receives().0, op::RESPONSE);
    for flags in [1, 3] {
        a.sends(Header { flags, ..of(op::RW) }, &[5; 9000]);
        let parts: Vec<_> = (0..3).map(|_| b.got(Duration::from_secs(20)).unwrap().0).collect();
        assert_eq!(parts.iter().map(|part| part.flags).collect::<Vec<_>>(), [0, 0, flags]);
        assert_eq!(parts.iter().map(|part| part.len).sum::<u32>(), 9000);
    }
}

#[test]
fn nobody_speaks_in_anothers_name_or_to_strangers() {
    let (mut a, mut b) = pair();
    for src_cid in [0, 1, 2, 4, 5, 3 | 1 << 32, u64::MAX] {
        a.sends(Header { src_cid, ..from_3(op::RW) }, b"forged");
        a.sends(Header { src_cid, dst_cid: 2, ..from_3(op::RW) }, b"forged");
    }
    for dst_cid in [0, 1, 3, 5, 4 | 1 << 32, u32::MAX.into(), u64::MAX] {
        a.sends(Header { dst_cid, ..from_3(op::REQUEST) }, &[]);
        let (answer, _) = a.got(Duration::from_secs(20)).unwrap();
        assert_eq!((answer.op, answer.src_cid, answer.src_port, answer.dst_port), (op::RST, dst_cid, 2, 1));
    }
    b.receives_nothing();
    assert!(a.programs.with(|state| state.from.is_empty()));
}

#[test]
fn what_is_no_packet_goes_nowhere() {
    let (mut a, mut b) = pair();
    let header = Header { len: 1 << 20, ..from_3(op::RW) };
    a.memory.write_slice(&header.to_bytes(), GuestAddress(BUFFERS[1])).unwrap();
    for len in [0, 1, 43, 44, 70_000, u32::MAX] {
        a.give(1, 0, len);
        assert!(a.take(1, Duration::from_secs(20)).is_some());
    }
    b.receives_nothing();
    a.sends(from_3(op::RW), b"still there");
    assert_eq!(b.receives().1, b"still there");
}

#[test]
fn who_sends_past_its_credit_is_cut_off() {
    let (mut a, mut b) = pair();
    a.sends(from_3(op::RW), &[1; 60_000]);
    let mut came = 0;
    while came < 60_000 {
        came += b.receives().1.len();
    }
    a.sends(from_3(op::RW), &[1; 40_001]);
    assert_eq!((a.receives().0, b.receives().0), (op::RST, op::RST));
    b.receives_nothing();
}

#[test]
fn a_life_that_ends_ends_connections() {
    let (mut a, mut b) = pair();
    b.device.reset();
    assert_eq!(a.receives().0, op::RST);
    a.sends(from_3(op::REQUEST), &[]);
    assert_eq!(a.receives().0, op::RST);
    b.start();
    // It is there again, and knows nothing.
    while {
        a.sends(from_3(op::REQUEST), &[]);
        a.got(Duration::from_millis(20)).is_some_and(|(header, _)| header.op == op::RST)
    } {}
    assert_eq!(b.receives().0, op::REQUEST);
    drop(b);
    assert_eq!(a.receives().0, op::RST);
    a.sends(Header { dst_cid: 2, ..from_3(op::REQUEST) }, &[]);
    assert_eq!(a.programs.with(|state| state.from.len()), 1, "the host stays");
}

#[test]
fn the_host_has_its_own_way() {
    let (mut a, _b) = pair();
    a.sends(Header { dst_cid: 2, ..from_3(op::RW) }, b"hello");
    let from = a.programs.with(|state| std::mem::take(&mut state.from));
    assert_eq!((from.len(), &from[0][HEADER_SIZE..]), (1, &b"hello"[..]));
    let answer = Header { src_cid: 2, dst_cid: 3, len: 5, ..from_3(op::RW) };
    let wrong = [vec![], vec![0; 43], [&answer.to_bytes()[..], b"four"].concat(), vec![0xFF; PACKET_MAX + 1]];
    a.programs.with(|state| {
        state.to.extend(wrong);
        state.to.push_back([&answer.to_bytes()[..], b"world"].concat());
    });
    assert_eq!(a.receives(), (op::RW, b"world".to_vec()));
    // It has no room for a while.
    a.programs.with(|state| state.full = true);
    let header = Header { dst_cid: 2, ..from_3(op::RW) };
    assert!(!a.offers(header, b"later", Duration::from_millis(50)));
    a.programs.with(|state| state.full = false);
    assert!(a.take(1, Duration::from_secs(20)).is_some());
    assert_eq!(a.programs.with(|state| state.from.len()), 1);
}

#[test]
fn a_peer_that_takes_nothing_holds_nobody_up_for_long() {
    let (one, other) = sockets();
    let mut a = Guest::new(3, Exchange::joined(3, 4, one));
    let said = |message: &[u8]| send(&other, message, SendFlags::NOSIGNAL).unwrap();
    said(&[1]);
    let answer = Header { buf_alloc: u32::MAX, ..from_4(op::RESPONSE) };
    // Refused until what was said is heard, then passed on.
    let end = Instant::now() + Duration::from_secs(20);
    let passed_on = |a: &mut Guest| {
        let mut buffer = [0; HEADER_SIZE];
        loop {
            assert!(Instant::now() < end);
            match recv(&other, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((HEADER_SIZE, _)) => return true,
                _ if a.got(Duration::from_millis(1)).is_some() => return false,
                _ => {}
            }
        }
    };
    while {
        a.sends(from_3(op::REQUEST), &[]);
        !passed_on(&mut a)
    } {}
    said(&answer.to_bytes());
    assert_eq!(a.receives().0, op::RESPONSE);
    // Until the socket is full, and what gz keeps; then it waits (here for 2 s), and then its connection ends.
    let mut count = 0;
    while a.offers(from_3(op::RW), &[1; 60_000], Duration::from_millis(500)) {
        count += 1;
        assert!(count < 200, "kept without end");
    }
    assert_eq!(a.receives().0, op::RST);
    assert!(a.take(1, Duration::from_secs(20)).is_some());
    assert_eq!(a.receives().0, op::RST, "for what had waited");
    a.sends(from_3(op::REQUEST), &[]);
    assert_eq!(a.receives().0, op::RST);
    a.sends(Header { dst_cid: 2, ..from_3(op::REQUEST) }, &[]);
    // It reads again: what was on its way, then that all has ended.
    let mut buffer = vec![0; PACKET_MAX + 1];
    let mut last = Vec::new();
    let end = Instant::now() + Duration::from_secs(20);
    while last != [[0], [1]] {
        assert!(Instant::now() < end);
        match recv(&other, &mut buffer, RecvFlags::DONTWAIT) {
            Ok((1, _)) => last.push([buffer[0]]),
            Ok(_) => last.clear(),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    a.sends(from_3(op::REQUEST), &[]);
    a.receives_nothing();
}

#[test]
fn a_guest_that_takes_nothing_is_waited_for() {
    let (mut a, mut b) = pair();
    // All its buffers are full.
    for n in 0..20_u8 {
        a.sends(from_3(op::RW), &[n]);
    }
    thread::sleep(Duration::from_millis(100));
    for n in 0..20 {
        assert_eq!(b.receives(), (op::RW, vec![n]));
    }
}

#[test]
fn another_gz_is_not_trusted() {
    let right = from_4(op::REQUEST);
    let wrong = [
        Header { src_cid: 5, ..right }.to_bytes().to_vec(),
        Header { src_cid: 3, ..right }.to_bytes().to_vec(),
        Header { dst_cid: 2, ..right }.to_bytes().to_vec(),
        Header { len: 1, ..right }.to_bytes().to_vec(),
        vec![0xFF; 7],
        vec![0; PACKET_MAX + 1],
    ];
    for message in wrong {
        let (one, other) = sockets();
        let mut a = Guest::new(3, Exchange::joined(3, 4, one));
        for message in [&[1][..], &right.to_bytes(), &message] {
            send(&other, message, SendFlags::NOSIGNAL).unwrap();
        }
        assert_eq!((a.receives().0, a.receives().0), (op::REQUEST, op::RST));
        let mut said = [0; 8];
        assert_eq!(recv(&other, &mut said, RecvFlags::DONTWAIT).unwrap(), (1, 1), "it was up");
        assert_eq!(recv(&other, &mut said, RecvFlags::DONTWAIT).unwrap(), (0, 0), "and has left");
    }
    // Data without a connection, and more than was granted.
    let (one, other) = sockets();
    let mut a = Guest::new(3, Exchange::joined(3, 4, one));
    let rw = Header { len: 1, ..from_4(op::RW) };
    send(&other, &[&rw.to_bytes()[..], b"x"].concat(), SendFlags::NOSIGNAL).unwrap();
    send(&other, &right.to_bytes(), SendFlags::NOSIGNAL).unwrap();
    send(&other, &[&rw.to_bytes()[..], b"x"].concat(), SendFlags::NOSIGNAL).unwrap();
    assert_eq!((a.receives().0, a.receives().0), (op::REQUEST, op::RST));
    a.receives_nothing();
}
