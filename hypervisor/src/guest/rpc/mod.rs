// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Channels between VMs, and between VMs and the host: their memory, who may use them, and the guests' calls. What happens in
//! one is decided in [`gzvm_core::rpc`]; here messages are copied, doorbells rung, pages charged. The calls themselves are in [`calls`].
//!
//! A VM may have channels if the host said so before it ran ([`Policy`]). Each VM at a channel is charged for all of its
//! pages, since either may be the one that is left; until it leaves. The buffers go as soon as one side does.
//!
//! # The end of a VM
//! [`end_step`] takes it from all its channels in one step: there are [`MOST_CHANNELS`](gzvm_abi::rpc::MOST_CHANNELS) at the most. Each peer that is a VM
//! finds its doorbell rung; the host knows that it destroys the VM, and which channels it has made.
//!
//! # Locks
//! Own memory, then a channel, then [`lending`]'s books, then ownership or pool. Doorbells are rung with no channel locked: the peer is looked up anew then,
//! and whoever is about to go needs none. No lock of a peer is taken but its vGIC's, a leaf.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gzvm_abi::digest;
use gzvm_abi::rpc::{MOST_BYTES, SLOTS, peer, received, status, with};
use gzvm_core::addr::{IntId, Ipa};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::memory::loans;
use gzvm_core::memory::stage2::Progress;
use gzvm_core::rpc::call;
use gzvm_core::rpc::channel::{Channel, End, Handle, Who};
use gzvm_core::rpc::exchange::{Event, Grant, Owed, Place};
use gzvm_core::rpc::{Bell, Side};

use super::lending;
use super::registry::{self, VmRef};
use super::vm::Vm;
use crate::arch::lock::{Mutex, MutexGuard};
use crate::arch::timer;
use crate::mem::boxed::{PageBox, pages_of};
use crate::mem::pool::Exhausted;

mod calls;

/// Channels at a time: what a handle's index can name.
const MOST_LINES: usize = 256;

/// The messages in the slots of both sides.
type Buffers = [[[u8; MOST_BYTES]; SLOTS]; 2];

/// A channel with its memory.
pub struct Line {
    channel: Channel,
    /// While it is open.
    buffers: Option<PageBox<Buffers>>,
}

type Slot = Mutex<Option<PageBox<Line>>>;

static LINES: [Slot; MOST_LINES] = [const { Mutex::new(None) }; MOST_LINES];
/// Channels made so far, and one.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// Pages that a channel takes.
const PAGES: u64 = (pages_of::<Line>() + pages_of::<Buffers>()) as u64;

/// With whom a VM may have channels, and how it is told of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A mask of [`with`].
    pub with: u8,
    /// How many.
    pub most: u8,
    /// Its doorbell.
    pub doorbell: IntId,
}

impl Policy {
    fn pack(self) -> u64 {
        u64::from(self.doorbell.0) << 32 | u64::from(self.most) << 8 | u64::from(self.with)
    }

    fn unpack(word: u64) -> Option<Self> {
        let policy = Self { with: word as u8, most: (word >> 8) as u8, doorbell: IntId((word >> 32) as u32) };
        (word != 0).then_some(policy)
    }

    fn allows(self, kind: u64) -> bool {
        u64::from(self.with) & kind != 0
    }
}

/// A VM's part in channels.
pub struct VmRpc {
    /// A packed [`Policy`], 0 for none. Written once, before the VM runs.
    policy: AtomicU64,
    channels: AtomicU32,
}

impl VmRpc {
    /// No channels.
    pub const fn new() -> Self {
        Self { policy: AtomicU64::new(0), channels: AtomicU32::new(0) }
    }

    /// Its policy, if it may have channels.
    pub fn policy(&self) -> Option<Policy> {
        Policy::unpack(self.policy.load(Ordering::Relaxed))
    }

    /// Sets the policy, once. Whether it was the first time.
    pub fn set_policy(&self, policy: Policy) -> bool {
        self.policy.compare_exchange(0, policy.pack(), Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Why something is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An argument, or whose it is.
    Invalid,
    /// Nothing there, or no room.
    Again,
    /// The other side has gone.
    Gone,
    /// No such call is under way.
    NoCall,
    /// What is to be received does not fit; it is told of.
    TooSmall,
    /// The driver has to bring this page first.
    Absent(Ipa),
    /// The caller has to take this back first.
    Owes(Owed),
}

impl From<Owed> for Failure {
    fn from(owed: Owed) -> Self {
        Self::Owes(owed)
    }
}

impl Failure {
    /// The status that tells of it.
    pub const fn status(self) -> i64 {
        match self {
            Self::Invalid | Self::Absent(_) | Self::Owes(_) => status::INVALID,
            Self::Again => status::AGAIN,
            Self::Gone => status::GONE,
            Self::NoCall => status::NO_CALL,
            Self::TooSmall => status::TOO_SMALL,
        }
    }
}

/// Who has to be told of what a call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Nobody, or a vCPU that does not sleep.
    Nobody,
    /// vCPUs (bit n: vCPU n) of this VM, which sleep.
    Sleepers(u16, u64),
    /// The host, about its endpoint.
    Host(Handle, Bell),
}

impl Told {
    /// The vCPUs to wake.
    pub const fn vcpus(self) -> u64 {
        match self {
            Self::Sleepers(_, vcpus) => vcpus,
            _ => 0,
        }
    }
}

/// What has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Received {
    /// One of [`received`].
    pub kind: u32,
    /// Bytes of the message.
    pub bytes: usize,
    /// The call's name.
    pub token: u64,
    /// µs left for the call.
    pub time: u64,
    /// There is more.
    pub more: bool,
    /// Who sent it.
    pub sender: Peer,
    /// What goes with it, a call.
    pub grant: Option<Grant>,
}

/// A peer, as EL2 knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Peer {
    /// VM id and flags.
    pub id_and_flags: u32,
    /// Which of the VMs with this id.
    pub generation: u64,
    /// Its measurement.
    pub measurement: [u8; 32],
}

impl Peer {
    /// What is said of it changes until it is sealed, so it is asked each time.
    fn of(end: End) -> Result<Self, Failure> {
        let mut peer =
            Self { id_and_flags: end.id_and_flags(), generation: end.generation(), measurement: [0; 32] };
        if let Who::Vm(party) = end.who {
            let vm = registry::get(party.id.0.into()).map_err(|_| Failure::Gone)?;
            let vm = vm.vm().filter(|vm| vm.party == party).ok_or(Failure::Gone)?;
            if let Some(measurement) = vm.identity().measurement {
                let sealed = if measurement.sealed() { peer::SEALED } else { 0 };
                peer.id_and_flags |= peer::MEASURED | sealed;
                peer.measurement = *measurement.value();
            }
        }
        Ok(peer)
    }

    /// As PEER tells it.
    fn registers(self) -> [u64; 6] {
        let mut words = [self.id_and_flags.into(), self.generation, 0, 0, 0, 0];
        words[2..].copy_from_slice(&digest::words(&self.measurement));
        words
    }
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// A call that lapses in so many µs; 0: never. With a loan of the caller's.
    Call(u64, Option<loans::Handle>),
    /// A notice.
    Notice,
    /// The reply to the call with this token.
    Reply(u64),
}

impl Line {
    fn buffer(&mut self, place: Place) -> Option<&mut [u8; MOST_BYTES]> {
        place.side.of_mut(self.buffers.as_deref_mut()?).get_mut(place.slot)
    }

    /// `side` sends `bytes` bytes, which `copy` puts there. The token, of a call or reply.
    pub fn send(
        &mut self,
        side: Side,
        what: Sending,
        bytes: usize,
        copy: impl FnOnce(&mut [u8]) -> Result<(), Failure>,
    ) -> Result<u64, Failure> {
        let now = timer::now();
        let exchange = &mut self.channel.exchange;
        let place = match what {
            Sending::Reply(token) => exchange.reply_place(side, token, now).map_err(|_| Failure::NoCall)?,
            Sending::Call(..) | Sending::Notice => exchange.room(side).ok_or(Failure::Again)?,
        };
        let grant = match what {
            Sending::Call(_, Some(loan)) => {
                let [from, to] = [side, side.other()].map(|side| self.channel.end(side).who);
                Some(lending::granted(from, loan, to).ok_or(Failure::Invalid)?)
            }
            _ => None,
        };
        if bytes != 0 {
            copy(self.buffer(place).and_then(|buffer| buffer.get_mut(..bytes)).ok_or(Failure::Invalid)?)?;
        }
        let exchange = &mut self.channel.exchange;
        Ok(match what {
            Sending::Call(time, _) => {
                exchange.call(place, bytes, call::deadline(time, now, timer::frequency()), grant)
            }
            Sending::Notice => {
                exchange.notice(place, bytes);
                0
            }
            Sending::Reply(token) => {
                exchange.reply(place, bytes);
                token
            }
        })
    }

    /// `side` receives what `copy` takes from there, if it is not more than `room`.
    pub fn receive(
        &mut self,
        side: Side,
        room: usize,
        message: &mut Received,
        copy: impl FnOnce(&Received, &[u8]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let now = timer::now();
        let event = self.channel.exchange.next(side, now).ok_or(Failure::Again)?;
        event.settled()?;
        *message = Received {
            kind: event.kind,
            bytes: event.bytes,
            token: event.token,
            time: self.time_left(&event, now),
            more: true,
            sender: self.peer(if broken(Mistake::OwnName) { side.other() } else { side })?,
            grant: event.grant.filter(|_| event.kind == received::CALL),
        };
        if event.bytes > room {
            return Err(Failure::TooSmall);
        }
        copy(message, self.buffer(event.place).and_then(|b| b.get(..event.bytes)).ok_or(Failure::Invalid)?)?;
        message.more = self.channel.exchange.taken(side, &event, now);
        Ok(())
    }

    fn time_left(&self, event: &Event, now: u64) -> u64 {
        match event.kind {
            received::CALL => call::time_left(event.deadline, now, timer::frequency()),
            _ => 0,
        }
    }

    /// `side` cancels its call.
    pub fn cancel(&mut self, side: Side, token: u64) -> Result<(), Failure> {
        self.channel.exchange.owes(side, Some(token))?;
        self.channel.exchange.cancel(side, token).map_err(|_| Failure::NoCall)
    }

    /// Who is at the other end.
    fn peer(&self, side: Side) -> Result<Peer, Failure> {
        Peer::of(self.channel.end(side.other()))
    }
}

fn line(handle: Handle) -> MutexGuard<'static, Option<PageBox<Line>>> {
    LINES[usize::from(handle.index())].lock()
}

/// What `who` does at its endpoint; and who has to be told of it, whether or not it is done.
pub fn at<T>(
    handle: Handle,
    who: Who,
    act: impl FnOnce(&mut Line, Side) -> Result<T, Failure>,
) -> (Result<T, Failure>, Told) {
    let (outcome, end, other, bell) = {
        let mut slot = line(handle);
        let Some(line) = slot.as_deref_mut() else { return (Err(Failure::Invalid), Told::Nobody) };
        let Ok(side) = line.channel.side(handle, who) else { return (Err(Failure::Invalid), Told::Nobody) };
        if !line.channel.is_open() {
            return (Err(Failure::Gone), Told::Nobody);
        }
        let outcome = act(line, side);
        let other = side.other();
        let bell = line.channel.exchange.take_bell(other);
        // Whoever acts hears of it by the answer.
        let _ = line.channel.exchange.take_bell(side);
        (outcome, line.channel.end(other), line.channel.handle(other), bell)
    };
    (outcome, tell(end, other, bell))
}

/// Rings a doorbell. No channel is locked.
fn tell(end: End, handle: Handle, bell: Bell) -> Told {
    match end.who {
        _ if bell.is_silent() => Told::Nobody,
        Who::Host => Told::Host(handle, bell),
        Who::Vm(party) => {
            let Ok(vm) = registry::get(party.id.0.into()) else { return Told::Nobody };
            let Some(vm) = vm.vm().filter(|vm| vm.party == party) else { return Told::Nobody };
            match ring(vm) {
                0 => Told::Nobody,
                vcpus => Told::Sleepers(party.id.0, vcpus),
            }
        }
    }
}

/// Raises a VM's doorbell; those of its vCPUs that sleep.
fn ring(vm: &Vm) -> u64 {
    let Some(policy) = vm.rpc.policy() else { return 0 };
    // A VM with fewer SPIs has no doorbell, and looks by itself.
    let kicks = vm.vgic.lock().set_line(policy.doorbell, None, true);
    kicks.map_or(0, |kicks| vm.kick(kicks))
}

/// Why there is no new channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoChannel {
    /// A policy is against it, the port is in use, or a VM is over.
    Refused,
    /// No pages, or too many channels.
    NoMemory,
}

impl From<Exhausted> for NoChannel {
    fn from(_: Exhausted) -> Self {
        Self::NoMemory
    }
}

/// A VM's part in a channel that is being made: paid for until it is dropped, or kept.
struct Seat<'a>(&'a Vm);

/// What a VM is, to a policy; decided with its first vCPU. Under the lock: a `protect` that fails undoes what it did.
fn kind(vm: &Vm) -> Result<u64, NoChannel> {
    if vm.vcpu_count.load(Ordering::SeqCst) == 0 {
        return Err(NoChannel::Refused);
    }
    let _memory = vm.memory.lock();
    Ok(if vm.protected() { with::PROTECTED } else { with::PLAIN })
}

impl<'a> Seat<'a> {
    fn take(vm: &'a Vm, peer: u64, port: u32) -> Result<Self, NoChannel> {
        let policy = vm.rpc.policy().filter(|policy| policy.allows(peer)).ok_or(NoChannel::Refused)?;
        if !vm.life.state().can_grow() || find(vm, port).is_some() {
            return Err(NoChannel::Refused);
        }
        let more = |channels: u32| (channels < u32::from(policy.most)).then_some(channels.wrapping_add(1));
        let counted = vm.rpc.channels.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.map_err(|_| NoChannel::NoMemory)?;
        let paid = vm.memory.lock().account.charge(PAGES);
        paid.map(|()| Self(vm)).map_err(|_| {
            vm.rpc.channels.fetch_sub(1, Ordering::Relaxed);
            NoChannel::NoMemory
        })
    }

    fn end(&self, port: u32, kind: u64) -> End {
        End { who: Who::Vm(self.0.party), port, protected: kind == with::PROTECTED }
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.rpc.channels.fetch_sub(1, Ordering::Relaxed);
        let _ = self.0.memory.lock().account.refund(PAGES);
    }
}

/// A channel between `a` and `b`, or the host, each with its port. Its handle (the host's, or the first VM's), and the
/// vCPUs that sleep of both.
pub fn connect(a: (&VmRef, u32), b: (Option<&VmRef>, u32)) -> Result<(Handle, [u64; 2]), NoChannel> {
    let first = a.0.vm().ok_or(NoChannel::Refused)?;
    let second = b.0.and_then(VmRef::vm);
    if second.is_some_and(|vm| vm.party == first.party) {
        return Err(NoChannel::Refused);
    }
    let kinds = [kind(first)?, second.map_or(Ok(with::HOST), kind)?];
    let seat = Seat::take(first, kinds[1], a.1)?;
    let other = second.map(|vm| Seat::take(vm, kinds[0], b.1)).transpose()?;
    let host = End { who: Who::Host, port: b.1, protected: false };
    let ends = [seat.end(a.1, kinds[0]), other.as_ref().map_or(host, |seat| seat.end(b.1, kinds[1]))];
    let buffers = PageBox::<Buffers>::zeroed()?;
    let generation = GENERATION.fetch_add(1, Ordering::Relaxed);
    let mut new = PageBox::new(Line { channel: Channel::new(0, generation, ends), buffers: Some(buffers) })?;
    for (index, place) in (0u8..=u8::MAX).zip(&LINES) {
        let mut place = place.lock();
        if place.is_some() {
            continue;
        }
        new.channel = Channel::new(index, generation, ends);
        let side = if other.is_some() { Side::A } else { Side::B };
        let handle = new.channel.handle(side);
        *place = Some(new);
        drop(place);
        core::mem::forget((seat, other));
        return Ok((handle, [ring(first), second.map_or(0, ring)]));
    }
    Err(NoChannel::NoMemory)
}

/// The VM's open endpoint at a port.
fn find(vm: &Vm, port: u32) -> Option<Handle> {
    if vm.rpc.channels.load(Ordering::Relaxed) == 0 {
        return None;
    }
    LINES.iter().find_map(|line| line.lock().as_deref()?.channel.at(Who::Vm(vm.party), port))
}

/// What a side hears of the end of the other: endpoint, handle, bell.
type Hears = (End, Handle, Bell);

/// One side leaves the channel in this slot, which is empty if that was the last.
fn leave(slot: &mut Option<PageBox<Line>>, side: Side) -> Option<Hears> {
    let line = slot.as_deref_mut()?;
    let other = side.other();
    let was_open = line.channel.is_open();
    let bell = line.channel.leave(side);
    line.buffers = None;
    let hears = (line.channel.end(other), line.channel.handle(other), bell);
    if line.channel.is_over() {
        *slot = None;
    }
    was_open.then_some(hears)
}

/// A VM leaves one of its channels.
fn close(vm: &Vm, handle: Handle) -> Result<Told, Failure> {
    let hears = {
        let mut slot = line(handle);
        let line = slot.as_deref().ok_or(Failure::Invalid)?;
        let side = line.channel.side(handle, Who::Vm(vm.party)).map_err(|_| Failure::Invalid)?;
        line.channel.exchange.owes(side, None)?;
        leave(&mut slot, side)
    };
    drop(Seat(vm));
    Ok(hears.map_or(Told::Nobody, |(end, handle, bell)| tell(end, handle, bell)))
}

/// `vm` has taken back what it owed at its endpoint.
fn settle(handle: Handle, vm: &Vm, owed: Owed) {
    let mut slot = line(handle);
    let Some(line) = slot.as_deref_mut() else { return };
    if let Ok(side) = line.channel.side(handle, Who::Vm(vm.party)) {
        line.channel.exchange.settle(side, owed);
    }
}

/// The host closes a channel: leaves it, if it is at one end, else takes it from both VMs. The vCPUs that sleep of both.
pub fn sever(handle: Handle) -> Result<[u64; 2], Failure> {
    let mut hear: [Option<Hears>; 2] = [None; 2];
    {
        let mut slot = line(handle);
        let line =
            slot.as_deref_mut().filter(|line| line.channel.is_named(handle)).ok_or(Failure::Invalid)?;
        if let Some(side) = line.channel.side_of(Who::Host) {
            hear[0] = leave(&mut slot, side);
        } else if line.channel.is_open() {
            line.buffers = None;
            hear = [Side::A, Side::B].map(|side| {
                let bell = line.channel.sever(side);
                Some((line.channel.end(side), line.channel.handle(side), bell))
            });
        } else {
            return Err(Failure::Invalid);
        }
    }
    Ok(hear.map(|hears| hears.map_or(0, |(end, handle, bell)| tell(end, handle, bell).vcpus())))
}

/// Takes a VM that ends, with nobody inside it, from its channels.
pub fn end_step(vm: &mut Vm) -> Progress {
    if *vm.rpc.channels.get_mut() == 0 {
        return Progress::Done;
    }
    *vm.rpc.channels.get_mut() = 0;
    for line in &LINES {
        let hears = {
            let mut slot = line.lock();
            let side = slot.as_deref().and_then(|line| line.channel.side_of(Who::Vm(vm.party)));
            side.and_then(|side| leave(&mut slot, side))
        };
        if let Some((end, handle, bell)) = hears {
            // Who destroys the VM wakes the sleepers, having made the channels: see `sever`.
            let _ = tell(end, handle, bell);
        }
    }
    Progress::More
}
