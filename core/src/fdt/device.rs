// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What devices are judged by, read in one pass over a node's properties: to look up each by its name was most of a boot.

use dtoolkit::fdt::{FdtNode, FdtProperty};
use dtoolkit::{Node, Property};

use super::machine::{Region, regions, strings, u32_at};

/// A node, and its properties that say what it is and whom its memory accesses pass.
pub(super) struct Device<'n, 'a> {
    pub node: &'n FdtNode<'a>,
    compatible: Option<FdtProperty<'a>>,
    status: Option<FdtProperty<'a>>,
    /// `iommus`.
    pub iommus: Option<FdtProperty<'a>>,
    /// `iommu-map`.
    pub iommu_map: Option<FdtProperty<'a>>,
    /// Whether `dma-coherent` is there.
    pub dma_coherent: bool,
}

impl<'n, 'a> Device<'n, 'a> {
    pub fn of(node: &'n FdtNode<'a>) -> Self {
        let mut device =
            Self { node, compatible: None, status: None, iommus: None, iommu_map: None, dma_coherent: false };
        for property in node.properties() {
            match property.name() {
                "compatible" => device.compatible = Some(property),
                "status" => device.status = Some(property),
                "iommus" => device.iommus = Some(property),
                "iommu-map" => device.iommu_map = Some(property),
                "dma-coherent" => device.dma_coherent = true,
                _ => {}
            }
        }
        device
    }

    /// Whether `name` is one of its `compatible` strings.
    pub fn is(&self, name: &str) -> bool {
        self.compatible.is_some_and(|p| p.value().split(|b| *b == 0).any(|s| s == name.as_bytes()))
    }

    /// Whether it is not to be used.
    pub fn disabled(&self) -> bool {
        self.status.is_some_and(|p| !strings(p.value()).any(|s| s == "okay" || s == "ok"))
    }

    /// The first cell of a property.
    pub fn u32(&self, name: &str) -> Option<u32> {
        u32_at(self.node.property(name)?.value(), 0)
    }

    /// `reg`.
    pub fn regions(&self) -> impl Iterator<Item = Region> + use<'a> {
        regions(self.node)
    }
}

/// Calls `f` for every node of the tree, parents first. Bounded by the blob's size; trees deeper
/// than `depth` are cut.
pub(super) fn walk<'a>(node: FdtNode<'a>, depth: u32, f: &mut dyn FnMut(&Device<'_, 'a>)) {
    f(&Device::of(&node));
    if let Some(depth) = depth.checked_sub(1) {
        for child in node.children() {
            walk(child, depth, f);
        }
    }
}
