// SPDX-License-Identifier: Apache-2.0 OR MIT
//! When the hypervisor itself is wrong: a report on the console and in the RAM ring, then silence.
//! Nothing a host or guest does may lead here.

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU32, Ordering};

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

/// Prints return addresses as offsets into `hypervisor.elf`. Frame records are trusted only inside
/// RAM that the stack can be in: they must be aligned and go up.
fn backtrace(mut fp: u64) {
    let image = stage1::image();
    let print = |pc: u64| {
        print_fatal(format_args!("  {:#010x}\n", pc.wrapping_sub(image.base)));
    };
    for _ in 0..MAX_FRAMES {
        if fp == 0 || fp & 15 != 0 {
            break;
        }
        let Some((next, pc)) = crate::mem::stack_record(fp) else { break };
        if !(image.base..image.end()).contains(&pc) {
            break;
        }
        print(pc);
        if next <= fp {
            break;
        }
        fp = next;
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if REPORTING.swap(1, Ordering::SeqCst) != 0 {
        cpu::halt();
    }
    print_fatal(format_args!("\n*** gzvm: hypervisor panic on CPU {}: {info}\n", cpu_index()));
    print_fatal(format_args!("backtrace (offsets in hypervisor.elf):\n"));
    backtrace(cpu::frame_pointer());
    print_fatal(format_args!("*** gzvm: halted\n"));
    cpu::halt()
}

/// An exception of EL2's own: always a hypervisor bug (or broken hardware).
#[unsafe(no_mangle)]
extern "C" fn handle_fatal_exception(frame: &HostFrame, sp: u64) -> ! {
    if REPORTING.swap(1, Ordering::SeqCst) != 0 {
        cpu::halt();
    }
    let esr = cpu::esr();
    let image = stage1::image();
    print_fatal(format_args!(
        "\n*** gzvm: exception at EL2 on CPU {}: {} (ESR {esr:#x}, EC {:#x}, ISS {:#x})\n",
        cpu_index(),
        class_name(esr),
        esr >> 26 & 0x3F,
        esr & 0x1FF_FFFF,
    ));
    print_fatal(format_args!(
        "PC {:#x} (offset {:#x})  FAR {:#x}  SP {sp:#x}  SPSR {:#x}  HCR {:#x}\n",
        frame.elr,
        frame.elr.wrapping_sub(image.base),
        cpu::far(),
        frame.spsr,
        sysreg::read!("hcr_el2"),
    ));
    for (n, pair) in frame.x.chunks(4).enumerate() {
        print_fatal(format_args!("x{:<2}", n.wrapping_mul(4)));
        for value in pair {
            print_fatal(format_args!(" {value:016x}"));
        }
        print_fatal(format_args!("\n"));
    }
    print_fatal(format_args!("backtrace (offsets in hypervisor.elf):\n"));
    backtrace(frame.x[29]);
    print_fatal(format_args!("*** gzvm: halted\n"));
    cpu::halt()
}

fn class_name(esr: u64) -> &'static str {
    match esr >> 26 & 0x3F {
        0x00 => "unknown reason (undefined instruction)",
        0x07 => "FP/SIMD use",
        0x0E => "illegal execution state",
        0x18 => "trapped system register",
        0x21 => "instruction abort",
        0x22 => "PC alignment",
        0x25 => "data abort",
        0x26 => "SP alignment",
        0x2F => "SError",
        0x3C => "BRK",
        _ => "see the exception class",
    }
}
