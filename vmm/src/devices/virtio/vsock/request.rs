// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers of a socket device's queues (virtio 1.2, section 5.10.6): each holds a packet, a header with its payload. Packets are copied on
//! their way: what is judged or forwarded can't change any more.

use std::io::{Read, Write};

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

/// Size of a header, which is packed.
pub const HEADER_SIZE: usize = 44;
/// Most payload of a packet, as in Linux.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// Longest packet.
pub const PACKET_MAX: usize = HEADER_SIZE + PAYLOAD_MAX;

/// Types of sockets.
pub const STREAM: u16 = 1;
/// Messages with ends.
pub const SEQPACKET: u16 = 2;
/// Flags of such a message's last packet: its end (EOM), and the end of a record (EOR).
const ENDS: u32 = 1 | 2;

/// What a packet is for.
pub mod op {
    /// Connect.
    pub const REQUEST: u16 = 1;
    /// Connected.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, any more.
    pub const RST: u16 = 3;
    /// One direction, or both, is at its end.
    pub const SHUTDOWN: u16 = 4;
    /// Payload.
    pub const RW: u16 = 5;
    /// How much room there is.
    pub const CREDIT_UPDATE: u16 = 6;
    /// How much room is there?
    pub const CREDIT_REQUEST: u16 = 7;
}

/// A packet's header.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Header {
    /// Who sends.
    pub src_cid: u64,
    /// Who receives.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// Type of the sockets.
    pub kind: u16,
    /// What it is for.
    pub op: u16,
    /// Depend on that.
    pub flags: u32,
    /// The sender's whole buffer for this connection,
    pub buf_alloc: u32,
    /// and what its program has taken out so far.
    pub fwd_cnt: u32,
}

impl Header {
    /// The header at the start of a packet.
    pub fn of(packet: &[u8]) -> Option<Self> {
        let mut rest = packet;
        let header = Self {
            src_cid: u64::from_le_bytes(field(&mut rest)?),
            dst_cid: u64::from_le_bytes(field(&mut rest)?),
            src_port: u32::from_le_bytes(field(&mut rest)?),
            dst_port: u32::from_le_bytes(field(&mut rest)?),
            len: u32::from_le_bytes(field(&mut rest)?),
            kind: u16::from_le_bytes(field(&mut rest)?),
            op: u16::from_le_bytes(field(&mut rest)?),
            flags: u32::from_le_bytes(field(&mut rest)?),
            buf_alloc: u32::from_le_bytes(field(&mut rest)?),
            fwd_cnt: u32::from_le_bytes(field(&mut rest)?),
        };
        Some(header)
    }

    /// As in a packet.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.concat()) {
            *to = from;
        }
        bytes
    }

    /// The answer to a packet of no connection.
    pub fn refusal(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// The next field.
fn field<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (field, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*field)
}

/// A whole packet's header: its payload is as long as it says, and not too long.
pub fn check(packet: &[u8]) -> Option<Header> {
    let header = Header::of(packet)?;
    let whole = packet.len() <= PACKET_MAX && packet.len() - HEADER_SIZE == header.len as usize;
    whole.then_some(header)
}

/// What the driver sends, into `packet`. None: it is no packet.
pub fn take(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    packet: &mut Vec<u8>,
) -> Option<Header> {
    packet.clear();
    let mut reader = chain.reader(memory).ok()?;
    packet.resize(HEADER_SIZE, 0);
    reader.read_exact(packet).ok()?;
    let len = Header::of(packet)?.len as usize;
    // Before there is memory for it. What is behind the payload is nobody's.
    if len > PAYLOAD_MAX || len > reader.available_bytes() {
        return None;
    }
    packet.resize(HEADER_SIZE + len, 0);
    reader.read_exact(packet.get_mut(HEADER_SIZE..)?).ok()?;
    check(packet)
}

/// A packet on its way to the driver, in as many parts as its buffers make of it.
#[derive(Default, Debug)]
pub struct Inbound {
    packet: Vec<u8>,
    /// Payload that the driver has already.
    given: usize,
    full: bool,
}

impl Inbound {
    /// There is a packet.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Where the next one goes, if there is none.
    pub fn buffer(&mut self) -> Option<&mut Vec<u8>> {
        (!self.full).then_some(&mut self.packet)
    }

    /// The buffer has a packet that [`check`] has seen.
    pub fn fill(&mut self) {
        (self.full, self.given) = (true, 0);
    }

    /// Has none any more.
    pub fn clear(&mut self) {
        self.full = false;
    }
}

/// Gives the packet to the driver. False: not all of it, since it has no buffers left; it will notify of the next one.
///
/// # Errors
/// The rings are nonsense.
pub fn deliver(queue: &mut Queue, memory: &GuestMemoryMmap, inbound: &mut Inbound) -> Result<bool, Error> {
    while inbound.full {
        let mut chain = queue.iter(memory)?.next();
        if chain.is_none() && queue.enable_notification(memory)? {
            chain = queue.iter(memory)?.next();
        }
        let Some(chain) = chain else { return Ok(false) };
        let head = chain.head_index();
        let written = part(memory, chain, inbound).unwrap_or_else(|| {
            tracing::debug!("virtio-vsock: a buffer that has no room for a packet");
            0
        });
        queue.add_used(memory, head, written)?;
    }
    Ok(true)
}

/// Writes what fits one buffer; returns the bytes. None: nothing does.
fn part(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    inbound: &mut Inbound,
) -> Option<u32> {
    let mut writer = chain.writer(memory).ok()?;
    let room = writer.available_bytes().checked_sub(HEADER_SIZE)?;
    let mut header = Header::of(&inbound.packet)?;
    let payload = inbound.packet.get(HEADER_SIZE + inbound.given..)?;
    let now = payload.get(..room.min(payload.len()))?;
    if now.is_empty() && !payload.is_empty() {
        return None;
    }
    header.len = now.len() as u32;
    let last = now.len() == payload.len();
    if !last && header.kind == SEQPACKET {
        header.flags &= !ENDS;
    }
    writer.write_all(&header.to_bytes()).ok()?;
    writer.write_all(now).ok()?;
    let written = HEADER_SIZE + now.len();
    inbound.given += now.len();
    inbound.full = !last;
    Some(written as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::tests::{WRITE, chain, descriptors, memory};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{Bytes, GuestAddress};

    fn packet(payload: &[u8]) -> Vec<u8> {
        let header = Header {
            src_cid: 3,
            dst_cid: 4,
            len: payload.len() as u32,
            kind: SEQPACKET,
            op: op::RW,
            flags: 3,
            ..Header::default()
        };
        [&header.to_bytes()[..], payload].concat()
    }

    #[test]
    fn headers_keep_their_fields() {
        let bytes: Vec<u8> = (1..=44).collect();
        let header = Header::of(&bytes).unwrap();
        assert_eq!(header.to_bytes().to_vec(), bytes);
        // By their offsets in the specification.
        assert_eq!((header.src_port, header.len), (0x1413_1211, 0x1C1B_1A19));
        assert_eq!((header.kind, header.op, header.fwd_cnt), (0x1E1D, 0x201F, 0x2C2B_2A29));
        assert_eq!(Header::of(&bytes[..43]), None);
    }

    #[test]
    fn lengths_of_the_drivers_packets_are_checked() {
        let memory = memory();
        let mut got = Vec::new();
        memory.write_slice(&packet(&[7; 100]), GuestAddress(0x8000)).unwrap();
        for parts in [&[(0x8000, 144, 0)][..], &[(0x8000, 44, 0), (0x802C, 100, 0)], &[(0x8000, 500, 0)]] {
            assert_eq!(take(&memory, chain(&memory, parts), &mut got).unwrap().len, 100);
            assert_eq!(got, packet(&[7; 100]));
        }
        for parts in [
            &[(0x8000, 143, 0)][..],
            &[(0x8000, 43, 0)],
            &[(0x8000, 144, WRITE)],
            &[(0x8000, 44, 0), (0x1_0000, 100, 0)],
            &[(u64::MAX, 144, 0)],
        ] {
            assert_eq!(take(&memory, chain(&memory, parts), &mut got), None, "{parts:x?}");
        }
        for len in [PAYLOAD_MAX as u32 + 1, u32::MAX] {
            memory.write_obj(len.to_le(), GuestAddress(0x8018)).unwrap();
            assert_eq!(take(&memory, chain(&memory, &[(0x8000, 0x8000, 0)]), &mut got), None);
            assert!(got.capacity() < 0x1_0000, "no memory for what is not there");
        }
    }

    #[test]
    fn packets_from_elsewhere_are_as_long_as_they_say() {
        assert!(check(&packet(&[1; 10])).is_some());
        assert!(check(&packet(&vec![1; PAYLOAD_MAX])).is_some());
        assert_eq!(check(&packet(&vec![1; PAYLOAD_MAX + 1])), None);
        assert_eq!(check(&packet(&[1; 10])[..50]), None);
        assert_eq!(check(&[&packet(&[1; 10])[..], &[0]].concat()), None);
        assert_eq!(check(&[]), None);
    }

    #[test]
    fn a_packet_is_cut_to_the_drivers_buffers() {
        let memory = memory();
        let ring = MockSplitQueue::new(&memory, 16);
        let buffers = [(0x8000, 104, WRITE), (0x9000, 20, WRITE), (0xA000, 44, WRITE), (0xB000, 300, WRITE)];
        let all: Vec<_> = (0..).zip(&buffers).flat_map(|(n, buffer)| descriptors(n, &[*buffer])).collect();
        ring.add_desc_chains(&all, 0).unwrap();
        let mut queue: Queue = ring.create_queue().unwrap();
        let mut inbound = Inbound::default();
        let payload: Vec<u8> = (0..150).collect();
        inbound.buffer().unwrap().extend(packet(&payload));
        inbound.fill();
        assert!(inbound.buffer().is_none());
        assert!(deliver(&mut queue, &memory, &mut inbound).unwrap());
        let read = |at: u64, len: usize| {
            let mut bytes = vec![0; len];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let lens: Vec<u32> = (0..4).map(|n| ring.used().ring().ref_at(n).unwrap().load().len()).collect();
        assert_eq!(lens, [104, 0, 0, 134], "two have no room");
        let (first, last) = (Header::of(&read(0x8000, 44)).unwrap(), Header::of(&read(0xB000, 44)).unwrap());
        assert_eq!(
            (first.len, first.flags, last.len, last.flags),
            (60, 0, 90, 3),
            "the end is in the last part"
        );
        assert_eq!([read(0x802C, 60), read(0xB02C, 90)].concat(), payload);
        // No buffers: it waits.
        inbound.buffer().unwrap();
        inbound.fill();
        assert!(!deliver(&mut queue, &memory, &mut inbound).unwrap() && inbound.is_full());
    }

    #[test]
    fn an_empty_payload_is_a_packet() {
        let memory = memory();
        let ring = MockSplitQueue::new(&memory, 16);
        ring.add_desc_chains(&descriptors(0, &[(0x8000, 44, WRITE)]), 0).unwrap();
        let mut queue: Queue = ring.create_queue().unwrap();
        let mut inbound = Inbound::default();
        inbound.buffer().unwrap().extend(packet(&[]));
        inbound.fill();
        assert!(deliver(&mut queue, &memory, &mut inbound).unwrap());
        assert_eq!(ring.used().ring().ref_at(0).unwrap().load().len(), 44);
    }
}
