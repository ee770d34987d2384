// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers of a console's queues: bytes of a port, and control messages (virtio 1.2, section 5.3.6.2).

use std::io::{Read, Write};

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

/// Most bytes taken from one buffer of a port; Linux sends a page.
const MOST: usize = 1 << 16;

/// A control message's event; those that drivers send, and those that devices send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Event {
    /// The driver is ready, or not.
    DeviceReady = 0,
    /// A new port.
    PortAdd = 1,
    /// The driver has a port ready, or not.
    PortReady = 3,
    /// A port is open at its other end, or not.
    PortOpen = 6,
    /// A port's name follows.
    PortName = 7,
}

/// A control message of the driver's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Which port.
    pub port: u32,
    /// What happened.
    pub event: u16,
    /// 0 or 1.
    pub value: u16,
}

impl Message {
    /// Reads it; none where there is none.
    pub fn read(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> Option<Self> {
        let mut message = [0; 8];
        chain.reader(memory).ok()?.read_exact(&mut message).ok()?;
        let [a, b, c, d, e0, e1, v0, v1] = message;
        Some(Self {
            port: u32::from_le_bytes([a, b, c, d]),
            event: u16::from_le_bytes([e0, e1]),
            value: u16::from_le_bytes([v0, v1]),
        })
    }

    /// For the driver, with what follows.
    pub fn bytes(port: u32, event: Event, value: u16, more: &[u8]) -> Vec<u8> {
        [&port.to_le_bytes()[..], &(event as u16).to_le_bytes(), &value.to_le_bytes(), more].concat()
    }
}

/// Bytes that the driver sends.
pub fn output(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> Vec<u8> {
    let Ok(mut reader) = chain.reader(memory) else { return Vec::new() };
    let mut bytes = vec![0; reader.available_bytes().min(MOST)];
    if reader.read_exact(&mut bytes).is_err() { Vec::new() } else { bytes }
}

/// Writes what `fill` gives for so much room into the driver's buffer; returns how many bytes that is. None: it gives nothing.
pub fn input(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    fill: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Option<u32> {
    let mut bytes = [0; 4096];
    // A buffer without room for a byte comes back empty.
    let Ok(mut writer) = chain.writer(memory) else { return Some(0) };
    let room = bytes.get_mut(..writer.available_bytes().min(4096)).filter(|room| !room.is_empty());
    let Some(room) = room else { return Some(0) };
    let count = fill(room)?;
    let written = writer.write_all(room.get(..count).unwrap_or_default());
    Some(if written.is_ok() { count as u32 } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::tests::{WRITE, chain, memory};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn messages_go_both_ways() {
        let memory = memory();
        let bytes = Message::bytes(0x0102_0304, Event::PortName, 1, b"name");
        assert_eq!(bytes, b"\x04\x03\x02\x01\x07\0\x01\0name");
        memory.write_slice(&bytes, GuestAddress(0x8000)).unwrap();
        let message = Message::read(&memory, chain(&memory, &[(0x8000, 3, 0), (0x8003, 9, 0)]));
        assert_eq!(message, Some(Message { port: 0x0102_0304, event: 7, value: 1 }));
        assert_eq!(Message::read(&memory, chain(&memory, &[(0x8000, 7, 0)])), None);
        assert_eq!(Message::read(&memory, chain(&memory, &[(0x8000, 8, WRITE)])), None);
    }

    #[test]
    fn bytes_are_bounded() {
        let memory = memory();
        memory.write_slice(b"guest", GuestAddress(0x8000)).unwrap();
        assert_eq!(output(&memory, chain(&memory, &[(0x8000, 5, 0)])), b"guest");
        assert_eq!(output(&memory, chain(&memory, &[(0, 0xFFFF, 0), (0, 0xFFFF, 0)])).len(), MOST);
        for wrong in [(0x8000, 5, WRITE), (0x1_0000, 5, 0), (u64::MAX, 5, 0)] {
            assert!(output(&memory, chain(&memory, &[wrong])).is_empty(), "{wrong:x?}");
        }
    }

    #[test]
    fn input_fills_what_is_memory() {
        let memory = memory();
        let ask = |parts: &[(u64, u32, u16)], count| {
            let mut room = 0;
            let done = input(&memory, chain(&memory, parts), |bytes| {
                room = bytes.len();
                bytes.fill(b'x');
                count
            });
            (done, room)
        };
        assert_eq!(ask(&[(0x8000, 3, WRITE), (0x9000, 7, WRITE)], Some(5)), (Some(5), 10));
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x9000)).unwrap(), 0x7878);
        assert_eq!(ask(&[(0x8000, 3, WRITE)], None), (None, 3));
        assert_eq!(ask(&[(0x2000, 0xE000, WRITE)], Some(4096)), (Some(4096), 4096));
        for wrong in [(0x8000, 0, WRITE), (0x8000, 5, 0), (0x1_0000, 5, WRITE), (u64::MAX, 5, WRITE)] {
            assert_eq!(ask(&[wrong], Some(1)), (Some(0), 0), "{wrong:x?}");
        }
    }
}
