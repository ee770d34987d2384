// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The PCI host bridge that the VMM emulates (bindings: pci/host-generic-pci). What the payload would do with other properties, say
//! `dma-ranges`, `iommu-map` or `msi-parent`, was not thought of: so there are none.

use arrayvec::ArrayVec;
use dtoolkit::fdt::FdtNode;
use dtoolkit::{Node, Property};

use super::{Device, Range, one_range};
use crate::broken::{Mistake, broken};

/// `compatible` of the bridge.
pub(super) const BRIDGE: &str = "pci-host-ecam-generic";
/// The kind of device that its window is, where the payload puts registers.
const WINDOW: &str = "pci-window";
/// What says no more than where interrupts come out, and that caches are coherent.
const PLAIN: [&str; 9] = [
    "device_type",
    "reg",
    "#address-cells",
    "#size-cells",
    "#interrupt-cells",
    "interrupt-map-mask",
    "interrupt-map",
    "dma-coherent",
    "memory-region",
];
/// phys.hi of memory of 32 bits that is not prefetchable (IEEE 1275's binding for PCI, section 2.2.1.1).
const MEMORY: u32 = 0x0200_0000;

/// The bridge's configuration space, and its window. None, if the node says anything else, or more.
pub(super) fn read(node: &FdtNode<'_>) -> Option<ArrayVec<Device, 2>> {
    let mut window = None;
    for property in node.properties() {
        let value = property.value_as::<&[u8]>().ok()?;
        match property.name() {
            "compatible" if value.strip_suffix(&[0]) == Some(BRIDGE.as_bytes()) => {}
            "bus-range" if value == [0; 8] => {}
            "ranges" => window = Some(one_window(value)?),
            name if PLAIN.contains(&name) => {}
            _ if broken(Mistake::AnyBridge) => {}
            _ => return None,
        }
    }
    let bridge = Device { kind: BRIDGE, registers: one_range(node)? };
    Some(ArrayVec::from([bridge, Device { kind: WINDOW, registers: window? }]))
}

/// `ranges`, if it is one window that has the same addresses on both sides.
fn one_window(value: &[u8]) -> Option<Range> {
    let value: &[u8; 28] = value.try_into().ok()?;
    let (kind, addresses) = value.split_first_chunk::<4>()?;
    let number = |at: usize| {
        addresses.get(at..).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_be_bytes(*bytes))
    };
    let (bus, cpu, size) = (number(0)?, number(8)?, number(16)?);
    if u32::from_be_bytes(*kind) != MEMORY || bus != cpu {
        return None;
    }
    Range::new(cpu, size)
}
