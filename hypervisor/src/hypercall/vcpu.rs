// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CREATE_VCPU, DESTROY_VCPU, RUN, GET_ONE_REG, SET_ONE_REG.

use gzvm_abi::run::{SHARED_AREA_SIZE, exit};
use gzvm_core::addr::{Pa, VcpuId};
use gzvm_core::memory::PaRange;
use gzvm_core::vm::lifecycle::State;

use super::vm::MOST_PER_CALL;
use super::{Args, Error, Results, tuple};
use crate::guest::one_reg;
use crate::guest::registry;
use crate::guest::run;
use crate::guest::vcpu::Vcpu;
use crate::guest::vm::Vm;
use gzvm_core::broken::{Mistake, broken};

/// CREATE_VCPU: x1 = tuple, x2 = PA of the two shared pages.
pub fn create([x1, pa, ..]: Args) -> Result<Results, Error> {
    registry::work_off(MOST_PER_CALL);
    let (vm, id) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    // Of a protected VM all vCPUs are there before it runs: none starts anew in the midst of it.
    let state = vm.life.state();
    if !state.can_grow() || vm.protected() && state != State::Created {
        return Err(Error::Invalid);
    }
    if usize::from(id) >= gzvm_abi::MAX_VCPUS_EXTENDED {
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

/// Does `f` with a vCPU that does not run. A protected VM's only if `protected`, and until it first runs.
fn with_vcpu<R>(x1: u64, protected: bool, f: impl FnOnce(&Vm, &mut Vcpu) -> Option<R>) -> Result<R, Error> {
    let (vm, n) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let open = !vm.protected() || protected && vm.life.state() == State::Created;
    if !open && !broken(Mistake::OpenRegisters) {
        return Err(Error::NotSupported);
    }
    let slot = vm.vcpus.get(usize::from(n)).ok_or(Error::Invalid)?;
    let mut slot = slot.try_lock().ok_or(Error::Busy)?;
    f(vm, slot.as_deref_mut().ok_or(Error::Invalid)?).ok_or(Error::Invalid)
}

/// GET_ONE_REG: x1 = tuple, x2 = register. Results x1, x2: the value, the lower half first.
pub fn get_register([x1, id, ..]: Args) -> Result<Results, Error> {
    let [low, high] = with_vcpu(x1, false, |_, vcpu| one_reg::get(vcpu, id))?;
    Ok([low, high, 0])
}

/// SET_ONE_REG: x1 = tuple, x2 = register, x3 = value, x4 = its upper half where it has one.
pub fn set_register([x1, id, low, high, ..]: Args) -> Result<Results, Error> {
    with_vcpu(x1, one_reg::is_initial(id), |vm, vcpu| {
        // A firmware starts as EL2 says; its arguments are the host's.
        let allowed =
            vm.firmware_entry().is_none() || one_reg::is_argument(id, low) || broken(Mistake::HostsEntry);
        if allowed { one_reg::set(vcpu, id, [low, high]) } else { None }
    })?;
    Ok([0; 3])
}
