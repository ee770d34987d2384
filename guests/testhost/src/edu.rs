// SPDX-License-Identifier: Apache-2.0 OR MIT
//! QEMU's teaching device (docs/specs/edu.rst) on the PCI host bridge of the device tree: copies between memory and its
//! buffer of 4 KiB, a tenth of a second after it was told to.

use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use gzvm_guest_kit::mmio::{self, Region};
use gzvm_guest_kit::{machine, timer};

use crate::pages;

/// Device and vendor ID.
const ID: u32 = 0x11E8_1234;
/// Configuration space: command register, and its bits for memory accesses and bus mastering.
const COMMAND: u64 = 0x04;
const MEMORY_AND_MASTER: u32 = 6;
/// Its only base address register.
const BAR: u64 = 0x10;
/// Bytes of its registers.
const SIZE: usize = 1 << 20;
/// Registers: source, destination, bytes, command.
const DMA: [usize; 4] = [0x80, 0x88, 0x90, 0x98];
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// The buffer's address in the device.
const BUFFER: u64 = 0x4_0000;

/// The device, ready for DMA.
pub struct Edu(Region);

fn cell(value: &[u8], index: usize) -> Option<u64> {
    let bytes = value.get(index * 4..index * 4 + 4)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?).into())
}

impl Edu {
    /// Looks on bus 0.
    pub fn find() -> Option<Self> {
        let root = machine::get().fdt?.root();
        let bridge = root.children().find(|n| n.is_compatible("pci-host-ecam-generic"))?;
        let config = bridge.reg().ok().flatten()?.next()?.address::<u64>().ok()?;
        let ranges = bridge.property("ranges")?;
        // (PCI address: 3 cells, ours: 2, size: 2); 0x02 = 32-bit memory. Both addresses are the same there.
        let mut windows = (0..8).map(|i| i * 7).filter(|i| cell(ranges.value(), *i) == Some(0x0200_0000));
        let window = windows.next().and_then(|i| cell(ranges.value(), i + 4))?;
        // SAFETY: configuration space of bus 0, by the device tree; nothing else uses it.
        let functions = (0..32).map(|device| unsafe { Region::new(config + (device << 15), 4096) });
        let space = functions.into_iter().find(|space| space.read32(0) == ID)?;
        space.write32(BAR as usize, window as u32);
        space.write32(COMMAND as usize, space.read32(COMMAND as usize) | MEMORY_AND_MASTER);
        // SAFETY: where its registers were just put.
        let registers = unsafe { Region::new(window, SIZE) };
        (registers.read32(0) & 0xFF == 0xED).then_some(Self(registers))
    }

    /// Has it copy `bytes`; whether it came to an end.
    fn copy(&self, source: u64, destination: u64, bytes: u64, direction: u64) -> bool {
        for (register, value) in DMA.into_iter().zip([source, destination, bytes, START | direction]) {
            self.0.write64(register, value);
        }
        timer::wait_ms(5000, || self.0.read64(DMA[3]) & START == 0)
    }

    /// A word of memory into its buffer.
    pub fn load(&self, address: u64) -> bool {
        self.copy(address, BUFFER, 8, 0)
    }

    /// The first word of its buffer into memory.
    pub fn store(&self, address: u64) -> bool {
        self.copy(BUFFER, address, 8, TO_MEMORY)
    }

    /// What is in its buffer, by way of a page of ours.
    pub fn buffer(&self, page: u64) -> Option<u64> {
        pages::write(page, !0);
        crate::vm::clean(page, 8);
        self.store(page).then(|| {
            crate::vm::clean(page, 8);
            pages::read(page)
        })
    }

    /// Puts a word into its buffer, by way of a page of ours.
    pub fn fill(&self, page: u64, value: u64) -> bool {
        pages::write(page, value);
        crate::vm::clean(page, 8);
        self.load(page)
    }
}

/// A device register of the machine, which a host may or may not reach.
pub fn touch(address: u64) -> u32 {
    // SAFETY: a load from a device without effects on memory.
    unsafe { mmio::load32(address) }
}
