// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls from VM to VM and between VMs and the host, which EL2 carries: `docs/abi.md`, "RPC".
//!
//! A channel joins two endpoints. An endpoint is named by a handle that only its VM can use. Messages are copied by EL2.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Result x0 = status, x1 = INTID of the doorbell, x2 = most bytes of a message, x3 = calls and notices that one side of a
/// channel may have under way. NOT_SUPPORTED for a VM that may have no channels.
pub const INFO: u32 = 0xC600_F010;
/// x1 = port. Results x0 = status, x1 = handle of the endpoint that this VM has there.
pub const OPEN: u32 = 0xC600_F011;
/// x1 = handle. Results x0 = status, x1 = the peer's VM id, with [`peer`] flags above it, x2 = its generation,
/// x3..x6 = its measurement.
pub const PEER: u32 = 0xC600_F012;
/// x1 = handle, x2 = IPA, x3 = bytes, x4 = µs until the call lapses (0: never). Results x0 = status, x1 = token.
pub const CALL: u32 = 0xC600_F013;
/// x1 = handle, x2 = IPA, x3 = bytes: a message that nobody answers.
pub const NOTICE: u32 = 0xC600_F014;
/// x1 = handle, x2 = IPA, x3 = bytes, x4 = token of a call that was received.
pub const REPLY: u32 = 0xC600_F015;
/// x1 = handle, x2 = IPA, x3 = bytes that fit there. Results x0 = status, x1 = what ([`received`]), x2 = token, x3 = µs left
/// for the call (0: any), x4..x9 = as x1..x6 of [`PEER`].
pub const RECEIVE: u32 = 0xC600_F016;
/// x1 = handle, x2 = token of a call that this side has made.
pub const CANCEL: u32 = 0xC600_F017;
/// x1 = handle, which is gone then.
pub const CLOSE: u32 = 0xC600_F018;
/// As [`CALL`]; x5 = handle of a loan of this VM's to the peer, [`VM_MEM_SHARE`](crate::guest::VM_MEM_SHARE), which goes with the call.
pub const CALL_WITH: u32 = 0xC600_F019;

/// What x0 says; besides SMCCC's NOT_SUPPORTED.
pub mod status {
    /// Done.
    pub const SUCCESS: i64 = 0;
    /// An argument, or a handle that is not the caller's.
    pub const INVALID: i64 = -3;
    /// Nothing to receive; or no room to send, and the doorbell rings when there is some.
    pub const AGAIN: i64 = -5;
    /// The other side has gone: only [`CLOSE`](super::CLOSE) makes sense.
    pub const GONE: i64 = -6;
    /// The token names no call that is under way: it has lapsed, was cancelled, or never was.
    pub const NO_CALL: i64 = -7;
    /// The message does not fit, and stays; its length is told as with success.
    pub const TOO_SMALL: i64 = -8;
}

/// What RECEIVE brings, bits 0 to 7 of its x1; bit 8: there is more; from bit 32 on: bytes of the message.
pub mod received {
    /// A call, to be answered with its token.
    pub const CALL: u32 = 1;
    /// The answer to a call.
    pub const REPLY: u32 = 2;
    /// A notice.
    pub const NOTICE: u32 = 3;
    /// The call with this token got no answer in time.
    pub const LAPSED: u32 = 4;
    /// The caller does not want an answer to this call any more.
    pub const CANCELLED: u32 = 5;
    /// There is more to receive. Where it is clear, the doorbell rings for what comes next.
    pub const MORE: u64 = 1 << 8;
    /// A call with memory: x10 = handle of the loan, x11 = pages, x12 = rights, as of VM_MEM_SHARE.
    pub const GRANT: u64 = 1 << 9;
    /// Where the length starts.
    pub const BYTES_SHIFT: u32 = 32;
}

/// Flags of a peer, above its VM id.
pub mod peer {
    /// The host. Its VM id and generation are 0.
    pub const HOST: u32 = 1 << 16;
    /// A protected VM.
    pub const PROTECTED: u32 = 1 << 17;
    /// Its measurement is told.
    pub const MEASURED: u32 = 1 << 18;
    /// And is sealed.
    pub const SEALED: u32 = 1 << 19;
}

/// With whom a VM may have channels, x3 of [`RpcPolicy`](crate::hypercall::Function::RpcPolicy).
pub mod with {
    /// The host.
    pub const HOST: u64 = 1;
    /// VMs that are not protected.
    pub const PLAIN: u64 = 2;
    /// Protected VMs.
    pub const PROTECTED: u64 = 4;
}

/// What the host does with its endpoint, x2 of [`RpcMessage`](crate::hypercall::Function::RpcMessage).
pub mod act {
    /// Sends what the pages at x3 hold: a call, a reply or a notice.
    pub const SEND: u64 = 0;
    /// Receives to the pages at x3.
    pub const RECEIVE: u64 = 1;
    /// Cancels the call with the token x3.
    pub const CANCEL: u64 = 2;
}

/// What a doorbell is about, [`Bell::what`].
pub mod bell {
    /// There is something to receive.
    pub const MESSAGE: u32 = 1;
    /// There is room to send, where there was none.
    pub const ROOM: u32 = 2;
    /// The other side has gone.
    pub const GONE: u32 = 4;
}

/// Most bytes of a message: a page.
pub const MOST_BYTES: usize = 4096;
/// Calls and notices that one side of a channel may have under way.
pub const SLOTS: usize = 4;
/// Channels of a VM at the most.
pub const MOST_CHANNELS: u64 = 16;
/// Bytes of the host's pages: [`Header`], and the message from [`BODY`] on.
pub const AREA_SIZE: u64 = 8192;
/// Where the message starts in the host's pages.
pub const BODY: u64 = 4096;

/// A message's head: at the start of the host's pages, and of what user space reads and writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// One of [`received`]: to be sent are calls, replies and notices.
    pub kind: u32,
    /// Bytes of the message.
    pub bytes: u32,
    /// Of a reply, and of all that is received about a call.
    pub token: u64,
    /// Of a call: µs until it lapses, 0 for never.
    pub time: u64,
    /// Received only: the sender's VM id and [`peer`] flags.
    pub sender: u32,
    /// Received only: 1 if there is more.
    pub more: u32,
    /// Received only: the sender's generation.
    pub generation: u64,
    /// Received only: the sender's measurement.
    pub measurement: [u8; 32],
}
const _: () = assert!(size_of::<Header>() == 72);
