// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's latest output, and those who follow it (`gz console`).
//!
//! The guest's vCPU only ever adds to a ring of fixed size. A follower reads it at its own pace; one that falls behind by
//! more than the ring misses what lies between, and is told.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a new follower is shown of the past, and how far one may fall behind.
const HISTORY: usize = 64 << 10;
/// How often a follower without news looks whether its peer is still there.
const LOOK: Duration = Duration::from_millis(500);

const GAP: &[u8] = b"\r\n[gz: output was lost here]\r\n";

#[derive(Default)]
struct Log {
    ring: VecDeque<u8>,
    /// Position behind the last byte, counted from the first that ever was.
    end: u64,
    followers: usize,
}

impl Log {
    fn begin(&self) -> u64 {
        self.end - self.ring.len() as u64
    }
}

/// The guest's latest output; all copies are the same one.
#[derive(Clone, Default)]
pub struct Followers(Arc<(Mutex<Log>, Condvar)>);

impl Followers {
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest has said this.
    pub fn push(&self, data: &[u8]) {
        let mut log = self.log();
        log.ring.extend(data);
        let over = log.ring.len().saturating_sub(HISTORY);
        log.ring.drain(..over);
        log.end += data.len() as u64;
        if log.followers > 0 {
            self.0.1.notify_all();
        }
    }

    /// What was said from position `from` on, up to `most` bytes, and its position; waits a while for something.
    fn read(&self, from: u64, most: usize) -> (u64, Vec<u8>) {
        let news = |log: &mut Log| log.end <= from;
        let (log, _) =
            self.0.1.wait_timeout_while(self.log(), LOOK, news).unwrap_or_else(PoisonError::into_inner);
        let at = from.max(log.begin());
        let skip = usize::try_from(at - log.begin()).unwrap_or(usize::MAX);
        (at, log.ring.iter().skip(skip).take(most).copied().collect())
    }

    /// Sends `to` what is left of the past, and all that comes, until it has gone.
    ///
    /// # Errors
    /// It takes nothing for longer than its write timeout.
    pub fn follow(&self, mut to: &UnixStream) -> io::Result<()> {
        let mut position = {
            let mut log = self.log();
            log.followers += 1;
            log.begin()
        };
        let _counted = Counted(self);
        loop {
            let (at, data) = self.read(position, 4096);
            if at > position {
                to.write_all(GAP)?;
            }
            to.write_all(&data)?;
            position = at + data.len() as u64;
            if data.is_empty() && has_gone(to)? {
                return Ok(());
            }
        }
    }
}

struct Counted<'a>(&'a Followers);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.log().followers -= 1;
    }
}

/// Has the peer closed both directions?
pub fn has_gone(stream: &UnixStream) -> io::Result<bool> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    Ok(poll(&mut [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::empty())], Some(&now))? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::thread;

    #[test]
    fn the_past_is_shown_and_the_rest_follows() {
        let followers = Followers::default();
        followers.push(b"boot\n");
        let (to, mut from) = UnixStream::pair().unwrap();
        let all = followers.clone();
        let thread = thread::spawn(move || all.follow(&to));
        let mut seen = [0; 5];
        from.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"boot\n");
        followers.push(b"login");
        from.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"login");
        drop(from);
        thread.join().unwrap().unwrap();
        assert_eq!(followers.log().followers, 0);
    }

    #[test]
    fn one_that_does_not_read_holds_up_nobody() {
        let followers = Followers::default();
        let (to, mut from) = UnixStream::pair().unwrap();
        to.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        let all = followers.clone();
        let thread = thread::spawn(move || all.follow(&to));
        followers.push(b"begin");
        from.read_exact(&mut [0; 5]).unwrap();
        // Far more than socket and ring take together.
        for _ in 0..2000 {
            followers.push(&[b'x'; 1024]);
        }
        assert_eq!(followers.log().ring.len(), HISTORY);
        followers.push(b"end");
        let mut seen = Vec::new();
        while !seen.ends_with(b"end") {
            let mut chunk = [0; 4096];
            let count = from.read(&mut chunk).unwrap();
            seen.extend_from_slice(&chunk[..count]);
        }
        assert!(seen.windows(GAP.len()).any(|part| part == GAP));
        drop(from);
        thread.join().unwrap().unwrap();
    }
}
