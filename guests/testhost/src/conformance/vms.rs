// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows 0, 1, 12, 14, 16, 19 of the hypercall table, and our extensions: the VM as a whole.

use core::sync::atomic::Ordering::SeqCst;

use gzvm_abi::counter;
use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{EXT_VERSION, Function, Status};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, call};
use gzvm_guest_kit::{cases, check, check_eq, fail, read_sysreg, timer};

use super::{Bare, answers, leaves_nothing, start_second, stop_second};
use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::{self, Vm};

pub const CASES: &[Case] = cases!["hypercall":
    create_vm, destroy_vm, destroy_vm_while_running, destroy_vm_by_older_drivers, probe, inform_exit, set_dtb_config, get_statistics,
    enable_cap, get_regs, set_regs, ext_info, ext_counter, set_watch, vm_features,
];

/// No VM has these ids, however many there have been.
const NO_VM: [u64; 6] = [0, 0x7FFF, 0xFFFE, 0xFFFF, 0x1_0000, u64::MAX];
/// A VM may have this one, but only while there is one.
const FREE_ID: u64 = 254;

/// Row 0. Type 0 is all that crosvm asks for; ids are never 0 or 0xFFFF.
fn create_vm() -> Outcome {
    leaves_nothing(|| {
        let before = hypercall::counter(Counter::Vms);
        for kind in [1u64, 2, 0x80, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
            answers(call(Function::CreateVm, &[kind]), Status::InvalidArgs, format_args!("type {kind:#x}"))?;
        }
        check_eq!(hypercall::counter(Counter::Vms), before, "VMs after refusals");
        let reply = call(Function::CreateVm, &[0]);
        answers(reply, Status::Success, format_args!("type 0"))?;
        let id = reply.values[0];
        let other = Bare::new()?;
        vm::destroy(id as u16)?;
        check!((1..=0xFFFE).contains(&id), "VM id {id:#x}");
        check!(other.id != id, "two VMs with id {id:#x}");
        check_eq!(reply.values[1..].iter().sum::<u64>(), 0, "x2 and x3");
        Ok(())
    })
}

/// A VM with each second page mapped, so that no blocks come of them.
fn holey() -> Result<Vm, Verdict> {
    let vm = Vm::new(programs::reads_all(), 1)?;
    for n in (0..vm::RAM_PAGES).step_by(2) {
        check!(vm.map(RAM + n * 4096).ok(), "MAP_GUEST of page {n}");
    }
    Ok(vm)
}

/// Before generation F: x2 = 0, and nobody calls again. What is left is worked off while other VMs are made.
fn destroy_vm_by_older_drivers() -> Outcome {
    leaves_nothing(|| {
        let before = hypercall::counter(Counter::Vms);
        let held = hypercall::counter(Counter::PagesShared);
        let gone = |id: u64, what: &str| -> Outcome {
            for calls in 0.. {
                if hypercall::counter(Counter::Vms) == before {
                    break;
                }
                check!(calls < 60, "{what}: still there");
                let other = Bare::new()?;
                drop(other);
            }
            let held_now = hypercall::counter(Counter::PagesShared);
            check_eq!(held_now, held, "{what}: shared pages");
            answers(
                call(Function::DestroyVm, &[id, 0]),
                Status::InvalidArgs,
                format_args!("{what}: once more"),
            )
        };
        // More pages than one call works off, each second so that no blocks come of them.
        const PAGES: u64 = 1200;
        let (memory, header) = (pages::take(PAGES, 4096), pages::take(2, 4096));
        let vm = Bare::new()?;
        answers(vm.set_region(header, 0, 2 * PAGES, RAM), Status::Success, format_args!("SET_MEMREGION"))?;
        for n in 0..PAGES {
            let reply = vm.call(Function::MapGuest, &[0, (memory >> 12) + n, (RAM >> 12) + 2 * n, 1]);
            answers(reply, Status::Success, format_args!("MAP_GUEST of page {n}"))?;
        }
        let id = vm.id;
        core::mem::forget(vm);
        answers(call(Function::DestroyVm, &[id, 0]), Status::Busy, format_args!("DESTROY_VM"))?;
        gone(id, "many pages")?;
        // Somebody is inside.
        let vm = Vm::new(programs::counts(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        start_second(vm.tuple(0))?;
        let runs = timer::wait_ms(5000, || {
            vm::clean(vm.memory + 0x800, 8);
            pages::read(vm.memory + 0x800) > 0
        });
        let id = u64::from(vm.id);
        core::mem::forget(vm);
        let reply = call(Function::DestroyVm, &[id, 0]);
        let left = timer::wait_ms(5000, || crate::guest_runs::LAST_EXIT.load(SeqCst) == 0x9292_0006);
        stop_second()?;
        check!(runs && left, "the guest runs ({runs}), and leaves ({left})");
        // It may have left in time.
        if reply.status() != Some(Status::Success) {
            answers(reply, Status::Busy, format_args!("DESTROY_VM of one that runs"))?;
        }
        gone(id, "one that ran")
    })
}

/// Row 1: restartable. Each call does as much as x2 says; -33 until all is done.
fn destroy_vm() -> Outcome {
    leaves_nothing(|| {
        for id in NO_VM.into_iter().chain([FREE_ID]) {
            answers(call(Function::DestroyVm, &[id, 128]), Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        let mut calls = [0u32; 3];
        for (calls, batch) in calls.iter_mut().zip([1u64, 16, 128]) {
            let vm = holey()?;
            let id = u64::from(vm.id);
            core::mem::forget(vm);
            loop {
                *calls += 1;
                let reply = call(Function::DestroyVm, &[id, batch]);
                if reply.status() == Some(Status::Success) {
                    break;
                }
                answers(reply, Status::Busy, format_args!("call {calls} with {batch} pages"))?;
                check!(*calls < 5000, "still not done after {calls} calls of {batch} pages");
                // The first call has condemned it: nothing runs any more.
                let exit = call(Function::Run, &[id << 16]).values[0] as u32;
                check_eq!(exit, 0x9292_0006, "exit of RUN meanwhile");
            }
            answers(call(Function::DestroyVm, &[id, batch]), Status::InvalidArgs, format_args!("once more"))?;
            pages::reset();
        }
        // 256 pages are mapped.
        check!(calls[0] >= 256 && calls[1] >= 16 && calls[2] >= 2, "calls by batch of 1, 16, 128: {calls:?}");
        check!(calls[0] > calls[1] && calls[1] > calls[2], "calls by batch of 1, 16, 128: {calls:?}");
        // Before generation F there is no batch; and too large a one is no reason for a long call.
        for batch in [0, 4096, 1 << 32, u64::MAX] {
            let vm = holey()?;
            let id = u64::from(vm.id);
            core::mem::forget(vm);
            let mut calls = 0;
            while call(Function::DestroyVm, &[id, batch]).status() == Some(Status::Busy) {
                calls += 1;
                check!(calls < 5000, "still not done with batch {batch:#x}");
            }
            answers(call(Function::InformExit, &[id]), Status::InvalidArgs, format_args!("afterwards"))?;
            pages::reset();
        }
        Ok(())
    })
}

/// -33 while a vCPU runs elsewhere, which leaves with FAIL_ENTRY.
fn destroy_vm_while_running() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::spins(), 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        start_second(vm.tuple(0))?;
        let outcome = vm.destroy();
        let stopped = stop_second();
        outcome?;
        stopped
    })
}

/// Row 12: any driver is welcome, and ours is told 16.0.0.
fn probe() -> Outcome {
    for version in [[16, 0, 0], [0, 0, 0], [17, 3, 1], [u64::MAX, u64::MAX, u64::MAX]] {
        let reply = call(Function::Probe, &version);
        answers(reply, Status::Success, format_args!("driver {version:?}"))?;
        check_eq!(reply.values, [16, 0, 0], "version for driver {version:?}");
    }
    Ok(())
}

/// Row 14: no effect but a status.
fn inform_exit() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        answers(vm.call(Function::InformExit, &[0]), Status::Success, format_args!("a VM"))?;
        for id in NO_VM {
            answers(call(Function::InformExit, &[id]), Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        Ok(())
    })
}

/// Row 16: crosvm passes the device tree's address and the largest size, not the blob's.
fn set_dtb_config() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        let set = |gpa, size| vm.call(Function::SetDtbConfig, &[gpa, size]);
        answers(set(0x8020_0000, 0x20_0000), Status::Success, format_args!("as crosvm"))?;
        answers(set(0x8020_0000, 0x20_0000), Status::Success, format_args!("again"))?;
        for id in NO_VM {
            let reply = call(Function::SetDtbConfig, &[id, 0x8020_0000, 0x20_0000]);
            answers(reply, Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        Ok(())
    })
}

/// Row 19: bytes that the hypervisor spends, tables and vCPUs included.
fn get_statistics() -> Outcome {
    leaves_nothing(|| {
        for id in NO_VM.into_iter().chain([FREE_ID]) {
            answers(call(Function::GetStatistics, &[id]), Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        let bare = Bare::new()?;
        let reply = bare.call(Function::GetStatistics, &[0]);
        answers(reply, Status::Success, format_args!("a VM"))?;
        let [empty, shared, x3] = reply.values;
        check!(empty >= 4096 && empty % 4096 == 0, "{empty} bytes for a VM");
        check_eq!((shared, x3), (0, 0), "x2 and x3");
        let vm = Vm::new(programs::tour(), 1)?;
        let used = || call(Function::GetStatistics, &[vm.id.into()]).values[0];
        let with_vcpu = used();
        check!(with_vcpu > empty, "a vCPU costs nothing: {empty} and {with_vcpu} bytes");
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        let with_page = used();
        check!(with_page > with_vcpu, "tables cost nothing: {with_vcpu} and {with_page} bytes");
        vm.destroy().map(drop)
    })
}

/// Row 13: x1 names the VM, 0 none; each capability has a case of its own.
fn enable_cap() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        // More arguments than the capability has mean nothing.
        let reply = vm.call(Function::EnableCap, &[0x9203, 1, 2, 3, 4, 5]);
        answers(reply, Status::Success, format_args!("with five arguments"))?;
        for id in NO_VM {
            let reply = call(Function::EnableCap, &[id, 0x9203]);
            answers(reply, Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        // Questions about the hypervisor need no VM, and may come with one.
        for id in [0, vm.id, 0xFFFF] {
            check!(call(Function::EnableCap, &[id, 0x9204]).ok(), "0x9204 with VM {id:#x}");
        }
        Ok(())
    })
}

fn not_implemented(function: Function) -> Outcome {
    let vm = Bare::new()?;
    for x1 in [vm.tuple(0), 0, u64::MAX] {
        answers(call(function, &[x1, 0]), Status::NotImplemented, format_args!("x1 = {x1:#x}"))?;
    }
    Ok(())
}

/// Row 6, reserved.
fn get_regs() -> Outcome {
    leaves_nothing(|| not_implemented(Function::GetRegs))
}

/// Row 7, reserved.
fn set_regs() -> Outcome {
    leaves_nothing(|| not_implemented(Function::SetRegs))
}

/// 0x40: magic, version, and a bit for each function of ours, no more.
fn ext_info() -> Outcome {
    let reply = call(Function::ExtInfo, &[]);
    answers(reply, Status::Success, format_args!("EXT_INFO"))?;
    check_eq!((reply.values[0], reply.values[1]), (0x475A_5253, EXT_VERSION), "magic and version");
    for bit in 0..64u16 {
        let there = Function::from_number(0x40 + bit).is_some();
        check_eq!(reply.values[2] >> bit & 1 == 1, there, "bit of function {:#x}", 0x40 + bit);
    }
    Ok(())
}

/// 0x41: every counter by index, -8 past the last.
fn ext_counter() -> Outcome {
    for (i, name) in counter::NAMES.iter().enumerate() {
        answers(call(Function::ExtCounter, &[i as u64]), Status::Success, format_args!("{name}"))?;
    }
    let count = counter::COUNT as u64;
    for i in [count, count + 1, 1 << 31, 1 << 32, 1 << 63, u64::MAX] {
        answers(call(Function::ExtCounter, &[i]), Status::InvalidArgs, format_args!("counter {i:#x}"))?;
    }
    let Some(before) = hypercall::counter(Counter::HostHvc) else { fail!("no counter") };
    let after = hypercall::counter(Counter::HostHvc).unwrap_or(0);
    check_eq!(after - before, 1, "hypercalls between two readings of their counter");
    Ok(())
}

/// Ours, 0x46: x1 = VM, x2 = kinds, x3 = action, x4 = ms to a stall. With VM 0 it only tells the kinds that can be watched.
fn set_watch() -> Outcome {
    leaves_nothing(|| {
        let asked = call(Function::SetWatch, &[0]);
        answers(asked, Status::Success, format_args!("what can be watched"))?;
        let kinds = asked.values[0];
        // Those of programs need breakpoints, which may be too few.
        check!(kinds == 0x73F || kinds == 0x43F, "kinds {kinds:#x}");
        check_eq!((asked.values[1], asked.values[2]), (0, 0), "x2 and x3");
        for id in NO_VM.into_iter().filter(|id| *id != 0) {
            answers(call(Function::SetWatch, &[id, 1]), Status::InvalidArgs, format_args!("VM {id:#x}"))?;
        }
        let vm = Vm::new(programs::tour(), 1)?;
        let set = |kinds, action, ms| call(Function::SetWatch, &[vm.id.into(), kinds, action, ms]);
        for kind in (0..64).map(|bit| 1 << bit).filter(|kind| kinds & kind == 0) {
            answers(set(kind, 0, 0), Status::NotSupported, format_args!("kind {kind:#x}"))?;
        }
        for action in [4, 1 << 32, 1 << 32 | 1, u64::MAX] {
            answers(set(1, action, 0), Status::InvalidArgs, format_args!("action {action:#x}"))?;
        }
        for (kinds, ms) in [(1 << 4, 0), (1 << 4, 3_600_001), (1 << 4, u64::MAX), (1, 1), (0, 1)] {
            answers(set(kinds, 0, ms), Status::InvalidArgs, format_args!("kinds {kinds:#x}, {ms} ms"))?;
        }
        for (kinds, action, ms) in [(kinds, 1, 3_600_000), (1 << 4, 3, 1), (0, 0, 0)] {
            let reply = set(kinds, action, ms);
            answers(reply, Status::Success, format_args!("kinds {kinds:#x}, action {action}, {ms} ms"))?;
        }
        let _ = vm.run_once(0);
        answers(set(1, 0, 0), Status::InvalidArgs, format_args!("after the first RUN"))?;
        vm.destroy().map(drop)
    })
}

/// 0x4C: x1 = x2 = 0 asks; else x2 is given to a VM that has had no vCPU yet. 1 is SVE.
fn vm_features() -> Outcome {
    const SVE: u64 = 1;
    leaves_nothing(|| {
        let reply = call(Function::VmFeatures, &[0, 0]);
        answers(reply, Status::Success, format_args!("what there is"))?;
        let have = reply.values[0];
        let this_cpu = read_sysreg!("id_aa64pfr0_el1") >> 32 & 0xF != 0;
        check_eq!(reply.values, [if this_cpu { SVE } else { 0 }, 0, 0], "what there is");
        let vm = Bare::new()?;
        for mask in [2, 3, 1 << 31, 1 << 32 | 1, 1 << 63, u64::MAX] {
            let reply = vm.call(Function::VmFeatures, &[mask]);
            answers(reply, Status::InvalidArgs, format_args!("unknown ones, {mask:#x}"))?;
        }
        let expected = if have == 0 { Status::NotSupported } else { Status::InvalidArgs };
        for id in NO_VM {
            answers(call(Function::VmFeatures, &[id, SVE]), expected, format_args!("VM {id:#x}"))?;
        }
        if have == 0 {
            let reply = vm.call(Function::VmFeatures, &[SVE]);
            return answers(reply, Status::NotSupported, format_args!("what the machine lacks"));
        }
        // The last word counts, until there is a vCPU; which costs what it was given.
        let cost = |mask: &[u64]| {
            let vm = Bare::new()?;
            for mask in mask {
                let reply = vm.call(Function::VmFeatures, &[*mask]);
                answers(reply, Status::Success, format_args!("mask {mask}"))?;
                check_eq!(reply.values, [have, 0, 0], "x1 to x3 for mask {mask}");
            }
            let shared = pages::take(2, 4096);
            check!(call(Function::CreateVcpu, &[vm.tuple(0), shared]).ok(), "CREATE_VCPU");
            for mask in [0, SVE] {
                let reply = vm.call(Function::VmFeatures, &[mask]);
                answers(reply, Status::InvalidArgs, format_args!("mask {mask} with a vCPU"))?;
            }
            Ok::<u64, Verdict>(vm.call(Function::GetStatistics, &[0]).values[0])
        };
        let (plain, given, taken) = (cost(&[])?, cost(&[0, SVE])?, cost(&[SVE, 0])?);
        check!(given >= plain + 8704, "a vCPU with SVE costs {given} bytes, one without {plain}");
        check_eq!(taken, plain, "bytes of a VM that was given SVE and then nothing");
        Ok(())
    })
}
