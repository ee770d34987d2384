// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What goes through a channel.

use gzvm_abi::rpc::{self, act, bell, peer, received, status};
use gzvm_abi::run::exit;
use gzvm_guest_kit::case::Outcome;
use gzvm_guest_kit::{check, check_eq, timer};

use super::ends::{End, Got, HostEnd, IN, OUT, connect, guest, identity, pair, set_policy, with_host};
use crate::lending::guest::{Guest, leaving_nothing};
use crate::pages;
use crate::programs::{DEVICE, GICD, RAM, SPI, waits_for_spi};
use crate::vm::{RAM_PAGES, Vm, must};

const KINDS: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

/// Of each size, both ways, between VMs of all kinds; who is told who sent it.
pub fn calls_and_replies() -> Outcome {
    for protected in KINDS {
        leaving_nothing(|| {
            let (mut a, mut b) = pair(protected)?;
            for (round, bytes) in (1u64..).zip([0u64, 1, 8, 100, 4095, 4096]) {
                {
                    let (from, to) = (&mut a, &mut b);
                    let last = IN + bytes.saturating_sub(1);
                    from.guest.store(OUT + (bytes.saturating_sub(1) & !7), 0x0101_0101_0101_0101 * round)?;
                    let (done, token) = from.ask(rpc::CALL, [OUT, bytes, 0])?;
                    check_eq!(done, 0, "CALL of {bytes} bytes");
                    to.guest.store(last & !7, 0)?;
                    let got = to.receive()?;
                    check_eq!(
                        (got.status, got.kind, got.bytes, got.token, got.more, got.time),
                        (0, received::CALL, bytes, token, false, 0),
                        "what is received"
                    );
                    let who = identity(&from.guest, protected[0])?;
                    check_eq!(
                        got.sender,
                        [who[0], got.sender[1], who[1], who[2], who[3], who[4]],
                        "who sent it"
                    );
                    let seen = to.guest.load(last & !7)? >> (8 * (last & 7)) & 0xFF;
                    check_eq!(seen, if bytes == 0 { 0 } else { round }, "its last byte");
                    to.expect_nothing(status::AGAIN)?;
                    check_eq!(to.send(rpc::REPLY, 77 + round, bytes, token)?.0, 0, "REPLY");
                    let got = from.receive()?;
                    check_eq!((got.kind, got.bytes, got.token), (received::REPLY, bytes, token), "the reply");
                    from.expect_nothing(status::AGAIN)?;
                }
            }
            // The other way, and who the peer is.
            let token = b.call(5, 0)?;
            check_eq!(a.expect(received::CALL, 5)?, token, "the token");
            let [_, who, generation, _] = a.guest.call(rpc::PEER, [a.handle, 0, 0, 0])?;
            check_eq!(who, identity(&b.guest, protected[1])?[0], "PEER");
            check!(generation > 0, "no generation");
            b.destroy()?;
            a.destroy()
        })?;
    }
    Ok(())
}

/// Replies come as they are given, the rest as it is sent; "more" is right.
pub fn notices_in_order() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([false, true])?;
        let mut tokens = [0; 2];
        for n in 0..2 {
            check_eq!(a.send(rpc::NOTICE, 100 + n, 8, 0)?.0, 0, "NOTICE");
            tokens[n as usize] = a.call(200 + n, 0)?;
        }
        for n in 0..2 {
            let got = b.receive()?;
            check_eq!((got.kind, got.token, got.more), (received::NOTICE, 0, true), "a notice");
            check_eq!(b.guest.load(IN)?, 100 + n, "which");
            let got = b.receive()?;
            check_eq!((got.kind, got.more), (received::CALL, n == 0), "a call");
            check_eq!(got.token, tokens[n as usize], "which");
        }
        check_eq!(b.reply(1, 0)?, status::NO_CALL, "REPLY to a notice");
        check_eq!(b.reply(1, tokens[1])?, 0, "REPLY to the second");
        check_eq!(b.reply(2, tokens[0])?, 0, "REPLY to the first");
        check_eq!(b.reply(2, tokens[0])?, status::NO_CALL, "REPLY twice");
        check_eq!(a.expect(received::REPLY, 1)?, tokens[1], "the first reply");
        check_eq!(a.expect(received::REPLY, 2)?, tokens[0], "the second reply");
        a.destroy()?;
        b.destroy()
    })
}

pub fn with_the_host() -> Outcome {
    for protected in [false, true] {
        leaving_nothing(|| {
            let (mut vm, host) = with_host(protected)?;
            // The VM calls: it leaves the guest, so that the host looks.
            let token = vm.call(0x11, 0)?;
            let Some(rung) = vm.guest.0.bell.take() else {
                gzvm_guest_kit::fail!("no exit tells the host");
            };
            check_eq!((rung.handle, rung.what, rung.vm), (host.handle, bell::MESSAGE, 0), "the exit");
            let header = host.expect(received::CALL, 0x11)?;
            let [who, measurement @ ..] = identity(&vm.guest, protected)?;
            check_eq!(u64::from(header.sender), who, "who sent it");
            let told: [u8; 32] = header.measurement;
            check!(told[..8] == measurement[0].to_le_bytes(), "another measurement");
            check_eq!((header.token, header.more), (token, 0), "token, more");
            check_eq!(host.receive()?.err(), Some(status::AGAIN), "and no more");
            check_eq!(host.send(received::REPLY, 0x12, 8, token)?.2, 0, "the host's reply");
            check_eq!(vm.expect(received::REPLY, 0x12)?, token, "the reply");
            // The host calls.
            let (token, _, done) = host.send(received::CALL, 0x13, 8, 0)?;
            check_eq!(done, 0, "the host's call");
            let got = vm.receive()?;
            check_eq!(got.sender, [peer::HOST.into(), 0, 0, 0, 0, 0], "that the host sent it");
            check_eq!(vm.reply(0x14, token)?, 0, "REPLY");
            check_eq!(host.expect(received::REPLY, 0x14)?.token, token, "the reply to the host");
            // And cancels.
            let (token, ..) = host.send(received::CALL, 0x15, 8, 0)?;
            check_eq!(host.act(act::CANCEL, token).values[2], 0, "the host cancels");
            check_eq!(host.act(act::CANCEL, token).values[2] as i64, status::NO_CALL, "twice");
            vm.expect_nothing(status::AGAIN)?;
            vm.destroy()?;
            check!(!host.act(act::CANCEL, 0).ok(), "the host's end is still there");
            check!(!host.close().ok(), "RPC_CLOSE of what is gone");
            Ok(())
        })?;
    }
    Ok(())
}

/// Who sends more than is received is told so, and hears when there is room; others notice nothing.
pub fn flood_hurts_the_sender_alone() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, true])?;
        let host = HostEnd::connect(&a.guest, 7)?;
        let other = a.guest.call(rpc::OPEN, [7, 0, 0, 0])?[1];
        for n in 0..rpc::SLOTS as u64 {
            check_eq!(a.send(rpc::NOTICE, n, 8, 0)?.0, 0, "NOTICE {n}");
        }
        for function in [rpc::NOTICE, rpc::CALL, rpc::NOTICE] {
            check_eq!(a.send(function, 0, 8, 0)?.0, status::AGAIN, "without room");
        }
        // Its peer and its other channel.
        b.call(1, 0)?;
        check_eq!(a.expect(received::CALL, 1)?, 1, "the peer's call");
        check_eq!(a.guest.call(rpc::NOTICE, [other, OUT, 8, 0])?[0], 0, "NOTICE to the host");
        check_eq!(host.receive()?.map(|(header, _)| header.kind), Ok(received::NOTICE), "at the host");
        // A host that was refused hears of room by the exit.
        for n in 0..rpc::SLOTS as u64 {
            check_eq!(host.send(received::NOTICE, n, 8, 0)?.2, 0, "the host's notice {n}");
        }
        check_eq!(host.send(received::NOTICE, 0, 8, 0)?.2, status::AGAIN, "the host without room");
        a.guest.0.bell = None;
        check_eq!(a.guest.call(rpc::RECEIVE, [other, IN, 4096, 0])?[0], 0, "RECEIVE from the host");
        let rung = a.guest.0.bell.map(|bell| (bell.handle, bell.what));
        check_eq!(rung, Some((host.handle, bell::ROOM)), "that there is room");
        for n in 0..rpc::SLOTS as u64 {
            b.expect(received::NOTICE, n)?;
        }
        b.expect_nothing(status::AGAIN)?;
        check_eq!(a.send(rpc::NOTICE, 9, 8, 0)?.0, 0, "NOTICE with room");
        a.destroy()?;
        b.destroy()
    })
}

/// Waits until the call has lapsed.
fn later() {
    timer::wait_ms(3, || false);
}

pub fn deadlines() -> Outcome {
    const SOON: u64 = 1000;
    leaving_nothing(|| {
        let (mut a, mut b) = pair([false, true])?;
        // Not received in time.
        let token = a.call(1, SOON)?;
        later();
        b.expect_nothing(status::AGAIN)?;
        let lapsed = |end: &mut End, token| {
            let got = end.receive()?;
            check_eq!((got.status, got.kind, got.token), (0, received::LAPSED, token), "that it lapsed");
            end.expect_nothing(status::AGAIN)
        };
        lapsed(&mut a, token)?;
        // Nobody has looked before the caller does.
        let token = a.call(2, SOON)?;
        later();
        lapsed(&mut a, token)?;
        b.expect_nothing(status::AGAIN)?;
        // Answered too late.
        let token = a.call(3, SOON * 1000)?;
        let got = b.receive()?;
        check!((1..=SOON * 1000).contains(&got.time), "{} µs are left", got.time);
        check_eq!(b.reply(4, token)?, 0, "REPLY in time");
        a.expect(received::REPLY, 4)?;
        let token = a.call(5, SOON)?;
        let got = b.receive()?;
        if got.status == 0 {
            later();
            check_eq!(b.reply(6, token)?, status::NO_CALL, "REPLY too late");
        }
        lapsed(&mut a, token)?;
        // Not answered at all: the server is told.
        let token = a.call(7, SOON * 200)?;
        b.expect(received::CALL, 7)?;
        timer::wait_ms(210, || false);
        lapsed(&mut a, token)?;
        let got = b.receive()?;
        check_eq!((got.kind, got.token), (received::CANCELLED, token), "what the server is told");
        check_eq!(b.reply(8, token)?, status::NO_CALL, "REPLY after that");
        // All slots are free again.
        for n in 0..rpc::SLOTS as u64 {
            a.call(n, u64::MAX)?;
        }
        a.destroy()?;
        b.destroy()
    })
}

pub fn cancelled_at_each_point() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, false])?;
        let cancel = |end: &mut End, token| Ok(end.ask(rpc::CANCEL, [token, 0, 0])?.0);
        let token = a.call(1, 0)?;
        check_eq!(cancel(&mut b, token)?, status::NO_CALL, "CANCEL of the other's");
        check_eq!(cancel(&mut a, token)?, 0, "CANCEL before it is received");
        b.expect_nothing(status::AGAIN)?;
        let token = a.call(2, 0)?;
        b.expect(received::CALL, 2)?;
        check_eq!(cancel(&mut a, token)?, 0, "CANCEL of what the server has");
        check_eq!(cancel(&mut a, token)?, status::NO_CALL, "CANCEL twice");
        check_eq!(b.reply(3, token)?, status::NO_CALL, "REPLY to it");
        let got = b.receive()?;
        check_eq!((got.kind, got.token), (received::CANCELLED, token), "what the server is told");
        b.expect_nothing(status::AGAIN)?;
        let token = a.call(4, 0)?;
        b.expect(received::CALL, 4)?;
        check_eq!(b.reply(5, token)?, 0, "REPLY");
        check_eq!(cancel(&mut a, token)?, 0, "CANCEL of what is answered");
        a.expect_nothing(status::AGAIN)?;
        for token in [0, 1, token + 1, u64::MAX] {
            check_eq!(cancel(&mut a, token)?, status::NO_CALL, "CANCEL of {token}");
        }
        for n in 0..rpc::SLOTS as u64 {
            a.call(n, 0)?;
        }
        b.destroy()?;
        a.destroy()
    })
}

/// Messages lie in one page of the VM's own, which may come only then, and which it may write to receive.
pub fn messages_in_memory() -> Outcome {
    for protected in [false, true] {
        leaving_nothing(|| {
            let (mut a, mut b) = pair([protected, true])?;
            let end = RAM + RAM_PAGES * 4096;
            let refused = [
                (OUT + 1, 4096),
                (OUT + 4095, 2),
                (OUT, 4097),
                (OUT, u64::MAX),
                (end, 8),
                (GICD, 8),
                (DEVICE, 8),
                (1 << 40, 8),
                (u64::MAX, 1),
            ];
            for (at, bytes) in refused {
                for function in [rpc::CALL, rpc::NOTICE, rpc::RECEIVE] {
                    check_eq!(
                        a.ask(function, [at, bytes, 0])?.0,
                        status::INVALID,
                        "{function:#x} with {bytes:#x} bytes at {at:#x}"
                    );
                }
            }
            // One that the host has not brought yet.
            let fresh = RAM + 0x10_0000;
            check_eq!(a.ask(rpc::NOTICE, [fresh + 4088, 8, 0])?.0, 0, "NOTICE from a fresh page");
            b.expect(received::NOTICE, 0)?;
            b.send(rpc::NOTICE, 0xABC, 8, 0)?;
            let small = a.receive_at(IN, 7)?;
            check_eq!(
                (small.status, small.kind, small.bytes),
                (status::TOO_SMALL, received::NOTICE, 8),
                "7 bytes"
            );
            check_eq!(a.receive_at(0, 0)?.status, status::TOO_SMALL, "no bytes");
            check_eq!(a.receive_at(fresh + 0x2FF8, 8)?, Got { status: 0, more: false, ..small }, "in place");
            check_eq!(a.guest.load(fresh + 0x2FF8)?, 0xABC, "in a fresh page");
            a.destroy()?;
            b.destroy()
        })?;
    }
    leaving_nothing(|| {
        // What is borrowed is another's: no message to read, nor to be overwritten.
        let (mut a, mut b) = pair([true, true])?;
        let handle = b.guest.share(&a.guest, 1, crate::lending::READ_WRITE)?;
        check_eq!(a.guest.retrieve(handle, crate::lending::WINDOW, 1)?, 0, "VM_MEM_RETRIEVE");
        for function in [rpc::CALL, rpc::RECEIVE] {
            let refused = a.ask(function, [crate::lending::WINDOW, 8, 0])?.0;
            check_eq!(refused, status::INVALID, "{function:#x} in a borrowed page");
        }
        a.destroy()?;
        b.destroy()
    })
}

/// The SPI that was chosen wakes a VM that sleeps, from the host and from another VM.
pub fn doorbell() -> Outcome {
    for by_vm in [false, true] {
        leaving_nothing(|| {
            let mut sleeper = Guest(Vm::new(waits_for_spi(), 1)?);
            must(set_policy(&sleeper, super::ends::EVERYBODY, 4), "RPC_POLICY")?;
            check_eq!(sleeper.0.run(0)?, exit::IDLE, "exit of a VM that sleeps");
            let caller = if by_vm {
                let caller = guest(true)?;
                let reply = must(connect(&caller, 1, Some(&sleeper), 2), "RPC_CONNECT")?;
                check_eq!(reply.values[2], 1, "vCPUs to wake, since there is a channel");
                Some(End::open(caller, 1)?)
            } else {
                let host = HostEnd::connect(&sleeper, 2)?;
                check_eq!(host.send(received::NOTICE, 1, 8, 0)?.1, 1, "vCPUs to wake");
                None
            };
            let caller = match caller {
                Some(mut caller) => {
                    check_eq!(caller.send(rpc::NOTICE, 1, 8, 0)?.0, 0, "NOTICE");
                    let rung = caller.guest.0.bell.take().map(|bell| (u64::from(bell.vm), bell.vcpus));
                    check_eq!(rung, Some((sleeper.id(), 1)), "whom to wake");
                    Some(caller)
                }
                None => None,
            };
            check_eq!(sleeper.0.run_to_store(0)?.1, 32 + SPI, "the interrupt");
            sleeper.destroy()?;
            caller.map_or(Ok(()), End::destroy)
        })?;
    }
    pages::reset();
    Ok(())
}
