// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that the host gives for a VM's tables, where there is no more of the hypervisor's for them.

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, RegionHeader, Status};
use gzvm_abi::reg;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{Reply, call};
use gzvm_guest_kit::{cases, check, check_eq, exception};

use crate::abuse::{counters, start_runner, stop_runner};
use crate::host::hypervisor_memory;
use crate::protected::{counter, out_of_reach, told};
use crate::vm::{self, Vm, must};
use crate::{pages, programs};

pub const CASES: &[Case] = cases!["tables":
    a_block_leaves_and_comes_back, what_cannot_be_given, as_many_as_a_vm_may_have, given_while_it_runs,
    a_plain_vm_passes_its_limit, a_protected_vm_passes_its_limit,
];

const BLOCK: u64 = 2 << 20;
const BLOCK_PAGES: u64 = 512;
/// A slot in which each page that is mapped needs a table of its own.
const SPARSE: u64 = 1 << 32;
/// More tables than a VM may have, and then some.
const TABLES: u64 = 8448 + 1024;

fn give(vm: &Vm, block: u64) -> Reply {
    vm.call(Function::GiveMemory, &[block >> 12])
}

fn block() -> u64 {
    let block = pages::take(BLOCK_PAGES, BLOCK);
    for at in [0, 8, 0x1000, BLOCK - 8] {
        pages::write(block + at, 0xC0DE);
    }
    block
}

/// All of it is the host's again, and nothing is in it.
fn is_back(block: u64) -> Outcome {
    let last = block + BLOCK - 0x1000;
    check!(exception::expect(|| pages::read(last)).is_ok(), "the block has not come back");
    for at in (block..block + BLOCK).step_by(8) {
        check_eq!(pages::read(at), 0, "what the host finds at {at:#x}");
    }
    Ok(())
}

fn a_block_leaves_and_comes_back() -> Outcome {
    let before = counters()?;
    let own = counter(Counter::PagesHypervisor)?;
    let vm = Vm::new(programs::tour(), 1)?;
    let other = Vm::new(programs::tour(), 1)?;
    let bytes = vm.call(Function::GetStatistics, &[]).values[0];
    let block = block();
    let reply = must(give(&vm, block), "GIVE_MEMORY")?;
    check_eq!(reply.values, [1, 0, 0], "blocks that the VM has");
    check_eq!(counter(Counter::PagesHypervisor)?, own + BLOCK_PAGES, "pages of the hypervisor's");
    check_eq!(vm.call(Function::GetStatistics, &[]).values[0], bytes + BLOCK, "bytes spent on the VM");
    for at in [block, block + 0x1000, block + BLOCK - 8] {
        check!(out_of_reach(at)?, "the host reaches {at:#x}");
    }
    check!(!out_of_reach(block - 8)?, "the page before it");
    // It can't be named again.
    let gfn = programs::RAM >> 12;
    let fault = Some(Status::Fault);
    check_eq!(give(&vm, block).status(), fault, "given again");
    check_eq!(give(&other, block).status(), fault, "given to another VM");
    check_eq!(other.call(Function::MapGuest, &[0, block >> 12, gfn, 512]).status(), fault, "MAP_GUEST of it");
    let region = other.call(Function::SetMemregion, &[REGION_BUFFER_SIZE, block]);
    check_eq!(region.status(), fault, "a buffer in it");
    check!(vm.destroy()? >= 8, "2 MiB are scrubbed in too few calls");
    is_back(block)?;
    other.destroy()?;
    check_eq!(counters()?, before, "counters");
    pages::reset();
    Ok(())
}

fn what_cannot_be_given() -> Outcome {
    let before = counters()?;
    let ask = call(Function::GiveMemory, &[0, 0]);
    check!(ask.ok() && ask.values[0] != 0, "blocks that a VM may have: x0 = {:#x}", ask.x0);
    let block = block();
    let shared = Vm::new(programs::tour(), 1)?;
    check!(shared.map(programs::RAM + 0x5000).ok(), "MAP_GUEST");
    let private = Vm::protected(programs::tour(), 1)?;
    check!(private.map(programs::RAM + 0x5000).ok(), "MAP_GUEST");
    let own = hypervisor_memory()?.start.next_multiple_of(BLOCK);
    for (what, at, status) in [
        ("not aligned", block + 0x1000, Status::InvalidArgs),
        ("beyond all memory", 1 << 47, Status::Fault),
        ("a device", 0x0900_0000, Status::Fault),
        ("the hypervisor's", own, Status::Fault),
        ("a page of it is shared", shared.memory, Status::Fault),
        ("a page of it is a VM's", private.memory, Status::Fault),
    ] {
        check_eq!(give(&shared, at).status(), Some(status), "{what}");
    }
    let no_frame = shared.call(Function::GiveMemory, &[u64::MAX << 9]);
    check_eq!(no_frame.status(), Some(Status::InvalidArgs), "no frame");
    for id in [0, 0xFFFF, 1 << 32 | u64::from(shared.id), u64::MAX] {
        let reply = call(Function::GiveMemory, &[id, block >> 12]);
        check_eq!(reply.status(), Some(Status::InvalidArgs), "VM {id:#x}");
    }
    check!(!out_of_reach(shared.memory)?, "memory that was refused");
    let id = u64::from(shared.id);
    shared.destroy()?;
    let gone = call(Function::GiveMemory, &[id, block >> 12]);
    check_eq!(gone.status(), Some(Status::InvalidArgs), "a VM that is gone");
    private.destroy()?;
    check_eq!(pages::read(block), 0xC0DE, "what was not given");
    check_eq!(counters()?, before, "counters");
    pages::reset();
    Ok(())
}

fn as_many_as_a_vm_may_have() -> Outcome {
    let before = counters()?;
    let most = call(Function::GiveMemory, &[0, 0]).values[0];
    let vm = Vm::protected(programs::tour(), 1)?;
    let blocks = pages::take((most + 1) * BLOCK_PAGES, BLOCK);
    for n in 0..most {
        let reply = must(give(&vm, blocks + n * BLOCK), "GIVE_MEMORY")?;
        check_eq!(reply.values[0], n + 1, "blocks that the VM has");
    }
    let last = blocks + most * BLOCK;
    check_eq!(give(&vm, last).status(), Some(Status::NoMemory), "one too many");
    check!(!out_of_reach(last)?, "the one too many");
    vm.destroy()?;
    for n in 0..most {
        is_back(blocks + n * BLOCK)?;
    }
    check_eq!(counters()?, before, "counters");
    pages::reset();
    Ok(())
}

fn given_while_it_runs() -> Outcome {
    let before = counters()?;
    let vm = Vm::new(programs::spins(), 1)?;
    check!(vm.map(programs::RAM).ok(), "MAP_GUEST");
    let blocks = [block(), block()];
    start_runner(vm.tuple(0))?;
    let given = blocks.map(|block| give(&vm, block));
    let destroyed = vm.destroy();
    stop_runner()?;
    destroyed?;
    for reply in given {
        must(reply, "GIVE_MEMORY")?;
    }
    for block in blocks {
        is_back(block)?;
    }
    check_eq!(counters()?, before, "counters");
    pages::reset();
    Ok(())
}

/// A VM that takes so many tables that it gets no more.
struct Hungry {
    vm: Vm,
    /// Pages for its slot.
    spare: u64,
    /// How many of them it has.
    mapped: u64,
}

impl Hungry {
    fn new(vm: Vm) -> Result<Self, Verdict> {
        let buffer = pages::take(2, 4096);
        let total_pages = TABLES * BLOCK_PAGES;
        pages::put(buffer, RegionHeader { slot: 1, constituent_cnt: 0, total_pages, gpa: SPARSE });
        must(vm.call(Function::SetMemregion, &[REGION_BUFFER_SIZE, buffer]), "SET_MEMREGION")?;
        let mut hungry = Self { vm, spare: pages::take(TABLES, 4096), mapped: 0 };
        while hungry.map() == Some(Status::Success) {}
        check_eq!(hungry.map(), Some(Status::NoMemory), "MAP_GUEST at the limit");
        Ok(hungry)
    }

    /// One more page, which needs a table.
    fn map(&mut self) -> Option<Status> {
        let (pfn, gfn) = ((self.spare >> 12) + self.mapped, (SPARSE >> 12) + self.mapped * BLOCK_PAGES);
        let status = self.vm.call(Function::MapGuest, &[1, pfn, gfn, 1]).status();
        self.mapped += u64::from(status == Some(Status::Success));
        status
    }

    /// With a block it goes on, as far as that goes.
    fn goes_on(&mut self) -> Outcome {
        let before = self.mapped;
        must(give(&self.vm, block()), "GIVE_MEMORY")?;
        while self.map() == Some(Status::Success) {}
        check_eq!(self.map(), Some(Status::NoMemory), "MAP_GUEST where the block is used up");
        let more = self.mapped - before;
        check!((BLOCK_PAGES - 8..=BLOCK_PAGES).contains(&more), "{more} tables of a block");
        must(give(&self.vm, block()), "GIVE_MEMORY")?;
        Ok(())
    }

    fn end(self) -> Outcome {
        self.vm.destroy()?;
        for n in 0..self.mapped {
            check_eq!(pages::read(self.spare + n * 4096), 0, "page {n}");
        }
        Ok(())
    }
}

fn a_plain_vm_passes_its_limit() -> Outcome {
    let before = counters()?;
    let mut hungry = Hungry::new(Vm::new(programs::tour(), 1)?)?;
    hungry.goes_on()?;
    hungry.vm.set_reg(0, reg::X0, 42)?;
    check_eq!(hungry.vm.run_to_store(0)?, (0x10, 42), "first store");
    // What is unmapped gives its tables back, to be taken again.
    for round in 0..2 {
        while hungry.map() == Some(Status::Success) {}
        let (from, pages) = (hungry.mapped - 400, 400);
        let range = [(SPARSE >> 12) + from * BLOCK_PAGES, pages * BLOCK_PAGES];
        let mut status = Some(Status::Busy);
        while status == Some(Status::Busy) {
            status = hungry.vm.call(Function::UnmapGuest, &range).status();
        }
        check_eq!(status, Some(Status::Success), "round {round}: UNMAP_GUEST");
        hungry.mapped = from;
        for _ in 0..pages {
            check_eq!(hungry.map(), Some(Status::Success), "round {round}: MAP_GUEST again");
        }
    }
    hungry.end()?;
    check_eq!(counters()?, before, "counters");
    pages::reset();
    Ok(())
}

fn a_protected_vm_passes_its_limit() -> Outcome {
    let before = counters()?;
    let mut hungry = Hungry::new(Vm::protected(programs::private(), 1)?)?;
    hungry.goes_on()?;
    told(&mut hungry.vm, 0x10, "written")?;
    check_eq!(told(&mut hungry.vm, 0x18, "MEM_SHARE")?, 0, "MEM_SHARE");
    let page = hungry.vm.memory + 0x1000;
    vm::clean(page, 8);
    check_eq!(pages::read(page), crate::protected::SECRET, "what the host sees of a shared page");
    hungry.end()?;
    check_eq!(counters()?, before, "counters");
    pages::reset();
    Ok(())
}
