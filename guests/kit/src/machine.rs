// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine, as the device tree tells it.

use arrayvec::{ArrayString, ArrayVec};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use spin::Once;

use crate::MAX_CPUS;
use crate::smccc::Conduit;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

impl Range {
    /// The byte behind it.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.size)
    }

    /// Whether the two have a byte in common.
    pub fn overlaps(&self, other: &Range) -> bool {
        self.start < other.end() && other.start < self.end()
    }
}

/// Kinds of console UARTs.
#[derive(Clone, Copy, Debug)]
pub enum UartKind {
    /// Arm PrimeCell PL011.
    Pl011,
    /// 16550; registers 1 << shift bytes apart.
    Ns16550 {
        /// reg-shift.
        shift: u32,
    },
}

/// GICv3 frames.
#[derive(Clone, Copy, Debug)]
pub struct Gic {
    /// The distributor.
    pub distributor: Range,
    /// The first region of redistributors.
    pub redistributors: Range,
}

/// What the guest runs on.
pub struct Machine {
    /// The device tree itself.
    pub fdt: Option<Fdt<'static>>,
    /// Where it lies.
    pub fdt_range: Range,
    /// Console.
    pub uart: Option<(UartKind, u64)>,
    /// MPIDRs of the CPUs, in the order of the tree.
    pub cpus: ArrayVec<u64, MAX_CPUS>,
    /// Memory.
    pub memory: ArrayVec<Range, 8>,
    /// Reserved memory (child nodes with `reg`, and the reservation block).
    pub reserved: ArrayVec<Range, 16>,
    /// Memory that a protected VM shares with the host.
    pub shared: Option<Range>,
    /// Interrupt controller.
    pub gic: Option<Gic>,
    /// How PSCI (and everything else) is called.
    pub conduit: Conduit,
    /// INTID of the virtual timer.
    pub timer_intid: u32,
    /// Boot arguments.
    pub bootargs: ArrayString<512>,
}

impl Machine {
    /// The value of `name=value` among the boot arguments.
    pub fn arg(&self, name: &str) -> Option<&str> {
        self.bootargs.split_ascii_whitespace().find_map(|a| a.strip_prefix(name)?.strip_prefix('='))
    }
}

static MACHINE: Once<Machine> = Once::new();

/// The machine.
pub fn get() -> &'static Machine {
    MACHINE.get().expect("set before main")
}

pub(crate) fn init(fdt: usize) {
    MACHINE.call_once(|| parse(fdt));
}

const FDT_MAX: usize = 2 << 20;

fn parse(address: usize) -> Machine {
    let mut machine = Machine {
        fdt: None,
        fdt_range: Range { start: address as u64, size: 0 },
        uart: None,
        cpus: ArrayVec::new(),
        memory: ArrayVec::new(),
        reserved: ArrayVec::new(),
        shared: None,
        gic: None,
        conduit: Conduit::Hvc,
        timer_intid: 27,
        bootargs: ArrayString::new(),
    };
    // SAFETY: the boot protocol has the device tree's address in x0; its header is 40 bytes.
    let size = u32::from_be(unsafe { (address as *const u32).add(1).read() }) as usize;
    if size > FDT_MAX {
        return machine;
    }
    // SAFETY: the header says that it is that long; nothing writes to it.
    let bytes: &'static [u8] = unsafe { core::slice::from_raw_parts(address as *const u8, size) };
    let Ok(fdt) = Fdt::new(bytes) else { return machine };
    machine.fdt = Some(fdt);
    machine.fdt_range.size = size as u64;
    for reservation in fdt.memory_reservations() {
        let _ = machine.reserved.try_push(Range { start: reservation.address(), size: reservation.size() });
    }
    let root = fdt.root();
    let mut stdout = None;
    if let Some(chosen) = root.children().find(|n| n.name() == "chosen") {
        let text = |name| chosen.property(name).and_then(|p| p.value_as::<&str>().ok());
        for c in text("bootargs").unwrap_or("").chars() {
            let _ = machine.bootargs.try_push(c);
        }
        stdout = text("stdout-path").map(|path| path.split(':').next().unwrap_or(path));
    }
    visit(root, &mut machine, stdout);
    if machine.cpus.is_empty() {
        machine.cpus.push(crate::arch::mpidr());
    }
    machine
}

fn visit(node: FdtNode<'static>, machine: &mut Machine, stdout: Option<&str>) {
    for child in node.children() {
        let name = child.name();
        let is = |what: &str| child.is_compatible(what);
        if name == "cpus" {
            for cpu in child.children().filter(|n| n.name_without_address() == "cpu") {
                if let Some(reg) = ranges(cpu).next() {
                    let _ = machine.cpus.try_push(reg.start);
                }
            }
            continue;
        }
        if name == "reserved-memory" {
            for part in child.children() {
                if part.is_compatible("restricted-dma-pool") {
                    machine.shared = ranges(part).next();
                }
                machine.reserved.extend(ranges(part).take(machine.reserved.remaining_capacity()));
            }
            continue;
        }
        if child.name_without_address() == "memory" {
            machine.memory.extend(ranges(child).take(machine.memory.remaining_capacity()));
        }
        let uart = if is("arm,pl011") {
            Some(UartKind::Pl011)
        } else if is("ns16550a") || is("ns16550") || is("mediatek,mt6577-uart") {
            let shift = child.property("reg-shift").and_then(|p| p.value_as::<u32>().ok());
            Some(UartKind::Ns16550 { shift: shift.unwrap_or(0) })
        } else {
            None
        };
        if let (Some(kind), Some(reg)) = (uart, ranges(child).next()) {
            let chosen = stdout.is_some_and(|path| path.trim_start_matches('/') == name);
            if machine.uart.is_none() || chosen {
                machine.uart = Some((kind, reg.start));
            }
        }
        if is("arm,gic-v3") {
            let mut regs = ranges(child);
            if let (Some(distributor), Some(redistributors)) = (regs.next(), regs.next()) {
                machine.gic = Some(Gic { distributor, redistributors });
            }
        }
        if is("arm,armv8-timer")
            && let Some(p) = child.property("interrupts")
            && let Ok(cells) = p.as_prop_encoded_array([1, 1, 1])
            && let Some([_, ppi, _]) = cells.into_iter().nth(2)
        {
            use dtoolkit::ToCellInt;
            machine.timer_intid = 16 + ppi.to_int::<u32>().unwrap_or(11);
        }
        if is("arm,psci-1.0") || is("arm,psci-0.2") || is("arm,psci") {
            let method = child.property("method").and_then(|p| p.value_as::<&str>().ok());
            machine.conduit = if method == Some("smc") { Conduit::Smc } else { Conduit::Hvc };
        }
        if is("simple-bus") {
            visit(child, machine, stdout);
        }
    }
}

fn ranges(node: FdtNode<'static>) -> impl Iterator<Item = Range> {
    let regs = node.reg().ok().flatten();
    regs.into_iter().flatten().filter_map(|r| {
        let start = r.address::<u64>().ok()?;
        Some(Range { start, size: r.size::<u64>().unwrap_or(0) })
    })
}
