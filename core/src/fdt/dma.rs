// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who reaches memory besides the CPUs: SMMUs, the streams of the devices behind them, and bus masters behind none.
//!
//! Bindings: `arm,smmu-v3`; `iommus` = (SMMU, StreamID)...; `iommu-map` = (first requester ID, SMMU, first StreamID, count)...
//! That a node is a bus master is told by `iommus`, `iommu-map` or `dma-coherent`; a master that has none of them is not seen, but for
//! GICv3 ITSs (`arm,gic-v3-its`, named by `msi-map` and `msi-parent`).

use arrayvec::ArrayVec;
use dtoolkit::Property;
use dtoolkit::fdt::{Fdt, FdtNode};

use super::device::{Device, walk};
use super::machine::{Region, u32_at};
use crate::addr::PAGE_SIZE;
use crate::smmu::registers::FRAME_SIZE;
use crate::smmu::stream_table::{StreamRange, Streams};

/// Most SMMUs.
pub const MAX_SMMUS: usize = 8;
/// Most runs of pages with registers of bus masters behind no SMMU.
pub const MAX_UNGUARDED: usize = 64;
/// Most ITSs.
const MAX_ITS: usize = 16;
/// Properties that name an SMMU.
const REFERENCES: [&str; 3] = ["iommus", "iommu-map", "iommu-map-mask"];

/// An SMMUv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmmuNode {
    /// Its registers.
    pub region: Region,
    phandle: Option<u32>,
    /// The streams of the devices behind it.
    pub streams: Streams,
}

/// DMA, as the device tree tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dma {
    /// The SMMUs.
    pub smmus: ArrayVec<SmmuNode, MAX_SMMUS>,
    /// Pages with registers of bus masters behind no SMMU.
    pub unguarded: ArrayVec<Region, MAX_UNGUARDED>,
    /// phandles of ITSs, which are such bus masters.
    its: ArrayVec<u32, MAX_ITS>,
    /// There is more of something than the lists hold.
    pub truncated: bool,
}

impl Dma {
    /// Reads the tree.
    pub fn from_fdt(fdt: Fdt<'_>) -> Self {
        let mut dma = Self::default();
        walk(fdt.root(), 8, &mut |node| {
            if is_its(node)
                && let Some(phandle) = node.u32("phandle")
            {
                dma.truncated |= dma.its.try_push(phandle).is_err();
            }
            if is_smmu(node)
                && !node.disabled()
                && let Some(region) = node.regions().next()
            {
                let region = Region { base: region.base, size: region.size.max(FRAME_SIZE) };
                let phandle = node.u32("phandle");
                let smmu = SmmuNode { region, phandle, streams: Streams::default() };
                dma.truncated |= dma.smmus.try_push(smmu).is_err();
            }
        });
        walk(fdt.root(), 8, &mut |node| dma.master(node));
        dma
    }

    /// What the host may not touch: the SMMUs, and, if there are any, bus masters behind none.
    pub fn withheld(&self) -> impl Iterator<Item = Region> {
        let masters = self.unguarded.iter().filter(|_| !self.smmus.is_empty());
        self.smmus.iter().map(|s| s.region).chain(masters.copied())
    }

    /// Whether the host's tree goes without this node.
    pub(super) fn leaves_out(&self, node: &FdtNode<'_>) -> bool {
        if self.smmus.is_empty() {
            return false;
        }
        let device = Device::of(node);
        is_smmu(&device) || self.is_unguarded(&device)
    }

    /// Whether the host's tree goes without this property, for it names an SMMU or ITS that is not there.
    pub(super) fn leaves_out_property(&self, name: &str, value: &[u8]) -> bool {
        let named = |cell| u32_at(value, cell).is_some_and(|phandle| self.its.contains(&phandle));
        let its = match name {
            "msi-map" => named(1),
            "msi-parent" => named(0),
            _ => false,
        };
        !self.smmus.is_empty() && (its || REFERENCES.contains(&name))
    }

    fn master(&mut self, node: &Device<'_, '_>) {
        if node.disabled() || is_smmu(node) {
            return;
        }
        streams(node, &mut |phandle, streams| {
            if let Some(smmu) = self.smmus.iter_mut().find(|s| s.phandle == Some(phandle)) {
                self.truncated |= smmu.streams.add(streams).is_err();
            }
        });
        if self.is_unguarded(node) {
            for region in node.regions() {
                let base = region.base & !PAGE_SIZE.wrapping_sub(1);
                let end = region.end().checked_next_multiple_of(PAGE_SIZE).unwrap_or(base);
                self.unguarded(Region { base, size: end.saturating_sub(base) });
            }
        }
    }

    /// A bus master that is behind none of the SMMUs. What another kind of IOMMU does for it is the host's business.
    fn is_unguarded(&self, node: &Device<'_, '_>) -> bool {
        let mut guarded = is_smmu(node);
        streams(node, &mut |phandle, _| guarded |= self.smmus.iter().any(|s| s.phandle == Some(phandle)));
        !guarded && (is_its(node) || node.dma_coherent || node.iommus.is_some() || node.iommu_map.is_some())
    }

    /// Adds pages; many small devices share one, and stand side by side.
    fn unguarded(&mut self, pages: Region) {
        if pages.size == 0 || self.unguarded.iter().any(|known| known.contains(&pages)) {
            return;
        }
        match self.unguarded.iter_mut().find(|known| known.end() == pages.base || known.base == pages.end()) {
            Some(known) => {
                let base = known.base.min(pages.base);
                *known = Region { base, size: known.end().max(pages.end()).saturating_sub(base) };
            }
            None => self.truncated |= self.unguarded.try_push(pages).is_err(),
        }
    }
}

fn is_smmu(node: &Device<'_, '_>) -> bool {
    node.is("arm,smmu-v3")
}

fn is_its(node: &Device<'_, '_>) -> bool {
    node.is("arm,gic-v3-its")
}

/// The IOMMU's phandle and the streams of each entry of `iommus` and `iommu-map`.
fn streams(node: &Device<'_, '_>, f: &mut dyn FnMut(u32, StreamRange)) {
    // Cells of an entry, and where in it stand phandle, first stream, and count.
    for (property, cells, phandle, first, count) in
        [(node.iommus, 2, 0, 1, None), (node.iommu_map, 4, 1, 2, Some(3))]
    {
        let Some(property) = property else { continue };
        for entry in property.value().chunks_exact(usize::saturating_mul(cells, 4)) {
            let count = count.map_or(Some(1), |at| u32_at(entry, at));
            if let (Some(phandle), Some(first), Some(count)) =
                (u32_at(entry, phandle), u32_at(entry, first), count)
            {
                f(phandle, StreamRange { first, count });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdt::writer::Writer;
    use dtoolkit::Node;

    fn words(cells: &[u32]) -> Vec<u8> {
        cells.iter().flat_map(|c| c.to_be_bytes()).collect()
    }

    /// As QEMU's `virt` has it: SMMU behind the PCI host bridge in the tree, fw_cfg and virtio-mmio behind none.
    fn tree(smmu: bool) -> Vec<u8> {
        let mut buffer = vec![0; 8192];
        let mut w = Writer::new(&mut buffer, [].into_iter()).unwrap();
        w.begin_node("").unwrap();
        w.property("#address-cells", &words(&[2])).unwrap();
        w.property("#size-cells", &words(&[2])).unwrap();
        w.begin_node("pcie@10000000").unwrap();
        w.property("iommu-map", &words(&[0, 7, 0, 0x1_0000])).unwrap();
        w.property("msi-map", &words(&[0, 6, 0, 0x1_0000])).unwrap();
        w.property("dma-coherent", &[]).unwrap();
        w.property("reg", &words(&[0x40, 0x1000_0000, 0, 0x1000_0000])).unwrap();
        w.end_node().unwrap();
        w.begin_node("its@8080000").unwrap();
        w.property("compatible", b"arm,gic-v3-its\0").unwrap();
        w.property("phandle", &words(&[6])).unwrap();
        w.property("reg", &words(&[0, 0x808_0000, 0, 0x2_0000])).unwrap();
        w.end_node().unwrap();
        if smmu {
            w.begin_node("smmuv3@9050000").unwrap();
            w.property("compatible", b"arm,smmu-v3\0").unwrap();
            w.property("phandle", &words(&[7])).unwrap();
            w.property("dma-coherent", &[]).unwrap();
            w.property("reg", &words(&[0, 0x905_0000, 0, 0x2_0000])).unwrap();
            w.end_node().unwrap();
        }
        w.begin_node("dma@9100000").unwrap();
        w.property("iommus", &words(&[7, 0x2_0005, 8, 3])).unwrap();
        w.property("reg", &words(&[0, 0x910_0000, 0, 0x1000])).unwrap();
        w.end_node().unwrap();
        w.begin_node("foreign").unwrap();
        w.property("iommus", &words(&[3, 1])).unwrap();
        w.property("reg", &words(&[0, 0x930_0800, 0, 0x1000])).unwrap();
        w.end_node().unwrap();
        for base in [0x902_0000, 0xA00_0000, 0xA00_0200, 0xA00_1000] {
            w.begin_node(&format!("dev@{base:x}")).unwrap();
            w.property("dma-coherent", &[]).unwrap();
            w.property("reg", &words(&[0, base, 0, 0x200])).unwrap();
            w.end_node().unwrap();
        }
        w.begin_node("uart@9000000").unwrap();
        w.property("reg", &words(&[0, 0x900_0000, 0, 0x1000])).unwrap();
        w.end_node().unwrap();
        w.end_node().unwrap();
        let used = w.finish().unwrap();
        buffer.truncate(used);
        buffer
    }

    #[test]
    fn smmu_its_streams_and_who_is_behind_none() {
        let blob = tree(true);
        let dma = Dma::from_fdt(Fdt::new(&blob).unwrap());
        assert_eq!(dma.smmus.len(), 1);
        assert_eq!(dma.smmus[0].region, Region { base: 0x905_0000, size: 0x2_0000 });
        assert_eq!(dma.smmus[0].streams.count(), 0x1_0001);
        let unguarded =
            [(0x808_0000, 0x2_0000), (0x930_0000, 0x2000), (0x902_0000, 0x1000), (0xA00_0000, 0x2000)]
                .map(|(base, size)| Region { base, size });
        assert_eq!(dma.unguarded.as_slice(), &unguarded);
        assert_eq!(dma.withheld().count(), 5);
        assert!(!dma.truncated);
    }

    #[test]
    fn without_an_smmu_nothing_is_withheld() {
        let blob = tree(false);
        let dma = Dma::from_fdt(Fdt::new(&blob).unwrap());
        assert_eq!(dma.withheld().count(), 0);
        let fdt = Fdt::new(&blob).unwrap();
        assert!(fdt.root().children().all(|n| !dma.leaves_out(&n)));
        assert!(!dma.leaves_out_property("iommu-map", &[]));
    }

    #[test]
    fn the_host_sees_neither_smmu_nor_references_to_it() {
        let blob = tree(true);
        let fdt = Fdt::new(&blob).unwrap();
        let dma = Dma::from_fdt(fdt);
        let left: Vec<_> =
            fdt.root().children().filter(|n| !dma.leaves_out(n)).map(|n| n.name().to_owned()).collect();
        assert_eq!(left, ["pcie@10000000", "dma@9100000", "uart@9000000"]);
        let out = |name, cells: &[u32]| dma.leaves_out_property(name, &words(cells));
        assert!(out("iommu-map", &[]) && out("iommus", &[]));
        assert!(out("msi-map", &[0, 6, 0, 8]) && out("msi-parent", &[6]));
        assert!(!out("msi-map", &[6, 9, 0, 8]) && !out("msi-parent", &[9]) && !out("reg", &[6, 6]));
    }
}
