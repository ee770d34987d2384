// SPDX-License-Identifier: Apache-2.0 OR MIT
//! When the hypervisor itself is wrong: a report on the console and in the RAM ring, then silence.
//! Nothing a host or guest does may lead here.

use core::fmt;
use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

use gzvm_core::addr::PAGE_SIZE;

use crate::arch::frame::HostFrame;
use crate::arch::percpu::PerCpu;
use crate::arch::{cpu, sysreg};
use crate::console::print_fatal;
use crate::mem::stage1;

/// One CPU reports; another that fails meanwhile stays quiet, so that reports don't mix.
static REPORTING: AtomicU32 = AtomicU32::new(0);
/// Most frames in a backtrace.
const MAX_FRAMES: usize = 24;

fn cpu_index() -> usize {
    PerCpu::try_this().map_or(0, |c| c.index)
}

/// Prints where each caller goes on, as offsets into `hypervisor.elf`. Frame records are followed
/// only upwards, inside this CPU's stack.
fn backtrace(mut fp: u64) {
    print_fatal(format_args!("backtrace (offsets in hypervisor.elf):\n"));
    let image = stage1::image();
    for _ in 0..MAX_FRAMES {
        let Some((next, pc)) = crate::mem::stack_record(fp) else { break };
        if !(image.base..image.end()).contains(&pc) {
            break;
        }
        print_fatal(format_args!("  {:#x}\n", pc.wrapping_sub(image.base)));
        if next <= fp {
            break;
        }
        fp = next;
    }
    print_fatal(format_args!("*** gzvm: halted\n"));
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if REPORTING.swap(1, Ordering::SeqCst) != 0 {
        cpu::halt();
    }
    print_fatal(format_args!("\n*** gzvm: hypervisor panic on CPU {}: {info}\n", cpu_index()));
    backtrace(cpu::frame_pointer());
    cpu::halt()
}

/// An exception of EL2's own: always a hypervisor bug (or broken hardware). `sp`: the stack pointer
/// at that time; `reason`: 0 synchronous, 1 IRQ, 2 FIQ, 3 SError.
#[unsafe(no_mangle)]
extern "C" fn handle_fatal_exception(frame: &HostFrame, sp: u64, reason: u64) -> ! {
    if REPORTING.swap(1, Ordering::SeqCst) != 0 {
        cpu::halt();
    }
    let (esr, far) = (cpu::esr(), cpu::far());
    let offset = |pc: u64| pc.wrapping_sub(stage1::image().base);
    print_fatal(format_args!("\n*** gzvm: exception at EL2 on CPU {}: ", cpu_index()));
    match reason {
        1 => print_fatal(format_args!("IRQ\n")),
        2 => print_fatal(format_args!("FIQ\n")),
        _ => print_fatal(format_args!("{}\n", Syndrome(esr))),
    }
    print_fatal(format_args!("ESR {esr:#x} (EC {:#x}, ISS {:#x})\n", esr >> 26 & 0x3F, esr & 0x1FF_FFFF));
    let guard = PerCpu::try_this().and_then(|cpu| cpu.guards().first().copied());
    if guard.is_some_and(|guard| far & !(PAGE_SIZE - 1) == guard) {
        print_fatal(format_args!("FAR is in the guard page of this CPU's stack: stack overflow\n"));
    }
    print_fatal(format_args!(
        "PC {:#x} (offset {:#x})  LR offset {:#x}\nFAR {far:#x}  SP {sp:#x}  SPSR {:#x}  HCR {:#x}\n",
        frame.elr,
        offset(frame.elr),
        offset(frame.x[30]),
        frame.spsr,
        sysreg::read!("hcr_el2"),
    ));
    for (n, row) in frame.x.chunks(4).enumerate() {
        print_fatal(format_args!("x{:<2}", n.wrapping_mul(4)));
        for value in row {
            print_fatal(format_args!(" {value:016x}"));
        }
        print_fatal(format_args!("\n"));
    }
    backtrace(frame.x[29]);
    cpu::halt()
}

/// ESR_EL2 of an exception from EL2 itself, in words (Arm ARM D24.2.45).
struct Syndrome(u64);

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let class = self.0 >> 26 & 0x3F;
        f.write_str(match class {
            0x00 => "unknown reason (undefined instruction)",
            0x07 => "FP/SIMD use",
            0x0D => "branch target",
            0x0E => "illegal execution state",
            0x18 => "trapped system register",
            0x21 => "instruction abort",
            0x22 => "PC alignment",
            0x25 => "data abort",
            0x26 => "SP alignment",
            0x2F => "SError",
            0x31 | 0x33 | 0x35 => "debug exception",
            0x3C => "BRK",
            _ => "see the exception class",
        })?;
        if class == 0x25 {
            f.write_str(if self.0 & 1 << 6 != 0 { ", write" } else { ", read" })?;
        }
        if matches!(class, 0x21 | 0x25) { fault_status(f, self.0 & 0x3F) } else { Ok(()) }
    }
}

/// IFSC and DFSC.
fn fault_status(f: &mut fmt::Formatter<'_>, code: u64) -> fmt::Result {
    let level = code & 3;
    match code {
        0x00..=0x03 => write!(f, ", address size fault at level {level}"),
        0x04..=0x07 => write!(f, ", translation fault at level {level}"),
        0x08..=0x0B => write!(f, ", access flag fault at level {level}"),
        0x0C..=0x0F => write!(f, ", permission fault at level {level}"),
        0x10 => write!(f, ", external abort"),
        0x14..=0x17 => write!(f, ", external abort on a table walk at level {level}"),
        0x18 => write!(f, ", ECC error"),
        0x21 => write!(f, ", alignment fault"),
        0x30 => write!(f, ", TLB conflict"),
        _ => write!(f, ", fault status {code:#x}"),
    }
}
