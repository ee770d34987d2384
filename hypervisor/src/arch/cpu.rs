// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Single registers of this CPU: why an exception came, what a guest has in its own, and exceptions for EL1.

use gzvm_core::addr::Ipa;

use super::sysreg::{read, write};

/// Syndrome of the exception that came to EL2.
pub fn esr() -> u64 {
    read!("esr_el2")
}

/// The faulting virtual address.
pub fn far() -> u64 {
    read!("far_el2")
}

/// The faulting IPA, page aligned (HPFAR_EL2).
pub fn fault_ipa_page() -> u64 {
    (read!("hpfar_el2") & 0x0FFF_FFFF_FFF0) << 8
}

/// MDSCR_EL1 while a guest's world is in place; switched with the other EL1 registers.
pub fn set_guest_mdscr(value: u64) {
    write!("mdscr_el1", value);
}

/// SCTLR_EL1 while a guest's world is in place.
pub fn guest_sctlr() -> u64 {
    read!("sctlr_el1")
}

/// Whether the guest whose world is in place has its data cache off.
pub fn guest_is_uncached() -> bool {
    const SCTLR_C: u64 = 1 << 2;
    guest_sctlr() & SCTLR_C == 0
}

/// Whether the stack pointer with this PSTATE is SP_EL0 (EL0, or EL1 with SPSel = 0).
pub const fn uses_sp_el0(pstate: u64) -> bool {
    pstate & 1 == 0
}

/// The guest's stack pointer, while its world is in place.
pub fn guest_sp(pstate: u64) -> u64 {
    if uses_sp_el0(pstate) { read!("sp_el0") } else { read!("sp_el1") }
}

/// Sets it.
pub fn set_guest_sp(pstate: u64, value: u64) {
    if uses_sp_el0(pstate) {
        write!("sp_el0", value);
    } else {
        write!("sp_el1", value);
    }
}

/// Stage 1 of the running guest, or of the host in an exception of its own, as its EL1 would read `va` (every page that is executable at EL0 is
/// readable at EL1): AT S1E1R, with the guest's PAR_EL1 kept. None if there is no translation.
pub fn guest_stage1(va: u64) -> Option<Ipa> {
    const PAR_ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;
    let kept = read!("par_el1");
    super::barrier::at_s1e1r(va);
    let par = read!("par_el1");
    write!("par_el1", kept);
    (par & 1 == 0).then_some(Ipa(par & PAR_ADDRESS | va & 0xFFF))
}

/// Affinity fields of this CPU's MPIDR_EL1.
pub fn mpidr_affinity() -> u64 {
    read!("mpidr_el1") & 0xFF_00FF_FFFF
}

/// MIDR_EL1.
pub fn midr() -> u64 {
    read!("midr_el1")
}

/// An ID register by its op0..op2 fields: `CRm` 0..=7 and `op2` of `S3_0_C0_Cm_op2`.
pub fn id_register(crm: u8, op2: u8) -> u64 {
    macro_rules! table {
        ($($crm:literal $op2:literal),* $(,)?) => {
            match (crm, op2) {
                $(($crm, $op2) => read!(concat!("s3_0_c0_c", $crm, "_", $op2)),)*
                _ => 0,
            }
        };
    }
    table!(
        4 0, 4 1, 4 2, 4 4, 4 5, 5 0, 5 1, 5 4, 5 5, 6 0, 6 1, 6 2, 7 0, 7 1, 7 2, 7 3, 7 4, 0 6, 0 7
    )
}

/// Injects a synchronous exception into EL1 with its registers in the CPU: sets ESR, ELR, SPSR and
/// FAR, and gives the new PC and PSTATE.
pub fn inject_sync(esr: u64, far: u64, pc: u64, pstate: u64) -> (u64, u64) {
    let from_el0 = pstate & 0xF == 0;
    let aarch32 = pstate & 0x10 != 0;
    // VBAR offset: current EL with SP_ELx 0x200, with SP_EL0 0x000, lower EL 0x400 / 0x600.
    let offset = match (from_el0, aarch32) {
        (_, true) => 0x600,
        (true, _) => 0x400,
        (false, _) if pstate & 1 != 0 => 0x200,
        _ => 0,
    };
    write!("esr_el1", esr);
    write!("far_el1", far);
    write!("elr_el1", pc);
    write!("spsr_el1", pstate);
    let vbar = read!("vbar_el1");
    // DAIF masked, EL1h, flags kept; TCO is set on every exception; PAN and SSBS follow SCTLR_EL1 as on a real exception entry.
    let sctlr = read!("sctlr_el1");
    let mut new = super::frame::PSTATE_EL1H_MASKED | pstate & (0xF << 28 | 1 << 24);
    if read!("id_aa64pfr1_el1") >> 8 & 0xF >= 2 {
        new |= 1 << 25;
    }
    new |= pstate & (1 << 22);
    if sctlr & (1 << 23) == 0 {
        new |= (1 << 22) & if read!("id_aa64mmfr1_el1") >> 20 & 0xF != 0 { u64::MAX } else { 0 };
    }
    if sctlr & (1 << 44) != 0 {
        new |= 1 << 12;
    }
    (vbar.wrapping_add(offset), new)
}

/// Whether HCR_EL2.E2H reads as 1 after it was written as 0.
pub fn stuck_in_vhe() -> bool {
    read!("hcr_el2") >> 34 & 1 != 0
}

/// Zeroes TPIDR_EL2 so that [`PerCpu::try_this`](super::percpu::PerCpu::try_this) has an answer.
pub fn early_init() {
    write!("tpidr_el2", 0);
}

/// Stops this CPU.
pub fn halt() -> ! {
    loop {
        super::barrier::wfi();
    }
}

/// Frame pointer of the caller, for backtraces.
pub fn frame_pointer() -> u64 {
    let fp: u64;
    // SAFETY: copies a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack, preserves_flags)) };
    fp
}

/// The stage-1 registers in force, for secondaries.
pub fn stage1_registers() -> (u64, u64, u64) {
    (read!("mair_el2"), read!("tcr_el2"), read!("sctlr_el2"))
}
