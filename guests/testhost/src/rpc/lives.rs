// SPDX-License-Identifier: Apache-2.0 OR MIT
//! VMs come and go; two at once.

use core::sync::atomic::Ordering::SeqCst;

use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::rpc::{self, bell, received, status};
use gzvm_abi::run::exit;
use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{check, check_eq, skip, smp, timer};

use super::ends::{End, HostEnd, OUT, connect, guest, pair};
use crate::guest_runs::LAST_EXIT;
use crate::lending::guest::leaving_nothing;
use crate::lending::program::Operation;
use crate::life::{on_second_cpu, stop_second_cpu};
use crate::vm::must;

/// How far a call has got.
fn progress(a: &mut End, b: &mut End, steps: u32) -> Result<u64, Verdict> {
    if steps == 0 {
        return Ok(0);
    }
    let token = a.call(1, 0)?;
    if steps >= 2 {
        b.expect(received::CALL, 1)?;
    }
    if steps >= 3 {
        check_eq!(b.reply(2, token)?, 0, "REPLY");
    }
    if steps >= 4 {
        a.expect(received::REPLY, 2)?;
    }
    Ok(token)
}

/// All that makes sense without a peer is to close.
fn is_alone(end: &mut End) -> Outcome {
    for function in [rpc::PEER, rpc::CALL, rpc::NOTICE, rpc::REPLY, rpc::RECEIVE, rpc::CANCEL] {
        check_eq!(end.ask(function, [super::ends::OUT, 8, 1])?.0, status::GONE, "{function:#x} alone");
    }
    check_eq!(end.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE");
    check_eq!(end.ask(rpc::CLOSE, [0; 3])?.0, status::INVALID, "CLOSE twice");
    Ok(())
}

pub fn peer_dies_at_each_point() -> Outcome {
    for protected in [[false, false], [true, true], [false, true]] {
        for steps in 0..5 {
            for caller_dies in [false, true] {
                leaving_nothing(|| {
                    let (mut a, mut b) = pair(protected)?;
                    progress(&mut a, &mut b, steps)?;
                    let (dies, mut lives) = if caller_dies { (a, b) } else { (b, a) };
                    dies.destroy()?;
                    is_alone(&mut lives)?;
                    // Its place is free for the next.
                    let next = guest(true)?;
                    must(connect(&lives.guest, 1, Some(&next), 2), "RPC_CONNECT to the next")?;
                    let mut lives = End::open(lives.guest, 1)?;
                    lives.expect_nothing(status::AGAIN)?;
                    lives.destroy()?;
                    next.destroy()
                })?;
            }
        }
    }
    Ok(())
}

/// The host takes a channel from its VMs.
pub fn host_closes() -> Outcome {
    for steps in 0..5 {
        leaving_nothing(|| {
            let (mut a, mut b) = pair([true, false])?;
            progress(&mut a, &mut b, steps)?;
            must(call(Function::RpcClose, &[a.handle]), "RPC_CLOSE")?;
            check_eq!(
                call(Function::RpcClose, &[a.handle]).status(),
                Some(Status::InvalidArgs),
                "RPC_CLOSE twice"
            );
            is_alone(&mut a)?;
            is_alone(&mut b)?;
            let host = HostEnd::connect(&a.guest, 1)?;
            let mut a = End::open(a.guest, 1)?;
            a.call(1, 0)?;
            host.expect(received::CALL, 1)?;
            must(host.close(), "RPC_CLOSE of the host's own")?;
            check!(!host.close().ok(), "RPC_CLOSE twice");
            is_alone(&mut a)?;
            a.destroy()?;
            b.destroy()
        })?;
    }
    Ok(())
}

/// The peer of a VM that closes is told, be it the host or a VM.
pub fn guest_closes() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, true])?;
        a.call(1, 0)?;
        check_eq!(a.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE");
        is_alone(&mut b)?;
        let host = HostEnd::connect(&a.guest, 1)?;
        let mut a = End::open(a.guest, 1)?;
        a.guest.0.bell = None;
        check_eq!(a.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE");
        let rung = a.guest.0.bell.map(|bell| (bell.handle, bell.what));
        check_eq!(rung, Some((host.handle, bell::GONE)), "what the host is told");
        check!(!host.close().ok(), "the host's end is still there");
        a.destroy()?;
        b.destroy()
    })
}

/// With its peers alive, and all messages under way.
pub fn as_many_as_a_vm_may_have() -> Outcome {
    leaving_nothing(|| {
        let (vm, peer) = (guest(true)?, guest(true)?);
        for port in 0..rpc::MOST_CHANNELS {
            let other = (port % 2 == 0).then_some(&peer);
            must(connect(&vm, port, other, port), "RPC_CONNECT")?;
        }
        let full = Some(Status::NoMemory);
        check_eq!(connect(&vm, 99, None, 99).status(), full, "one more with the host");
        check_eq!(connect(&vm, 99, Some(&peer), 99).status(), full, "one more with a VM");
        let mut end = End { guest: vm, handle: 0 };
        for port in 0..rpc::MOST_CHANNELS {
            end.handle = end.guest.call(rpc::OPEN, [port, 0, 0, 0])?[1];
            for _ in 0..rpc::SLOTS {
                check_eq!(end.ask(rpc::CALL, [super::ends::OUT, 4096, 0])?.0, 0, "CALL");
            }
        }
        end.destroy()?;
        let mut peer = End::open_any(peer)?;
        peer.expect_nothing(status::GONE)?;
        peer.destroy()
    })
}

impl End {
    /// An endpoint that has lost its peer: [`rpc::OPEN`] does not find it, so its name is guessed from that of the next.
    fn open_any(guest: crate::lending::guest::Guest) -> Result<Self, Verdict> {
        let host = HostEnd::connect(&guest, 77)?;
        let mut end = End::open(guest, 77)?;
        let generation = host.handle >> 16;
        for before in 1..=rpc::MOST_CHANNELS {
            for low in 0..128 {
                end.handle = (generation - before) << 16 | low;
                if end.receive()?.status != status::INVALID {
                    return Ok(end);
                }
            }
        }
        Err(Verdict::fail(format_args!("no endpoint is left of those whose peer died")))
    }
}

/// Both run at once, on two CPUs, and nothing is lost.
pub fn two_cpus() -> Outcome {
    const CALLS: u64 = 2000;
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for (protected, bytes) in [([false, true], 8), ([true, true], 4096)] {
        leaving_nothing(|| {
            let (mut a, mut b) = pair(protected)?;
            // There nobody brings the page of its messages.
            b.guest.store(OUT, 0)?;
            b.guest.tell(Operation::Serves, [0, b.handle, 0, 0, 0])?;
            on_second_cpu(&b.guest.0, 0)?;
            let called = a.guest.ask(Operation::Calls, [0, a.handle, CALLS, bytes, 0]);
            let told = a.send(rpc::NOTICE, 0, 8, 0);
            let ended = timer::wait_ms(20_000, || LAST_EXIT.load(SeqCst) == exit::MMIO);
            stop_second_cpu()?;
            let [failures, last, ..] = called?;
            check_eq!((failures, last), (0, 0), "failures, and the last status");
            check_eq!(told?.0, 0, "NOTICE at the end");
            check!(ended, "the server does not end");
            a.destroy()?;
            b.destroy()
        })?;
    }
    Ok(())
}

/// Either is destroyed while both run.
pub fn destroyed_while_calling() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for round in 0..8 {
        leaving_nothing(|| {
            let (mut a, mut b) = pair([round % 2 == 0, true])?;
            // The server runs on the other CPU; here the caller gets some turns, then one of them goes.
            // There nobody brings the page of its messages.
            b.guest.store(OUT, 0)?;
            b.guest.tell(Operation::Serves, [0, b.handle, 0, 0, 0])?;
            on_second_cpu(&b.guest.0, 0)?;
            a.guest.tell(Operation::Calls, [0, a.handle, u64::MAX >> 1, 512, 0])?;
            let start = timer::now();
            while timer::now() - start < timer::frequency() / 1000 * (2 + round) {
                check!(a.guest.0.run(0)? != exit::MMIO, "the caller ends");
            }
            if round % 4 < 2 {
                a.destroy()?;
                let ended = timer::wait_ms(10_000, || LAST_EXIT.load(SeqCst) == exit::MMIO);
                stop_second_cpu()?;
                check!(ended, "the server hangs");
                b.destroy()
            } else {
                let destroyed = b.destroy();
                stop_second_cpu()?;
                destroyed?;
                check_eq!(a.guest.answer()?[1] as i64, status::GONE, "the caller's last status");
                a.destroy()
            }
        })?;
    }
    Ok(())
}
