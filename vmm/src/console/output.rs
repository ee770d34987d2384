// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest's output: on standard output, and for those who follow it.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Followers;

/// Standard output without Rust's line buffer (a guest's prompt has no newline), which knows
/// whether it stands at the beginning of a line.
#[derive(Clone)]
pub struct Output {
    followers: Followers,
    file: Arc<File>,
    mid_line: Arc<AtomicBool>,
}

impl Output {
    /// Ours, and `followers`.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new(followers: Followers) -> io::Result<Self> {
        let file = io::stdout().as_fd().try_clone_to_owned()?.into();
        Ok(Self { followers, file: Arc::new(file), mid_line: Arc::default() })
    }

    /// Ends the line that the guest has begun, so that what we say does not stand behind it.
    pub fn finish_line(&mut self) {
        if self.mid_line.load(Ordering::Relaxed) {
            // A console that has gone away is no matter by now.
            let _ = self.write_all(b"\r\n");
        }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.as_ref().write(data);
        // Where standard output is gone, others may still listen: they get what it would have got.
        let count = match &written {
            Ok(count) => *count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => data.len(),
        };
        self.followers.push(data.get(..count).unwrap_or_default());
        if let Some(last) = data.get(..count).and_then(<[u8]>::last) {
            self.mid_line.store(*last != b'\n', Ordering::Relaxed);
        }
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_begun_is_ended() {
        let (mut reader, writer) = io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let followers = Followers::default();
        let mut output = Output { followers, file: Arc::new(file), mid_line: Arc::default() };
        output.finish_line();
        output.write_all(b"done\n").unwrap();
        output.finish_line();
        output.write_all(b"prompt # ").unwrap();
        output.finish_line();
        output.finish_line();
        drop(output);
        let mut all = String::new();
        io::Read::read_to_string(&mut reader, &mut all).unwrap();
        assert_eq!(all, "done\nprompt # \r\n");
    }
}
