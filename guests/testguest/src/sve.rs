// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SVE, in VMs that were given it: Z, P, FFR and ZCR_EL1 survive exits and preemption.

use core::arch::global_asm;

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{arch, cases, check, check_eq, gic, machine, read_sysreg, skip, timer, write_sysreg};

use crate::sysregs::{encoding, execute, mrs};
use crate::util::{everywhere, exit_of_kind, test_device};

pub const CASES: &[Case] = cases!["sve":
    shown_if_given, state_survives, shorter_vectors,
];

const MS: u64 = 300;
const MAX_BYTES: usize = 256;
/// Z0..Z31, P0..P15, FFR, each at the length in force.
const STATE: usize = 32 * MAX_BYTES + 17 * MAX_BYTES / 8;

unsafe extern "C" {
    safe fn sve_bytes() -> u64;
    safe fn sve_fill(pattern: u64);
    fn sve_store(area: *mut u8);
}

fn has_sve() -> bool {
    read_sysreg!("id_aa64pfr0_el1") >> 32 & 0xF != 0
}

/// SVE for EL1, with vectors of `len` + 1 quadwords at most; what they then have in bytes.
fn enable(len: u64) -> usize {
    write_sysreg!("cpacr_el1", read_sysreg!("cpacr_el1") | 3 << 16);
    arch::isb();
    write_sysreg!("S3_0_C1_C2_0", len); // ZCR_EL1
    arch::isb();
    sve_bytes() as usize
}

fn shown_if_given() -> Outcome {
    let given = machine::get().arg("given") == Some("sve");
    if machine::get().arg("hyp") == Some("gzvm") {
        check_eq!(has_sve(), given, "ID_AA64PFR0_EL1.SVE");
    }
    // ID_AA64ZFR0_EL1 says nothing without it.
    let details = execute(mrs(encoding(3, 0, 0, 4, 4)));
    check!(has_sve() || details == Ok(0), "ID_AA64ZFR0_EL1: {details:x?}");
    Ok(())
}

/// What [`sve_fill`] puts into the registers.
fn expected(pattern: u64, bytes: usize, at: usize) -> u8 {
    let p_bytes = bytes / 8;
    if at < 32 * bytes {
        (pattern + (at / bytes) as u64).to_le_bytes()[at % 8]
    } else {
        // Pn: the first n + 1 bits (as many bits as a vector has bytes); FFR as P15.
        let at = at - 32 * bytes;
        let ones = (at / p_bytes).min(15) + 1;
        let first = at % p_bytes * 8;
        ((1_u32 << ones.saturating_sub(first).min(8)) - 1) as u8
    }
}

fn holds(pattern: u64, bytes: usize) -> Result<(), usize> {
    #[repr(align(16))]
    struct Area([u8; STATE]);
    let mut area = Area([0xEE; STATE]);
    // SAFETY: large enough for the longest vectors.
    unsafe { sve_store(area.0.as_mut_ptr()) };
    let used = 32 * bytes + 17 * bytes / 8;
    match (0..used).find(|at| area.0[*at] != expected(pattern, bytes, *at)) {
        None => Ok(()),
        Some(at) => Err(at),
    }
}

fn survives(len: u64) -> Outcome {
    let cpu = arch::cpu_index() as u64;
    let bytes = enable(len);
    check!((16..=MAX_BYTES).contains(&bytes), "vectors of {bytes} bytes");
    let end = timer::now() + timer::frequency() / 1000 * MS;
    gic::enable(machine::get().timer_intid);
    let mut round = 0;
    while timer::now() < end {
        let pattern = (cpu + 1) * 0x0101_0101_0101_0000 + (round & 0xFF);
        sve_fill(pattern);
        for i in 0..20 {
            exit_of_kind(i);
        }
        if round % 4 == 0 {
            timer::arm_in(20_000);
            arch::wfi();
            timer::disarm();
        }
        if round % 16 == 0
            && let Some(device) = test_device()
        {
            device.read32(0);
        }
        check_eq!(holds(pattern, bytes), Ok(()), "byte of the state on CPU {cpu}, round {round}");
        check_eq!(read_sysreg!("S3_0_C1_C2_0"), len, "ZCR_EL1 on CPU {cpu}, round {round}");
        round += 1;
    }
    check!(round > 1, "no time for a second round");
    Ok(())
}

fn state_survives() -> Outcome {
    if !has_sve() {
        skip!("no SVE");
    }
    everywhere(|| survives(0xF))
}

/// Each CPU another length: vCPUs share CPUs.
fn shorter_vectors() -> Outcome {
    if !has_sve() {
        skip!("no SVE");
    }
    let longest = enable(0xF);
    check_eq!(enable(0), 16, "bytes of the shortest vectors");
    check!(longest >= 16, "{longest} bytes");
    everywhere(|| survives(arch::cpu_index() as u64 % 4))
}

global_asm!(
    r#"
    .arch_extension sve
    .section .text.sve, "ax"
    .global sve_bytes, sve_fill, sve_store
sve_bytes:
    rdvl    x0, #1
    ret

sve_fill:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    add     x1, x0, #\n
    mov     z\n\().d, x1
    .endr
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    mov     x1, #(\n + 1)
    whilelo p\n\().b, xzr, x1
    .endr
    wrffr   p15.b
    ret

sve_store:
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    str     z\n, [x0, #\n, mul vl]
    .endr
    addvl   x0, x0, #31
    addvl   x0, x0, #1
    .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    str     p\n, [x0, #\n, mul vl]
    .endr
    rdffr   p0.b
    str     p0, [x0, #16, mul vl]
    ret
    "#
);
