// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Ways for a guest to end, for tests of what the VMM says and does about each.

use core::arch::asm;

use gzvm_guest_kit::psci::function;
use gzvm_guest_kit::{arch, machine, println, psci, timer};

/// An address that neither memory nor a device is at, in gz's map and in QEMU's.
const NOWHERE: u64 = 0x3000_0000;
/// An address that the guest's own tables do not map.
const NOT_MAPPED: u64 = 0x100_0000_0000;
const WATCHDOG: u64 = 0x3000;
const TEST_DEVICE: u64 = 0x0009_0000;

/// `off`, `reset`, `panic`, `unmapped-read`, `unmapped-write`, `unmapped-exec`, `ldp-device`,
/// `writeback-device`, `exec-device`, `hang` (interrupts off, spinning), `wfi` (nothing that could
/// wake it), `beat` (a line every 50 ms, for ever), `undefined`, `brk`, `abort` (of the guest's own tables), `abort-survived` (the
/// same, and it goes on), `all-off` (the last CPU turns itself off), `memory-end` (past the end of memory).
pub fn run(how: &str) {
    println!("[CRASH] {how}");
    match how {
        "off" => return,
        "reset" => drop(psci::call(function::SYSTEM_RESET, &[])),
        "panic" => panic!("as asked"),
        // SAFETY: the guest is to end by it.
        "unmapped-read" => drop(unsafe { gzvm_guest_kit::mmio::load32(NOWHERE) }),
        // SAFETY: the guest is to end by it.
        "unmapped-write" => unsafe { gzvm_guest_kit::mmio::store32(NOWHERE, 1) },
        "unmapped-exec" => jump_without_mmu(NOWHERE),
        // SAFETY: the guest is to end by it.
        "ldp-device" => unsafe { asm!("ldp {}, {}, [{}]", out(reg) _, out(reg) _, in(reg) TEST_DEVICE) },
        // SAFETY: the guest is to end by it.
        "writeback-device" => unsafe {
            asm!("ldr {0:w}, [{1}], #4", out(reg) _, inout(reg) TEST_DEVICE => _)
        },
        "exec-device" => jump_without_mmu(TEST_DEVICE),
        "hang" => loop {
            arch::cpu_relax();
        },
        "wfi" => loop {
            arch::wfi();
        },
        // Says every 50 ms that it lives.
        "beat" => loop {
            println!("[BEAT] {}", timer::now());
            timer::wait_ms(50, || false);
        },
        // SAFETY: the guest is to end by it.
        "undefined" => unsafe { asm!("udf #0") },
        // SAFETY: the guest is to end by it.
        "brk" => unsafe { asm!("brk #7") },
        // SAFETY: the guest is to end by it.
        "abort" => drop(unsafe { gzvm_guest_kit::mmio::load64(NOT_MAPPED) }),
        "abort-survived" => {
            // SAFETY: whatever it gives, or does not give.
            let result =
                gzvm_guest_kit::exception::expect(|| unsafe { gzvm_guest_kit::mmio::load64(NOT_MAPPED) });
            println!("caught: {}", result.is_err());
        }
        // vCPU 0's runs down after a second.
        "watchdog" => {
            start_watchdog();
            loop {
                arch::cpu_relax();
            }
        }
        // For three seconds, then it is stopped.
        "watchdog-petted" => {
            start_watchdog();
            for _ in 0..30 {
                timer::wait_ms(100, || false);
                // SAFETY: the watchdog's counter.
                unsafe { gzvm_guest_kit::mmio::store32(WATCHDOG + 4, 10) };
            }
            // SAFETY: its switch.
            unsafe { gzvm_guest_kit::mmio::store32(WATCHDOG, 0) };
            timer::wait_ms(2000, || false);
        }
        "all-off" => psci::cpu_off(),
        "memory-end" => {
            let end = machine::get().memory.iter().map(|m| m.end()).max().unwrap_or(NOWHERE);
            // SAFETY: the guest is to end by it.
            unsafe { gzvm_guest_kit::mmio::store64(end, 1) };
        }
        _ => println!("unknown way to crash"),
    }
    println!("[SURVIVED] {how}");
}

/// vCPU 0's, to a second.
fn start_watchdog() {
    // SAFETY: the device's registers: counts a second, counts, switch.
    unsafe {
        gzvm_guest_kit::mmio::store32(WATCHDOG + 0xC, 10);
        gzvm_guest_kit::mmio::store32(WATCHDOG + 4, 10);
        gzvm_guest_kit::mmio::store32(WATCHDOG, 1);
    }
}

/// With the MMU off, so that it is stage 2 that objects.
fn jump_without_mmu(address: u64) {
    // SAFETY: the guest is to end by it.
    unsafe {
        asm!(
            "mrs x9, sctlr_el1",
            "bic x9, x9, #1",
            "bic x9, x9, #4",
            "msr sctlr_el1, x9",
            "isb",
            "blr x0",
            in("x0") address,
            clobber_abi("C"),
        )
    };
}
