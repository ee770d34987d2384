// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Exception vectors of EL1, and code that may take an exception.
//!
//! A synchronous exception or SError inside [`expect`] is recorded and its instruction skipped;
//! outside it ends the guest with a failed case. IRQs go to [`gic`](crate::gic).

use core::arch::global_asm;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::{MAX_CPUS, arch, case, console, gic, psci, user};

/// Registers at the time of an exception, as the vectors store them.
#[repr(C)]
pub struct Frame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where to return to.
    pub elr: u64,
    /// PSTATE to return to.
    pub spsr: u64,
    /// Syndrome.
    pub esr: u64,
    /// Faulting address, if the syndrome has one.
    pub far: u64,
    pad: u64,
}
const _: () = assert!(size_of::<Frame>() == 288);

/// Exception classes (ESR_EL1.EC, Arm ARM D24.2.40).
pub mod ec {
    /// Unknown reason: UNDEFINED instruction.
    pub const UNDEFINED: u32 = 0x00;
    /// SVC from AArch64.
    pub const SVC: u32 = 0x15;
    /// Trapped MSR, MRS or system instruction.
    pub const SYSREG: u32 = 0x18;
    /// Instruction abort without a change of exception level.
    pub const INSTRUCTION_ABORT: u32 = 0x21;
    /// Data abort without a change of exception level.
    pub const DATA_ABORT: u32 = 0x25;
    /// SError.
    pub const SERROR: u32 = 0x2F;
}

/// An exception that [`expect`] caught.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
}

impl Exception {
    /// Its class, one of [`ec`].
    pub fn class(&self) -> u32 {
        (self.esr >> 26 & 0x3F) as u32
    }

    /// Fault status code of an abort.
    pub fn fault_status(&self) -> u32 {
        (self.esr & 0x3F) as u32
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EC {:#x} ESR {:#x} FAR {:#x} ELR {:#x}", self.class(), self.esr, self.far, self.elr)
    }
}

struct Slot {
    armed: AtomicBool,
    count: AtomicU32,
    esr: AtomicU64,
    far: AtomicU64,
    elr: AtomicU64,
}

static SLOTS: [Slot; MAX_CPUS] = [const {
    Slot {
        armed: AtomicBool::new(false),
        count: AtomicU32::new(0),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
        elr: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Runs `f`; instructions in it that take an exception are skipped.
///
/// # Errors
/// The first exception, if there was any.
#[inline(never)]
pub fn expect<R>(f: impl FnOnce() -> R) -> Result<R, Exception> {
    let slot = &SLOTS[arch::cpu_index()];
    slot.count.store(0, SeqCst);
    slot.armed.store(true, SeqCst);
    let result = f();
    arch::dsb();
    arch::isb();
    slot.armed.store(false, SeqCst);
    if slot.count.load(SeqCst) == 0 {
        Ok(result)
    } else {
        Err(Exception { esr: slot.esr.load(SeqCst), far: slot.far.load(SeqCst), elr: slot.elr.load(SeqCst) })
    }
}

const KIND_SYNC: u64 = 4;
const KIND_IRQ: u64 = 5;
const KIND_SERROR: u64 = 7;
const KIND_LOWER_SYNC: u64 = 8;
const KIND_LOWER_IRQ: u64 = 9;

#[unsafe(no_mangle)]
extern "C" fn gzvm_guest_exception(kind: u64, frame: &mut Frame) {
    match kind {
        KIND_IRQ | KIND_LOWER_IRQ => return gic::handle_irq(),
        KIND_LOWER_SYNC if user::returned(frame) => return,
        _ => {}
    }
    let slot = &SLOTS[arch::cpu_index() % MAX_CPUS];
    if slot.armed.load(SeqCst) && (kind == KIND_SYNC || kind == KIND_SERROR) {
        if slot.count.fetch_add(1, SeqCst) == 0 {
            slot.esr.store(frame.esr, SeqCst);
            slot.far.store(frame.far, SeqCst);
            slot.elr.store(frame.elr, SeqCst);
        }
        let class = (frame.esr >> 26 & 0x3F) as u32;
        if kind == KIND_SYNC {
            // A bad jump has no next instruction: back to the caller.
            frame.elr = if class == ec::INSTRUCTION_ABORT { frame.x[30] } else { frame.elr.wrapping_add(4) };
        }
        return;
    }
    fatal(format_args!(
        "exception kind {kind} on cpu {}: ESR {:#x} FAR {:#x} ELR {:#x} SPSR {:#x} x0 {:#x} x30 {:#x} (image {:#x})",
        arch::cpu_index(),
        frame.esr,
        frame.far,
        frame.elr,
        frame.spsr,
        frame.x[0],
        frame.x[30],
        crate::boot::image_range().0,
    ))
}

/// Ends the guest: the running case has failed.
pub fn fatal(what: fmt::Arguments) -> ! {
    static ONCE: AtomicBool = AtomicBool::new(false);
    arch::irq_disable();
    if !ONCE.swap(true, SeqCst) {
        console::break_lock();
        case::abort(what);
    }
    psci::system_off()
}

global_asm!(
    r#"
    .macro  gzvm_vector kind
    .balign 128
    sub     sp, sp, #288
    stp     x0, x1, [sp]
    mov     x0, #\kind
    b       gzvm_guest_vector_common
    .endm

    .section .text.vectors, "ax"
    .balign 2048
    .global gzvm_guest_vectors
gzvm_guest_vectors:
    gzvm_vector 0
    gzvm_vector 1
    gzvm_vector 2
    gzvm_vector 3
    gzvm_vector 4
    gzvm_vector 5
    gzvm_vector 6
    gzvm_vector 7
    gzvm_vector 8
    gzvm_vector 9
    gzvm_vector 10
    gzvm_vector 11
    gzvm_vector 12
    gzvm_vector 13
    gzvm_vector 14
    gzvm_vector 15

gzvm_guest_vector_common:
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    mrs     x2, elr_el1
    stp     x30, x2, [sp, #240]
    mrs     x2, spsr_el1
    mrs     x3, esr_el1
    stp     x2, x3, [sp, #256]
    mrs     x2, far_el1
    str     x2, [sp, #272]
    mov     x1, sp
    bl      gzvm_guest_exception
    ldp     x30, x2, [sp, #240]
    ldr     x3, [sp, #256]
    msr     elr_el1, x2
    msr     spsr_el1, x3
    ldp     x0, x1, [sp]
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x19, [sp, #144]
    ldp     x20, x21, [sp, #160]
    ldp     x22, x23, [sp, #176]
    ldp     x24, x25, [sp, #192]
    ldp     x26, x27, [sp, #208]
    ldp     x28, x29, [sp, #224]
    add     sp, sp, #288
    eret
    "#
);
