// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Channels that the hypervisor carries: what a guest may have of them ([`options`]), how they are made for those who ask
//! ([`Offer`]), and how a program of the host calls through one ([`call`]). `docs/rpc.md` is the tutorial.
//!
//! A client asks at the control socket of the service's VM. That VM's gz makes the channel and hands its file over, and has no
//! part in what is said there. For a channel between two VMs the client is the gz of the calling one; it sends its VM's file with
//! the question, and keeps the channel's file as long as its guest lives.

pub mod options;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use gzvm_abi::rpc::{MOST_BYTES, received, with};
use gzvm_ioctls::ChannelFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use self::options::Plan;
use crate::cli::RunOptions;
use crate::control::client::Client;
use crate::control::names::Directory;
use crate::hypervisor::Vm;
use crate::progress::{self, Step};

/// How long a service's VM may take to be made.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(100);

/// What a VM offers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Offer(pub Option<Plan>);

impl Offer {
    /// Makes a channel to a service of `vm` for the host; or for another VM, by its file and its port.
    ///
    /// # Errors
    /// There is no such service, or no place left, or a policy is against it.
    pub fn connect(
        &self,
        vm: &dyn Vm,
        service: &str,
        peer: Option<(BorrowedFd<'_>, u32)>,
    ) -> anyhow::Result<OwnedFd> {
        let plan = self.0.as_ref().context("this VM offers no service (gz run --rpc)")?;
        if peer.is_none() {
            let host = u64::from(plan.policy.with) & with::HOST != 0;
            ensure!(host, "this VM's policy is against channels with the host (gz run --rpc-with)");
        }
        let mut places = 0_u32;
        for port in plan.ports(service) {
            if let Some(channel) = vm.connect(port, peer)? {
                return Ok(channel);
            }
            places = places.saturating_add(1);
        }
        ensure!(places != 0, "this VM offers no service {service}");
        let policy = if peer.is_some() { ", or the policy of one of the VMs is against it" } else { "" };
        bail!("{service}: its {places} places are taken{policy}")
    }
}

/// Where the VMs are that a guest calls: found once, since later the process may not look any more.
///
/// # Errors
/// No VM of that name runs.
pub fn sockets(options: &RunOptions) -> anyhow::Result<Vec<PathBuf>> {
    let peers = options.rpc.peers.iter();
    peers
        .map(|peer| {
            if peer.vm.contains('/') {
                return Ok(peer.vm.clone().into());
            }
            let path = Directory::of_user()?.socket(&peer.vm);
            ensure!(path.symlink_metadata().is_ok(), "--rpc-to {}: no VM of this name runs", peer.vm);
            Ok(path)
        })
        .collect()
}

/// Connects a guest with what it calls. The channels are there as long as the files.
///
/// # Errors
/// One of them can't be made.
pub fn join(
    options: &RunOptions,
    plan: &Plan,
    sockets: &[PathBuf],
    vm: &dyn Vm,
) -> anyhow::Result<Vec<OwnedFd>> {
    let mut channels = Vec::new();
    for ((peer, port), socket) in options.rpc.peers.iter().zip(plan.callers()).zip(sockets) {
        let what = || format!("--rpc-to {}@{}", peer.service, peer.vm);
        let own = vm.file().with_context(|| format!("{}: for gzvm only", what()))?;
        let channel =
            once_made(&peer.vm, || Client::at(&peer.vm, socket)?.open(&peer.service, Some((own, port))));
        channels.push(channel.with_context(what)?);
    }
    Ok(channels)
}

/// The channel that `open` gives once the VM is made.
fn once_made(vm: &str, mut open: impl FnMut() -> anyhow::Result<Option<OwnedFd>>) -> anyhow::Result<OwnedFd> {
    let mut channel = None;
    progress::wait(&format!("waiting for {vm}"), PATIENCE, || {
        channel = open()?;
        if channel.is_some() {
            return Ok(Step::Done);
        }
        std::thread::sleep(LOOK);
        Ok(Step::Waiting)
    })?;
    channel.with_context(|| format!("{vm}: the VM is still being made"))
}

/// A channel to a service of a VM, by its name or its control socket's path: for this program, as the host. It is there as long as the file.
/// In a Linux guest, instead of the VM: the device that is the guest's end of a channel (`/dev/gzvm-rpc/NAME`), whatever the service.
///
/// # Errors
/// No such VM or service, or it was refused.
pub fn open(vm: &str, service: &str) -> anyhow::Result<ChannelFd> {
    if fs::metadata(vm).is_ok_and(|what| what.file_type().is_char_device()) {
        let device = fs::File::options().read(true).write(true).open(vm).with_context(|| vm.to_owned())?;
        return Ok(OwnedFd::from(device).into());
    }
    let mut client = Client::connect(vm)?;
    once_made(vm, || client.open(service, None)).map(ChannelFd::from)
}

/// Calls, and waits for the answer for `time` at most. The channel's file does not wait from then on.
///
/// # Errors
/// The message is too long, no answer came in time, or the service has gone.
pub fn call(channel: &ChannelFd, message: &[u8], time: Duration) -> anyhow::Result<Vec<u8>> {
    ensure!(message.len() <= MOST_BYTES, "{} bytes: a message has {MOST_BYTES} at the most", message.len());
    call_by(channel, time, |micros| channel.call(message, micros))
}

/// As [`call`], with memory that the service may read until it has answered: in a protected Linux guest, to another protected VM.
///
/// # Errors
/// As of [`call`]; and where there is no lending.
pub fn call_with(
    channel: &ChannelFd,
    message: &[u8],
    memory: &[u8],
    time: Duration,
) -> anyhow::Result<Vec<u8>> {
    call_by(channel, time, |micros| channel.call_with(message, memory, micros))
}

/// Calls by `call`, which is told after how many µs the call is to lapse.
fn call_by(
    channel: &ChannelFd,
    time: Duration,
    call: impl Fn(u64) -> gzvm_ioctls::Result<u64>,
) -> anyhow::Result<Vec<u8>> {
    /// For the hypervisor's clock to reach the deadline, too.
    const LATE: Duration = Duration::from_secs(1);
    fcntl_setfl(channel, fcntl_getfl(channel)? | OFlags::NONBLOCK)?;
    let deadline = Instant::now() + time;
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let token = loop {
        match call(micros) {
            Ok(token) => break token,
            Err(error) if error.errno() == libc::EAGAIN && Instant::now() < deadline => {
                wait(channel, PollFlags::OUT, deadline)?;
            }
            Err(error) if error.errno() == libc::EAGAIN => bail!("no room for a call in {time:?}"),
            Err(error) if error.errno() == libc::EPIPE => bail!("the service has gone"),
            Err(error) => return Err(error).context("the call"),
        }
    };
    let mut room = [0; MOST_BYTES];
    loop {
        match channel.receive(&mut room) {
            Ok(None) => bail!("the service has gone"),
            Ok(Some((head, answer))) => match head.kind {
                received::REPLY if head.token == token => return Ok(answer.to_vec()),
                received::LAPSED if head.token == token => bail!("no answer in {time:?}"),
                // Notices, and what is left of calls before.
                _ => {}
            },
            // That a call has lapsed is no event: who looks is told.
            Err(error) if error.errno() == libc::EAGAIN && Instant::now() < deadline => {
                wait(channel, PollFlags::IN, deadline)?;
            }
            Err(error) if error.errno() == libc::EAGAIN && Instant::now() < deadline + LATE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) if error.errno() == libc::EAGAIN => bail!("no answer in {time:?}"),
            Err(error) => return Err(error).context("the answer"),
        }
    }
}

/// Until there is one of these, or the deadline.
fn wait(channel: &ChannelFd, what: PollFlags, deadline: Instant) -> anyhow::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut fds = [PollFd::from_borrowed_fd(channel.as_fd(), what)];
    match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
