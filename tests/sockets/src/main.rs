// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Both ends of AF_VSOCK connections, and the queues of network interfaces, for tests in guests and hosts. What went well is a word in capitals, everything else an error.
//!
//! | command | what it does |
//! |---|---|
//! | `echo KIND PORT` | sends back what comes, to all at once, for good |
//! | `hang KIND PORT` | takes one byte of each connection; `b`: ends its own direction. Then nothing, for good |
//! | `receive KIND PORT` | checks what `send` sends, one connection after the other, and answers with the number of bytes |
//! | `send KIND CID PORT MIB` | so many MiB |
//! | `messages CID PORT` | messages of many lengths to `echo`: each comes back whole, and one that is too long is refused |
//! | `many KIND CID PORT COUNT` | so many connections to `echo` at once |
//! | `hold KIND CID PORT STATE` | a connection to `hang`, in a state, until that is ended by others |
//! | `ping KIND CID PORT NAME BYTES COUNT` | instructions of a way to `echo` and back |
//! | `channels INTERFACE [COUNT]` | pairs of queues of an interface; so many from here on |

mod interface;
mod vsock;

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use vsock::Kind;

/// What is read or written at once.
const PIECE: usize = 64 << 10;
/// A connection's buffer, in Linux: no message may be longer.
const LONGEST: usize = 256 << 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("sockets {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> io::Result<String> {
    vsock::many_files()?;
    match *words {
        ["echo", kind, port] => echo(vsock::listen(number(port)?, self::kind(kind)?)?),
        ["hang", kind, port] => hang(vsock::listen(number(port)?, self::kind(kind)?)?),
        ["receive", kind, port] => receive(vsock::listen(number(port)?, self::kind(kind)?)?),
        ["send", kind, cid, port, mib] => send(&mut connect(kind, cid, port)?, number(mib)?),
        ["messages", cid, port] => messages(&mut connect("seqpacket", cid, port)?),
        ["many", kind, cid, port, count] => many((0..number(count)?).map(|_| connect(kind, cid, port))),
        ["hold", kind, cid, port, state] => hold(kind, cid, port, state),
        ["ping", kind, cid, port, name, bytes, count] => {
            ping(&mut connect(kind, cid, port)?, name, number(bytes)? as usize, number(count)?)
        }
        ["channels", interface] => channels(interface),
        ["channels", interface, count] => {
            interface::set_channels(interface, number(count)?)?;
            channels(interface)
        }
        _ => Err(wrong("unknown command")),
    }
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

fn number(text: &str) -> io::Result<u32> {
    text.parse().map_err(|_| wrong(format!("{text:?} is no number")))
}

fn kind(text: &str) -> io::Result<Kind> {
    match text {
        "stream" => Ok(Kind::Stream),
        "seqpacket" => Ok(Kind::Messages),
        _ => Err(wrong(format!("{text:?} is no kind of socket"))),
    }
}

fn connect(kind: &str, cid: &str, port: &str) -> io::Result<File> {
    vsock::connect(number(cid)?, number(port)?, self::kind(kind)?)
}

fn channels(interface: &str) -> io::Result<String> {
    let (count, most) = interface::channels(interface)?;
    Ok(format!("CHANNELS-{count}-OF-{most}"))
}

fn echo(listener: File) -> io::Result<String> {
    let mut clients: Vec<File> = Vec::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        let mut ready = vsock::ready(std::iter::once(&listener).chain(&clients))?.into_iter();
        let more = ready.next() == Some(true);
        clients.retain_mut(|client| {
            ready.next() != Some(true)
                || client
                    .read(&mut buffer)
                    .is_ok_and(|len| len > 0 && client.write_all(&buffer[..len]).is_ok())
        });
        if more {
            clients.push(vsock::accept(&listener)?);
        }
    }
}

fn hang(listener: File) -> io::Result<String> {
    let mut clients = Vec::new();
    loop {
        let mut client = vsock::accept(&listener)?;
        let mut byte = [0];
        if client.read(&mut byte).is_ok() && byte == *b"b" {
            vsock::finish(&client)?;
        }
        clients.push(client);
    }
}

/// What is sent: numbers that depend on all before.
struct Numbers(u64);

impl Numbers {
    fn fill(&mut self, piece: &mut [u8]) {
        for bytes in piece.chunks_exact_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.copy_from_slice(&(self.0 ^ self.0 >> 29).to_le_bytes());
        }
    }
}

fn receive(listener: File) -> io::Result<String> {
    loop {
        let mut client = vsock::accept(&listener)?;
        let mut numbers = Numbers(1);
        let (mut got, mut right) = (vec![0; PIECE], vec![0; PIECE]);
        let mut total = 0_u64;
        'connection: loop {
            let mut have = 0;
            while have < PIECE {
                match client.read(&mut got[have..]) {
                    Ok(0) => break 'connection,
                    Ok(len) => have += len,
                    Err(error) => {
                        println!("after {total} bytes: {error}");
                        break 'connection;
                    }
                }
            }
            numbers.fill(&mut right);
            if got != right {
                println!("wrong bytes after {total}");
                break;
            }
            total += PIECE as u64;
        }
        let _ = client.write_all(&total.to_le_bytes());
        println!("RECEIVED-{total}");
    }
}

fn send(socket: &mut File, mib: u32) -> io::Result<String> {
    let mut numbers = Numbers(1);
    let mut piece = vec![0; PIECE];
    let begin = vsock::now();
    for _ in 0..u64::from(mib) * (1 << 20) / PIECE as u64 {
        numbers.fill(&mut piece);
        socket.write_all(&piece)?;
    }
    vsock::finish(socket)?;
    let mut answer = [0; 8];
    socket.read_exact(&mut answer)?;
    let total = u64::from_le_bytes(answer);
    if total != u64::from(mib) << 20 {
        return Err(wrong(format!("{total} bytes came right")));
    }
    Ok(format!("SENT-{mib} ns-per-mib={}", (vsock::now() - begin) / u64::from(mib)))
}

fn messages(socket: &mut File) -> io::Result<String> {
    let mut numbers = Numbers(2);
    let mut answer = vec![0; LONGEST];
    for len in [1, 2, 7, 100, 3_000, 4_096, 4_097, 10_000, 65_536, 65_537, 100_000, 200_000] {
        let mut message = vec![0; len];
        numbers.fill(&mut message);
        socket.write_all(&message)?;
        let got = socket.read(&mut answer)?;
        if answer[..got] != message {
            return Err(wrong(format!("of a message of {len} bytes {got} came back, or others")));
        }
    }
    // Several, which stay apart.
    for len in 1..=20 {
        socket.write_all(&vec![len; usize::from(len) * 100])?;
    }
    for len in 1..=20 {
        if socket.read(&mut answer)? != usize::from(len) * 100 || answer[0] != len {
            return Err(wrong("messages have grown together"));
        }
    }
    match socket.write(&vec![0; LONGEST + 1]) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok("MESSAGES".to_owned()),
        result => Err(wrong(format!("a message that is too long: {result:?}"))),
    }
}

fn many(connections: impl Iterator<Item = io::Result<File>>) -> io::Result<String> {
    let mut all = connections.collect::<io::Result<Vec<_>>>()?;
    for (number, socket) in (0_u64..).zip(&mut all) {
        socket.write_all(&number.to_le_bytes())?;
    }
    for (number, socket) in (0_u64..).zip(&mut all) {
        let mut answer = [0; 8];
        socket.read_exact(&mut answer)?;
        if answer != number.to_le_bytes() {
            return Err(wrong(format!("another's answer for {number}")));
        }
    }
    Ok(format!("MANY-{}", all.len()))
}

fn hold(kind: &str, cid: &str, port: &str, state: &str) -> io::Result<String> {
    let ended = |result: io::Result<usize>| match result {
        Ok(_) => Ok(format!("ENDED-{state}")),
        Err(error) => Ok(format!("ENDED-{state}: {error}")),
    };
    if state == "requested" {
        println!("STATE-{state}");
        return ended(connect(kind, cid, port).map(|_| 0));
    }
    let mut socket = connect(kind, cid, port)?;
    let mut byte = [0];
    socket.write_all(if state == "both" { b"b" } else { b"e" })?;
    match state {
        "established" => {}
        "shut" => vsock::finish(&socket)?,
        "both" => {
            vsock::finish(&socket)?;
            socket.read_exact(&mut byte).err().ok_or_else(|| wrong("it sends"))?;
            println!("STATE-{state}");
            // Nobody waits in this state; it must be possible to leave it.
            thread::sleep(Duration::from_secs(40));
            return ended(socket.write(&byte));
        }
        "full" => {
            // The first line comes when writing waits.
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(Duration::from_secs(5));
                    println!("STATE-{state}");
                });
                while socket.write_all(&[0; 4096]).is_ok() {}
            });
            return ended(Ok(0));
        }
        _ => return Err(wrong("unknown state")),
    }
    println!("STATE-{state}");
    ended(socket.read(&mut byte))
}

fn ping(socket: &mut File, name: &str, bytes: usize, count: u32) -> io::Result<String> {
    let (message, mut answer) = (vec![7; bytes], vec![0; bytes]);
    let mut times = Vec::with_capacity(count as usize);
    for _ in 0..count {
        let begin = vsock::now();
        socket.write_all(&message)?;
        socket.read_exact(&mut answer)?;
        times.push(vsock::now() - begin);
    }
    let (least, most) = (times.iter().min().unwrap_or(&0), times.iter().max().unwrap_or(&0));
    let mean = times.iter().sum::<u64>() / u64::from(count.max(1));
    Ok(format!("[BENCH] operation={name} instructions={mean} min={least} max={most} iterations={count}"))
}
