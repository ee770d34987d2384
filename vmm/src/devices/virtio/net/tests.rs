// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device with one pair of queues, and with two.

use super::*;
use crate::devices::virtio::tests::{WRITE, descriptors, memory};
use backend::passt::Passt;
use request::HEADER_SIZE;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{Bytes, GuestAddress};

/// A device with so many pairs of queues, and the other ends of its cables.
fn net(pairs: usize) -> (Net, Vec<UnixStream>) {
    let (mut cables, mut peers) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let (ours, theirs) = UnixStream::pair().unwrap();
        cables.push(Arc::new(Mutex::new(Passt::new(ours, None).unwrap())) as Cable);
        theirs.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        peers.push(theirs);
    }
    (Net::new(cables, "02:00:00:00:00:01".parse().unwrap()), peers)
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A driver with queues of 16 buffers.
struct Driver<'m> {
    net: Net,
    memory: &'m GuestMemoryMmap,
    rings: Vec<MockSplitQueue<'m, GuestMemoryMmap>>,
    interrupt: Arc<Interrupt>,
    notify: Vec<Arc<EventFd>>,
    /// Descriptors that are in use, by queue.
    next: Vec<u16>,
}

impl<'m> Driver<'m> {
    fn new(net: Net, memory: &'m GuestMemoryMmap) -> Self {
        let count = net.queue_sizes().len();
        Self {
            net,
            memory,
            rings: (0..count as u64)
                .map(|queue| MockSplitQueue::create(memory, GuestAddress(0x1000 * queue), 16))
                .collect(),
            interrupt: Arc::new(Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())),
            notify: (0..count).map(|_| Arc::new(EventFd::new(0).unwrap())).collect(),
            next: vec![0; count],
        }
    }

    fn start(&mut self, features: u64) {
        let queues = (0..).zip(self.rings.iter().zip(&self.notify)).map(|(index, (ring, notify))| {
            ReadyQueue { index, queue: ring.create_queue().unwrap(), notify: notify.clone() }
        });
        let activation = Activation {
            memory: self.memory.clone(),
            features,
            interrupt: self.interrupt.clone(),
            queues: queues.collect(),
        };
        self.net.activate(activation).unwrap();
    }

    /// Makes a chain available, and tells the device.
    fn offer(&mut self, queue: usize, parts: &[(u64, u32, u16)]) {
        let first = self.next[queue];
        self.next[queue] += parts.len() as u16;
        let chain: Vec<RawDescriptor> = descriptors(first, parts);
        self.rings[queue].add_desc_chains(&chain, first).unwrap();
        self.notify[queue].write(1).unwrap();
    }

    fn used(&self, queue: usize) -> u16 {
        self.rings[queue].used().idx().load()
    }

    /// What the device answers to a number of pairs.
    fn set_pairs(&mut self, pairs: u16) -> u8 {
        let queue = self.rings.len() - 1;
        self.next[queue] = 0;
        let command = [&[4, 0][..], &pairs.to_le_bytes()].concat();
        self.memory.write_slice(&command, GuestAddress(0xF000)).unwrap();
        let before = self.used(queue);
        self.offer(queue, &[(0xF000, 2, 0), (0xF002, 2, 0), (0xF010, 1, WRITE)]);
        until("answer", || self.used(queue) == before + 1);
        self.memory.read_obj(GuestAddress(0xF010)).unwrap()
    }
}

#[test]
fn features_and_configuration() {
    let (net, _peers) = net(1);
    let mut config = [9; 9];
    net.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 9]);
    assert_eq!(net.queue_sizes(), [256; 2]);
    assert_eq!(net.features() >> VIRTIO_NET_F_CSUM & 1, 0, "passt has no offloads");
    assert_eq!(net.features() >> VIRTIO_NET_F_MAC & 1, 1);
    assert_eq!(net.features() & (1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ), 0);
}

#[test]
fn frames_go_both_ways_until_the_other_end_is_gone() {
    let memory = memory();
    let (net, mut peers) = net(1);
    let mut driver = Driver::new(net, &memory);
    let mut peer = peers.pop().unwrap();
    driver.memory.write_slice(&[0x11; 72], GuestAddress(0xA000)).unwrap();
    driver.offer(0, &[(0x8000, 1600, WRITE)]);
    driver.offer(1, &[(0xA000, 72, 0)]);
    // This is no frame.
    driver.offer(1, &[(0xA000, 13, 0)]);
    driver.start(driver.net.features());
    let mut got = [0; 64];
    peer.read_exact(&mut got).unwrap();
    assert_eq!((got[..4].to_vec(), got[4..].to_vec()), (vec![0, 0, 0, 60], vec![0x11; 60]));
    peer.write_all(&frame(0x22)).unwrap();
    until("frames used", || driver.used(0) == 1 && driver.used(1) == 2);
    assert_eq!(received(&driver, 0x8000), 0x22);
    assert_eq!(driver.interrupt.status() & 1, 1);
    drop(peer);
    until("configuration change", || driver.interrupt.status() & 2 != 0);
    let mut status = [9; 2];
    driver.net.read_config(6, &mut status);
    assert_eq!(status, [0; 2], "the link is down");
    driver.net.reset();
}

/// A frame of these bytes, as passt sends it.
fn frame(byte: u8) -> Vec<u8> {
    [&[0, 0, 0, 60][..], &[byte; 60]].concat()
}

/// The byte that a buffer's frame is made of.
fn received(driver: &Driver, buffer: u64) -> u8 {
    let mut frame = [0; 60];
    driver.memory.read_slice(&mut frame, GuestAddress(buffer + HEADER_SIZE as u64)).unwrap();
    assert!(frame.iter().all(|byte| *byte == frame[0]), "{frame:x?}");
    frame[0]
}

/// Nothing is at the other end of a cable.
fn silent(peer: &UnixStream) -> bool {
    std::thread::sleep(Duration::from_millis(50));
    peer.set_nonblocking(true).unwrap();
    let silent = (&*peer).read(&mut [0; 64]).is_err();
    peer.set_nonblocking(false).unwrap();
    silent
}

#[test]
fn a_second_pair_is_served_while_it_is_in_use() {
    let memory = memory();
    let (net, mut peers) = net(2);
    let mut driver = Driver::new(net, &memory);
    driver.memory.write_slice(&[0x11; 72], GuestAddress(0xA000)).unwrap();
    driver.start(driver.net.features());
    // Notified before it is in use.
    driver.offer(2, &[(0x8000, 100, WRITE)]);
    driver.offer(3, &[(0xA000, 72, 0)]);
    peers[1].write_all(&frame(0x22)).unwrap();
    assert!(silent(&peers[1]) && driver.used(2) == 0 && driver.used(3) == 0);
    for wrong in [0, 3, 0x200, u16::MAX] {
        assert_eq!(driver.set_pairs(wrong), 1, "{wrong}");
    }
    assert!(silent(&peers[1]) && driver.used(2) == 0 && driver.used(3) == 0);

    assert_eq!(driver.set_pairs(2), 0);
    let mut got = [0; 64];
    peers[1].read_exact(&mut got).unwrap();
    assert_eq!(got[4..], [0x11; 60]);
    until("frames used", || driver.used(2) == 1 && driver.used(3) == 1);
    assert_eq!(received(&driver, 0x8000), 0x22);
    // A frame without a buffer waits, and is gone with the pair.
    let flags = driver.rings[2].used_addr();
    let wants_buffers = |wants: bool| memory.read_obj::<u16>(flags).unwrap() == u16::from(!wants);
    until("end of the turn", || wants_buffers(false));
    peers[1].write_all(&frame(0x33)).unwrap();
    until("waiting frame", || wants_buffers(true));
    assert_eq!(driver.set_pairs(1), 0);
    driver.offer(2, &[(0x8000, 100, WRITE)]);
    driver.offer(3, &[(0xA000, 72, 0)]);
    assert!(silent(&peers[1]) && driver.used(2) == 1 && driver.used(3) == 1);

    // The first one goes on.
    driver.offer(0, &[(0x9000, 100, WRITE)]);
    peers[0].write_all(&frame(0x44)).unwrap();
    until("frame used", || driver.used(0) == 1);
    assert_eq!(received(&driver, 0x9000), 0x44);

    assert_eq!(driver.set_pairs(2), 0);
    peers[1].write_all(&frame(0x55)).unwrap();
    until("frames used", || driver.used(2) == 2 && driver.used(3) == 2);
    assert_eq!(received(&driver, 0x8000), 0x55);
    driver.net.reset();
    assert_eq!(driver.net.used.load(Ordering::Relaxed), 1);
}

#[test]
fn a_driver_of_one_pair_finds_its_control_queue_third() {
    let memory = memory();
    let (net, _peers) = net(2);
    let mut driver = Driver::new(net, &memory);
    driver.rings.truncate(3);
    driver.start(driver.net.features() & !(1 << VIRTIO_NET_F_MQ));
    // It has said that it knows of no others.
    for number in [1, 2] {
        assert_eq!(driver.set_pairs(number), 1, "{number}");
    }
}
