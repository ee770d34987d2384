// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A function's configuration space: type 0 header and capabilities (PCI local bus specification 3.0, chapter 6; virtio 1.2,
//! section 4.1.4). What lies behind the first 256 bytes reads as zero: there are no extended capabilities.

/// Bytes that mean something.
pub const SIZE: usize = 256;

/// Bytes of BAR 0.
pub const BAR_SIZE: u32 = 0x4000;
/// Structures in BAR 0: first byte and length.
pub const COMMON: (u32, u32) = (0, 0x40);
pub const ISR: (u32, u32) = (0x1000, 4);
pub const DEVICE: (u32, u32) = (0x2000, 0x1000);
pub const NOTIFY: (u32, u32) = (0x3000, 0x1000);
/// Bytes from one queue's notification to the next's.
pub const NOTIFY_MULTIPLIER: u32 = 4;

/// "Red Hat", which leaves these numbers to virtio.
const VENDOR: u16 = 0x1AF4;
/// Added to the number of a virtio device.
const DEVICE_BASE: u16 = 0x1040;
const REVISION: u8 = 1;

// Registers of the header.
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;
const INTERRUPT_PIN: usize = 0x3D;

const COMMAND_MEMORY: u8 = 1 << 1;
/// Memory and bus mastering.
const COMMAND_LOW: u8 = COMMAND_MEMORY | 1 << 2;
/// No interrupts by pin: kept for the driver, which then listens to none.
const COMMAND_HIGH: u8 = 1 << 2;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const PIN_A: u8 = 1;

const VENDOR_SPECIFIC: u8 = 9;
// Types of virtio structures.
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;
/// The first capability.
const FIRST: usize = 0x40;
/// The one through which a driver that maps no BAR reaches it; its data follow.
const PCI: usize = FIRST + 16 + 16 + 16 + 20;
const PCI_OFFSET: usize = PCI + 8;
const PCI_LENGTH: usize = PCI + 12;
const PCI_DATA: usize = PCI + 16;

/// The registers of a function, and which bits of them a driver may change.
pub struct Config {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
}

impl Config {
    /// Of a virtio device of this number.
    pub fn new(device: u32) -> Self {
        let number = u16::try_from(device).unwrap_or(0);
        let mut config = Self { bytes: [0; SIZE], writable: [0; SIZE] };
        config.set(0, &VENDOR.to_le_bytes());
        config.set(2, &DEVICE_BASE.wrapping_add(number).to_le_bytes());
        config.set(STATUS, &[STATUS_CAPABILITIES]);
        let [base, sub] = class(device);
        config.set(8, &[REVISION, 0, sub, base]);
        config.set(0x2C, &VENDOR.to_le_bytes());
        config.set(0x2E, &DEVICE_BASE.wrapping_add(number).to_le_bytes());
        config.set(CAPABILITIES, &[FIRST as u8]);
        config.set(INTERRUPT_PIN, &[PIN_A]);
        config.let_write(COMMAND, &[COMMAND_LOW, COMMAND_HIGH]);
        // Its low bits are those of 32-bit memory that has side effects: zeros. Sizing reads back what can't be written.
        config.let_write(BAR0, &(!(BAR_SIZE - 1)).to_le_bytes());
        config.let_write(INTERRUPT_LINE, &[0xFF]);
        let mut at = FIRST;
        for (kind, place) in [(CAP_COMMON, COMMON), (CAP_ISR, ISR), (CAP_DEVICE, DEVICE)] {
            at = config.capability(at, kind, 16, place);
        }
        let notify = at;
        at = config.capability(at, CAP_NOTIFY, 20, NOTIFY);
        config.set(notify + 16, &NOTIFY_MULTIPLIER.to_le_bytes());
        debug_assert_eq!(at, PCI, "where PCI_DATA is taken to be");
        config.capability(at, CAP_PCI, 20, (0, 0));
        config.set(PCI + 1, &[0]);
        for field in [PCI + 4, PCI_OFFSET, PCI_LENGTH] {
            config.let_write(field, if field == PCI + 4 { &[0xFF] } else { &[0xFF; 4] });
        }
        config
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    fn let_write(&mut self, at: usize, bits: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(at).zip(bits) {
            *to = *from;
        }
    }

    /// A capability of virtio's at `at`; where the next one is.
    fn capability(&mut self, at: usize, kind: u8, length: u8, (offset, size): (u32, u32)) -> usize {
        let next = at + usize::from(length);
        self.set(at, &[VENDOR_SPECIFIC, next as u8, length, kind]);
        self.set(at + 8, &offset.to_le_bytes());
        self.set(at + 12, &size.to_le_bytes());
        next
    }

    /// Reads registers.
    pub fn read(&self, at: usize, data: &mut [u8]) {
        let bytes = self.bytes.iter().skip(at).chain(std::iter::repeat(&0));
        for (to, from) in data.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    /// Writes what may be written of them.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        let bytes = self.bytes.iter_mut().zip(&self.writable).skip(at);
        for ((to, writable), from) in bytes.zip(data) {
            *to = *to & !writable | from & writable;
        }
    }

    /// Where BAR 0 is, while the function answers there.
    pub fn bar(&self) -> Option<u64> {
        let on = self.bytes[COMMAND] & COMMAND_MEMORY != 0;
        on.then(|| self.word(BAR0).into())
    }

    /// What an access of `len` bytes to `at` means in BAR 0, if it is one by way of the configuration space: the offset there.
    pub fn window(&self, at: usize, len: usize) -> Option<u64> {
        let length = self.word(PCI_LENGTH) as usize;
        let (bar, offset) = (self.bytes[PCI + 4], self.word(PCI_OFFSET));
        let inside = offset.checked_add(length as u32).is_some_and(|end| end <= BAR_SIZE);
        (at == PCI_DATA && len == length && matches!(length, 1 | 2 | 4) && bar == 0 && inside)
            .then_some(offset.into())
    }

    fn word(&self, at: usize) -> u32 {
        let mut word = [0; 4];
        self.read(at, &mut word);
        u32::from_le_bytes(word)
    }
}

/// Class and subclass of a virtio device, which only people look at.
const fn class(device: u32) -> [u8; 2] {
    match device {
        virtio_bindings::virtio_ids::VIRTIO_ID_NET => [2, 0],
        virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK => [1, 0],
        virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE => [7, 0x80],
        virtio_bindings::virtio_ids::VIRTIO_ID_FS => [1, 0x80],
        virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK => [2, 0x80],
        _ => [0xFF, 0],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(config: &Config, at: usize) -> u32 {
        config.word(at)
    }

    #[test]
    fn a_driver_finds_its_way() {
        let config = Config::new(2);
        assert_eq!(word(&config, 0), 0x1042_1AF4);
        assert_eq!(word(&config, 8), 0x0100_0001);
        assert_eq!(word(&config, 0x3C) >> 8 & 0xFF, 1, "pin A");
        let mut kinds = Vec::new();
        let mut at = config.bytes[CAPABILITIES];
        while at != 0 {
            let capability = &config.bytes[usize::from(at)..];
            assert_eq!(capability[0], 9);
            kinds.push(capability[3]);
            let (offset, size) = (word(&config, usize::from(at) + 8), word(&config, usize::from(at) + 12));
            assert!(offset + size <= BAR_SIZE);
            at = capability[1];
        }
        assert_eq!(kinds, [1, 3, 4, 2, 5]);
        // Nothing behind.
        let mut data = [7; 4];
        config.read(0x100, &mut data);
        assert_eq!(data, [0; 4]);
        config.read(0xFE, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn a_bar_is_sized_and_placed() {
        let mut config = Config::new(1);
        assert_eq!(config.bar(), None);
        config.write(BAR0, &[0xFF; 4]);
        assert_eq!(word(&config, BAR0), !(BAR_SIZE - 1));
        config.write(BAR0, &0x1010_4000_u32.to_le_bytes());
        config.write(COMMAND, &[0xFF, 0xFF]);
        assert_eq!(config.bar(), Some(0x1010_4000));
        assert_eq!(word(&config, COMMAND), 0x0010_0406);
        // Nothing of what a device is can be written.
        config.write(0, &[0xFF; 4]);
        config.write(BAR0 + 4, &[0xFF; 20]);
        config.write(SIZE - 1, &[0xFF; 8]);
        assert_eq!((word(&config, 0), word(&config, BAR0 + 4)), (0x1041_1AF4, 0));
    }

    #[test]
    fn the_bar_by_way_of_the_configuration_space() {
        let mut config = Config::new(1);
        let mut set = |bar: u8, offset: u32, length: u32| {
            config.write(PCI + 4, &[bar]);
            config.write(PCI_OFFSET, &offset.to_le_bytes());
            config.write(PCI_LENGTH, &length.to_le_bytes());
            [1, 2, 4, 8].map(|len| config.window(PCI_DATA, len))
        };
        assert_eq!(set(0, 0x14, 1), [Some(0x14), None, None, None]);
        assert_eq!(set(0, 0x3FFC, 4), [None, None, Some(0x3FFC), None]);
        for (bar, offset, length) in [(1, 0, 4), (0, 0x3FFD, 4), (0, u32::MAX, 4), (0, 0, 8), (0, 0, 0)] {
            assert_eq!(set(bar, offset, length), [None; 4], "{bar} {offset:#x} {length}");
        }
    }
}
