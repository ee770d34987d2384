// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who may have channels, and use them.

use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::rpc::{self, act, received, status, with};
use gzvm_guest_kit::case::Outcome;
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{check, check_eq};

use super::ends::{EVERYBODY, End, HostEnd, IN, OUT, connect, guest, pair, set_policy};
use crate::lending::guest::{Guest, leaving_nothing};
use crate::pages;
use crate::programs::SPI;
use crate::vm::{create_bare, destroy, must};

/// All that needs an endpoint.
const CALLS: [u32; 7] =
    [rpc::PEER, rpc::CALL, rpc::NOTICE, rpc::REPLY, rpc::RECEIVE, rpc::CANCEL, rpc::CLOSE];

fn is_refused(end: &mut Guest, handle: u64) -> Outcome {
    for function in CALLS {
        let refused = end.status(function, [handle, OUT, 8, 1])? as i64;
        check_eq!(refused, status::INVALID, "{function:#x} with handle {handle:#x}");
    }
    Ok(())
}

pub fn foreign_wrong_and_stale_handles() -> Outcome {
    leaving_nothing(|| {
        let (mut a, mut b) = pair([true, true])?;
        let mut third = guest(false)?;
        let host = HostEnd::connect(&third, 3)?;
        // Everybody's, for everybody else.
        is_refused(&mut third, a.handle)?;
        is_refused(&mut third, b.handle)?;
        is_refused(&mut third, host.handle)?;
        is_refused(&mut a.guest, b.handle)?;
        is_refused(&mut b.guest, a.handle)?;
        for bit in 0..64 {
            is_refused(&mut a.guest, a.handle ^ 1 << bit)?;
        }
        for handle in [0, 1, u64::MAX] {
            is_refused(&mut a.guest, handle)?;
        }
        // The host, which made it, at the VMs' ends.
        let area = pages::take(2, 4096);
        for handle in [a.handle, b.handle, host.handle ^ 1, host.handle ^ 1 << 20] {
            for (what, x3) in [(act::SEND, area), (act::RECEIVE, area), (act::CANCEL, 1)] {
                pages::put(area, rpc::Header { kind: received::NOTICE, ..Default::default() });
                let refused = call(Function::RpcMessage, &[handle, what, x3]).status();
                check_eq!(refused, Some(Status::InvalidArgs), "RPC_MESSAGE {what} with {handle:#x}");
            }
        }
        // Nothing of it has come through.
        a.expect_nothing(status::AGAIN)?;
        b.expect_nothing(status::AGAIN)?;
        check_eq!(host.receive()?.err(), Some(status::AGAIN), "what the host has");
        for port in [0, 2, 3, u64::from(u32::MAX), 1 << 32] {
            check_eq!(a.guest.status(rpc::OPEN, [port, 0, 0, 0])? as i64, status::INVALID, "OPEN of {port}");
        }
        // Stale: closed; and the channel that takes its place.
        let old = a.handle;
        check_eq!(a.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE");
        is_refused(&mut a.guest, old)?;
        check_eq!(b.ask(rpc::CLOSE, [0; 3])?.0, 0, "CLOSE of the other");
        must(connect(&a.guest, 1, Some(&b.guest), 2), "RPC_CONNECT again")?;
        is_refused(&mut a.guest, old)?;
        is_refused(&mut b.guest, b.handle)?;
        let (mut a, b) = (End::open(a.guest, 1)?, End::open(b.guest, 2)?);
        check!(a.handle != old, "a handle is used again");
        check_eq!(a.receive_at(IN, 8)?.status, status::AGAIN, "in the new one");
        third.destroy()?;
        a.destroy()?;
        b.destroy()
    })
}

/// What the host has said at first holds for ever; without it, nothing.
pub fn policy() -> Outcome {
    leaving_nothing(|| {
        let mut silent = Guest::new()?;
        let peer = guest(true)?;
        for function in [rpc::INFO, rpc::OPEN].into_iter().chain(CALLS) {
            let there = silent.status(function, [1, 0, 0, 0])? as i64;
            check_eq!(there, -1, "{function:#x} without a policy");
        }
        let refused = Some(Status::InvalidArgs);
        check_eq!(connect(&silent, 1, None, 1).status(), refused, "RPC_CONNECT of it to the host");
        check_eq!(connect(&peer, 1, Some(&silent), 1).status(), refused, "RPC_CONNECT of another to it");
        check_eq!(set_policy(&silent, EVERYBODY, 1).status(), refused, "RPC_POLICY once it has run");
        silent.destroy()?;
        for (mask, host, plain, protected) in [
            (with::HOST, true, false, false),
            (with::PLAIN, false, true, false),
            (with::PROTECTED, false, false, true),
        ] {
            let one = Guest::new()?;
            must(set_policy(&one, mask, 4), "RPC_POLICY")?;
            check_eq!(set_policy(&one, EVERYBODY, 4).status(), refused, "RPC_POLICY twice");
            let simple = guest(false)?;
            check_eq!(connect(&one, 1, None, 1).ok(), host, "with the host, by {mask}");
            check_eq!(connect(&one, 2, Some(&simple), 1).ok(), plain, "with a plain VM, by {mask}");
            check_eq!(connect(&simple, 2, Some(&one), 5).ok(), plain, "asked the other way, by {mask}");
            check_eq!(connect(&peer, 3, Some(&one), 3).ok(), protected, "with a protected VM, by {mask}");
            simple.destroy()?;
            one.destroy()?;
        }
        peer.destroy()
    })
}

pub fn arguments() -> Outcome {
    leaving_nothing(|| {
        let mut vm = Guest::new()?;
        let id = vm.id();
        let refused = Some(Status::InvalidArgs);
        for (spi, with, most) in [
            (988, EVERYBODY, 1),
            (u64::MAX, EVERYBODY, 1),
            (SPI, 0, 1),
            (SPI, 8, 1),
            (SPI, 1 << 32, 1),
            (SPI, EVERYBODY, 0),
            (SPI, EVERYBODY, 17),
            (SPI, EVERYBODY, u64::MAX),
        ] {
            let reply = call(Function::RpcPolicy, &[id, spi, with, most]);
            check_eq!(reply.status(), refused, "RPC_POLICY {spi} {with} {most}");
        }
        check_eq!(call(Function::RpcPolicy, &[999, SPI, 1, 1]).status(), refused, "RPC_POLICY of no VM");
        let asked = call(Function::RpcPolicy, &[0, 0, 0, 0]);
        check_eq!((asked.ok(), asked.values[0]), (true, rpc::MOST_CHANNELS), "RPC_POLICY that asks");
        must(set_policy(&vm, EVERYBODY, 2), "RPC_POLICY")?;
        let [done, doorbell, bytes, esr] = vm.call(rpc::INFO, [0; 4])?;
        check_eq!((done, doorbell, bytes, esr), (0, 32 + SPI, 4096, 0), "INFO");
        let bare = create_bare()?;
        must(call(Function::RpcPolicy, &[bare.into(), SPI, EVERYBODY, 1]), "RPC_POLICY of a bare VM")?;
        for (a, port, b, other) in [
            (id, 1, id, 2),
            (id, 1 << 32, 0, 1),
            (id, 1, 0, 1 << 32),
            (0, 1, 0, 1),
            (999, 1, 0, 1),
            (id, 1, 999, 1),
            // What it is has not been decided.
            (bare.into(), 1, 0, 1),
            (id, 1, bare.into(), 1),
        ] {
            let reply = call(Function::RpcConnect, &[a, port, b, other]);
            check_eq!(reply.status(), refused, "RPC_CONNECT {a} {port} {b} {other}");
        }
        destroy(bare)?;
        let host = HostEnd::connect(&vm, 1)?;
        let handle = vm.call(rpc::OPEN, [1, 0, 0, 0])?[1];
        check_eq!(connect(&vm, 1, None, 1).status(), refused, "RPC_CONNECT of a port in use");
        let area = pages::take(2, 4096);
        for (what, x3) in [(3, area), (u64::MAX, area)] {
            check_eq!(host.act(what, x3).status(), refused, "RPC_MESSAGE {what}");
        }
        for (kind, bytes) in
            [(0, 0), (received::LAPSED, 0), (received::NOTICE, 4097), (received::CALL, u32::MAX)]
        {
            pages::put(area, rpc::Header { kind, bytes, ..Default::default() });
            check_eq!(host.act(act::SEND, area).status(), refused, "sending {bytes} bytes of {kind}");
        }
        must(host.act(act::CANCEL, 0), "RPC_MESSAGE cancel")?;
        for wild in [1, area + 8, 0x0900_0000, 1 << 48, u64::MAX - 4095, u64::MAX] {
            for what in [act::SEND, act::RECEIVE] {
                // There has to be something to receive for the pages to be written.
                let _ = vm.call(rpc::NOTICE, [handle, OUT, 8, 0])?;
                let reply = host.act(what, wild).status();
                check_eq!(reply, Some(Status::Fault), "RPC_MESSAGE {what} at {wild:#x}");
            }
        }
        // And of a protected VM's memory no message is made.
        for what in [act::SEND, act::RECEIVE] {
            check_eq!(host.act(what, vm.at(OUT & !0x1FFF)).status(), Some(Status::Fault), "in a VM's memory");
        }
        check_eq!(call(Function::RpcClose, &[0]).status(), refused, "RPC_CLOSE of nothing");
        vm.destroy()
    })
}
