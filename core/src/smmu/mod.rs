// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Arm's SMMUv3 (IHI 0070), as far as we drive it: non-secure state, stage 2 only, queues that are polled.
//!
//! ```text
//!   device --StreamID--> stream table --STE--> the host's stage-2 tables --> memory
//!                            |                        |
//!                   not known: abort         not mapped: abort, and an event
//! ```
//! - [`registers`]: what the SMMU offers, and the values that its registers get;
//! - [`stream_table`]: which streams translate, and the table that says so;
//! - [`queue`], [`command`], [`event`]: what is told to it, and what it tells.
//!
//! Bypass is in no value that is made here: neither as the global attribute (GBPA) nor in an STE.

pub mod command;
pub mod event;
pub mod queue;
pub mod registers;
pub mod stream_table;
#[cfg(test)]
mod tests;

/// Why an SMMU can't be driven. Its devices stay blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// IDR0.S2P = 0.
    #[error("it has no stage 2")]
    NoStage2,
    /// IDR0.COHACC = 0: its table walks would need cache maintenance with each change.
    #[error("its table walks are not coherent")]
    NotCoherent,
    /// IDR0.TTF, TTENDIAN, IDR5.GRAN4K.
    #[error("it does not walk little-endian AArch64 tables of 4 KiB")]
    Tables,
    /// IDR1.TABLES_PRESET, QUEUES_PRESET.
    #[error("its tables and queues are where firmware put them")]
    Preset,
    /// IDR5.OAS: the host's tables don't fit.
    #[error("its addresses are too short for the host's tables")]
    Addresses,
    /// The streams would take too large a table, or the device tree names more ranges than are handled.
    #[error("too many streams")]
    Streams,
    /// No memory for its tables and queues.
    #[error("no memory for its tables")]
    NoMemory,
    /// It did not take a register's value in time.
    #[error("it does not answer")]
    Silent,
}
