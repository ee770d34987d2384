// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The other side of a control socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::line::{self, Lines};
use super::names::{self, Directory};
use super::schema::{Answer, FailureKind, Outcome, Question, Reply, Request, VERSION};

/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(20);

/// A connection to the `gz run` of a VM.
pub struct Client {
    vm: String,
    stream: UnixStream,
    lines: Lines,
}

/// Where a VM's socket is: what contains a slash is a path, all else a name.
fn socket(vm: &str) -> anyhow::Result<PathBuf> {
    if vm.contains('/') {
        return Ok(vm.into());
    }
    names::check(vm).map_err(anyhow::Error::msg)?;
    let directory = Directory::of_user()?;
    directory.sweep();
    let path = directory.socket(vm);
    anyhow::ensure!(path.symlink_metadata().is_ok(), "no VM of this name runs; `gz ps` lists those that do");
    Ok(path)
}

impl Client {
    /// Connects to a VM by its name or its socket's path.
    ///
    /// # Errors
    /// There is none.
    pub fn connect(vm: &str) -> anyhow::Result<Self> {
        let connect = || -> anyhow::Result<UnixStream> { Ok(UnixStream::connect(socket(vm)?)?) };
        let stream = connect().with_context(|| vm.to_owned())?;
        Ok(Self { vm: vm.to_owned(), stream, lines: Lines::default() })
    }

    /// Connects to the VM whose socket is known.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn at(vm: &str, socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| vm.to_owned())?;
        Ok(Self { vm: vm.to_owned(), stream, lines: Lines::default() })
    }

    /// A channel to a service of the VM: for the host, or for another VM, by its file and its port. None: the VM is being made just now.
    ///
    /// # Errors
    /// It was refused, or no answer came.
    pub fn open(
        &mut self,
        service: &str,
        peer: Option<(BorrowedFd<'_>, u32)>,
    ) -> anyhow::Result<Option<OwnedFd>> {
        let (file, port) = peer.unzip();
        let request = Request::Rpc { service: service.into(), port };
        let vm = self.vm.clone();
        let open = || match self.exchange(request, file, ANSWER)? {
            Outcome::Reply(Reply::Channel) => {
                self.lines.file().context("the answer came without the channel").map(Some)
            }
            Outcome::Error(failure) if failure.kind == FailureKind::Busy => Ok(None),
            Outcome::Error(failure) => Err(anyhow::Error::msg(failure.message)),
            Outcome::Reply(other) => Err(anyhow::anyhow!("answers something else: {other:?}")),
        };
        open().context(vm)
    }

    /// Asks for something; what came of it.
    ///
    /// # Errors
    /// It was refused, or no answer came within `patience`.
    pub fn ask(&mut self, request: Request, patience: Duration) -> anyhow::Result<Reply> {
        let outcome = self.exchange(request, None, patience);
        let reply = outcome.and_then(|outcome| match outcome {
            Outcome::Reply(reply) => Ok(reply),
            Outcome::Error(failure) => Err(anyhow::Error::msg(failure.message)),
        });
        reply.with_context(|| self.vm.clone())
    }

    fn exchange(
        &mut self,
        request: Request,
        file: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> anyhow::Result<Outcome> {
        let mut line = serde_json::to_vec(&Question { version: VERSION, request })?;
        line.push(b'\n');
        self.stream.set_write_timeout(Some(patience))?;
        // One that takes no more has said why.
        let sent = line::send(&self.stream, &line, file);
        let answer =
            self.lines.next(&self.stream, patience, patience).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => anyhow::anyhow!("no answer"),
                _ => error.into(),
            })?;
        let Some(answer) = answer else {
            sent?;
            anyhow::bail!("the VM has ended");
        };
        let answer = serde_json::from_slice::<Answer>(&answer);
        Ok(answer.context("an answer that is none of this version")?.outcome)
    }

    /// The process at the other end, while it lives: signals to it reach no other one.
    ///
    /// # Errors
    /// It has ended, or is another user's.
    pub fn process(&self) -> anyhow::Result<Process> {
        let find = || -> anyhow::Result<Process> {
            let pid = socket_peercred(&self.stream)?.pid;
            let process = Process {
                pid: pid.as_raw_nonzero().get().cast_unsigned(),
                fd: pidfd_open(pid, PidfdFlags::empty())?,
            };
            // As long as the connection stands, the number is that process's.
            anyhow::ensure!(!hung_up(&self.stream, Duration::ZERO)?, "the VM has ended");
            Ok(process)
        };
        find().with_context(|| self.vm.clone())
    }

    /// Waits until the other end is gone, with its process or without; false if it is still there after `patience`.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait_end(&self, patience: Duration) -> io::Result<bool> {
        hung_up(&self.stream, patience)
    }

    /// The connection, and what has come on it already: for a console.
    pub fn into_stream(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.lines.rest())
    }
}

/// A process that can't be mistaken for a later one of the same number.
pub struct Process {
    /// Its number.
    pub pid: u32,
    fd: OwnedFd,
}

impl Process {
    /// Ends it at once.
    ///
    /// # Errors
    /// It may not be, or has ended.
    pub fn kill(&self) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.fd, Signal::KILL)?)
    }

    /// Waits for its end; false if it is still there after `patience`.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait_end(&self, patience: Duration) -> io::Result<bool> {
        ready(&self.fd, PollFlags::IN, patience)
    }
}

fn hung_up(stream: &UnixStream, patience: Duration) -> io::Result<bool> {
    ready(stream, PollFlags::empty(), patience)
}

/// Waits for one of `events`, or a hang-up.
fn ready(fd: impl AsFd, events: PollFlags, patience: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(patience).map_err(io::Error::other)?;
    match poll(&mut [PollFd::new(&fd, events)], Some(&timeout)) {
        Ok(count) => Ok(count > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
