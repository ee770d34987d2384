// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The address map of QEMU's `virt` machine, as far as we have its devices: firmware such as U-Boot and
//! EDK2 is built for these addresses and looks nowhere else.
//!
//! ```text
//! 0x0000_0000  +0x400_0000       flash 0: the firmware, mapped as memory
//! 0x0400_0000  +0x400_0000       flash 1: the firmware's variables; CFI, or memory
//! 0x0800_0000  +0x1_0000         GICv3 distributor
//! 0x080A_0000  + vcpus * 0x2_0000  GICv3 redistributors
//! 0x0900_0000  +0x1000           PL011 UART                      SPI 1, edge
//! 0x0901_0000  +0x1000           PL031 real-time clock           SPI 2, edge
//! 0x0A00_0000  + n * 0x200       virtio-mmio device n, n < 16    SPI 16 + n, edge
//! 0x1000_0000  +0x10_0000        PCI memory window; interrupts of its devices as virtio-mmio's
//! 0x3F00_0000  +0x10_0000        PCI configuration space
//!                                doorbell of RPC channels        SPI 3, edge
//! 0x4000_0000  ..                RAM: device tree first, the rest is the firmware's
//! ```
//!
//! The test device has the same place as in the other machine, which is inside flash 0 here; so there
//! is none.

use super::{DeviceRange, GIC_REDISTRIBUTOR_SIZE, Map, SerialKind};

/// The firmware. Each flash has 64 MiB, whatever the file's size.
pub const FIRMWARE: DeviceRange = DeviceRange { base: 0, size: 64 << 20 };
/// The variables.
pub const VARIABLES: DeviceRange = DeviceRange { base: 0x0400_0000, size: 64 << 20 };
const REDISTRIBUTORS: u64 = 0x080A_0000;

/// The map.
pub const VIRT: Map = Map {
    serial_kind: SerialKind::Pl011,
    serial: DeviceRange { base: 0x0900_0000, size: 0x1000 },
    serial_spi: 1,
    rtc: DeviceRange { base: 0x0901_0000, size: 0x1000 },
    rtc_spi: 2,
    gic_distributor: DeviceRange { base: 0x0800_0000, size: 0x1_0000 },
    ram_base: 0x4000_0000,
    virtio_base: 0x0A00_0000,
    virtio_spi: 16,
    pci_ecam: DeviceRange { base: 0x3F00_0000, size: 1 << 20 },
    pci_window: DeviceRange { base: 0x1000_0000, size: 1 << 20 },
    rpc_spi: 3,
};

/// GICv3 redistributors of `vcpus` vCPUs, vCPU 0 first.
pub(super) const fn gic_redistributors(vcpus: u8) -> DeviceRange {
    DeviceRange { base: REDISTRIBUTORS, size: vcpus as u64 * GIC_REDISTRIBUTOR_SIZE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{ADDRESS_LIMIT, GIC_INTERRUPTS, VIRTIO_MAX};
    use gzvm_abi::MAX_VCPUS_EXTENDED;

    #[test]
    fn nothing_overlaps() {
        let redistributors = VIRT.gic_redistributors(u8::try_from(MAX_VCPUS_EXTENDED).unwrap());
        let ram = DeviceRange { base: VIRT.ram_base, size: ADDRESS_LIMIT - VIRT.ram_base };
        let mut all =
            vec![FIRMWARE, VARIABLES, VIRT.gic_distributor, redistributors, VIRT.serial, VIRT.rtc, ram];
        all.extend([VIRT.pci_ecam, VIRT.pci_window]);
        all.extend((0..VIRTIO_MAX).map(|index| VIRT.virtio(index)));
        all.sort_by_key(|device| device.base);
        for pair in all.windows(2) {
            assert!(pair[0].range().end <= pair[1].base, "{pair:x?}");
        }
    }

    #[test]
    fn every_interrupt_is_the_gics_and_used_once() {
        let mut spis = vec![VIRT.serial_spi, VIRT.rtc_spi, VIRT.rpc_spi];
        // The last virtio devices share nothing with the others: their SPIs follow one another.
        spis.extend((0..VIRTIO_MAX).map(|index| VIRT.virtio_spi(index)));
        assert!(spis.iter().all(|spi| spi + 32 < GIC_INTERRUPTS));
        spis.sort_unstable();
        spis.dedup();
        assert_eq!(spis.len(), 3 + VIRTIO_MAX as usize);
    }
}
