// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A channel: whose its two endpoints are, how they name them, and what becomes of one without the other.
//!
//! ```text
//!   open --one side leaves, or the host severs it--> severed --the sides that are left leave--> gone
//! ```
//! What nobody has received when a channel is severed is gone. Who is left is told ([`bell::GONE`]), and never waits for an answer
//! that can't come. A VM keeps a handle that is good for nothing but leaving; the host keeps nothing.

use gzvm_abi::rpc::{bell, peer};

use super::exchange::Exchange;
use super::{Bell, Side};
use crate::broken::{Mistake, broken};
use crate::memory::loans::Party;

/// Bits of a handle below the generation: the channel's index, and the side.
const INDEX_SHIFT: u32 = 1;
const GENERATION_SHIFT: u32 = 16;

/// An endpoint's name. No secret: who may use it is decided by who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub u64);

impl Handle {
    /// The name of one side of the channel at `index`, of which there were `generation` before; that is never 0.
    pub const fn new(index: u8, side: Side, generation: u64) -> Self {
        Self(generation << GENERATION_SHIFT | (index as u64) << INDEX_SHIFT | matches!(side, Side::B) as u64)
    }

    /// Where the channel is, if anywhere.
    pub const fn index(self) -> u8 {
        (self.0 >> INDEX_SHIFT) as u8
    }

    const fn side(self) -> Side {
        if self.0 & 1 == 0 { Side::A } else { Side::B }
    }
}

/// Who has an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The host.
    Host,
    /// A VM.
    Vm(Party),
}

/// An endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Whose it is.
    pub who: Who,
    /// The number under which it finds it.
    pub port: u32,
    /// It is a protected VM's.
    pub protected: bool,
}

impl End {
    /// VM id and [`peer`] flags, as the other side is told.
    pub const fn id_and_flags(self) -> u32 {
        let id = match self.who {
            Who::Host => peer::HOST,
            Who::Vm(party) => party.id.0 as u32,
        };
        if self.protected { id | peer::PROTECTED } else { id }
    }

    /// Which of the VMs with this id.
    pub const fn generation(self) -> u64 {
        match self.who {
            Who::Host => 0,
            Who::Vm(party) => party.generation,
        }
    }
}

/// The handle is none, or not the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown;

/// Two endpoints, and what is under way between them.
#[derive(Debug)]
pub struct Channel {
    index: u8,
    generation: u64,
    ends: [End; 2],
    there: [bool; 2],
    open: bool,
    /// What is under way.
    pub exchange: Exchange,
}

impl Channel {
    /// A channel between `ends`, at `index`; `generation` is used for none other.
    pub fn new(index: u8, generation: u64, ends: [End; 2]) -> Self {
        Self { index, generation, ends, there: [true; 2], open: true, exchange: Exchange::default() }
    }

    /// Whether `handle` is a name of this channel.
    pub fn is_named(&self, handle: Handle) -> bool {
        handle == self.handle(handle.side())
    }

    /// The side that `handle` names, if it is `who`'s.
    ///
    /// # Errors
    /// [`Unknown`], whatever is wrong with it.
    pub fn side(&self, handle: Handle, who: Who) -> Result<Side, Unknown> {
        let side = handle.side();
        let is_whos = self.end(side).who == who || broken(Mistake::AnyEndpoint);
        if self.is_named(handle) && self.is_there(side) && is_whos { Ok(side) } else { Err(Unknown) }
    }

    /// `who`'s open endpoint at `port`.
    pub fn at(&self, who: Who, port: u32) -> Option<Handle> {
        let side = self.side_of(who)?;
        (self.open && self.end(side).port == port).then(|| self.handle(side))
    }

    /// The side that is `who`'s, unless it has left.
    pub fn side_of(&self, who: Who) -> Option<Side> {
        [Side::A, Side::B].into_iter().find(|side| self.is_there(*side) && self.end(*side).who == who)
    }

    /// One of the two.
    pub const fn end(&self, side: Side) -> End {
        *side.of(&self.ends)
    }

    /// Its name.
    pub const fn handle(&self, side: Side) -> Handle {
        Handle::new(self.index, side, self.generation)
    }

    /// Whether that side has not left.
    pub const fn is_there(&self, side: Side) -> bool {
        *side.of(&self.there)
    }

    /// Whether both are there, and the host has not severed it.
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// One side leaves. What the other one's doorbell rings for. The host's endpoint goes with its VM's: it keeps books of its own.
    pub fn leave(&mut self, side: Side) -> Bell {
        let other = side.other();
        let bell = self.sever(other);
        *side.of_mut(&mut self.there) = false;
        if self.end(other).who == Who::Host {
            *other.of_mut(&mut self.there) = false;
        }
        bell
    }

    /// Nothing goes through any more. What `side`'s doorbell rings for.
    pub fn sever(&mut self, side: Side) -> Bell {
        self.open = false;
        if self.is_there(side) && !broken(Mistake::SilentEnd) { Bell(bell::GONE) } else { Bell::default() }
    }

    /// Whether nobody is left.
    pub const fn is_over(&self) -> bool {
        let [a, b] = self.there;
        !a && !b
    }
}
