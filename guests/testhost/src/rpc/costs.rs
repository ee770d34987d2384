// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Many calls, and what one takes: under `-icount` with one CPU a tick of the counter is an instruction (`timed=1` among the
//! boot arguments).

use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::rpc::{self, act, received, status};
use gzvm_abi::run::exit;
use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::hypercall::{Reply, call};
use gzvm_guest_kit::{check, check_eq, machine, println, skip, timer};

use super::ends::{connect, guest, pair, with_host};
use crate::lending::guest::leaving_nothing;
use crate::lending::program::Operation;
use crate::longest::MOST_INSTRUCTIONS;
use crate::vm::must;

fn calls() -> u64 {
    machine::get().arg("rpc_calls").and_then(|n| n.parse().ok()).unwrap_or(2000)
}

/// Two protected VMs by turns on one CPU, so many calls of so many bytes; the ticks that it took.
fn by_turns(calls: u64, bytes: u64) -> Result<u64, Verdict> {
    let (mut a, mut b) = pair([true, true])?;
    b.guest.tell(Operation::Serves, [0, b.handle, 0, 0, 0])?;
    a.guest.tell(Operation::Calls, [0, a.handle, calls, bytes, 0])?;
    let start = timer::now();
    while a.guest.0.run(0)? != exit::MMIO {
        check_eq!(b.guest.0.run(0)?, exit::IDLE, "exit of the server");
    }
    let ticks = timer::now() - start;
    let [failures, last, ..] = a.guest.rest_of_answer()?;
    check_eq!((failures, last), (0, 0), "failures, and the last status");
    a.send(rpc::NOTICE, 0, 8, 0)?;
    let [served, last, ..] = b.guest.answer()?;
    check_eq!((served, last), (calls, 0), "calls that were served, and the last status");
    a.destroy()?;
    b.destroy()?;
    Ok(ticks)
}

/// `rpc_calls` among the boot arguments says how many.
pub fn many_calls() -> Outcome {
    leaving_nothing(|| {
        by_turns(calls(), 8)?;
        println!("note: {} calls between VMs", calls());
        Ok(())
    })
}

/// A VM serves the host.
pub fn with_the_host_many_calls() -> Outcome {
    leaving_nothing(|| {
        let (mut vm, host) = with_host(true)?;
        vm.guest.tell(Operation::Serves, [0, vm.handle, 0, 0, 0])?;
        for n in 0..calls() {
            let (token, _, done) = host.send(received::CALL, n, 8, 0)?;
            check_eq!(done, 0, "call {n}");
            check_eq!(vm.guest.0.run(0)?, exit::IDLE, "exit of the server");
            check_eq!(host.expect(received::REPLY, n + 1)?.token, token, "the reply to call {n}");
        }
        host.send(received::NOTICE, 0, 8, 0)?;
        let [served, ..] = vm.guest.answer()?;
        check_eq!(served, calls(), "calls that were served");
        println!("note: {served} calls of the host");
        vm.destroy()
    })
}

/// The longest of some calls of the host's.
#[derive(Default)]
struct Longest(u64);

impl Longest {
    fn call(&mut self, function: Function, args: &[u64]) -> Reply {
        let start = timer::now();
        let reply = call(function, args);
        self.0 = self.0.max(timer::now() - start);
        reply
    }
}

/// Of a call and its reply between two VMs that run by turns, and of the host's calls at their worst.
pub fn instructions() -> Outcome {
    if machine::get().arg("timed") != Some("1") {
        skip!("not timed");
    }
    leaving_nothing(|| {
        const ROUNDS: u64 = 256;
        for bytes in [8, 4096] {
            let (few, many) = (by_turns(ROUNDS, bytes)?, by_turns(2 * ROUNDS, bytes)?);
            let each = (many - few) / ROUNDS;
            println!(
                "note: a call of {bytes} bytes with its reply, and all runs of both VMs: {each} instructions"
            );
        }
        let mut longest = Longest::default();
        let (vm, peer) = (guest(true)?, guest(true)?);
        for port in 0..rpc::MOST_CHANNELS {
            let other = if port % 2 == 0 { 0 } else { peer.id() };
            must(longest.call(Function::RpcConnect, &[vm.id(), port, other, port]), "RPC_CONNECT")?;
        }
        let handle = connect(&peer, 99, None, 1).values[0];
        println!("note: RPC_CONNECT: {} instructions at most", longest.0);
        let (area, mut message) = (crate::pages::take(2, 4096), Longest::default());
        for n in 0..=rpc::SLOTS as u64 {
            crate::pages::put(area, rpc::Header { kind: received::CALL, bytes: 4096, ..Default::default() });
            let [_, _, done] = message.call(Function::RpcMessage, &[handle, act::SEND, area]).values;
            let full = if n < rpc::SLOTS as u64 { 0 } else { status::AGAIN };
            check_eq!(done as i64, full, "call {n}");
        }
        println!("note: RPC_MESSAGE of 4096 bytes: {} instructions at most", message.0);
        let mut close = Longest::default();
        must(close.call(Function::RpcClose, &[handle]), "RPC_CLOSE")?;
        println!("note: RPC_CLOSE: {} instructions", close.0);
        let mut destroy = Longest::default();
        while destroy.call(Function::DestroyVm, &[vm.id(), 96]).status() == Some(Status::Busy) {}
        println!("note: a step of DESTROY_VM, of a VM with 16 channels: {} instructions at most", destroy.0);
        for Longest(most) in [longest, message, close, destroy] {
            check!(most <= MOST_INSTRUCTIONS, "a call took {most} instructions");
        }
        core::mem::forget(vm);
        peer.destroy()
    })
}
