// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A host that tries to reach into a protected VM (`threats.md` 11 to 15, as far as hypercalls and its own memory go).

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, Status, cap};
use gzvm_abi::reg;
use gzvm_abi::run::{Watch, exit};
use gzvm_abi::watch::{action, kind};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::exception::{self, ec};
use gzvm_guest_kit::hypercall::{self, call};
use gzvm_guest_kit::{cases, check, check_eq, fail, skip, smp, timer};

use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::{self, RAM_PAGES, Vm};

pub const CASES: &[Case] = cases!["protected":
    host_does_not_reach_what_it_gave, pages_are_shared_and_taken_back, mmio_guard,
    registers_are_the_guests, a_watch_tells_the_kind_alone, pages_come_back_scrubbed, a_block_goes_in_steps, tables_of_the_host_are_paid_for, becoming_protected,
    what_it_has_is_nobody_elses, neighbours_are_not_disturbed,
];

pub const SECRET: u64 = 0x5EC2_E75E_C2E7;
const INVALID: u64 = -3i64 as u64;
/// PSCI's and SMCCC's success.
pub const OK: u64 = 0;

/// A counter of the hypervisor.
pub fn counter(which: Counter) -> Result<u64, Verdict> {
    match hypercall::counter(which) {
        Some(count) => Ok(count),
        None => fail!("no counter {}", which.index()),
    }
}

/// Whether a load and a store by this host abort, externally and synchronously.
pub fn out_of_reach(address: u64) -> Result<bool, Verdict> {
    let load = exception::expect(|| pages::read(address));
    let store = exception::expect(|| pages::write(address, 0xBAD));
    match (load, store) {
        (Ok(_), Ok(())) => Ok(false),
        (Err(load), Err(store)) => {
            for e in [load, store] {
                check_eq!(e.esr >> 26, u64::from(ec::DATA_ABORT), "exception class");
                check_eq!(e.esr & 0x3F, 0x10, "fault status: external abort");
                check_eq!(e.far, address, "FAR_EL1");
            }
            Ok(true)
        }
        (load, store) => fail!("load {load:x?}, store {store:x?}"),
    }
}

pub fn told(vm: &mut Vm, offset: u64, what: &str) -> Result<u64, Verdict> {
    let (at, value) = vm.run_to_store(0)?;
    check_eq!(at, offset, "{what}: told at");
    Ok(value)
}

fn host_does_not_reach_what_it_gave() -> Outcome {
    let private = counter(Counter::PagesPrivate)?;
    let mut vm = Vm::protected(programs::private(), 1)?;
    let page = vm.memory + 0x1000;
    check!(!out_of_reach(page)?, "the host's own page, not given yet");
    told(&mut vm, 0x10, "written")?;
    let aborts = counter(Counter::HostAbort)?;
    check_eq!(counter(Counter::PagesPrivate)?, private + 2, "pages of VMs: its program and the secret");
    for at in [vm.memory, vm.memory + 0xFF8, page, page + 0xFF8] {
        check!(out_of_reach(at)?, "the host reaches {at:#x}");
    }
    check!(!out_of_reach(page + 0x1000)?, "a page that was not given");
    // Its translation is in this CPU's TLB now, and no world switch drops it.
    check!(vm.map(programs::RAM + 0x2000).ok(), "MAP_GUEST");
    check!(out_of_reach(page + 0x1000)?, "a page that has just been given");
    check_eq!(counter(Counter::HostAbort)?, aborts + 10, "aborts counted");
    let memory = vm.memory;
    vm.destroy()?;
    check_eq!(counter(Counter::PagesPrivate)?, private, "pages of VMs afterwards");
    for page in 0..RAM_PAGES {
        check!(!out_of_reach(memory + page * 4096)?, "page {page} has not come back");
    }
    pages::reset();
    Ok(())
}

fn pages_are_shared_and_taken_back() -> Outcome {
    let mut vm = Vm::protected(programs::private(), 1)?;
    let page = vm.memory + 0x1000;
    told(&mut vm, 0x10, "written")?;
    check_eq!(told(&mut vm, 0x18, "MEM_SHARE")?, OK, "MEM_SHARE");
    vm::clean(page, 8);
    check_eq!(pages::read(page), SECRET, "what the host sees of a shared page");
    check!(out_of_reach(vm.memory)?, "another page");
    pages::write(page, 0x1234);
    vm::clean(page, 8);
    check_eq!(told(&mut vm, 0x20, "MEM_SHARE again")?, INVALID, "MEM_SHARE again");
    check_eq!(told(&mut vm, 0x28, "content")?, 0x1234, "what the host wrote");
    check_eq!(told(&mut vm, 0x30, "MEM_UNSHARE")?, OK, "MEM_UNSHARE");
    check!(out_of_reach(page)?, "the page that was taken back");
    check_eq!(told(&mut vm, 0x38, "content")?, 0x1234, "the content after the host's attempts");
    let faults = vm.faults;
    check_eq!(told(&mut vm, 0x40, "an absent page")?, OK, "MEM_SHARE of an absent page");
    check_eq!(vm.faults, faults + 1, "page faults for it");
    check!(!out_of_reach(vm.memory + 0x5000)?, "the page that was absent");
    check_eq!(told(&mut vm, 0x48, "no memory")?, INVALID, "MEM_SHARE of no memory");
    check_eq!(told(&mut vm, 0x50, "half a page")?, INVALID, "MEM_SHARE of half a page");
    check_eq!(told(&mut vm, 0x58, "HYP_MEMINFO")?, 4096, "HYP_MEMINFO");
    check_eq!(vm.run(0)?, exit::HYPERCALL, "exit of MEM_RELINQUISH");
    check_eq!(pages::read(page), 0, "what the host finds in a page that was given up");
    check!(!out_of_reach(page)?, "a page that was given up");
    check_eq!(told(&mut vm, 0x60, "MEM_RELINQUISH")?, OK, "MEM_RELINQUISH");
    pages::write(page, 0x77);
    vm::clean(page, 8);
    check_eq!(told(&mut vm, 0x68, "content")?, 0x77, "what the host put into the page it gave anew");
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit at the end");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn mmio_guard() -> Outcome {
    let mut vm = Vm::protected(programs::guarded(), 1)?;
    check_eq!(told(&mut vm, 0x10, "enrolled")?, OK, "MMIO_GUARD_MAP and ENROLL");
    let report = gzvm_abi::run::Mmio::read(&vm.report(0));
    check_eq!(report.reg_nr, 31, "register number of a protected guest's store");
    check_eq!(told(&mut vm, 0x18, "of memory")?, INVALID, "MMIO_GUARD_MAP of memory");
    check_eq!(told(&mut vm, 0x20, "MMIO_GUARD_INFO")?, 4096, "MMIO_GUARD_INFO");
    let esr = told(&mut vm, 0x28, "abort")?;
    check_eq!(esr >> 26, u64::from(ec::DATA_ABORT), "exception class at a page that was not named");
    check_eq!(esr & 0x3F, 0x10, "fault status: external abort");
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit at the end");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn registers_are_the_guests() -> Outcome {
    let mut vm = Vm::protected(programs::private(), 2)?;
    let get = |vm: &Vm, id| call(Function::GetOneReg, &[vm.tuple(0), id]);
    let set = |vm: &Vm, n, id| call(Function::SetOneReg, &[vm.tuple(n), id, RAM]).status();
    let ids =
        [reg::X0, reg::X30, reg::PC, reg::PSTATE, reg::V0, reg::SP_EL1, reg::TTBR0_EL1, reg::CNTV_CVAL_EL0];
    let refused = |vm: &Vm| {
        for id in ids {
            let reply = get(vm, id);
            check_eq!(reply.status(), Some(Status::NotSupported), "GET_ONE_REG {id:#x}");
            check_eq!(reply.values, [0; 3], "values of GET_ONE_REG {id:#x}");
        }
        Ok(())
    };
    refused(&vm)?;
    check_eq!(set(&vm, 0, reg::X0), Some(Status::Success), "x0 before the first run");
    for id in [reg::V0, reg::SP_EL1, reg::TTBR0_EL1, reg::VBAR_EL1] {
        check_eq!(set(&vm, 0, id), Some(Status::NotSupported), "SET_ONE_REG {id:#x} before the first run");
    }
    told(&mut vm, 0x10, "written")?;
    refused(&vm)?;
    for n in 0..2 {
        for id in ids {
            check_eq!(set(&vm, n, id), Some(Status::NotSupported), "SET_ONE_REG {id:#x} of vCPU {n}");
        }
    }
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn a_watch_tells_the_kind_alone() -> Outcome {
    let mut vm = Vm::protected(programs::crashes(), 1)?;
    let kinds = kind::UNDEFINED;
    let watched = call(Function::SetWatch, &[vm.id.into(), kinds.into(), action::REPORT.into(), 0]);
    check!(watched.ok(), "SET_WATCH: x0 = {:#x}", watched.x0);
    check_eq!(vm.run(0)?, exit::WATCH, "exit");
    let expected = Watch { kind: kinds, action: action::REPORT, count: 1, ..Default::default() };
    check_eq!(Watch::read(&vm.report(0)), expected, "event");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn pages_come_back_scrubbed() -> Outcome {
    let used = counter(Counter::PoolUsed)?;
    for round in 0..4 {
        let mut vm = Vm::protected(programs::keeps_secrets(), 1)?;
        if round & 1 != 0 {
            let whole = call(Function::MapGuest, &[vm.id.into(), 0, vm.memory >> 12, RAM >> 12, RAM_PAGES]);
            check!(whole.ok(), "MAP_GUEST of 2 MiB: x0 = {:#x}", whole.x0);
        }
        // Round 2 and 3: killed in the middle.
        if round < 2 {
            check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit at the end");
        } else if round == 2 {
            for _ in 0..100 {
                let _ = vm.run_once(0);
                let fault = gzvm_abi::run::Exception::read(&vm.report(0)).fault_gpa & !0xFFF;
                check!(vm.map(fault).ok(), "MAP_GUEST {fault:#x}");
            }
        }
        let memory = vm.memory;
        vm.destroy()?;
        let mut secrets = 0;
        for word in (memory..memory + RAM_PAGES * 4096).step_by(8) {
            secrets += u64::from(pages::read(word) == SECRET);
        }
        check_eq!(secrets, 0, "round {round}: secrets found");
        pages::reset();
    }
    check_eq!(counter(Counter::PoolUsed)?, used, "pages of the pool in use");
    Ok(())
}

/// No call takes longer than scrubbing 64 pages, and nothing comes back before all of the block is scrubbed.
fn a_block_goes_in_steps() -> Outcome {
    let vm = Vm::protected(programs::spins(), 1)?;
    let whole = call(Function::MapGuest, &[vm.id.into(), 0, vm.memory >> 12, RAM >> 12, RAM_PAGES]);
    check!(whole.ok(), "MAP_GUEST of 2 MiB");
    let memory = vm.memory;
    for _ in 0..3 {
        let step = vm.call(Function::DestroyVm, &[128]).status();
        check_eq!(step, Some(Status::Busy), "one of the first steps of DESTROY_VM");
    }
    check!(out_of_reach(memory)?, "the first page of a block of which not all is scrubbed");
    check!(3 + vm.destroy()? >= (RAM_PAGES / 64) as u32, "512 pages in too few calls");
    for at in [memory, memory + (RAM_PAGES - 1) * 4096] {
        check_eq!(pages::read(at), 0, "what the host finds at {at:#x}");
    }
    pages::reset();
    Ok(())
}

/// A page out of a block that was whole makes the host's table larger by one, which the VM pays for; it comes back with the page.
fn tables_of_the_host_are_paid_for() -> Outcome {
    let used = counter(Counter::PoolUsed)?;
    let vm = Vm::protected(programs::spins(), 1)?;
    let blocks = [(); 3].map(|()| pages::take(RAM_PAGES, 2 << 20));
    let mut at = RAM >> 12;
    let mut cost = |page: u64| {
        let before = vm.call(Function::GetStatistics, &[]).values[0];
        let pool = counter(Counter::PoolUsed)?;
        let given = call(Function::MapGuest, &[vm.id.into(), 0, page >> 12, at, 1]);
        check!(given.ok(), "MAP_GUEST: x0 = {:#x}", given.x0);
        at += 1;
        let charged = vm.call(Function::GetStatistics, &[]).values[0] - before;
        check_eq!(
            charged,
            (counter(Counter::PoolUsed)? - pool) * 4096,
            "bytes charged, and pages of the pool"
        );
        Ok::<u64, Verdict>(charged)
    };
    // The first one makes tables of the VM's too.
    check!(cost(blocks[0])? > 4096, "the first page costs nothing");
    check_eq!(cost(blocks[1])?, 4096, "a page of another block");
    check_eq!(cost(blocks[1] + 0x5000)?, 0, "one more of it");
    check_eq!(cost(blocks[2] + 0x1F_F000)?, 4096, "a page of a third block");
    vm.destroy()?;
    check_eq!(counter(Counter::PoolUsed)?, used, "pages of the pool in use");
    pages::reset();
    Ok(())
}

fn becoming_protected() -> Outcome {
    let protect = |vm: u16| {
        call(Function::EnableCap, &[vm.into(), cap::PROTECTED_VM, cap::protected::SET_PROTECTED_VM]).status()
    };
    // With a vCPU already.
    let plain = Vm::new(programs::spins(), 1)?;
    check_eq!(protect(plain.id), Some(Status::InvalidArgs), "a VM that has a vCPU");
    check!(plain.map(RAM).ok(), "MAP_GUEST");
    check!(!out_of_reach(plain.memory)?, "a plain VM's memory");
    plain.destroy()?;
    let bare = vm::create_bare()?;
    check_eq!(protect(bare), Some(Status::Success), "a VM without anything");
    check_eq!(protect(bare), Some(Status::InvalidArgs), "a second time");
    vm::destroy(bare)?;
    for id in [0u16, 0xFFFF] {
        check!(protect(id) != Some(Status::Success), "VM {id}");
    }
    pages::reset();
    Ok(())
}

fn what_it_has_is_nobody_elses() -> Outcome {
    let mut vm = Vm::protected(programs::private(), 1)?;
    told(&mut vm, 0x10, "written")?;
    let id = u64::from(vm.id);
    for (function, args) in
        [(Function::UnmapGuest, [id, RAM >> 12, 1]), (Function::RemoveMemregion, [id, 0, 0])]
    {
        check_eq!(call(function, &args).status(), Some(Status::NotSupported), "{function:?}");
    }
    // Another page in the place of one it has.
    let pfn = pages::take(1, 4096) >> 12;
    let replaced = call(Function::MapGuest, &[id, 0, pfn, (RAM + 0x1000) >> 12, 1]).status();
    check_eq!(replaced, Some(Status::InvalidArgs), "MAP_GUEST over a page");
    // Its page to others.
    let page = vm.memory + 0x1000;
    for protected in [false, true] {
        let memory = vm.memory;
        let other =
            if protected { Vm::protected(programs::spins(), 1)? } else { Vm::new(programs::spins(), 1)? };
        let stolen = call(Function::MapGuest, &[other.id.into(), 0, page >> 12, RAM >> 12, 1]).status();
        check_eq!(stolen, Some(Status::Fault), "MAP_GUEST to another VM");
        let around = call(Function::MapGuest, &[other.id.into(), 0, memory >> 12, RAM >> 12, 512]).status();
        check_eq!(around, Some(Status::Fault), "MAP_GUEST of pages around it");
        let area = call(Function::CreateVcpu, &[u64::from(other.id) << 16 | 1, page]).status();
        check!(area != Some(Status::Success), "CREATE_VCPU in its page");
        let mailbox =
            call(Function::EnableCap, &[other.id.into(), cap::BLOCK_BASED_DEMAND_PAGING, 2 << 20, page]);
        check!(!mailbox.ok(), "a mailbox in its page");
        other.destroy()?;
    }
    for function in [Function::SetMemregion, Function::CreateDevice] {
        let args = match function {
            Function::SetMemregion => [id, REGION_BUFFER_SIZE, page],
            _ => [id, page, 0],
        };
        check_eq!(call(function, &args).status(), Some(Status::Fault), "{function:?} with its page");
    }
    check_eq!(told(&mut vm, 0x18, "MEM_SHARE")?, OK, "MEM_SHARE");
    vm::clean(page, 8);
    check_eq!(pages::read(page), SECRET, "its page after all that");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

static WATCHED: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static DISTURBED: AtomicU64 = AtomicU64::new(0);

/// Loads and stores in the host's own page, whose 2 MiB are split and joined all the while.
fn use_neighbour() {
    while !STOP.load(SeqCst) {
        let page = WATCHED.load(SeqCst);
        let seen = exception::expect(|| {
            pages::write(page, 0x600D);
            pages::read(page)
        });
        DISTURBED.fetch_add(u64::from(!matches!(seen, Ok(0x600D))), SeqCst);
        ROUNDS.fetch_add(1, SeqCst);
    }
}

fn neighbours_are_not_disturbed() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for counter in [&ROUNDS, &DISTURBED] {
        counter.store(0, SeqCst);
    }
    STOP.store(false, SeqCst);
    // The block's last page is not given.
    let block = pages::take(RAM_PAGES, 2 << 20);
    WATCHED.store(block + (RAM_PAGES - 1) * 4096, SeqCst);
    if let Err(code) = smp::start(1, use_neighbour) {
        fail!("CPU 1 does not start: {code}");
    }
    let outcome = (|| {
        for _ in 0..20 {
            let mark = pages::mark();
            let vm = Vm::protected(programs::spins(), 1)?;
            for (gfn, pages) in [(0, 3), (9, 200), (300, 100)] {
                let given = call(
                    Function::MapGuest,
                    &[vm.id.into(), 0, (block >> 12) + gfn, (RAM >> 12) + gfn, pages],
                );
                check!(given.ok(), "MAP_GUEST: x0 = {:#x}", given.x0);
            }
            vm.destroy()?;
            pages::back_to(mark);
        }
        Ok(())
    })();
    check!(timer::wait_ms(5000, || ROUNDS.load(SeqCst) > 1000), "CPU 1 does not get on");
    STOP.store(true, SeqCst);
    check!(smp::join(1).is_ok(), "CPU 1 does not end");
    outcome?;
    check_eq!(DISTURBED.load(SeqCst), 0, "aborts in the host's own page");
    pages::reset();
    Ok(())
}
