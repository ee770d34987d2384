// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers of a vCPU by their identifiers (GET_ONE_REG, SET_ONE_REG): the one table of what user
//! space may see and set of a VM that is not protected.
//!
//! A value that is set is no more than the guest could set itself: EL1's registers bind EL1 alone, and
//! PSTATE can't leave EL1. What EL2 derives from or adds to a register (MDSCR, MPIDR) is read-only.

use gzvm_abi::reg;

use super::vcpu::Vcpu;
use crate::arch::frame::PSTATE_EL1H_MASKED;

/// PSTATE bits that user space may choose: NZCV, DAIF, and EL1t, EL1h or EL0t.
const PSTATE_SETTABLE: u64 = 0xF000_0000 | 0x3C0 | 0xF;
/// CNTV_CTL_EL0.ENABLE and IMASK; ISTATUS is the timer's.
const TIMER_CONTROL: u64 = 3;
/// CNTKCTL_EL1: what can be set without FEAT_ECV.
const TIMER_ACCESS: u64 = 0x3FF;

/// A register's value, the lower half first.
pub type Value = [u64; 2];

/// A place in a vCPU.
enum Place<'a> {
    Word(&'a mut u64),
    Half(&'a mut u32),
}

/// The vector register that an identifier names.
fn vector(id: u64) -> Option<u8> {
    let offset = id.checked_sub(reg::V0)?;
    if offset.is_multiple_of(4) && id <= reg::V31 { u8::try_from(offset / 4).ok() } else { None }
}

/// Whether the register is part of how a vCPU starts, which of a protected VM too is the host's to say, until it runs.
pub const fn is_initial(id: u64) -> bool {
    matches!(id, reg::X0..=reg::X30 | reg::PC | reg::PSTATE)
}

/// Whether it is an argument of a firmware, which starts at EL1 with exceptions masked, where EL2 says.
pub const fn is_argument(id: u64, value: u64) -> bool {
    matches!(id, reg::X0..=reg::X30) || id == reg::PSTATE && value == PSTATE_EL1H_MASKED
}

/// What the register holds; nothing for an identifier that names none.
pub fn get(vcpu: &mut Vcpu, id: u64) -> Option<Value> {
    if let Some(n) = vector(id) {
        return Some(vcpu.fp.vector(n));
    }
    let word = match id {
        reg::MPIDR_EL1 => vcpu.mpidr(),
        reg::MDSCR_EL1 => vcpu.mdscr,
        _ => match place(vcpu, id)? {
            Place::Word(word) => *word,
            Place::Half(half) => u64::from(*half),
        },
    };
    Some([word, 0])
}

/// Sets the register. Nothing: no such register, read-only, or a value it can't have.
pub fn set(vcpu: &mut Vcpu, id: u64, value: Value) -> Option<()> {
    let [low, _] = value;
    let allowed = match id {
        reg::PSTATE => low & !PSTATE_SETTABLE == 0 && matches!(low & 0x1F, 0 | 4 | 5),
        reg::CNTV_CTL_EL0 => low & !TIMER_CONTROL == 0,
        reg::CNTKCTL_EL1 => low & !TIMER_ACCESS == 0,
        _ => true,
    };
    if !allowed {
        return None;
    }
    if let Some(n) = vector(id) {
        vcpu.fp.set_vector(n, value);
        return Some(());
    }
    match place(vcpu, id)? {
        Place::Word(word) => *word = low,
        Place::Half(half) => *half = u32::try_from(low).ok()?,
    }
    Some(())
}

fn place(vcpu: &mut Vcpu, id: u64) -> Option<Place<'_>> {
    let index = |first: u64, step: u64| {
        let offset = id.checked_sub(first)?;
        usize::try_from(offset / step).ok().filter(|_| offset.is_multiple_of(step))
    };
    let el1 = &mut vcpu.el1;
    Some(Place::Word(match id {
        reg::X0..=reg::X30 => vcpu.regs.x.get_mut(index(reg::X0, 2)?)?,
        reg::PC => &mut vcpu.regs.pc,
        reg::PSTATE => &mut vcpu.regs.pstate,
        reg::FPSR => return Some(Place::Half(vcpu.fp.control().0)),
        reg::FPCR => return Some(Place::Half(vcpu.fp.control().1)),
        reg::SP_EL0 => &mut el1.sp_el0,
        reg::SP_EL1 => &mut el1.sp_el1,
        reg::ELR_EL1 => &mut el1.elr,
        reg::SPSR_EL1 => &mut el1.spsr,
        reg::SCTLR_EL1 => &mut el1.sctlr,
        reg::CPACR_EL1 => &mut el1.cpacr,
        reg::TTBR0_EL1 => &mut el1.ttbr0,
        reg::TTBR1_EL1 => &mut el1.ttbr1,
        reg::TCR_EL1 => &mut el1.tcr,
        reg::AFSR0_EL1 => &mut el1.afsr0,
        reg::AFSR1_EL1 => &mut el1.afsr1,
        reg::ESR_EL1 => &mut el1.esr,
        reg::FAR_EL1 => &mut el1.far,
        reg::PAR_EL1 => &mut el1.par,
        reg::MAIR_EL1 => &mut el1.mair,
        reg::AMAIR_EL1 => &mut el1.amair,
        reg::VBAR_EL1 => &mut el1.vbar,
        reg::CONTEXTIDR_EL1 => &mut el1.contextidr,
        reg::TPIDR_EL1 => &mut el1.tpidr_el1,
        reg::TPIDR_EL0 => &mut el1.tpidr_el0,
        reg::TPIDRRO_EL0 => &mut el1.tpidrro_el0,
        reg::CSSELR_EL1 => &mut el1.csselr,
        reg::CNTKCTL_EL1 => &mut vcpu.timer.kctl,
        reg::CNTV_CTL_EL0 => &mut vcpu.timer.ctl,
        reg::CNTV_CVAL_EL0 => &mut vcpu.timer.cval,
        _ => return None,
    }))
}
