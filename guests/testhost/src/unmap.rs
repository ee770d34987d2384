// SPDX-License-Identifier: Apache-2.0 OR MIT
//! UNMAP_GUEST and REMOVE_MEMREGION: pages that the host takes back, also from a vCPU that runs.

use core::sync::atomic::Ordering::SeqCst;

use gzvm_abi::MAX_MEMSLOTS;
use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, RegionHeader, Status};
use gzvm_abi::run::exit;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, Reply, call};
use gzvm_guest_kit::{cases, check, check_eq, fail, timer};

use crate::abuse::{RUNS, start_runner, stop_runner};
use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::{self, RAM_PAGES, Vm};

pub const CASES: &[Case] = cases!["unmap":
    page_comes_back_with_what_is_there_then, arguments, shared_pages_are_counted,
    large_slot_goes_in_steps, removed_slot_can_be_given_again, running_vcpu_loses_its_page,
    slots_come_and_go,
];

/// A slot of 10 MiB: more than one step takes back.
const LARGE: u64 = 2560;
const LARGE_AT: u64 = RAM + 0x1000_0000;

fn unmap(vm: u16, gpa: u64, pages: u64) -> Reply {
    call(Function::UnmapGuest, &[vm.into(), gpa >> 12, pages])
}

fn shared() -> Result<u64, Verdict> {
    match hypercall::counter(Counter::PagesShared) {
        Some(count) => Ok(count),
        None => fail!("no counter of shared pages"),
    }
}

fn add_slot(vm: u16, slot: u32, gpa: u64, total_pages: u64) -> Reply {
    let mark = pages::mark();
    let buffer = pages::take(2, 4096);
    pages::put(buffer, RegionHeader { slot, constituent_cnt: 7, total_pages, gpa });
    let reply = call(Function::SetMemregion, &[vm.into(), REGION_BUFFER_SIZE, buffer]);
    pages::back_to(mark);
    reply
}

/// Calls until the answer is not "busy"; how many calls that took.
fn finish(what: &str, mut f: impl FnMut() -> Reply) -> Result<u32, Verdict> {
    for n in 1..1000 {
        match f().status() {
            Some(Status::Busy) => {}
            Some(Status::Success) => return Ok(n),
            other => fail!("{what}: {other:?} at call {n}"),
        }
    }
    fail!("{what} is never done")
}

fn page_comes_back_with_what_is_there_then() -> Outcome {
    let mut vm = Vm::new(programs::reads_one(), 1)?;
    pages::write(vm.memory + 0x1000, 0x1111);
    vm::clean(vm.memory + 0x1000, 8);
    check!(vm.map(RAM + 0x1000).ok(), "MAP_GUEST");
    check!(unmap(vm.id, RAM + 0x1000, 1).ok(), "UNMAP_GUEST");
    pages::write(vm.memory + 0x1000, 0x2222);
    vm::clean(vm.memory + 0x1000, 8);
    check_eq!(vm.run_to_store(0)?.1, 0x2222, "what the guest reads");
    check_eq!(vm.faults, 2, "page faults: of the program and of the page");
    check!(unmap(vm.id, RAM, RAM_PAGES).ok(), "UNMAP_GUEST of all");
    check!(unmap(vm.id, RAM, RAM_PAGES).ok(), "UNMAP_GUEST of nothing");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn arguments() -> Outcome {
    let vm = Vm::new(programs::reads_one(), 1)?;
    let last = RAM_PAGES - 1;
    for (gpa, pages) in [
        (RAM, 0),
        (RAM, RAM_PAGES + 1),
        (RAM, u64::MAX),
        (RAM, 1 << 52),
        (RAM - 4096, 1),
        (RAM - 4096, 2),
        (RAM + last * 4096, 2),
        (RAM + RAM_PAGES * 4096, 1),
        (u64::MAX, 1),
        (0, 1),
    ] {
        let status = unmap(vm.id, gpa, pages).status();
        check_eq!(status, Some(Status::InvalidArgs), "UNMAP_GUEST of {pages} pages at {gpa:#x}");
    }
    check!(unmap(vm.id, RAM + last * 4096, 1).ok(), "the last page");
    for slot in [1, MAX_MEMSLOTS as u64, 1 << 31, 1 << 32, u64::MAX] {
        let status = call(Function::RemoveMemregion, &[vm.id.into(), slot]).status();
        check_eq!(status, Some(Status::InvalidArgs), "REMOVE_MEMREGION of slot {slot:#x}");
    }
    for id in [0, 0xFFFF, 1 << 32] {
        check!(!call(Function::UnmapGuest, &[id, RAM >> 12, 1]).ok(), "UNMAP_GUEST of VM {id:#x}");
        check!(!call(Function::RemoveMemregion, &[id, 0]).ok(), "REMOVE_MEMREGION of VM {id:#x}");
    }
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// Each page that goes is the host's alone again; blocks are split where only a part goes.
fn shared_pages_are_counted() -> Outcome {
    let before = shared()?;
    let vm = Vm::new(programs::reads_one(), 1)?;
    let bare = shared()?;
    let block = call(Function::MapGuest, &[vm.id.into(), 0, vm.memory >> 12, RAM >> 12, RAM_PAGES]);
    check!(block.ok(), "MAP_GUEST of 2 MiB: x0 = {:#x}", block.x0);
    check_eq!(shared()?, bare + RAM_PAGES, "pages shared");
    for (n, gone) in [(5, 1), (6, 2), (300, 3), (5, 3)] {
        check!(unmap(vm.id, RAM + n * 4096, 1).ok(), "UNMAP_GUEST of page {n}");
        check_eq!(shared()?, bare + RAM_PAGES - gone, "pages shared without page {n}");
    }
    finish("UNMAP_GUEST of the rest", || unmap(vm.id, RAM, RAM_PAGES))?;
    check_eq!(shared()?, bare, "pages shared at last");
    vm.destroy()?;
    check_eq!(shared()?, before, "pages shared after the VM");
    pages::reset();
    Ok(())
}

fn large_slot_goes_in_steps() -> Outcome {
    let vm = Vm::new(programs::reads_one(), 1)?;
    let memory = pages::take(LARGE, 4096);
    let bare = shared()?;
    check!(add_slot(vm.id, 1, LARGE_AT, LARGE).ok(), "SET_MEMREGION");
    for n in (0..LARGE).step_by(512) {
        let args = [vm.id.into(), 1, (memory >> 12) + n, (LARGE_AT >> 12) + n, 512];
        check!(call(Function::MapGuest, &args).ok(), "MAP_GUEST at page {n}");
    }
    check_eq!(shared()?, bare + LARGE, "pages shared");
    let calls = finish("UNMAP_GUEST", || unmap(vm.id, LARGE_AT + 4096, LARGE - 1))?;
    check!(calls > 1, "{LARGE} pages go in one call");
    check_eq!(shared()?, bare + 1, "pages shared after UNMAP_GUEST");
    finish("REMOVE_MEMREGION", || call(Function::RemoveMemregion, &[vm.id.into(), 1]))?;
    check_eq!(shared()?, bare, "pages shared after REMOVE_MEMREGION");
    let again = call(Function::RemoveMemregion, &[vm.id.into(), 1]).status();
    check_eq!(again, Some(Status::InvalidArgs), "REMOVE_MEMREGION once more");
    let args = [vm.id.into(), 1, memory >> 12, LARGE_AT >> 12, 1];
    check!(!call(Function::MapGuest, &args).ok(), "MAP_GUEST into the slot that was");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn removed_slot_can_be_given_again() -> Outcome {
    let mut vm = Vm::new(programs::reads_one(), 1)?;
    check_eq!(vm.run(0)?, exit::MMIO, "exit of a program that has its memory");
    finish("REMOVE_MEMREGION", || call(Function::RemoveMemregion, &[vm.id.into(), 0]))?;
    check!(!vm.map(RAM).ok(), "MAP_GUEST without a slot");
    check!(add_slot(vm.id, 0, RAM, RAM_PAGES).ok(), "SET_MEMREGION");
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "the program's end");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// When UNMAP_GUEST returns, a vCPU that is in the guest all the time has let go of the page.
fn running_vcpu_loses_its_page() -> Outcome {
    let vm = Vm::new(programs::counts(), 1)?;
    check!(vm.map(RAM).ok(), "MAP_GUEST");
    let counter = || {
        vm::clean(vm.memory + 0x800, 8);
        pages::read(vm.memory + 0x800)
    };
    start_runner(vm.tuple(0))?;
    let outcome = (|| {
        for round in 0..20 {
            let first = counter();
            check!(timer::wait_ms(5000, || counter() > first), "round {round}: the guest does not count");
            check!(unmap(vm.id, RAM, 1).ok(), "UNMAP_GUEST");
            let (rest, runs) = (counter(), RUNS.load(SeqCst));
            // Without its page it comes out, whatever else this PC has to do.
            check!(timer::wait_ms(2000, || RUNS.load(SeqCst) > runs), "the guest goes on without its page");
            check_eq!(counter(), rest, "counter in a page that was taken back");
            check!(vm.map(RAM).ok(), "MAP_GUEST");
        }
        Ok(())
    })();
    stop_runner()?;
    vm.destroy()?;
    pages::reset();
    outcome
}

fn slots_come_and_go() -> Outcome {
    let id = vm::create_bare()?;
    for round in 0..3 {
        for slot in 0..MAX_MEMSLOTS as u32 {
            let reply = add_slot(id, slot, RAM + u64::from(slot) * 0x10_0000, 256);
            check!(reply.ok(), "round {round}: slot {slot}: x0 = {:#x}", reply.x0);
        }
        check!(!add_slot(id, MAX_MEMSLOTS as u32, 0, 1).ok(), "one slot too many");
        for slot in 0..MAX_MEMSLOTS as u64 {
            // Odd ones first.
            let slot = (2 * slot + 1) % (MAX_MEMSLOTS as u64 + 1);
            check!(call(Function::RemoveMemregion, &[id.into(), slot]).ok(), "REMOVE_MEMREGION {slot}");
        }
    }
    vm::destroy(id)?;
    pages::reset();
    Ok(())
}
