// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the device tree says of the machine: memory, CPUs, GICv3, timer, PSCI, UART, boot modules.

use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};

use super::device::{Device, walk};
use super::dma::Dma;

/// Most RAM banks.
pub const MAX_BANKS: usize = 16;
/// Most physical CPUs.
pub const MAX_CPUS: usize = 64;
/// Most redistributor regions.
pub const MAX_GICR: usize = 4;
/// Most ranges that must be left alone.
pub const MAX_RESERVED: usize = 128;

/// Boot arguments that tell the firmware of protected VMs from a host kernel, for boot loaders that know kernels and RAM disks
/// only; others write `compatible = "gzvm,pvmfw", "multiboot,module"`.
const PVMFW: &str = "gzvm.pvmfw";

/// A range of physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Region {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

impl Region {
    /// The first address behind it; saturates at the end of the address space.
    pub const fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
    /// Whether the two have a byte in common.
    pub const fn overlaps(&self, other: &Region) -> bool {
        self.base < other.end() && other.base < self.end()
    }
    /// Whether `other` lies wholly inside.
    pub const fn contains(&self, other: &Region) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }
}

/// The UARTs we can print to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartKind {
    /// Arm PL011.
    Pl011,
    /// 8250/16550 and relatives: register `n` at `n << shift`, `width` bytes wide.
    Ns16550 {
        /// `reg-shift`.
        shift: u32,
        /// `reg-io-width` in bytes: 1 or 4.
        width: u32,
    },
}

/// The console's UART.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Which programming model.
    pub kind: UartKind,
    /// Its registers.
    pub region: Region,
}

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciMethod {
    /// By SMC: firmware below us.
    Smc,
    /// By HVC: only a hypervisor above could answer; there is none above EL2.
    Hvc,
}

/// The interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Gic {
    /// Distributor.
    pub dist: Region,
    /// Redistributor regions.
    pub redist: ArrayVec<Region, MAX_GICR>,
    /// `redistributor-stride`, 0 where the tree gives none.
    pub stride: u64,
    /// INTID of the maintenance interrupt.
    pub maintenance: Option<u32>,
}

/// INTIDs of the generic timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerPpis {
    /// EL1 physical timer (CNTP).
    pub physical: u32,
    /// EL1 virtual timer (CNTV).
    pub virt: u32,
    /// EL2 physical timer (CNTHP).
    pub hyp: u32,
}

/// What is to become the host VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostImage<'a> {
    /// The kernel, an arm64 `Image`.
    pub kernel: Region,
    /// The initial RAM disk.
    pub initrd: Option<Region>,
    /// Boot arguments.
    pub bootargs: &'a str,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// `model` or the first `compatible` of the root.
    pub model: &'a str,
    /// RAM.
    pub memory: ArrayVec<Region, MAX_BANKS>,
    /// Ranges that firmware keeps: /memreserve/ and /reserved-memory.
    pub reserved: ArrayVec<Region, MAX_RESERVED>,
    /// Those of [`reserved`](Self::reserved) that nobody may map.
    pub no_map: ArrayVec<Region, MAX_RESERVED>,
    /// The tree has more of something than the lists here hold.
    pub truncated: bool,
    /// MPIDR affinities (`reg`) of the CPUs that are not disabled.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// The console.
    pub uart: Option<Uart>,
    /// GICv3.
    pub gic: Option<Gic>,
    /// Timer interrupts.
    pub timer: Option<TimerPpis>,
    /// PSCI conduit.
    pub psci: Option<PsciMethod>,
    /// The host's image, if the boot loader gave one.
    pub host: Option<HostImage<'a>>,
    /// The firmware of protected VMs, if the boot loader gave one.
    pub pvmfw: Option<Region>,
    /// SMMUs and bus masters.
    pub dma: Dma,
}

fn cells(bytes: &[u8]) -> Option<u64> {
    match bytes.len() {
        4 => bytes.try_into().ok().map(|b| u64::from(u32::from_be_bytes(b))),
        8 => bytes.try_into().ok().map(u64::from_be_bytes),
        _ => None,
    }
}

pub(super) fn u32_at(value: &[u8], index: usize) -> Option<u32> {
    let start = index.checked_mul(4)?;
    value.get(start..start.checked_add(4)?)?.try_into().ok().map(u32::from_be_bytes)
}

pub(super) fn strings(value: &[u8]) -> impl Iterator<Item = &str> {
    value.split(|b| *b == 0).filter(|s| !s.is_empty()).filter_map(|s| core::str::from_utf8(s).ok())
}

pub(super) fn regions<'a>(node: &FdtNode<'a>) -> impl Iterator<Item = Region> + use<'a> {
    node.reg()
        .ok()
        .flatten()
        .into_iter()
        .flatten()
        .filter_map(|r| Some(Region { base: r.address::<u64>().ok()?, size: r.size::<u64>().ok()? }))
}

/// `reg` of a boot module: two addresses of equal width, whatever /chosen's cell counts say (boot
/// loaders write them by hand).
fn module_region(node: &FdtNode<'_>) -> Option<Region> {
    let property = node.property("reg")?;
    let (base, size) = property.value().split_at_checked(property.value().len() / 2)?;
    Some(Region { base: cells(base)?, size: cells(size)? })
}

fn uart_of(node: &Device<'_, '_>) -> Option<Uart> {
    let kind = if node.is("arm,pl011") {
        UartKind::Pl011
    } else if ["ns16550a", "ns16550", "mediatek,mt6577-uart", "snps,dw-apb-uart"].iter().any(|c| node.is(c)) {
        // MediaTek's UARTs have 32-bit registers and say so in the compatible string only.
        let mediatek = node.is("mediatek,mt6577-uart");
        let shift = node.u32("reg-shift").unwrap_or(if mediatek { 2 } else { 0 });
        let width = node.u32("reg-io-width").unwrap_or(if mediatek { 4 } else { 1 });
        if shift > 4 || !matches!(width, 1 | 4) {
            return None;
        }
        UartKind::Ns16550 { shift, width }
    } else {
        return None;
    };
    Some(Uart { kind, region: node.regions().next()? })
}

/// INTID of entry `index` of an `interrupts` property with three cells an entry (GICv3 binding).
fn interrupt(node: &FdtNode<'_>, index: usize) -> Option<u32> {
    let property = node.property("interrupts")?;
    let first = index.checked_mul(3)?;
    let number = u32_at(property.value(), first.checked_add(1)?)?;
    match u32_at(property.value(), first)? {
        0 => number.checked_add(32),
        1 => number.checked_add(16),
        _ => None,
    }
}

impl<'a> Machine<'a> {
    /// Reads the tree. What is absent stays `None` or empty; whether that can be lived with is for
    /// the caller to say.
    pub fn from_fdt(fdt: Fdt<'a>) -> Self {
        let root = fdt.root();
        let model = ["model", "compatible"]
            .iter()
            .find_map(|name| first_string(fdt, &root, name))
            .unwrap_or("unknown machine");
        let mut machine = Machine {
            model,
            memory: ArrayVec::new(),
            reserved: ArrayVec::new(),
            no_map: ArrayVec::new(),
            truncated: false,
            cpus: ArrayVec::new(),
            uart: None,
            gic: None,
            timer: None,
            psci: None,
            host: None,
            pvmfw: None,
            dma: Dma::from_fdt(fdt),
        };
        for r in fdt.memory_reservations() {
            let region = Region { base: r.address(), size: r.size() };
            machine.truncated |= machine.reserved.try_push(region).is_err();
        }
        for node in root.children() {
            if node.property("device_type").is_some_and(|p| p.value() == b"memory\0")
                && !Device::of(&node).disabled()
            {
                for region in regions(&node).filter(|r| r.size > 0) {
                    machine.truncated |= machine.memory.try_push(region).is_err();
                }
            }
            match node.name_without_address() {
                "cpus" => machine.cpus(&node),
                "reserved-memory" => {
                    for child in node.children() {
                        // A pool that the kernel may use for itself meanwhile is ordinary memory.
                        if child.property("reusable").is_some() {
                            continue;
                        }
                        let no_map = child.property("no-map").is_some();
                        for region in regions(&child) {
                            machine.truncated |= machine.reserved.try_push(region).is_err();
                            if no_map {
                                machine.truncated |= machine.no_map.try_push(region).is_err();
                            }
                        }
                    }
                }
                "chosen" => machine.chosen(fdt, &node),
                _ => {}
            }
        }
        machine.uart = stdout_node(fdt).and_then(|node| uart_of(&Device::of(&node)));
        walk(root, 8, &mut |node| machine.device(node));
        machine
    }

    fn cpus(&mut self, cpus: &FdtNode<'a>) {
        for cpu in cpus.children().filter(|n| n.name_without_address() == "cpu" && !Device::of(n).disabled())
        {
            if let Some(mpidr) = cpu.property("reg").and_then(|p| cells(p.value())) {
                let _ = self.cpus.try_push(mpidr & 0xFF_00FF_FFFF);
            }
        }
    }

    fn chosen(&mut self, fdt: Fdt<'a>, chosen: &FdtNode<'a>) {
        let mut initrd = None;
        for module in chosen.children() {
            let kind = Device::of(&module);
            if !kind.is("multiboot,module") {
                continue;
            }
            let bootargs = first_string(fdt, &module, "bootargs").unwrap_or("");
            if kind.is("gzvm,pvmfw") || bootargs == PVMFW {
                self.pvmfw = module_region(&module);
            } else if kind.is("multiboot,kernel") {
                if let Some(kernel) = module_region(&module) {
                    self.host = Some(HostImage { kernel, initrd: None, bootargs });
                }
            } else if kind.is("multiboot,ramdisk") {
                initrd = module_region(&module);
            }
        }
        if let Some(host) = &mut self.host {
            host.initrd = initrd;
        }
    }

    fn device(&mut self, node: &Device<'_, 'a>) {
        if node.disabled() {
            return;
        }
        if self.uart.is_none() {
            self.uart = uart_of(node);
        }
        if self.gic.is_none() && node.is("arm,gic-v3") {
            let mut regions = node.regions();
            if let Some(dist) = regions.next() {
                let count = node.u32("#redistributor-regions").unwrap_or(1) as usize;
                let redist = regions.take(count.min(MAX_GICR)).collect();
                let stride =
                    node.node.property("redistributor-stride").and_then(|p| cells(p.value())).unwrap_or(0);
                self.gic = Some(Gic { dist, redist, stride, maintenance: interrupt(node.node, 0) });
            }
        }
        if self.timer.is_none() && node.is("arm,armv8-timer") {
            // Order of the binding: secure, non-secure physical, virtual, hypervisor.
            if let (Some(physical), Some(virt), Some(hyp)) =
                (interrupt(node.node, 1), interrupt(node.node, 2), interrupt(node.node, 3))
            {
                self.timer = Some(TimerPpis { physical, virt, hyp });
            }
        }
        if self.psci.is_none()
            && ["arm,psci-1.0", "arm,psci-0.2"].iter().any(|c| node.is(c))
            && let Some(method) = node.node.property("method")
        {
            self.psci = strings(method.value()).next().and_then(|m| match m {
                "smc" => Some(PsciMethod::Smc),
                "hvc" => Some(PsciMethod::Hvc),
                _ => None,
            });
        }
    }

    /// Bytes of RAM.
    pub fn memory_size(&self) -> u64 {
        self.memory.iter().fold(0, |sum, r| sum.saturating_add(r.size))
    }
}

/// The first string of a property, with the blob's lifetime (which the trait's signature loses).
fn first_string<'a>(fdt: Fdt<'a>, node: &FdtNode<'a>, name: &str) -> Option<&'a str> {
    let property = node.property(name)?;
    strings(property.value()).next().map(|s| in_blob(fdt, s))
}

fn in_blob<'a>(fdt: Fdt<'a>, inner: &str) -> &'a str {
    let data = fdt.data();
    let offset = (inner.as_ptr() as usize).checked_sub(data.as_ptr() as usize);
    offset
        .and_then(|o| data.get(o..o.checked_add(inner.len())?))
        .and_then(|bytes| core::str::from_utf8(bytes).ok())
        .unwrap_or("")
}

fn stdout_node(fdt: Fdt<'_>) -> Option<FdtNode<'_>> {
    let chosen = fdt.find_node("/chosen")?;
    let property = chosen.property("stdout-path")?;
    let path = strings(property.value()).next()?.split(':').next()?;
    if path.starts_with('/') {
        return fdt.find_node(path);
    }
    let aliases = fdt.find_node("/aliases")?;
    let alias = aliases.property(path)?;
    fdt.find_node(strings(alias.value()).next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_meet_and_hold() {
        let a = Region { base: 0x1000, size: 0x1000 };
        assert!(a.overlaps(&Region { base: 0x1FFF, size: 1 }));
        assert!(!a.overlaps(&Region { base: 0x2000, size: 1 }));
        assert!(a.contains(&Region { base: 0x1800, size: 0x800 }));
        assert!(!a.contains(&Region { base: 0x1800, size: 0x801 }));
        assert_eq!(Region { base: u64::MAX, size: 2 }.end(), u64::MAX);
    }
}
