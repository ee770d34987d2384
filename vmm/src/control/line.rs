// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Lines of a socket, of bounded length and in bounded time; with a line may come a file.

use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Longest line.
const LONGEST: usize = 4096;

/// What has come, but was not asked for yet.
#[derive(Default, Debug)]
pub struct Lines {
    rest: Vec<u8>,
    file: Option<OwnedFd>,
}

/// Sends bytes, with a file if there is one.
///
/// # Errors
/// The socket has failed.
pub fn send(mut to: &UnixStream, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let Some(file) = file else { return to.write_all(bytes) };
    let files = [file];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&files)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(to, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    to.write_all(bytes.get(sent..).unwrap_or_default())
}

/// Reads what there is; a file that came with it replaces `file`.
fn receive(from: &UnixStream, to: &mut [u8], file: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(from, &mut [IoSliceMut::new(to)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(files) = message {
            *file = files.last().or(file.take());
        }
    }
    Ok(got.bytes)
}

impl Lines {
    /// The next line, without its end; none at the end of the stream. It must begin within `idle`, and be complete
    /// `patience` later.
    ///
    /// # Errors
    /// It does not, is too long, or the socket has failed.
    pub fn next(
        &mut self,
        from: &UnixStream,
        idle: Duration,
        patience: Duration,
    ) -> io::Result<Option<Vec<u8>>> {
        let mut deadline = None;
        let mut chunk = [0; 512];
        loop {
            if let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
                let mut line: Vec<_> = self.rest.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.rest.len() > LONGEST {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let left = if self.rest.is_empty() {
                idle
            } else {
                let deadline = *deadline.get_or_insert_with(|| Instant::now() + patience);
                deadline.saturating_duration_since(Instant::now())
            };
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            from.set_read_timeout(Some(left))?;
            match receive(from, &mut chunk, &mut self.file) {
                Ok(0) if self.rest.is_empty() => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.rest.extend(chunk.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The last file that came with what was read so far.
    pub fn file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    /// What came behind the last line.
    pub fn rest(self) -> Vec<u8> {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_millis(200);

    #[test]
    fn lines_come_whole() {
        let (mut to, from) = UnixStream::pair().unwrap();
        let mut lines = Lines::default();
        to.write_all(b"one\ntwo\n\nth").unwrap();
        for want in [&b"one"[..], b"two", b""] {
            assert_eq!(lines.next(&from, SOON, SOON).unwrap().as_deref(), Some(want));
        }
        to.write_all(b"ree\nrest").unwrap();
        assert_eq!(lines.next(&from, SOON, SOON).unwrap().as_deref(), Some(&b"three"[..]));
        assert_eq!(lines.rest(), b"rest");
        drop(to);
        assert_eq!(Lines::default().next(&from, SOON, SOON).unwrap(), None);
    }

    #[test]
    fn a_file_comes_with_its_line() {
        let (to, from) = UnixStream::pair().unwrap();
        let (a, mut b) = UnixStream::pair().unwrap();
        let mut lines = Lines::default();
        send(&to, b"with\n", Some(std::os::fd::AsFd::as_fd(&a))).unwrap();
        send(&to, b"without\n", None).unwrap();
        drop(a);
        assert_eq!(lines.next(&from, SOON, SOON).unwrap().as_deref(), Some(&b"with"[..]));
        let mut file = UnixStream::from(lines.file().unwrap());
        file.write_all(b"x").unwrap();
        std::io::Read::read_exact(&mut b, &mut [0]).unwrap();
        assert_eq!(lines.next(&from, SOON, SOON).unwrap().as_deref(), Some(&b"without"[..]));
        assert!(lines.file().is_none());
    }

    #[test]
    fn slow_and_long_ones_are_given_up() {
        let (mut to, from) = UnixStream::pair().unwrap();
        assert!(Lines::default().next(&from, SOON, SOON).is_err(), "silent");
        // Drop by drop, each in time for the next.
        let drips = std::thread::spawn(move || {
            while to.write_all(b"x").is_ok() {
                std::thread::sleep(SOON / 4);
            }
        });
        let begin = Instant::now();
        assert!(Lines::default().next(&from, SOON * 100, SOON).is_err());
        assert!(begin.elapsed() < SOON * 20);
        drop(from);
        drips.join().unwrap();
        let (mut to, from) = UnixStream::pair().unwrap();
        to.write_all(&[b'x'; 2 * LONGEST]).unwrap();
        assert!(Lines::default().next(&from, SOON, SOON).is_err());
    }
}
