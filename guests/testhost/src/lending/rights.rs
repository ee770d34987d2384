// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who may do what with which pages, and where.

use gzvm_abi::counter::Counter;
use gzvm_abi::guest;
use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, RegionHeader, Status};
use gzvm_abi::run::{Mmio, exit};
use gzvm_guest_kit::case::Outcome;
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{check, check_eq};

use super::guest::{Guest, leaving_nothing, lender_and_borrower};
use super::program::{Operation, obeys};
use super::{INVALID, NO_MEMORY, NOT_SUPPORTED, OK, PAGE, READ, READ_WRITE, SECRET, WINDOW};
use crate::pages;
use crate::programs::{GICD, RAM};
use crate::protected::{counter, out_of_reach};
use crate::vm::{RAM_PAGES, Vm};

pub fn two_vms_exchange_what_the_host_cannot_see() -> Outcome {
    leaving_nothing(|| {
        let private = counter(Counter::PagesPrivate)?;
        let (mut a, mut b) = (Guest::new()?, Guest::new()?);
        check_eq!(a.status(guest::VM_ID, [0; 4])?, a.id(), "VM_ID");
        a.store(PAGE, SECRET)?;
        a.store(PAGE + 0x1008, SECRET + 1)?;
        let (first, second) = (a.at(PAGE), a.at(PAGE + 0x1000));
        let hidden = || {
            for page in [first, second] {
                check!(out_of_reach(page)?, "the host reaches {page:#x}");
            }
            Ok(())
        };
        hidden()?;
        let handle = a.share(&b, 2, READ_WRITE)?;
        hidden()?;
        let retrieved = b.call(guest::VM_MEM_RETRIEVE, [handle, WINDOW, 2, 0])?;
        check_eq!(retrieved, [OK, a.id(), READ_WRITE, 0], "VM_MEM_RETRIEVE (status, owner, rights)");
        check_eq!(counter(Counter::PagesPrivate)?, private + 4, "pages of VMs: two programs and two pages");
        hidden()?;
        check_eq!(b.load(WINDOW)?, SECRET, "what the borrower sees");
        check_eq!(b.load(WINDOW + 0x1008)?, SECRET + 1, "what it sees in the second page");
        for round in 0..8 {
            b.store(WINDOW + 0xFF8, round)?;
            check_eq!(a.load(PAGE + 0xFF8)?, round, "from borrower to owner");
            a.store(PAGE + 0x1000, !round)?;
            check_eq!(b.load(WINDOW + 0x1000)?, !round, "from owner to borrower");
            hidden()?;
        }
        check_eq!(b.relinquish(handle)?, OK, "VM_MEM_RELINQUISH");
        b.loses(WINDOW)?;
        b.loses(WINDOW + 0x1000)?;
        hidden()?;
        check_eq!(b.retrieve(handle, WINDOW + 0x10_0000, 2)?, OK, "VM_MEM_RETRIEVE again, elsewhere");
        check_eq!(b.load(WINDOW + 0x10_0FF8)?, 7, "what it sees there");
        check_eq!(b.relinquish(handle)?, OK, "VM_MEM_RELINQUISH again");
        check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
        hidden()?;
        check_eq!(a.load(PAGE)?, SECRET, "what the owner has");
        b.destroy()?;
        hidden()?;
        a.destroy()?;
        for word in (first..first + 0x2000).step_by(8) {
            check_eq!(pages::read(word), 0, "what the host has back");
        }
        Ok(())
    })
}

pub fn read_only_is_read_only() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b, handle) = lender_and_borrower(READ)?;
        check_eq!(b.load(WINDOW)?, SECRET, "what the borrower sees");
        b.aborts(Operation::Store, WINDOW + 8)?;
        check_eq!(a.load(PAGE + 8)?, 0, "what the borrower must not write");
        // It is no code, whatever the rights.
        a.store(PAGE, 0xD65F_03C0)?;
        b.aborts(Operation::Run, WINDOW)?;
        check_eq!(b.relinquish(handle)?, OK, "VM_MEM_RELINQUISH");
        let twice = b.call(guest::VM_MEM_RETRIEVE, [handle, WINDOW, 1, 0])?;
        check_eq!(twice, [OK, a.id(), READ, 0], "VM_MEM_RETRIEVE (status, owner, rights)");
        b.aborts(Operation::Store, WINDOW + 8)?;
        check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
        let handle = a.share(&b, 1, READ_WRITE)?;
        check_eq!(b.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE of the same to write");
        b.aborts(Operation::Run, WINDOW)?;
        b.store(WINDOW + 8, 8)?;
        check_eq!(a.load(PAGE + 8)?, 8, "what the borrower writes");
        a.destroy()?;
        b.destroy()
    })
}

pub fn nobody_but_the_named_one() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b, mut c) = (Guest::new()?, Guest::new()?, Guest::new()?);
        let mut plain = Guest(Vm::new(obeys(), 1)?);
        for function in guest::VM_ID..=guest::VM_MEM_RECLAIM {
            check_eq!(
                plain.status(function, [PAGE, 1, a.id(), 3])?,
                NOT_SUPPORTED,
                "{function:#x} of a plain VM"
            );
        }
        let nobody = (1..256u64)
            .find(|id| call(Function::GetStatistics, &[*id]).status() == Some(Status::InvalidArgs));
        for other in [plain.id(), a.id(), 0, 0xFFF, 0xFFFF, 0x1_0000 | b.id(), nobody.unwrap_or(0)] {
            check_eq!(
                a.status(guest::VM_MEM_SHARE, [PAGE, 1, other, 3])?,
                INVALID,
                "VM_MEM_SHARE with VM {other:#x}"
            );
        }
        for rights in [0, 2, 4, 7, u64::MAX] {
            check_eq!(
                a.status(guest::VM_MEM_SHARE, [PAGE, 1, b.id(), rights])?,
                INVALID,
                "rights {rights:#x}"
            );
        }
        let handle = a.share(&b, 1, READ_WRITE)?;
        for (n, guest) in [&mut c, &mut a].into_iter().enumerate() {
            check_eq!(guest.retrieve(handle, WINDOW, 1)?, INVALID, "VM_MEM_RETRIEVE by another ({n})");
            check_eq!(guest.relinquish(handle)?, INVALID, "VM_MEM_RELINQUISH by another ({n})");
        }
        for guest in [&mut b, &mut c] {
            check_eq!(guest.reclaim(handle)?, INVALID, "VM_MEM_RECLAIM by another");
        }
        check_eq!(b.relinquish(handle)?, INVALID, "VM_MEM_RELINQUISH of what was not retrieved");
        for (wrong, pages) in [(handle, 2), (handle ^ 1, 1), (handle + 0x1_0000, 1), (0, 1), (u64::MAX, 1)] {
            check_eq!(
                b.retrieve(wrong, WINDOW, pages)?,
                INVALID,
                "VM_MEM_RETRIEVE {wrong:#x}, {pages} pages"
            );
        }
        check_eq!(b.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE");
        check_eq!(b.retrieve(handle, WINDOW + 0x1000, 1)?, INVALID, "VM_MEM_RETRIEVE a second time");
        check_eq!(c.retrieve(handle, WINDOW, 1)?, INVALID, "VM_MEM_RETRIEVE of what another has");
        check_eq!(c.relinquish(handle)?, INVALID, "VM_MEM_RELINQUISH of what another has");
        for guest in [&mut b, &mut c] {
            check_eq!(guest.reclaim(handle)?, INVALID, "VM_MEM_RECLAIM by another");
        }
        // What it has borrowed is not its own.
        check_eq!(
            b.status(guest::VM_MEM_SHARE, [WINDOW, 1, c.id(), 3])?,
            INVALID,
            "VM_MEM_SHARE of what is borrowed"
        );
        check_eq!(b.load(WINDOW)?, 0, "what the borrower has");
        check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
        check_eq!(a.reclaim(handle)?, INVALID, "VM_MEM_RECLAIM a second time");
        check_eq!(b.retrieve(handle, WINDOW, 1)?, INVALID, "VM_MEM_RETRIEVE of what is gone");
        check_eq!(b.relinquish(handle)?, INVALID, "VM_MEM_RELINQUISH of what is gone");
        for guest in [a, b, c, plain] {
            guest.destroy()?;
        }
        Ok(())
    })
}

pub fn where_it_may_be() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = (Guest::new()?, Guest::new()?);
        const NAMED: u64 = WINDOW + 0x2000;
        check_eq!(b.status(guest::MMIO_GUARD_MAP, [NAMED, 0, 0, 0])?, OK, "MMIO_GUARD_MAP");
        let [status, handle, ..] = a.call(guest::VM_MEM_SHARE, [PAGE, 2, b.id(), 3])?;
        check_eq!(status, OK, "VM_MEM_SHARE");
        for at in [
            RAM,
            RAM + 0x8000,
            RAM - 0x1000,
            RAM + (RAM_PAGES - 1) * 4096,
            GICD,
            GICD - 0x1000,
            GICD + 0xF000,
            GICD - 0x2_0000,
            NAMED,
            NAMED - 0x1000,
            (1 << 40) - 0x1000,
            1 << 40,
            1 << 63,
            WINDOW + 8,
        ] {
            check_eq!(b.retrieve(handle, at, 2)?, INVALID, "VM_MEM_RETRIEVE at {at:#x}");
        }
        // Nothing of the refused is left.
        let esr = b.ask(Operation::Load, [0, RAM + 0x8000, 0, 0, 0])?[3];
        check_eq!(esr, 0, "its own memory");
        for at in [RAM + RAM_PAGES * 4096, GICD + 0x1_0000, (1 << 40) - 0x2000, WINDOW] {
            check_eq!(b.retrieve(handle, at, 2)?, OK, "VM_MEM_RETRIEVE at {at:#x}");
            check_eq!(b.load(at)?, 0, "what is there");
            check_eq!(b.relinquish(handle)?, OK, "VM_MEM_RELINQUISH");
        }
        check_eq!(b.retrieve(handle, WINDOW, 2)?, OK, "VM_MEM_RETRIEVE");
        let [status, second, ..] = a.call(guest::VM_MEM_SHARE, [PAGE + 0x3000, 1, b.id(), 3])?;
        check_eq!(status, OK, "VM_MEM_SHARE");
        check_eq!(b.retrieve(second, WINDOW + 0x1000, 1)?, INVALID, "VM_MEM_RETRIEVE over another");
        // Not for devices.
        for function in [guest::MMIO_GUARD_MAP, guest::MMIO_GUARD_UNMAP] {
            check_eq!(
                b.status(function, [WINDOW, 0, 0, 0])?,
                INVALID,
                "{function:#x} over another VM's page"
            );
        }
        // The host can put a slot there, but nothing into it.
        let buffer = pages::take(2, 4096);
        pages::put(buffer, RegionHeader { slot: 1, constituent_cnt: 0, total_pages: 16, gpa: WINDOW });
        let slot = call(Function::SetMemregion, &[b.id(), REGION_BUFFER_SIZE, buffer]);
        check!(slot.ok(), "SET_MEMREGION over it");
        let pfn = pages::take(1, 4096) >> 12;
        let over = call(Function::MapGuest, &[b.id(), 1, pfn, WINDOW >> 12, 1]).status();
        check_eq!(over, Some(Status::InvalidArgs), "MAP_GUEST over another VM's page");
        for function in [guest::MEM_SHARE, guest::MEM_RELINQUISH] {
            check_eq!(b.status(function, [WINDOW, 0, 0, 0])?, INVALID, "{function:#x} of another VM's page");
        }
        b.store(WINDOW, 77)?;
        check_eq!(a.load(PAGE)?, 77, "through it");
        check!(out_of_reach(a.at(PAGE))?, "the host reaches it");
        b.destroy()?;
        a.destroy()
    })
}

pub fn taken_back_while_mapped() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b, handle) = lender_and_borrower(READ_WRITE)?;
        check_eq!(b.load(WINDOW)?, SECRET, "what the borrower sees");
        check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
        b.loses(WINDOW)?;
        check_eq!(a.load(PAGE)?, SECRET, "what the owner has");
        check_eq!(b.relinquish(handle)?, INVALID, "VM_MEM_RELINQUISH of what is gone");
        b.loses(WINDOW)?;
        // The place is free for another, and for a device that the guest names.
        let handle = a.share(&b, 1, READ_WRITE)?;
        check_eq!(b.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE at the same place");
        check_eq!(b.load(WINDOW)?, SECRET, "what the borrower sees");
        check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
        check_eq!(b.status(guest::MMIO_GUARD_MAP, [WINDOW, 0, 0, 0])?, OK, "MMIO_GUARD_MAP of the place");
        b.tell(Operation::Store, [0, WINDOW, 5, 0, 0])?;
        check_eq!(b.run()?, exit::MMIO, "exit of a store to the device");
        check_eq!(Mmio::read(&b.0.report(0)).phys_addr, WINDOW, "its address");
        check_eq!(b.answer()?[3], 0, "syndrome of the store to the device");
        b.destroy()?;
        a.destroy()
    })
}

/// A page is lent, or shown to the host, or given up: never two of them.
pub fn one_thing_at_a_time() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b, handle) = lender_and_borrower(READ_WRITE)?;
        let page = a.at(PAGE);
        let lent = |a: &mut Guest, b: &Guest| {
            for function in [guest::MEM_SHARE, guest::MEM_UNSHARE, guest::MEM_RELINQUISH] {
                check_eq!(
                    a.status(function, [PAGE, 0, 0, 0])?,
                    INVALID,
                    "{function:#x} of a page that is lent"
                );
            }
            check_eq!(a.status(guest::VM_MEM_SHARE, [PAGE, 1, b.id(), 3])?, INVALID, "VM_MEM_SHARE of it");
            check!(out_of_reach(page)?, "the host reaches a page that is lent");
            Ok(())
        };
        lent(&mut a, &b)?;
        check_eq!(b.relinquish(handle)?, OK, "VM_MEM_RELINQUISH");
        lent(&mut a, &b)?;
        check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
        check_eq!(a.status(guest::MEM_SHARE, [PAGE, 0, 0, 0])?, OK, "MEM_SHARE");
        check!(!out_of_reach(page)?, "the host does not reach what it is shown");
        // The first of two is fine, the second is shown to the host.
        let before = PAGE - 0x1000;
        check_eq!(
            a.status(guest::VM_MEM_SHARE, [before, 2, b.id(), 3])?,
            INVALID,
            "VM_MEM_SHARE of what is shown"
        );
        check_eq!(a.status(guest::MEM_SHARE, [before, 0, 0, 0])?, OK, "MEM_SHARE of the page before");
        check_eq!(a.status(guest::MEM_UNSHARE, [PAGE, 0, 0, 0])?, OK, "MEM_UNSHARE");
        let handle = a.share(&b, 1, READ)?;
        check_eq!(b.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE");
        // In a block of 2 MiB, whose other pages stay what they are.
        check_eq!(
            a.status(guest::VM_MEM_SHARE, [PAGE - 0x2000, 4, b.id(), 3])?,
            INVALID,
            "VM_MEM_SHARE around it"
        );
        check_eq!(
            a.status(guest::VM_MEM_SHARE, [RAM - 0x1000, 2, b.id(), 3])?,
            INVALID,
            "VM_MEM_SHARE of no memory"
        );
        a.destroy()?;
        b.destroy()
    })
}

/// MEM_SHARE_RUN: what lies in one block is shown at once, or nothing of it.
pub fn many_pages_are_shown_at_once() -> Outcome {
    leaving_nothing(|| {
        let last = RAM_PAGES - 1;
        for whole in [false, true] {
            let mut a = Guest::new()?;
            if whole {
                let block = [a.id(), 0, a.at(RAM) >> 12, RAM >> 12, RAM_PAGES];
                check!(call(Function::MapGuest, &block).ok(), "MAP_GUEST of 2 MiB");
            }
            let run = |a: &mut Guest, at, pages| {
                let [status, done, ..] = a.call(guest::MEM_SHARE_RUN, [at, pages, 0, 0])?;
                Ok((status, done))
            };
            let (second, end) = (RAM + 0x10_0000, RAM + RAM_PAGES * 4096);
            for (at, pages) in [(second, 0), (second + 8, 4), (RAM - 0x1000, 4), (end, 4), (end, u64::MAX)] {
                check_eq!(run(&mut a, at, pages)?.0, INVALID, "{pages} pages at {at:#x}");
            }
            let half = RAM_PAGES / 2;
            let done = if whole { half } else { 1 };
            let shared = run(&mut a, second, u64::MAX)?;
            check_eq!(shared, (OK, done), "status and pages from the middle on");
            check_eq!(out_of_reach(a.at(second - 0x1000))?, whole, "the page before");
            for page in [0, done - 1] {
                check!(!out_of_reach(a.at(second) + page * 4096)?, "the host does not see page {page}");
            }
            // All or nothing, also with what is shown behind it.
            let (before, pages) = if whole { (half - 8, 9) } else { (half, 1) };
            check_eq!(run(&mut a, RAM + before * 4096, pages)?.0, INVALID, "around a page that is shown");
            if whole {
                check!(out_of_reach(a.at(RAM + before * 4096))?, "the host sees a page before it");
                check_eq!(a.status(guest::MEM_UNSHARE, [RAM + last * 4096, 0, 0, 0])?, OK, "MEM_UNSHARE");
                check!(out_of_reach(a.at(RAM + last * 4096))?, "the host sees what it is not shown any more");
                check!(!out_of_reach(a.at(RAM + (last - 1) * 4096))?, "the host does not see its neighbour");
            }
            a.destroy()?;
        }
        Ok(())
    })
}

pub fn books_are_full() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = (Guest::new()?, Guest::new()?);
        let whole = call(Function::MapGuest, &[a.id(), 0, a.0.memory >> 12, RAM >> 12, RAM_PAGES]);
        check!(whole.ok(), "MAP_GUEST of 2 MiB: x0 = {:#x}", whole.x0);
        let spent = |guest: &Guest| call(Function::GetStatistics, &[guest.id()]).values[0];
        let before = [spent(&a), spent(&b)];
        let most = guest::VM_MEM_MOST_PAGES as u64;
        for pages in [0, most + 1, u64::MAX] {
            check_eq!(a.status(guest::VM_MEM_SHARE, [PAGE, pages, b.id(), 3])?, INVALID, "{pages} pages");
        }
        let mut handles = [0; guest::VM_MEM_MOST_LOANS];
        // With 32 of 16 pages all 2 MiB would be lent: the first is of one page, past the program.
        for (n, handle) in (0u64..).zip(&mut handles) {
            let (at, pages) = if n == 0 { (PAGE, 1) } else { (RAM + n * most * 4096, most) };
            let [status, made, ..] = a.call(guest::VM_MEM_SHARE, [at, pages, b.id(), 3])?;
            check_eq!(status, OK, "VM_MEM_SHARE {n}");
            *handle = made;
            let place = WINDOW + n * most * 4096;
            check_eq!(b.retrieve(made, place, pages)?, OK, "VM_MEM_RETRIEVE {n}");
            check_eq!(b.load(place + (pages - 1) * 4096)?, 0, "what is there");
        }
        check_eq!(a.status(guest::VM_MEM_SHARE, [PAGE + 0x1000, 1, b.id(), 3])?, NO_MEMORY, "one more");
        check_eq!(spent(&a), before[0] + 2 * 4096, "spent on the owner: its book");
        // Its book; tables of two levels for the window, and for its program, whose page made one of the host's necessary.
        check_eq!(spent(&b), before[1] + 7 * 4096, "spent on the borrower");
        let mut c = Guest::new()?;
        let [status, full, ..] = c.call(guest::VM_MEM_SHARE, [PAGE, 1, b.id(), 1])?;
        check_eq!(status, OK, "VM_MEM_SHARE by another");
        check_eq!(b.retrieve(full, WINDOW + 0x40_0000, 1)?, NO_MEMORY, "VM_MEM_RETRIEVE of one more");
        check_eq!(b.relinquish(handles[7])?, OK, "VM_MEM_RELINQUISH");
        check_eq!(b.retrieve(full, WINDOW + 0x40_0000, 1)?, OK, "VM_MEM_RETRIEVE with room for it");
        check_eq!(a.reclaim(handles[9])?, OK, "VM_MEM_RECLAIM");
        check_eq!(a.status(guest::VM_MEM_SHARE, [PAGE + 0x1000, 1, b.id(), 3])?, OK, "with room for it");
        // Loans are ended within the budget of a step, too: 128 pages of 481.
        let calls = a.0.destroy()?;
        let idle = Guest::new()?;
        let whole = call(Function::MapGuest, &[idle.id(), 0, idle.0.memory >> 12, RAM >> 12, RAM_PAGES]);
        check!(whole.ok(), "MAP_GUEST of 2 MiB: x0 = {:#x}", whole.x0);
        let fewer = idle.0.destroy()?;
        check!(calls >= fewer + 3, "{calls} calls to destroy a VM that lends, {fewer} for one that does not");
        for n in 0..guest::VM_MEM_MOST_LOANS as u64 {
            b.loses(WINDOW + n * most * 4096)?;
        }
        b.destroy()?;
        c.destroy()
    })
}
