// SPDX-License-Identifier: Apache-2.0 OR MIT
//! One of the two ends, or both; ids come again; both at once on two CPUs.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use gzvm_abi::guest;
use gzvm_abi::run::{Mmio, exit};
use gzvm_guest_kit::case::Outcome;
use gzvm_guest_kit::{check, check_eq, fail, println, skip, smp, timer};

use super::guest::{Guest, leaving_nothing, lender_and_borrower};
use super::program::Operation;
use super::{INVALID, OK, PAGE, READ, READ_WRITE, SECRET, WINDOW};
use crate::guest_runs::LAST_EXIT;
use crate::life::{on_second_cpu, stop_second_cpu};
use crate::pages;
use crate::programs::DEVICE;
use crate::protected::out_of_reach;
use crate::vm;

pub fn borrower_dies() -> Outcome {
    for relinquished in [false, true] {
        leaving_nothing(|| {
            let (mut a, mut b, handle) = lender_and_borrower(READ_WRITE)?;
            b.store(WINDOW + 8, 8)?;
            if relinquished {
                check_eq!(b.relinquish(handle)?, OK, "VM_MEM_RELINQUISH");
            }
            b.destroy()?;
            check!(out_of_reach(a.at(PAGE))?, "the host has a page of the borrower's that was not its own");
            check_eq!(a.load(PAGE)?, SECRET, "what the owner has");
            check_eq!(a.load(PAGE + 8)?, 8, "what the borrower wrote");
            check_eq!(
                a.status(guest::MEM_SHARE, [PAGE, 0, 0, 0])?,
                INVALID,
                "MEM_SHARE before VM_MEM_RECLAIM"
            );
            check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
            let mut c = Guest::new()?;
            let handle = a.share(&c, 1, READ)?;
            check_eq!(c.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE by another");
            check_eq!(c.load(WINDOW)?, SECRET, "what it sees");
            a.destroy()?;
            c.destroy()
        })?;
    }
    Ok(())
}

pub fn owner_dies() -> Outcome {
    for relinquished in [false, true] {
        leaving_nothing(|| {
            let (a, mut b, handle) = lender_and_borrower(READ_WRITE)?;
            b.store(WINDOW + 8, SECRET)?;
            if relinquished {
                check_eq!(b.relinquish(handle)?, OK, "VM_MEM_RELINQUISH");
            }
            let page = a.at(PAGE);
            a.destroy()?;
            check!(!out_of_reach(page)?, "the page has not come back");
            pages::write(page, 0x77);
            for word in (page + 8..page + 0x1000).step_by(8) {
                check_eq!(pages::read(word), 0, "what the host has back");
            }
            b.loses(WINDOW)?;
            check_eq!(pages::read(page), 0x77, "what the borrower wrote afterwards");
            check_eq!(b.retrieve(handle, WINDOW, 1)?, INVALID, "VM_MEM_RETRIEVE of what is gone");
            check_eq!(b.relinquish(handle)?, INVALID, "VM_MEM_RELINQUISH of what is gone");
            b.destroy()
        })?;
    }
    Ok(())
}

static OTHER: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Each lends to the other; destroyed one after the other, and both at once.
pub fn both_die() -> Outcome {
    for round in 0..12 {
        if round >= 2 && smp::count() < 2 {
            break;
        }
        leaving_nothing(|| {
            let (mut a, mut b, _) = lender_and_borrower(READ_WRITE)?;
            b.store(PAGE, SECRET)?;
            let back = b.share(&a, 1, READ)?;
            check_eq!(a.retrieve(back, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE the other way");
            check_eq!(a.load(WINDOW)?, SECRET, "what the other shows");
            for extra in 1..8 {
                let at = PAGE + 0x10_0000 + 0x1_0000 * extra;
                let ids = [b.id(), a.id()];
                for (from, to) in [&mut a, &mut b].into_iter().zip(ids) {
                    let shared = from.status(guest::VM_MEM_SHARE, [at, 16, to, 3])?;
                    check_eq!(shared, OK, "VM_MEM_SHARE of 16 pages");
                }
            }
            let (first, second) = if round % 2 == 0 { (a, b) } else { (b, a) };
            let page = first.at(PAGE);
            if round < 2 {
                first.destroy()?;
                return second.destroy();
            }
            OTHER.store(second.id(), SeqCst);
            CALLS.store(0, SeqCst);
            let started = smp::start(1, || {
                let calls = vm::destroy(OTHER.load(SeqCst) as u16);
                CALLS.store(calls.map_or(u64::MAX, u64::from), SeqCst);
            });
            if let Err(code) = started {
                fail!("CPU 1 does not start: {code}");
            }
            let done = first.destroy();
            check!(smp::join(1).is_ok(), "CPU 1 does not end");
            done?;
            check!(!matches!(CALLS.load(SeqCst), 0 | u64::MAX), "DESTROY_VM on CPU 1 fails");
            // It is gone: not a second time by its owner's drop.
            core::mem::forget(second);
            check_eq!(pages::read(page), 0, "what the host has back");
            Ok(())
        })?;
    }
    Ok(())
}

/// VM ids are used again; what was lent to the one before is not for the next.
pub fn the_next_vm_of_this_id() -> Outcome {
    leaving_nothing(|| {
        let (mut a, b) = (Guest::new()?, Guest::new()?);
        a.store(PAGE, SECRET)?;
        let handle = a.share(&b, 1, READ_WRITE)?;
        let id = b.0.id;
        b.destroy()?;
        let mut tries = 0;
        let mut c = loop {
            tries += 1;
            check!(tries < 600, "VM id {id} does not come again");
            let passing = vm::create_bare()?;
            vm::destroy(passing)?;
            // The one before it, or itself where that is in use.
            if passing != id && passing % 255 + 1 != id {
                continue;
            }
            let mark = pages::mark();
            let next = Guest::new()?;
            if next.0.id == id {
                break next;
            }
            next.destroy()?;
            pages::back_to(mark);
        };
        check_eq!(c.retrieve(handle, WINDOW, 1)?, INVALID, "VM_MEM_RETRIEVE of what is another's");
        check_eq!(a.reclaim(handle)?, OK, "VM_MEM_RECLAIM");
        let handle = a.share(&c, 1, READ_WRITE)?;
        check_eq!(c.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE of what is its own");
        // The owner's id comes again: its handles don't.
        a.destroy()?;
        c.loses(WINDOW)?;
        c.destroy()
    })
}

/// One shares and takes back as fast as it can, the other retrieves, uses and gives back.
pub fn races() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    leaving_nothing(|| {
        let (mut a, mut b) = (Guest::new()?, Guest::new()?);
        // A page through which handles go: the next one.
        let channel = PAGE + 0x1000;
        let [status, handle, ..] = a.call(guest::VM_MEM_SHARE, [channel, 1, b.id(), 3])?;
        check_eq!(status, OK, "VM_MEM_SHARE of the channel");
        check_eq!(b.retrieve(handle, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE of the channel");
        a.store(PAGE, 0)?;
        b.tell(Operation::Borrows, [0, WINDOW, 0, WINDOW + 0x1000, 0])?;
        on_second_cpu(&b.0, 0)?;
        let lent = (|| {
            let start = timer::now();
            let (mut rounds, mut got) = (0, 0);
            while rounds < 500 || got < 100 {
                let failures = a.ask(Operation::Lends, [0, b.id(), 50, channel, 0])?[0];
                check_eq!(failures, 0, "failures of the owner");
                rounds += 50;
                got = a.load(channel + 16)?;
                let time = (timer::now() - start) / timer::frequency();
                check!(time < 60, "{got} of {rounds} loans were retrieved in {time} s");
            }
            a.store(channel, u64::MAX)?;
            Ok((rounds, got))
        })();
        let ended = lent.is_ok() && timer::wait_ms(20_000, || LAST_EXIT.load(SeqCst) == exit::MMIO);
        stop_second_cpu()?;
        let (rounds, got) = lent?;
        check!(ended, "the borrower does not end");
        println!("note: {got} of {rounds} loans were retrieved");
        b.destroy()?;
        a.destroy()
    })
}

/// The borrower loads all the while as the owner takes the page back, as the owner is destroyed, and as the borrower is.
pub fn taken_away_while_the_other_looks() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for round in 0..9 {
        leaving_nothing(|| {
            let (mut a, mut b, handle) = lender_and_borrower(READ)?;
            let page = a.at(PAGE);
            b.tell(Operation::Watches, [0, WINDOW, 0, 0, 0])?;
            on_second_cpu(&b.0, 0)?;
            timer::wait_ms(2 + round, || false);
            let noticed = || timer::wait_ms(10_000, || LAST_EXIT.load(SeqCst) == exit::MMIO);
            if round % 3 == 2 {
                let killed = b.destroy();
                stop_second_cpu()?;
                killed?;
                check!(out_of_reach(page)?, "the host has the page");
                check_eq!(a.load(PAGE)?, SECRET, "what the owner has");
                return a.destroy();
            }
            let (done, noticed) = if round % 3 == 1 {
                (a.destroy(), noticed())
            } else {
                let status = a.reclaim(handle);
                let noticed = noticed();
                check_eq!(status?, OK, "VM_MEM_RECLAIM");
                check_eq!(a.load(PAGE)?, SECRET, "what the owner has");
                (a.destroy(), noticed)
            };
            stop_second_cpu()?;
            done?;
            check!(noticed, "the borrower still looks at a page that went");
            check_eq!(pages::read(page), 0, "what the host has back");
            // Of its answers the first was told on CPU 1.
            check_eq!(Mmio::read(&b.0.report(0)).phys_addr, DEVICE + 0x10, "what it told");
            b.destroy()
        })?;
    }
    Ok(())
}
