// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Lines from a socket, of bounded length and in bounded time.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest line.
const LONGEST: usize = 4096;

/// What has come, but was not asked for yet.
#[derive(Default, Debug)]
pub struct Lines {
    rest: Vec<u8>,
}

impl Lines {
    /// The next line, without its end; none at the end of the stream. It must begin within `idle`, and be complete
    /// `patience` later.
    ///
    /// # Errors
    /// It does not, is too long, or the socket has failed.
    pub fn next(
        &mut self,
        mut from: &UnixStream,
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
            match from.read(&mut chunk) {
                Ok(0) if self.rest.is_empty() => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.rest.extend(chunk.iter().take(count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
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
