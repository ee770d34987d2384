// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The calls that take longest, each at its worst: under `-icount` with one CPU a tick of the counter is an instruction
//! (`timed=1` among the boot arguments; else these are skipped).

use gzvm_abi::hypercall::{Constituent, Function, REGION_BUFFER_SIZE, RegionHeader, Status, cap, purpose};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{Reply, call};
use gzvm_guest_kit::machine;
use gzvm_guest_kit::{cases, check, println, skip, timer};

use crate::pages;
use crate::vm;

pub const CASES: &[Case] =
    cases!["longest": maps_of_plain_vms, maps_of_protected_vms, a_protected_vm_of_4_gib, memory_for_tables];

/// Instructions that a call may take.
pub const MOST_INSTRUCTIONS: u64 = 100_000;
/// What brings memory is bounded by its pages alone: public drivers know no "call again" there. MAP_GUEST of a block; of pages; MAP_GUEST_BLOCK;
/// SET_MEMREGION with 128 MiB.
const MOST_OF_MAPS: [u64; 4] = [150_000, 1_500_000, 3_000_000, 8_000_000];
/// Where the VMs' memory begins.
const BASE: u64 = 1 << 32;
/// Where the host has 4 GiB that nobody uses, on a machine with 8 GiB.
const MEMORY: u64 = 1 << 32;
const BLOCK: u64 = 512;

/// The longest call of a kind.
struct Longest {
    what: &'static str,
    limit: u64,
    calls: u64,
    /// Instructions of all of them.
    total: u64,
    most: u64,
    /// Which call that was.
    worst: u64,
}

impl Longest {
    fn of(what: &'static str, limit: u64) -> Self {
        Self { what, limit, calls: 0, total: 0, most: 0, worst: 0 }
    }

    fn call(&mut self, function: Function, args: &[u64]) -> Reply {
        let start = timer::now();
        let reply = call(function, args);
        let ticks = timer::now() - start;
        self.calls += 1;
        self.total += ticks;
        if ticks > self.most {
            (self.most, self.worst) = (ticks, self.calls);
        }
        reply
    }

    /// A call again and again while it says "busy".
    fn finish(&mut self, function: Function, args: &[u64]) -> Option<Status> {
        loop {
            let reply = self.call(function, args);
            if reply.status() != Some(Status::Busy) {
                return reply.status();
            }
        }
    }

    fn end(self) -> Outcome {
        println!(
            "note: {}: {} calls, {} instructions, {} at most (call {})",
            self.what, self.calls, self.total, self.most, self.worst
        );
        check!(self.most <= self.limit, "{}: a call took {} instructions", self.what, self.most);
        Ok(())
    }
}

fn timed() -> Outcome {
    if machine::get().arg("timed") != Some("1") {
        skip!("not timed");
    }
    if !machine::get().memory.iter().any(|m| m.start <= MEMORY && m.end() > MEMORY + (4 << 30) + (128 << 20))
    {
        skip!("less than 8 GiB");
    }
    Ok(())
}

/// A VM with one slot of so many pages, its buffer and its mailbox.
struct Bare {
    id: u64,
    buffer: u64,
    mailbox: u64,
}

fn bare(protected: bool, pages: u64) -> Result<Bare, Verdict> {
    let id = u64::from(vm::create_bare()?);
    let vm = Bare { id, buffer: pages::take(2, 4096), mailbox: pages::take(1, 4096) };
    vm::must(
        call(Function::EnableCap, &[id, cap::BLOCK_BASED_DEMAND_PAGING, 2 << 20, vm.mailbox]),
        "a mailbox",
    )?;
    let size = pages * 4096;
    let known = call(Function::MemregionPurpose, &[id, BASE, size, purpose::GUEST_MEM.into()]);
    vm::must(known, "MEMREGION_PURPOSE")?;
    pages::put(vm.buffer, RegionHeader { slot: 0, constituent_cnt: 0, total_pages: pages, gpa: BASE });
    vm::must(call(Function::SetMemregion, &[id, REGION_BUFFER_SIZE, vm.buffer]), "SET_MEMREGION")?;
    if protected {
        let protect = [id, cap::PROTECTED_VM, cap::protected::SET_PROTECTED_VM];
        vm::must(call(Function::EnableCap, &protect), "ENABLE_CAP protected")?;
    }
    Ok(vm)
}

impl Bare {
    fn map(&self, longest: &mut Longest, page: u64, at: u64, pages: u64) -> Outcome {
        let args = [self.id, 0, (MEMORY >> 12) + page, (BASE >> 12) + at, pages];
        vm::must(longest.call(Function::MapGuest, &args), "MAP_GUEST").map(drop)
    }

    fn destroy(self, what: &'static str) -> Outcome {
        let mut longest = Longest::of(what, MOST_INSTRUCTIONS);
        let ended = longest.finish(Function::DestroyVm, &[self.id, 4096]);
        check!(ended == Some(Status::Success), "DESTROY_VM: {ended:?}");
        longest.end()
    }
}

/// All ways of mapping, and of taking back.
fn maps(protected: bool) -> Outcome {
    timed()?;
    let [block, pages, scattered, populated] = MOST_OF_MAPS;
    let vm = bare(protected, 8 * BLOCK)?;
    let mut longest = Longest::of("MAP_GUEST of a block", block);
    vm.map(&mut longest, 0, 0, BLOCK)?;
    longest.end()?;
    let mut longest = Longest::of("the same again", MOST_INSTRUCTIONS);
    vm.map(&mut longest, 0, 0, BLOCK)?;
    longest.end()?;
    let mut longest = Longest::of("MAP_GUEST of 512 pages across blocks", pages);
    vm.map(&mut longest, BLOCK + 1, BLOCK, BLOCK)?;
    longest.end()?;
    let mut longest = Longest::of("MAP_GUEST of every other page", MOST_INSTRUCTIONS);
    for page in (0..BLOCK).step_by(2) {
        vm.map(&mut longest, 4 * BLOCK + page, 2 * BLOCK + page, 1)?;
    }
    longest.end()?;
    let mut longest = Longest::of("MAP_GUEST of the pages between them", pages);
    vm.map(&mut longest, 4 * BLOCK, 2 * BLOCK, BLOCK)?;
    longest.end()?;
    let mut longest = Longest::of("MAP_GUEST_BLOCK of 512 pages, each elsewhere", scattered);
    for n in 0..BLOCK {
        pages::write(vm.mailbox + 8 * n, (MEMORY >> 12) + 16 * BLOCK + (BLOCK - n) * 3);
    }
    let block = longest.call(Function::MapGuestBlock, &[vm.id, 0, (BASE >> 12) + 4 * BLOCK, BLOCK]);
    vm::must(block, "MAP_GUEST_BLOCK")?;
    longest.end()?;
    if !protected {
        let mut longest = Longest::of("UNMAP_GUEST of 2048 pages", MOST_INSTRUCTIONS);
        let ended = longest.finish(Function::UnmapGuest, &[vm.id, BASE >> 12, 4 * BLOCK]);
        check!(ended == Some(Status::Success), "UNMAP_GUEST: {ended:?}");
        longest.end()?;
        let mut longest = Longest::of("REMOVE_MEMREGION", MOST_INSTRUCTIONS);
        let ended = longest.finish(Function::RemoveMemregion, &[vm.id, 0]);
        check!(ended == Some(Status::Success), "REMOVE_MEMREGION: {ended:?}");
        longest.end()?;
    }
    vm.destroy("DESTROY_VM")?;

    let vm = bare(protected, 16 * BLOCK)?;
    let mut longest = Longest::of("pages one by one", MOST_INSTRUCTIONS);
    for page in 0..4 * BLOCK {
        vm.map(&mut longest, 2 * page, page, 1)?;
    }
    longest.end()?;
    vm.destroy("DESTROY_VM of single pages")?;

    let vm = bare(protected, 64 * BLOCK)?;
    let mut longest = Longest::of("SET_MEMREGION that brings 128 MiB", populated);
    let header = RegionHeader { slot: 0, constituent_cnt: 1, total_pages: 64 * BLOCK, gpa: BASE };
    pages::put(vm.buffer, header);
    pages::put(vm.buffer + 24, Constituent { address: MEMORY, pg_cnt: 64 * BLOCK as u32, reserved: 0 });
    let ended = longest.finish(Function::SetMemregion, &[vm.id, REGION_BUFFER_SIZE, vm.buffer]);
    check!(ended == Some(Status::Success), "SET_MEMREGION: {ended:?}");
    longest.end()?;
    vm.destroy("DESTROY_VM of blocks")?;
    pages::reset();
    Ok(())
}

fn maps_of_plain_vms() -> Outcome {
    maps(false)
}

fn maps_of_protected_vms() -> Outcome {
    maps(true)
}

fn a_protected_vm_of_4_gib() -> Outcome {
    timed()?;
    let vm = bare(true, 2048 * BLOCK)?;
    let mut longest = Longest::of("giving 4 GiB in blocks of 2 MiB", MOST_OF_MAPS[0]);
    for block in 0..2048 {
        vm.map(&mut longest, block * BLOCK, block * BLOCK, BLOCK)?;
    }
    longest.end()?;
    vm.destroy("DESTROY_VM of 4 GiB")?;
    pages::reset();
    Ok(())
}

fn memory_for_tables() -> Outcome {
    timed()?;
    let vm = bare(true, BLOCK)?;
    let mut longest = Longest::of("GIVE_MEMORY", MOST_INSTRUCTIONS);
    for block in 0..16 {
        let pfn = (MEMORY >> 12) + 2 * block * BLOCK;
        vm::must(longest.call(Function::GiveMemory, &[vm.id, pfn]), "GIVE_MEMORY")?;
    }
    longest.end()?;
    vm.destroy("DESTROY_VM of memory for tables")?;
    pages::reset();
    Ok(())
}
