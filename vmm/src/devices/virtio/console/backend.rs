// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is behind a port: our own terminal, or a program at a Unix socket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::mem;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Output;
use crate::devices::serial::Terminal;
use crate::{events, terminal};

/// The host's end of a port.
pub trait End: Send {
    /// Is somebody there? Lets in who waits.
    fn connected(&mut self) -> bool;

    /// Gets what is there, as far as there is room for it; none where nothing is.
    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize>;

    /// Takes what the guest sends, as much as there is room for. All of it, if nobody is there.
    fn send(&mut self, data: &[u8]) -> usize;

    /// Has the size of the terminal changed since the last call?
    fn resized(&mut self) -> bool {
        false
    }

    /// What to wait for: input if there is room for it, room if there is output, and whatever else may happen.
    fn sources(&self, input: bool, output: bool) -> Vec<PollFd<'_>>;
}

/// Bytes typed ahead.
const TYPED_AHEAD: usize = 4096;
/// Bytes that a terminal or pipe which has room takes without waiting (PIPE_BUF, and less than a line's buffer).
const AT_ONCE: usize = 512;

/// What is typed, on its way to the guest.
#[derive(Debug)]
pub struct Keys {
    queue: Mutex<VecDeque<u8>>,
    /// The guest has a driver.
    listening: AtomicBool,
    typed: EventFd,
    drained: EventFd,
}

impl Keys {
    fn new() -> io::Result<Arc<Self>> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        Ok(Arc::new(Self {
            queue: Mutex::default(),
            listening: AtomicBool::new(false),
            typed: event()?,
            drained: event()?,
        }))
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Terminal for Keys {
    fn receive(&self, input: &[u8]) -> usize {
        if !self.listening.load(Ordering::Acquire) {
            return 0;
        }
        let mut queue = self.queue();
        let count = input.len().min(TYPED_AHEAD.saturating_sub(queue.len()));
        queue.extend(input.iter().take(count));
        let _ = self.typed.write(1);
        count
    }

    fn drained(&self) -> &EventFd {
        &self.drained
    }
}

/// Standard input and output.
pub struct Stdio {
    keys: Arc<Keys>,
    output: Output,
    resized: &'static EventFd,
}

impl Stdio {
    /// With `output` as standard output.
    ///
    /// # Errors
    /// No file descriptor left.
    pub fn new(output: Output) -> io::Result<Self> {
        Ok(Self { keys: Keys::new()?, output, resized: terminal::resized()? })
    }

    /// Where input goes.
    pub fn keys(&self) -> Arc<Keys> {
        self.keys.clone()
    }
}

impl End for Stdio {
    fn connected(&mut self) -> bool {
        self.keys.listening.store(true, Ordering::Release);
        true
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let _ = self.keys.typed.read();
        let mut queue = self.keys.queue();
        let count = queue.len().min(buffer.len());
        for (to, from) in buffer.iter_mut().zip(queue.drain(..count)) {
            *to = from;
        }
        if count != 0 && queue.is_empty() {
            let _ = self.keys.drained.write(1);
        }
        (count != 0).then_some(count)
    }

    fn send(&mut self, data: &[u8]) -> usize {
        // Standard output is shared with others, and may block.
        let mut fds = [PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::OUT)];
        if events::wait(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_err()
            || fds.iter().all(|fd| fd.revents().is_empty())
        {
            return 0;
        }
        match self.output.write(data.get(..AT_ONCE).unwrap_or(data)) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            // Gone: the guest goes on without.
            Err(_) => data.len(),
        }
    }

    fn resized(&mut self) -> bool {
        self.resized.read().is_ok()
    }

    fn sources(&self, input: bool, output: bool) -> Vec<PollFd<'_>> {
        let mut sources = vec![events::readable(events::as_fd(self.resized))];
        if input {
            sources.push(events::readable(events::as_fd(&self.keys.typed)));
        }
        if output {
            sources.push(PollFd::from_borrowed_fd(self.output.as_fd(), PollFlags::OUT));
        }
        sources
    }
}

/// A Unix socket, with one program at a time.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: UnixListener,
    client: Option<UnixStream>,
    /// One has just gone: that is told before the next is let in.
    left: bool,
}

impl Socket {
    /// Listens at `path`, for programs of this user.
    ///
    /// # Errors
    /// Something is there already, or may not be made there.
    pub fn listen(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("--port: can't listen at {}", path.display());
        let listener = UnixListener::bind(path).with_context(failed)?;
        let socket = Self { path: path.into(), listener, client: None, left: false };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
        socket.listener.set_nonblocking(true).with_context(failed)?;
        Ok(socket)
    }

    fn leave(&mut self) {
        self.client = None;
        self.left = true;
    }
}

impl End for Socket {
    fn connected(&mut self) -> bool {
        if mem::take(&mut self.left) {
            return false;
        }
        if self.client.is_none()
            && let Ok((client, _)) = self.listener.accept()
            && client.set_nonblocking(true).is_ok()
        {
            self.client = Some(client);
        }
        self.client.is_some()
    }

    fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self.client.as_mut()?.read(buffer) {
            Ok(count) if count != 0 => return Some(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => self.leave(),
        }
        None
    }

    fn send(&mut self, data: &[u8]) -> usize {
        let Some(client) = &mut self.client else { return data.len() };
        match client.write(data) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => {
                self.leave();
                data.len()
            }
        }
    }

    fn sources(&self, input: bool, output: bool) -> Vec<PollFd<'_>> {
        let Some(client) = &self.client else { return vec![events::readable(self.listener.as_fd())] };
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, input);
        flags.set(PollFlags::OUT, output);
        // Without a flag it would be ready when the program has gone, over and over.
        let wanted = !flags.is_empty();
        wanted.then(|| PollFd::from_borrowed_fd(client.as_fd(), flags)).into_iter().collect()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An end that one life of the guest after the other uses.
#[derive(Clone)]
pub struct Slot(Arc<Mutex<Option<Box<dyn End>>>>);

impl Slot {
    /// Holds `end` while nobody uses it.
    pub fn new(end: Box<dyn End>) -> Self {
        Self(Arc::new(Mutex::new(Some(end))))
    }

    /// Takes it, until the result is dropped.
    pub fn take(&self) -> Option<Taken> {
        let end = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        end.map(|end| Taken { end, slot: self.clone() })
    }
}

/// An end in use.
pub struct Taken {
    end: Box<dyn End>,
    slot: Slot,
}

impl Deref for Taken {
    type Target = dyn End;

    fn deref(&self) -> &Self::Target {
        self.end.as_ref()
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.end.as_mut()
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let end = mem::replace(&mut self.end, Box::new(Nobody));
        *self.slot.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
    }
}

/// Nobody is at this end.
struct Nobody;

impl End for Nobody {
    fn connected(&mut self) -> bool {
        false
    }

    fn receive(&mut self, _buffer: &mut [u8]) -> Option<usize> {
        None
    }

    fn send(&mut self, data: &[u8]) -> usize {
        data.len()
    }

    fn sources(&self, _input: bool, _output: bool) -> Vec<PollFd<'_>> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Followers;

    #[test]
    fn a_socket_has_one_client_after_the_other() {
        let path = std::env::temp_dir().join(format!("gz-port-{}", std::process::id()));
        let mut socket = Socket::listen(&path).unwrap();
        assert!(Socket::listen(&path).is_err(), "in use");
        let mut buffer = [0; 8];
        assert!(!socket.connected());
        assert_eq!((socket.receive(&mut buffer), socket.send(b"lost")), (None, 4));
        let mut client = UnixStream::connect(&path).unwrap();
        let _second = UnixStream::connect(&path).unwrap();
        assert!(socket.connected());
        client.write_all(b"hello").unwrap();
        assert_eq!((socket.receive(&mut buffer), &buffer[..5]), (Some(5), &b"hello"[..]));
        assert_eq!(socket.send(b"back"), 4);
        client.read_exact(&mut buffer[..4]).unwrap();
        assert_eq!(&buffer[..4], b"back");
        let big = vec![1; 1 << 20];
        assert!(socket.send(&big) < big.len(), "what has no room is not taken");
        drop(client);
        while socket.send(&big) != big.len() {}
        assert!(!socket.connected(), "gone");
        assert!(socket.connected(), "the second one's turn");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn keys_wait_for_a_driver_and_for_room() {
        let mut stdio = Stdio::new(Output::new(Followers::default()).unwrap()).unwrap();
        let keys = stdio.keys();
        assert_eq!(keys.receive(b"early"), 0);
        assert!(stdio.connected());
        assert_eq!(keys.receive(&[b'k'; 5000]), TYPED_AHEAD);
        let mut buffer = [0; 4000];
        assert_eq!(stdio.receive(&mut buffer), Some(4000));
        assert!(keys.drained().read().is_err());
        assert_eq!(stdio.receive(&mut buffer), Some(96));
        assert!(keys.drained().read().is_ok());
        assert_eq!(stdio.receive(&mut buffer), None);
        let slot = Slot::new(Box::new(stdio));
        let taken = slot.take();
        assert!(taken.is_some() && slot.take().is_none());
        drop(taken);
        assert!(slot.take().is_some());
    }
}
