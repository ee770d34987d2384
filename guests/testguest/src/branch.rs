// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What keeps branches where they belong: pointer authentication and branch target identification. A guest has
//! them where the CPU has them.

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::exception::ec;
use gzvm_guest_kit::{arch, cases, check, check_eq, read_sysreg, skip, user, write_sysreg};

use crate::sysregs::execute_with;
use crate::util::exit_of_kind;

pub const CASES: &[Case] = cases!["branch": signed_pointers, guarded_pages];

const PACIZA_X0: u32 = 0xDAC1_23E0;
const AUTIZA_X0: u32 = 0xDAC1_33E0;
const XPACI_X0: u32 = 0xDAC1_43E0;
/// SCTLR_EL1.EnIA.
const ENIA: u64 = 1 << 31;

/// The key in use is the guest's own, before and after exits.
fn signed_pointers() -> Outcome {
    // APA, API; APA3 in the next register.
    if read_sysreg!("S3_0_C0_C6_1") & 0xFF0 == 0 && read_sysreg!("S3_0_C0_C6_2") & 0xF000 == 0 {
        skip!("no pointer authentication");
    }
    let sctlr = read_sysreg!("sctlr_el1");
    write_sysreg!("sctlr_el1", sctlr | ENIA);
    let outcome = (1..64_u64).try_for_each(|round| {
        write_sysreg!("S3_0_C2_C1_0", round); // APIAKeyLo_EL1
        arch::isb();
        let sign = |pointer| execute_with(PACIZA_X0, pointer);
        let pointers = [0x1000, 0x4000_0000 + round * 8, 0x7F_FFFF_FFF8];
        let signed = pointers.map(sign);
        check!(signed != pointers.map(Ok), "pointers are not signed: {signed:x?}");
        exit_of_kind(round as usize);
        check_eq!(pointers.map(sign), signed, "signatures after an exit");
        for (pointer, signed) in pointers.into_iter().zip(signed) {
            let signed = signed.unwrap_or(0);
            check_eq!(execute_with(AUTIZA_X0, signed), Ok(pointer), "{signed:#x} authenticated");
            check_eq!(execute_with(XPACI_X0, signed), Ok(pointer), "{signed:#x} stripped");
        }
        Ok(())
    });
    write_sysreg!("sctlr_el1", sctlr);
    arch::isb();
    outcome
}

/// In a guarded page an indirect branch must meet a landing pad.
fn guarded_pages() -> Outcome {
    const ADR_X1_8: u32 = 0x1000_0041;
    const BR_X1: u32 = 0xD61F_0020;
    const NOP: u32 = 0xD503_201F;
    const BTI_J: u32 = 0xD503_249F;
    const BRANCH_TARGET: u64 = 0x0D;
    const SVC: u64 = ec::SVC as u64;
    if read_sysreg!("id_aa64pfr1_el1") & 0xF == 0 {
        skip!("no BTI");
    }
    let class = |(esr, _): (u64, u64)| esr >> 26;
    check_eq!(class(user::run_guarded(&[ADR_X1_8, BR_X1, BTI_J], 0)), SVC, "class after a landing pad");
    let (esr, _) = user::run_guarded(&[ADR_X1_8, BR_X1, NOP], 0);
    check_eq!((esr >> 26, esr & 3), (BRANCH_TARGET, 3), "class and BTYPE without one");
    check_eq!(class(user::run(&[ADR_X1_8, BR_X1, NOP], 0)), SVC, "class in a page that is not guarded");
    Ok(())
}
