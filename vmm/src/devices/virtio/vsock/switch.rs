// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device of a guest that has peers: a switch between its driver, the host's kernel and the gz of the other guests, packet by packet.
//!
//! ```text
//!             ┌─ to CID 2 ──► rings of ours ──► vhost_vsock ──► programs of the host
//!  driver ──► switch
//!             └─ to a peer ─► its gz ──► its driver             to anybody else: refused
//! ```
//! Whoever has no room keeps the driver's queue waiting: packets of a connection stay in order. For a peer that is so for
//! a limited time only.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::PollFd;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::{Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::backend::peers::{Exchange, Sent};
use super::backend::{Host, Uplink};
use super::request::{self, Inbound, op};
use super::{CID_HOST, QUEUES, RECEIVE, TRANSMIT, VIRTIO_VSOCK_F_SEQPACKET};
use crate::devices::virtio::worker::{Serve, Worker};
use crate::devices::virtio::{Activation, Interrupt, RING_FEATURES, VirtioDevice, both_ways, read_bytes};
use crate::events;

/// Packets in one direction before the other gets its turn.
const TURN: usize = 64;
/// Ends of connections that the driver has not taken, before it has to before it sends more.
const ENDED_MAX: usize = 256;

/// The peers, which one life of the guest after the other uses.
#[derive(Clone)]
pub struct Slot(Arc<Mutex<Option<Exchange>>>);

impl Slot {
    /// Holds `exchange` while nobody uses it.
    pub fn new(exchange: Exchange) -> Self {
        Self(Arc::new(Mutex::new(Some(exchange))))
    }

    fn put(&self, exchange: Option<Exchange>) -> Option<Exchange> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), exchange)
    }
}

/// A socket device with peers.
pub struct Switched {
    cid: u64,
    uplink: Box<dyn Uplink>,
    peers: Slot,
    worker: Option<Worker>,
}

impl Switched {
    /// A device without a driver: of guest `cid`, with `uplink` as the way to the host.
    pub fn new(cid: u64, uplink: Box<dyn Uplink>, peers: Slot) -> Self {
        Self { cid, uplink, peers, worker: None }
    }
}

impl VirtioDevice for Switched {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        RING_FEATURES | self.uplink.features(1 << VIRTIO_VSOCK_F_SEQPACKET)
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.reset();
        let Activation { memory, features, interrupt, queues } = activation;
        let host = self.uplink.start(features & 1 << VIRTIO_VSOCK_F_SEQPACKET)?;
        let mut exchange = self.peers.put(None).ok_or_else(|| io::Error::other("two drivers"))?;
        exchange.begin(features >> VIRTIO_VSOCK_F_SEQPACKET & 1 != 0);
        let (receive, transmit, notifications) = both_ways(queues, RECEIVE, TRANSMIT);
        let server = Server {
            cid: self.cid,
            memory,
            interrupt: interrupt.clone(),
            receive,
            transmit,
            host: Some(host),
            exchange: Some(exchange),
            slot: self.peers.clone(),
            ending: Inbound::default(),
            inbound: Inbound::default(),
            outbound: Vec::new(),
        };
        self.worker = Some(Worker::start("vsock", notifications, interrupt, server)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
        self.uplink.stop();
    }
}

/// What the thread works on.
struct Server {
    cid: u64,
    memory: GuestMemoryMmap,
    interrupt: Arc<Interrupt>,
    receive: Option<Queue>,
    transmit: Option<Queue>,
    /// None: gone.
    host: Option<Box<dyn Host>>,
    /// There until this is dropped.
    exchange: Option<Exchange>,
    slot: Slot,
    /// For the driver: that a connection has ended; a packet of the host's.
    ending: Inbound,
    inbound: Inbound,
    /// A packet of the driver's.
    outbound: Vec<u8>,
}

impl Server {
    /// Packets for the driver. True: there may be more.
    fn receive(&mut self) -> Result<bool, Error> {
        let Self { memory, interrupt, receive: Some(queue), exchange: Some(exchange), .. } = self else {
            return Ok(false);
        };
        let mut delivered = false;
        let mut turn = 0;
        let more = 'turn: loop {
            if turn == TURN {
                break true;
            }
            turn += 1;
            let mut any = false;
            if let Some(packet) = self.ending.buffer()
                && let Some(header) = exchange.ended.pop_front()
            {
                packet.clear();
                packet.extend(header.to_bytes());
                self.ending.fill();
            }
            if let (Some(packet), Some(host)) = (self.inbound.buffer(), &mut self.host) {
                match host.receive(packet) {
                    Ok(true) if request::check(packet).is_some() => self.inbound.fill(),
                    Ok(true) => {
                        tracing::debug!("virtio-vsock: the host sent what is no packet");
                        any = true;
                    }
                    Ok(false) => {}
                    Err(error) => gone(&mut self.host, &error),
                }
            }
            let others =
                [&mut self.ending, &mut self.inbound].into_iter().filter(|inbound| inbound.is_full());
            for inbound in others.chain(exchange.receive()) {
                any = true;
                let used = queue.next_used();
                let done = request::deliver(queue, memory, inbound)?;
                delivered |= used != queue.next_used();
                if !done {
                    break 'turn false;
                }
            }
            if !any && exchange.ended.is_empty() {
                queue.disable_notification(memory)?;
                break false;
            }
        };
        if delivered && queue.needs_notification(memory)? {
            interrupt.used_buffer();
        }
        Ok(more)
    }

    /// Packets of the driver's. True: there may be more.
    fn transmit(&mut self) -> Result<bool, Error> {
        let Self { memory, transmit: Some(queue), exchange: Some(exchange), .. } = self else {
            return Ok(false);
        };
        let mut used = false;
        let mut blocked = false;
        queue.disable_notification(memory)?;
        for _ in 0..TURN {
            if exchange.ended.len() >= ENDED_MAX {
                blocked = true;
                break;
            }
            let start = queue.next_avail();
            let Some(chain) = queue.iter(&*memory)?.next() else { break };
            let head = chain.head_index();
            if let Some(header) = request::take(memory, chain, &mut self.outbound) {
                let sent = if header.src_cid != self.cid {
                    tracing::debug!("virtio-vsock: the driver sends in another's name: {header:?}");
                    Sent::Done
                } else if header.dst_cid == CID_HOST {
                    to_host(&mut self.host, &self.outbound)
                } else {
                    exchange.send(&header, &self.outbound)
                };
                match sent {
                    Sent::NoRoom => {
                        queue.set_next_avail(start);
                        blocked = true;
                        break;
                    }
                    Sent::Refused if header.op != op::RST => exchange.ended.push_back(header.refusal()),
                    Sent::Refused | Sent::Done => {}
                }
            } else {
                tracing::debug!("virtio-vsock: the driver sent what is no packet");
            }
            queue.add_used(memory, head, 0)?;
            used = true;
        }
        if used && queue.needs_notification(memory)? {
            self.interrupt.used_buffer();
        }
        // While there is no room, whoever has none says when to go on.
        Ok(used && !exchange.ended.is_empty() || !blocked && queue.enable_notification(memory)?)
    }
}

fn to_host(host: &mut Option<Box<dyn Host>>, packet: &[u8]) -> Sent {
    match host.as_mut().map(|host| host.send(packet)) {
        Some(Ok(true)) => Sent::Done,
        Some(Ok(false)) => Sent::NoRoom,
        Some(Err(error)) => {
            gone(host, &error);
            Sent::Refused
        }
        None => Sent::Refused,
    }
}

/// The host's end is: the guest's other peers stay.
fn gone(host: &mut Option<Box<dyn Host>>, error: &io::Error) {
    tracing::warn!("virtio-vsock: the host's end is gone: {error}");
    *host = None;
}

impl Serve for Server {
    fn serve(&mut self) -> Result<(), Error> {
        if let Some(host) = &mut self.host {
            host.wake();
        }
        loop {
            if let Some(exchange) = &mut self.exchange {
                exchange.tend();
            }
            let more = self.receive()?;
            if !self.transmit()? && !more {
                return Ok(());
            }
        }
    }

    fn sources(&self) -> Vec<PollFd<'_>> {
        let mut sources = self.exchange.as_ref().map_or_else(Vec::new, Exchange::sources);
        sources.extend(self.host.iter().flat_map(|host| host.sources()).map(events::readable));
        sources
    }

    fn timeout(&self) -> Option<Duration> {
        self.exchange.as_ref()?.timeout()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(exchange) = &mut self.exchange {
            exchange.end();
        }
        self.slot.put(self.exchange.take());
    }
}
