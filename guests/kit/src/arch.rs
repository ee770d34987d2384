// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System registers, barriers, interrupt mask.

use core::arch::asm;

/// Reads a system register, named as the assembler knows it (`S3_...` for newer ones).
#[macro_export]
macro_rules! read_sysreg {
    ($reg:expr) => {{
        let value: u64;
        // SAFETY: reading a register changes no memory the compiler knows of.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $reg), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register. The caller answers for what the register does; guests use it for
/// registers that leave the compiler's view of memory alone.
#[macro_export]
macro_rules! write_sysreg {
    ($reg:expr, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: only used for registers that do not change how the compiler's memory is mapped.
        unsafe { core::arch::asm!(concat!("msr ", $reg, ", {}"), in(reg) value, options(nostack)) };
    }};
}

/// Instruction synchronisation barrier.
#[inline(always)]
pub fn isb() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack)) }
}

/// Data synchronisation barrier, full system.
#[inline(always)]
pub fn dsb() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) }
}

/// Waits for an interrupt (also a masked one).
#[inline(always)]
pub fn wfi() {
    // SAFETY: a hint.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) }
}

/// Waits for an event.
#[inline(always)]
pub fn wfe() {
    // SAFETY: a hint.
    unsafe { asm!("wfe", options(nostack)) }
}

/// Signals an event to all CPUs.
#[inline(always)]
pub fn sev() {
    // SAFETY: a hint.
    unsafe { asm!("dsb sy", "sev", options(nostack)) }
}

/// Gives the CPU to others while spinning.
#[inline(always)]
pub fn cpu_relax() {
    // SAFETY: a hint.
    unsafe { asm!("yield", options(nostack)) }
}

/// Takes IRQs from now on.
#[inline(always)]
pub fn irq_enable() {
    // SAFETY: the vectors are installed before anything calls this.
    unsafe { asm!("msr daifclr, #2", "isb", options(nostack)) }
}

/// Takes no IRQs from now on.
#[inline(always)]
pub fn irq_disable() {
    // SAFETY: masking.
    unsafe { asm!("msr daifset, #2", "isb", options(nostack)) }
}

/// This CPU's index (position in the device tree).
#[inline(always)]
pub fn cpu_index() -> usize {
    read_sysreg!("tpidr_el1") as usize
}

/// MPIDR_EL1's affinity fields.
#[inline(always)]
pub fn mpidr() -> u64 {
    read_sysreg!("mpidr_el1") & 0xFF_00FF_FFFF
}

/// Makes code written by data stores visible to instruction fetch.
pub fn sync_code(address: usize, bytes: usize) {
    let mut line = address & !15;
    while line < address + bytes {
        // SAFETY: cleaning and invalidating by address keeps the content.
        unsafe { asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", in(reg) line, options(nostack)) };
        line += 16;
    }
    dsb();
    isb();
}
