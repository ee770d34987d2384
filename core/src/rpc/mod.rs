// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls between VMs, and between VMs and the host, carried by EL2.
//!
//! ```text
//!      VM a                        channel                       VM b, or the host
//!   endpoint A  --- call, notice --> [ slots of A ] --> received by B
//!               <-- reply ---------- [ slots of A ] <-- replied by B
//!               <-- call, notice --- [ slots of B ] <-- endpoint B
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`exchange`] | what is under way in a channel: calls, notices, deadlines, cancellation, doorbells, and what calls grant |
//! | [`channel`] | whose the two endpoints are, their handles, and the end of one of them |
//! | [`call`] | the guests' calls, decoded |
//!
//! A slot holds a call and later its reply, so whoever could call can be answered: a reply never waits for room. A side has
//! as many slots as it may have calls and notices under way, made with the channel: nothing is allocated to send, and who floods a
//! peer fills its own slots. Nothing here waits, and nothing takes longer than a look at all slots.

pub mod call;
pub mod channel;
pub mod exchange;
#[cfg(test)]
mod tests;

/// One of the two ends of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that was named first.
    A,
    /// The other.
    B,
}

impl Side {
    /// The other end.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// The one of two things that is this side's.
    pub const fn of<T>(self, [a, b]: &[T; 2]) -> &T {
        match self {
            Self::A => a,
            Self::B => b,
        }
    }

    /// As [`of`](Self::of).
    pub const fn of_mut<T>(self, [a, b]: &mut [T; 2]) -> &mut T {
        match self {
            Self::A => a,
            Self::B => b,
        }
    }
}

/// What an endpoint is told by its doorbell: bits of [`bell`](gzvm_abi::rpc::bell).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Bell(pub u32);

impl Bell {
    /// Whether it is silent.
    pub const fn is_silent(self) -> bool {
        self.0 == 0
    }
}

impl core::ops::BitOrAssign for Bell {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
