// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Other guests of this user, each with a gz of its own. Two gz are joined by a Unix socket (SOCK_SEQPACKET) if each names the other's guest
//! as a peer: a message is a packet, or says something of the sender's guest.
//!
//! ```text
//!  A starts: listens at vsock:A.sock, connects to those of its peers, says hello ─► B (later): the same; finds A
//!  each life of a guest's driver:  UP ... packets ... DOWN
//! ```
//! All sockets are made when gz starts, before its guest runs and gz is confined. After that it can make none, nor connect to any
//! (see [`sandbox`](crate::sandbox)): a guest that takes its gz over still has no other address than its own.
//!
//! # Invariants
//! - There is one socket between two gz: whoever starts listens and connects under the lock of the run directory, so of two that start
//!   at once the second finds the first. One more is from another gz, and the earlier one is dead.
//! - A packet that comes has its sender's address and ours, or the socket is closed.
//! - Nobody waits for a peer for longer than [`PATIENCE`], nor keeps more than [`QUEUED`] packets for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, send, socket_with,
};

use super::super::connections::{Connections, Key, Verdict, Way};
use super::super::options::VsockOption;
use super::super::request::{Header, Inbound, PACKET_MAX, check, op};
use crate::control::names::{Directory, Entry};
use crate::events;

/// What a gz says first, with its guest's address behind.
const HELLO: [u8; 8] = *b"gzvsock1";
/// The guest's driver is there; is not there any more.
const UP: [u8; 1] = [1];
const DOWN: [u8; 1] = [0];
/// Packets that wait for a peer's socket to have room, before the driver has to wait.
const QUEUED: usize = 64;
/// With what it is told besides.
const QUEUED_MAX: usize = 4 * QUEUED;
/// How long it may have no room. Then its guest has gone, as far as ours is told.
const PATIENCE: Duration = if cfg!(test) { Duration::from_secs(2) } else { Duration::from_secs(5) };
/// Sockets that have not said hello.
const STRANGERS: usize = 16;
/// As many as there may be peers, who all may have started twice.
const BACKLOG: i32 = 128;
/// Messages at once.
const TURN: usize = 64;

/// What became of a packet of our guest's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sent {
    /// It is on its way, or nobody's.
    Done,
    /// There is no room for it now.
    NoRoom,
    /// Its sender is to be told that there is no such connection.
    Refused,
}

/// A guest that ours may talk to.
#[derive(Debug)]
struct Peer {
    cid: u64,
    socket: Option<OwnedFd>,
    /// Its driver is there.
    up: bool,
    /// It has had no room for too long: until it takes something again, it is not there.
    stalled: bool,
    connections: Connections,
    waiting: VecDeque<Vec<u8>>,
    /// Since when nothing of that was taken.
    since: Option<Instant>,
    inbound: Inbound,
}

/// All of them, and where new ones come from.
pub struct Exchange {
    cid: u64,
    /// Our driver is there.
    up: bool,
    /// It knows SOCK_SEQPACKET.
    seqpacket: bool,
    listener: Option<(OwnedFd, Entry)>,
    strangers: Vec<OwnedFd>,
    peers: Vec<Peer>,
    /// For our driver: these connections are no more.
    pub ended: VecDeque<Header>,
}

impl Exchange {
    /// Listens for the peers of `option`, and connects to those that are there.
    ///
    /// # Errors
    /// There is no run directory, or somebody has the address.
    pub fn open(option: &VsockOption) -> anyhow::Result<Self> {
        let directory = Directory::of_user().context("--vsock")?;
        let entry = directory.claim_address(option.cid)?;
        let _others_wait = directory.lock_all().context("--vsock")?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let new = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let place = entry.socket();
        let listener = || {
            let listener = new()?;
            bind(&listener, &SocketAddrUnix::new(&place)?)?;
            listen(&listener, BACKLOG)?;
            Ok::<_, Errno>(listener)
        };
        let listener = listener().with_context(|| format!("--vsock: {}", place.display()))?;
        let call = |path: &Path| {
            let socket = new()?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            send(&socket, &hello(option.cid), SendFlags::NOSIGNAL)?;
            Ok::<_, Errno>(socket)
        };
        let peers = option.peers.iter().map(|cid| {
            let socket = call(&directory.address(*cid));
            if let Err(error) = &socket
                && ![Errno::NOENT, Errno::CONNREFUSED].contains(error)
            {
                tracing::warn!("--vsock: peer {cid}: {error}");
            }
            Peer::new(*cid, socket.ok())
        });
        Ok(Self { peers: peers.collect(), ..Self::new(option.cid, Some((listener, entry))) })
    }

    /// The guest `cid`, whose one peer is at the other end of `socket`.
    pub fn joined(cid: u64, peer: u64, socket: OwnedFd) -> Self {
        Self { peers: vec![Peer::new(peer, Some(socket))], ..Self::new(cid, None) }
    }

    fn new(cid: u64, listener: Option<(OwnedFd, Entry)>) -> Self {
        let (strangers, peers, ended) = Default::default();
        Self { cid, up: false, seqpacket: false, listener, strangers, peers, ended }
    }

    /// A life of our driver begins.
    pub fn begin(&mut self, seqpacket: bool) {
        (self.up, self.seqpacket) = (true, seqpacket);
        self.peers.iter_mut().for_each(|peer| peer.push(&UP));
    }

    /// It ends: of its connections nothing is left.
    pub fn end(&mut self) {
        self.up = false;
        self.ended.clear();
        for peer in &mut self.peers {
            peer.connections.drain().for_each(drop);
            peer.inbound.clear();
            peer.waiting.clear();
            (peer.since, peer.stalled) = (None, false);
            peer.push(&DOWN);
        }
    }

    /// Lets new ones in, sends what waits, and gives up who has no room for too long.
    pub fn tend(&mut self) {
        self.accept();
        for peer in &mut self.peers {
            peer.flush();
            if peer.since.is_some_and(|since| since.elapsed() >= PATIENCE) {
                peer.give_up(self.cid, &mut self.ended);
            }
        }
    }

    fn accept(&mut self) {
        if let Some((listener, _)) = &self.listener {
            while let Ok(socket) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                if self.strangers.len() < STRANGERS {
                    self.strangers.push(socket);
                }
            }
        }
        for stranger in std::mem::take(&mut self.strangers) {
            let mut said = [0; 17];
            match recv(&stranger, &mut said, RecvFlags::DONTWAIT) {
                Ok((16, _)) => self.admit(stranger, &said),
                Err(Errno::AGAIN | Errno::INTR) => self.strangers.push(stranger),
                _ => {}
            }
        }
    }

    /// Whoever says hello: a peer, or not.
    fn admit(&mut self, socket: OwnedFd, said: &[u8; 17]) {
        let Some(peer) = self.peers.iter_mut().find(|peer| said.starts_with(&hello(peer.cid))) else {
            return tracing::info!(
                "virtio-vsock: a guest that is no peer of {} wants to talk to it",
                self.cid
            );
        };
        // An earlier one is dead: we have not heard of it yet.
        peer.leave(self.cid, &mut self.ended);
        peer.socket = Some(socket);
        if self.up {
            peer.push(&UP);
        }
    }

    /// A packet of our driver's, which is `header` with its payload.
    pub fn send(&mut self, header: &Header, packet: &[u8]) -> Sent {
        let refused = if header.op == op::RST { Sent::Done } else { Sent::Refused };
        let Some(peer) = self.peers.iter_mut().find(|peer| peer.cid == header.dst_cid) else {
            return refused;
        };
        if !peer.is_there() {
            return refused;
        }
        if peer.waiting.len() >= QUEUED {
            return Sent::NoRoom;
        }
        match peer.connections.judge(Way::Out, header, self.seqpacket) {
            Verdict::Forward => peer.push(packet),
            Verdict::Drop => {}
            Verdict::Refuse => return refused,
            Verdict::CutOff => {
                tracing::debug!("virtio-vsock: cut off: {header:?}");
                // To the peer it looks as if the sender had ended it.
                peer.push(&header.refusal().refusal().to_bytes());
                return Sent::Refused;
            }
        }
        Sent::Done
    }

    /// The next packets of the peers, one each, which are to be delivered.
    pub fn receive(&mut self) -> impl Iterator<Item = &mut Inbound> {
        for peer in &mut self.peers {
            if !peer.inbound.is_full() {
                peer.receive(self.cid, self.seqpacket, &mut self.ended);
            }
        }
        self.peers.iter_mut().map(|peer| &mut peer.inbound).filter(|inbound| inbound.is_full())
    }

    /// What is ready when there is more to do.
    pub fn sources(&self) -> Vec<PollFd<'_>> {
        let listener = self.listener.iter().map(|(listener, _)| listener.as_fd());
        let strangers = self.strangers.iter().map(AsFd::as_fd);
        let mut sources: Vec<_> = listener.chain(strangers).map(events::readable).collect();
        for peer in &self.peers {
            let Some(socket) = &peer.socket else { continue };
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, !peer.inbound.is_full());
            flags.set(PollFlags::OUT, !peer.waiting.is_empty());
            // Without a flag it would be ready when the peer has gone, over and over.
            if !flags.is_empty() {
                sources.push(PollFd::from_borrowed_fd(socket.as_fd(), flags));
            }
        }
        sources
    }

    /// When to look at them at the latest.
    pub fn timeout(&self) -> Option<Duration> {
        let since = self.peers.iter().filter_map(|peer| peer.since).min()?;
        Some(PATIENCE.saturating_sub(since.elapsed()))
    }
}

/// What the gz of guest `cid` says first.
fn hello(cid: u64) -> [u8; 16] {
    let mut hello = [0; 16];
    let (magic, address) = hello.split_at_mut(8);
    magic.copy_from_slice(&HELLO);
    address.copy_from_slice(&cid.to_le_bytes());
    hello
}

/// What our guest `cid` is told of a connection with `peer` that is no more.
fn end(cid: u64, peer: u64, Key { kind, ours, theirs }: Key) -> Header {
    Header {
        src_cid: peer,
        dst_cid: cid,
        src_port: theirs,
        dst_port: ours,
        kind,
        op: op::RST,
        ..Header::default()
    }
}

impl Peer {
    fn new(cid: u64, socket: Option<OwnedFd>) -> Self {
        let (connections, waiting, inbound) = Default::default();
        Self { cid, socket, up: false, stalled: false, connections, waiting, since: None, inbound }
    }

    fn is_there(&self) -> bool {
        self.socket.is_some() && self.up && !self.stalled
    }

    /// Sends a message, now or when there is room.
    fn push(&mut self, message: &[u8]) {
        if self.socket.is_some() {
            self.waiting.push_back(message.to_vec());
            self.flush();
        }
    }

    fn flush(&mut self) {
        let Some(socket) = &self.socket else { return };
        while let Some(message) = self.waiting.front() {
            match send(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(_) => {
                    self.waiting.pop_front();
                    self.since = None;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    // Who is given up already keeps nobody waiting.
                    if !self.stalled {
                        self.since.get_or_insert_with(Instant::now);
                    }
                    return;
                }
                // It has gone. What it said before is read first.
                Err(_) => self.waiting.clear(),
            }
        }
        (self.since, self.stalled) = (None, false);
    }

    /// Ends all connections, on both sides; until the peer takes something again it is not there.
    fn give_up(&mut self, cid: u64, ended: &mut VecDeque<Header>) {
        tracing::warn!(
            "virtio-vsock: guest {} takes nothing: its connections with {cid} are ended",
            self.cid
        );
        ended.extend(self.connections.drain().map(|key| end(cid, self.cid, key)));
        self.waiting = [DOWN, UP].map(Vec::from).into();
        (self.since, self.stalled) = (None, true);
        self.flush();
    }

    /// It has gone.
    fn leave(&mut self, cid: u64, ended: &mut VecDeque<Header>) {
        self.socket = None;
        self.waiting.clear();
        (self.since, self.stalled, self.up) = (None, false, false);
        ended.extend(self.connections.drain().map(|key| end(cid, self.cid, key)));
    }

    /// Reads until there is a packet for our driver.
    fn receive(&mut self, cid: u64, seqpacket: bool, ended: &mut VecDeque<Header>) {
        for _ in 0..TURN {
            let (Some(socket), Some(packet)) = (&self.socket, self.inbound.buffer()) else { return };
            packet.clear();
            packet.reserve(PACKET_MAX + 1);
            match recv(socket, spare_capacity(packet), RecvFlags::DONTWAIT) {
                // Also that it had not read all, which comes before what it had said.
                Err(Errno::INTR | Errno::CONNRESET) => continue,
                Err(Errno::AGAIN) => return,
                Ok((0, _)) | Err(_) => return self.leave(cid, ended),
                Ok(_) => {}
            }
            if let [state] = packet[..] {
                // In either case it knows nothing of what was before.
                self.up = state == UP[0];
                ended.extend(self.connections.drain().map(|key| end(cid, self.cid, key)));
                continue;
            }
            let honest = |header: &Header| header.src_cid == self.cid && header.dst_cid == cid;
            let Some(header) = check(packet).filter(honest) else {
                tracing::warn!("virtio-vsock: the gz of guest {} sends what is no packet of it", self.cid);
                return self.leave(cid, ended);
            };
            if self.stalled {
                continue;
            }
            match self.connections.judge(Way::In, &header, seqpacket) {
                Verdict::Forward => return self.inbound.fill(),
                Verdict::Drop => {}
                Verdict::Refuse => self.refuse(cid, &header, ended),
                Verdict::CutOff => {
                    tracing::debug!("virtio-vsock: cut off: {header:?}");
                    ended.push_back(header.refusal().refusal());
                    self.refuse(cid, &header, ended);
                }
            }
        }
    }

    fn refuse(&mut self, cid: u64, header: &Header, ended: &mut VecDeque<Header>) {
        self.push(&header.refusal().to_bytes());
        // It sends, and takes no answers.
        if self.waiting.len() > QUEUED_MAX {
            self.give_up(cid, ended);
        }
    }
}
