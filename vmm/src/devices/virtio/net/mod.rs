// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-net (virtio 1.2, section 5.1): a cable from the guest to a tap interface of the host, or to passt.
//!
//! - [`options`]: what the command line says of it.
//! - [`backend`]: the other end of the cable.
//! - [`request`]: frames in and out of the guest's buffers.
//! - [`kernel`]: the same by the host kernel's vhost_net, without a thread of ours.
//! - here: the device, and the thread that serves both queues.
//!
//! There is no control queue, and one pair of queues: the host's end filters addresses and spreads flows.

pub mod backend;
pub mod kernel;
pub mod options;
pub mod request;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::worker::{Serve, Worker};
use super::{Activation, Interrupt, RING_FEATURES, VirtioDevice, both_ways, read_bytes};
use backend::{BUFFER_SIZE, Backend};
use options::Mac;
use request::Delivery;

const QUEUE_SIZE: u16 = 256;
/// Queues, by number.
const QUEUES: [u16; 2] = [QUEUE_SIZE; 2];
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Frames in one direction before the other gets its turn.
const TURN: usize = 64;

/// Features that need nothing of a back end.
const OURS: u64 = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS;
/// Those that a tap interface has.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6;

/// The other end of a cable, which stays when the guest starts again.
pub type Cable = Arc<Mutex<dyn Backend>>;

/// A network interface as a virtio device.
pub struct Net {
    cable: Cable,
    mac: Mac,
    link: Arc<AtomicBool>,
    worker: Option<Worker>,
}

impl Net {
    /// A device without a driver.
    pub fn new(cable: Cable, mac: Mac) -> Self {
        Self { cable, mac, link: Arc::new(AtomicBool::new(true)), worker: None }
    }
}

fn lock(cable: &Cable) -> MutexGuard<'_, dyn Backend + 'static> {
    cable.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the configuration has: mac, status.
fn config(mac: Mac, link: bool) -> [u8; 8] {
    let mut config = [0; 8];
    let (address, status) = config.split_at_mut(6);
    address.copy_from_slice(&mac.bytes());
    let link = if link { VIRTIO_NET_S_LINK_UP as u16 } else { 0 };
    status.copy_from_slice(&link.to_le_bytes());
    config
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        RING_FEATURES
            | OURS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | if lock(&self.cable).offloads() { OFFLOADS } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&config(self.mac, self.link.load(Ordering::Relaxed)), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, features, interrupt, queues } = activation;
        let file = {
            let mut backend = lock(&self.cable);
            backend.set_offloads(features)?;
            backend.file().try_clone_to_owned()?
        };
        let (receive, transmit, notifications) = both_ways(queues, RECEIVE, TRANSMIT);
        let server = Server {
            cable: self.cable.clone(),
            file,
            memory,
            interrupt: interrupt.clone(),
            link: self.link.clone(),
            receive,
            transmit,
            merge: features >> VIRTIO_NET_F_MRG_RXBUF & 1 != 0,
            inbound: vec![0; BUFFER_SIZE],
            waiting: None,
            outbound: vec![0; BUFFER_SIZE],
            blocked: false,
        };
        self.worker = Some(Worker::start("net", notifications, interrupt, server)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// What the thread works on.
struct Server {
    cable: Cable,
    /// To wait for.
    file: OwnedFd,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    /// The cable has another end.
    link: Arc<AtomicBool>,
    receive: Option<Queue>,
    transmit: Option<Queue>,
    merge: bool,
    /// A frame for the driver; so many bytes of it wait for a buffer.
    inbound: Vec<u8>,
    waiting: Option<usize>,
    /// A frame of the driver's.
    outbound: Vec<u8>,
    /// The other end has no room.
    blocked: bool,
}

impl Server {
    /// Frames for the driver. True: there may be more.
    fn receive(&mut self, backend: &mut dyn Backend) -> Result<bool, Error> {
        let Self { memory, interrupt, receive: Some(queue), inbound, waiting, merge, link, .. } = self else {
            return Ok(false);
        };
        let mut delivered = false;
        let mut turn = 0;
        let more = loop {
            if turn == TURN {
                break true;
            }
            turn += 1;
            if waiting.is_none() {
                *waiting = gone(backend.receive(inbound), link, interrupt).flatten();
            }
            let Some(frame) = waiting.and_then(|len| inbound.get_mut(..len)) else { break false };
            match request::deliver(queue, memory, frame, *merge)? {
                Delivery::Done => delivered = true,
                Delivery::TooLarge => tracing::debug!("virtio-net: no buffer for a frame"),
                Delivery::NoBuffers => break false,
            }
            *waiting = None;
        };
        if waiting.is_none() {
            queue.disable_notification(memory)?;
        }
        // Whether the driver wants to know is no question of a single buffer, where a frame took several.
        if delivered && (queue.needs_notification(memory)? || *merge) {
            interrupt.used_buffer();
        }
        Ok(more)
    }

    /// Frames of the driver's. True: there may be more.
    fn transmit(&mut self, backend: &mut dyn Backend) -> Result<bool, Error> {
        let Self { memory, interrupt, transmit: Some(queue), outbound, blocked, link, .. } = self else {
            return Ok(false);
        };
        *blocked = gone(backend.flush(), link, interrupt) == Some(false);
        if *blocked {
            return Ok(false);
        }
        let mut sent = false;
        queue.disable_notification(memory)?;
        for _ in 0..TURN {
            let start = queue.next_avail();
            let Some(chain) = queue.iter(&*memory)?.next() else { break };
            let head = chain.head_index();
            match request::frame(memory, chain, outbound) {
                Some(frame) if gone(backend.send(frame), link, interrupt) == Some(false) => {
                    queue.set_next_avail(start);
                    *blocked = true;
                    break;
                }
                Some(_) => {}
                None => tracing::debug!("virtio-net: the driver sent what is no frame"),
            }
            queue.add_used(memory, head, 0)?;
            sent = true;
        }
        if sent && queue.needs_notification(memory)? {
            interrupt.used_buffer();
        }
        // What is left of the last frame goes when there is room, not with the next one.
        *blocked |= gone(backend.flush(), link, interrupt) == Some(false);
        // While there is no room, the other end says when to go on.
        Ok(!*blocked && queue.enable_notification(memory)?)
    }
}

/// What the back end answered; none where it is gone, which the driver learns from the link.
fn gone<T>(result: io::Result<T>, link: &AtomicBool, interrupt: &Interrupt) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            if link.swap(false, Ordering::Relaxed) {
                tracing::warn!("virtio-net: the network is gone: {error}");
                interrupt.config_change();
            }
            None
        }
    }
}

impl Serve for Server {
    fn serve(&mut self) -> Result<(), Error> {
        let cable = self.cable.clone();
        let mut backend = lock(&cable);
        loop {
            let more = self.receive(&mut *backend)?;
            if !self.transmit(&mut *backend)? && !more {
                return Ok(());
            }
        }
    }

    fn sources(&self) -> Vec<PollFd<'_>> {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.waiting.is_none() && self.receive.is_some());
        flags.set(PollFlags::OUT, self.blocked);
        if flags.is_empty() || !self.link.load(Ordering::Relaxed) {
            return Vec::new();
        }
        vec![PollFd::from_borrowed_fd(self.file.as_fd(), flags)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::ReadyQueue;
    use crate::devices::virtio::tests::{WRITE, descriptors, memory};
    use backend::passt::Passt;
    use request::HEADER_SIZE;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;

    fn net() -> (Net, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let passt = Passt::new(ours, None).unwrap();
        (Net::new(Arc::new(Mutex::new(passt)), "02:00:00:00:00:01".parse().unwrap()), theirs)
    }

    fn until(what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < deadline, "no {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn features_and_configuration() {
        let (net, _peer) = net();
        let mut config = [9; 9];
        net.read_config(0, &mut config);
        assert_eq!(config, [2, 0, 0, 0, 0, 1, 1, 0, 9]);
        assert_eq!(net.features() >> VIRTIO_NET_F_CSUM & 1, 0, "passt has no offloads");
        assert_eq!(net.features() >> VIRTIO_NET_F_MAC & 1, 1);
    }

    #[test]
    fn frames_go_both_ways_until_the_other_end_is_gone() {
        let (mut net, mut peer) = net();
        let memory = memory();
        let rings = [
            MockSplitQueue::create(&memory, GuestAddress(0), 16),
            MockSplitQueue::create(&memory, GuestAddress(0x2000), 16),
        ];
        rings[0].add_desc_chains(&descriptors(0, &[(0x8000, 1600, WRITE)]), 0).unwrap();
        memory.write_slice(&[0x11; 72], GuestAddress(0xA000)).unwrap();
        // The second is no frame.
        let mut sent = descriptors(0, &[(0xA000, 72, 0)]);
        sent.extend(descriptors(1, &[(0xA000, 13, 0)]));
        rings[1].add_desc_chains(&sent, 0).unwrap();
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let interrupt = Arc::new(Interrupt::new(line.try_clone().unwrap()));
        let queues = (0..).zip(&rings).map(|(index, ring)| ReadyQueue {
            index,
            queue: ring.create_queue().unwrap(),
            notify: Arc::new(EventFd::new(0).unwrap()),
        });
        net.activate(Activation {
            memory: memory.clone(),
            features: net.features(),
            interrupt: interrupt.clone(),
            queues: queues.collect(),
        })
        .unwrap();
        let mut got = [0; 64];
        peer.read_exact(&mut got).unwrap();
        assert_eq!((got[..4].to_vec(), got[4..].to_vec()), (vec![0, 0, 0, 60], vec![0x11; 60]));
        peer.write_all(&[&[0, 0, 0, 60][..], &[0x22; 60]].concat()).unwrap();
        until("frames used", || rings[0].used().idx().load() == 1 && rings[1].used().idx().load() == 2);
        assert_eq!(
            memory.read_obj::<u64>(GuestAddress(0x8000 + HEADER_SIZE as u64)).unwrap(),
            0x2222_2222_2222_2222
        );
        assert_eq!(interrupt.status() & 1, 1);
        drop(peer);
        until("configuration change", || interrupt.status() & 2 != 0);
        let mut status = [9; 2];
        net.read_config(6, &mut status);
        assert_eq!(status, [0; 2], "the link is down");
        net.reset();
    }
}
