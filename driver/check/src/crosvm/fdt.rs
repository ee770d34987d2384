// SPDX-License-Identifier: GPL-2.0-only
//! The device tree, with the nodes and values that crosvm gives its guests on arm64.

use vm_fdt::{Error, FdtWriter};

use super::{GIC_DIST, GIC_DIST_SIZE, GIC_REDIST_SIZE, HIGH, PCI_INTA, RAM, RAM_SIZE};
use super::{RTC, SERIAL_1_3, SERIAL_2_4, pci};

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 24;
const PHANDLE_CPU0: u32 = 0x100;
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;
const LEVEL_LOW: u32 = 8;
/// 64-bit memory space, in the first cell of a PCI address.
const PCI_MEMORY_64: u32 = 3 << 24;
/// End of the guest's physical addresses.
const ADDRESS_LIMIT: u64 = 1 << 40;

/// The tree of a VM with this many vCPUs, its initrd between these addresses.
pub fn build(vcpus: u32, initrd: (u64, u64)) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    chosen(&mut fdt, initrd)?;
    let config = fdt.begin_node("config")?;
    fdt.property_u32("kernel-address", RAM as u32)?;
    fdt.property_u32("kernel-size", (initrd.0 - RAM) as u32)?;
    fdt.end_node(config)?;
    let memory = fdt.begin_node("memory")?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM, RAM_SIZE])?;
    fdt.end_node(memory)?;
    cpus(&mut fdt, vcpus)?;
    gic(&mut fdt, vcpus)?;
    timer(&mut fdt, vcpus)?;
    for (address, irq) in [(0x3F8, SERIAL_1_3), (0x2F8, SERIAL_2_4), (0x3E8, SERIAL_1_3), (0x2E8, SERIAL_2_4)]
    {
        serial(&mut fdt, address, irq)?;
    }
    let psci = fdt.begin_node("psci")?;
    fdt.property_string("compatible", "arm,psci-0.2")?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(psci)?;
    pci_host(&mut fdt)?;
    rtc(&mut fdt)?;
    watchdog(&mut fdt)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, (start, end): (u64, u64)) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_u32("linux,pci-probe-only", 1)?;
    fdt.property_string("bootargs", "panic=-1 console=ttyS0 quiet cryptomgr.notests")?;
    fdt.property_string("stdout-path", "/U6_16550A@3f8")?;
    // Not random: a run that fails can be run again.
    fdt.property_u64("kaslr-seed", 0x5EED_0F0D_D0F0_DEE5)?;
    fdt.property("rng-seed", &[0x5A; 256])?;
    fdt.property_u64("linux,initrd-start", start)?;
    fdt.property_u64("linux,initrd-end", end)?;
    fdt.end_node(node)
}

fn cpus(fdt: &mut FdtWriter, vcpus: u32) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..vcpus {
        let cpu = fdt.begin_node(&format!("cpu@{id:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        if vcpus > 1 {
            fdt.property_string("enable-method", "psci")?;
        }
        fdt.property_u32("reg", id)?;
        fdt.property_phandle(PHANDLE_CPU0 + id)?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, vcpus: u32) -> Result<(), Error> {
    let size = GIC_REDIST_SIZE * u64::from(vcpus);
    let node = fdt.begin_node("intc")?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_array_u64("reg", &[GIC_DIST, GIC_DIST_SIZE, GIC_DIST - size, size])?;
    fdt.property_phandle(PHANDLE_GIC)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.end_node(node)
}

/// The mask of CPUs in the flags is GICv2's; a GICv3's driver does not look at it.
fn timer(fdt: &mut FdtWriter, vcpus: u32) -> Result<(), Error> {
    let mask = ((1 << vcpus) - 1) << 8 & 0xFF00;
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let cells: Vec<u32> = [13, 14, 11, 10].into_iter().flat_map(|ppi| [PPI, ppi, mask | LEVEL_LOW]).collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn serial(fdt: &mut FdtWriter, address: u64, irq: u32) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("U6_16550A@{address:x}"))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[address, 8])?;
    fdt.property_u32("clock-frequency", 1_843_200)?;
    fdt.property_array_u32("interrupts", &[SPI, irq, EDGE_RISING])?;
    fdt.end_node(node)
}

fn pci_host(fdt: &mut FdtWriter) -> Result<(), Error> {
    let range = |start: u64, size: u64| {
        let [high, low] = [(start >> 32) as u32, start as u32];
        [PCI_MEMORY_64, high, low, high, low, (size >> 32) as u32, size as u32]
    };
    let ranges = [range(pci::WINDOW, pci::WINDOW_SIZE), range(HIGH, ADDRESS_LIMIT - HIGH)].concat();
    let node = fdt.begin_node("pci")?;
    fdt.property_string("compatible", "pci-host-cam-generic")?;
    fdt.property_string("device_type", "pci")?;
    fdt.property_array_u32("ranges", &ranges)?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_array_u64("reg", &[pci::CONFIG, pci::CONFIG_SIZE])?;
    fdt.property_u32("#interrupt-cells", 1)?;
    // Device and pin, then the GIC, two cells of an address it has not, and the interrupt.
    let inta = [pci::DEVICE << 11, 0, 0, 1, PHANDLE_GIC, 0, 0, SPI, PCI_INTA, LEVEL_HIGH];
    fdt.property_array_u32("interrupt-map", &inta)?;
    fdt.property_array_u32("interrupt-map-mask", &[0xF800, 0, 0, 7])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

fn rtc(fdt: &mut FdtWriter) -> Result<(), Error> {
    let clock = fdt.begin_node("pclk@3M")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("clock-frequency", 3_141_592)?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(clock)?;
    let node = fdt.begin_node("rtc@2000")?;
    fdt.property_string("compatible", "arm,primecell")?;
    // PL030.
    fdt.property_u32("arm,primecell-periphid", 0x0004_1030)?;
    fdt.property_array_u64("reg", &[0x2000, 0x1000])?;
    fdt.property_array_u32("interrupts", &[SPI, RTC, LEVEL_HIGH])?;
    fdt.property_u32("clocks", PHANDLE_CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

/// Its interrupt in the tree is a PPI, though the irqfd is SPI 15.
fn watchdog(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("vmwdt@3000")?;
    fdt.property_string("compatible", "qemu,vcpu-stall-detector")?;
    fdt.property_array_u64("reg", &[0x3000, 0x1000])?;
    fdt.property_u32("clock-frequency", 2)?;
    fdt.property_u32("timeout-sec", 20)?;
    fdt.property_array_u32("interrupts", &[PPI, 15, EDGE_RISING])?;
    fdt.end_node(node)
}
