// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How a hypercall is made (ABI 1.1): identifiers, widths, registers, status codes.

use gzvm_abi::hypercall::{Function, Status, cap};
use gzvm_abi::reg;
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{ArrayVec, cases, check, check_eq};

use super::{Bare, answers, leaves_nothing};
use crate::host::hypervisor_memory;
use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::{self, Vm};

pub const CASES: &[Case] = cases!["convention":
    both_families, upper_half_of_x0, unknown_functions, arguments_are_64_bits, registers_preserved,
    results_on_error, status_codes,
];

const SMC64: u64 = 0xFB00_1000;
const SMC32: u64 = 0xBB00_1000;

/// Generations A to C call by SMC32 identifiers, D to F by SMC64.
fn both_families() -> Outcome {
    leaves_nothing(|| {
        for base in [SMC64, SMC32] {
            check_eq!(Conduit::Hvc.call(base + 12, &[0, 0, 0])[0], 0, "PROBE by {base:#x}");
            let made = Conduit::Hvc.call(base, &[0]);
            check_eq!(made[0], 0, "CREATE_VM by {base:#x}");
            check_eq!(Conduit::Hvc.call(base + 14, &[made[1]])[0], 0, "INFORM_EXIT by {base:#x}");
            // No batch before generation F; -33 means: call again.
            let mut destroyed = (0..64).map(|_| Conduit::Hvc.call(base + 1, &[made[1], 0])[0] as u32 as i32);
            let last = destroyed.find(|x0| *x0 != -33);
            check_eq!(last, Some(0), "DESTROY_VM by {base:#x}");
        }
        Ok(())
    })
}

fn upper_half_of_x0() -> Outcome {
    for upper in [0xFFFF_FFFF, 0xDEAD_BEEF, 1u64, 0x8000_0000] {
        for base in [SMC64, SMC32] {
            let x0 = Conduit::Hvc.call(upper << 32 | (base + 12), &[16, 0, 0])[0];
            check_eq!(x0, 0, "PROBE with {upper:#x} above");
        }
    }
    Ok(())
}

/// What is no function of either family: SMCCC's -1, or a status of the ABI.
fn unknown_functions() -> Outcome {
    let ours = (0..0x1000).filter(|n| Function::from_number(*n).is_none());
    for n in ours {
        for base in [SMC64, SMC32] {
            let x0 = Conduit::Hvc.call(base + u64::from(n), &[1, 2, 3])[0] as u32 as i32;
            check!([-1, -24].contains(&x0), "function {n:#x} of {base:#x} gives {x0}");
        }
    }
    // Other widths and owners, and the yielding kind.
    for id in [0xFB00_0FFFu64, 0xFB00_2000, 0xBB00_0FFF, 0x7B00_100C, 0x3B00_100C, 0xFA00_100C, 0xFC00_100C] {
        let x0 = Conduit::Hvc.call(id, &[16, 0, 0])[0] as u32 as i32;
        check!(x0 < 0, "{id:#x} gives {x0}");
    }
    Ok(())
}

/// Older drivers pass 64-bit values through the SMC32 family: nothing is cut off.
fn arguments_are_64_bits() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::tour(), 1)?;
        let tuple = vm.tuple(0);
        for base in [SMC64, SMC32] {
            let value = 0x8765_4321_0FED_CBA9;
            let set = Conduit::Hvc.call(base + 9, &[tuple, 0x6030_0000_0010_0000, value]);
            check_eq!(set[0], 0, "SET_ONE_REG by {base:#x}");
            let got = Conduit::Hvc.call(base + 8, &[tuple, 0x6030_0000_0010_0000]);
            check_eq!(got[1], value, "X0 by {base:#x}");
            // An upper half makes another VM, tuple, page, frame.
            let upper = 1 << 32;
            for (n, args) in [
                (1u64, [u64::from(vm.id) | upper, 128, 0, 0, 0]),
                (14, [u64::from(vm.id) | upper, 0, 0, 0, 0]),
                (19, [u64::from(vm.id) | upper, 0, 0, 0, 0]),
                (8, [tuple | upper, reg::X0, 0, 0, 0]),
                (10, [tuple, 4 | upper, 1, 0, 0]),
                (10, [tuple, 4, 1 | upper, 0, 0]),
                (13, [vm.id.into(), cap::ENABLE_IDLE | upper, 0, 0, 0]),
                (17, [vm.id.into(), upper, vm.memory >> 12, RAM >> 12, 1]),
                (17, [vm.id.into(), 0, vm.memory >> 12 | 1 << 40, RAM >> 12, 1]),
                (17, [vm.id.into(), 0, vm.memory >> 12, RAM >> 12 | upper, 1]),
                (17, [vm.id.into(), 0, vm.memory >> 12, RAM >> 12, 1 | upper]),
                (18, [vm.id.into(), 0, RAM >> 12, 1 | upper, 0]),
            ] {
                let x0 = Conduit::Hvc.call(base + n, &args)[0] as u32 as i32;
                check!(x0 != 0, "function {n} of {base:#x} with {args:x?} succeeds");
            }
        }
        vm.destroy().map(drop)
    })
}

/// SMCCC 1.1 and newer: x4 and up come back as they went. Only x0 to x3 are results.
fn registers_preserved() -> Outcome {
    leaves_nothing(|| {
        let mut vm = Vm::new(programs::tour(), 1)?;
        vm.run_to_store(0)?;
        let tuple = vm.tuple(0);
        let bare = Bare::new()?;
        // Each with x1 to x3 as it wants them, and anything behind.
        for (n, [x1, x2, x3]) in [
            (0u64, [7, 0, 0]),
            (3, [bare.tuple(0), 0, 0]),
            (5, [tuple, 0, 0]),
            (5, [0xFFFF_0000, 0, 0]),
            (6, [0, 0, 0]),
            (9, [tuple, reg::X0, 5]),
            (12, [16, 0, 0]),
            (13, [0, cap::QUERY_HYP_BATCH_PAGES, 0]),
            (19, [tuple >> 16, 0, 0]),
            (0x41, [1, 0, 0]),
            (0xFFF, [1, 2, 3]),
        ] {
            let mut x: [u64; 18] =
                core::array::from_fn(|i| 0x1111_0000_0000_0000 * (i as u64 % 15) + i as u64);
            [x[0], x[1], x[2], x[3]] = [SMC64 + n, x1, x2, x3];
            let after = Conduit::Hvc.call18(x);
            for i in 4..18 {
                check_eq!(after[i], x[i], "x{i} after function {n:#x}");
            }
        }
        vm.destroy().map(drop)
    })
}

fn results_on_error() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        let all = |f: Function, x1: u64| call(f, &[x1, u64::MAX, u64::MAX, u64::MAX, u64::MAX]);
        for function in
            [Function::CreateVm, Function::CreateVcpu, Function::CreateDevice, Function::EnableCap]
        {
            let reply = all(function, 0xFFFF);
            check!(!reply.ok(), "{function:?} succeeds");
            check_eq!(reply.values, [0; 3], "x1 to x3 of a refused {function:?}");
        }
        for function in [Function::SetMemregion, Function::MapGuest, Function::MapGuestBlock] {
            answers(all(function, vm.id), Status::InvalidArgs, format_args!("{function:?}"))?;
        }
        Ok(())
    })
}

/// Each status of table 1.1, from a call that has to give it.
fn status_codes() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::reads_all(), 1)?;
        let id = u64::from(vm.id);
        let x0 = |f: Function, args: &[u64]| call(f, args).x0 as u32 as i32;
        check_eq!(x0(Function::InformExit, &[id]), 0, "NO_ERROR");
        check_eq!(x0(Function::InformExit, &[0]), -8, "ERR_INVALID_ARGS: no such VM");
        check_eq!(x0(Function::EnableCap, &[id, 0x9999]), -24, "ERR_NOT_SUPPORTED: no such capability");
        check_eq!(x0(Function::GetRegs, &[vm.tuple(0)]), -27, "ERR_NOT_IMPLEMENTED: reserved");
        let device = [id, hypervisor_memory()?.start];
        check_eq!(x0(Function::CreateDevice, &device), -40, "ERR_FAULT: not the host's memory");
        check!(vm.map(RAM).ok() && vm.map(RAM + 0x1F_F000).ok(), "MAP_GUEST");
        check_eq!(x0(Function::DestroyVm, &[id, 1]), -33, "ERR_BUSY: more than a page to do");
        vm.destroy()?;
        // As many VMs as there are ids, or memory for them.
        static IDS: gzvm_guest_kit::spin::Mutex<ArrayVec<u16, 1024>> =
            gzvm_guest_kit::spin::Mutex::new(ArrayVec::new_const());
        let mut ids = IDS.lock();
        ids.clear();
        let last = loop {
            let reply = call(Function::CreateVm, &[0]);
            if !reply.ok() || ids.is_full() {
                break reply;
            }
            ids.push(reply.values[0] as u16);
        };
        for id in ids.drain(..) {
            vm::destroy(id)?;
        }
        check_eq!(last.x0 as u32 as i32, -5, "ERR_NO_MEMORY: one VM too many");
        pages::reset();
        Ok(())
    })
}
