// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is under way between the two ends of a channel.
//!
//! A call is in one slot of its caller from beginning to end:
//! ```text
//!                  received          reply             received by the caller
//!   Free --call--> Queued ---------> Taken ---------> Answered ---------------> Free
//!                    |  |              |  |              | cancel
//!                    |  | cancel       |  | cancel,      +---------> Free
//!                    |  +--> Free      |  | or the caller has been told that it lapsed
//!                    |                 |  +--> Withdrawn --the server is told--> Free
//!                    | lapsed          | answered too late
//!                    +----> Lapsed <---+
//!                             | the caller is told, or cancels
//!                             +--> Free
//! ```
//! A call may take memory along, a [`Grant`]: a loan to whoever answers. It is the caller's again before the caller is told how the call ended:
//! what would tell it (a reply or lapse that it receives, its cancelling, its leaving) names the loan first ([`Owed`]), to be taken back
//! and [`settled`](Exchange::settle).
//!
//! A notice is Queued until it is received. Time is looked at whenever somebody looks at the slot: nothing happens at the deadline
//! itself, and a caller that waits for it has a timer of its own. Of what can be received, what has been there longest comes first.
//!
//! # Invariants
//! - A token is used once in a channel, and is never 0.
//! - Every call that was made ends in exactly one of: a reply, "lapsed", or its cancellation, for the caller; or with the channel.
//! - A grant is settled once, by its caller alone, and none is left when the call is over.
//! - A side that was told that there is nothing (more), or no room, hears its doorbell when there is.

use gzvm_abi::rpc::{SLOTS, bell, received};

use super::{Bell, Side};
use crate::memory::loans;

/// No deadline.
pub const NEVER: u64 = u64::MAX;

/// Where a message is: whose slot, and which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Whose slot.
    pub side: Side,
    /// Which, below [`SLOTS`].
    pub slot: usize,
}

/// Memory that goes with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The caller's loan to its peer.
    pub loan: loans::Handle,
    /// How many pages.
    pub pages: u64,
    /// The peer may write there.
    pub write: bool,
}

/// The caller has to take this back first, and settle it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owed(pub loans::Handle);

/// What a side receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// One of [`received`].
    pub kind: u32,
    /// The call's name; 0 for a notice.
    pub token: u64,
    /// Bytes of the message.
    pub bytes: usize,
    /// Where it is.
    pub place: Place,
    /// When the call lapses, or [`NEVER`].
    pub deadline: u64,
    /// What goes with the call.
    pub grant: Option<Grant>,
}

impl Event {
    /// Whether it can be received: who made the call is not told of its end while anybody else may have what it granted.
    ///
    /// # Errors
    /// It has to be taken back first.
    pub fn settled(&self) -> Result<(), Owed> {
        match (self.kind, self.grant) {
            (received::REPLY | received::LAPSED, Some(grant)) => Err(Owed(grant.loan)),
            _ => Ok(()),
        }
    }
}

/// There is no such call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoCall;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Free,
    Queued,
    Taken,
    Answered,
    Lapsed,
    Withdrawn,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    phase: Phase,
    /// 0: a notice.
    token: u64,
    bytes: usize,
    deadline: u64,
    /// When it came to its phase, counted in steps of the channel.
    since: u64,
    grant: Option<Grant>,
}

const FREE: Slot = Slot { phase: Phase::Free, token: 0, bytes: 0, deadline: NEVER, since: 0, grant: None };

#[derive(Debug)]
struct End {
    slots: [Slot; SLOTS],
    /// It was told that there is nothing to receive.
    waits: bool,
    /// It was told that there is no room.
    starves: bool,
    bell: Bell,
}

const END: End = End { slots: [FREE; SLOTS], waits: true, starves: false, bell: Bell(0) };

/// All that is under way in a channel.
#[derive(Debug)]
pub struct Exchange {
    ends: [End; 2],
    steps: u64,
    tokens: u64,
}

impl Default for Exchange {
    fn default() -> Self {
        Self { ends: [END; 2], steps: 0, tokens: 0 }
    }
}

impl Exchange {
    /// A slot for something that `side` sends; its doorbell rings when there is one, if there is none.
    pub fn room(&mut self, side: Side) -> Option<Place> {
        let end = side.of_mut(&mut self.ends);
        let slot = end.slots.iter().position(|slot| slot.phase == Phase::Free);
        end.starves = slot.is_none();
        Some(Place { side, slot: slot? })
    }

    /// A call of `bytes` bytes is in a place that [`room`](Self::room) gave. Its token.
    pub fn call(&mut self, place: Place, bytes: usize, deadline: u64, grant: Option<Grant>) -> u64 {
        self.tokens = self.tokens.wrapping_add(1).max(1);
        let token = self.tokens;
        self.queue(place, Slot { phase: Phase::Queued, token, bytes, deadline, grant, ..FREE });
        token
    }

    /// A notice is there.
    pub fn notice(&mut self, place: Place, bytes: usize) {
        self.queue(place, Slot { phase: Phase::Queued, bytes, ..FREE });
    }

    fn queue(&mut self, place: Place, message: Slot) {
        self.put(place, message);
        self.tell(place.side.other());
    }

    /// Where the reply to a call goes that `side` has received.
    ///
    /// # Errors
    /// [`NoCall`], also where it comes too late.
    pub fn reply_place(&mut self, side: Side, token: u64, now: u64) -> Result<Place, NoCall> {
        let (place, slot) = self.find(side.other(), token)?;
        match slot.phase {
            Phase::Taken if now < slot.deadline => Ok(place),
            Phase::Taken => {
                self.lapse(place);
                Err(NoCall)
            }
            _ => Err(NoCall),
        }
    }

    /// A reply of `bytes` bytes is in the place that [`reply_place`](Self::reply_place) gave.
    pub fn reply(&mut self, place: Place, bytes: usize) {
        if let Some(slot) = self.slot(place) {
            slot.bytes = bytes;
        }
        self.enter(place, Phase::Answered);
        self.tell(place.side);
    }

    /// What `side` has to take back before it cancels this call, or leaves (any call).
    ///
    /// # Errors
    /// [`Owed`].
    pub fn owes(&self, side: Side, token: Option<u64>) -> Result<(), Owed> {
        let slots = side.of(&self.ends).slots.iter();
        let mut grants =
            slots.filter(|slot| token.is_none_or(|token| slot.token == token)).filter_map(|slot| slot.grant);
        grants.next().map_or(Ok(()), |grant| Err(Owed(grant.loan)))
    }

    /// `side` has taken it back.
    pub fn settle(&mut self, side: Side, Owed(loan): Owed) {
        for slot in &mut side.of_mut(&mut self.ends).slots {
            slot.grant = slot.grant.filter(|grant| grant.loan != loan);
        }
    }

    /// `side` does not want an answer to its call any more.
    ///
    /// # Errors
    /// [`NoCall`].
    pub fn cancel(&mut self, side: Side, token: u64) -> Result<(), NoCall> {
        let (place, slot) = self.find(side, token)?;
        match slot.phase {
            Phase::Queued | Phase::Answered | Phase::Lapsed => self.put(place, FREE),
            Phase::Taken => {
                self.enter(place, Phase::Withdrawn);
                self.tell(side.other());
            }
            Phase::Free | Phase::Withdrawn => return Err(NoCall),
        }
        Ok(())
    }

    /// What `side` receives next; it stays until it is [`taken`](Self::taken). If there is nothing, its doorbell rings when there is.
    pub fn next(&mut self, side: Side, now: u64) -> Option<Event> {
        let (place, kind) = self.look(side, now)?;
        let Slot { token, deadline, grant, bytes, .. } = *self.slot(place)?;
        let bytes = if matches!(kind, received::LAPSED | received::CANCELLED) { 0 } else { bytes };
        Some(Event { kind, token, bytes, place, deadline, grant })
    }

    /// Where the next one is, and what it is. If there is nothing, the doorbell of `side` rings when there is.
    fn look(&mut self, side: Side, now: u64) -> Option<(Place, u32)> {
        self.lapse_all(side, now);
        let oldest = self.oldest(side, now);
        side.of_mut(&mut self.ends).waits = oldest.is_none();
        oldest
    }

    /// Calls for `side` that nobody can answer in time any more: their caller is told.
    fn lapse_all(&mut self, side: Side, now: u64) {
        let caller = side.other();
        for slot in 0..SLOTS {
            let place = Place { side: caller, slot };
            if self.slot(place).is_some_and(|slot| slot.phase == Phase::Queued && slot.deadline <= now) {
                self.lapse(place);
            }
        }
    }

    /// Its caller is told, as of something that has been there since it was last heard of.
    fn lapse(&mut self, place: Place) {
        if let Some(slot) = self.slot(place) {
            slot.phase = Phase::Lapsed;
        }
        self.tell(place.side);
    }

    fn oldest(&self, side: Side, now: u64) -> Option<(Place, u32)> {
        let of = |from: Side| {
            let slots = from.of(&self.ends).slots.iter().enumerate();
            slots.filter_map(move |(n, slot)| {
                let kind = if from == side { slot.for_caller(now) } else { slot.for_server() }?;
                Some((slot.since, Place { side: from, slot: n }, kind))
            })
        };
        of(side)
            .chain(of(side.other()))
            .min_by_key(|(since, ..)| *since)
            .map(|(_, place, kind)| (place, kind))
    }

    /// `side` has received this, which [`next`](Self::next) gave. Whether there is more.
    pub fn taken(&mut self, side: Side, event: &Event, now: u64) -> bool {
        let caller = event.place.side;
        match event.kind {
            received::CALL => self.enter(event.place, Phase::Taken),
            // It may still be with the server, which has to know.
            received::LAPSED if self.slot(event.place).is_some_and(|slot| slot.phase == Phase::Taken) => {
                self.enter(event.place, Phase::Withdrawn);
                self.tell(caller.other());
            }
            _ => self.put(event.place, FREE),
        }
        self.look(side, now).is_some()
    }

    /// What `side`'s doorbell rings for since the last time.
    pub fn take_bell(&mut self, side: Side) -> Bell {
        core::mem::take(&mut side.of_mut(&mut self.ends).bell)
    }

    fn tell(&mut self, side: Side) {
        let end = side.of_mut(&mut self.ends);
        if core::mem::take(&mut end.waits) {
            end.bell |= Bell(bell::MESSAGE);
        }
    }

    fn put(&mut self, place: Place, value: Slot) {
        let phase = value.phase;
        if let Some(slot) = self.slot(place) {
            *slot = value;
        }
        self.enter(place, phase);
        let end = place.side.of_mut(&mut self.ends);
        if phase == Phase::Free && core::mem::take(&mut end.starves) {
            end.bell |= Bell(bell::ROOM);
        }
    }

    fn enter(&mut self, place: Place, phase: Phase) {
        self.steps = self.steps.wrapping_add(1);
        let since = self.steps;
        if let Some(slot) = self.slot(place) {
            (slot.phase, slot.since) = (phase, since);
        }
    }

    fn slot(&mut self, place: Place) -> Option<&mut Slot> {
        place.side.of_mut(&mut self.ends).slots.get_mut(place.slot)
    }

    fn find(&self, side: Side, token: u64) -> Result<(Place, Slot), NoCall> {
        let slots = side.of(&self.ends).slots.iter().enumerate();
        // Notices have no name.
        let mut found = slots.filter(|(_, slot)| token != 0 && slot.token == token);
        found.next().map(|(n, slot)| (Place { side, slot: n }, *slot)).ok_or(NoCall)
    }
}

impl Slot {
    fn for_caller(&self, now: u64) -> Option<u32> {
        match self.phase {
            Phase::Answered => Some(received::REPLY),
            Phase::Lapsed => Some(received::LAPSED),
            Phase::Queued | Phase::Taken if self.deadline <= now => Some(received::LAPSED),
            _ => None,
        }
    }

    fn for_server(&self) -> Option<u32> {
        match self.phase {
            Phase::Queued if self.token == 0 => Some(received::NOTICE),
            Phase::Queued => Some(received::CALL),
            Phase::Withdrawn => Some(received::CANCELLED),
            _ => None,
        }
    }
}
