// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Indices of a circular queue (IHI 0070, 3.5.1): `log2` bits of index, and above them a bit that changes with every
//! round, which tells a full queue from an empty one.

/// EVENTQ_PROD.OVFLG and EVENTQ_CONS.OVACKFLG: they differ where events were lost.
pub const OVERFLOW: u32 = 1 << 31;

/// A queue of `1 << log2` entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    log2: u8,
}

impl Queue {
    /// At most 2^19 entries, as the architecture has it.
    pub const fn new(log2: u8) -> Self {
        Self { log2: if log2 > 19 { 19 } else { log2 } }
    }

    /// log2 of its entries.
    pub const fn log2(self) -> u8 {
        self.log2
    }

    /// How many entries it holds.
    pub const fn entries(self) -> u32 {
        1u32.wrapping_shl(self.log2 as u32)
    }

    /// Index and round of a register's value.
    pub const fn position(self, register: u32) -> u32 {
        register & self.entries().wrapping_mul(2).wrapping_sub(1)
    }

    /// The entry at a position.
    pub const fn index(self, position: u32) -> u32 {
        position & self.entries().wrapping_sub(1)
    }

    /// The next position.
    pub const fn next(self, position: u32) -> u32 {
        self.position(position.wrapping_add(1))
    }

    /// Entries written and not yet consumed; a producer that lies gives at most as many as there are.
    pub const fn pending(self, producer: u32, consumer: u32) -> u32 {
        let n = self.position(self.position(producer).wrapping_sub(self.position(consumer)));
        if n > self.entries() { self.entries() } else { n }
    }
}
