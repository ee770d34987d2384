// SPDX-License-Identifier: GPL-2.0-only
//! Channels from inside: two Linux guests with `gzvm-rpc.ko`, of which one serves (`serve DEVICE`) and the other one checks
//! (`caller DEVICE`, result lines as of all checks). The caller's last check waits for the server's end, and says so.

use std::fs::File;
use std::io::{Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use gzvm_abi::ioctl::{RPC_CANCEL, RPC_PEER};
use gzvm_abi::rpc::{Header, MOST_BYTES, SLOTS, peer, received};
use libc::{EAGAIN, EBUSY, EINVAL, ENOENT, ENOTTY, POLLHUP, POLLIN, POLLOUT};
use zerocopy::IntoBytes;

use crate::channels::{HEAD, call, call_for, message, read};
use crate::sys;
use crate::{Check, ensure};

/// Calls that begin like this are answered when a notice comes; calls that say [`NEVER`], not at all.
const LATER: &[u8] = b"later";
const NEVER: &[u8] = b"never";
/// Longest wait for the other guest, in ms.
pub const PATIENCE: i32 = 60_000;

pub fn open(device: &str) -> Result<File, String> {
    File::options().read(true).write(true).open(device).map_err(|e| format!("{device}: {e}"))
}

/// Waits for a peer, and answers its calls with what they say, notices too, until it goes.
pub fn serve(device: &str) -> ExitCode {
    match served(device) {
        Ok(calls) => {
            println!("served {calls} calls");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("serve: {error}");
            ExitCode::FAILURE
        }
    }
}

fn served(device: &str) -> Result<u64, String> {
    let channel = open(device)?;
    ensure!(sys::poll(&channel, POLLIN | POLLOUT, 0) == 0, "there is a peer already");
    println!("serving");
    let (mut calls, mut late) = (0, Vec::new());
    let reply = |token, body: &[u8]| {
        let head = Header { kind: received::REPLY, bytes: body.len() as u32, token, ..Header::default() };
        (&channel).write(&[head.as_bytes(), body].concat())
    };
    loop {
        let polled = sys::poll(&channel, POLLIN, -1);
        ensure!(polled & POLLIN != 0, "poll: {polled:#x}");
        if polled & POLLHUP != 0 {
            ensure!((&channel).read(&mut [0; HEAD + MOST_BYTES]).is_ok_and(|n| n == 0), "read at the end");
            return Ok(calls);
        }
        let (head, body) = read(&channel)?;
        match head.kind {
            received::CALL if body == NEVER => {}
            received::CALL if body.starts_with(LATER) => late.push((head.token, body)),
            received::CALL => {
                calls += 1;
                reply(head.token, &body).map_err(|e| format!("reply: {e}"))?;
            }
            received::NOTICE => {
                for (token, body) in late.drain(..) {
                    // It may have been cancelled.
                    let errno = sys::errno(&reply(token, &body));
                    ensure!(matches!(errno, 0 | ENOENT), "a late reply: {errno}");
                }
                (&channel).write(&message(received::NOTICE, &body)).map_err(|e| format!("notice: {e}"))?;
            }
            _ => {}
        }
    }
}

/// A check, of a channel and its device, or whatever else it has to know.
pub type Named = (&'static str, fn(&File, &str) -> Check);

pub const CHECKS: &[Named] = &[
    ("guest_arguments", arguments),
    ("guest_calls", calls),
    ("guest_many_at_once", many_at_once),
    ("guest_notices", notices),
    ("guest_deadlines", deadlines),
    ("guest_cancels", cancels),
    ("guest_peer_dies", peer_dies),
];

/// The checks, one after the other.
pub fn run(device: &str, argument: &str, checks: &[Named]) -> ExitCode {
    let channel = match open(device) {
        Ok(channel) => channel,
        Err(error) => {
            println!("[FAIL] open: {error}\n[DONE] passed=0 failed=1 skipped=0");
            return ExitCode::FAILURE;
        }
    };
    let mut failed = 0;
    for (name, check) in checks {
        match check(&channel, argument) {
            Ok(()) => println!("[PASS] {name}"),
            Err(reason) => {
                failed += 1;
                println!("[FAIL] {name}: {reason}");
            }
        }
    }
    println!("[DONE] passed={} failed={failed} skipped=0", checks.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn arguments(mut channel: &File, device: &str) -> Check {
    ensure!(sys::errno(&File::open(device)) == EBUSY, "a second one opens it");
    ensure!(sys::poll(channel, POLLIN | POLLOUT, 0) == POLLOUT, "a new channel can only be written");
    ensure!(sys::errno(&channel.read(&mut [0; HEAD + MOST_BYTES - 1])) == EINVAL, "read with little room");
    ensure!(sys::errno(&channel.write(&[0; HEAD - 1])) == EINVAL, "write of half a head");
    for kind in [0, received::CALL, received::LAPSED, u32::MAX] {
        ensure!(sys::errno(&channel.write(&message(kind, b""))) == EINVAL, "write of kind {kind}");
    }
    let longer = message(received::NOTICE, &[0; MOST_BYTES + 1]);
    ensure!(sys::errno(&channel.write(&longer)) == EINVAL, "a notice of more than a page");
    let whole = message(received::NOTICE, b"words");
    ensure!(sys::errno(&channel.write(&whole[..HEAD + 3])) == EINVAL, "half a notice");
    let strays = Header { kind: received::REPLY, token: 99, ..Header::default() };
    ensure!(sys::errno(&channel.write(strays.as_bytes())) == ENOENT, "a reply to no call");
    ensure!(sys::errno(&sys::ioctl_with(channel, RPC_CANCEL, &mut 99_u64)) == ENOENT, "cancel of no call");
    ensure!(sys::errno(&sys::ioctl(channel, 0x9200, 0)) == ENOTTY, "an unknown ioctl");
    let mut peer = Header::default();
    sys::ioctl_with(channel, RPC_PEER, &mut peer).map_err(|e| format!("RPC_PEER: {e}"))?;
    let flags = peer.sender & (peer::HOST | peer::PROTECTED | peer::MEASURED);
    ensure!(flags == 0 && peer.sender != 0 && peer.generation != 0, "the peer is {peer:?}");
    Ok(())
}

/// Of all sizes, answered, with who the answer is from.
fn calls(channel: &File, _: &str) -> Check {
    for n in 0..300_usize {
        let body: Vec<u8> = (0..n * 31 % (MOST_BYTES + 1)).map(|i| (i ^ n) as u8).collect();
        let token = call(channel, &body).map_err(|e| format!("call {n}: {e}"))?;
        if n % 2 == 0 {
            ensure!(sys::poll(channel, POLLIN, PATIENCE) == POLLIN, "no reply to call {n}");
        }
        let (head, reply) = read(channel)?;
        ensure!((head.kind, head.token) == (received::REPLY, token), "call {n}: {head:?}");
        ensure!(reply == body, "call {n} comes back changed");
        ensure!(head.sender != 0 && head.sender & peer::HOST == 0, "the answer is from {:#x}", head.sender);
    }
    Ok(())
}

fn many_at_once(mut channel: &File, _: &str) -> Check {
    let tokens: Vec<_> =
        (0..SLOTS as u8).map(|n| call(channel, &[LATER, &[n]].concat()).unwrap_or(0)).collect();
    ensure!(!tokens.contains(&0), "{tokens:?}");
    ensure!(sys::errno(&call(channel, b"?")) == EAGAIN, "a call without room");
    ensure!(sys::poll(channel, POLLIN | POLLOUT, 0) & POLLIN == 0, "something to read");
    sys::nonblocking(channel);
    ensure!(sys::errno(&channel.read(&mut [0; HEAD + MOST_BYTES])) == EAGAIN, "nothing to read");
    ensure!(sys::errno(&channel.write(&message(received::NOTICE, b"go"))) == EAGAIN, "a notice without room");
    sys::blocking(channel);
    // One goes, so there is room to say that the others may be answered.
    let mut first = tokens[0];
    sys::ioctl_with(channel, RPC_CANCEL, &mut first).map_err(|e| format!("cancel: {e}"))?;
    while channel.write(&message(received::NOTICE, b"go")).is_err() {}
    let mut left = tokens[1..].to_vec();
    let mut notices = 0;
    while !left.is_empty() || notices == 0 {
        let (head, body) = read(channel)?;
        if head.kind == received::NOTICE {
            notices += 1;
            continue;
        }
        let n = tokens.iter().position(|token| *token == head.token);
        ensure!(body.last().map(|n| usize::from(*n)) == n, "{head:?} {body:?}");
        left.retain(|token| *token != head.token);
    }
    ensure!(sys::poll(channel, POLLIN | POLLOUT, 0) == POLLOUT, "more to read, or no room");
    Ok(())
}

/// As fast as they go: who writes waits for room.
fn notices(channel: &File, _: &str) -> Check {
    const COUNT: u8 = 100;
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let mut channel = channel;
            (0..COUNT).all(|n| channel.write(&message(received::NOTICE, &[n])).is_ok())
        });
        for n in 0..COUNT {
            let (head, body) = read(channel)?;
            ensure!(
                (head.kind, body.as_slice()) == (received::NOTICE, &[n][..]),
                "notice {n}: {head:?} {body:?}"
            );
        }
        ensure!(writer.join().unwrap_or(false), "a notice is not sent");
        Ok(())
    })
}

/// That a call has lapsed wakes those who wait: by poll, and by a read.
fn deadlines(channel: &File, _: &str) -> Check {
    for polls in [true, false] {
        let start = Instant::now();
        let long = call_for(channel, NEVER, 60_000_000).map_err(|e| format!("call: {e}"))?;
        let token = call_for(channel, NEVER, 300_000).map_err(|e| format!("call: {e}"))?;
        if polls {
            ensure!(sys::poll(channel, POLLIN, PATIENCE) == POLLIN, "nobody is woken at the deadline");
        }
        let (head, _) = read(channel)?;
        ensure!((head.kind, head.token) == (received::LAPSED, token), "{head:?}");
        let took = start.elapsed();
        ensure!(took >= Duration::from_millis(300), "it has lapsed after {took:?}");
        ensure!(took < Duration::from_secs(30), "it has lapsed after {took:?} only");
        let mut long = long;
        sys::ioctl_with(channel, RPC_CANCEL, &mut long).map_err(|e| format!("cancel: {e}"))?;
    }
    // Answered in time, and nothing comes later.
    let token = call_for(channel, b"soon", 2_000_000).map_err(|e| format!("call: {e}"))?;
    let (head, _) = read(channel)?;
    ensure!((head.kind, head.token) == (received::REPLY, token), "{head:?}");
    ensure!(sys::poll(channel, POLLIN, 2500) == 0, "something comes behind the answer");
    Ok(())
}

fn cancels(channel: &File, _: &str) -> Check {
    let cancel = |token: u64| sys::errno(&sys::ioctl_with(channel, RPC_CANCEL, &mut { token }));
    let token = call(channel, LATER).map_err(|e| format!("call: {e}"))?;
    ensure!(cancel(token) == 0 && cancel(token) == ENOENT, "a call is cancelled once");
    // An answer that poll has found is not read any more.
    let token = call(channel, b"words").map_err(|e| format!("call: {e}"))?;
    ensure!(sys::poll(channel, POLLIN, PATIENCE) == POLLIN, "no answer");
    ensure!(cancel(token) == 0 && cancel(token) == ENOENT, "an answered call is cancelled once");
    ensure!(sys::poll(channel, POLLIN, 0) == 0, "the answer is still there");
    Ok(())
}

/// Whoever waits for an answer is told that there will be none, and so is who comes later.
fn peer_dies(mut channel: &File, device: &str) -> Check {
    call(channel, NEVER).map_err(|e| format!("call: {e}"))?;
    let poller = channel.try_clone().map_err(|e| e.to_string())?;
    let polled = thread::spawn(move || sys::poll(&poller, POLLIN, -1));
    println!("WAITS-FOR-THE-END");
    ensure!(channel.read(&mut [0; HEAD + MOST_BYTES]).is_ok_and(|n| n == 0), "who reads is not told");
    let polled = polled.join().map_err(|_| "the thread panicked")?;
    ensure!(polled & (POLLIN | POLLHUP) == POLLIN | POLLHUP, "who polls sees {polled:#x}");
    ensure!(sys::errno(&call(channel, b"?")) == libc::EPIPE, "a call behind the end");
    ensure!(
        sys::errno(&channel.write(&message(received::NOTICE, b"?"))) == libc::EPIPE,
        "a notice behind it"
    );
    ensure!(sys::errno(&File::open(device)) == EBUSY, "a second one opens what is at its end");
    Ok(())
}
