// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-net (virtio 1.2, section 5.1): a cable from the guest to a tap interface of the host, or to passt.
//!
//! - [`options`]: what the command line says of it.
//! - [`backend`]: the other end of the cable.
//! - [`interface`]: what the driver sees of the device.
//! - [`control`]: how many pairs of queues are in use.
//! - [`request`]: frames in and out of the guest's buffers.
//! - [`kernel`]: the same by the host kernel's vhost_net, without a thread of ours for frames.
//! - here: the device, and the threads that serve its queues, one for each pair.
//!
//! Each pair has a cable of its own, to the same interface of the host, whose end filters addresses and spreads flows. By default there is one
//! pair, and no control queue.

pub mod backend;
pub mod control;
pub mod interface;
pub mod kernel;
pub mod options;
pub mod request;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::worker::{Serve, Worker};
use super::{Activation, Interrupt, RING_FEATURES, ReadyQueue, VirtioDevice, both_ways};
use crate::sandbox::Role;
use backend::{BUFFER_SIZE, Backend};
use control::{Control, Pairs};
use interface::Interface;
use options::Mac;
use request::Delivery;

/// Frames in one direction before the other gets its turn.
const TURN: usize = 64;

/// Features that a tap interface has.
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
    interface: Interface,
    /// One for each pair of queues.
    cables: Vec<Cable>,
    link: Arc<AtomicBool>,
    /// Pairs of queues in use. Changed by the thread of the control queue; each pair's looks while it holds the cable.
    used: Arc<AtomicU16>,
    control: Option<Worker>,
    workers: Vec<Worker>,
}

impl Net {
    /// A device without a driver. Of the cables the first one is attached.
    pub fn new(cables: Vec<Cable>, mac: Mac) -> Self {
        Self {
            interface: Interface::new(mac, cables.len()),
            cables,
            link: Arc::new(AtomicBool::new(true)),
            used: Arc::new(AtomicU16::new(1)),
            control: None,
            workers: Vec::new(),
        }
    }

    /// Takes pairs into use, and out of it; `wake` has the threads look at theirs.
    fn switch(&self, wake: Vec<Option<Arc<EventFd>>>) -> impl FnMut(u16, bool) -> io::Result<()> + use<> {
        let (used, cables) = (self.used.clone(), self.cables.clone());
        move |pair, on| {
            let Some(cable) = cables.get(usize::from(pair)) else {
                return Err(io::ErrorKind::NotFound.into());
            };
            if !on {
                used.store(pair, Ordering::Relaxed);
                // Whoever has the cable now lets go of it after one turn.
                return lock(cable).attach(false);
            }
            lock(cable).attach(true)?;
            used.store(pair + 1, Ordering::Relaxed);
            // It may have buffers already.
            if let Some(Some(notify)) = wake.get(usize::from(pair))
                && let Err(error) = notify.write(1)
            {
                tracing::warn!("virtio-net: queue pair {pair} sleeps: {error}");
            }
            Ok(())
        }
    }
}

fn lock(cable: &Cable) -> MutexGuard<'_, dyn Backend + 'static> {
    cable.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VirtioDevice for Net {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let offloads = self.cables.first().is_some_and(|cable| lock(cable).offloads());
        RING_FEATURES
            | self.interface.features()
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | if offloads { OFFLOADS } else { 0 }
    }

    fn queue_sizes(&self) -> &[u16] {
        self.interface.queue_sizes()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.interface.read_config(self.link.load(Ordering::Relaxed), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, features, interrupt, queues } = activation;
        let (pairs, control) = self.interface.sort(queues, features);
        let count = pairs.len();
        let mut wake = Vec::with_capacity(count);
        for (pair, (cable, queues)) in (0..).zip(self.cables.iter().zip(pairs)) {
            let file = {
                let mut backend = lock(cable);
                backend.set_offloads(features)?;
                backend.file().try_clone_to_owned()?
            };
            let (receive, transmit, notifications) = both_ways(queues, 2 * pair, 2 * pair + 1);
            wake.push(notifications.first().cloned());
            let server = Server {
                pair,
                used: self.used.clone(),
                cable: cable.clone(),
                file,
                memory: memory.clone(),
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
            self.workers.push(Worker::start("net", notifications, interrupt.clone(), server)?);
        }
        if let Some(ReadyQueue { queue, notify, .. }) = control {
            let pairs = Pairs::new(count, features, self.switch(wake));
            let server = Control { memory, queue, interrupt: interrupt.clone(), pairs, role: Role::Device };
            self.control = Some(Worker::start("net-control", vec![notify], interrupt, server)?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.control = None;
        self.workers.clear();
        self.used.store(1, Ordering::Relaxed);
        for cable in self.cables.iter().skip(1) {
            if let Err(error) = lock(cable).attach(false) {
                tracing::warn!("virtio-net: {error}");
            }
        }
    }
}

/// What the thread of a pair of queues works on.
struct Server {
    pair: u16,
    /// Pairs in use.
    used: Arc<AtomicU16>,
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
    fn in_use(&self) -> bool {
        self.pair < self.used.load(Ordering::Relaxed)
    }

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
            if !self.in_use() {
                self.waiting = None;
                self.blocked = false;
                return Ok(());
            }
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
        if flags.is_empty() || !self.in_use() || !self.link.load(Ordering::Relaxed) {
            return Vec::new();
        }
        vec![PollFd::from_borrowed_fd(self.file.as_fd(), flags)]
    }
}

#[cfg(test)]
mod tests;
