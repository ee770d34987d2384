// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Device accesses whose abort describes nothing (ESR_EL2.ISV = 0), which EL2 decodes: pairs,
//! write-back, SIMD; and those that it refuses with an external abort.
//!
//! The vGIC answers at EL2, the UART's scratch register and the test device in user space.

use core::arch::asm;

use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::mmio::Region;
use gzvm_guest_kit::{arch, boot, cases, check_eq, exception, fail, gic, read_sysreg, skip, user};

use crate::devices::{SCRATCH, uart};
use crate::registers::{fp_check, fp_fill};
use crate::util::{Below, below, everywhere, test_device};

pub const CASES: &[Case] = cases!["decoded":
    pairs_of_words, pairs_of_double_words, write_back, write_back_in_user_space, stack_pointer, vectors,
    vectors_in_user_space, unprivileged, at_el0, on_all_cpus, refused_forms_abort, page_end,
    fetch_from_a_device_aborts,
];

/// Priorities of SPIs nothing uses, 16-byte aligned.
const PRIORITIES: usize = gic::gicd::IPRIORITYR + 48;
/// GICD_IROUTER of four of them.
const ROUTERS: usize = gic::gicd::IROUTER + 8 * 48;
const WORDS: [u32; 2] = [0xF8C0_9088, 0x4850_5860];

fn supported() -> Outcome {
    if below() != Below::Gzvm {
        skip!("KVM leaves it to the VMM, which gives up; QEMU makes one access of a pair");
    }
    Ok(())
}

/// The distributor, with [`WORDS`] as priorities.
fn with_priorities(f: impl FnOnce(Region, u64) -> Outcome) -> Outcome {
    supported()?;
    let d = gic::distributor();
    d.write32(PRIORITIES, WORDS[0]);
    d.write32(PRIORITIES + 4, WORDS[1]);
    let outcome = f(d, d.base() + PRIORITIES as u64);
    for word in 0..4 {
        d.write32(PRIORITIES + 4 * word, u32::from_ne_bytes([gic::DEFAULT_PRIORITY; 4]));
    }
    outcome
}

fn pairs_of_words() -> Outcome {
    with_priorities(|d, a| {
        let (mut low, mut high): (u64, u64);
        // SAFETY: priorities of interrupts that nothing uses.
        unsafe { asm!("ldp {l:w}, {h:w}, [{a}]", l = out(reg) low, h = out(reg) high, a = in(reg) a) };
        check_eq!([low, high], WORDS.map(u64::from), "LDP Wt");
        // SAFETY: as above.
        unsafe { asm!("ldpsw {l}, {h}, [{a}]", l = out(reg) low, h = out(reg) high, a = in(reg) a) };
        check_eq!([low, high], [0xFFFF_FFFF_F8C0_9088, 0x4850_5860], "LDPSW");
        // SAFETY: as above.
        unsafe { asm!("ldnp {l:w}, {h:w}, [{a}]", l = out(reg) low, h = out(reg) high, a = in(reg) a) };
        check_eq!([low, high], WORDS.map(u64::from), "LDNP Wt");
        // SAFETY: as above.
        unsafe { asm!("stp {l:w}, wzr, [{a}]", l = in(reg) 0x1020_3040_u64, a = in(reg) a) };
        check_eq!([d.read32(PRIORITIES), d.read32(PRIORITIES + 4)], [0x1020_3040, 0], "after STP Wt");
        // SAFETY: as above.
        unsafe { asm!("stp {l:w}, {l:w}, [{a}, #-8]", l = in(reg) 0x5060_7080_u64, a = in(reg) a + 8) };
        check_eq!(
            [d.read32(PRIORITIES), d.read32(PRIORITIES + 4)],
            [0x5060_7080; 2],
            "after STP at an offset"
        );
        Ok(())
    })
}

fn pairs_of_double_words() -> Outcome {
    supported()?;
    let d = gic::distributor();
    let a = d.base() + ROUTERS as u64;
    let (low, high): (u64, u64);
    // SAFETY: routes of interrupts that nothing uses.
    unsafe {
        asm!("stp {l}, {h}, [{a}]", l = in(reg) 1_u64, h = in(reg) 1_u64 << 31, a = in(reg) a);
        asm!("ldp {l}, {h}, [{a}]", l = out(reg) low, h = out(reg) high, a = in(reg) a);
    }
    let seen = [d.read64(ROUTERS), d.read64(ROUTERS + 8)];
    d.write64(ROUTERS, 0);
    d.write64(ROUTERS + 8, 0);
    check_eq!(seen, [1, 1 << 31], "GICD_IROUTER after STP Xt");
    check_eq!([low, high], [1, 1 << 31], "LDP Xt");
    let Some(device) = test_device() else { skip!("no test device") };
    let (low, high): (u64, u64);
    // SAFETY: no side effects.
    unsafe { asm!("ldp {l}, {h}, [{a}]", l = out(reg) low, h = out(reg) high, a = in(reg) device.base()) };
    check_eq!([low, high], [0x47, 0], "LDP Xt of the test device");
    // SAFETY: the first two words ignore what is written.
    unsafe { asm!("stp wzr, wzr, [{a}]", a = in(reg) device.base()) };
    Ok(())
}

fn write_back() -> Outcome {
    with_priorities(|d, a| {
        let (value, second): (u64, u64);
        let mut at = a;
        // SAFETY: as in `pairs_of_words`.
        unsafe { asm!("ldr {v:w}, [{a}], #4", v = out(reg) value, a = inout(reg) at) };
        check_eq!((value, at), (WORDS[0].into(), a + 4), "LDR, post-index");
        at = a + 8;
        // SAFETY: as above.
        unsafe { asm!("strb wzr, [{a}, #-7]!", a = inout(reg) at) };
        check_eq!((d.read32(PRIORITIES), at), (WORDS[0] & !0xFF00, a + 1), "STRB, pre-index");
        at = a + 16;
        let value: u64;
        // SAFETY: as above.
        unsafe {
            asm!("ldp {l:w}, {h:w}, [{a}, #-16]!", l = out(reg) value, h = out(reg) second, a = inout(reg) at)
        };
        check_eq!([value, second, at], [(WORDS[0] & !0xFF00).into(), WORDS[1].into(), a], "LDP, pre-index");
        let value: u64;
        // SAFETY: as above.
        unsafe { asm!("ldrsb {v}, [{a}], #-256", v = out(reg) value, a = inout(reg) at) };
        check_eq!([value, at], [0xFFFF_FFFF_FFFF_FF88, a - 256], "LDRSB, post-index");
        Ok(())
    })
}

fn write_back_in_user_space() -> Outcome {
    supported()?;
    let uart = uart("write-back")?;
    let a = uart.base() + SCRATCH as u64;
    for value in [0x81_u64, 0x42] {
        let mut at = a - 3;
        let (read, signed): (u64, u64);
        // SAFETY: the scratch register.
        unsafe { asm!("strb {v:w}, [{a}, #3]!", v = in(reg) value, a = inout(reg) at) };
        check_eq!(at, a, "base after STRB, pre-index");
        // SAFETY: as above.
        unsafe { asm!("ldrb {v:w}, [{a}], #5", v = out(reg) read, a = inout(reg) at) };
        check_eq!([read, at], [value, a + 5], "LDRB, post-index");
        // SAFETY: as above.
        unsafe { asm!("ldrsb {v:w}, [{a}, #-5]!", v = out(reg) signed, a = inout(reg) at) };
        check_eq!([signed, at], [u64::from(value as u8 as i8 as u32), a], "LDRSB Wt, pre-index");
    }
    Ok(())
}

/// SP as the base, of EL1; of EL0 in `at_el0`. Interrupts are off: SP is no stack for a moment.
fn stack_pointer() -> Outcome {
    with_priorities(|_, a| {
        let (value, after): (u64, u64);
        // SAFETY: SP comes back before anything uses it as a stack; interrupts are masked in cases.
        unsafe {
            asm!(
                "mov {kept}, sp",
                "mov sp, {a}",
                "ldr {v:w}, [sp], #16",
                "mov {after}, sp",
                "mov sp, {kept}",
                kept = out(reg) _, a = in(reg) a, v = out(reg) value, after = out(reg) after,
            );
        }
        check_eq!([value, after], [WORDS[0].into(), a + 16], "LDR with SP as its base, post-index");
        let Ok(uart) = uart("SP") else { return Ok(()) };
        // Where SP is aligned.
        const OFFSET: u64 = 15;
        let a = uart.base() + SCRATCH as u64 - OFFSET;
        check_eq!(a & 15, 0, "where the scratch register is");
        let after: u64;
        // SAFETY: as above; the scratch register.
        unsafe {
            asm!(
                "mov {kept}, sp",
                "mov sp, {a}",
                "strb {v:w}, [sp, #{offset}]!",
                "mov {after}, sp",
                "mov sp, {kept}",
                kept = out(reg) _, a = in(reg) a, v = in(reg) 0x5A, after = out(reg) after,
                offset = const OFFSET,
            );
        }
        check_eq!(after, a + OFFSET, "SP after STRB");
        check_eq!(uart.read8(SCRATCH), 0x5A, "scratch register");
        Ok(())
    })
}

const PATTERN: u64 = 0x0102_0304_0506_0000;

macro_rules! simd {
    ($($code:expr),* ; $($operands:tt)*) => {
        // SAFETY: device registers; FP registers are nobody's in this image but `fp_fill`'s.
        unsafe { asm!(".arch_extension fp", ".arch_extension simd", $($code),*, $($operands)*) }
    };
}

/// Sets a vector register to its pattern again, checks that all others have kept theirs.
macro_rules! others_kept {
    ($n:literal) => {{
        let low = PATTERN + $n;
        simd!(concat!("fmov d", $n, ", {l}"), concat!("mov v", $n, ".d[1], {h}"); l = in(reg) low, h = in(reg) !low);
        check_eq!(fp_check(PATTERN), 0, "other V registers changed");
    }};
}

fn vectors() -> Outcome {
    with_priorities(|d, a| {
        let routers = d.base() + ROUTERS as u64;
        fp_fill(PATTERN);
        let (low, high): (u64, u64);
        simd!("ldr s7, [{a}]", "fmov {l}, d7", "mov {h}, v7.d[1]"; a = in(reg) a, l = out(reg) low, h = out(reg) high);
        check_eq!([low, high], [WORDS[0].into(), 0], "LDR St");
        others_kept!(7);
        simd!("fmov d3, {v}", "str b3, [{a}, #4]"; v = in(reg) 0xFFFF_FFFF_FFFF_FF10_u64, a = in(reg) a);
        check_eq!(d.read32(PRIORITIES + 4), WORDS[1] & !0xFF | 0x10, "after STR Bt");
        others_kept!(3);
        d.write64(ROUTERS, 1);
        d.write64(ROUTERS + 8, 1 << 31);
        let (low, high): (u64, u64);
        simd!("ldr q30, [{a}]", "fmov {l}, d30", "mov {h}, v30.d[1]"; a = in(reg) routers, l = out(reg) low, h = out(reg) high);
        check_eq!([low, high], [1, 1 << 31], "LDR Qt");
        let mut at = routers + 32;
        simd!("stp q30, q30, [{a}, #-32]!"; a = inout(reg) at);
        let seen = [0, 8, 16, 24].map(|o| d.read64(ROUTERS + o));
        for o in [0, 8, 16, 24] {
            d.write64(ROUTERS + o, 0);
        }
        check_eq!(seen, [1, 1 << 31, 1, 1 << 31], "after STP Qt");
        check_eq!(at, routers, "base after STP Qt");
        others_kept!(30);
        Ok(())
    })
}

fn vectors_in_user_space() -> Outcome {
    supported()?;
    let uart = uart("vectors")?;
    let a = uart.base() + SCRATCH as u64;
    fp_fill(PATTERN);
    for value in [0x81_u64, 0x42] {
        simd!("fmov d9, {v}", "str b9, [{a}]"; v = in(reg) value | 0xFF00, a = in(reg) a);
        check_eq!(u64::from(uart.read8(SCRATCH)), value, "after STR Bt");
        let (low, high): (u64, u64);
        simd!("ldr b9, [{a}]", "fmov {l}, d9", "mov {h}, v9.d[1]"; a = in(reg) a, l = out(reg) low, h = out(reg) high);
        check_eq!([low, high], [value, 0], "LDR Bt");
        others_kept!(9);
    }
    let Some(device) = test_device() else { skip!("no test device") };
    let [a, b, c, d]: [u64; 4];
    simd!("ldp q1, q2, [{x}]", "fmov {a}, d1", "mov {b}, v1.d[1]", "fmov {c}, d2", "mov {d}, v2.d[1]";
        x = in(reg) device.base(), a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d);
    check_eq!([a, b, c, d], [0x47, 0, 0, 0], "LDP Qt of the test device");
    Ok(())
}

/// LDTR, STTR: as if from EL0, so through a mapping that EL0 has.
fn unprivileged() -> Outcome {
    with_priorities(|d, a| {
        let a = user::devices() + a;
        let value: u64;
        // SAFETY: priorities of interrupts that nothing uses.
        unsafe { asm!("ldtr {v:w}, [{a}]", v = out(reg) value, a = in(reg) a) };
        check_eq!(value, u64::from(WORDS[0]), "LDTR");
        // SAFETY: as above.
        unsafe { asm!("sttrb wzr, [{a}, #3]", a = in(reg) a) };
        check_eq!(d.read32(PRIORITIES), WORDS[0] & 0x00FF_FFFF, "after STTRB");
        Ok(())
    })
}

fn at_el0() -> Outcome {
    const LDP_W0_W1: u32 = 0x2940_0400; // ldp w0, w1, [x0]
    const MOV_SP_X0: u32 = 0x9100_001F;
    const LDR_POST_SP: u32 = 0xB841_07E0; // ldr w0, [sp], #16
    const MOV_X0_SP: u32 = 0x9100_03E0;
    const MOV_X1_X0: u32 = 0xAA00_03E1;
    const LDR_POST_X1: u32 = 0x3840_1420; // ldrb w0, [x1], #1
    const SVC: u64 = exception::ec::SVC as u64;
    with_priorities(|_, a| {
        let a = user::devices() + a;
        let (esr, value) = user::run(&[LDP_W0_W1], a);
        check_eq!([esr >> 26, value], [SVC, WORDS[0].into()], "LDP at EL0");
        let (esr, value) = user::run(&[MOV_SP_X0, LDR_POST_SP], a);
        check_eq!([esr >> 26, value], [SVC, WORDS[0].into()], "LDR with SP as its base at EL0");
        let (esr, value) = user::run(&[MOV_SP_X0, LDR_POST_SP, MOV_X0_SP], a);
        check_eq!([esr >> 26, value], [SVC, a + 16], "SP at EL0 after it");
        let Ok(uart) = uart("EL0") else { return Ok(()) };
        uart.write8(SCRATCH, 0x77);
        let (esr, value) =
            user::run(&[MOV_X1_X0, LDR_POST_X1], user::devices() + uart.base() + SCRATCH as u64);
        check_eq!([esr >> 26, value], [SVC, 0x77], "LDRB, post-index, at EL0");
        // What is refused comes to EL1 as an abort from below.
        const LDXR_W0: u32 = 0x885F_7C00;
        let (esr, _) = user::run(&[LDXR_W0], a);
        if below() == Below::Gzvm {
            check_eq!([esr >> 26, esr & 0x3F], [0x24, 0x10], "LDXR at EL0");
        }
        Ok(())
    })
}

fn on_all_cpus() -> Outcome {
    supported()?;
    if test_device().is_none() {
        skip!("no test device");
    }
    everywhere(|| {
        let pattern = PATTERN + arch::cpu_index() as u64 * 0x1_0000_0000;
        fp_fill(pattern);
        for _ in 0..100 {
            let (low, high): (u64, u64);
            let mut at = 0x0009_0000_u64;
            // SAFETY: the test device is there.
            unsafe {
                asm!("ldp {l:w}, {h:w}, [{a}], #8", l = out(reg) low, h = out(reg) high, a = inout(reg) at);
            }
            check_eq!([low, high, at], [0x47, 0, 0x0009_0008], "LDP, post-index");
            simd!("ldr d0, [{a}]", "fmov {l}, d0"; a = in(reg) 0x0009_0000_u64, l = out(reg) _);
            simd!("fmov d0, {l}", "mov v0.d[1], {h}"; l = in(reg) pattern, h = in(reg) !pattern);
        }
        check_eq!(fp_check(pattern), 0, "V registers on CPU {}", arch::cpu_index());
        Ok(())
    })
}

const EXTERNAL_ABORT: u32 = 0x10;

fn is_external_abort(what: &str, address: u64, result: Result<(), exception::Exception>) -> Outcome {
    match result {
        Ok(()) => fail!("{what} at {address:#x} went through"),
        Err(e) => {
            check_eq!(e.class(), exception::ec::DATA_ABORT, "{what} at {address:#x}: class");
            check_eq!(e.fault_status(), EXTERNAL_ABORT, "{what} at {address:#x}: status");
            check_eq!(e.far, address, "{what} at {address:#x}: FAR");
            Ok(())
        }
    }
}

macro_rules! aborts {
    ($address:expr; $($insn:literal),* $(,)?) => {
        $(is_external_abort($insn, $address, exception::expect(|| {
            // SAFETY: device registers without side effects; every register is given up.
            unsafe {
                asm!(".arch_extension fp", ".arch_extension simd", ".arch_extension lse", $insn,
                    inout("x0") $address => _, out("x1") _, inout("x2") 0_u64 => _)
            }
        }))?;)*
    };
}

fn refused_forms_abort() -> Outcome {
    if below() != Below::Gzvm {
        skip!("gzvm's policy");
    }
    let test_device = test_device().map(|d| d.base());
    for address in [Some(gic::distributor().base() + 0x400), test_device].into_iter().flatten() {
        aborts![address;
            "ldxr w1, [x0]",
            "ldaxr x1, [x0]",
            "ld1 {{ v0.4s }}, [x0]",
            "st1 {{ v0.s }}[1], [x0], #4",
            "dc zva, x0",
        ];
        if read_sysreg!("S3_0_C0_C6_0") >> 20 & 0xF >= 2 {
            aborts![address; "ldadd w1, w1, [x0]", "swp w1, w1, [x0]", "cas w1, w2, [x0]"];
        }
    }
    Ok(())
}

/// An access that goes on in the next page: a load does where that is the device's too; all else is refused.
fn page_end() -> Outcome {
    if below() != Below::Gzvm {
        skip!("gzvm's policy");
    }
    // The last word of the first frame, and the reserved first one of the next.
    let Some(redistributor) = gic::redistributor(arch::mpidr()) else { skip!("no redistributor") };
    let last = redistributor.base() + 0x1_0000 - 4;
    let (mut low, mut high): (u64, u64);
    // SAFETY: loads without side effects.
    unsafe { asm!("ldp {l:w}, {h:w}, [{a}]", l = out(reg) low, h = out(reg) high, a = in(reg) last) };
    check_eq!([low, high], [0xB1, 0], "LDP Wt of GICR_CIDR3 and what is behind");
    let mut at = last + 64;
    // SAFETY: as above.
    unsafe {
        asm!("ldp {l:w}, {h:w}, [{a}, #-64]!", l = out(reg) low, h = out(reg) high, a = inout(reg) at);
    }
    check_eq!([low, high, at], [0xB1, 0, last], "LDP Wt with write-back");
    aborts![last; "stp wzr, wzr, [x0]", "stp wzr, wzr, [x0], #8"];
    // Behind the distributor's last page is no device of the hypervisor; the VMM says what is there.
    let Some(device) = test_device() else { skip!("no test device") };
    aborts![device.base() + 0xFF8; "stp x1, x2, [x0]", "str q0, [x0]"];
    Ok(())
}

fn fetch_from_a_device_aborts() -> Outcome {
    supported()?;
    let Some(device) = test_device() else { skip!("no test device") };
    // Normal memory, executable at EL1.
    boot::alias(509, 0x0701);
    let address = (509 << 30) + device.base();
    // SAFETY: it never gets as far as an instruction.
    let f: extern "C" fn() = unsafe { core::mem::transmute(address as *const ()) };
    match exception::expect(|| f()) {
        Ok(()) => Err(Verdict::fail(format_args!("it went through"))),
        Err(e) => {
            check_eq!(e.class(), exception::ec::INSTRUCTION_ABORT, "class");
            check_eq!(e.fault_status(), EXTERNAL_ABORT, "status");
            check_eq!(e.far, address, "FAR");
            Ok(())
        }
    }
}
