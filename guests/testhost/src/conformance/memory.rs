// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Rows 4, 15, 17, 18 of the hypercall table: slots, and the pages in them.

use gzvm_abi::MAX_MEMSLOTS;
use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Constituent, Function, RegionHeader, Status};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, Reply, call};
use gzvm_guest_kit::{cases, check, check_eq};

use super::{Bare, answers, leaves_nothing};
use crate::guest_runs::{power_off, store};
use crate::host::hypervisor_memory;
use crate::pages;
use crate::programs::{self, RAM};
use crate::vm::{RAM_PAGES, Vm};

pub const CASES: &[Case] = cases!["hypercall":
    memregion_purpose, set_memregion, set_memregion_populates, set_memregion_refuses_bad_buffers,
    map_guest, map_guest_twice, map_guest_block, map_guest_block_by_older_drivers, map_keeps_content,
];

const GFN: u64 = RAM >> 12;

fn invalid(reply: Reply, what: &str, value: u64) -> Outcome {
    answers(reply, Status::InvalidArgs, format_args!("{what} {value:#x}"))
}

/// Row 15: before the slot; flags 1, 2, 4, and 0 for what is added later.
fn memregion_purpose() -> Outcome {
    leaves_nothing(|| {
        let vm = Bare::new()?;
        let purpose = |gpa, size, flags| vm.call(Function::MemregionPurpose, &[gpa, size, flags]);
        for (n, flags) in [0u64, 1, 2, 4].into_iter().enumerate() {
            let gpa = RAM + ((n as u64) << 30);
            answers(purpose(gpa, 0x20_0000, flags), Status::Success, format_args!("purpose {flags}"))?;
            answers(purpose(gpa, 0x20_0000, flags), Status::Success, format_args!("purpose {flags} again"))?;
        }
        for flags in [8, 16, 0x8000_0000, 1 << 32, 1 << 32 | 1, u64::MAX] {
            invalid(purpose(RAM, 0x20_0000, flags), "purpose", flags)?;
        }
        for size in [0, 1, 4095, 4097, u64::MAX] {
            invalid(purpose(RAM, size, 1), "size", size)?;
        }
        for gpa in [RAM + 1, RAM + 0x800, 1 << 40, (1 << 40) - 0x1000, 1 << 52, !0xFFF] {
            invalid(purpose(gpa, 0x20_0000, 1), "address", gpa)?;
        }
        let nobody = call(Function::MemregionPurpose, &[0xFFFF, RAM, 0x1000, 1]);
        invalid(nobody, "VM", 0xFFFF)?;
        // More announcements than there can be slots: refused, not forgotten.
        let refused = (0..2 * MAX_MEMSLOTS as u64).find(|n| !purpose(n << 24, 0x1000, 1).ok());
        check!(refused.is_some(), "any number of announcements is accepted");
        Ok(())
    })
}

/// Row 4, a slot's first call: registers it, whatever constituent_cnt holds.
fn set_memregion() -> Outcome {
    leaves_nothing(|| {
        let buffer = pages::take(3, 4096);
        let vm = Bare::new()?;
        let last = MAX_MEMSLOTS as u32 - 1;
        // Refusals register nothing: the same slots are good below.
        for slot in [last + 1, 0x7FFF_FFFF, u32::MAX] {
            invalid(vm.set_region(buffer, slot, 16, RAM), "slot", slot.into())?;
        }
        for pages in [0, 1 << 28, 1 << 51, 1 << 52, (1 << 52) + 16, u64::MAX] {
            invalid(vm.set_region(buffer, 0, pages, RAM), "pages", pages)?;
        }
        for gpa in [RAM + 1, RAM + 8, 1 << 40, (1 << 40) - 0x1000, 1 << 52, !0xFFF, u64::MAX] {
            invalid(vm.set_region(buffer, 0, 2, gpa), "address", gpa)?;
        }
        pages::put(buffer, RegionHeader { slot: 0, constituent_cnt: 0, total_pages: 16, gpa: RAM });
        for size in [0, 24, 4096, 8191, 8193, 1 << 32 | 8192, u64::MAX] {
            invalid(vm.call(Function::SetMemregion, &[size, buffer]), "buffer size", size)?;
        }
        let foreign = vm.call(Function::SetMemregion, &[8192, hypervisor_memory()?.start]);
        answers(foreign, Status::Fault, format_args!("a buffer of the hypervisor's"))?;
        invalid(call(Function::SetMemregion, &[0xFFFE, 8192, buffer]), "VM", 0xFFFE)?;

        for slot in 0..=last {
            let gpa = RAM + u64::from(slot) * 0x1_0000;
            answers(vm.set_region(buffer, slot, 16, gpa), Status::Success, format_args!("slot {slot}"))?;
        }
        let other = Bare::new()?;
        answers(other.set_region(buffer, 3, 16, RAM), Status::Success, format_args!("another VM's"))?;
        for (what, pages, gpa) in [
            ("the same", 16, RAM),
            ("the first page", 1, RAM),
            ("the last page", 1, RAM + 0xF000),
            ("all and more", 32, RAM - 0x8000),
            ("across the start", 2, RAM - 0x1000),
            ("across the end", 2, RAM + 0xF000),
        ] {
            let reply = other.set_region(buffer, 4, pages, gpa);
            answers(reply, Status::InvalidArgs, format_args!("overlap: {what}"))?;
        }
        answers(other.set_region(buffer, 4, 1, RAM + 0x1_0000), Status::Success, format_args!("behind"))?;
        answers(other.set_region(buffer, 5, 1, RAM - 0x1000), Status::Success, format_args!("before"))?;
        // The last page of the 40-bit space.
        answers(other.set_region(buffer, 6, 1, (1 << 40) - 0x1000), Status::Success, format_args!("top"))
    })
}

/// Memory of `RAM_PAGES` pages that are never neighbours: all but the last two of them single runs.
struct Scattered {
    base: u64,
}

impl Scattered {
    fn new() -> Self {
        Self { base: pages::take(2 * RAM_PAGES, 4096) }
    }

    fn page(&self, n: u64) -> u64 {
        self.base + n * 2 * 4096
    }
}

/// Writes a populating buffer: `runs` are address and page count.
fn fill(buffer: u64, total_pages: u64, gpa: u64, runs: impl Iterator<Item = (u64, u32)>) {
    let mut count = 0;
    for (address, pg_cnt) in runs {
        let entry = Constituent { address, pg_cnt, reserved: 0 };
        pages::put(buffer + 24 + 16 * u64::from(count), entry);
        count += 1;
    }
    pages::put(buffer, RegionHeader { slot: 0, constituent_cnt: count, total_pages, gpa });
}

/// A VM as a driver without demand paging makes it, whose slot 0 is registered and empty.
fn registered(program: &[u8], memory: &Scattered) -> Result<Vm, Verdict> {
    // Content of the first page goes with it.
    for (i, byte) in program.iter().enumerate() {
        pages::put(memory.page(0) + i as u64, *byte);
    }
    gzvm_guest_kit::arch::sync_code(memory.page(0) as usize, program.len());
    crate::vm::clean(memory.base, 2 * RAM_PAGES * 4096);
    Vm::new(program, 1)
}

/// Row 4, later calls: each chunk brings its pages in, 510 runs in one buffer.
fn set_memregion_populates() -> Outcome {
    leaves_nothing(|| {
        let memory = Scattered::new();
        let mut sum = 0u64;
        for n in 0..RAM_PAGES {
            pages::write(memory.page(n) + 0xFF8, 5 * n + 3);
            sum += 5 * n + 3;
        }
        let mut vm = registered(programs::reads_all(), &memory)?;
        let shared = hypercall::counter(Counter::PagesShared).unwrap_or(0);
        let buffer = pages::take(2, 4096);
        let set = || vm.call(Function::SetMemregion, &[8192, buffer]);
        fill(buffer, 510, RAM, (0..510).map(|n| (memory.page(n), 1)));
        answers(set(), Status::Success, format_args!("510 runs of a page"))?;
        fill(buffer, 1, RAM + 510 * 4096, [(memory.page(510), 1)].into_iter());
        answers(set(), Status::Success, format_args!("a chunk of one page"))?;
        fill(buffer, 1, RAM + 511 * 4096, [(memory.page(511), 1)].into_iter());
        answers(set(), Status::Success, format_args!("the last page"))?;
        answers(set(), Status::Success, format_args!("the last page again"))?;
        let now = hypercall::counter(Counter::PagesShared).unwrap_or(0);
        check_eq!(now - shared, RAM_PAGES, "pages shared with the VM");
        store(&mut vm, 0x10, sum, "sum of 512 pages")?;
        check_eq!(vm.faults, 0, "page faults of a populated VM");
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// Buffers whose numbers don't fit: -8, and nothing of them is mapped.
fn set_memregion_refuses_bad_buffers() -> Outcome {
    leaves_nothing(|| {
        let memory = Scattered::new();
        let vm = registered(programs::reads_all(), &memory)?;
        let shared = hypercall::counter(Counter::PagesShared);
        let buffer = pages::take(2, 4096);
        let set = || vm.call(Function::SetMemregion, &[8192, buffer]);
        let run = (memory.page(0), 1);
        // What is wrong, pages in all, address, runs.
        type Bad<'a> = (&'a str, u64, u64, &'a [(u64, u32)]);
        let bad: [Bad<'_>; 9] = [
            ("more pages than runs have", 2, RAM, &[run]),
            ("fewer pages than runs have", 1, RAM, &[run, (memory.page(1), 1)]),
            ("no run", 1, RAM, &[]),
            ("an empty run", 1, RAM, &[run, (memory.page(1), 0)]),
            ("an unaligned run", 1, RAM, &[(memory.page(0) + 8, 1)]),
            ("a run that wraps", 2, RAM, &[(!0xFFF, 2)]),
            ("before the slot", 1, RAM - 4096, &[run]),
            ("behind the slot", 1, RAM + RAM_PAGES * 4096, &[run]),
            ("across its end", 2, RAM + (RAM_PAGES - 1) * 4096, &[(memory.page(0), 2)]),
        ];
        for (what, total, gpa, runs) in bad {
            fill(buffer, total, gpa, runs.iter().copied());
            answers(set(), Status::InvalidArgs, format_args!("{what}"))?;
        }
        for count in [511, 512, 1 << 16, 1 << 28, u32::MAX] {
            fill(buffer, 510, RAM, (0..510).map(|n| (memory.page(n), 1)));
            pages::put(buffer + 4, count);
            invalid(set(), "runs", count.into())?;
        }
        fill(buffer, 1, RAM, [(hypervisor_memory()?.start, 1)].into_iter());
        answers(set(), Status::Fault, format_args!("the hypervisor's page"))?;
        check_eq!(hypercall::counter(Counter::PagesShared), shared, "pages shared by refused calls");
        vm.destroy().map(drop)
    })
}

/// Row 17.
fn map_guest() -> Outcome {
    leaves_nothing(|| {
        let hypervisor = hypervisor_memory()?;
        let vm = Vm::new(programs::tour(), 1)?;
        let pfn = vm.memory >> 12;
        let map = |slot, pfn, gfn, count| vm.call(Function::MapGuest, &[slot, pfn, gfn, count]);
        for bad in [hypervisor.start >> 12, (hypervisor.end() >> 12) - 1, 1 << 36, 1 << 40] {
            answers(map(0, bad, GFN, 1), Status::Fault, format_args!("PFN {bad:#x}"))?;
        }
        answers(map(0, (hypervisor.start >> 12) - 1, GFN, 2), Status::Fault, format_args!("half of it"))?;
        for bad in [1 << 52, u64::MAX] {
            invalid(map(0, bad, GFN, 1), "PFN", bad)?;
        }
        for bad in [0, GFN - 1, GFN + RAM_PAGES, 1 << 28, 1 << 52, u64::MAX] {
            invalid(map(0, pfn, bad, 1), "GFN", bad)?;
        }
        for bad in [0, 513, 1 << 32, 1 << 32 | 1, 1 << 52, u64::MAX] {
            invalid(map(0, pfn, GFN, bad), "pages", bad)?;
        }
        invalid(map(0, pfn, GFN + RAM_PAGES - 1, 2), "across the slot's end", 2)?;
        for bad in [1, MAX_MEMSLOTS as u64, 1 << 32, u64::MAX] {
            invalid(map(bad, pfn, GFN, 1), "slot", bad)?;
        }
        invalid(call(Function::MapGuest, &[0xFFFE, 0, pfn, GFN, 1]), "VM", 0xFFFE)?;
        answers(map(0, pfn, GFN, 1), Status::Success, format_args!("a good page"))?;
        answers(map(0, pfn + 1, GFN + 1, 511), Status::Success, format_args!("all others in one call"))?;
        vm.destroy().map(drop)
    })
}

/// Two vCPUs fault on one page, both bring it: the second is no error. Another page there is one.
fn map_guest_twice() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::tour(), 1)?;
        let pfn = vm.memory >> 12;
        let map = |pfn, gfn, count| vm.call(Function::MapGuest, &[0, pfn, gfn, count]);
        let shared = || hypercall::counter(Counter::PagesShared).unwrap_or(0);
        let before = shared();
        for _ in 0..3 {
            answers(map(pfn, GFN, 1), Status::Success, format_args!("the page"))?;
        }
        check_eq!(shared() - before, 1, "pages shared by three calls for one");
        invalid(map(pfn + 1, GFN, 1), "in its place, PFN", pfn + 1)?;
        // Partly there already, as after a fault in the middle of a block.
        answers(map(pfn + 4, GFN + 4, 1), Status::Success, format_args!("a page in the middle"))?;
        answers(map(pfn, GFN, 8), Status::Success, format_args!("the pages around it"))?;
        answers(map(pfn, GFN, 512), Status::Success, format_args!("the block"))?;
        answers(map(pfn, GFN, 512), Status::Success, format_args!("the block again"))?;
        check_eq!(shared() - before, RAM_PAGES, "pages shared in all");
        invalid(map(pfn + 9, GFN + 8, 1), "in its place, PFN", pfn + 9)?;
        vm.destroy().map(drop)
    })
}

/// Row 18: PFNs in the mailbox.
fn map_guest_block() -> Outcome {
    leaves_nothing(|| {
        let vm = Vm::new(programs::tour(), 1)?;
        let pfn = vm.memory >> 12;
        let block = |slot, gfn, count| vm.call(Function::MapGuestBlock, &[slot, gfn, count]);
        for n in 0..512 {
            pages::write(vm.mailbox + 8 * n, pfn + n);
        }
        for bad in [513, 4096, 1 << 32, 1 << 32 | 1, u64::MAX] {
            invalid(block(0, GFN, bad), "pages", bad)?;
        }
        for bad in [0, GFN - 1, GFN + RAM_PAGES, 1 << 52, u64::MAX] {
            invalid(block(0, bad, 1), "GFN", bad)?;
        }
        for bad in [1, MAX_MEMSLOTS as u64, 1 << 32] {
            invalid(block(bad, GFN, 1), "slot", bad)?;
        }
        invalid(call(Function::MapGuestBlock, &[0xFFFE, 0, GFN, 1]), "VM", 0xFFFE)?;
        // A VM that has no mailbox, and one with a page in it that is not the host's.
        let bare = Bare::new()?;
        answers(bare.set_region(pages::take(2, 4096), 0, 16, RAM), Status::Success, format_args!("slot"))?;
        invalid(bare.call(Function::MapGuestBlock, &[0, GFN, 1]), "no mailbox, pages", 1)?;
        pages::write(vm.mailbox, hypervisor_memory()?.start >> 12);
        answers(block(0, GFN, 1), Status::Fault, format_args!("the hypervisor's page"))?;
        pages::write(vm.mailbox, u64::MAX);
        invalid(block(0, GFN, 1), "PFN", u64::MAX)?;
        pages::write(vm.mailbox, pfn);
        answers(block(0, GFN, 8), Status::Success, format_args!("8 pages"))?;
        answers(block(0, GFN, 512), Status::Success, format_args!("the block around them"))?;
        answers(block(0, GFN, 512), Status::Success, format_args!("the block again"))?;
        pages::write(vm.mailbox, pfn + 1);
        invalid(block(0, GFN, 1), "in its place, PFN", pfn + 1)?;
        vm.destroy().map(drop)
    })
}

/// Generation C gives no count: 0 means the whole block.
fn map_guest_block_by_older_drivers() -> Outcome {
    leaves_nothing(|| {
        let memory = Scattered::new();
        let mut sum = 0u64;
        for n in 0..RAM_PAGES {
            pages::write(memory.page(n) + 0xFF8, 11 * n + 1);
            sum += 11 * n + 1;
        }
        let mut vm = registered(programs::reads_all(), &memory)?;
        for n in 0..RAM_PAGES {
            pages::write(vm.mailbox + 8 * n, memory.page(n) >> 12);
        }
        let reply = vm.call(Function::MapGuestBlock, &[0, GFN]);
        answers(reply, Status::Success, format_args!("a block without a count"))?;
        store(&mut vm, 0x10, sum, "sum of 512 pages")?;
        check_eq!(vm.faults, 0, "page faults");
        power_off(&mut vm)?;
        vm.destroy().map(drop)
    })
}

/// What the VMM wrote before is there after every way of mapping, for guest and host alike.
fn map_keeps_content() -> Outcome {
    leaves_nothing(|| {
        let memory = Scattered::new();
        let vm = registered(programs::tour(), &memory)?;
        for n in 0..8 {
            for word in 0..512 {
                pages::write(memory.page(n) + 8 * word, n << 32 | word << 3 | 5);
            }
        }
        answers(
            vm.call(Function::MapGuest, &[0, memory.page(0) >> 12, GFN, 1]),
            Status::Success,
            format_args!("MAP_GUEST"),
        )?;
        pages::write(vm.mailbox, memory.page(1) >> 12);
        pages::write(vm.mailbox + 8, memory.page(2) >> 12);
        let block = vm.call(Function::MapGuestBlock, &[0, GFN + 1, 2]);
        answers(block, Status::Success, format_args!("MAP_GUEST_BLOCK"))?;
        let buffer = pages::take(2, 4096);
        fill(buffer, 2, RAM + 3 * 4096, [(memory.page(3), 1), (memory.page(4), 1)].into_iter());
        let populate = vm.call(Function::SetMemregion, &[8192, buffer]);
        answers(populate, Status::Success, format_args!("SET_MEMREGION"))?;
        vm.destroy()?;
        // Neither mapping nor the end of a plain VM changes them.
        for n in 0..8 {
            for word in 0..512 {
                let have = pages::read(memory.page(n) + 8 * word);
                check_eq!(have, n << 32 | word << 3 | 5, "word {word} of page {n}");
            }
        }
        Ok(())
    })
}
