// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A protected guest that checks itself, pass by pass, for ever: what it keeps in its memory, registers and FP registers, a
//! counter that only grows, and the virtual count; a page goes to the host and back. It tells its passes and what it found.

use core::arch::global_asm;

use gzvm_abi::control;
use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::reg;
use gzvm_abi::run::exit;
use gzvm_guest_kit::case::Verdict;
use gzvm_guest_kit::machine::Range;
use gzvm_guest_kit::{check_eq, fail, timer};

use crate::programs::programs;
use crate::vm::Vm;

/// Bytes from the start of its memory that hold what it checks.
pub const PRIVATE_BYTES: u64 = 9 * 4096;

programs! {
    /// x0: its key.
    guards = (prog_guards, prog_guards_end);
}

/// Where a watched guest is, for those who attack it.
#[derive(Clone, Copy)]
pub struct Place {
    pub id: u16,
    /// Its memory, at the host.
    pub memory: u64,
    /// The two pages of its vCPU.
    pub shared: u64,
}

impl Place {
    /// What the host must not reach.
    pub fn private(&self) -> Range {
        Range { start: self.memory, size: PRIVATE_BYTES }
    }
}

/// What it told.
#[derive(Clone, Copy)]
pub struct Report {
    pub passes: u64,
    pub errors: u64,
}

/// A watched guest.
pub struct Guard {
    pub vm: Vm,
}

impl Guard {
    pub fn new(key: u64) -> Result<Self, Verdict> {
        let vm = Vm::protected(guards(), 1)?;
        vm.set_reg(0, reg::X0, key)?;
        Ok(Self { vm })
    }

    pub fn place(&self) -> Place {
        Place { id: self.vm.id, memory: self.vm.memory, shared: self.vm.shared[0] }
    }

    /// Its next report, with nobody else about.
    pub fn report(&mut self) -> Result<Report, Verdict> {
        let resumed = timer::wait_ms(5000, || {
            self.vm.call(Function::Control, &[control::RESUME.into()]).status() != Some(Status::Busy)
        });
        if !resumed {
            fail!("the guest can't be resumed");
        }
        // The first may be the second half of a report.
        let (offset, passes) = match self.store()? {
            (0x18, _) => self.store()?,
            first => first,
        };
        check_eq!(offset, 0x10, "told at");
        let (offset, errors) = self.store()?;
        check_eq!(offset, 0x18, "told at");
        Ok(Report { passes, errors })
    }

    /// Its next store. A random call may have asked that the host be told what else it does.
    fn store(&mut self) -> Result<(u64, u64), Verdict> {
        loop {
            let reason = self.vm.run(0)?;
            if ![exit::UNSHARE, exit::WATCH].contains(&reason) {
                return self.vm.stored(0, reason);
            }
        }
    }
}

global_asm!(
    r#"
    .section .text.programs, "ax"
    .global prog_guards, prog_guards_end
    .balign 16
prog_guards:
    mov     x20, #0x80000000
    mov     x19, #0x90000
    mov     x21, x0                 // key
    mov     x22, #0                 // passes
    mov     x23, #0                 // errors
    mov     x24, #0                 // virtual count
    mov     x26, #0                 // 1: the page at 0x9000 is private, and holds the key
    mov     x1, #(3 << 20)          // CPACR_EL1.FPEN
    msr     cpacr_el1, x1
    isb
    .inst   0x9E6702A8              // fmov d8, x21
    str     x22, [x20, #0x800]
    add     x1, x20, #0x1000
    mov     x2, #4096
1:  eor     x3, x1, x21
    str     x3, [x1], #8
    subs    x2, x2, #1
    b.ne    1b
2:  add     x1, x20, #0x1000        // 8 pages: each word its address ^ (key + passes)
    mov     x2, #4096
    add     x6, x21, x22
    add     x7, x6, #1
3:  ldr     x4, [x1]
    eor     x3, x1, x6
    cmp     x3, x4
    cinc    x23, x23, ne
    eor     x3, x1, x7
    str     x3, [x1], #8
    subs    x2, x2, #1
    b.ne    3b
    ldr     x4, [x20, #0x800]       // the counter
    cmp     x4, x22
    cinc    x23, x23, ne
    add     x22, x22, #1
    str     x22, [x20, #0x800]
    isb
    mrs     x5, cntvct_el0
    cmp     x5, x24
    cinc    x23, x23, lo
    mov     x24, x5
    .inst   0x9E660105              // fmov x5, d8
    cmp     x5, x21
    cinc    x23, x23, ne
    add     x25, x20, #0x9000
    ldr     x5, [x25]
    cbz     x26, 4f
    cmp     x5, x21
    cinc    x23, x23, ne
4:  str     x22, [x25]
    mov     x1, x25
    movz    w0, #3                  // MEM_SHARE
    movk    w0, #0xC600, lsl #16
    mov     x2, #0
    mov     x3, #0
    hvc     #0
    mov     x1, x25
    movz    w0, #4                  // MEM_UNSHARE
    movk    w0, #0xC600, lsl #16
    mov     x2, #0
    mov     x3, #0
    hvc     #0
    cmp     x0, #0
    cset    x26, eq
    str     x21, [x25]
    str     x22, [x19, #0x10]
    str     x23, [x19, #0x18]
    b       2b
prog_guards_end:
    "#
);
