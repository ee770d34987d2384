// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Loads and stores that somebody below answers: widths, sign extension, the zero register.

use core::arch::asm;

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::machine::UartKind;
use gzvm_guest_kit::mmio::Region;
use gzvm_guest_kit::{cases, check_eq, gic, machine, skip};

use crate::util::{everywhere, known_of_kvm, test_device};

pub const CASES: &[Case] = cases!["devices":
    test_device_reads, test_device_from_all_cpus, uart_scratch_register, emulated_gic_widths,
    sign_extension, zero_register, indexed_forms,
];

fn test_device_reads() -> Outcome {
    let Some(device) = test_device() else { skip!("no test device") };
    for _ in 0..200 {
        check_eq!(device.read32(0), 0x47, "4 bytes");
    }
    // SAFETY: no side effects.
    let wide: u64 = unsafe {
        let mut value = u64::MAX;
        asm!("ldr {v:w}, [{a}]", v = inout(reg) value, a = in(reg) device.base());
        value
    };
    check_eq!(wide, 0x47, "the whole register after a 32-bit load");
    Ok(())
}

fn test_device_from_all_cpus() -> Outcome {
    if test_device().is_none() {
        skip!("no test device");
    }
    everywhere(|| {
        // SAFETY: the test device is there.
        let device = unsafe { Region::new(0x0009_0000, 4) };
        for _ in 0..500 {
            check_eq!(device.read32(0), 0x47, "4 bytes");
        }
        Ok(())
    })
}

/// Its scratch register: no function.
pub const SCRATCH: usize = 7;

/// The 16550.
pub fn uart(what: &str) -> Result<Region, gzvm_guest_kit::case::Verdict> {
    match machine::get().uart {
        // SAFETY: the device tree says so; the scratch register has no function.
        Some((UartKind::Ns16550 { shift: 0 }, base)) => Ok(unsafe { Region::new(base, 8) }),
        _ => Err(gzvm_guest_kit::case::Verdict::skip(format_args!("no 16550 for {what}"))),
    }
}

fn uart_scratch_register() -> Outcome {
    let uart = uart("bytes")?;
    for value in 0..=255 {
        uart.write8(SCRATCH, value);
        check_eq!(uart.read8(SCRATCH), value, "scratch register");
    }
    Ok(())
}

/// A word of priorities of SPIs nothing uses, with every byte another one.
const PRIORITIES: usize = gic::gicd::IPRIORITYR + 40;

fn with_priorities(f: impl FnOnce(Region, u32) -> Outcome) -> Outcome {
    let d = gic::distributor();
    d.write32(PRIORITIES, 0xF8C0_9088);
    // A GIC may have fewer priority bits than eight; five it has at least.
    let outcome = f(d, d.read32(PRIORITIES));
    d.write32(PRIORITIES, u32::from_ne_bytes([gic::DEFAULT_PRIORITY; 4]));
    outcome
}

fn emulated_gic_widths() -> Outcome {
    with_priorities(|d, word| {
        check_eq!(word, 0xF8C0_9088, "word");
        for i in 0..4 {
            check_eq!(d.read8(PRIORITIES + i), word.to_le_bytes()[i], "byte {i}");
        }
        d.write8(PRIORITIES + 2, 0x40);
        check_eq!(d.read32(PRIORITIES), 0xF840_9088, "word after a byte store");
        let redistributor = gic::this_redistributor();
        let low = u64::from(redistributor.read32(gic::gicr::TYPER));
        let high = u64::from(redistributor.read32(gic::gicr::TYPER + 4));
        check_eq!(redistributor.read64(gic::gicr::TYPER), high << 32 | low, "GICR_TYPER and its halves");
        let router = gic::gicd::IROUTER + 8 * 40;
        let before = d.read64(router);
        d.write64(router, 1);
        check_eq!(d.read64(router), 1, "IROUTER");
        d.write32(router, 0);
        check_eq!(d.read64(router), 0, "IROUTER after a store to its lower half");
        d.write64(router, before);
        Ok(())
    })
}

macro_rules! load {
    ($insn:literal, $address:expr) => {{
        let mut value = 0x5555_5555_5555_5555_u64;
        // SAFETY: loads of registers without side effects.
        unsafe { asm!($insn, v = inout(reg) value, a = in(reg) $address, options(nostack)) };
        value
    }};
}

fn sign_extension() -> Outcome {
    known_of_kvm("it cuts an emulated load to its width after it has extended the sign")?;
    with_priorities(|d, _| {
        let a = d.base() + PRIORITIES as u64;
        check_eq!(load!("ldrsb {v:w}, [{a}]", a), 0xFFFF_FF88, "LDRSB Wt");
        check_eq!(load!("ldrsb {v:x}, [{a}]", a), 0xFFFF_FFFF_FFFF_FF88, "LDRSB Xt");
        check_eq!(load!("ldrsw {v:x}, [{a}]", a), 0xFFFF_FFFF_F8C0_9088, "LDRSW");
        check_eq!(load!("ldrb {v:w}, [{a}]", a), 0x88, "LDRB");
        check_eq!(load!("ldr {v:w}, [{a}]", a), 0xF8C0_9088, "LDR Wt");
        Ok(())
    })?;
    let uart = uart("sign extension")?;
    uart.write8(SCRATCH, 0x81);
    let a = uart.base() + SCRATCH as u64;
    check_eq!(load!("ldrsb {v:w}, [{a}]", a), 0xFFFF_FF81, "LDRSB Wt of the VMM's device");
    check_eq!(load!("ldrsb {v:x}, [{a}]", a), 0xFFFF_FFFF_FFFF_FF81, "LDRSB Xt of the VMM's device");
    check_eq!(load!("ldrb {v:w}, [{a}]", a), 0x81, "LDRB of the VMM's device");
    Ok(())
}

fn zero_register() -> Outcome {
    with_priorities(|d, _| {
        let a = d.base() + PRIORITIES as u64;
        // SAFETY: priorities of interrupts that nothing uses.
        unsafe { asm!("ldr wzr, [{a}]", "str wzr, [{a}]", a = in(reg) a) };
        check_eq!(d.read32(PRIORITIES), 0, "after a store of wzr");
        Ok(())
    })?;
    if let Some(device) = test_device() {
        // SAFETY: no side effects.
        unsafe { asm!("ldr wzr, [{a}]", a = in(reg) device.base()) };
        check_eq!(device.read32(0), 0x47, "test device after a load to wzr");
    }
    Ok(())
}

/// Register offsets, and acquire loads, which the syndrome describes too.
fn indexed_forms() -> Outcome {
    with_priorities(|d, word| {
        let (base, offset) = (d.base(), PRIORITIES as u64);
        let (indexed, acquire): (u64, u64);
        // SAFETY: loads of priorities.
        unsafe {
            asm!("ldr {v:w}, [{b}, {o}]", v = out(reg) indexed, b = in(reg) base, o = in(reg) offset);
            asm!("ldar {v:w}, [{a}]", v = out(reg) acquire, a = in(reg) base + offset);
        }
        check_eq!(indexed, u64::from(word), "register offset");
        check_eq!(acquire, u64::from(word), "LDAR");
        Ok(())
    })
}
