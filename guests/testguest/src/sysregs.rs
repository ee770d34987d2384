// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System registers: what is hidden, what the ID registers say, and every encoding once.

use core::cell::UnsafeCell;

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::exception::{self, ec};
use gzvm_guest_kit::{arch, cases, check_eq, fail, machine, println, read_sysreg, skip, user, write_sysreg};

use crate::util::{Below, below, everywhere};

pub const CASES: &[Case] = cases!["sysregs":
    runs_at_el1, mpidr_is_the_device_trees, id_registers_hide_what_traps, hidden_registers_are_undefined,
    el2_registers_are_undefined, hvc_and_smc_are_undefined_at_el0, breakpoint_instruction_stays_inside,
    software_step,
];

#[repr(C, align(64))]
struct Code(UnsafeCell<[u32; 16]>);
// SAFETY: used by the boot CPU only.
unsafe impl Sync for Code {}
static CODE: Code = Code(UnsafeCell::new([0; 16]));

const RET: u32 = 0xD65F_03C0;
const EL2_ENCODINGS: u32 = 4;

/// MRS x0, S<op0>_<op1>_C<crn>_C<crm>_<op2>, the encoding as (op0 op1 crn crm op2) bits.
pub const fn mrs(encoding: u32) -> u32 {
    0xD520_0000 | encoding << 5
}
pub const fn encoding(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32) -> u32 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// Runs one instruction at EL1. x0 as it left it.
pub fn execute(word: u32) -> Result<u64, exception::Exception> {
    execute_with(word, 0)
}

/// The same with a value in x0.
pub fn execute_with(word: u32, x0: u64) -> Result<u64, exception::Exception> {
    let code = CODE.0.get().cast::<u32>();
    // SAFETY: inside the buffer; the boot CPU alone uses it.
    unsafe {
        code.write_volatile(word);
        code.add(1).write_volatile(RET);
    }
    arch::sync_code(code as usize, 8);
    // SAFETY: the buffer holds a function that takes and returns x0; what the instruction does
    // beyond is what the case is about.
    let f: extern "C" fn(u64) -> u64 = unsafe { core::mem::transmute(code) };
    exception::expect(|| f(x0))
}

/// Classes that say "not for you": undefined, trapped, or a feature's own trap (FP, SVE, SME, GCS).
pub fn refused(class: u32) -> bool {
    matches!(class, ec::UNDEFINED | ec::SYSREG | 0x07 | 0x19 | 0x1D | 0x2D)
}

fn runs_at_el1() -> Outcome {
    check_eq!(read_sysreg!("CurrentEL"), 4, "CurrentEL");
    Ok(())
}

fn mpidr_is_the_device_trees() -> Outcome {
    everywhere(|| {
        let cpu = arch::cpu_index();
        check_eq!(arch::mpidr(), machine::get().cpus[cpu], "MPIDR of CPU {cpu}");
        Ok(())
    })
}

/// Feature, its ID register's encoding, the lowest bit of its field, and a register it brings.
struct Feature(&'static str, u32, u32, u32);

const PFR0: u32 = encoding(3, 0, 0, 4, 0);
const PFR1: u32 = encoding(3, 0, 0, 4, 1);
const DFR0: u32 = encoding(3, 0, 0, 5, 0);
const MMFR1: u32 = encoding(3, 0, 0, 7, 1);

/// Features whose registers or instructions belong to EL2 or are traps in a guest.
const HIDDEN: &[Feature] = &[
    Feature("SVE", PFR0, 32, encoding(3, 0, 1, 2, 0)),
    Feature("AMU", PFR0, 44, encoding(3, 3, 13, 2, 0)),
    Feature("MTE", PFR1, 8, encoding(3, 0, 1, 0, 6)),
    Feature("SME", PFR1, 24, encoding(3, 0, 1, 2, 6)),
    Feature("PMU", DFR0, 8, encoding(3, 3, 9, 12, 0)),
    Feature("SPE", DFR0, 32, encoding(3, 0, 9, 9, 0)),
    Feature("trace filter", DFR0, 40, encoding(3, 0, 1, 2, 1)),
    Feature("TRBE", DFR0, 44, encoding(3, 0, 9, 11, 0)),
    Feature("LORegions", MMFR1, 16, encoding(3, 0, 10, 4, 3)),
];

fn field(feature: &Feature) -> u64 {
    // ID registers are always readable at EL1.
    let value = execute(mrs(feature.1)).unwrap_or(0) >> feature.2 & 0xF;
    // PMUVer 0xF: implementation defined, that is none of the architecture's.
    if feature.0 == "PMU" && value == 0xF { 0 } else { value }
}

fn id_registers_hide_what_traps() -> Outcome {
    if below() != Below::Gzvm {
        skip!("gzvm's policy");
    }
    let given_sve = machine::get().arg("given") == Some("sve");
    for feature in HIDDEN.iter().filter(|f| !(given_sve && f.0 == "SVE")) {
        check_eq!(field(feature), 0, "ID field of {}", feature.0);
    }
    Ok(())
}

fn hidden_registers_are_undefined() -> Outcome {
    for feature in HIDDEN.iter().filter(|f| field(f) == 0) {
        match execute(mrs(feature.3)) {
            Err(e) if refused(e.class()) => {}
            Err(e) => fail!("{}: {e}", feature.0),
            // Without an ID field a register may still be there, but not under our hypervisor.
            Ok(v) if below() == Below::Gzvm => fail!("{}'s register reads as {v:#x}", feature.0),
            Ok(_) => println!("note: {}'s register is readable", feature.0),
        }
    }
    Ok(())
}

fn el2_registers_are_undefined() -> Outcome {
    // HCR_EL2, VTTBR_EL2, ESR_EL2, ICH_HCR_EL2, CNTHP_CTL_EL2, TPIDR_EL2.
    for (crn, crm, op2) in [(1, 1, 0), (2, 1, 0), (5, 2, 0), (12, 11, 0), (14, 2, 1), (13, 0, 2)] {
        match execute(mrs(encoding(3, EL2_ENCODINGS, crn, crm, op2))) {
            Err(e) if e.class() == ec::UNDEFINED => {}
            Err(e) => fail!("S3_4_C{crn}_C{crm}_{op2}: {e}"),
            Ok(v) => fail!("S3_4_C{crn}_C{crm}_{op2} reads as {v:#x}"),
        }
    }
    Ok(())
}

fn hvc_and_smc_are_undefined_at_el0() -> Outcome {
    const HVC_0: u32 = 0xD400_0002;
    const SMC_0: u32 = 0xD400_0003;
    const SVC: u64 = ec::SVC as u64;
    check_eq!(user::run(&[], 1).0 >> 26, SVC, "class of SVC from EL0");
    for (name, word) in [("HVC", HVC_0), ("SMC", SMC_0)] {
        let (esr, _) = user::run(&[word], 0x8400_0000);
        check_eq!(esr >> 26, u64::from(ec::UNDEFINED), "class of {name} from EL0");
    }
    Ok(())
}

fn breakpoint_instruction_stays_inside() -> Outcome {
    match execute(0xD420_0000) {
        Err(e) => check_eq!(e.class(), 0x3C, "class of BRK"),
        Ok(_) => fail!("BRK did nothing"),
    }
    Ok(())
}

/// MDSCR_EL1.SS: what a debugger in the guest steps with.
fn software_step() -> Outcome {
    const NOP: u32 = 0xD503_201F;
    const STEP: u64 = 0x32;
    write_sysreg!("S2_0_C1_C0_4", 0); // OSLAR_EL1
    write_sysreg!("mdscr_el1", 1);
    arch::isb();
    let (esr, _) = user::run_stepped(&[NOP, NOP], 0);
    let mdscr = read_sysreg!("mdscr_el1");
    write_sysreg!("mdscr_el1", 0);
    arch::isb();
    check_eq!(mdscr & 1, 1, "MDSCR_EL1.SS");
    check_eq!(esr >> 26, STEP, "class of the exception after one instruction at EL0");
    Ok(())
}
