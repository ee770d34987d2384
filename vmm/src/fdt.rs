// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's device tree: what [`crate::layout`] says, in the form the guest reads.

use vm_fdt::{Error, FdtWriter};

use crate::cli::run::VirtioTransport;
use crate::devices::virtio::pci;
use crate::devices::watchdog::{CLOCK_HZ, TIMEOUT_SECONDS};
use crate::layout::{self, DeviceRange, Map, SerialKind, virt};
use crate::rpc::options::Place;

/// What varies from guest to guest.
#[derive(Clone, Debug)]
pub struct Config<'a> {
    /// Which machine.
    pub map: &'a Map,
    /// The firmware's variables are in CFI flash.
    pub flash: bool,
    /// vCPUs.
    pub vcpus: u8,
    /// Bytes of RAM.
    pub ram_size: u64,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Initrd: first address and length.
    pub initrd: Option<(u64, u64)>,
    /// Memory that a protected guest shares with the host: first address and length.
    pub shared: Option<(u64, u64)>,
    /// Number of virtio devices.
    pub virtio_devices: u32,
    /// What they are behind.
    pub transport: VirtioTransport,
    /// Its channels.
    pub rpc: &'a [Place],
    /// Entropy for the guest: 8 bytes place the kernel, the rest seeds its random numbers.
    pub seed: [u8; 64],
}

const PHANDLE_GIC: u32 = 1;
const PHANDLE_CLOCK: u32 = 2;
const PHANDLE_POOL: u32 = 3;

// Cells of an interrupt specifier (GICv3 binding).
const GIC_SPI: u32 = 0;
const GIC_PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_LOW: u32 = 8;

/// Writes the tree.
///
/// # Errors
/// A command line with a NUL byte in it.
pub fn build(config: &Config) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("interrupt-parent", PHANDLE_GIC)?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "GenieZone virtual machine")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    chosen(&mut fdt, config)?;
    memory(&mut fdt, config.map, config.ram_size)?;
    if let Some(range) = config.shared {
        shared_memory(&mut fdt, range)?;
    }
    cpus(&mut fdt, config.vcpus)?;
    gic(&mut fdt, config.map, config.vcpus)?;
    timer(&mut fdt)?;
    psci(&mut fdt)?;
    clock(&mut fdt)?;
    serial(&mut fdt, config.map)?;
    rtc(&mut fdt, config.map)?;
    if config.flash {
        flash(&mut fdt)?;
    }
    if !config.map.has_flash() {
        watchdog(&mut fdt)?;
        test_device(&mut fdt)?;
    }
    match config.transport {
        VirtioTransport::Mmio => {
            for index in 0..config.virtio_devices {
                virtio(&mut fdt, config, index)?;
            }
        }
        VirtioTransport::Pci => pci(&mut fdt, config)?,
    }
    if !config.rpc.is_empty() {
        rpc(&mut fdt, config)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn reg(fdt: &mut FdtWriter, device: DeviceRange) -> Result<(), Error> {
    fdt.property_array_u64("reg", &[device.base, device.size])
}

fn chosen(fdt: &mut FdtWriter, config: &Config) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", config.cmdline)?;
    fdt.property_string("stdout-path", &format!("/{}", serial_name(config.map)))?;
    if let Some((start, size)) = config.initrd {
        fdt.property_u64("linux,initrd-start", start)?;
        fdt.property_u64("linux,initrd-end", start.saturating_add(size))?;
    }
    let (kaslr, rng) = config.seed.split_at(8);
    fdt.property("kaslr-seed", kaslr)?;
    fdt.property("rng-seed", rng)?;
    fdt.end_node(node)
}

fn memory(fdt: &mut FdtWriter, map: &Map, ram_size: u64) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("memory@{:x}", map.ram_base))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[map.ram_base, ram_size])?;
    fdt.end_node(node)
}

/// Bounce buffers of a protected guest's devices (bindings: reserved-memory/shared-dma-pool).
fn shared_memory(fdt: &mut FdtWriter, (base, size): (u64, u64)) -> Result<(), Error> {
    let node = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let pool = fdt.begin_node(&format!("restricted_dma@{base:x}"))?;
    fdt.property_string("compatible", "restricted-dma-pool")?;
    fdt.property_array_u64("reg", &[base, size])?;
    fdt.property_phandle(PHANDLE_POOL)?;
    fdt.end_node(pool)?;
    fdt.end_node(node)
}

/// MPIDR_EL1's affinity fields, as both back ends make them: sixteen vCPUs in each Aff1.
const fn affinity(id: u8) -> u32 {
    (id as u32 >> 4) << 8 | id as u32 & 0xF
}

fn cpus(fdt: &mut FdtWriter, vcpus: u8) -> Result<(), Error> {
    let node = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    for id in 0..vcpus {
        let cpu = fdt.begin_node(&format!("cpu@{:x}", affinity(id)))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u32("reg", affinity(id))?;
        fdt.end_node(cpu)?;
    }
    fdt.end_node(node)
}

fn gic(fdt: &mut FdtWriter, map: &Map, vcpus: u8) -> Result<(), Error> {
    let (distributor, redistributors) = (map.gic_distributor, map.gic_redistributors(vcpus));
    let node = fdt.begin_node(&format!("intc@{:x}", distributor.base))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_array_u64(
        "reg",
        &[distributor.base, distributor.size, redistributors.base, redistributors.size],
    )?;
    fdt.property_phandle(PHANDLE_GIC)?;
    fdt.end_node(node)
}

fn timer(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let cells: Vec<u32> = layout::TIMER_PPIS.iter().flat_map(|&ppi| [GIC_PPI, ppi, LEVEL_LOW]).collect();
    fdt.property_array_u32("interrupts", &cells)?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)
}

fn psci(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    let compatible = ["arm,psci-1.0", "arm,psci-0.2"].map(String::from);
    fdt.property_string_list("compatible", compatible.into())?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)
}

/// What drives the clocks of Arm's peripherals.
fn clock(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_phandle(PHANDLE_CLOCK)?;
    fdt.end_node(node)
}

/// The UART's node: firmware looks for QEMU's name.
fn serial_name(map: &Map) -> String {
    match map.serial_kind {
        SerialKind::Ns16550 => format!("uart@{:x}", map.serial.base),
        SerialKind::Pl011 => format!("pl011@{:x}", map.serial.base),
    }
}

fn serial(fdt: &mut FdtWriter, map: &Map) -> Result<(), Error> {
    let node = fdt.begin_node(&serial_name(map))?;
    match map.serial_kind {
        SerialKind::Ns16550 => {
            fdt.property_string("compatible", "ns16550a")?;
            fdt.property_u32("clock-frequency", layout::SERIAL_CLOCK_HZ)?;
        }
        SerialKind::Pl011 => {
            let compatible = ["arm,pl011", "arm,primecell"].map(String::from);
            fdt.property_string_list("compatible", compatible.into())?;
            fdt.property_array_u32("clocks", &[PHANDLE_CLOCK, PHANDLE_CLOCK])?;
            let names = ["uartclk", "apb_pclk"].map(String::from);
            fdt.property_string_list("clock-names", names.into())?;
        }
    }
    reg(fdt, map.serial)?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, map.serial_spi, EDGE_RISING])?;
    fdt.end_node(node)
}

/// The flash for variables. That of the firmware itself is not told: nobody shall write there.
fn flash(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("flash@{:x}", virt::VARIABLES.base))?;
    fdt.property_string("compatible", "cfi-flash")?;
    reg(fdt, virt::VARIABLES)?;
    fdt.property_u32("bank-width", 4)?;
    fdt.end_node(node)
}

/// PL031, though crosvm says PL030: stock arm64 kernels have a driver for the former only.
fn rtc(fdt: &mut FdtWriter, map: &Map) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("rtc@{:x}", map.rtc.base))?;
    let compatible = ["arm,pl031", "arm,primecell"].map(String::from);
    fdt.property_string_list("compatible", compatible.into())?;
    reg(fdt, map.rtc)?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, map.rtc_spi, EDGE_RISING])?;
    fdt.property_u32("clocks", PHANDLE_CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

fn watchdog(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("vmwdt@{:x}", layout::WATCHDOG.base))?;
    fdt.property_string("compatible", "qemu,vcpu-stall-detector")?;
    reg(fdt, layout::WATCHDOG)?;
    fdt.property_u32("clock-frequency", CLOCK_HZ)?;
    fdt.property_u32("timeout-sec", TIMEOUT_SECONDS)?;
    fdt.end_node(node)
}

fn test_device(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("test@{:x}", layout::TEST_DEVICE.base))?;
    fdt.property_string("compatible", "geniezone,test-device")?;
    reg(fdt, layout::TEST_DEVICE)?;
    fdt.end_node(node)
}

fn virtio(fdt: &mut FdtWriter, config: &Config, index: u32) -> Result<(), Error> {
    let map = config.map;
    let device = map.virtio(index);
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", device.base))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    reg(fdt, device)?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, map.virtio_spi(index), EDGE_RISING])?;
    fdt.property_null("dma-coherent")?;
    if config.shared.is_some() {
        fdt.property_u32("memory-region", PHANDLE_POOL)?;
    }
    fdt.end_node(node)
}

/// The host bridge (bindings: pci/host-generic-pci). Each slot's pin A has an SPI.
fn pci(fdt: &mut FdtWriter, config: &Config) -> Result<(), Error> {
    /// Memory of 32 bits that is not prefetchable.
    const MEMORY: u32 = 0x0200_0000;
    const SLOT_SHIFT: u32 = 11;
    const PIN_A: u32 = 1;
    let (ecam, window) = (config.map.pci_ecam, config.map.pci_window);
    let node = fdt.begin_node(&format!("pcie@{:x}", ecam.base))?;
    fdt.property_string("compatible", "pci-host-ecam-generic")?;
    fdt.property_string("device_type", "pci")?;
    reg(fdt, ecam)?;
    fdt.property_array_u32("bus-range", &[0, 0])?;
    fdt.property_u32("#address-cells", 3)?;
    fdt.property_u32("#size-cells", 2)?;
    let (base, size) = (halves(window.base), halves(window.size));
    fdt.property_array_u32("ranges", &[&[MEMORY], &base[..], &base, &size].concat())?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_array_u32("interrupt-map-mask", &[0x1F << SLOT_SHIFT, 0, 0, 7])?;
    let entry = |index| {
        let spi = config.map.virtio_spi(index);
        // The GIC's unit address has two cells.
        [pci::slot(index) << SLOT_SHIFT, 0, 0, PIN_A, PHANDLE_GIC, 0, 0, GIC_SPI, spi, EDGE_RISING]
    };
    let map: Vec<u32> = (0..config.virtio_devices).flat_map(entry).collect();
    fdt.property_array_u32("interrupt-map", &map)?;
    fdt.property_null("dma-coherent")?;
    if config.shared.is_some() {
        fdt.property_u32("memory-region", PHANDLE_POOL)?;
    }
    fdt.end_node(node)
}

/// As two cells.
const fn halves(number: u64) -> [u32; 2] {
    [(number >> 32) as u32, number as u32]
}

/// Channels that the hypervisor carries: their doorbell, and the ports by what is there (`docs/abi.md`, "RPC").
fn rpc(fdt: &mut FdtWriter, config: &Config) -> Result<(), Error> {
    let node = fdt.begin_node("rpc")?;
    fdt.property_string("compatible", "gzvm,rpc")?;
    fdt.property_array_u32("interrupts", &[GIC_SPI, config.map.rpc_spi, EDGE_RISING])?;
    let (names, ports): (_, Vec<_>) = config.rpc.iter().map(|place| (place.name.clone(), place.port)).unzip();
    fdt.property_array_u32("gzvm,ports", &ports)?;
    fdt.property_string_list("gzvm,port-names", names)?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    fn tree(vcpus: u8, virtio_devices: u32) -> Vec<u8> {
        tree_with(VirtioTransport::Mmio, vcpus, virtio_devices)
    }

    fn tree_with(transport: VirtioTransport, vcpus: u8, virtio_devices: u32) -> Vec<u8> {
        let mut seed = [0; 64];
        seed[7] = 9;
        let config = Config {
            map: &layout::CROSVM,
            flash: false,
            vcpus,
            ram_size: 512 << 20,
            cmdline: "console=ttyS0 panic=-1",
            initrd: Some((0x8400_0000, 0x1234)),
            shared: None,
            virtio_devices,
            transport,
            rpc: &[Place { name: "keys".into(), port: 1 }, Place { name: "log".into(), port: 9 }],
            seed,
        };
        build(&config).unwrap()
    }

    /// A property's bytes, read by an independent parser.
    fn property(blob: &[u8], path: &str, name: &str) -> Vec<u8> {
        let fdt = Fdt::new(blob).unwrap();
        let node = fdt.find_node(path).unwrap_or_else(|| panic!("no {path}"));
        node.property(name).unwrap_or_else(|| panic!("{path} has no {name}")).value().to_vec()
    }

    fn cells(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_be_bytes()).collect()
    }

    #[test]
    fn chosen_tells_command_line_initrd_and_seeds() {
        let blob = tree(1, 0);
        assert_eq!(property(&blob, "/chosen", "bootargs"), b"console=ttyS0 panic=-1\0");
        assert_eq!(property(&blob, "/chosen", "linux,initrd-start"), 0x8400_0000_u64.to_be_bytes());
        assert_eq!(property(&blob, "/chosen", "linux,initrd-end"), 0x8400_1234_u64.to_be_bytes());
        assert_eq!(property(&blob, "/chosen", "kaslr-seed"), [0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!(property(&blob, "/chosen", "rng-seed").len(), 56);
        assert_eq!(property(&blob, "/chosen", "stdout-path"), b"/uart@3f8\0");
    }

    #[test]
    fn gic_and_cpus_follow_the_number_of_vcpus() {
        let blob = tree(3, 0);
        let regs = cells(&[0, 0x3FFF_0000, 0, 0x1_0000, 0, 0x3FF9_0000, 0, 0x6_0000]);
        assert_eq!(property(&blob, "/intc@3fff0000", "reg"), regs);
        assert_eq!(property(&blob, "/cpus/cpu@2", "reg"), cells(&[2]));
        assert_eq!(property(&blob, "/cpus/cpu@2", "enable-method"), b"psci\0");
        assert!(Fdt::new(&blob).unwrap().find_node("/cpus/cpu@3").is_none());
    }

    #[test]
    fn sixteen_cpus_share_a_first_affinity() {
        let blob = tree(64, 0);
        assert_eq!(property(&blob, "/cpus/cpu@f", "reg"), cells(&[0xF]));
        assert_eq!(property(&blob, "/cpus/cpu@100", "reg"), cells(&[0x100]));
        assert_eq!(property(&blob, "/cpus/cpu@30f", "reg"), cells(&[0x30F]));
        let regs = cells(&[0, 0x3FFF_0000, 0, 0x1_0000, 0, 0x3F7F_0000, 0, 0x80_0000]);
        assert_eq!(property(&blob, "/intc@3fff0000", "reg"), regs);
    }

    #[test]
    fn devices_are_where_the_layout_says() {
        let blob = tree(1, 2);
        assert_eq!(property(&blob, "/virtio_mmio@2000200", "reg"), cells(&[0, 0x0200_0200, 0, 0x200]));
        assert_eq!(property(&blob, "/virtio_mmio@2000200", "interrupts"), cells(&[0, 5, 1]));
        assert!(Fdt::new(&blob).unwrap().find_node("/virtio_mmio@2000400").is_none());
        assert_eq!(property(&blob, "/uart@3f8", "interrupts"), cells(&[0, 0, 1]));
        assert_eq!(property(&blob, "/memory@80000000", "reg"), cells(&[0, 0x8000_0000, 0, 512 << 20]));
        let timer = cells(&[1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8]);
        assert_eq!(property(&blob, "/timer", "interrupts"), timer);
        assert_eq!(property(&blob, "/psci", "method"), b"hvc\0");
    }

    #[test]
    fn a_bridge_leads_each_slot_to_its_interrupt() {
        let blob = tree_with(VirtioTransport::Pci, 1, 2);
        let of = |name| property(&blob, "/pcie@10000000", name);
        assert_eq!(of("reg"), cells(&[0, 0x1000_0000, 0, 0x10_0000]));
        assert_eq!(of("ranges"), cells(&[0x200_0000, 0, 0x1010_0000, 0, 0x1010_0000, 0, 0x10_0000]));
        let entries = [[0x800, 0, 0, 1, 1, 0, 0, 0, 4, 1], [0x1000, 0, 0, 1, 1, 0, 0, 0, 5, 1]];
        assert_eq!(of("interrupt-map"), cells(entries.as_flattened()));
        assert!(Fdt::new(&blob).unwrap().find_node("/virtio_mmio@2000000").is_none());
    }

    #[test]
    fn channels_have_a_doorbell_and_places() {
        let blob = tree(1, 0);
        assert_eq!(property(&blob, "/rpc", "compatible"), b"gzvm,rpc\0");
        assert_eq!(property(&blob, "/rpc", "interrupts"), cells(&[0, 20, 1]));
        assert_eq!(property(&blob, "/rpc", "gzvm,ports"), cells(&[1, 9]));
        assert_eq!(property(&blob, "/rpc", "gzvm,port-names"), b"keys\0log\0");
    }

    #[test]
    fn firmware_finds_qemus_machine() {
        let config = Config {
            map: &virt::VIRT,
            flash: true,
            vcpus: 2,
            ram_size: 256 << 20,
            cmdline: "",
            initrd: None,
            shared: None,
            virtio_devices: 1,
            transport: VirtioTransport::Mmio,
            rpc: &[],
            seed: [0; 64],
        };
        let blob = build(&config).unwrap();
        assert_eq!(property(&blob, "/chosen", "stdout-path"), b"/pl011@9000000\0");
        assert_eq!(property(&blob, "/pl011@9000000", "interrupts"), cells(&[0, 1, 1]));
        assert_eq!(property(&blob, "/memory@40000000", "reg"), cells(&[0, 0x4000_0000, 0, 256 << 20]));
        let regs = cells(&[0, 0x0800_0000, 0, 0x1_0000, 0, 0x080A_0000, 0, 0x4_0000]);
        assert_eq!(property(&blob, "/intc@8000000", "reg"), regs);
        assert_eq!(property(&blob, "/flash@4000000", "reg"), cells(&[0, 0x0400_0000, 0, 64 << 20]));
        assert_eq!(property(&blob, "/virtio_mmio@a000000", "interrupts"), cells(&[0, 16, 1]));
        let fdt = Fdt::new(&blob).unwrap();
        assert!(fdt.find_node("/test@90000").is_none() && fdt.find_node("/rpc").is_none());
    }

    #[test]
    fn command_line_with_nul_is_an_error() {
        let config = Config {
            map: &layout::CROSVM,
            flash: false,
            vcpus: 1,
            ram_size: 16 << 20,
            cmdline: "a\0b",
            initrd: None,
            shared: None,
            virtio_devices: 0,
            transport: VirtioTransport::Mmio,
            rpc: &[],
            seed: [0; 64],
        };
        assert!(build(&config).is_err());
    }
}
