// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The host kernel's vhost_vsock, reached through rings of our own: a driver's side of two split queues (virtio 1.2, section 2.7) whose
//! buffers are ours as well. The kernel sees nothing of guest memory.
//!
//! Each ring has as many descriptors as buffers, which belong to one another for good: descriptor `n` is buffer `n`.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use anyhow::Context;
use vhost::vhost_kern::vsock::Vsock as Kernel;
use vhost::vsock::VhostVsock;
use vhost::{VhostBackend, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::super::request::{HEADER_SIZE, PACKET_MAX};
use super::{Host, Uplink};
use crate::devices::virtio::handover;
use crate::events;

/// Buffers for what the kernel sends. It stops to answer when it has as many answers that wait, so there are as many as drivers have.
const RECEIVED: u16 = 256;
/// Size of each: a packet that is longer comes in parts.
const RECEIVED_SIZE: u32 = HEADER_SIZE as u32 + (16 << 10);
/// Buffers for what it is sent, each for a whole packet.
const SENT: u16 = 32;
/// A buffer's place begins at a multiple of it.
const ALIGNED: u64 = 64;

/// The kernel's device, which is open as long as the guest lives: its programs see a guest that has gone when it is closed.
pub struct KernelUplink {
    kernel: Kernel<Arc<GuestMemoryMmap>>,
    memory: GuestMemoryMmap,
    running: bool,
}

impl KernelUplink {
    /// The device of the guest with the address `cid`.
    ///
    /// # Errors
    /// No such kernel module, no permission, or somebody has the address.
    pub fn open(cid: u64) -> anyhow::Result<Self> {
        let (_, size) = places();
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).context("--vsock: memory")?;
        Ok(Self { kernel: super::super::open(cid, &memory)?, memory, running: false })
    }

    fn connect(&mut self, features: u64) -> anyhow::Result<Rings> {
        self.kernel.set_features(features | 1 << VIRTIO_F_VERSION_1)?;
        self.kernel.set_mem_table(&handover::regions(&self.memory))?;
        let (places, _) = places();
        let [received, sent] = places.map(|place| Ring::new(&self.memory, place));
        let mut rings = Rings { received: received?, sent: sent?, free: (0..SENT).collect() };
        for (index, ring) in [&rings.received, &rings.sent].into_iter().enumerate() {
            let place = &ring.place;
            self.kernel.set_vring_num(index, place.count)?;
            self.kernel.set_vring_base(index, 0)?;
            let config = VringConfigData {
                queue_max_size: place.count,
                queue_size: place.count,
                flags: 0,
                desc_table_addr: place.descriptors,
                used_ring_addr: place.used,
                avail_ring_addr: place.available,
                log_addr: None,
            };
            self.kernel.set_vring_addr(index, &config)?;
            self.kernel.set_vring_call(index, &ring.call)?;
            self.kernel.set_vring_kick(index, &ring.kick)?;
        }
        for buffer in 0..RECEIVED {
            rings.received.give(buffer, RECEIVED_SIZE)?;
        }
        self.kernel.start()?;
        Ok(rings)
    }
}

impl Uplink for KernelUplink {
    fn features(&self, wanted: u64) -> u64 {
        self.kernel.get_features().map_or(0, |known| known & wanted)
    }

    fn start(&mut self, features: u64) -> io::Result<Box<dyn Host>> {
        self.stop();
        let rings = self.connect(features).map_err(io::Error::other)?;
        self.running = true;
        Ok(Box::new(rings))
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.running)
            && let Err(error) = self.kernel.stop()
        {
            tracing::warn!("virtio-vsock: {error}");
        }
    }
}

/// Where a ring is in our memory, and its buffers.
#[derive(Clone, Copy, Debug)]
struct Place {
    count: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    buffers: u64,
    /// From one buffer to the next.
    stride: u64,
    /// The kernel writes them.
    written: bool,
}

/// Both rings (what is received, what is sent), and the size of all.
fn places() -> ([Place; 2], u64) {
    let mut end = 0;
    let mut take = |size: u64| {
        let at = end;
        end = (at + size).next_multiple_of(ALIGNED);
        at
    };
    let mut place = |count: u16, size: u64, written| {
        let n = u64::from(count);
        let stride = size.next_multiple_of(ALIGNED);
        Place {
            count,
            descriptors: take(16 * n),
            available: take(6 + 2 * n),
            used: take(6 + 8 * n),
            buffers: take(stride * n),
            stride,
            written,
        }
    };
    let both = [place(RECEIVED, RECEIVED_SIZE.into(), true), place(SENT, PACKET_MAX as u64, false)];
    (both, end.next_multiple_of(4096))
}

/// A driver's side of a split queue.
struct Ring {
    memory: GuestMemoryMmap,
    place: Place,
    /// Buffers given so far, and taken back.
    given: u16,
    taken: u16,
    /// We have given some; the kernel has used some.
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    fn new(memory: &GuestMemoryMmap, place: Place) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let ring = Self { memory: memory.clone(), place, given: 0, taken: 0, kick: event()?, call: event()? };
        // Of an earlier life.
        let reset = || {
            for part in [place.available, place.used] {
                ring.memory.write_obj(0_u32, GuestAddress(part))?;
            }
            Ok::<_, GuestMemoryError>(())
        };
        reset().map_err(io::Error::other)?;
        Ok(ring)
    }

    fn buffer(&self, buffer: u16) -> GuestAddress {
        GuestAddress(self.place.buffers + u64::from(buffer) * self.place.stride)
    }

    /// Gives a buffer to the kernel, `len` bytes of it.
    fn give(&mut self, buffer: u16, len: u32) -> io::Result<()> {
        let place = self.place;
        let mut give = || -> Result<bool, GuestMemoryError> {
            let flags = if place.written { VRING_DESC_F_WRITE } else { 0 };
            let at = GuestAddress(place.descriptors + 16 * u64::from(buffer));
            let address = self.buffer(buffer).0.to_le();
            self.memory.write_obj([address, (u64::from(len) | u64::from(flags) << 32).to_le()], at)?;
            let slot = u64::from(self.given % place.count);
            self.memory.write_obj(buffer.to_le(), GuestAddress(place.available + 4 + 2 * slot))?;
            self.given = self.given.wrapping_add(1);
            let index = GuestAddress(place.available + 2);
            self.memory.store(self.given.to_le(), index, Ordering::Release)?;
            // The kernel looks for more after it has said that it wants to be told: one of us sees what the other wrote.
            fence(Ordering::SeqCst);
            let flags: u16 = self.memory.load(GuestAddress(place.used), Ordering::Relaxed)?;
            Ok(u32::from(u16::from_le(flags)) & VRING_USED_F_NO_NOTIFY == 0)
        };
        if give().map_err(io::Error::other)? {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// The next buffer that the kernel has used, and how much of it.
    fn take(&mut self) -> io::Result<Option<(u16, u32)>> {
        let mut take = || -> Result<Option<(u32, u32)>, GuestMemoryError> {
            let index: u16 = self.memory.load(GuestAddress(self.place.used + 2), Ordering::Acquire)?;
            if u16::from_le(index) == self.taken {
                return Ok(None);
            }
            let slot = u64::from(self.taken % self.place.count);
            let [buffer, len]: [u32; 2] =
                self.memory.read_obj(GuestAddress(self.place.used + 4 + 8 * slot))?;
            self.taken = self.taken.wrapping_add(1);
            Ok(Some((u32::from_le(buffer), u32::from_le(len))))
        };
        let Some((buffer, len)) = take().map_err(io::Error::other)? else { return Ok(None) };
        let buffer = u16::try_from(buffer).ok().filter(|buffer| *buffer < self.place.count);
        let buffer = buffer.ok_or_else(|| io::Error::other("the kernel used a buffer that is none"))?;
        Ok(Some((buffer, len)))
    }
}

/// Both rings, while the driver's life lasts.
struct Rings {
    received: Ring,
    sent: Ring,
    /// Buffers for what is sent that are ours.
    free: Vec<u16>,
}

impl Host for Rings {
    fn send(&mut self, packet: &[u8]) -> io::Result<bool> {
        while let Some((buffer, _)) = self.sent.take()? {
            self.free.push(buffer);
        }
        let Some(buffer) = self.free.pop() else { return Ok(false) };
        self.sent.memory.write_slice(packet, self.sent.buffer(buffer)).map_err(io::Error::other)?;
        self.sent.give(buffer, packet.len() as u32)?;
        Ok(true)
    }

    fn receive(&mut self, packet: &mut Vec<u8>) -> io::Result<bool> {
        let Some((buffer, len)) = self.received.take()? else { return Ok(false) };
        packet.resize(len.min(RECEIVED_SIZE) as usize, 0);
        let at = self.received.buffer(buffer);
        self.received.memory.read_slice(packet, at).map_err(io::Error::other)?;
        self.received.give(buffer, RECEIVED_SIZE)?;
        Ok(true)
    }

    fn wake(&mut self) {
        // Nothing to read is fine.
        let _ = (self.received.call.read(), self.sent.call.read());
    }

    fn sources(&self) -> Vec<BorrowedFd<'_>> {
        [&self.received, &self.sent].map(|ring| events::as_fd(&ring.call)).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_queue::{Queue, QueueOwnedT, QueueT};

    /// The device's side, by another implementation.
    fn device(ring: &Ring) -> Queue {
        let mut queue = Queue::new(ring.place.count).unwrap();
        queue.set_desc_table_address(Some(ring.place.descriptors as u32), Some(0));
        queue.set_avail_ring_address(Some(ring.place.available as u32), Some(0));
        queue.set_used_ring_address(Some(ring.place.used as u32), Some(0));
        queue.set_ready(true);
        assert!(queue.is_valid(&ring.memory));
        queue
    }

    fn rings() -> Rings {
        let (places, size) = places();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)]).unwrap();
        let [received, sent] = places.map(|place| Ring::new(&memory, place).unwrap());
        let mut rings = Rings { received, sent, free: (0..SENT).collect() };
        (0..RECEIVED).for_each(|buffer| rings.received.give(buffer, RECEIVED_SIZE).unwrap());
        rings
    }

    #[test]
    fn packets_go_both_ways_for_longer_than_the_rings_are() {
        let mut rings = rings();
        let (mut received, mut sent) = (device(&rings.received), device(&rings.sent));
        let memory = rings.sent.memory.clone();
        let mut packet = Vec::new();
        assert!(!rings.receive(&mut packet).unwrap());
        for n in 0..70_000_u32 {
            let out = n.to_le_bytes().repeat(20);
            assert!(rings.send(&out).unwrap());
            let chain = sent.iter(&memory).unwrap().next().unwrap();
            let head = chain.head_index();
            let mut got = vec![0; 80];
            let mut reader = chain.reader(&memory).unwrap();
            assert_eq!(reader.available_bytes(), 80);
            io::Read::read_exact(&mut reader, &mut got).unwrap();
            assert_eq!(got, out);
            sent.add_used(&memory, head, 0).unwrap();

            let chain = received.iter(&memory).unwrap().next().unwrap();
            let head = chain.head_index();
            let mut writer = chain.writer(&memory).unwrap();
            assert_eq!(writer.available_bytes(), RECEIVED_SIZE as usize);
            io::Write::write_all(&mut writer, &n.to_be_bytes()).unwrap();
            received.add_used(&memory, head, 4).unwrap();
            assert!(rings.receive(&mut packet).unwrap());
            assert_eq!(packet, n.to_be_bytes());
        }
    }

    #[test]
    fn a_full_ring_takes_no_more_until_it_is_used() {
        let mut rings = rings();
        let mut sent = device(&rings.sent);
        let memory = rings.sent.memory.clone();
        let long = vec![9; PACKET_MAX];
        for _ in 0..SENT {
            assert!(rings.send(&long).unwrap());
        }
        assert!(!rings.send(&long).unwrap());
        let head = sent.iter(&memory).unwrap().next().unwrap().head_index();
        sent.add_used(&memory, head, 0).unwrap();
        assert!(rings.send(&long).unwrap() && !rings.send(&long).unwrap());
    }

    #[test]
    fn the_kernel_is_told_when_it_wants_to_be() {
        let mut rings = rings();
        let memory = rings.sent.memory.clone();
        rings.send(&[1; 44]).unwrap();
        assert_eq!(rings.sent.kick.read().unwrap(), 1);
        memory.write_obj(1_u16, GuestAddress(rings.sent.place.used)).unwrap();
        rings.send(&[1; 44]).unwrap();
        assert!(rings.sent.kick.read().is_err());
    }
}
