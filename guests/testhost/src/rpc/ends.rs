// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Endpoints of VMs and of the host.

use gzvm_abi::hypercall::Function;
use gzvm_abi::rpc::{self, Header, act, received, with};
use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::check_eq;
use gzvm_guest_kit::hypercall::{Reply, call};

use crate::lending::guest::Guest;
use crate::lending::program::Operation;
use crate::pages;
use crate::programs::{RAM, SPI};
use crate::vm::must;

pub const EVERYBODY: u64 = with::HOST | with::PLAIN | with::PROTECTED;
/// Where guests have what they send, and put what they receive.
pub const OUT: u64 = RAM + 0x8000;
pub const IN: u64 = RAM + 0x9000;

/// Where guests have further arguments and results of a call ([`Operation::CallFully`]).
const X3: u64 = RAM + 0x3000;
const X5: u64 = X3 + 56;
const X10: u64 = X3 + 64;

/// What RECEIVE told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Got {
    pub status: i64,
    pub kind: u32,
    pub more: bool,
    pub bytes: u64,
    pub token: u64,
    pub time: u64,
    /// VM id and flags, generation, measurement.
    pub sender: [u64; 6],
    /// What goes with a call: loan, pages, rights.
    pub grant: Option<[u64; 3]>,
}

/// A VM at its end of a channel.
pub struct End {
    pub guest: Guest,
    pub handle: u64,
}

/// A VM that may have channels with everybody.
pub fn guest(protected: bool) -> Result<Guest, Verdict> {
    let guest = if protected { Guest::new()? } else { Guest::plain()? };
    must(set_policy(&guest, EVERYBODY, 16), "RPC_POLICY")?;
    Ok(guest)
}

pub fn set_policy(guest: &Guest, with: u64, most: u64) -> Reply {
    call(Function::RpcPolicy, &[guest.id(), SPI, with, most])
}

/// As PEER tells it of a VM that has run: id and flags, and the measurement.
pub fn identity(guest: &Guest, protected: bool) -> Result<[u64; 5], Verdict> {
    if !protected {
        return Ok([guest.id(), 0, 0, 0, 0]);
    }
    let half = |half| must(call(Function::Measurement, &[guest.id(), half]), "MEASUREMENT");
    let ([a, b, _], [c, d, _]) = (half(0)?.values, half(1)?.values);
    let flags = u64::from(rpc::peer::PROTECTED | rpc::peer::MEASURED);
    Ok([guest.id() | flags, a, b, c, d])
}

pub fn connect(a: &Guest, port: u64, b: Option<&Guest>, other: u64) -> Reply {
    call(Function::RpcConnect, &[a.id(), port, b.map_or(0, Guest::id), other])
}

/// Two VMs and their channel.
pub fn pair(protected: [bool; 2]) -> Result<(End, End), Verdict> {
    let [a, b] = protected.map(guest);
    let (a, b) = (a?, b?);
    must(connect(&a, 1, Some(&b), 2), "RPC_CONNECT")?;
    Ok((End::open(a, 1)?, End::open(b, 2)?))
}

impl End {
    pub fn open(mut guest: Guest, port: u64) -> Result<Self, Verdict> {
        let [status, handle, ..] = guest.call(rpc::OPEN, [port, 0, 0, 0])?;
        check_eq!(status, 0, "OPEN of port {port}");
        Ok(Self { guest, handle })
    }

    /// A call of the interface with the endpoint in x1; x0 and x1.
    pub fn ask(&mut self, function: u32, args: [u64; 3]) -> Result<(i64, u64), Verdict> {
        let [x2, x3, x4] = args;
        let [status, x1, ..] = self.guest.call(function, [self.handle, x2, x3, x4])?;
        Ok((status as i64, x1))
    }

    /// Sends `bytes` bytes, of which the first eight are `word`.
    pub fn send(&mut self, function: u32, word: u64, bytes: u64, x4: u64) -> Result<(i64, u64), Verdict> {
        self.guest.store(OUT, word)?;
        self.ask(function, [OUT, bytes, x4])
    }

    /// A call that has to succeed; its token.
    pub fn call(&mut self, word: u64, time: u64) -> Result<u64, Verdict> {
        let (status, token) = self.send(rpc::CALL, word, 8, time)?;
        check_eq!(status, 0, "CALL");
        Ok(token)
    }

    /// A call with a loan; status and token.
    pub fn call_with(&mut self, word: u64, time: u64, loan: u64) -> Result<(i64, u64), Verdict> {
        self.guest.store(OUT, word)?;
        self.guest.store(X5, loan)?;
        let call = [rpc::CALL_WITH.into(), self.handle, OUT, 8, time];
        let [status, token, _, esr] = self.guest.ask(Operation::CallFully, call)?;
        check_eq!(esr, 0, "exception at CALL_WITH");
        Ok((status as i64, token))
    }

    pub fn reply(&mut self, word: u64, token: u64) -> Result<i64, Verdict> {
        Ok(self.send(rpc::REPLY, word, 8, token)?.0)
    }

    pub fn receive(&mut self) -> Result<Got, Verdict> {
        self.receive_at(IN, 4096)
    }

    pub fn receive_at(&mut self, at: u64, room: u64) -> Result<Got, Verdict> {
        let call = [rpc::RECEIVE.into(), self.handle, at, room, 0];
        let [status, what, token, esr] = self.guest.ask(Operation::CallFully, call)?;
        check_eq!(esr, 0, "exception at RECEIVE");
        let mut rest = [0; 7];
        for (n, word) in (0..).zip(&mut rest) {
            *word = self.guest.load(X3 + 8 * n)?;
        }
        let [time, sender @ ..] = rest;
        if status as i64 != rpc::status::SUCCESS && status as i64 != rpc::status::TOO_SMALL {
            return Ok(Got { status: status as i64, ..Got::default() });
        }
        let mut grant = None;
        if what & received::GRANT != 0 {
            grant = Some([self.guest.load(X10)?, self.guest.load(X10 + 8)?, self.guest.load(X10 + 16)?]);
        }
        Ok(Got {
            grant,
            status: status as i64,
            kind: what as u8 as u32,
            more: what & received::MORE != 0,
            bytes: what >> received::BYTES_SHIFT,
            token,
            time,
            sender,
        })
    }

    /// What is received next, with its first word.
    pub fn expect(&mut self, kind: u32, word: u64) -> Result<u64, Verdict> {
        let got = self.receive()?;
        check_eq!((got.status, got.kind, got.bytes), (0, kind, 8), "what is received");
        check_eq!(self.guest.load(IN)?, word, "its first word");
        Ok(got.token)
    }

    /// There is nothing more.
    pub fn expect_nothing(&mut self, status: i64) -> Outcome {
        check_eq!(self.receive()?.status, status, "status of RECEIVE");
        Ok(())
    }

    pub fn destroy(self) -> Outcome {
        self.guest.destroy()
    }
}

/// The host at its end of a channel.
pub struct HostEnd {
    pub handle: u64,
    area: u64,
}

/// A VM and the host's end of its channel.
pub fn with_host(protected: bool) -> Result<(End, HostEnd), Verdict> {
    let guest = guest(protected)?;
    let host = HostEnd::connect(&guest, 1)?;
    Ok((End::open(guest, 1)?, host))
}

impl HostEnd {
    pub fn connect(guest: &Guest, port: u64) -> Result<Self, Verdict> {
        let handle = must(connect(guest, port, None, 9), "RPC_CONNECT to the host")?.values[0];
        Ok(Self { handle, area: pages::take(2, 4096) })
    }

    pub fn act(&self, what: u64, x3: u64) -> Reply {
        call(Function::RpcMessage, &[self.handle, what, x3])
    }

    /// Token, vCPUs to wake, status.
    pub fn send(&self, kind: u32, word: u64, bytes: u32, token: u64) -> Result<(u64, u64, i64), Verdict> {
        pages::put(self.area, Header { kind, bytes, token, ..Header::default() });
        pages::write(self.area + rpc::BODY, word);
        let [token, vcpus, status] = must(self.act(act::SEND, self.area), "RPC_MESSAGE send")?.values;
        Ok((token, vcpus, status as i64))
    }

    /// The head, and the first word; or the status.
    pub fn receive(&self) -> Result<Result<(Header, u64), i64>, Verdict> {
        let [_, _, status] = must(self.act(act::RECEIVE, self.area), "RPC_MESSAGE receive")?.values;
        Ok(match status as i64 {
            0 => Ok((pages::get(self.area), pages::read(self.area + rpc::BODY))),
            status => Err(status),
        })
    }

    pub fn expect(&self, kind: u32, word: u64) -> Result<Header, Verdict> {
        match self.receive()? {
            Ok((header, first)) => {
                check_eq!((header.kind, header.bytes, first), (kind, 8, word), "what the host receives");
                Ok(header)
            }
            Err(status) => Err(Verdict::fail(format_args!("the host receives nothing: {status}"))),
        }
    }

    pub fn close(&self) -> Reply {
        call(Function::RpcClose, &[self.handle])
    }
}
