// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's address map: crosvm's values where it has them, so that a guest can't tell.
//!
//! ```text
//! 0x0000_03F8  +8                16550 UART                      SPI 0, edge
//! 0x0000_2000  +0x1000           PL031 real-time clock           SPI 1, edge
//! 0x0000_3000  +0x1000           watchdogs, 0x10 a vCPU
//! 0x0009_0000  +0x1000           test device (benchmarks, bare-metal tests)
//! 0x0200_0000  + n * 0x200       virtio-mmio device n, n < 16    SPI 4 + n, edge
//!                                doorbell of RPC channels        SPI 20, edge
//!                                test device, if it is asked to  SPI 21, edge
//! 0x1000_0000  +0x10_0000        PCI configuration space (with --virtio-transport pci, instead of virtio-mmio)
//! 0x1010_0000  +0x10_0000        PCI memory window; interrupts of its devices as virtio-mmio's
//! 0x3FFF_0000  - vcpus * 0x2_0000  GICv3 redistributors
//! 0x3FFF_0000  +0x1_0000         GICv3 distributor
//! 0x7FC0_0000  +0x40_0000       firmware of a protected VM
//! 0x8000_0000  ..                RAM: kernel, initrd, ..., device tree in the last 2 MiB
//! ```
//!
//! All interrupts are edge-triggered, because an irqfd only ever says "now": neither KVM without a
//! resample fd nor gzvm lowers the line again.

pub mod virt;

use std::ops::Range;

/// A device's registers and interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceRange {
    /// First guest physical address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl DeviceRange {
    /// The range as addresses.
    pub const fn range(self) -> Range<u64> {
        self.base..self.base + self.size
    }
}

/// 16550 UART.
pub const SERIAL: DeviceRange = DeviceRange { base: 0x3F8, size: 8 };
/// SPI number of the UART.
pub const SERIAL_SPI: u32 = 0;
/// UART input clock in Hz: a PC's.
pub const SERIAL_CLOCK_HZ: u32 = 1_843_200;

/// PL031 real-time clock.
pub const RTC: DeviceRange = DeviceRange { base: 0x2000, size: 0x1000 };
/// SPI number of the clock.
pub const RTC_SPI: u32 = 1;

/// Watchdogs of the vCPUs.
pub const WATCHDOG: DeviceRange = DeviceRange { base: 0x3000, size: 0x1000 };

/// Test device, see [`crate::devices::testdev`].
pub const TEST_DEVICE: DeviceRange = DeviceRange { base: 0x9_0000, size: 0x1000 };

/// Most virtio-mmio devices.
pub const VIRTIO_MAX: u32 = 16;
const VIRTIO_BASE: u64 = 0x0200_0000;
const VIRTIO_SIZE: u64 = 0x200;
const VIRTIO_SPI: u32 = 4;

/// Registers of virtio-mmio device `index`.
pub const fn virtio(index: u32) -> DeviceRange {
    DeviceRange { base: VIRTIO_BASE + index as u64 * VIRTIO_SIZE, size: VIRTIO_SIZE }
}

/// SPI number of virtio-mmio device `index`.
pub const fn virtio_spi(index: u32) -> u32 {
    VIRTIO_SPI + index
}

/// PCI configuration space of one bus.
pub const PCI_ECAM: DeviceRange = DeviceRange { base: 0x1000_0000, size: 1 << 20 };
/// What the PCI host bridge passes on to BARs: more than all devices have.
pub const PCI_WINDOW: DeviceRange = DeviceRange { base: 0x1010_0000, size: 1 << 20 };

/// SPI number of the doorbell of RPC channels.
pub const RPC_SPI: u32 = VIRTIO_SPI + VIRTIO_MAX;

/// SPI number of the test device.
pub const TEST_SPI: u32 = RPC_SPI + 1;

/// GICv3 distributor.
pub const GIC_DISTRIBUTOR: DeviceRange = DeviceRange { base: 0x3FFF_0000, size: 0x1_0000 };
/// Bytes of one vCPU's redistributor: RD_base and SGI_base frames (GICv3, 12.10).
pub const GIC_REDISTRIBUTOR_SIZE: u64 = 0x2_0000;

/// GICv3 redistributors of `vcpus` vCPUs, vCPU 0 first.
pub const fn gic_redistributors(vcpus: u8) -> DeviceRange {
    let size = vcpus as u64 * GIC_REDISTRIBUTOR_SIZE;
    DeviceRange { base: GIC_DISTRIBUTOR.base - size, size }
}

/// Interrupts of the GIC, private ones included: 32 SPIs, as crosvm has it.
pub const GIC_INTERRUPTS: u32 = 64;
/// SGIs and PPIs of a GIC.
pub const GIC_PRIVATE: u32 = 32;

/// PPI numbers (INTID - 16) of the architected timer: secure physical, physical, virtual, EL2.
pub const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];

/// Room for the firmware of a protected VM.
pub const PROTECTED_FIRMWARE: DeviceRange = DeviceRange { base: 0x7FC0_0000, size: 0x40_0000 };

/// Where RAM begins.
pub const RAM_BASE: u64 = 0x8000_0000;
/// The guest's physical addresses are below this: 40 bits, as crosvm's guests on gzvm have it.
pub const ADDRESS_LIMIT: u64 = 1 << 40;
/// Least RAM: a kernel of the smallest kind, and the device tree's own block.
pub const RAM_MIN: u64 = 8 << 20;
/// Most RAM.
pub const RAM_MAX: u64 = ADDRESS_LIMIT - RAM_BASE;
/// RAM comes in whole blocks of this, so that stage 2 can use them.
pub const RAM_ALIGN: u64 = 2 << 20;

/// Space for the device tree; Linux allows no more, and needs it in one such block.
pub const FDT_MAX_SIZE: u64 = 2 << 20;
/// Alignment of the initrd.
pub const INITRD_ALIGN: u64 = 16 << 20;

/// Where everything is in one of the two machines. Devices of the same kind differ in their place only,
/// but for the UART.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Map {
    /// Which UART.
    pub serial_kind: SerialKind,
    /// UART.
    pub serial: DeviceRange,
    /// SPI number of the UART.
    pub serial_spi: u32,
    /// PL031 real-time clock.
    pub rtc: DeviceRange,
    /// SPI number of the clock.
    pub rtc_spi: u32,
    /// GICv3 distributor.
    pub gic_distributor: DeviceRange,
    /// Where RAM begins.
    pub ram_base: u64,
    virtio_base: u64,
    virtio_spi: u32,
    /// PCI configuration space.
    pub pci_ecam: DeviceRange,
    /// Memory window of the PCI host bridge.
    pub pci_window: DeviceRange,
    /// SPI number of the doorbell of RPC channels.
    pub rpc_spi: u32,
}

/// The two UARTs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SerialKind {
    /// 16550, as crosvm has it.
    Ns16550,
    /// Arm's PL011, as QEMU's `virt` has it.
    Pl011,
}

/// The map at the top of this file.
pub const CROSVM: Map = Map {
    serial_kind: SerialKind::Ns16550,
    serial: SERIAL,
    serial_spi: SERIAL_SPI,
    rtc: RTC,
    rtc_spi: RTC_SPI,
    gic_distributor: GIC_DISTRIBUTOR,
    ram_base: RAM_BASE,
    virtio_base: VIRTIO_BASE,
    virtio_spi: VIRTIO_SPI,
    pci_ecam: PCI_ECAM,
    pci_window: PCI_WINDOW,
    rpc_spi: RPC_SPI,
};

impl Map {
    /// Registers of virtio-mmio device `index`.
    pub const fn virtio(&self, index: u32) -> DeviceRange {
        DeviceRange { base: self.virtio_base + index as u64 * VIRTIO_SIZE, size: VIRTIO_SIZE }
    }

    /// SPI number of virtio device `index`, whatever its transport.
    pub const fn virtio_spi(&self, index: u32) -> u32 {
        self.virtio_spi + index
    }

    /// GICv3 redistributors of `vcpus` vCPUs, vCPU 0 first.
    pub const fn gic_redistributors(&self, vcpus: u8) -> DeviceRange {
        match self.serial_kind {
            SerialKind::Ns16550 => gic_redistributors(vcpus),
            SerialKind::Pl011 => virt::gic_redistributors(vcpus),
        }
    }

    /// Whether firmware runs from flash.
    pub const fn has_flash(&self) -> bool {
        matches!(self.serial_kind, SerialKind::Pl011)
    }
}

/// Address of the device tree, in the last aligned 2 MiB of `ram_size` bytes of RAM.
pub const fn fdt_address(ram_size: u64) -> u64 {
    (RAM_BASE + ram_size - FDT_MAX_SIZE) & !(FDT_MAX_SIZE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gzvm_abi::MAX_VCPUS_EXTENDED;

    #[test]
    fn nothing_overlaps() {
        let vcpus = u8::try_from(MAX_VCPUS_EXTENDED).unwrap();
        let mut all = vec![SERIAL, RTC, TEST_DEVICE, GIC_DISTRIBUTOR, gic_redistributors(vcpus)];
        all.extend([PROTECTED_FIRMWARE, PCI_ECAM, PCI_WINDOW]);
        all.extend((0..VIRTIO_MAX).map(virtio));
        all.push(DeviceRange { base: RAM_BASE, size: RAM_MAX });
        all.sort_by_key(|device| device.base);
        for pair in all.windows(2) {
            assert!(pair[0].range().end <= pair[1].base, "{pair:x?}");
        }
    }

    #[test]
    fn every_interrupt_is_the_gics_and_used_once() {
        let mut spis = vec![SERIAL_SPI, RTC_SPI, RPC_SPI, TEST_SPI];
        spis.extend((0..VIRTIO_MAX).map(virtio_spi));
        assert!(spis.iter().all(|spi| spi + 32 < GIC_INTERRUPTS));
        spis.sort_unstable();
        spis.dedup();
        assert_eq!(spis.len(), 4 + VIRTIO_MAX as usize);
    }

    #[test]
    fn values_crosvm_has() {
        assert_eq!(gic_redistributors(2).base, 0x3FFB_0000);
        assert_eq!(fdt_address(512 << 20), 0x9FE0_0000);
        assert_eq!(virtio(3).base, 0x0200_0600);
        assert_eq!(virtio_spi(3), 7);
    }
}
