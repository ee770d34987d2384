// SPDX-License-Identifier: Apache-2.0 OR MIT
//! GICv3: distributor, redistributors, CPU interface (Arm IHI 0069). Raw on purpose: the tests
//! want the registers, and to hold them in every order.

use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use crate::mmio::Region;
use crate::{arch, machine};
use crate::{read_sysreg, write_sysreg};

/// Distributor registers.
pub mod gicd {
    /// Control.
    pub const CTLR: usize = 0x0000;
    /// Type.
    pub const TYPER: usize = 0x0004;
    /// Implementer.
    pub const IIDR: usize = 0x0008;
    /// Makes the SPI whose INTID is written pending, where TYPER bit 16 is set.
    pub const SETSPI_NSR: usize = 0x0040;
    /// Takes that back.
    pub const CLRSPI_NSR: usize = 0x0048;
    /// Group, 1 bit an INTID. The redistributor's SGI frame has the same offsets.
    pub const IGROUPR: usize = 0x0080;
    /// Set enable.
    pub const ISENABLER: usize = 0x0100;
    /// Clear enable.
    pub const ICENABLER: usize = 0x0180;
    /// Set pending.
    pub const ISPENDR: usize = 0x0200;
    /// Clear pending.
    pub const ICPENDR: usize = 0x0280;
    /// Set active.
    pub const ISACTIVER: usize = 0x0300;
    /// Clear active.
    pub const ICACTIVER: usize = 0x0380;
    /// Priority, a byte an INTID.
    pub const IPRIORITYR: usize = 0x0400;
    /// Trigger, 2 bits an INTID.
    pub const ICFGR: usize = 0x0C00;
    /// Affinity routing, 8 bytes an INTID.
    pub const IROUTER: usize = 0x6000;
    /// Peripheral id 2.
    pub const PIDR2: usize = 0xFFE8;
}

/// Redistributor registers (first frame).
pub mod gicr {
    /// Control.
    pub const CTLR: usize = 0x0000;
    /// Type (64 bits): affinity in the upper half, bit 4 = last.
    pub const TYPER: usize = 0x0008;
    /// Power.
    pub const WAKER: usize = 0x0014;
    /// Offset of the SGI frame.
    pub const SGI_FRAME: usize = 0x1_0000;
    /// Distance of redistributors.
    pub const STRIDE: usize = 0x2_0000;
}

/// INTID of "nothing pending".
pub const SPURIOUS: u32 = 1023;
/// The priority interrupts get from [`init`].
pub const DEFAULT_PRIORITY: u8 = 0xA0;

/// Shortest run of bytes of SPIs registers and the like: which 32-bit word an INTID is in.
const fn word(register: usize, intid: u32) -> usize {
    register + (intid as usize / 32) * 4
}

static HANDLER: AtomicUsize = AtomicUsize::new(0);

/// The function that gets acknowledged interrupts. It need not write EOIR.
pub fn set_handler(handler: fn(u32)) {
    HANDLER.store(handler as usize, SeqCst);
}

static RAW_HANDLER: AtomicUsize = AtomicUsize::new(0);

/// A function that gets every IRQ before anything is acknowledged, and does all of it; `None` for
/// the usual way.
pub fn set_raw_handler(handler: Option<fn()>) {
    RAW_HANDLER.store(handler.map_or(0, |h| h as usize), SeqCst);
}

/// Acknowledges, calls the handler, ends the interrupt.
#[inline(always)]
pub(crate) fn handle_irq() {
    let raw = RAW_HANDLER.load(core::sync::atomic::Ordering::Relaxed);
    if raw != 0 {
        // SAFETY: `set_raw_handler` stored a function of this type.
        let raw: fn() = unsafe { core::mem::transmute(raw) };
        return raw();
    }
    let intid = acknowledge();
    if intid >= 1020 {
        return;
    }
    let handler = HANDLER.load(core::sync::atomic::Ordering::Relaxed);
    if handler != 0 {
        // SAFETY: `set_handler` stored a function of this type.
        let handler: fn(u32) = unsafe { core::mem::transmute(handler) };
        handler(intid);
    }
    end(intid);
}

/// The distributor.
pub fn distributor() -> Region {
    let range = machine::get().gic.expect("no GICv3 in the device tree").distributor;
    // SAFETY: the device tree says so.
    unsafe { Region::new(range.start, range.size as usize) }
}

/// The redistributor of the CPU with these affinity fields: both frames.
pub fn redistributor(mpidr: u64) -> Option<Region> {
    let range = machine::get().gic?.redistributors;
    let affinity = (mpidr >> 8 & 0xFF00_0000) | (mpidr & 0xFF_FFFF);
    let mut base = range.start;
    while base + gicr::STRIDE as u64 <= range.end() {
        // SAFETY: inside the redistributor region of the device tree.
        let frame = unsafe { Region::new(base, gicr::STRIDE) };
        let typer = frame.read64(gicr::TYPER);
        if typer >> 32 == affinity {
            return Some(frame);
        }
        if typer & 1 << 4 != 0 {
            break;
        }
        base += gicr::STRIDE as u64;
    }
    None
}

/// This CPU's redistributor.
pub fn this_redistributor() -> Region {
    redistributor(arch::mpidr()).expect("no redistributor of this CPU")
}

/// Highest INTID + 1 of SPIs.
pub fn spi_limit() -> u32 {
    (((distributor().read32(gicd::TYPER) & 0x1F) + 1) * 32).min(1020)
}

/// Sets up the distributor (all SPIs disabled, group 1, inactive). Boot CPU, once.
pub fn init_distributor() {
    let d = distributor();
    d.write32(gicd::CTLR, 0);
    wait_rwp();
    for intid in (32..spi_limit()).step_by(32) {
        d.write32(word(gicd::ICENABLER, intid), !0);
        d.write32(word(gicd::ICPENDR, intid), !0);
        d.write32(word(gicd::ICACTIVER, intid), !0);
        d.write32(word(gicd::IGROUPR, intid), !0);
        for i in (0..32).step_by(4) {
            d.write32(gicd::IPRIORITYR + (intid + i) as usize, u32::from_ne_bytes([DEFAULT_PRIORITY; 4]));
        }
    }
    // ARE_NS, group 1 enabled; with a single security state both bits of the enable matter.
    d.write32(gicd::CTLR, 1 << 4);
    wait_rwp();
    d.write32(gicd::CTLR, 1 << 4 | 1 << 1);
    wait_rwp();
}

/// Sets up this CPU's redistributor and CPU interface: SGIs enabled, PPIs not. EOImode 0.
pub fn init_cpu() {
    let r = this_redistributor();
    let waker = r.read32(gicr::WAKER);
    r.write32(gicr::WAKER, waker & !2);
    while r.read32(gicr::WAKER) & 4 != 0 {}
    let sgi = |register| gicr::SGI_FRAME + register;
    r.write32(sgi(gicd::ICENABLER), !0);
    r.write32(sgi(gicd::ICPENDR), !0);
    r.write32(sgi(gicd::ICACTIVER), !0);
    r.write32(sgi(gicd::IGROUPR), !0);
    for i in (0..32).step_by(4) {
        r.write32(sgi(gicd::IPRIORITYR) + i, u32::from_ne_bytes([DEFAULT_PRIORITY; 4]));
    }
    r.write32(sgi(gicd::ISENABLER), 0xFFFF);
    write_sysreg!("S3_0_C12_C12_5", read_sysreg!("S3_0_C12_C12_5") | 1); // ICC_SRE_EL1
    arch::isb();
    set_eoi_mode(false);
    // Priorities of interrupts that were acknowledged and never ended.
    write_sysreg!("S3_0_C12_C9_0", 0); // ICC_AP1R0_EL1
    write_sysreg!("S3_0_C4_C6_0", 0xFF); // ICC_PMR_EL1
    write_sysreg!("S3_0_C12_C12_3", 0); // ICC_BPR1_EL1
    write_sysreg!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
    arch::isb();
}

/// Sets ICC_CTLR_EL1.EOImode: true splits priority drop and deactivation.
pub fn set_eoi_mode(split: bool) {
    write_sysreg!("S3_0_C12_C12_4", u64::from(split) << 1);
    arch::isb();
}

/// Reads ICC_IAR1_EL1.
#[inline(always)]
pub fn acknowledge() -> u32 {
    let intid = read_sysreg!("S3_0_C12_C12_0") as u32;
    arch::dsb();
    intid
}

/// Reads ICC_HPPIR1_EL1: the highest priority pending interrupt.
#[inline(always)]
pub fn highest_pending() -> u32 {
    read_sysreg!("S3_0_C12_C12_2") as u32
}

/// Reads ICC_RPR_EL1: the running priority.
pub fn running_priority() -> u8 {
    read_sysreg!("S3_0_C12_C11_3") as u8
}

/// Writes ICC_EOIR1_EL1.
#[inline(always)]
pub fn end(intid: u32) {
    write_sysreg!("S3_0_C12_C12_1", u64::from(intid));
    arch::isb();
}

/// Writes ICC_DIR_EL1.
pub fn deactivate(intid: u32) {
    write_sysreg!("S3_0_C12_C11_1", u64::from(intid));
    arch::isb();
}

/// Writes ICC_SGI1R_EL1 as it is.
#[inline(always)]
pub fn send_sgi_raw(value: u64) {
    arch::dsb();
    write_sysreg!("S3_0_C12_C11_5", value);
    arch::isb();
}

/// ICC_SGI1R_EL1 for one CPU.
pub fn sgi_value(mpidr: u64, intid: u32) -> u64 {
    let aff = |level: u32| mpidr >> (8 * level + if level == 3 { 8 } else { 0 }) & 0xFF;
    let aff0 = aff(0);
    aff(3) << 48 | (aff0 >> 4) << 44 | aff(2) << 32 | u64::from(intid) << 24 | aff(1) << 16 | 1 << (aff0 & 15)
}

/// Sends SGI `intid` to the CPU with these affinity fields.
pub fn send_sgi(mpidr: u64, intid: u32) {
    send_sgi_raw(sgi_value(mpidr, intid));
}

/// Sends SGI `intid` to all other CPUs.
pub fn send_sgi_others(intid: u32) {
    send_sgi_raw(1 << 40 | u64::from(intid) << 24);
}

/// The frame that holds an INTID's bits, and the offset of its registers there: this CPU's
/// redistributor for SGIs and PPIs, the distributor for SPIs.
fn frame(intid: u32) -> (Region, usize) {
    if intid < 32 { (this_redistributor(), gicr::SGI_FRAME) } else { (distributor(), 0) }
}

/// Writes the INTID's bit in one of the set/clear registers.
pub fn set_bit(register: usize, intid: u32) {
    let (region, offset) = frame(intid);
    region.write32(offset + word(register, intid), 1 << (intid % 32));
}

/// Reads the INTID's bit.
pub fn bit(register: usize, intid: u32) -> bool {
    let (region, offset) = frame(intid);
    region.read32(offset + word(register, intid)) & 1 << (intid % 32) != 0
}

/// Enables the interrupt.
pub fn enable(intid: u32) {
    set_bit(gicd::ISENABLER, intid);
}

/// Disables the interrupt and waits until that has effect.
pub fn disable(intid: u32) {
    set_bit(gicd::ICENABLER, intid);
    wait_rwp();
}

/// Sets the interrupt's priority.
pub fn set_priority(intid: u32, priority: u8) {
    let (region, offset) = frame(intid);
    region.write8(offset + gicd::IPRIORITYR + intid as usize, priority);
}

/// Makes the interrupt edge-triggered, or level-sensitive.
pub fn set_edge(intid: u32, edge: bool) {
    let (region, offset) = frame(intid);
    let register = offset + gicd::ICFGR + (intid as usize / 16) * 4;
    let bit = 2 << (2 * (intid % 16));
    let value = region.read32(register);
    region.write32(register, if edge { value | bit } else { value & !bit });
}

/// Routes an SPI to a CPU.
pub fn route(intid: u32, mpidr: u64) {
    distributor().write64(gicd::IROUTER + 8 * intid as usize, mpidr);
}

fn wait_rwp() {
    let d = distributor();
    while d.read32(gicd::CTLR) & 1 << 31 != 0 {}
}
