// SPDX-License-Identifier: Apache-2.0 OR MIT
//! passt: the guest's network by way of ordinary sockets of a program, so without privileges. It talks the protocol of QEMU's
//! stream sockets: each frame behind its length, 32 bits big-endian.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::io::FdFlags;

use super::{Backend, MOST};
use crate::broken::{Mistake, broken};
use crate::devices::virtio::net::request::HEADER_SIZE;

const PREFIX: usize = 4;
/// What is read at once.
const ROOM: usize = PREFIX + MOST;

/// The program and our end of its socket.
#[derive(Debug)]
pub struct Passt {
    socket: UnixStream,
    /// What has been read: whole frames and the start of one. Those before `seen` have been given away.
    inbox: Vec<u8>,
    seen: usize,
    /// What is left of a frame that is being sent.
    outbox: Vec<u8>,
    program: Option<Child>,
}

impl Passt {
    /// Starts the program; `forward`: its own options `--tcp-ports` and such.
    ///
    /// # Errors
    /// It is not installed, or no process or file descriptor is left.
    pub fn start(forward: &[String]) -> anyhow::Result<Self> {
        let (ours, theirs) = UnixStream::pair().context("--net passt")?;
        // The one file that the program inherits.
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).context("--net passt")?;
        let program = Command::new("passt")
            .args(["--foreground", "--quiet", "--fd", &theirs.as_raw_fd().to_string()])
            .args(forward)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("--net passt: can't start `passt` (Debian's package passt)")?;
        Self::new(ours, Some(program)).context("--net passt")
    }

    /// Whoever is at the other end of `socket`: `program`, which is ended with this value.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(socket: UnixStream, program: Option<Child>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, inbox: Vec::with_capacity(2 * ROOM), seen: 0, outbox: Vec::new(), program })
    }

    /// The first whole frame that has not been given away.
    fn frame(&self) -> io::Result<Option<&[u8]>> {
        let Some((prefix, rest)) = self.inbox.get(self.seen..).and_then(<[u8]>::split_first_chunk::<PREFIX>)
        else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > MOST && !broken(Mistake::AnyFrame) {
            return Err(io::Error::other(format!("a frame of {len} bytes")));
        }
        Ok(rest.get(..len))
    }

    /// Reads what is there; false: nothing is.
    fn fill(&mut self) -> io::Result<bool> {
        self.inbox.drain(..self.seen);
        self.seen = 0;
        let kept = self.inbox.len();
        self.inbox.resize(kept + ROOM, 0);
        let result = loop {
            match self.socket.read(self.inbox.get_mut(kept..).unwrap_or_default()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let count = result.as_ref().copied().unwrap_or(0);
        self.inbox.truncate(kept + count);
        match result {
            Ok(0) => Err(io::Error::other("passt has ended")),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Backend for Passt {
    fn check(&mut self) -> anyhow::Result<()> {
        // What it can't do it finds out in its first moments: no user `nobody` (as root), no file system whose root it can change.
        if let Some(program) = &mut self.program
            && let Some(status) = program.try_wait().context("--net passt")?
        {
            anyhow::bail!("--net passt: passt has ended ({status}); what it said is above");
        }
        Ok(())
    }

    fn offloads(&self) -> bool {
        false
    }

    fn set_offloads(&mut self, _features: u64) -> io::Result<()> {
        Ok(())
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            if let Some(frame) = self.frame()? {
                let end = HEADER_SIZE + frame.len();
                let Some((header, rest)) =
                    buffer.get_mut(..end).and_then(|buffer| buffer.split_at_mut_checked(HEADER_SIZE))
                else {
                    return Err(io::Error::other("a buffer that is too small"));
                };
                header.fill(0);
                rest.copy_from_slice(frame);
                self.seen += PREFIX + frame.len();
                return Ok(Some(end));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        let Some(frame) = frame.get(HEADER_SIZE..) else { return Ok(true) };
        let len = u32::try_from(frame.len()).map_err(io::Error::other)?;
        self.outbox.extend(len.to_be_bytes());
        self.outbox.extend(frame);
        self.flush()?;
        Ok(true)
    }

    fn flush(&mut self) -> io::Result<bool> {
        while !self.outbox.is_empty() {
            match self.socket.write(&self.outbox) {
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn file(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Passt {
    fn drop(&mut self) {
        // It ends with its socket, too; this does not wait for it to notice.
        if let Some(mut program) = self.program.take() {
            let _ = program.kill();
            let _ = program.wait();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::virtio::net::backend::BUFFER_SIZE;

    fn pair() -> (Passt, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Passt::new(ours, None).unwrap(), theirs)
    }

    fn receive(passt: &mut Passt) -> Option<Vec<u8>> {
        let mut buffer = vec![0xEE; BUFFER_SIZE];
        let len = passt.receive(&mut buffer).unwrap()?;
        assert_eq!(buffer[..HEADER_SIZE], [0; HEADER_SIZE]);
        Some(buffer[HEADER_SIZE..len].to_vec())
    }

    #[test]
    fn frames_come_whole_however_they_are_cut() {
        let (mut passt, mut peer) = pair();
        assert_eq!(receive(&mut passt), None);
        let frames = [b"first".to_vec(), vec![7; MOST], vec![]];
        let mut stream = Vec::new();
        for frame in &frames {
            stream.extend((frame.len() as u32).to_be_bytes());
            stream.extend(frame);
        }
        let mut got = Vec::new();
        for part in stream.chunks(1003) {
            peer.write_all(part).unwrap();
            got.extend(std::iter::from_fn(|| receive(&mut passt)));
        }
        assert_eq!(got, frames);
    }

    #[test]
    fn frames_are_sent_whole_when_there_is_room() {
        let (mut passt, mut peer) = pair();
        let frame = [&[0; HEADER_SIZE][..], &[9; 60_000]].concat();
        let mut sent = 0;
        while passt.send(&frame).unwrap() {
            sent += 1;
        }
        assert!(sent > 1 && !passt.flush().unwrap());
        peer.set_nonblocking(true).unwrap();
        let mut got: Vec<u8> = Vec::new();
        while got.len() < sent * 60_004 {
            let mut part = vec![0; 100_000];
            if let Ok(count) = peer.read(&mut part) {
                got.extend(&part[..count]);
            }
            passt.flush().unwrap();
        }
        assert_eq!(got.len(), sent * 60_004);
        assert!(got.chunks(60_004).all(|f| f[..4] == 60_000_u32.to_be_bytes() && f[4..] == [9; 60_000]));
    }

    #[test]
    fn its_end_is_told() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let program = Command::new("sleep").arg("1000").spawn().unwrap();
        let mut passt = Passt::new(ours, Some(program)).unwrap();
        passt.check().unwrap();
        passt.program.as_mut().unwrap().kill().unwrap();
        passt.program.as_mut().unwrap().wait().unwrap();
        assert!(passt.check().unwrap_err().to_string().contains("signal: 9"));
    }

    #[test]
    pub(crate) fn nonsense_and_the_end_are_errors() {
        let (mut passt, mut peer) = pair();
        peer.write_all(&(MOST as u32 + 1).to_be_bytes()).unwrap();
        assert!(passt.receive(&mut vec![0; BUFFER_SIZE]).is_err());
        let (mut passt, peer) = pair();
        drop(peer);
        assert!(passt.receive(&mut vec![0; BUFFER_SIZE]).is_err());
        assert!(passt.send(&[0; 100]).is_err());
    }
}
