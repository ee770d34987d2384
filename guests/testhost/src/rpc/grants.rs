// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory that goes with a call: the peer has it until the caller is told how the call ended, and not longer.

use core::sync::atomic::Ordering::SeqCst;

use gzvm_abi::guest::VM_MEM_SHARE;
use gzvm_abi::hypercall::Function;
use gzvm_abi::rpc::{self, received, status};
use gzvm_abi::run::exit;
use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{check, check_eq, println, skip, smp, timer};

use super::ends::{End, connect, guest, pair};
use crate::guest_runs::LAST_EXIT;
use crate::lending::guest::{Guest, leaving_nothing};
use crate::lending::program::Operation;
use crate::lending::{READ, READ_WRITE, WINDOW};
use crate::life::{on_second_cpu, stop_second_cpu};
use crate::programs::RAM;
use crate::vm::must;

/// Where guests have what they lend.
const LENT: u64 = RAM + 0x4_0000;
const OK: u64 = 0;
const REFUSED: u64 = status::INVALID as u64;

/// So many pages from [`LENT`] on.
fn share(a: &mut Guest, b: &Guest, pages: u64, rights: u64) -> Result<u64, Verdict> {
    let [status, loan, ..] = a.call(VM_MEM_SHARE, [LENT, pages, b.id(), rights])?;
    check_eq!(status, OK, "VM_MEM_SHARE");
    Ok(loan)
}

/// A call of `a` with so many pages; loan and token.
fn grant(a: &mut End, b: &End, pages: u64, rights: u64, time: u64) -> Result<(u64, u64), Verdict> {
    let loan = share(&mut a.guest, &b.guest, pages, rights)?;
    let (status, token) = a.call_with(0x600D, time, loan)?;
    check_eq!(status, 0, "CALL_WITH");
    Ok((loan, token))
}

/// `b` receives the call, and has the memory at [`WINDOW`].
fn take(b: &mut End, loan: u64, pages: u64, rights: u64) -> Outcome {
    let got = b.receive()?;
    check_eq!((got.status, got.kind, got.bytes), (0, received::CALL, 8), "what is received");
    check_eq!(got.grant, Some([loan, pages, rights]), "what goes with it");
    check_eq!(b.guest.retrieve(loan, WINDOW, pages)?, OK, "VM_MEM_RETRIEVE");
    Ok(())
}

/// The memory is the caller's alone, which can do with it as it likes; the loan is gone.
fn is_back(a: &mut End, b: &mut End, loan: u64) -> Outcome {
    is_gone(a, b, loan)?;
    b.guest.loses(WINDOW)
}

/// As far as that can be said where the peer never had it.
fn is_gone(a: &mut End, b: &mut End, loan: u64) -> Outcome {
    check_eq!(b.guest.retrieve(loan, WINDOW + 0x10_0000, 1)?, REFUSED, "VM_MEM_RETRIEVE afterwards");
    check_eq!(b.guest.relinquish(loan)?, REFUSED, "VM_MEM_RELINQUISH afterwards");
    check_eq!(a.guest.reclaim(loan)?, REFUSED, "VM_MEM_RECLAIM of what is back");
    let again = a.call_with(1, 0, loan)?.0;
    check_eq!(again == 0 || again == status::AGAIN, false, "CALL_WITH of what is back");
    Ok(())
}

pub fn grant_is_back_with_the_reply() -> Outcome {
    for (pages, rights) in [(1, READ_WRITE), (16, READ_WRITE), (3, READ)] {
        leaving_nothing(|| {
            let (mut a, mut b) = pair([true, true])?;
            let last = 0x1000 * (pages - 1) + 0xFF8;
            for round in 0..3 {
                a.guest.store(LENT + last, 0xA + round)?;
                let (loan, token) = grant(&mut a, &b, pages, rights, 0)?;
                take(&mut b, loan, pages, rights)?;
                check_eq!(b.guest.load(WINDOW + last)?, 0xA + round, "what the caller wrote");
                if rights == READ_WRITE {
                    b.guest.store(WINDOW, 0xB + round)?;
                }
                check_eq!(b.reply(2, token)?, 0, "REPLY");
                check_eq!(b.reply(2, token)?, status::NO_CALL, "REPLY twice");
                let got = a.receive()?;
                check_eq!(
                    (got.kind, got.token, got.grant),
                    (received::REPLY, token, None),
                    "what the caller receives"
                );
                if rights == READ_WRITE {
                    check_eq!(a.guest.load(LENT)?, 0xB + round, "what the server wrote");
                }
                is_back(&mut a, &mut b, loan)?;
                a.guest.store(LENT, round)?;
            }
            // Or the server gives it back before, or never had it.
            let (loan, token) = grant(&mut a, &b, pages, rights, 0)?;
            take(&mut b, loan, pages, rights)?;
            check_eq!(b.guest.relinquish(loan)?, OK, "VM_MEM_RELINQUISH");
            check_eq!(b.reply(3, token)?, 0, "REPLY");
            check_eq!(a.expect(received::REPLY, 3)?, token, "the reply");
            is_back(&mut a, &mut b, loan)?;
            let (loan, token) = grant(&mut a, &b, pages, rights, 0)?;
            check_eq!(b.receive()?.grant, Some([loan, pages, rights]), "what goes with it");
            check_eq!(b.reply(4, token)?, 0, "REPLY");
            check_eq!(a.expect(received::REPLY, 4)?, token, "the reply");
            is_back(&mut a, &mut b, loan)?;
            a.expect_nothing(status::AGAIN)?;
            a.destroy()?;
            b.destroy()
        })?;
    }
    Ok(())
}

/// With the peer not having received it, with the memory in use, with a reply that nobody received.
pub fn grant_is_back_however_a_call_ends() -> Outcome {
    for progress in 0..3 {
        for end in ["cancelled", "lapsed", "closed", "severed", "closed by the peer"] {
            if (progress, end) == (2, "lapsed") {
                // That is a reply.
                continue;
            }
            leaving_nothing(|| {
                const TIME: u64 = 1_000_000;
                let (mut a, mut b) = pair([true, true])?;
                let time = if end == "lapsed" { TIME } else { 0 };
                let (loan, token) = grant(&mut a, &b, 2, READ_WRITE, time)?;
                // The deadline was before that, so it is past by then.
                let due = timer::now() + u64::from(timer::frequency()) * TIME / 1_000_000;
                if progress > 0 {
                    take(&mut b, loan, 2, READ_WRITE)?;
                    b.guest.store(WINDOW, 7)?;
                }
                if progress > 1 {
                    check_eq!(b.reply(2, token)?, 0, "REPLY");
                }
                match end {
                    "cancelled" => check_eq!(a.ask(rpc::CANCEL, [token, 0, 0])?.0, 0, "CANCEL"),
                    "lapsed" => {
                        timer::wait_ms(2 * TIME / 1000, || timer::now() > due);
                        let got = a.receive()?;
                        check_eq!((got.kind, got.token), (received::LAPSED, token), "that it lapsed");
                    }
                    _ => {
                        if end == "severed" {
                            must(call(Function::RpcClose, &[a.handle]), "RPC_CLOSE")?;
                        }
                        if end == "closed by the peer" {
                            check_eq!(b.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE by the peer");
                        }
                        if end != "closed" {
                            a.expect_nothing(status::GONE)?;
                        }
                        if progress > 0 {
                            // Until the caller leaves it is no worse than any loan.
                            check_eq!(b.guest.load(WINDOW)?, 7, "what the server wrote");
                        }
                        check_eq!(a.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE");
                        check_eq!(a.ask(rpc::CLOSE, [0; 3])?.0, status::INVALID, "CLOSE twice");
                    }
                }
                if progress > 0 {
                    check_eq!(a.guest.load(LENT)?, 7, "what the server wrote");
                }
                if progress > 0 { is_back(&mut a, &mut b, loan) } else { is_gone(&mut a, &mut b, loan) }?;
                a.guest.store(LENT, 1)?;
                a.destroy()?;
                b.destroy()
            })?;
        }
    }
    Ok(())
}

/// Either of the two, at any point: nothing is left, and who lives has what is its own.
pub fn grant_and_peer_that_dies() -> Outcome {
    for steps in 0..4 {
        for caller_dies in [false, true] {
            leaving_nothing(|| {
                let (mut a, mut b) = pair([true, true])?;
                let (loan, token) = grant(&mut a, &b, 2, READ_WRITE, 0)?;
                if steps > 0 {
                    take(&mut b, loan, 2, READ_WRITE)?;
                    b.guest.store(WINDOW, 7)?;
                }
                if steps > 1 {
                    check_eq!(b.reply(2, token)?, 0, "REPLY");
                }
                if steps > 2 {
                    check_eq!(a.expect(received::REPLY, 2)?, token, "the reply");
                }
                if caller_dies {
                    a.destroy()?;
                    if steps > 0 {
                        b.guest.loses(WINDOW)?;
                    }
                    b.expect_nothing(status::GONE)?;
                    check_eq!(b.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE");
                    check_eq!(b.guest.retrieve(loan, WINDOW, 2)?, REFUSED, "VM_MEM_RETRIEVE");
                    return b.destroy();
                }
                b.destroy()?;
                a.expect_nothing(status::GONE)?;
                check_eq!(a.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE");
                check_eq!(a.guest.reclaim(loan)?, REFUSED, "VM_MEM_RECLAIM");
                let kept = if steps > 0 { 7 } else { 0 };
                check_eq!(a.guest.load(LENT)?, kept, "what the server wrote");
                // It can be lent to the next.
                let next = guest(true)?;
                must(connect(&a.guest, 1, Some(&next), 2), "RPC_CONNECT to the next")?;
                let (mut a, mut next) = (End::open(a.guest, 1)?, End::open(next, 2)?);
                let (loan, _) = grant(&mut a, &next, 2, READ, 0)?;
                take(&mut next, loan, 2, READ)?;
                a.destroy()?;
                next.destroy()
            })?;
        }
    }
    Ok(())
}

/// Only a loan of one's own, to the peer, that nobody has yet.
pub fn grants_that_are_refused() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, true])?;
        let mut third = guest(true)?;
        let of_third = share(&mut third, &b.guest, 1, READ_WRITE)?;
        let of_b = share(&mut b.guest, &a.guest, 1, READ_WRITE)?;
        let to_third = a.guest.call(VM_MEM_SHARE, [LENT + 0x4000, 1, third.id(), READ])?[1];
        let mapped = share(&mut a.guest, &b.guest, 1, READ_WRITE)?;
        check_eq!(b.guest.retrieve(mapped, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE");
        for loan in [0, 1, of_third, of_b, to_third, mapped, mapped + (1 << 16), mapped ^ 1, u64::MAX] {
            check_eq!(a.call_with(1, 0, loan)?.0, status::INVALID, "CALL_WITH of {loan:#x}");
        }
        b.expect_nothing(status::AGAIN)?;
        check_eq!(b.guest.load(WINDOW)?, a.guest.load(LENT)?, "what was lent before is where it was");
        check_eq!(a.guest.reclaim(mapped)?, OK, "VM_MEM_RECLAIM");
        // Without room the loan stays as it is.
        for n in 0..rpc::SLOTS as u64 {
            a.call(n, 0)?;
        }
        let loan = share(&mut a.guest, &b.guest, 1, READ)?;
        check_eq!(a.call_with(1, 0, loan)?.0, status::AGAIN, "CALL_WITH without room");
        b.expect(received::CALL, 0)?;
        check_eq!(b.guest.retrieve(loan, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE");
        check_eq!(a.guest.reclaim(loan)?, OK, "VM_MEM_RECLAIM");
        a.destroy()?;
        b.destroy()?;
        third.destroy()
    })?;
    // Between a plain VM and another, or the host: nobody lends there.
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, false])?;
        let host = super::ends::HostEnd::connect(&a.guest, 7)?;
        let c = guest(true)?;
        let loan = share(&mut a.guest, &c, 1, READ)?;
        check_eq!(a.call_with(1, 0, loan)?.0, status::INVALID, "CALL_WITH to a plain VM");
        check_eq!(b.call_with(1, 0, loan)?.0, status::INVALID, "CALL_WITH by a plain VM");
        let with_host = a.guest.call(rpc::OPEN, [7, 0, 0, 0])?[1];
        let of_a = core::mem::replace(&mut a.handle, with_host);
        check_eq!(a.call_with(1, 0, loan)?.0, status::INVALID, "CALL_WITH to the host");
        check_eq!(host.receive()?.err(), Some(status::AGAIN), "what the host receives");
        a.handle = of_a;
        a.destroy()?;
        b.destroy()?;
        c.destroy()
    })
}

/// By its owner, who may do so with any loan, before the call is over.
pub fn grant_withdrawn() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, true])?;
        let (loan, token) = grant(&mut a, &b, 1, READ_WRITE, 0)?;
        check_eq!(a.guest.reclaim(loan)?, OK, "VM_MEM_RECLAIM");
        let got = b.receive()?;
        check_eq!((got.kind, got.token), (received::CALL, token), "the call");
        check_eq!(b.guest.retrieve(loan, WINDOW, 1)?, REFUSED, "VM_MEM_RETRIEVE of what is gone");
        check_eq!(b.reply(1, token)?, 0, "REPLY");
        a.expect(received::REPLY, 1)?;
        let (loan, token) = grant(&mut a, &b, 1, READ_WRITE, 0)?;
        take(&mut b, loan, 1, READ_WRITE)?;
        check_eq!(a.guest.reclaim(loan)?, OK, "VM_MEM_RECLAIM");
        b.guest.loses(WINDOW)?;
        // The page is lent anew meanwhile: the end of the call is not the end of that.
        let other = share(&mut a.guest, &b.guest, 1, READ)?;
        check_eq!(b.guest.retrieve(other, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE of the next loan");
        check_eq!(b.reply(2, token)?, 0, "REPLY");
        a.expect(received::REPLY, 2)?;
        check_eq!(b.guest.load(WINDOW)?, a.guest.load(LENT)?, "the next loan");
        check_eq!(a.guest.reclaim(other)?, OK, "VM_MEM_RECLAIM of the next loan");
        a.destroy()?;
        b.destroy()
    })
}

/// One page is in one loan at a time; and who sends a loan along twice has it back with the first answer.
pub fn grants_overlap() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, true])?;
        let (loan, first) = grant(&mut a, &b, 3, READ_WRITE, 0)?;
        for (at, pages) in [(LENT, 1), (LENT + 0x2000, 1), (LENT - 0x1000, 4), (LENT + 0x1000, 4)] {
            let [status, ..] = a.guest.call(VM_MEM_SHARE, [at, pages, b.guest.id(), READ])?;
            check_eq!(status, REFUSED, "VM_MEM_SHARE of {pages} pages at {at:#x}");
        }
        let (status, second) = a.call_with(2, 0, loan)?;
        check_eq!(status, 0, "CALL_WITH once more");
        take(&mut b, loan, 3, READ_WRITE)?;
        let got = b.receive()?;
        check_eq!((got.token, got.grant), (second, Some([loan, 3, READ_WRITE])), "the second call");
        check_eq!(b.guest.retrieve(loan, WINDOW + 0x10_0000, 3)?, REFUSED, "VM_MEM_RETRIEVE twice");
        check_eq!(b.reply(1, second)?, 0, "REPLY to the second");
        check_eq!(a.expect(received::REPLY, 1)?, second, "the reply to the second");
        is_back(&mut a, &mut b, loan)?;
        let again = share(&mut a.guest, &b.guest, 3, READ_WRITE)?;
        check_eq!(b.guest.retrieve(again, WINDOW, 3)?, OK, "VM_MEM_RETRIEVE of the next loan");
        check_eq!(b.reply(1, first)?, 0, "REPLY to the first");
        check_eq!(a.expect(received::REPLY, 1)?, first, "the reply to the first");
        check_eq!(b.guest.load(WINDOW)?, a.guest.load(LENT)?, "the next loan");
        check_eq!(a.guest.reclaim(again)?, OK, "VM_MEM_RECLAIM");
        a.destroy()?;
        b.destroy()
    })
}

/// The caller cancels while the peer, on another CPU, retrieves what it granted, writes there, and gives it back.
pub fn grants_race() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    leaving_nothing(|| {
        const MAILBOX: u64 = LENT + 0x1000;
        let (mut a, mut b) = pair([true, true])?;
        // A page through which loans are named.
        let [status, loan, ..] = a.guest.call(VM_MEM_SHARE, [MAILBOX, 1, b.guest.id(), READ_WRITE])?;
        check_eq!(status, OK, "VM_MEM_SHARE of the mailbox");
        check_eq!(b.guest.retrieve(loan, WINDOW, 1)?, OK, "VM_MEM_RETRIEVE of the mailbox");
        a.guest.store(LENT, 0)?;
        b.guest.tell(Operation::Borrows, [0, WINDOW, 0, WINDOW + 0x1000, 0])?;
        on_second_cpu(&b.guest.0, 0)?;
        let granted = (|| {
            for n in 1..=200 {
                let (loan, token) = grant(&mut a, &b, 1, READ_WRITE, 0)?;
                a.guest.store(MAILBOX, loan)?;
                check_eq!(a.ask(rpc::CANCEL, [token, 0, 0])?.0, 0, "CANCEL of call {n}");
                a.guest.store(LENT, n << 32)?;
                for _ in 0..10 {
                    check_eq!(a.guest.load(LENT)?, n << 32, "what is the caller's alone");
                }
                check_eq!(a.guest.reclaim(loan)?, REFUSED, "VM_MEM_RECLAIM of what is back");
            }
            let got = a.guest.load(MAILBOX + 16)?;
            a.guest.store(MAILBOX, u64::MAX)?;
            Ok(got)
        })();
        let ended = granted.is_ok() && timer::wait_ms(20_000, || LAST_EXIT.load(SeqCst) == exit::MMIO);
        stop_second_cpu()?;
        println!("note: {} of 200 grants were retrieved", granted?);
        check!(ended, "the peer does not end");
        a.destroy()?;
        b.destroy()
    })
}
