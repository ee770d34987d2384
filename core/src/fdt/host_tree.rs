// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device tree that the host VM gets: the machine's, less the hypervisor's memory and the boot
//! modules, plus the node that a GenieZone driver looks for.

use arrayvec::ArrayString;
use core::fmt::Write;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::dma::Dma;
use super::machine::{HostImage, Region};
use super::writer::{NoSpace, Writer};

/// Nodes deeper than this are left out.
const MAX_DEPTH: u32 = 16;

/// Writes the host's tree into `buffer` and returns the bytes used. It is `source` with these
/// differences:
///
/// - `hypervisor` ranges stand in `/reserved-memory` with `no-map`;
/// - `/chosen` has the host's boot arguments and initrd, and no boot modules;
/// - `/hypervisor` (`mediatek,geniezone`) is there; another hypervisor's node is not;
/// - SMMUs, what names them, and bus masters behind none are left out (`dma`).
pub fn write(
    source: Fdt<'_>,
    buffer: &mut [u8],
    host: &HostImage<'_>,
    hypervisor: &[Region],
    dma: &Dma,
) -> Result<usize, NoSpace> {
    let reservations = source.memory_reservations().map(|r| (r.address(), r.size()));
    let mut w = Writer::new(buffer, reservations)?;
    let root = source.root();
    w.begin_node("")?;
    for p in root.properties() {
        w.property(p.name(), p.value())?;
    }
    w.begin_node("hypervisor")?;
    w.property("compatible", b"mediatek,geniezone\0")?;
    w.end_node()?;

    let mut seen_chosen = false;
    let mut seen_reserved = false;
    for child in root.children() {
        match child.name() {
            "chosen" => {
                seen_chosen = true;
                chosen(&mut w, Some(child), host, dma)?;
            }
            "reserved-memory" => {
                seen_reserved = true;
                reserved(&mut w, Some(child), hypervisor, dma)?;
            }
            "hypervisor" => {}
            _ => copy(&mut w, child, dma, MAX_DEPTH)?,
        }
    }
    if !seen_chosen {
        chosen(&mut w, None, host, dma)?;
    }
    if !seen_reserved {
        reserved(&mut w, None, hypervisor, dma)?;
    }
    w.end_node()?;
    w.finish()
}

fn copy(w: &mut Writer<'_>, node: FdtNode<'_>, dma: &Dma, depth: u32) -> Result<(), NoSpace> {
    let Some(depth) = depth.checked_sub(1).filter(|_| !dma.leaves_out(&node)) else { return Ok(()) };
    w.begin_node(node.name())?;
    for p in node.properties().filter(|p| !dma.leaves_out_property(p.name(), p.value())) {
        w.property(p.name(), p.value())?;
    }
    for child in node.children() {
        copy(w, child, dma, depth)?;
    }
    w.end_node()
}

fn chosen(
    w: &mut Writer<'_>,
    old: Option<FdtNode<'_>>,
    host: &HostImage<'_>,
    dma: &Dma,
) -> Result<(), NoSpace> {
    const OURS: [&str; 3] = ["bootargs", "linux,initrd-start", "linux,initrd-end"];
    w.begin_node("chosen")?;
    if let Some(old) = old {
        for p in old.properties().filter(|p| !OURS.contains(&p.name())) {
            w.property(p.name(), p.value())?;
        }
    }
    let mut bootargs = arrayvec::ArrayVec::<u8, 2048>::new();
    bootargs.try_extend_from_slice(host.bootargs.as_bytes()).map_err(|_| NoSpace)?;
    bootargs.try_push(0).map_err(|_| NoSpace)?;
    w.property("bootargs", &bootargs)?;
    if let Some(initrd) = host.initrd {
        w.property("linux,initrd-start", &initrd.base.to_be_bytes())?;
        w.property("linux,initrd-end", &initrd.end().to_be_bytes())?;
    }
    if let Some(old) = old {
        for child in old.children().filter(|c| c.name_without_address() != "module") {
            copy(w, child, dma, MAX_DEPTH)?;
        }
    }
    w.end_node()
}

fn reserved(
    w: &mut Writer<'_>,
    old: Option<FdtNode<'_>>,
    ranges: &[Region],
    dma: &Dma,
) -> Result<(), NoSpace> {
    w.begin_node("reserved-memory")?;
    // New children follow the cell counts that the old node has.
    let cells = |name| match old.and_then(|o| o.property(name)) {
        Some(p) => p.value().last().copied().unwrap_or(2),
        None if old.is_some() => 1,
        None => 2,
    };
    let (address_cells, size_cells) = (cells("#address-cells"), cells("#size-cells"));
    match old {
        Some(old) => {
            for p in old.properties() {
                w.property(p.name(), p.value())?;
            }
        }
        None => {
            w.property("#address-cells", &2u32.to_be_bytes())?;
            w.property("#size-cells", &2u32.to_be_bytes())?;
            w.property("ranges", &[])?;
        }
    }
    for range in ranges {
        let mut name = ArrayString::<32>::new();
        write!(name, "gzvm@{:x}", range.base).map_err(|_| NoSpace)?;
        w.begin_node(&name)?;
        let mut reg = arrayvec::ArrayVec::<u8, 16>::new();
        for (value, cells) in [(range.base, address_cells), (range.size, size_cells)] {
            let full = value.to_be_bytes();
            let bytes = match (cells, u32::try_from(value)) {
                (2, _) => full.get(..),
                (1, Ok(_)) => full.get(4..),
                _ => None,
            };
            reg.try_extend_from_slice(bytes.ok_or(NoSpace)?).map_err(|_| NoSpace)?;
        }
        w.property("reg", &reg)?;
        w.property("no-map", &[])?;
        w.end_node()?;
    }
    if let Some(old) = old {
        for child in old.children() {
            copy(w, child, dma, MAX_DEPTH)?;
        }
    }
    w.end_node()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdt::machine::{Machine, UartKind};

    fn sample(buffer: &mut [u8]) -> usize {
        let mut w = Writer::new(buffer, [(0x1000, 0x2000)].into_iter()).unwrap();
        w.begin_node("").unwrap();
        w.property("#address-cells", &2u32.to_be_bytes()).unwrap();
        w.property("#size-cells", &2u32.to_be_bytes()).unwrap();
        w.property("model", b"test,board\0").unwrap();
        w.begin_node("memory@40000000").unwrap();
        w.property("device_type", b"memory\0").unwrap();
        let reg: Vec<u8> = [0x4000_0000u64, 0x8000_0000].iter().flat_map(|v| v.to_be_bytes()).collect();
        w.property("reg", &reg).unwrap();
        w.end_node().unwrap();
        w.begin_node("pl011@9000000").unwrap();
        w.property("compatible", b"arm,pl011\0arm,primecell\0").unwrap();
        let reg: Vec<u8> = [0x900_0000u64, 0x1000].iter().flat_map(|v| v.to_be_bytes()).collect();
        w.property("reg", &reg).unwrap();
        w.end_node().unwrap();
        w.begin_node("smmu@9050000").unwrap();
        w.property("compatible", b"arm,smmu-v3\0").unwrap();
        w.property("phandle", &7u32.to_be_bytes()).unwrap();
        let reg: Vec<u8> = [0x905_0000u64, 0x2_0000].iter().flat_map(|v| v.to_be_bytes()).collect();
        w.property("reg", &reg).unwrap();
        w.end_node().unwrap();
        w.begin_node("bus").unwrap();
        w.begin_node("dma").unwrap();
        w.property("iommus", &[0, 0, 0, 7, 0, 0, 0, 1]).unwrap();
        w.property("dma-coherent", &[]).unwrap();
        w.end_node().unwrap();
        w.begin_node("fw-cfg").unwrap();
        w.property("dma-coherent", &[]).unwrap();
        w.end_node().unwrap();
        w.end_node().unwrap();
        w.begin_node("psci").unwrap();
        w.property("compatible", b"arm,psci-1.0\0arm,psci-0.2\0").unwrap();
        w.property("method", b"smc\0").unwrap();
        w.end_node().unwrap();
        w.begin_node("chosen").unwrap();
        w.property("stdout-path", b"/pl011@9000000\0").unwrap();
        w.begin_node("module@50000000").unwrap();
        w.property("compatible", b"multiboot,module\0multiboot,kernel\0").unwrap();
        let reg: Vec<u8> = [0x5000_0000u64, 0x100_0000].iter().flat_map(|v| v.to_be_bytes()).collect();
        w.property("reg", &reg).unwrap();
        w.property("bootargs", b"console=ttyAMA0\0").unwrap();
        w.end_node().unwrap();
        w.end_node().unwrap();
        w.end_node().unwrap();
        w.finish().unwrap()
    }

    #[test]
    fn the_host_sees_no_hypervisor_memory_and_no_modules() {
        let mut source = vec![0; 8192];
        let len = sample(&mut source);
        let fdt = Fdt::new(&source[..len]).unwrap();
        let machine = Machine::from_fdt(fdt);
        assert_eq!(machine.model, "test,board");
        assert_eq!(machine.uart.unwrap().kind, UartKind::Pl011);
        let host = machine.host.unwrap();
        assert_eq!(host.bootargs, "console=ttyAMA0");
        assert_eq!(host.kernel, Region { base: 0x5000_0000, size: 0x100_0000 });
        assert_eq!(machine.reserved.as_slice(), &[Region { base: 0x1000, size: 0x2000 }]);

        let mut out = vec![0; 16384];
        let hyp = [Region { base: 0x7F00_0000, size: 0x100_0000 }];
        let len = write(fdt, &mut out, &host, &hyp, &machine.dma).unwrap();
        let edited = Fdt::new(&out[..len]).unwrap();
        let again = Machine::from_fdt(edited);
        assert!(again.host.is_none());
        assert!(again.reserved.contains(&hyp[0]));
        let node = edited.find_node("/hypervisor").unwrap();
        assert_eq!(node.property("compatible").unwrap().value(), b"mediatek,geniezone\0");
        assert_eq!((machine.dma.smmus.len(), again.dma.smmus.len()), (1, 0));
        let guarded = edited.find_node("/bus/dma").unwrap();
        assert!(guarded.property("dma-coherent").is_some() && guarded.property("iommus").is_none());
        assert!(edited.find_node("/bus/fw-cfg").is_none());
        let chosen = edited.find_node("/chosen").unwrap();
        assert_eq!(chosen.property("bootargs").unwrap().value(), b"console=ttyAMA0\0");
        assert!(edited.find_node("/reserved-memory/gzvm@7f000000").unwrap().property("no-map").is_some());
    }

    #[test]
    fn too_small_a_buffer_is_an_error_at_every_size() {
        let mut source = vec![0; 8192];
        let len = sample(&mut source);
        let fdt = Fdt::new(&source[..len]).unwrap();
        let host = HostImage { kernel: Region::default(), initrd: None, bootargs: "" };
        for size in 0..400 {
            assert_eq!(write(fdt, &mut vec![0; size], &host, &[], &Dma::default()), Err(NoSpace));
        }
    }
}
