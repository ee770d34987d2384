// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls from and to other VMs and the host, which the hypervisor carries: `docs/abi.md`, "RPC"; `docs/rpc.md` is the tutorial.
//!
//! A [`Channel`] is this VM's end of one, opened by its port; dropped, it is closed. Messages lie in a [`Message`], a page of
//! their own. Nothing here waits but [`Doorbell::until`]; [`Channel::exchange`] (for those who call) and [`Service`] (for those who
//! serve, several peers at a time) are made of it.
//!
//! ```text
//!  device tree ─► places(name) ─► Channel::open ─► call ──► receive      the peer has gone: Error::Gone, once and for all
//!                     └─► Service ─► next ─► reply
//! ```
//! [`grant`] is for what is longer than a message.

mod grant;

pub use grant::{Grant, Granted, Pages, View};

use core::time::Duration;

use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, Property};
use gzvm_abi::digest;
use gzvm_abi::rpc::{self as abi, MOST_BYTES, received, status};

use crate::{ArrayVec, arch, gic, machine, read_sysreg, timer};

/// Most channels of a VM.
pub const MOST_CHANNELS: usize = abi::MOST_CHANNELS as usize;

/// Why something is not done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// This VM may have no channels: the host gave it none.
    NotSupported,
    /// An argument; nobody at that port; a handle that is not this VM's.
    Invalid,
    /// Nothing to receive, or no room to send. The doorbell rings when there is.
    Again,
    /// The peer has gone: all that is left is to drop the channel.
    Gone,
    /// The call is not under way any more: it has lapsed or was cancelled.
    NoCall,
    /// No answer came in time.
    Lapsed,
    /// So much is lent already, by this VM or to it.
    NoMemory,
    /// Anything else that the hypervisor says.
    Unknown(i64),
}

impl Error {
    fn of(x0: u64) -> Result<(), Self> {
        Err(match x0 as i64 {
            status::SUCCESS => return Ok(()),
            -1 => Self::NotSupported,
            status::INVALID => Self::Invalid,
            // Of lending: `docs/abi.md`, "Memory between protected VMs".
            -4 => Self::NoMemory,
            status::AGAIN => Self::Again,
            status::GONE => Self::Gone,
            status::NO_CALL => Self::NoCall,
            other => Self::Unknown(other),
        })
    }
}

/// A message, in a page of its own: what the hypervisor copies lies in one.
#[repr(C, align(4096))]
pub struct Message {
    page: [u8; MOST_BYTES],
    bytes: usize,
}

impl Default for Message {
    fn default() -> Self {
        Self::new()
    }
}

impl Message {
    /// An empty one.
    pub const fn new() -> Self {
        Self { page: [0; MOST_BYTES], bytes: 0 }
    }

    /// What it says.
    pub fn bytes(&self) -> &[u8] {
        &self.page[..self.bytes]
    }

    /// Sets what it says. False: that has no room, and nothing is changed.
    #[must_use]
    pub fn set(&mut self, bytes: &[u8]) -> bool {
        let Some(to) = self.page.get_mut(..bytes.len()) else { return false };
        to.copy_from_slice(bytes);
        self.bytes = bytes.len();
        true
    }

    /// Has `write` fill it, which returns how many bytes it used; none, if it returns nothing.
    pub fn fill<E>(&mut self, write: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        self.bytes = 0;
        self.bytes = write(&mut self.page)?.min(MOST_BYTES);
        Ok(())
    }

    /// Forgets what it said.
    pub fn clear(&mut self) {
        self.page.fill(0);
        self.bytes = 0;
    }
}

/// Who is at the other end, as the hypervisor knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// What it is.
    pub kind: PeerKind,
    /// Its VM id; 0 of the host.
    pub vm: u16,
    /// How many VMs there were before it: with the id, no two VMs have the same. 0 of the host.
    pub generation: u64,
}

/// What a peer is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerKind {
    /// The host, with all who use it.
    Host,
    /// A VM whose memory the host reaches.
    Plain,
    /// A protected VM whose measurement may still change: who it is is not said yet.
    Open,
    /// A protected VM, by its sealed measurement.
    Protected([u8; 32]),
}

impl Peer {
    fn of(words: [u64; 6]) -> Self {
        let [flags, generation, measurement @ ..] = words;
        let has = |flag: u32| flags as u32 & flag != 0;
        let kind = if has(abi::peer::HOST) {
            PeerKind::Host
        } else if !has(abi::peer::PROTECTED) {
            PeerKind::Plain
        } else if has(abi::peer::MEASURED) && has(abi::peer::SEALED) {
            PeerKind::Protected(digest::from_words(measurement))
        } else {
            PeerKind::Open
        };
        Self { kind, vm: flags as u16, generation }
    }
}

/// A call that is under way. What names it to whom has to answer it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token(u64);

/// What has been received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A call, to be answered with [`Channel::reply`]; how long the caller waits.
    Call(Token, Option<Duration>),
    /// The answer to a call of this side.
    Reply(Token),
    /// Something that nobody answers.
    Notice,
    /// A call of this side got no answer in time.
    Lapsed(Token),
    /// The caller does not want an answer to this call any more.
    Cancelled(Token),
}

/// An event with who it comes from.
#[derive(PartialEq, Eq, Debug)]
pub struct Received {
    /// What it is.
    pub event: Event,
    /// Who sent it.
    pub sender: Peer,
    /// The memory that goes with it: of calls only.
    pub granted: Option<Granted>,
}

fn call<const N: usize>(function: u32, args: [u64; N]) -> Result<[u64; 18], Error> {
    let mut x = [0; 18];
    x[0] = function.into();
    x[1..=N].copy_from_slice(&args);
    let x = machine::get().conduit.call18(x);
    Error::of(x[0]).map(|()| x)
}

fn at(message: &Message) -> u64 {
    message.page.as_ptr() as u64
}

/// As microseconds; a deadline is at least one.
fn micros(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1))
}

/// This VM's end of a channel.
#[derive(Debug)]
pub struct Channel(u64);

impl Channel {
    /// The channel at this port. [`Error::Invalid`]: there is none, yet.
    pub fn open(port: u32) -> Result<Self, Error> {
        call(abi::OPEN, [port.into()]).map(|x| Self(x[1]))
    }

    /// Who is at the other end.
    pub fn peer(&self) -> Result<Peer, Error> {
        let x = call(abi::PEER, [self.0])?;
        Ok(Peer::of([x[1], x[2], x[3], x[4], x[5], x[6]]))
    }

    /// Calls; the token comes again with the reply. After `time` the call lapses.
    pub fn call(&self, message: &Message, time: Option<Duration>) -> Result<Token, Error> {
        let args = [self.0, at(message), message.bytes as u64, micros(time)];
        call(abi::CALL, args).map(|x| Token(x[1]))
    }

    /// Says something that nobody answers.
    pub fn notice(&self, message: &Message) -> Result<(), Error> {
        call(abi::NOTICE, [self.0, at(message), message.bytes as u64]).map(drop)
    }

    /// Answers a call.
    pub fn reply(&self, token: Token, message: &Message) -> Result<(), Error> {
        call(abi::REPLY, [self.0, at(message), message.bytes as u64, token.0]).map(drop)
    }

    /// Wants no answer any more to a call that this side made.
    pub fn cancel(&self, token: Token) -> Result<(), Error> {
        call(abi::CANCEL, [self.0, token.0]).map(drop)
    }

    /// Receives what has waited longest, if anything does.
    pub fn receive(&self, to: &mut Message) -> Result<Received, Error> {
        to.bytes = 0;
        // Written by the hypervisor, so from a pointer that may be written by.
        let page = to.page.as_mut_ptr() as u64;
        let x = call(abi::RECEIVE, [self.0, page, MOST_BYTES as u64])?;
        to.bytes = ((x[1] >> received::BYTES_SHIFT) as usize).min(MOST_BYTES);
        let token = Token(x[2]);
        let event = match x[1] as u32 & 0xFF {
            received::CALL => Event::Call(token, (x[3] != 0).then(|| Duration::from_micros(x[3]))),
            received::REPLY => Event::Reply(token),
            received::NOTICE => Event::Notice,
            received::LAPSED => Event::Lapsed(token),
            received::CANCELLED => Event::Cancelled(token),
            other => return Err(Error::Unknown(other.into())),
        };
        let granted = (x[1] & received::GRANT != 0).then(|| Granted::of([x[10], x[11], x[12]]));
        Ok(Received { event, sender: Peer::of([x[4], x[5], x[6], x[7], x[8], x[9]]), granted })
    }

    /// Calls and waits for the answer, for `time` at most. For an end that only calls: what else comes meanwhile is dropped.
    pub fn exchange(
        &self,
        bell: &Doorbell,
        question: &Message,
        answer: &mut Message,
        time: Option<Duration>,
    ) -> Result<Peer, Error> {
        self.exchange_by(bell, answer, time, || self.call(question, time))
    }

    /// [`exchange`](Self::exchange), whatever the call is.
    fn exchange_by(
        &self,
        bell: &Doorbell,
        answer: &mut Message,
        time: Option<Duration>,
        call: impl Fn() -> Result<Token, Error>,
    ) -> Result<Peer, Error> {
        let deadline = time.map(|time| timer::now().saturating_add(ticks(time)));
        let sent = bell.until(deadline, || settled(call()));
        let token = sent.ok_or(Error::Lapsed)??;
        loop {
            // Past the deadline, receiving tells that the call has lapsed.
            let got = bell.until(deadline, || settled(self.receive(answer)));
            match got.unwrap_or_else(|| self.receive(answer)) {
                Ok(Received { event: Event::Reply(of), sender, .. }) if of == token => return Ok(sender),
                Ok(Received { event: Event::Lapsed(of), .. }) if of == token => return Err(Error::Lapsed),
                Ok(_) => {}
                // The two clocks may differ by a tick.
                Err(Error::Again) => {
                    let _ = self.cancel(token);
                    return Err(Error::Lapsed);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let _ = call(abi::CLOSE, [self.0]);
    }
}

/// All but "again".
fn settled<T>(result: Result<T, Error>) -> Option<Result<T, Error>> {
    (!matches!(result, Err(Error::Again))).then_some(result)
}

fn ticks(time: Duration) -> u64 {
    let ticks = time.as_nanos().saturating_mul(timer::frequency().into()) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}

/// The interrupt that tells of anything new in any channel.
#[derive(Clone, Copy, Debug)]
pub struct Doorbell(());

impl Doorbell {
    /// Has it come to this CPU, whose GIC is set up ([`gic::init_distributor`], [`gic::init_cpu`]). For one CPU.
    pub fn new() -> Result<Self, Error> {
        let intid = call(abi::INFO, [])?[1] as u32;
        gic::set_edge(intid, true);
        gic::route(intid, arch::mpidr());
        gic::enable(intid);
        gic::enable(machine::get().timer_intid);
        Ok(Self(()))
    }

    /// Tries until there is a result, or the counter is at `deadline`. Sleeps in between: what is tried must be something that
    /// an interrupt follows. Uses the virtual timer.
    pub fn until<T>(&self, deadline: Option<u64>, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
        /// PSTATE.I.
        const IRQ_MASKED: u64 = 1 << 7;
        let masked = read_sysreg!("daif") & IRQ_MASKED != 0;
        // So that what comes between the attempt and WFI ends WFI.
        arch::irq_disable();
        let result = loop {
            if let Some(result) = attempt() {
                break Some(result);
            }
            match deadline {
                Some(deadline) if timer::now() >= deadline => break None,
                Some(deadline) => timer::arm_at(deadline),
                None => {}
            }
            arch::wfi();
            // Before its interrupt is taken, which would come again otherwise.
            timer::disarm();
            arch::irq_enable();
            arch::irq_disable();
        };
        if !masked {
            arch::irq_enable();
        }
        result
    }
}

/// The ports of this VM's channels of that name, in the device tree's order: one for each peer at a time.
pub fn places(name: &str) -> ArrayVec<u32, MOST_CHANNELS> {
    let mut ports = ArrayVec::new();
    let Some(fdt) = machine::get().fdt else { return ports };
    for node in fdt.root().children().filter(|node| node.is_compatible("gzvm,rpc")) {
        let (Some(numbers), Some(names)) = (node.property("gzvm,ports"), node.property("gzvm,port-names"))
        else {
            continue;
        };
        let names = names.value().split(|byte| *byte == 0);
        for (cell, its_name) in numbers.value().chunks_exact(4).zip(names) {
            if let ([a, b, c, d], true) = (cell, its_name == name.as_bytes()) {
                let _ = ports.try_push(u32::from_be_bytes([*a, *b, *c, *d]));
            }
        }
    }
    ports
}

/// All channels of a name, for whoever calls there.
pub struct Service {
    places: ArrayVec<(u32, Option<Channel>), MOST_CHANNELS>,
    /// Where to look first, so that nobody is heard all the time.
    first: usize,
}

/// A call to a [`Service`]. It is answered once, and with that nobody looks any more at what came with it.
#[derive(PartialEq, Eq, Debug)]
pub struct Asked {
    place: usize,
    token: Token,
    /// Who calls.
    pub caller: Peer,
    /// The memory that goes with the call.
    pub granted: Option<Granted>,
}

impl Service {
    /// The one of this name in the device tree; it may have no places.
    pub fn new(name: &str) -> Self {
        Self { places: places(name).into_iter().map(|port| (port, None)).collect(), first: 0 }
    }

    /// How many may call at a time.
    pub fn places(&self) -> usize {
        self.places.len()
    }

    /// Waits for the next call; what it says is in `message`.
    pub fn next(&mut self, bell: &Doorbell, message: &mut Message) -> Asked {
        loop {
            if let Some(asked) = bell.until(None, || self.look(message)) {
                return asked;
            }
        }
    }

    /// The next call, if there is one. Peers come and go meanwhile; notices and cancellations are nothing to a service that
    /// answers one call after the other.
    pub fn look(&mut self, message: &mut Message) -> Option<Asked> {
        let count = self.places.len();
        for place in (0..count).map(|n| (self.first + n) % count) {
            let (port, channel) = &mut self.places[place];
            loop {
                let open = match channel.take().map_or_else(|| Channel::open(*port), Ok) {
                    Ok(open) => channel.insert(open),
                    Err(_) => break,
                };
                match open.receive(message) {
                    Ok(Received { event: Event::Call(token, _), sender, granted }) => {
                        self.first = (place + 1) % count;
                        return Some(Asked { place, token, caller: sender, granted });
                    }
                    Ok(_) => {}
                    Err(Error::Again) => break,
                    // There may be another one at this port already.
                    Err(Error::Gone) => *channel = None,
                    Err(_) => {
                        *channel = None;
                        break;
                    }
                }
            }
        }
        None
    }

    /// Answers it.
    pub fn reply(&self, asked: Asked, message: &Message) -> Result<(), Error> {
        let Asked { place, token, .. } = asked;
        let (_, channel) = &self.places[place];
        channel.as_ref().ok_or(Error::Gone)?.reply(token, message)
    }
}
