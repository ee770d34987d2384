// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The stream table (IHI 0070, 5.1 and 5.2): each known stream translates by one and the same stage 2, all others abort.
//!
//! Since all entries are alike, first-level entries whose 64 streams are all known share one leaf. So 65,536 streams of a PCI
//! host bridge cost three pages, not a thousand.
//!
//! ```text
//!   first level           leaves of 64 STEs
//!   +---------+
//!   | 0..63   |---+
//!   | 64..127 |---+--> all known: stage 2 in each
//!   | 128..   |------> some known: a leaf of its own, the others invalid (abort, C_BAD_STE)
//!   | 192..   |        none: Span = 0 (abort, C_BAD_STREAMID)
//!   +---------+
//! ```

use arrayvec::ArrayVec;

use super::Unfit;
use super::registers::Features;
use crate::addr::Pa;
use crate::broken::{Mistake, broken};

/// Most ranges of streams of an SMMU.
pub const MAX_STREAM_RANGES: usize = 32;

/// log2 of a leaf's entries: 4 KiB.
const SPLIT: u8 = 6;
const STE_WORDS: u64 = 8;
/// Largest linear table, log2 of entries: 64 KiB.
const MAX_LINEAR: u8 = 10;
/// Largest two-level table, log2 of streams: a first level of 256 KiB.
const MAX_TWO_LEVEL: u8 = 21;

/// Streams with consecutive IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRange {
    /// The first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

impl StreamRange {
    fn end(&self) -> u64 {
        u64::from(self.first).saturating_add(self.count.into())
    }

    fn overlap(&self, first: u64, end: u64) -> u64 {
        self.end().min(end).saturating_sub(u64::from(self.first).max(first))
    }
}

/// The streams that an SMMU's devices have; no two ranges have one in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    ranges: ArrayVec<StreamRange, MAX_STREAM_RANGES>,
}

impl Streams {
    /// Adds a range; what is known already is not added again.
    ///
    /// # Errors
    /// [`Unfit::Streams`] where there are too many ranges.
    pub fn add(&mut self, range: StreamRange) -> Result<(), Unfit> {
        let (mut first, mut end) = (u64::from(range.first), range.end().min(1 << 32));
        if first >= end {
            return Ok(());
        }
        // One range of it and all that it meets.
        self.ranges.retain(|r| {
            let apart = r.end() < first || end < u64::from(r.first);
            if !apart {
                first = first.min(r.first.into());
                end = end.max(r.end());
            }
            apart
        });
        let merged = StreamRange {
            first: u32::try_from(first).map_err(|_| Unfit::Streams)?,
            count: u32::try_from(end.saturating_sub(first)).unwrap_or(u32::MAX),
        };
        self.ranges.try_push(merged).map_err(|_| Unfit::Streams)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.known(0, 1 << 32)
    }

    /// How many of `first .. end` are known.
    fn known(&self, first: u64, end: u64) -> u64 {
        self.ranges.iter().fold(0, |sum, r| sum.saturating_add(r.overlap(first, end)))
    }

    /// log2 of a table that has them all.
    fn bits(&self) -> u8 {
        let end = self.ranges.iter().map(StreamRange::end).max().unwrap_or(0);
        (64u32.wrapping_sub(end.saturating_sub(1).leading_zeros())) as u8
    }
}

/// Stage-2 tables, as an STE names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Config {
    root: Pa,
    t0sz: u8,
    sl0: u8,
    pa_bits: u8,
    vmid: u16,
}

impl Stage2Config {
    /// Tables at `root` for `ipa_bits` that start at `sl0` (VTCR_EL2.SL0), on a CPU with `pa_bits`, for an SMMU whose addresses
    /// have `address_bits`. A device that has fewer bits than the tables sees their first part.
    ///
    /// # Errors
    /// [`Unfit::Addresses`] where the walk would have to start at another level, or the root is out of reach.
    pub fn new(
        root: Pa,
        (ipa_bits, sl0): (u8, u8),
        pa_bits: u8,
        vmid: u16,
        address_bits: u8,
    ) -> Result<Self, Unfit> {
        let bits = ipa_bits.min(address_bits);
        // What a level resolves, with up to 16 tables side by side (Arm ARM D8.2.2).
        let levels = match sl0 {
            0 => 25..=34,
            1 => 31..=43,
            2 => 40..=48,
            _ => return Err(Unfit::Addresses),
        };
        if !levels.contains(&bits) || root.0 >> address_bits.min(63) != 0 {
            return Err(Unfit::Addresses);
        }
        Ok(Self { root, t0sz: 64u8.wrapping_sub(bits), sl0, pa_bits: pa_bits.min(address_bits), vmid })
    }

    /// The STE of a stream that translates by them (IHI 0070, 5.2).
    pub fn ste(&self) -> [u64; 8] {
        /// Valid; Config = 0b110: stage 1 bypassed, stage 2 translates.
        const STAGE_2_ONLY: u64 = 1 | 0b110 << 1;
        /// Valid; Config = 0b100: neither stage translates.
        const BYPASS: u64 = 1 | 0b100 << 1;
        /// SHCFG: the device's own shareability goes in. EATS = 0: ATS requests and translated transactions abort.
        const INCOMING: u64 = 1 << 44;
        /// S2IR0, S2OR0: walks are write-back cacheable; S2SH0: inner shareable; S2TG = 0: 4 KiB.
        const WALK: u64 = 1 << 40 | 1 << 42 | 3 << 44;
        /// S2AA64; S2ENDI = 0, S2AFFD = 0, S2HA = S2HD = 0 (our tables have the access flag set); S2PTW; S2S = 0: faults
        /// don't stall; S2R: they are recorded.
        const AARCH64: u64 = 1 << 51 | 1 << 54 | 1 << 58;
        let ps: u64 = match self.pa_bits {
            0..=35 => 0,
            36..=39 => 1,
            40..=41 => 2,
            42..=43 => 3,
            44..=47 => 4,
            _ => 5,
        };
        let translation = self.vmid as u64 | (self.t0sz as u64) << 32 | (self.sl0 as u64) << 38 | ps << 48;
        [
            if broken(Mistake::NoStage2) { BYPASS } else { STAGE_2_ONLY },
            INCOMING,
            translation | WALK | AARCH64,
            self.root.0 & 0x000F_FFFF_FFFF_FFF0,
            0,
            0,
            0,
            0,
        ]
    }
}

/// Memory for tables, as the CPU that writes them reaches it.
pub trait Memory {
    /// Zeroed memory of at least so many bytes (a power of two), aligned to them.
    ///
    /// # Errors
    /// There is none left.
    fn alloc(&mut self, bytes: u64) -> Result<Pa, Unfit>;
    /// Stores a word.
    fn write(&mut self, at: Pa, word: u64);
}

/// A stream table, for the registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamTable {
    /// For [`super::registers::strtab_base`].
    pub base: Pa,
    /// STRTAB_BASE_CFG.
    pub config: u32,
}

impl StreamTable {
    /// Builds the table in which `streams` translate by `stage2`.
    ///
    /// # Errors
    /// Too many streams for the formats that the SMMU has; no memory.
    pub fn build(
        memory: &mut impl Memory,
        features: &Features,
        streams: &Streams,
        stage2: &Stage2Config,
    ) -> Result<Self, Unfit> {
        // IDs that the SMMU does not have never come.
        let bits = streams.bits().min(features.stream_bits);
        let two_level = features.two_level && bits > SPLIT;
        if bits > if two_level { MAX_TWO_LEVEL } else { MAX_LINEAR } {
            return Err(Unfit::Streams);
        }
        let ste = stage2.ste();
        if !two_level {
            let base = memory.alloc(64u64.wrapping_shl(bits.into()))?;
            fill(memory, base, streams, (0, 1u64.wrapping_shl(bits.into())), &ste);
            return Ok(Self { base, config: bits.into() });
        }
        let first_level_bits = bits.saturating_sub(SPLIT);
        let base = memory.alloc(8u64.wrapping_shl(first_level_bits.into()))?;
        let mut shared = None;
        for i in 0..1u64.wrapping_shl(first_level_bits.into()) {
            let (first, end) = (i.wrapping_shl(SPLIT.into()), i.wrapping_add(1).wrapping_shl(SPLIT.into()));
            let known = streams.known(first, end);
            let all = known == end.wrapping_sub(first);
            let leaf = match shared {
                _ if known == 0 => continue,
                Some(leaf) if all => leaf,
                _ => {
                    let leaf = memory.alloc(64u64.wrapping_shl(SPLIT.into()))?;
                    fill(memory, leaf, streams, (first, end), &ste);
                    if all {
                        shared = Some(leaf);
                    }
                    leaf
                }
            };
            // Span: a leaf has 2^(Span - 1) entries.
            memory.write(at(base, i), leaf.0 | u64::from(SPLIT).wrapping_add(1));
        }
        // FMT = 1: two levels.
        Ok(Self { base, config: 1 << 16 | u32::from(SPLIT) << 6 | u32::from(bits) })
    }
}

const fn at(base: Pa, word: u64) -> Pa {
    Pa(base.0.wrapping_add(word.wrapping_mul(8)))
}

/// Entries of `first .. end` at `base`; others than known ones stay zero, which is invalid.
fn fill(memory: &mut impl Memory, base: Pa, streams: &Streams, (first, end): (u64, u64), ste: &[u64; 8]) {
    for (entry, stream) in (first..end).enumerate() {
        if streams.known(stream, stream.saturating_add(1)) == 0 {
            continue;
        }
        let word = (entry as u64).wrapping_mul(STE_WORDS);
        for (offset, value) in (0..).zip(ste) {
            memory.write(at(base, word.wrapping_add(offset)), *value);
        }
    }
}
