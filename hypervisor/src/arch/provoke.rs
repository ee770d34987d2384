// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Forbidden things that EL2's own map must stop (feature `crash-test`).

use core::sync::atomic::AtomicU32;

/// No machine has memory there, and EL2 maps only what is there.
const UNMAPPED: usize = 0xFFFF_FFFF_F000;
/// RET.
const RET: u32 = 0xD65F_03C0;

static DATA: AtomicU32 = AtomicU32::new(RET);
static RODATA: [u64; 2] = [1, 2];

/// Reads where nothing is.
#[inline(never)]
pub fn read_unmapped() {
    // SAFETY: faults, which is its purpose; and if not, a load changes nothing.
    unsafe { (UNMAPPED as *const u64).read_volatile() };
}

/// Changes an instruction of its own.
#[inline(never)]
pub fn write_text() {
    // SAFETY: faults, which is its purpose; if not, it writes a valid instruction.
    unsafe { (read_unmapped as *const () as *mut u32).write_volatile(RET) };
}

/// Changes a constant that nothing else uses.
#[inline(never)]
pub fn write_rodata() {
    // SAFETY: faults, which is its purpose; if not, nothing reads it.
    unsafe { (&raw const RODATA).cast_mut().cast::<u64>().write_volatile(3) };
}

/// Jumps to an instruction in data.
#[inline(never)]
pub fn execute_data() {
    // SAFETY: faults, which is its purpose; if not, the instruction there returns.
    unsafe { core::mem::transmute::<*const u32, extern "C" fn()>(DATA.as_ptr())() };
    // Not the last thing that is done here: this function is to be in the backtrace.
    super::barrier::isb();
}

/// UDF.
#[inline(never)]
pub fn undefined_instruction() {
    // SAFETY: faults, which is its purpose.
    unsafe { core::arch::asm!("udf #0") };
}
