// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device tree that the host gives a protected VM. Default deny: a node, or a property of `/chosen`, that is not known
//! here is refused, so that the payload finds no more in it than was thought of.

use crate::broken::{Mistake, broken};
use arrayvec::ArrayVec;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node, Property};
use sha2::{Digest, Sha256};

use crate::manifest::Hash;

mod pci;
mod rpc;

pub use rpc::Rpc;

/// Most devices with registers.
pub const MAX_DEVICES: usize = 32;
/// The page of stage 2 and of the MMIO guard.
pub const PAGE: u64 = 4096;
/// Guest physical addresses are below this: what the firmware maps.
pub const LIMIT: u64 = 1 << 39;
/// Devices are below this, memory is not: the firmware's map says so.
pub const MEMORY_FROM: u64 = 1 << 30;

/// Devices by `compatible`, whose registers the VMM emulates.
const DEVICES: [&str; 5] =
    ["ns16550a", "arm,pl031", "virtio,mmio", "qemu,vcpu-stall-detector", "geniezone,test-device"];
/// What the hypervisor itself provides, or what has no registers.
const PROVIDED: [&str; 4] = ["arm,gic-v3", "arm,armv8-timer", "arm,psci-0.2", "fixed-clock"];
/// Properties of `/chosen`.
const CHOSEN: [&str; 6] =
    ["bootargs", "stdout-path", "linux,initrd-start", "linux,initrd-end", KASLR_SEED, RNG_SEED];

/// Places the kernel.
pub const KASLR_SEED: &str = "kaslr-seed";
/// Seeds the kernel's random numbers.
pub const RNG_SEED: &str = "rng-seed";

/// A range of guest physical addresses; not empty, and its end does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    start: u64,
    end: u64,
}

impl Range {
    /// `size` bytes from `start` on, below [`LIMIT`].
    pub fn new(start: u64, size: u64) -> Option<Self> {
        let end = start.checked_add(size).filter(|end| size != 0 && *end <= LIMIT)?;
        Some(Self { start, end })
    }

    /// The first byte.
    pub const fn start(&self) -> u64 {
        self.start
    }

    /// The byte behind it.
    pub const fn end(&self) -> u64 {
        self.end
    }

    /// Bytes.
    pub const fn size(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    const fn overlaps(&self, other: &Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    const fn holds(&self, other: &Self) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// The first bytes of the pages that it touches.
    pub fn pages(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.start & !PAGE.wrapping_sub(1);
        (first..self.end).step_by(PAGE as usize)
    }
}

/// Why the device tree is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTree {
    /// It is no device tree.
    #[error("there is no valid device tree")]
    NoTree,
    /// Not one range of memory, in one node.
    #[error("there must be one range of memory, from 1 GiB on and below 512 GiB")]
    Memory,
    /// A node that is not known.
    #[error("a node is not known")]
    Unknown,
    /// A property of /chosen that is not known, or a value that it can't have.
    #[error("/chosen has a property that is not known, or a wrong value")]
    Chosen,
    /// Not started by PSCI and HVC.
    #[error("CPUs must be started by PSCI, by HVC")]
    Psci,
    /// A device where there is memory, too many of them, or a PCI bridge that is not as known.
    #[error(
        "a device has no registers, registers in memory, is a PCI bridge of an unknown kind, or there are too many"
    )]
    Device,
    /// Kernel, initrd, device tree and shared pool are not in memory, or on top of each other.
    #[error("kernel, initrd, device tree and shared pool must be in memory, and apart")]
    Placement,
    /// Channels: more than one node, or not as `docs/abi.md` has it.
    #[error("/rpc must have a doorbell, and ports with names, and nothing else")]
    Rpc,
    /// More than one pool to share, or not whole pages.
    #[error("there may be one shared pool, of whole pages")]
    Pool,
}

/// Where things are that are not in the tree.
#[derive(Clone, Copy, Debug)]
pub struct Given {
    /// The device tree.
    pub tree: Range,
    /// The kernel and its manifest.
    pub kernel: Range,
    /// The firmware.
    pub firmware: Range,
}

/// What the firmware has to do with what the tree tells of.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// All memory.
    pub memory: Range,
    /// The initrd.
    pub initrd: Option<Range>,
    /// What is to be shared with the host: virtio's bounce buffers.
    pub pool: Option<Range>,
    /// What the VMM emulates.
    pub devices: ArrayVec<Device, MAX_DEVICES>,
    /// Where the payload finds its channels.
    pub rpc: Option<Rpc<'a>>,
    /// Registers of a 16550, one byte each.
    pub uart: Option<u64>,
    /// Boot arguments.
    pub bootargs: &'a str,
}

/// A device that the VMM emulates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// `compatible`, as this firmware knows it.
    pub kind: &'static str,
    /// Its registers.
    pub registers: Range,
}

/// Starts what is hashed of a tree for the measurement.
pub const MEASURED: [u8; 8] = *b"GZVMTREE";

impl Plan<'_> {
    /// What the VM's measurement is extended by: which devices there are, in the tree's order, how much memory, what of it the host sees, and the ports and names of its channels. Where
    /// the host has put kernel, initrd and tree is not in it, nor what the payload's signature covers.
    pub fn digest(&self) -> Hash {
        let mut hash = Sha256::new_with_prefix(MEASURED);
        let mut number = |number: u64| hash.update(number.to_le_bytes());
        for range in [Some(self.memory), self.pool] {
            number(range.map_or(0, |range| range.start));
            number(range.map_or(0, |range| range.end));
        }
        number(self.devices.len() as u64);
        for Device { registers, .. } in &self.devices {
            number(registers.start);
            number(registers.end);
        }
        for Device { kind, .. } in &self.devices {
            hash.update(kind);
            hash.update([0]);
        }
        if let Some(rpc) = &self.rpc {
            hash.update((rpc.ports().count() as u64).to_le_bytes());
            rpc.ports().for_each(|port| hash.update(u64::from(port).to_le_bytes()));
            hash.update(rpc.all_names());
        }
        hash.finalize().into()
    }
}

/// Reads and checks the tree. It must be in memory that only this VM writes.
///
/// # Errors
/// The first thing that is wrong.
pub fn read<'a>(fdt: &Fdt<'a>, given: &Given) -> Result<Plan<'a>, BadTree> {
    if fdt.memory_reservations().next().is_some() {
        return Err(BadTree::Unknown);
    }
    let mut found = Found::default();
    for node in fdt.root().children() {
        match node.name_without_address() {
            "chosen" => found.chosen(&node)?,
            "cpus" => cpus(&node)?,
            "memory" => {
                let range = one_range(&node).ok_or(BadTree::Memory)?;
                if range.start < MEMORY_FROM || found.memory.replace(range).is_some() {
                    return Err(BadTree::Memory);
                }
            }
            "reserved-memory" => node.children().try_for_each(|child| found.pool(&child))?,
            _ => found.device(&node)?,
        }
    }
    if !found.psci {
        return Err(BadTree::Psci);
    }
    let memory = found.memory.ok_or(BadTree::Memory)?;
    let initrd = match found.initrd {
        (None, None) => None,
        (Some(start), Some(end)) => {
            let size = end.checked_sub(start).ok_or(BadTree::Chosen)?;
            Some(Range::new(start, size).ok_or(BadTree::Chosen)?)
        }
        _ => return Err(BadTree::Chosen),
    };
    let mut parts = ArrayVec::<Range, 4>::new();
    parts.extend([Some(given.tree), Some(given.kernel), initrd, found.pool].into_iter().flatten());
    let apart = |n: usize, part: &Range| parts.iter().take(n).all(|other| !other.overlaps(part));
    let misplaced = parts.iter().enumerate().any(|(n, part)| !memory.holds(part) || !apart(n, part));
    if (memory.overlaps(&given.firmware) || misplaced) && !broken(Mistake::AnyPlace) {
        return Err(BadTree::Placement);
    }
    let in_memory = |device: &Device| device.registers.end > MEMORY_FROM;
    if found.devices.iter().any(in_memory) && !broken(Mistake::AnyDevice) {
        return Err(BadTree::Device);
    }
    Ok(Plan {
        memory,
        initrd,
        pool: found.pool,
        devices: found.devices,
        uart: found.uart,
        rpc: found.rpc,
        bootargs: found.bootargs,
    })
}

/// Registers of a 16550 in a tree that may be wrong otherwise: to tell so.
pub fn uart(fdt: &Fdt<'_>) -> Option<u64> {
    let node = fdt.root().children().find(|node| is(node, "ns16550a"))?;
    one_range(&node).map(|range| range.start).filter(|start| *start < MEMORY_FROM)
}

/// Where in `blob` the seeds are, which the host knows: first byte and length.
pub fn seeds(fdt: &Fdt<'_>, blob: &[u8]) -> ArrayVec<(usize, usize), 2> {
    let mut seeds = ArrayVec::new();
    let chosen = fdt.root().children().find(|node| node.name() == "chosen");
    for name in [KASLR_SEED, RNG_SEED] {
        if let Some(property) = chosen.as_ref().and_then(|node| node.property(name)) {
            let value = property.value();
            let offset = value.as_ptr().addr().wrapping_sub(blob.as_ptr().addr());
            let _ = seeds.try_push((offset, value.len()));
        }
    }
    seeds
}

#[derive(Default)]
struct Found<'a> {
    memory: Option<Range>,
    initrd: (Option<u64>, Option<u64>),
    pool: Option<Range>,
    devices: ArrayVec<Device, MAX_DEVICES>,
    uart: Option<u64>,
    rpc: Option<Rpc<'a>>,
    bootargs: &'a str,
    psci: bool,
}

impl<'a> Found<'a> {
    fn chosen(&mut self, node: &FdtNode<'a>) -> Result<(), BadTree> {
        if node.children().next().is_some() {
            return Err(BadTree::Unknown);
        }
        for property in node.properties() {
            let number = || match property.value().len() {
                4 => property.value().try_into().ok().map(|b| u64::from(u32::from_be_bytes(b))),
                8 => property.value().try_into().ok().map(u64::from_be_bytes),
                _ => None,
            };
            match property.name() {
                "bootargs" => self.bootargs = property.value_as::<&str>().map_err(|_| BadTree::Chosen)?,
                "linux,initrd-start" => self.initrd.0 = Some(number().ok_or(BadTree::Chosen)?),
                "linux,initrd-end" => self.initrd.1 = Some(number().ok_or(BadTree::Chosen)?),
                name if CHOSEN.contains(&name) || broken(Mistake::AnyChosen) => {}
                _ => return Err(BadTree::Chosen),
            }
        }
        Ok(())
    }

    fn pool(&mut self, node: &FdtNode<'a>) -> Result<(), BadTree> {
        let range = one_range(node).filter(|_| is(node, "restricted-dma-pool")).ok_or(BadTree::Pool)?;
        let whole = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE);
        if !whole || self.pool.replace(range).is_some() {
            return Err(BadTree::Pool);
        }
        Ok(())
    }

    fn device(&mut self, node: &FdtNode<'a>) -> Result<(), BadTree> {
        if node.children().next().is_some() {
            return Err(BadTree::Unknown);
        }
        if is(node, "gzvm,rpc") {
            let rpc = Rpc::read(node).ok_or(BadTree::Rpc)?;
            return if self.rpc.replace(rpc).is_none() { Ok(()) } else { Err(BadTree::Rpc) };
        }
        if is(node, pci::BRIDGE) {
            let devices = pci::read(node).ok_or(BadTree::Device)?;
            return self.devices.try_extend_from_slice(&devices).map_err(|_| BadTree::Device);
        }
        if let Some(kind) = DEVICES.into_iter().find(|name| is(node, name)) {
            let registers = one_range(node).ok_or(BadTree::Device)?;
            self.devices.try_push(Device { kind, registers }).map_err(|_| BadTree::Device)?;
            if is(node, "ns16550a") {
                self.uart = self.uart.or(Some(registers.start));
            }
            return Ok(());
        }
        if !PROVIDED.iter().any(|name| is(node, name)) && !broken(Mistake::AnyNode) {
            return Err(BadTree::Unknown);
        }
        if is(node, "arm,psci-0.2") {
            if text(node, "method") != Some("hvc") && !broken(Mistake::AnyConduit) {
                return Err(BadTree::Psci);
            }
            self.psci = true;
        }
        Ok(())
    }
}

fn cpus(node: &FdtNode<'_>) -> Result<(), BadTree> {
    for cpu in node.children() {
        if cpu.name_without_address() != "cpu" {
            return Err(BadTree::Unknown);
        }
        if text(&cpu, "enable-method").is_some_and(|method| method != "psci") {
            return Err(BadTree::Psci);
        }
    }
    Ok(())
}

fn text<'a>(node: &FdtNode<'a>, name: &str) -> Option<&'a str> {
    node.property(name)?.value_as::<&str>().ok()
}

fn is(node: &FdtNode<'_>, name: &str) -> bool {
    let Some(property) = node.property("compatible") else { return false };
    property.value().split(|b| *b == 0).any(|s| s == name.as_bytes())
}

/// `reg`, if it is one range.
fn one_range(node: &FdtNode<'_>) -> Option<Range> {
    let mut regs = node.reg().ok().flatten()?;
    let reg = regs.next()?;
    let range = Range::new(reg.address::<u64>().ok()?, reg.size::<u64>().ok()?)?;
    regs.next().is_none().then_some(range)
}

#[cfg(test)]
pub(crate) mod tests;
