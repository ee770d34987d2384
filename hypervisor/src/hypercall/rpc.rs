// SPDX-License-Identifier: Apache-2.0 OR MIT
//! RPC_POLICY, RPC_CONNECT, RPC_MESSAGE, RPC_CLOSE: channels for VMs, and the host's end of them.

use gzvm_abi::MAX_SPIS;
use gzvm_abi::rpc::{AREA_SIZE, BODY, Header, MOST_BYTES, MOST_CHANNELS, act, received, status, with};
use gzvm_core::addr::{IntId, PAGE_SIZE, Pa};
use gzvm_core::rpc::channel::{Handle, Who};
use gzvm_core::vm::lifecycle::State;
use zerocopy::{FromZeros, IntoBytes};

use super::{Args, Error, Results};
use crate::guest::registry;
use crate::guest::rpc::{self, Failure, NoChannel, Policy, Received, Sending};
use crate::mem::host;
use crate::platform;

impl From<NoChannel> for Error {
    fn from(e: NoChannel) -> Self {
        match e {
            NoChannel::Refused => Self::Invalid,
            NoChannel::NoMemory => Self::NoMemory,
        }
    }
}

/// RPC_POLICY: x1 = VM, x2 = SPI, x3 = with whom, x4 = channels. Once, before the VM runs. x1 = 0 only asks.
pub fn set_policy([id, spi, with, most, ..]: Args) -> Result<Results, Error> {
    const ALL: u64 = with::HOST | with::PLAIN | with::PROTECTED;
    if id != 0 {
        let known = with != 0 && with & !ALL == 0 && (1..=MOST_CHANNELS).contains(&most);
        if !known || spi >= MAX_SPIS as u64 {
            return Err(Error::Invalid);
        }
        let doorbell = IntId((spi as u32).wrapping_add(32));
        let vm = registry::get(id)?;
        let vm = vm.vm().ok_or(Error::Invalid)?;
        let policy = Policy { with: with as u8, most: most as u8, doorbell };
        if vm.life.state() != State::Created || !vm.rpc.set_policy(policy) {
            return Err(Error::Invalid);
        }
    }
    Ok([MOST_CHANNELS, 0, 0])
}

/// RPC_CONNECT: x1 = VM, x2 = port, x3 = other VM or 0 for the host, x4 = its port.
pub fn connect([a, port_a, b, port_b, ..]: Args) -> Result<Results, Error> {
    let port = |port| u32::try_from(port).map_err(|_| Error::Invalid);
    let (port_a, port_b) = (port(port_a)?, port(port_b)?);
    let first = registry::get(a)?;
    let second = if b == 0 { None } else { Some(registry::get(b)?) };
    let (handle, [wake_a, wake_b]) = rpc::connect((&first, port_a), (second.as_ref(), port_b))?;
    Ok([handle.0, wake_a, wake_b])
}

/// RPC_CLOSE: x1 = handle. Results: the vCPUs to wake.
pub fn close([handle, ..]: Args) -> Result<Results, Error> {
    let [a, b] = rpc::sever(Handle(handle)).map_err(|_| Error::Invalid)?;
    Ok([a, b, 0])
}

/// RPC_MESSAGE: x1 = handle of the host's, x2 = what to do, x3 = PA of two pages, or token.
pub fn message([handle, what, x3, ..]: Args) -> Result<Results, Error> {
    let handle = Handle(handle);
    let (done, told) = match what {
        act::SEND => send(handle, area(x3)?)?,
        act::RECEIVE => receive(handle, area(x3)?),
        act::CANCEL => rpc::at(handle, Who::Host, |line, side| line.cancel(side, x3).map(|()| x3)),
        _ => return Err(Error::Invalid),
    };
    let (token, status) = match done {
        Ok(token) => (token, status::SUCCESS),
        // Its pages are not the host's.
        Err(Failure::Absent(_)) => return Err(Error::Fault),
        Err(Failure::Invalid) => return Err(Error::Invalid),
        Err(e) => (0, e.status()),
    };
    Ok([token, told.vcpus(), status as u64])
}

/// The place of the host's two pages.
fn area(pa: u64) -> Result<Pa, Error> {
    let pa = Pa(pa);
    let fits = pa.is_aligned(PAGE_SIZE) && pa.checked_add(AREA_SIZE).is_some();
    if fits { Ok(pa) } else { Err(Error::Fault) }
}

type Done = (Result<u64, Failure>, rpc::Told);

fn send(handle: Handle, area: Pa) -> Result<Done, Error> {
    let mut header = Header::new_zeroed();
    host::read(&platform::ownership().lock(), area, header.as_mut_bytes()).map_err(|_| Error::Fault)?;
    let what = match header.kind {
        received::CALL => Sending::Call(header.time, None),
        received::REPLY => Sending::Reply(header.token),
        received::NOTICE => Sending::Notice,
        _ => return Err(Error::Invalid),
    };
    let bytes = usize::try_from(header.bytes).ok().filter(|n| *n <= MOST_BYTES).ok_or(Error::Invalid)?;
    let body = Pa(area.0.wrapping_add(BODY));
    Ok(rpc::at(handle, Who::Host, |line, side| {
        line.send(side, what, bytes, |to| {
            host::read(&platform::ownership().lock(), body, to).map_err(|_| not_the_hosts(area))
        })
    }))
}

fn receive(handle: Handle, area: Pa) -> Done {
    let body = Pa(area.0.wrapping_add(BODY));
    let write = |message: &Received, from: &[u8]| {
        let header = Header {
            kind: message.kind,
            bytes: message.bytes as u32,
            token: message.token,
            time: message.time,
            sender: message.sender.id_and_flags,
            more: message.more.into(),
            generation: message.sender.generation,
            measurement: message.sender.measurement,
        };
        let ownership = platform::ownership().lock();
        host::write(&ownership, area, header.as_bytes()).map_err(|_| not_the_hosts(area))?;
        if from.is_empty() {
            return Ok(());
        }
        host::write(&ownership, body, from).map_err(|_| not_the_hosts(area))
    };
    rpc::at(handle, Who::Host, |line, side| {
        let mut message = Received::default();
        line.receive(side, MOST_BYTES, &mut message, write)?;
        if !message.more {
            // Said once more, since it is known only now; a host that has given the pages away meanwhile does without.
            let _ = write(&message, &[]);
        }
        Ok(message.token)
    })
}

/// The caller's pages are missing, as far as it is concerned.
const fn not_the_hosts(area: Pa) -> Failure {
    Failure::Absent(gzvm_core::addr::Ipa(area.0))
}
