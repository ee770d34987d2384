// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Code at EL0: one page of instructions, run through an alias of the image that EL0 may execute.
//!
//! The alias is the 1 GiB block of the image mapped once more at [`ALIAS`], read-only for EL0.
//! Boot CPU only.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use crate::{arch, boot, exception::Frame};

/// VA of the aliasing block: the last one of the table.
const ALIAS: u64 = 511 << 30;
const BLOCK: u64 = 1 << 30;

static RUNNING: AtomicBool = AtomicBool::new(false);
static ESR: AtomicU64 = AtomicU64::new(0);

#[repr(C, align(4096))]
struct Page(core::cell::UnsafeCell<[u32; 1024]>);
// SAFETY: written by `run` on the boot CPU only.
unsafe impl Sync for Page {}
static CODE: Page = Page(core::cell::UnsafeCell::new([0; 1024]));

const SVC_0: u32 = 0xD400_0001;

/// Maps the lowest GiB, which is the devices', once more, for EL0 to read and write; the address of it.
pub fn devices() -> u64 {
    // Device memory, AF, AP = 01, never executed.
    boot::alias(510, 0x0445 | 3 << 53);
    510 << 30
}

/// Where EL0 finds the first of its instructions.
pub fn address() -> u64 {
    ALIAS + (CODE.0.get() as u64 & (BLOCK - 1))
}

/// Runs `instructions` at EL0 with x0 = `x0`; an SVC stands behind them. Returns the ESR of the
/// exception that ended them and x0.
pub fn run(instructions: &[u32], x0: u64) -> (u64, u64) {
    run_with(instructions, x0, EL0T, 0)
}

/// As [`run`], in guarded memory (FEAT_BTI).
pub fn run_guarded(instructions: &[u32], x0: u64) -> (u64, u64) {
    const GP: u64 = 1 << 50;
    run_with(instructions, x0, EL0T, GP)
}

/// As [`run`], with PSTATE.SS set: software step, if MDSCR_EL1 says so.
pub fn run_stepped(instructions: &[u32], x0: u64) -> (u64, u64) {
    run_with(instructions, x0, EL0T | 1 << 21, 0)
}

/// EL0t, DAIF masked.
const EL0T: u64 = 0x3C0;

fn run_with(instructions: &[u32], x0: u64, pstate: u64, attributes: u64) -> (u64, u64) {
    let code = CODE.0.get().cast::<u32>();
    assert!(instructions.len() < 1023, "too much code for EL0");
    for (i, word) in instructions.iter().chain(&[SVC_0]).enumerate() {
        // SAFETY: i < 1024; the boot CPU is the only user of the page.
        unsafe { code.add(i).write_volatile(*word) };
    }
    let address = code as u64;
    arch::sync_code(address as usize, 4 * (instructions.len() + 1));
    // Read-only at both levels, EL0 may execute, EL1 not: AP = 11, PXN.
    let entry = (address & !(BLOCK - 1)) | 0x7C1 | 1 << 53 | attributes;
    boot::alias(511, entry);
    RUNNING.store(true, SeqCst);
    // SAFETY: saves what the call may clobber; comes back through `returned`.
    let x0 = unsafe { gzvm_guest_user_call(ALIAS + (address & (BLOCK - 1)), x0, pstate) };
    (ESR.load(SeqCst), x0)
}

/// Called for a synchronous exception from EL0: sends the frame back to [`run`].
pub(crate) fn returned(frame: &mut Frame) -> bool {
    if !RUNNING.swap(false, SeqCst) {
        return false;
    }
    ESR.store(frame.esr, SeqCst);
    frame.elr = gzvm_guest_user_back as *const () as u64;
    frame.spsr = 0x3C5;
    true
}

unsafe extern "C" {
    fn gzvm_guest_user_call(pc: u64, x0: u64, pstate: u64) -> u64;
    safe fn gzvm_guest_user_back();
}

global_asm!(
    r#"
    .section .text.user, "ax"
    .global gzvm_guest_user_call, gzvm_guest_user_back
gzvm_guest_user_call:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    mrs     x3, daif
    str     x3, [sp, #96]
    msr     daifset, #15
    msr     elr_el1, x0
    msr     spsr_el1, x2
    mov     x0, x1
    eret
gzvm_guest_user_back:
    ldr     x2, [sp, #96]
    msr     daif, x2
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret
    "#
);
