// SPDX-License-Identifier: GPL-2.0-only
//! Channels: the host's end as a file, and two VMs whose channel goes. `calls COUNT BYTES` makes many calls of a guest, and tells what
//! one takes.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use gzvm_abi::ioctl::{RPC_CALL, RPC_CANCEL, RPC_CONNECT, RPC_POLICY, RpcConnect, RpcPolicy};
use gzvm_abi::rpc::{Header, MOST_BYTES, SLOTS, received, with};
use libc::{EAGAIN, EINVAL, ENOENT, POLLHUP, POLLIN, POLLOUT};
use zerocopy::{FromBytes, IntoBytes};

use crate::machine::{DEVICE, Machine, RAM, Run};
use crate::sys;
use crate::{Check, ensure};

pub const HEAD: usize = size_of::<Header>();
const SPI: u32 = 5;
/// Where the server has its messages.
const BUFFER: u64 = RAM + 0x10_0000;
/// Longest wait for a guest, in ms.
const PATIENCE: i32 = 20_000;

/// Enables SPI 5, opens port 1, and stores the status of that at x22. Answers each call with what it says, sleeps when there is none;
/// stores the status that ends this at x22, too.
#[rustfmt::skip]
const ECHO: &[u32] = &[
    0xD2A7_FFEA, // mov x10, #0x3FFF0000: GICD
    0x5280_024B, 0xB900_014B, // CTLR = ARE, group 1
    0x1280_000B, 0xB900_854B, // IGROUPR1 = all
    0x5280_040B, 0xB901_054B, // ISENABLER1 = SPI 5
    0xD2A7_FF6C, 0xB900_159F, // mov x12, #0x3FFB0000: GICR; WAKER = 0
    0xD280_002B, 0xD518_CCAB, 0xD503_3FDF, // ICC_SRE_EL1 = 1
    0xD280_1FEB, 0xD518_460B, // ICC_PMR_EL1 = 0xFF
    0xD280_002B, 0xD518_CCEB, 0xD503_3FDF, // ICC_IGRPEN1_EL1 = 1
    0x529E_0220, 0x72B8_C000, 0xD280_0021, 0xD400_0002, 0xAA01_03F4, // OPEN(1); mov x20, x1
    0xB900_02C0, // str w0, [x22]
    0x529E_02C0, 0x72B8_C000, // 1: RECEIVE(x20, x21, 4096)
    0xAA14_03E1, 0xAA15_03E2, 0xD282_0003, 0xD400_0002,
    0xB100_141F, 0x5400_0140, 0xB500_01A0, // AGAIN: 2f; other than 0: 3f
    0xD360_FC23, 0xAA02_03E4, // lsr x3, x1, #32; mov x4, x2
    0x529E_02A0, 0x72B8_C000, 0xAA14_03E1, 0xAA15_03E2, 0xD400_0002, // REPLY(x20, x21, x3, x4)
    0x17FF_FFF0, // b 1b
    0xD503_207F, 0xD538_CC04, 0xD518_CC24, 0x17FF_FFEC, // 2: wfi; mrs x4, icc_iar1_el1; msr icc_eoir1_el1, x4; b 1b
    0xB900_02C0, 0x17FF_FFFF, // 3: str w0, [x22]; b 3b
];

fn server() -> Result<Machine, String> {
    let machine = Machine::new(ECHO, &[(21, BUFFER), (22, DEVICE)])?;
    let with = (with::HOST | with::PLAIN) as u32;
    let mut policy = RpcPolicy { with, channels: 4, spi: SPI, reserved: 0 };
    sys::ioctl_with(&machine.vm, RPC_POLICY, &mut policy).map_err(|e| format!("RPC_POLICY: {e}"))?;
    Ok(machine)
}

fn connect(vm: &OwnedFd, peer: i32) -> Result<File, String> {
    let mut request = RpcConnect { port: 1, peer, peer_port: 1, reserved: 0 };
    let fd = sys::ioctl_with(vm, RPC_CONNECT, &mut request).map_err(|e| format!("RPC_CONNECT: {e}"))?;
    Ok(sys::owned(fd).into())
}

/// A head, and what it says behind it.
pub fn message(kind: u32, body: &[u8]) -> Vec<u8> {
    let head = Header { kind, bytes: body.len() as u32, ..Header::default() };
    [head.as_bytes(), body].concat()
}

/// A call without a deadline: its token.
pub fn call(channel: &File, body: &[u8]) -> std::io::Result<u64> {
    call_for(channel, body, 0)
}

/// A call that lapses in `time` µs.
pub fn call_for(channel: &File, body: &[u8], time: u64) -> std::io::Result<u64> {
    let mut bytes = [0; HEAD + MOST_BYTES];
    let head = Header { kind: received::CALL, bytes: body.len() as u32, time, ..Header::default() };
    let message = [head.as_bytes(), body].concat();
    bytes[..message.len()].copy_from_slice(&message);
    sys::ioctl_with(channel, RPC_CALL, &mut bytes)?;
    let head = Header::read_from_prefix(&bytes).map(|(head, _)| head);
    Ok(head.map_or(0, |head| head.token))
}

/// What comes next.
pub fn read(mut channel: &File) -> Result<(Header, Vec<u8>), String> {
    let mut bytes = [0; HEAD + MOST_BYTES];
    let n = channel.read(&mut bytes).map_err(|e| format!("read: {e}"))?;
    let (head, body) = Header::read_from_prefix(&bytes[..n]).map_err(|_| format!("{n} bytes are read"))?;
    Ok((head, body.to_vec()))
}

/// RUN on a thread of its own up to the store at the end: the status. `opened` is called once the guest has opened its port.
fn serve(machine: &Machine, opened: impl FnOnce()) -> Result<i32, String> {
    let status = || {
        let mmio = Run::new().mmio(&machine.vcpu)?;
        ensure!((mmio.phys_addr, mmio.is_write) == (DEVICE, 1), "{mmio:?}");
        Ok(mmio.data.first_chunk().map_or(0, |word| i32::from_le_bytes(*word)))
    };
    let open = status()?;
    ensure!(open == 0, "OPEN gives {open}");
    opened();
    status()
}

/// Calls of all sizes, answered by a guest that sleeps between them; many at once; then the host goes.
pub fn with_the_host() -> Check {
    let machine = server()?;
    let channel = connect(&machine.vm, -1)?;
    ensure!(sys::errno(&(&channel).write(&message(received::CALL, b""))) == EINVAL, "write of a call");
    ensure!(sys::errno(&(&channel).write(&[0; HEAD - 1])) == EINVAL, "write of half a head");
    ensure!(sys::errno(&(&channel).read(&mut [0; HEAD])) == EINVAL, "read with little room");
    ensure!(
        sys::errno(&sys::ioctl_with(&channel, RPC_CANCEL, &mut 99_u64)) == ENOENT,
        "cancelled what is not"
    );
    ensure!(sys::poll(&channel, POLLIN | POLLOUT, 0) == POLLOUT, "a new channel can only be written");
    thread::scope(|scope| {
        let guest = scope.spawn(|| serve(&machine, || ()));
        let talk = || {
            for n in 0..200_usize {
                let body: Vec<u8> = (0..n * 31 % (MOST_BYTES + 1)).map(|i| (i ^ n) as u8).collect();
                let token = call(&channel, &body).map_err(|e| format!("call {n}: {e}"))?;
                ensure!(sys::poll(&channel, POLLIN, PATIENCE) == POLLIN, "no reply to call {n}");
                let (head, reply) = read(&channel)?;
                ensure!((head.kind, head.token) == (received::REPLY, token), "call {n}: {head:?}");
                ensure!(reply == body, "call {n} comes back changed");
            }
            // As many as there is room for, by reads that wait.
            let tokens: Vec<_> = (0..SLOTS as u8).map(|n| call(&channel, &[n]).unwrap_or(0)).collect();
            for _ in &tokens {
                let (head, body) = read(&channel)?;
                let n = tokens.iter().position(|token| *token == head.token);
                ensure!(n == body.first().map(|n| usize::from(*n)), "{head:?} {body:?}");
            }
            sys::nonblocking(&channel);
            ensure!(sys::errno(&(&channel).read(&mut [0; HEAD + MOST_BYTES])) == EAGAIN, "nothing to read");
            Ok(())
        };
        let talked = talk();
        drop(channel);
        let status = guest.join().map_err(|_| "the guest's thread panicked")?;
        talked?;
        ensure!(status? == -6, "the guest is not told that the host has gone");
        Ok(())
    })
}

/// The body of call `n`: no two in a row are the same.
fn words(n: u64, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at as u64 ^ n.wrapping_mul(0x9E37_79B9)) as u8).collect()
}

/// As many calls of a guest, one after the other, each answer checked; the least, the mean and the most ns of one.
fn calls(count: u64, bytes: usize) -> Result<[u64; 3], String> {
    ensure!(count > 0 && bytes <= MOST_BYTES, "{count} calls of {bytes} bytes");
    let machine = server()?;
    let channel = connect(&machine.vm, -1)?;
    thread::scope(|scope| {
        let guest = scope.spawn(|| serve(&machine, || ()));
        let talk = || {
            let (mut least, mut sum, mut most) = (u64::MAX, 0, 0);
            for n in 0..count {
                let body = words(n, bytes);
                let start = Instant::now();
                let token = call(&channel, &body).map_err(|e| format!("call {n}: {e}"))?;
                let (head, reply) = read(&channel)?;
                let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                (least, sum, most) = (least.min(took), sum + took, most.max(took));
                ensure!((head.kind, head.token) == (received::REPLY, token), "call {n}: {head:?}");
                ensure!(reply == body, "call {n} comes back changed");
            }
            Ok([least, sum / count, most])
        };
        let talked = talk();
        drop(channel);
        let status = guest.join().map_err(|_| "the guest's thread panicked")?;
        let times = talked?;
        ensure!(status? == -6, "the guest is not told that the host has gone");
        Ok(times)
    })
}

/// Thousands of calls, in a row; `calls 1000000 BYTES` makes more.
pub fn many_calls() -> Check {
    calls(5000, 8).map(drop)
}

/// A benchmark's line; where a nanosecond is an instruction (QEMU's `-icount`) it tells instructions.
pub fn main(count: &str, bytes: &str) -> ExitCode {
    let made = || {
        let count = count.parse().map_err(|_| "no number of calls")?;
        let bytes = bytes.parse().map_err(|_| "no number of bytes")?;
        Ok::<_, String>((count, bytes, calls(count, bytes)?))
    };
    match made() {
        Ok((count, bytes, [least, mean, most])) => {
            let what = if bytes == 0 { "null".to_owned() } else { bytes.to_string() };
            println!(
                "[BENCH] operation=rpc-host-{what} instructions={mean} min={least} max={most} iterations={count}"
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("calls: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The guest ends, and who polls is told; with calls under way, and room gone.
pub fn hangs_up() -> Check {
    let machine = server()?;
    let channel = connect(&machine.vm, -1)?;
    sys::nonblocking(&channel);
    for n in 0..SLOTS {
        call(&channel, b"?").map_err(|e| format!("call {n}: {e}"))?;
    }
    ensure!(sys::errno(&call(&channel, b"?")) == EAGAIN, "a call without room");
    ensure!(sys::poll(&channel, POLLIN | POLLOUT, 0) == 0, "without room");
    let poller = channel.try_clone().map_err(|e| e.to_string())?;
    let polled = thread::spawn(move || sys::poll(&poller, POLLIN, PATIENCE));
    drop(machine);
    let polled = polled.join().map_err(|_| "the thread panicked")?;
    ensure!(polled & POLLHUP != 0, "who polls sees {polled:#x}");
    ensure!((&channel).read(&mut [0; HEAD + MOST_BYTES]).is_ok_and(|n| n == 0), "read behind the end");
    ensure!(call(&channel, b"?").is_err(), "a call behind the end");
    Ok(())
}

/// Two VMs sleep at their ends. When the channel's file goes, both are woken and told.
pub fn between_vms() -> Check {
    let (a, b) = (server()?, server()?);
    let channel = connect(&a.vm, b.vm.as_raw_fd())?;
    ensure!(sys::errno(&(&channel).read(&mut [0; HEAD + MOST_BYTES])) != 0, "the host reads what VMs say");
    ensure!(connect(&a.vm, a.vm.as_raw_fd()).is_err(), "a channel of a VM with itself");
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let guests = [&a, &b].map(|machine| {
            let tell = tell.clone();
            scope.spawn(move || serve(machine, || tell.send(()).unwrap_or_default()))
        });
        for _ in &guests {
            told.recv_timeout(Duration::from_millis(PATIENCE as u64)).map_err(|_| "a guest opens no port")?;
        }
        // Most likely they sleep by then.
        thread::sleep(Duration::from_millis(200));
        drop(channel);
        for guest in guests {
            let status = guest.join().map_err(|_| "a guest's thread panicked")?;
            ensure!(status? == -6, "a guest is not told that its channel has gone");
        }
        Ok(())
    })
}
