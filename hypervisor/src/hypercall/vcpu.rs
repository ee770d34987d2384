// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CREATE_VCPU, DESTROY_VCPU, RUN, GET_ONE_REG, SET_ONE_REG.

use gzvm_abi::reg;
use gzvm_abi::run::{SHARED_AREA_SIZE, exit};
use gzvm_core::addr::{Pa, VcpuId};
use gzvm_core::memory::PaRange;

use super::{Args, Error, Results, tuple};
use crate::guest::run;
use crate::guest::vm::Vcpu;

/// PSTATE bits that user space may choose: NZCV, DAIF, and EL1t, EL1h or EL0t.
const PSTATE_SETTABLE: u64 = 0xF000_0000 | 0x3C0 | 0xF;

/// CREATE_VCPU: x1 = tuple, x2 = PA of the two shared pages.
pub fn create([x1, pa, ..]: Args) -> Result<Results, Error> {
    let (vm, id) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    if !vm.life.state().can_grow() {
        return Err(Error::Invalid);
    }
    if usize::from(id) >= gzvm_abi::MAX_VCPUS {
        return Err(Error::Invalid);
    }
    let area = PaRange::new(Pa(pa), SHARED_AREA_SIZE).map_err(|_| Error::Invalid)?;
    vm.add_vcpu(VcpuId(id), area)?;
    Ok([0; 3])
}

/// DESTROY_VCPU: x1 = tuple.
pub fn destroy([x1, ..]: Args) -> Result<Results, Error> {
    let (vm, id) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    if vm.remove_vcpu(VcpuId(id)) { Ok([0; 3]) } else { Err(Error::Busy) }
}

/// RUN: x1 = tuple. Result x1 = exit reason, also where the vCPU can't be entered: drivers do not
/// look at x0.
pub fn run([x1, ..]: Args) -> Result<Results, Error> {
    let reason = match tuple(x1) {
        Ok((vm, id)) => vm.vm().map_or(exit::FAIL_ENTRY, |vm| run::run(vm, VcpuId(id))),
        Err(_) => exit::FAIL_ENTRY,
    };
    Ok([u64::from(reason), 0, 0])
}

/// What a register identifier names.
fn register(vcpu: &mut Vcpu, id: u64) -> Option<&mut u64> {
    match id {
        reg::X0..=reg::X30 if (id - reg::X0).is_multiple_of(2) => {
            vcpu.regs.x.get_mut(usize::try_from((id - reg::X0) / 2).ok()?)
        }
        reg::PC => Some(&mut vcpu.regs.pc),
        reg::PSTATE => Some(&mut vcpu.regs.pstate),
        reg::SP_EL0 => Some(&mut vcpu.el1.sp_el0),
        reg::SP_EL1 => Some(&mut vcpu.el1.sp_el1),
        reg::ELR_EL1 => Some(&mut vcpu.el1.elr),
        reg::SPSR_EL1 => Some(&mut vcpu.el1.spsr),
        _ => None,
    }
}

fn with_register<R>(x1: u64, id: u64, f: impl FnOnce(&mut u64) -> R) -> Result<R, Error> {
    let (vm, n) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let slot = vm.vcpus.get(usize::from(n)).ok_or(Error::Invalid)?;
    let mut slot = slot.try_lock().ok_or(Error::Busy)?;
    let vcpu = slot.as_deref_mut().ok_or(Error::Invalid)?;
    Ok(f(register(vcpu, id).ok_or(Error::Invalid)?))
}

/// GET_ONE_REG: x1 = tuple, x2 = register. Result x1.
pub fn get_register([x1, id, ..]: Args) -> Result<Results, Error> {
    Ok([with_register(x1, id, |r| *r)?, 0, 0])
}

/// SET_ONE_REG: x1 = tuple, x2 = register, x3 = value.
pub fn set_register([x1, id, value, ..]: Args) -> Result<Results, Error> {
    if id == reg::PSTATE {
        let mode = value & 0x1F;
        if value & !PSTATE_SETTABLE != 0 || !matches!(mode, 0 | 4 | 5) {
            return Err(Error::Invalid);
        }
    }
    with_register(x1, id, |r| *r = value)?;
    Ok([0; 3])
}
