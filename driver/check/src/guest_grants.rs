// SPDX-License-Identifier: GPL-2.0-only
//! Memory that goes with calls, from a protected Linux guest with `gzvm-rpc.ko` (`lender DEVICE QUESTION`): to a key store, which
//! the question, in hexadecimal digits, asks for a signature of 5000 bytes. However a call ends, its memory is back: a VM has 32 loans at a time, and each way is gone more often.

use std::fs::File;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use gzvm_abi::ioctl::RPC_CANCEL;
use gzvm_abi::rpc::{Header, MOST_BYTES, SLOTS, received};
use libc::{EAGAIN, EFAULT, EINVAL, POLLIN, POLLOUT};

use crate::channels::{HEAD, read};
use crate::guest_channels::{self, Named, PATIENCE, open};
use crate::{Check, ensure, sys};

/// More than a VM may lend at a time.
const OFTEN: usize = 40;
const MOST_LENT: usize = 64 << 10;
/// `docs/abi.md`, "Channels as files in a Linux guest".
const RPC_CALL_WITH: u32 = 0xC058_92DD;

#[repr(C)]
struct With {
    from: u64,
    bytes: u64,
    head: Header,
    body: [u8; MOST_BYTES],
}
const _: () = assert!(size_of::<With>() == 16 + HEAD + MOST_BYTES);

const CHECKS: &[Named] = &[
    ("lent_arguments", arguments),
    ("lent_and_answered", answered),
    ("lent_and_cancelled", cancelled),
    ("lent_and_lapsed", lapsed),
    ("lent_without_room", without_room),
];

/// The checks, behind one that opens the device by itself.
pub fn lender(device: &str, question: &str) -> ExitCode {
    if let Err(reason) = left(device) {
        println!("[FAIL] lent_by_who_leaves: {reason}");
        return ExitCode::FAILURE;
    }
    println!("[PASS] lent_by_who_leaves");
    guest_channels::run(device, question, CHECKS)
}

/// A call that says `body`, and lapses in `time` µs: its token.
fn call_at(channel: &File, body: &[u8], from: u64, bytes: u64, time: u64) -> io::Result<u64> {
    let head = Header { kind: received::CALL, bytes: body.len() as u32, time, ..Header::default() };
    let mut with = With { from, bytes, head, body: [0; MOST_BYTES] };
    with.body[..body.len()].copy_from_slice(body);
    sys::ioctl_with(channel, RPC_CALL_WITH, &mut with).map(|_| with.head.token)
}

/// Once there is room: the place of a call that its service has taken and its caller has given up is free when the service has
/// heard of that.
fn call_when_room(channel: &File, body: &[u8], memory: &[u8], time: u64) -> io::Result<u64> {
    let (at, bytes) = (memory.as_ptr().expose_provenance() as u64, memory.len() as u64);
    loop {
        let called = call_at(channel, body, at, bytes, time);
        if sys::errno(&called) != EAGAIN || sys::poll(channel, POLLOUT, PATIENCE) != POLLOUT {
            return called;
        }
    }
}

fn call_with(channel: &File, memory: &[u8], time: u64) -> io::Result<u64> {
    call_when_room(channel, b"?", memory, time)
}

fn cancel(channel: &File, mut token: u64) -> Check {
    sys::ioctl_with(channel, RPC_CANCEL, &mut token).map(drop).map_err(|e| format!("cancel: {e}"))
}

fn arguments(channel: &File, _: &str) -> Check {
    let memory = [7; MOST_LENT + 1];
    for bytes in [0, MOST_LENT + 1] {
        let errno = sys::errno(&call_with(channel, &memory[..bytes], 0));
        ensure!(errno == EINVAL, "{bytes} bytes: {errno}");
    }
    let at = memory.as_ptr().expose_provenance() as u64;
    for (from, bytes) in [(0, 1), (8, u64::MAX), (u64::MAX - 8, 4096), (at, u64::MAX), (at, 1 << 32)] {
        let errno = sys::errno(&call_at(channel, b"?", from, bytes, 0));
        ensure!(matches!(errno, EFAULT | EINVAL), "{bytes:#x} bytes at {from:#x}: {errno}");
    }
    for _ in 0..OFTEN {
        ensure!(sys::errno(&call_at(channel, b"?", 0, 4096, 0)) == EFAULT, "memory that is not there");
    }
    for (kind, bytes) in [(0, 3), (received::REPLY, 3), (received::NOTICE, 3), (received::CALL, 4097)] {
        let head = Header { kind, bytes, ..Header::default() };
        let mut with = With { from: at, bytes: 1, head, body: [0; MOST_BYTES] };
        let errno = sys::errno(&sys::ioctl_with(channel, RPC_CALL_WITH, &mut with));
        ensure!(errno == EINVAL, "kind {kind} of {bytes} bytes: {errno}");
    }
    Ok(())
}

fn answered(channel: &File, _: &str) -> Check {
    let memory = [7; MOST_LENT];
    for n in 0..OFTEN {
        let bytes = [1, 4095, 4096, 4097, MOST_LENT][n % 5];
        let token = call_with(channel, &memory[..bytes], 0).map_err(|e| format!("call {n}: {e}"))?;
        ensure!(sys::poll(channel, POLLIN, PATIENCE) == POLLIN, "no reply to call {n}");
        let (head, _) = read(channel)?;
        ensure!((head.kind, head.token) == (received::REPLY, token), "call {n}: {head:?}");
    }
    Ok(())
}

fn cancelled(channel: &File, _: &str) -> Check {
    for n in 0..OFTEN {
        let token = call_with(channel, &[7; 5000], 0).map_err(|e| format!("call {n}: {e}"))?;
        if n % 2 == 0 {
            // The reply has come, as far as the hypervisor is concerned.
            ensure!(sys::poll(channel, POLLIN, PATIENCE) == POLLIN, "no reply to call {n}");
        }
        cancel(channel, token)?;
    }
    Ok(())
}

fn lapsed(channel: &File, _: &str) -> Check {
    let mut late = 0;
    for n in 0..OFTEN {
        let token = call_with(channel, &[7; 5000], 1).map_err(|e| format!("call {n}: {e}"))?;
        let (head, _) = read(channel)?;
        ensure!(head.token == token, "call {n}: {head:?}");
        late += usize::from(head.kind == received::LAPSED);
    }
    ensure!(late > 0, "everything is answered within a microsecond");
    Ok(())
}

/// The service has looked at what one call lent before it answered, though nobody has received the answer.
fn without_room(channel: &File, question: &str) -> Check {
    let digits =
        question.as_bytes().chunks(2).map(|two| u8::from_str_radix(str::from_utf8(two).unwrap_or(""), 16));
    let question = digits.collect::<Result<Vec<_>, _>>().map_err(|e| format!("{question}: {e}"))?;
    let memory = [7; 5000];
    let at = memory.as_ptr().expose_provenance() as u64;
    for n in 0..SLOTS {
        call_when_room(channel, &question, &memory, 0).map_err(|e| format!("call {n}: {e}"))?;
    }
    for _ in 0..OFTEN {
        let errno = sys::errno(&call_at(channel, b"?", at, 5000, 0));
        ensure!(errno == EAGAIN, "a call without room: {errno}");
    }
    // All are answered by then.
    std::thread::sleep(Duration::from_secs(2));
    for n in 0..SLOTS {
        let (head, answer) = read(channel)?;
        let signed = answer.len() == 66 && answer[..2] == [0, 3];
        ensure!(head.kind == received::REPLY && signed, "reply {n}: {head:?} {answer:x?}");
    }
    Ok(())
}

/// The file is closed with calls under way.
fn left(device: &str) -> Check {
    for n in 0..OFTEN {
        let channel = open(device)?;
        for _ in 0..SLOTS {
            call_with(&channel, &[7; 5000], 0).map_err(|e| format!("file {n}: {e}"))?;
        }
    }
    Ok(())
}
