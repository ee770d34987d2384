// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers of a network device's queues (virtio 1.2, section 5.1.6): each holds a virtio-net header and a frame, or a part of one.
//! Frames are copied on their way: what is judged or forwarded can't change any more.

use std::io::{Read, Write};

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::backend::BUFFER_SIZE;

/// The virtio-net header, the same with and without merged buffers (virtio 1).
pub const HEADER_SIZE: usize = 12;
/// Where it has the number of buffers that a frame takes.
const NUM_BUFFERS: usize = 10;
/// A frame has at least Ethernet's header.
const LEAST: usize = HEADER_SIZE + 14;
/// Of the used ring: its header, an element.
const USED_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;

/// What the driver sends, with its header, into `buffer`; returns its length. None if it can be no frame.
pub fn frame<'b>(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    buffer: &'b mut [u8],
) -> Option<&'b [u8]> {
    let mut reader = chain.reader(memory).ok()?;
    let len = reader.available_bytes();
    if !(LEAST..=BUFFER_SIZE).contains(&len) {
        return None;
    }
    let frame = buffer.get_mut(..len)?;
    reader.read_exact(frame).ok()?;
    Some(frame)
}

/// What became of a frame for the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// It has it.
    Done,
    /// It has no buffers left, or too few; it will notify of the next one.
    NoBuffers,
    /// It has, but no frame of this size fits them: lost.
    TooLarge,
}

/// Gives `frame`, with its header, to the driver: in one buffer, or (`merge`) in as many as it takes.
///
/// # Errors
/// The rings are nonsense.
pub fn deliver(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    frame: &mut [u8],
    merge: bool,
) -> Result<Delivery, Error> {
    let start = queue.next_avail();
    let most = if merge { usize::from(queue.size()) } else { 1 };
    let mut buffers = Vec::new();
    let mut room = 0_usize;
    while room < frame.len() {
        let full = buffers.len() == most;
        let mut chain = if full { None } else { queue.iter(memory)?.next() };
        // The driver shall notify of the first buffer behind those that are too few.
        if !full && chain.is_none() && queue.enable_notification(memory)? {
            chain = queue.iter(memory)?.next();
        }
        let Some(chain) = chain else {
            queue.set_next_avail(start);
            return Ok(if full { Delivery::TooLarge } else { Delivery::NoBuffers });
        };
        let head = chain.head_index();
        // What is no memory has no room.
        let writer = chain.writer(memory).ok();
        room = room.saturating_add(writer.as_ref().map_or(0, |writer| writer.available_bytes()));
        buffers.push((head, writer));
    }
    let count = u16::try_from(buffers.len()).unwrap_or(u16::MAX);
    if let Some(field) = frame.get_mut(NUM_BUFFERS..HEADER_SIZE) {
        field.copy_from_slice(&count.to_le_bytes());
    }
    let mut rest = &*frame;
    let mut used = Vec::with_capacity(buffers.len());
    for (head, writer) in buffers {
        let room = writer.as_ref().map_or(0, |writer| writer.available_bytes());
        let (now, later) = rest.split_at(room.min(rest.len()));
        if let Some(mut writer) = writer
            && writer.write_all(now).is_err()
        {
            tracing::debug!("virtio-net: a buffer is no memory");
        }
        used.push((head, now.len() as u32));
        rest = later;
    }
    publish(queue, memory, &used)?;
    Ok(Delivery::Done)
}

/// Adds buffers to the used ring. The driver sees all of them at once: those of one frame belong together.
fn publish(queue: &mut Queue, memory: &GuestMemoryMmap, used: &[(u16, u32)]) -> Result<(), Error> {
    let Some(((head, len), others)) = used.split_last() else { return Ok(()) };
    let mut at = queue.next_used();
    for (head, len) in others {
        let offset = USED_HEADER + u64::from(at % queue.size()) * USED_ELEMENT;
        let address = queue.used_ring().checked_add(offset).ok_or(Error::AddressOverflow)?;
        let element = u64::from(*head) | u64::from(*len) << 32;
        memory.write_obj(element.to_le(), GuestAddress(address)).map_err(Error::GuestMemory)?;
        at = at.wrapping_add(1);
    }
    queue.set_next_used(at);
    queue.add_used(memory, *head, *len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::tests::{WRITE, chain, descriptors, memory};
    use virtio_queue::mock::MockSplitQueue;

    #[test]
    fn frames_are_gathered() {
        let memory = memory();
        let mut buffer = vec![0; BUFFER_SIZE];
        memory.write_slice(&[3; 100], GuestAddress(0x8000)).unwrap();
        memory.write_slice(&[4; 100], GuestAddress(0x9000)).unwrap();
        let parts = [(0x8000, 12, 0), (0x9000, 60, 0)];
        assert_eq!(
            frame(&memory, chain(&memory, &parts), &mut buffer),
            Some([[3; 12].as_slice(), &[4; 60]].concat().as_slice())
        );
        for wrong in [
            [(0x8000, 12, 0), (0x9000, 13, 0)],
            [(0x8000, 12, WRITE), (0x9000, 60, WRITE)],
            [(0x8000, 12, 0), (0x1_0000, 60, 0)],
            [(0x8000, 12, 0), (u64::MAX, 60, 0)],
            [(0x2000, 0xE000, 0), (0x2000, 0x3000, 0)],
            [(0x8000, u32::MAX, 0), (0x9000, 60, 0)],
        ] {
            assert_eq!(frame(&memory, chain(&memory, &wrong), &mut buffer), None, "{wrong:x?}");
        }
    }

    /// A queue with these chains of one descriptor each.
    fn queue(memory: &GuestMemoryMmap, buffers: &[(u64, u32, u16)]) -> Queue {
        let ring = MockSplitQueue::new(memory, 16);
        let all: Vec<_> = (0..).zip(buffers).flat_map(|(n, buffer)| descriptors(n, &[*buffer])).collect();
        ring.add_desc_chains(&all, 0).unwrap();
        ring.create_queue().unwrap()
    }

    /// Used index, and the used elements (head, length) up to it.
    fn used(memory: &GuestMemoryMmap, queue: &Queue) -> Vec<(u32, u32)> {
        let read = |offset| memory.read_obj::<u32>(GuestAddress(queue.used_ring() + offset)).unwrap();
        let count = u64::from(read(0) >> 16);
        (0..count).map(|n| (read(4 + 8 * n), read(8 + 8 * n))).collect()
    }

    #[test]
    fn a_frame_takes_one_buffer_or_several() {
        let memory = memory();
        let mut frame: Vec<u8> = (0..200).collect();
        let mut one = queue(&memory, &[(0x8000, 300, WRITE), (0x9000, 300, WRITE)]);
        assert_eq!(deliver(&mut one, &memory, &mut frame, false).unwrap(), Delivery::Done);
        assert_eq!(used(&memory, &one), [(0, 200)]);
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x800A)).unwrap(), 1);

        let memory = self::memory();
        let mut several = queue(&memory, &[(0x8000, 90, WRITE), (0x9000, 90, WRITE), (0xA000, 90, WRITE)]);
        assert_eq!(deliver(&mut several, &memory, &mut frame, true).unwrap(), Delivery::Done);
        assert_eq!(used(&memory, &several), [(0, 90), (1, 90), (2, 20)]);
        let mut got = vec![0; 90];
        memory.read_slice(&mut got, GuestAddress(0x9000)).unwrap();
        assert_eq!(got, (90..180).collect::<Vec<u8>>());
        assert_eq!(memory.read_obj::<u16>(GuestAddress(0x800A)).unwrap(), 3);
        assert_eq!(deliver(&mut several, &memory, &mut frame, true).unwrap(), Delivery::NoBuffers);
    }

    #[test]
    fn buffers_that_are_too_few_stay_the_drivers() {
        let memory = memory();
        let mut frame = vec![5; 200];
        let mut queue = queue(&memory, &[(0x8000, 90, WRITE), (0x9000, 90, WRITE)]);
        queue.set_event_idx(true);
        assert_eq!(deliver(&mut queue, &memory, &mut frame, true).unwrap(), Delivery::NoBuffers);
        // It waits for the third buffer.
        let avail_event = GuestAddress(queue.used_ring() + 4 + 8 * 16);
        assert_eq!(memory.read_obj::<u16>(avail_event).unwrap(), 2);
        assert_eq!(deliver(&mut queue, &memory, &mut frame, false).unwrap(), Delivery::TooLarge);
        assert!(used(&memory, &queue).is_empty());
        assert_eq!(deliver(&mut queue, &memory, &mut frame[..180], true).unwrap(), Delivery::Done);
        assert_eq!(used(&memory, &queue), [(0, 90), (1, 90)]);
    }

    #[test]
    fn buffers_that_are_no_memory_get_nothing() {
        let memory = memory();
        let buffers = [(0x1_0000, 90, WRITE), (0x8000, 90, 0), (u64::MAX, 90, WRITE), (0x9000, 90, WRITE)];
        let mut queue = queue(&memory, &buffers);
        assert_eq!(deliver(&mut queue, &memory, &mut [6; 80], true).unwrap(), Delivery::Done);
        assert_eq!(used(&memory, &queue), [(0, 0), (1, 0), (2, 0), (3, 80)]);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x8000)).unwrap(), 0);
        // A queue full of them.
        let mut queue = self::queue(&memory, &[(0x1_0000, 90, WRITE); 16]);
        assert_eq!(deliver(&mut queue, &memory, &mut [6; 80], true).unwrap(), Delivery::TooLarge);
    }

    #[test]
    fn the_used_ring_wraps() {
        let memory = memory();
        let mut queue = queue(&memory, &[(0x8000, 50, WRITE), (0x9000, 50, WRITE)]);
        queue.set_next_used(0xFFFF);
        assert_eq!(deliver(&mut queue, &memory, &mut [6; 80], true).unwrap(), Delivery::Done);
        assert_eq!(queue.next_used(), 1);
        let read = |offset| memory.read_obj::<u32>(GuestAddress(queue.used_ring() + offset)).unwrap();
        assert_eq!((read(0) >> 16, read(4 + 8 * 15), read(8 + 8 * 15)), (1, 0, 50));
        assert_eq!((read(4), read(8)), (1, 30));
    }
}
