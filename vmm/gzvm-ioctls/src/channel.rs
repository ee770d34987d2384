// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A channel's file descriptor: calls between the host and a VM; and in a Linux guest, whose module has files of the same form.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use gzvm_abi::ioctl;
use gzvm_abi::rpc::{Header, MOST_BYTES, received};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use zerocopy::{FromBytes, IntoBytes};

use crate::{Error, Result, check};

const HEAD: usize = size_of::<Header>();

/// A message with its head, as the driver reads and writes it.
type Whole = [u8; HEAD + MOST_BYTES];

/// What only the guests' module has: `docs/abi.md`, "Channels as files in a Linux guest". _IOWR(0x92, 0xDD, 88 bytes).
const RPC_CALL_WITH: u32 = 0xC058_92DD;

/// Its argument.
#[repr(C)]
struct With {
    from: u64,
    bytes: u64,
    whole: Whole,
}

/// The host's end of a channel, or what keeps a channel between two VMs open. It can be polled: IN, OUT, HUP.
#[derive(Debug)]
pub struct ChannelFd {
    file: File,
}

impl From<OwnedFd> for ChannelFd {
    fn from(fd: OwnedFd) -> Self {
        Self { file: fd.into() }
    }
}

impl ChannelFd {
    /// Calls; the token comes again with the reply. After `time` µs the call lapses, which is told as it is received; 0: never.
    ///
    /// # Errors
    /// EAGAIN: too many under way; EINVAL: more than a page; EPIPE: the channel is over.
    pub fn call(&self, message: &[u8], time: u64) -> Result<u64> {
        let mut whole = [0; HEAD + MOST_BYTES];
        let _ = fill(&mut whole, Header { kind: received::CALL, time, ..Header::default() }, message)?;
        // SAFETY: RPC_CALL reads a head and the bytes that it names, which are in `whole`, and writes the head.
        check(unsafe { ioctl_with_mut_ref(&self.file, ioctl::RPC_CALL.into(), &mut whole) })?;
        token_of(&whole)
    }

    /// As [`call`](Self::call), in a protected guest to another one, with memory that the peer may read until the call is over: a
    /// copy of `memory`.
    ///
    /// # Errors
    /// As of `call`; EOPNOTSUPP, in a plain guest; EINVAL, if the peer is one or the host, or with more than 64 KiB, or nothing; ENOMEM:
    /// so much is lent already; ENOTTY: the host's end of a channel.
    pub fn call_with(&self, message: &[u8], memory: &[u8], time: u64) -> Result<u64> {
        let (from, bytes) = (memory.as_ptr().expose_provenance() as u64, memory.len() as u64);
        let mut with = With { from, bytes, whole: [0; HEAD + MOST_BYTES] };
        let _ = fill(&mut with.whole, Header { kind: received::CALL, time, ..Header::default() }, message)?;
        // SAFETY: RPC_CALL_WITH reads `memory`, and a head and the bytes that it names, which are in `whole`, and writes the head.
        check(unsafe { ioctl_with_mut_ref(&self.file, RPC_CALL_WITH.into(), &mut with) })?;
        token_of(&with.whole)
    }

    /// Does not want an answer any more.
    ///
    /// # Errors
    /// ENOENT: there is no such call under way; EPIPE.
    pub fn cancel(&self, token: u64) -> Result<()> {
        // SAFETY: RPC_CANCEL reads a u64.
        check(unsafe { ioctl_with_ref(&self.file, ioctl::RPC_CANCEL.into(), &token) }).map(drop)
    }

    /// Who is at the other end; for a guest's own channels.
    ///
    /// # Errors
    /// ENOTTY: a host's channel, which knows; ENOTCONN: nobody yet; EPIPE.
    pub fn peer(&self) -> Result<Header> {
        let mut head = Header::default();
        // SAFETY: RPC_PEER writes a head.
        check(unsafe { ioctl_with_mut_ref(&self.file, ioctl::RPC_PEER.into(), &mut head) })?;
        Ok(head)
    }

    /// Answers a call that was received.
    ///
    /// # Errors
    /// ENOENT: nobody waits for it any more; EINVAL, EPIPE as above.
    pub fn reply(&self, token: u64, message: &[u8]) -> Result<()> {
        self.send(Header { kind: received::REPLY, token, ..Header::default() }, message)
    }

    /// Says something that nobody answers.
    ///
    /// # Errors
    /// EAGAIN if the file does not wait, EINVAL, EPIPE as above.
    pub fn notice(&self, message: &[u8]) -> Result<()> {
        self.send(Header { kind: received::NOTICE, ..Header::default() }, message)
    }

    fn send(&self, head: Header, message: &[u8]) -> Result<()> {
        let mut whole = [0; HEAD + MOST_BYTES];
        let bytes = fill(&mut whole, head, message)?;
        (&self.file).write_all(bytes)?;
        Ok(())
    }

    /// Receives: the head, and the message in `to`. `None`: the channel is over.
    ///
    /// # Errors
    /// EAGAIN if the file does not wait, EINTR.
    pub fn receive<'a>(&self, to: &'a mut [u8; MOST_BYTES]) -> Result<Option<(Header, &'a [u8])>> {
        let mut whole = [0; HEAD + MOST_BYTES];
        let n = (&self.file).read(&mut whole)?;
        let Ok((head, body)) = Header::read_from_prefix(whole.get(..n).unwrap_or_default()) else {
            return Ok(None);
        };
        let (message, _) = to.split_at_mut(body.len().min(MOST_BYTES));
        message.copy_from_slice(body.get(..message.len()).unwrap_or_default());
        Ok(Some((head, message)))
    }
}

/// Of a call that was made.
fn token_of(whole: &Whole) -> Result<u64> {
    Header::read_from_prefix(whole).map(|(head, _)| head.token).map_err(|_| Error::new(libc::EINVAL))
}

/// The bytes of a message with its head.
fn fill<'a>(whole: &'a mut Whole, head: Header, message: &[u8]) -> Result<&'a [u8]> {
    let too_long = || Error::new(libc::EINVAL);
    let head = Header { bytes: u32::try_from(message.len()).map_err(|_| too_long())?, ..head };
    let used = whole.get_mut(..HEAD.saturating_add(message.len())).ok_or_else(too_long)?;
    let (front, back) = used.split_at_mut(HEAD);
    front.copy_from_slice(head.as_bytes());
    back.copy_from_slice(message);
    Ok(used)
}

impl From<ChannelFd> for OwnedFd {
    fn from(channel: ChannelFd) -> Self {
        channel.file.into()
    }
}

impl AsFd for ChannelFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for ChannelFd {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    /// What one end sends, the other receives: a socket that keeps messages whole stands for the driver.
    #[test]
    fn messages_keep_their_form() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let (a, b) = (ChannelFd::from(OwnedFd::from(a)), ChannelFd::from(OwnedFd::from(b)));
        let mut room = [0; MOST_BYTES];
        for message in [&b""[..], b"words", &[7; MOST_BYTES]] {
            a.notice(message).unwrap();
            let (head, got) = b.receive(&mut room).unwrap().unwrap();
            assert_eq!((head.kind, head.bytes as usize, got), (received::NOTICE, message.len(), message));
            b.reply(9, message).unwrap();
            let (head, got) = a.receive(&mut room).unwrap().unwrap();
            assert_eq!((head.kind, head.token, got), (received::REPLY, 9, message));
        }
        assert_eq!(a.notice(&[0; MOST_BYTES + 1]).unwrap_err().errno(), libc::EINVAL);
        assert_eq!(a.call(b"", 0).unwrap_err().errno(), libc::ENOTTY, "no channel");
        assert_eq!(a.call_with(b"", b"words", 0).unwrap_err().errno(), libc::ENOTTY);
        assert_eq!(a.cancel(1).unwrap_err().errno(), libc::ENOTTY);
    }
}
