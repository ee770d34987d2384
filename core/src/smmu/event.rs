// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Events (IHI 0070, 7.3): what the SMMU says of a transaction that it aborted.

use core::fmt;

/// Words of an entry.
pub const WORDS: u64 = 4;

/// A record of the event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Event number.
    pub kind: u8,
    /// StreamID: which device.
    pub stream: u32,
    /// A store, where the event has an address.
    pub write: bool,
    /// The address that the device named, where the event has one.
    pub address: u64,
}

impl Event {
    /// From the record's words.
    pub const fn decode(words: [u64; 4]) -> Self {
        let [first, second, third, _] = words;
        Self {
            kind: first as u8,
            stream: (first >> 32) as u32,
            // RnW
            write: second & 1 << 35 == 0,
            address: third,
        }
    }

    const fn name(&self) -> Option<&'static str> {
        Some(match self.kind {
            0x02 => "C_BAD_STREAMID",
            0x03 => "F_STE_FETCH",
            0x04 => "C_BAD_STE",
            0x0B => "F_WALK_EABT",
            0x10 => "F_TRANSLATION",
            0x11 => "F_ADDR_SIZE",
            0x12 => "F_ACCESS",
            0x13 => "F_PERMISSION",
            _ => return None,
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:#x}", self.stream)?;
        if matches!(self.kind, 0x0B..=0x13) {
            write!(f, ", {} at {:#x}", if self.write { "write" } else { "read" }, self.address)?;
        }
        match self.name() {
            Some(name) => write!(f, ": {name}"),
            None => write!(f, ": event {:#x}", self.kind),
        }
    }
}
