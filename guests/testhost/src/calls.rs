// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hypercalls' arguments at their boundaries, all of them and with nothing but survival asked for. What
//! each row of the ABI's tables demands is in [`crate::conformance`].

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{FID_BASE_SMC32, Function, cap};
use gzvm_abi::reg;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, call};
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{cases, check, check_eq, fail, psci};

use crate::host::hypervisor_memory;
use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::{self, Vm};

pub const CASES: &[Case] = cases!["calls":
    no_such_vm, boundaries_without_vms, boundaries_with_a_vm, wild_addresses, map_refuses_what_is_not_the_hosts,
];

/// Calls about VMs and vCPUs that do not exist.
fn no_such_vm() -> Outcome {
    for vm in [0u64, 1, 2, 0x7FFF, 0xFFFE, 0xFFFF, 0x1_0000, 1 << 31, 1 << 32 | 1, u64::MAX] {
        for function in [
            Function::DestroyVm,
            Function::SetMemregion,
            Function::CreateDevice,
            Function::InformExit,
            Function::MemregionPurpose,
            Function::SetDtbConfig,
            Function::MapGuest,
            Function::MapGuestBlock,
            Function::GetStatistics,
        ] {
            check!(!call(function, &[vm, 0, 0, 0, 0]).ok(), "{function:?} of VM {vm:#x} succeeds");
        }
        let tuple = vm << 16;
        for function in [
            Function::CreateVcpu,
            Function::DestroyVcpu,
            Function::SetOneReg,
            Function::IrqLine,
            Function::GetOneReg,
        ] {
            let reply = call(function, &[tuple, reg::X0, 0]);
            check!(!reply.ok(), "{function:?} of tuple {tuple:#x} succeeds");
        }
        // RUN's status is ignored by drivers; the exit reason must make sense.
        let reason = call(Function::Run, &[tuple]).values[0] as u32;
        check_eq!(reason, gzvm_abi::run::exit::FAIL_ENTRY, "exit of RUN of tuple {tuple:#x}");
    }
    Ok(())
}

const BOUNDARIES: [u64; 22] = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    10,
    11,
    255,
    511,
    512,
    513,
    4095,
    4096,
    0xFFFE,
    0xFFFF,
    0x1_0000,
    1 << 31,
    0xFFFF_FFFF,
    1 << 63,
    u64::MAX,
];

/// What exists, by the hypervisor's counters.
fn baseline() -> Result<[u64; 3], Verdict> {
    let [Some(vms), Some(vcpus), Some(pool)] =
        [Counter::Vms, Counter::Vcpus, Counter::PoolUsed].map(hypercall::counter)
    else {
        fail!("no counters")
    };
    Ok([vms, vcpus, pool])
}

/// Calls `function`; a VM that comes of it goes again.
fn probe_call(number: u64, args: &[u64]) -> Outcome {
    let x = Conduit::Hvc.call(u64::from(FID_BASE_SMC32) + 0x4000_0000 + number, args);
    if number == Function::CreateVm as u64 && x[0] as i32 == 0 {
        vm::destroy(x[1] as u16)?;
    }
    Ok(())
}

fn boundaries_without_vms() -> Outcome {
    let before = baseline()?;
    for number in (0..0x58).chain([0xFFF]) {
        for value in BOUNDARIES {
            probe_call(number, &[value; 7])?;
            for position in 0..7 {
                let mut args = [0; 7];
                args[position] = value;
                probe_call(number, &args)?;
            }
        }
    }
    check_eq!(baseline()?, before, "VMs, vCPUs, pool pages afterwards");
    check_eq!(psci::affinity_info(0), 0, "AFFINITY_INFO afterwards");
    Ok(())
}

fn boundaries_with_a_vm() -> Outcome {
    let before = baseline()?;
    let mut vm = Vm::new(programs::tour(), 1)?;
    for number in 0..0x58 {
        // Those end the VM, its vCPU or its memory, which is another case's.
        let ends = [Function::DestroyVm, Function::DestroyVcpu, Function::Run, Function::RemoveMemregion];
        if number == 0 || ends.iter().any(|f| *f as u64 == number) {
            continue;
        }
        // IRQ_LINE and the register calls take a tuple.
        let tuple = [8, 9, 10].contains(&number);
        let x1 = if tuple { vm.tuple(0) } else { vm.id.into() };
        for value in BOUNDARIES {
            probe_call(number, &[x1, value, value, value, value, value, value])?;
            for position in 1..7 {
                let mut args = [x1, 0, 0, 0, 0, 0, 0];
                args[position] = value;
                // A call that would name memory of the running test as the VM's stays out.
                if number == 4 || number == 11 || number == 2 {
                    args[2] |= 1;
                }
                probe_call(number, &args)?;
            }
        }
    }
    // Some of the calls were legal and set registers: start over from where the program starts.
    vm.set_reg(0, reg::PC, RAM)?;
    vm.set_reg(0, reg::PSTATE, 0x3C5)?;
    vm.set_reg(0, reg::X0, 0x1234_5678_9ABC)?;
    let (offset, value) = vm.run_to_store(0)?;
    check_eq!((offset, value), (0x10, 0x1234_5678_9ABC), "the guest's first store");
    vm.destroy()?;
    pages::reset();
    check_eq!(baseline()?, before, "VMs, vCPUs, pool pages afterwards");
    Ok(())
}

/// Physical addresses in arguments that are not the host's memory.
fn wild_addresses() -> Outcome {
    let before = baseline()?;
    let hypervisor = hypervisor_memory()?;
    let vm = Vm::new(programs::tour(), 1)?;
    for address in [
        hypervisor.start,
        hypervisor.start + 4096,
        hypervisor.end() - 8192,
        hypervisor.end() - 4096,
        hypervisor.start - 4096,
        1 << 47,
        1 << 48,
        1 << 52,
        1 << 63,
        u64::MAX,
        !4095,
        u64::MAX - 8191,
        vm.memory + 1,
        vm.memory + 8,
    ] {
        let id = u64::from(vm.id);
        let region = call(Function::SetMemregion, &[id, 8192, address]);
        check!(!region.ok(), "SET_MEMREGION with a buffer at {address:#x} succeeds");
        let device = call(Function::CreateDevice, &[id, address]);
        check!(!device.ok(), "CREATE_DEVICE with a page at {address:#x} succeeds");
        let vcpu = call(Function::CreateVcpu, &[vm.tuple(1), address]);
        check!(!vcpu.ok(), "CREATE_VCPU with pages at {address:#x} succeeds");
        let block = call(Function::EnableCap, &[id, cap::BLOCK_BASED_DEMAND_PAGING, 2 << 20, address]);
        // One page: the one before the hypervisor's is the host's.
        let host_page = address == hypervisor.start - 4096;
        check!(host_page || !block.ok(), "a mailbox at {address:#x} is accepted");
    }
    vm.destroy()?;
    pages::reset();
    check_eq!(baseline()?, before, "VMs, vCPUs, pool pages afterwards");
    Ok(())
}

fn map_refuses_what_is_not_the_hosts() -> Outcome {
    let hypervisor = hypervisor_memory()?;
    let vm = Vm::new(programs::tour(), 1)?;
    let id = u64::from(vm.id);
    let map = |pfn: u64, gfn: u64, pages: u64| call(Function::MapGuest, &[id, 0, pfn, gfn, pages]);
    let (pfn, gfn) = (vm.memory >> 12, RAM >> 12);
    for bad in [hypervisor.start >> 12, (hypervisor.end() >> 12) - 1, 1 << 36, 1 << 40, 1 << 52, u64::MAX] {
        check!(!map(bad, gfn, 1).ok(), "PFN {bad:#x} is accepted");
    }
    for bad in [0, gfn - 1, gfn + vm::RAM_PAGES, 1 << 28, 1 << 52, u64::MAX] {
        check!(!map(pfn, bad, 1).ok(), "GFN {bad:#x} is accepted");
    }
    for bad in [0, vm::RAM_PAGES + 1, 1 << 32, 1 << 52, u64::MAX] {
        check!(!map(pfn, gfn, bad).ok(), "{bad:#x} pages are accepted");
    }
    // Straddling into the hypervisor's memory.
    check!(!map((hypervisor.start >> 12) - 1, gfn, 2).ok(), "a range into the hypervisor is accepted");
    check!(!call(Function::MapGuest, &[id, 1, pfn, gfn, 1]).ok(), "slot 1, which is not there, is accepted");
    // The same again is no error, another page in its place is one.
    check!(map(pfn, gfn, 1).ok(), "a good page is refused");
    check!(map(pfn, gfn, 1).ok(), "the same page again is refused");
    check!(!map(pfn + 1, gfn, 1).ok(), "another page in its place is accepted");
    // By block.
    let block = |gfn: u64, pages: u64| call(Function::MapGuestBlock, &[id, 0, gfn, pages]).ok();
    pages::write(vm.mailbox, hypervisor.start >> 12);
    check!(!block(gfn + 8, 1), "a block of the hypervisor's page is accepted");
    for bad in [513, 4096, 1 << 32, u64::MAX] {
        check!(!block(gfn, bad), "a block of {bad:#x} pages is accepted");
    }
    for (i, page) in (16..24).enumerate() {
        pages::write(vm.mailbox + 8 * i as u64, pfn + page);
    }
    check!(block(gfn + 16, 8), "a good block is refused");
    check!(block(gfn + 16, 8), "the same block again is refused");
    vm.destroy()?;
    pages::reset();
    Ok(())
}
