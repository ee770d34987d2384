// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guests' calls, decoded: `docs/abi.md`, "RPC".

use gzvm_abi::rpc;

use super::channel::Handle;
use crate::addr::{Ipa, PAGE_SIZE};
use crate::memory::loans;

/// A message in the caller's memory: in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Where.
    pub at: Ipa,
    /// How many bytes, at most a page.
    pub bytes: usize,
}

impl Buffer {
    /// `bytes` bytes at `at`, if they are in one page. None at all may be anywhere.
    pub fn new(at: u64, bytes: u64) -> Option<Self> {
        let inside = at & PAGE_SIZE.wrapping_sub(1);
        let fits = bytes == 0 || bytes <= PAGE_SIZE.wrapping_sub(inside);
        fits.then_some(Self { at: Ipa(at), bytes: bytes as usize })
    }
}

/// What a guest wants; its arguments are in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// INFO.
    Info,
    /// OPEN of a port.
    Open(u32),
    /// PEER.
    Peer(Handle),
    /// CALL.
    Call {
        /// The endpoint.
        by: Handle,
        /// The message.
        message: Buffer,
        /// µs until it lapses, 0 for never.
        time: u64,
        /// What goes with it.
        loan: Option<loans::Handle>,
    },
    /// NOTICE.
    Notice {
        /// The endpoint.
        by: Handle,
        /// The message.
        message: Buffer,
    },
    /// REPLY.
    Reply {
        /// The endpoint.
        by: Handle,
        /// The message.
        message: Buffer,
        /// The call.
        token: u64,
    },
    /// RECEIVE.
    Receive {
        /// The endpoint.
        by: Handle,
        /// Where to.
        room: Buffer,
    },
    /// CANCEL.
    Cancel {
        /// The endpoint.
        by: Handle,
        /// The call.
        token: u64,
    },
    /// CLOSE.
    Close(Handle),
}

/// Whether this is one of the functions here.
pub const fn is_rpc(fid: u32) -> bool {
    matches!(fid, rpc::INFO..=rpc::CALL_WITH)
}

/// The call with these x1..x5; nothing where one of them is out of range.
pub fn decode(fid: u32, [x1, x2, x3, x4, x5]: [u64; 5]) -> Option<Call> {
    let by = Handle(x1);
    let buffer = || Buffer::new(x2, x3);
    Some(match fid {
        rpc::INFO => Call::Info,
        rpc::OPEN => Call::Open(u32::try_from(x1).ok()?),
        rpc::PEER => Call::Peer(by),
        rpc::CALL => Call::Call { by, message: buffer()?, time: x4, loan: None },
        rpc::CALL_WITH => Call::Call { by, message: buffer()?, time: x4, loan: Some(loans::Handle(x5)) },
        rpc::NOTICE => Call::Notice { by, message: buffer()? },
        rpc::REPLY => Call::Reply { by, message: buffer()?, token: x4 },
        rpc::RECEIVE => Call::Receive { by, room: buffer()? },
        rpc::CANCEL => Call::Cancel { by, token: x2 },
        rpc::CLOSE => Call::Close(by),
        _ => return None,
    })
}

/// In a second.
const MICROSECONDS: u128 = 1_000_000;

/// The deadline of a call that lapses in `time` µs, in ticks of a counter with this frequency.
pub fn deadline(time: u64, now: u64, frequency: u64) -> u64 {
    if time == 0 {
        return super::exchange::NEVER;
    }
    let ticks = u128::from(time).saturating_mul(frequency.into()).checked_div(MICROSECONDS).unwrap_or(0);
    now.saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX).max(1))
}

/// µs that are left until then, at least 1; 0 where there is no deadline.
pub fn time_left(deadline: u64, now: u64, frequency: u64) -> u64 {
    if deadline == super::exchange::NEVER {
        return 0;
    }
    let ticks = u128::from(deadline.saturating_sub(now));
    let time = ticks.saturating_mul(MICROSECONDS).checked_div(frequency.into()).unwrap_or(0);
    u64::try_from(time).unwrap_or(u64::MAX).max(1)
}
