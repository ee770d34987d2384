// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows 2, 3, 5, 8, 9 of the hypercall table: vCPUs.

use gzvm_abi::MAX_VCPUS_EXTENDED;
use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, Status};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::hypercall::{self, call};
use gzvm_guest_kit::{cases, check, check_eq, timer};

use super::{Bare, answers, leaves_nothing, start_second, stop_second};
use crate::guest_runs::store;
use crate::host::hypervisor_memory;
use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["hypercall":
    create_vcpu, create_vcpu_bad_pages, destroy_vcpu, destroy_vcpu_while_running, run, run_twice_at_once,
    get_one_reg, set_one_reg, set_one_reg_pstate, one_reg_while_running,
];

const FAIL_ENTRY: u64 = 0x9292_0006;
const NOBODY: [u64; 4] = [0, 0xFFFE_0000, 0xFFFF_0000, 1 << 32 | 0x1_0000];

/// Row 2.
fn create_vcpu() -> Outcome {
    leaves_nothing(|| {
        let shared = pages::take(2 * MAX_VCPUS_EXTENDED as u64, 4096);
        let vm = Bare::new()?;
        let create = |tuple, n| call(Function::CreateVcpu, &[tuple, shared + n * 8192]);
        for id in [MAX_VCPUS_EXTENDED as u64, MAX_VCPUS_EXTENDED as u64 + 1, 0x7FFF, 0xFFFF] {
            answers(create(vm.tuple(id), 0), Status::InvalidArgs, format_args!("id {id:#x}"))?;
        }
        for tuple in NOBODY {
            answers(create(tuple, 0), Status::InvalidArgs, format_args!("tuple {tuple:#x}"))?;
        }
        let before = hypercall::counter(Counter::Vcpus).unwrap_or(0);
        for n in (0..MAX_VCPUS_EXTENDED as u64).rev() {
            pages::write(shared + n * 8192 + 8, 0x1234);
            answers(create(vm.tuple(n), n), Status::Success, format_args!("vCPU {n}"))?;
            check_eq!(pages::read(shared + n * 8192 + 8), 0x1234, "run page of vCPU {n}");
            answers(create(vm.tuple(n), n), Status::InvalidArgs, format_args!("vCPU {n} again"))?;
        }
        let after = hypercall::counter(Counter::Vcpus).unwrap_or(0);
        check_eq!(after - before, MAX_VCPUS_EXTENDED as u64, "vCPUs");
        Ok(())
    })
}

/// Pages that are not two whole pages of the host's RAM; the good ones are free for others afterwards.
fn create_vcpu_bad_pages() -> Outcome {
    leaves_nothing(|| {
        let hypervisor = hypervisor_memory()?;
        let shared = pages::take(3, 4096);
        let vm = Bare::new()?;
        let create = |address| call(Function::CreateVcpu, &[vm.tuple(0), address]);
        for address in [shared + 1, shared + 8, shared + 0x800, u64::MAX, !0xFFF, u64::MAX - 8191] {
            answers(create(address), Status::InvalidArgs, format_args!("pages at {address:#x}"))?;
        }
        for address in [hypervisor.start, hypervisor.end() - 8192, hypervisor.start - 4096, 1 << 47] {
            answers(create(address), Status::Fault, format_args!("pages at {address:#x}"))?;
        }
        answers(create(shared), Status::Success, format_args!("good pages"))
    })
}

/// Row 3: also twice; the id is free then, and a new vCPU of it starts from reset.
fn destroy_vcpu() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::tour(), 1)?;
        vm.set_reg(0, 0x6030_0000_0010_0000, 0x1111)?;
        store(&mut vm, 0x10, 0x1111, "x0 of the first vCPU")?;
        let tuple = vm.tuple(0);
        let destroy = |tuple| call(Function::DestroyVcpu, &[tuple]);
        let shared = hypercall::counter(Counter::PagesShared).unwrap_or(0);
        answers(destroy(tuple), Status::Success, format_args!("the vCPU"))?;
        let now = hypercall::counter(Counter::PagesShared).unwrap_or(0);
        check_eq!(shared - now, 2, "pages given back");
        answers(destroy(tuple), Status::Success, format_args!("the vCPU again"))?;
        answers(destroy(tuple | 0xFFFF), Status::Success, format_args!("one that never was"))?;
        for nobody in NOBODY {
            answers(destroy(nobody), Status::InvalidArgs, format_args!("tuple {nobody:#x}"))?;
        }
        check_eq!(call(Function::Run, &[tuple]).values[0], FAIL_ENTRY, "exit of RUN without the vCPU");
        answers(
            call(Function::SetOneReg, &[tuple, 0x6030_0000_0010_0000, 1]),
            Status::InvalidArgs,
            format_args!("SET_ONE_REG without the vCPU"),
        )?;
        let again = call(Function::CreateVcpu, &[tuple, vm.shared[0]]);
        answers(again, Status::Success, format_args!("a new vCPU"))?;
        vm.set_reg(0, 0x6030_0000_0010_0040, RAM)?;
        store(&mut vm, 0x10, 0, "x0 of the new vCPU")?;
        vm.destroy().map(drop)
    })
}

fn destroy_vcpu_while_running() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::counts(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        start_second(vm.tuple(0))?;
        let runs = timer::wait_ms(5000, || {
            crate::vm::clean(vm.memory + 0x800, 8);
            pages::read(vm.memory + 0x800) > 0
        });
        // Between two runs of CPU 1's loop it would succeed: its loop has no exit by itself.
        let reply = call(Function::DestroyVcpu, &[vm.tuple(0)]);
        stop_second()?;
        check!(runs, "the guest does not run");
        answers(reply, Status::Busy, format_args!("DESTROY_VCPU of a running vCPU"))?;
        answers(call(Function::DestroyVcpu, &[vm.tuple(0)]), Status::Success, format_args!("afterwards"))?;
        vm.destroy().map(drop)
    })
}

/// Row 5: drivers ignore x0, so x1 makes sense in every case.
fn run() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::tour(), 1)?;
        let absent = vm.tuple(0) | 1;
        let beyond = vm.tuple(0) | MAX_VCPUS_EXTENDED as u64;
        for tuple in NOBODY.into_iter().chain([absent, beyond, vm.tuple(0) | 0xFFFF, u64::MAX]) {
            let reply = call(Function::Run, &[tuple]);
            check_eq!(reply.x0, 0, "x0 of RUN of tuple {tuple:#x}");
            check_eq!(reply.values, [FAIL_ENTRY, 0, 0], "x1 to x3 of RUN of tuple {tuple:#x}");
        }
        vm.run_to_store(0)?;
        let reply = call(Function::Run, &[vm.tuple(0), u64::MAX, u64::MAX]);
        check_eq!(reply.x0, 0, "x0 of RUN");
        check_eq!(reply.values, [0x9292_0001, 0, 0], "x1 to x3 of RUN that ends with a load");
        check_eq!(pages::get::<u32>(vm.shared[0]), 0x9292_0001, "exit_reason in the page");
        vm.destroy().map(drop)
    })
}

/// Two threads may have one vCPU's file: the second is told, and the first goes on.
fn run_twice_at_once() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::counts(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        let counter = || {
            crate::vm::clean(vm.memory + 0x800, 8);
            pages::read(vm.memory + 0x800)
        };
        start_second(vm.tuple(0))?;
        let runs = timer::wait_ms(5000, || counter() > 0);
        let reason = call(Function::Run, &[vm.tuple(0)]).values[0];
        let before = counter();
        let goes_on = timer::wait_ms(5000, || counter() > before);
        stop_second()?;
        check!(runs && goes_on, "the guest does not run ({runs}, {goes_on})");
        check_eq!(reason, FAIL_ENTRY, "exit of the second RUN");
        vm.destroy().map(drop)
    })
}

/// The registers that are there, by identifier: X0..X30, SP_EL0, PC, SP_EL1, ELR_EL1, SPSR_EL1.
fn identifiers() -> impl Iterator<Item = u64> {
    (0..31).map(|n| 2 * n).chain([0x3E, 0x40, 0x44, 0x46, 0x48]).map(|index| 0x6030_0000_0010_0000 + index)
}

/// Row 8 (generations A and C; ours passes it on).
fn get_one_reg() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::tour(), 1)?;
        let get = |id: u64| call(Function::GetOneReg, &[vm.tuple(0), id]);
        for (n, id) in identifiers().enumerate() {
            vm.set_reg(0, id, 0xA5A5_0000_0000_0000 + n as u64)?;
        }
        for (n, id) in identifiers().enumerate() {
            let reply = get(id);
            answers(reply, Status::Success, format_args!("register {id:#x}"))?;
            check_eq!(reply.values, [0xA5A5_0000_0000_0000 + n as u64, 0, 0], "register {id:#x}");
        }
        check_eq!(get(0x6030_0000_0010_0042).values[0], 0x3C5, "PSTATE as it was set");
        for tuple in NOBODY.into_iter().chain([vm.tuple(1), vm.tuple(0) | 0xFFFF]) {
            let reply = call(Function::GetOneReg, &[tuple, 0x6030_0000_0010_0000]);
            answers(reply, Status::InvalidArgs, format_args!("tuple {tuple:#x}"))?;
        }
        for id in [0, 0x6030_0000_0010_0001, 0x6030_0000_0010_003D, 0x6040_0000_0010_0000, u64::MAX] {
            answers(get(id), Status::InvalidArgs, format_args!("identifier {id:#x}"))?;
        }
        vm.destroy().map(drop)
    })
}

/// Row 9: all 64 bits; secondary vCPUs as well; what is no identifier is refused.
fn set_one_reg() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::tour(), 2)?;
        for vcpu in 0..2 {
            for id in identifiers() {
                vm.set_reg(vcpu, id, 0x8000_0001_7FFF_FFFF)?;
            }
        }
        let set = |id: u64| call(Function::SetOneReg, &[vm.tuple(0), id, 0]);
        for id in [
            0,
            0x6030_0000_0010_0001,
            0x6030_0000_0010_003F,
            0x6030_0000_0010_0041,
            0x6030_0000_0010_FFFE,
            // X0 as of 32 and 128 bits, of AArch32, of x86; a firmware register.
            0x6020_0000_0010_0000,
            0x6040_0000_0010_0000,
            0x4030_0000_0010_0000,
            0x2030_0000_0010_0000,
            0x6030_0000_0014_0000,
            1 << 63 | 0x6030_0000_0010_0000,
            u64::MAX,
        ] {
            answers(set(id), Status::InvalidArgs, format_args!("identifier {id:#x}"))?;
        }
        for tuple in NOBODY.into_iter().chain([vm.tuple(2), vm.tuple(0) | 0xFFFF]) {
            let reply = call(Function::SetOneReg, &[tuple, 0x6030_0000_0010_0000, 0]);
            answers(reply, Status::InvalidArgs, format_args!("tuple {tuple:#x}"))?;
        }
        // As crosvm does for vCPU 0.
        vm.set_reg(0, 0x6030_0000_0010_0000, 0xFEDC_BA98_7654_3210)?;
        vm.set_reg(0, 0x6030_0000_0010_0040, RAM)?;
        store(&mut vm, 0x10, 0xFEDC_BA98_7654_3210, "x0 as it was set")?;
        vm.destroy().map(drop)
    })
}

/// EL0 and EL1 only, AArch64 only, no bit that has a meaning of its own.
fn set_one_reg_pstate() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::tour(), 2)?;
        let set = |value| call(Function::SetOneReg, &[vm.tuple(1), 0x6030_0000_0010_0042, value]);
        for good in [0x3C5, 0x3C4, 0, 5, 4, 0x3C0, 0xF000_03C5] {
            answers(set(good), Status::Success, format_args!("PSTATE {good:#x}"))?;
        }
        // EL2, EL3, reserved modes, AArch32, upper half.
        for bad in [0x3C9, 0x3C8, 0x3CD, 0x3CC, 0x3C1, 0x3C7, 0x3D3, 0x1D0, 0x1_0000_03C5, 1 << 63, u64::MAX]
        {
            answers(set(bad), Status::InvalidArgs, format_args!("PSTATE {bad:#x}"))?;
        }
        vm.destroy().map(drop)
    })
}

fn one_reg_while_running() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::counts(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        start_second(vm.tuple(0))?;
        let runs = timer::wait_ms(5000, || {
            crate::vm::clean(vm.memory + 0x800, 8);
            pages::read(vm.memory + 0x800) > 0
        });
        let set = call(Function::SetOneReg, &[vm.tuple(0), 0x6030_0000_0010_0000, 0]);
        let get = call(Function::GetOneReg, &[vm.tuple(0), 0x6030_0000_0010_0000]);
        stop_second()?;
        check!(runs, "the guest does not run");
        answers(set, Status::Busy, format_args!("SET_ONE_REG of a running vCPU"))?;
        answers(get, Status::Busy, format_args!("GET_ONE_REG of a running vCPU"))?;
        vm.destroy().map(drop)
    })
}
