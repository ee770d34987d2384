// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stage-2 descriptors: VMSAv8-64, 4 KiB granule, 48-bit output addresses (Arm ARM D8.3).
//!
//! ```text
//!  63      59 58   55 54 53 52      47        12 11 10 9  8 7  6 5       2  1  0
//! +----------+-------+-----+---------+----------+--+--+----+----+---------+--+--+
//! |  ignored | softw |XN   |    0    |  output  | 0|AF| SH |S2AP| MemAttr |ty|V |
//! +----------+-------+-----+---------+----------+--+--+----+----+---------+--+--+
//! ```
//! The type bit is 0 for a block, 1 for a page (level 3) or a table (levels 0 to 2).
//!
//! An invalid descriptor (V = 0) is ignored by the hardware; ours carries an [`Annotation`] in bits
//! 63:32. Zero means: nothing known.

use crate::addr::Pa;

/// Bits 47:12, the output address or the next table.
const ADDRESS: u64 = 0x0000_FFFF_FFFF_F000;
pub(super) const VALID: u64 = 1 << 0;
/// Table (levels 0 to 2) or page (level 3), as opposed to a block.
pub(super) const TABLE_OR_PAGE: u64 = 1 << 1;
const MEMATTR_MASK: u64 = 0b1111 << 2;
/// Outer and inner write-back cacheable (HCR_EL2.FWB = 0).
const MEMATTR_NORMAL_WB: u64 = 0b1111 << 2;
/// Write-back cacheable whatever stage 1 says (HCR_EL2.FWB = 1).
const MEMATTR_FORCED_WB: u64 = 0b0110 << 2;
/// Device-nGnRE, with either HCR_EL2.FWB.
const MEMATTR_DEVICE_NGNRE: u64 = 0b0001 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
const SH_INNER: u64 = 0b11 << 8;
pub(super) const ACCESS_FLAG: u64 = 1 << 10;
/// XN\[1\]. With FEAT_XNX, XN = 0b10 is "never, at EL1 and EL0"; without, bit 54 alone is XN and bit
/// 53 is RES0. So this bit means the same on both.
const XN: u64 = 1 << 54;
const SOFTWARE_SHIFT: u32 = 55;
const ANNOTATION_SHIFT: u32 = 32;

/// A level of the walk. Level 0 entries span 512 GiB, level 3 entries are pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// 512 GiB an entry; tables only.
    L0,
    /// 1 GiB an entry.
    L1,
    /// 2 MiB an entry.
    L2,
    /// 4 KiB an entry; pages only.
    L3,
}

impl Level {
    /// log2 of the bytes one entry spans.
    pub const fn shift(self) -> u32 {
        match self {
            Self::L0 => 39,
            Self::L1 => 30,
            Self::L2 => 21,
            Self::L3 => 12,
        }
    }

    /// Bytes that one entry spans.
    pub const fn entry_size(self) -> u64 {
        1u64.wrapping_shl(self.shift())
    }

    /// The level below, which level 3 does not have.
    pub const fn next(self) -> Option<Self> {
        match self {
            Self::L0 => Some(Self::L1),
            Self::L1 => Some(Self::L2),
            Self::L2 => Some(Self::L3),
            Self::L3 => None,
        }
    }

    /// The number the Arm ARM gives it.
    pub const fn number(self) -> u8 {
        match self {
            Self::L0 => 0,
            Self::L1 => 1,
            Self::L2 => 2,
            Self::L3 => 3,
        }
    }
}

/// Stage-2 memory types; combined with stage 1 the stricter one wins, but for [`Forced`](Self::Forced).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryType {
    /// Normal, write-back cacheable, inner shareable; for tables in force with HCR_EL2.FWB = 0.
    Normal,
    /// The same, whatever stage 1 says, if it says anything (FEAT_S2FWB); for tables in force with HCR_EL2.FWB = 1.
    Forced,
    /// Device-nGnRE.
    Device,
}

/// Four bits of a valid descriptor that the hardware ignores and we may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct SoftwareBits(u8);

impl SoftwareBits {
    /// No bit set.
    pub const NONE: Self = Self(0);

    /// `bits`, unless it needs more than four.
    pub const fn new(bits: u8) -> Option<Self> {
        if bits < 16 { Some(Self(bits)) } else { None }
    }

    /// The four bits.
    pub const fn get(self) -> u8 {
        self.0
    }
}

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Attrs {
    /// Loads.
    pub read: bool,
    /// Stores.
    pub write: bool,
    /// Instruction fetch, at EL1 and EL0 alike.
    pub execute: bool,
    /// The memory type.
    pub memory: MemoryType,
    /// The four bits for our own use.
    pub software: SoftwareBits,
}

impl Attrs {
    /// RAM: read, write, execute.
    pub const RAM: Self = Self {
        read: true,
        write: true,
        execute: true,
        memory: MemoryType::Normal,
        software: SoftwareBits::NONE,
    };
    /// RAM that is read and executed but not written.
    pub const RAM_RO: Self = Self { write: false, ..Self::RAM };
    /// RAM that is not executed.
    pub const RAM_NX: Self = Self { execute: false, ..Self::RAM };
    /// Device registers: read, write.
    pub const DEVICE: Self = Self {
        read: true,
        write: true,
        execute: false,
        memory: MemoryType::Device,
        software: SoftwareBits::NONE,
    };

    /// The same with other software bits.
    pub const fn with_software(self, software: SoftwareBits) -> Self {
        Self { software, ..self }
    }

    #[inline]
    pub(super) const fn encode(self) -> u64 {
        let mut bits = ACCESS_FLAG | SH_INNER;
        bits |= match self.memory {
            MemoryType::Normal => MEMATTR_NORMAL_WB,
            MemoryType::Forced => MEMATTR_FORCED_WB,
            MemoryType::Device => MEMATTR_DEVICE_NGNRE,
        };
        if self.read {
            bits |= S2AP_READ;
        }
        if self.write {
            bits |= S2AP_WRITE;
        }
        if !self.execute {
            bits |= XN;
        }
        bits | (self.software.0 as u64) << SOFTWARE_SHIFT
    }

    const fn decode(bits: u64) -> Self {
        Self {
            read: bits & S2AP_READ != 0,
            write: bits & S2AP_WRITE != 0,
            execute: bits & XN == 0,
            memory: match bits & MEMATTR_MASK {
                MEMATTR_NORMAL_WB => MemoryType::Normal,
                MEMATTR_FORCED_WB => MemoryType::Forced,
                _ => MemoryType::Device,
            },
            software: SoftwareBits(((bits >> SOFTWARE_SHIFT) & 0xF) as u8),
        }
    }
}

/// A note in an invalid descriptor, such as who owns what is missing here. Zero is "no note".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Annotation(pub u32);

impl Annotation {
    /// No note: simply not mapped.
    pub const NONE: Self = Self(0);
}

/// One entry of a table, decoded as far as the level allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Invalid(Annotation),
    /// A block or a page.
    Leaf(Leaf),
    Table(Pa),
}

/// A block's or page's output address and attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub pa: Pa,
    pub attrs: Attrs,
}

impl Entry {
    pub(super) const EMPTY: Self = Self::Invalid(Annotation::NONE);

    #[inline]
    pub(super) const fn decode(descriptor: u64, level: Level) -> Self {
        if descriptor & VALID == 0 {
            return Self::Invalid(Annotation((descriptor >> ANNOTATION_SHIFT) as u32));
        }
        let pa = Pa(descriptor & ADDRESS);
        let leaf = match level {
            Level::L3 => true,
            _ => descriptor & TABLE_OR_PAGE == 0,
        };
        if leaf { Self::Leaf(Leaf { pa, attrs: Attrs::decode(descriptor) }) } else { Self::Table(pa) }
    }

    #[inline]
    pub(super) const fn encode(self, level: Level) -> u64 {
        match self {
            Self::Invalid(note) => (note.0 as u64) << ANNOTATION_SHIFT,
            Self::Table(pa) => pa.0 & ADDRESS | TABLE_OR_PAGE | VALID,
            Self::Leaf(leaf) => {
                let kind = match level {
                    Level::L3 => TABLE_OR_PAGE,
                    _ => 0,
                };
                leaf.pa.0 & ADDRESS | leaf.attrs.encode() | kind | VALID
            }
        }
    }

    /// What a table one level down holds at `index` to mean the same as this leaf or note.
    pub(super) const fn child(self, child_level: Level, index: u64) -> Self {
        match self {
            Self::Leaf(leaf) => Self::Leaf(Leaf {
                pa: Pa(leaf.pa.0.wrapping_add(index.wrapping_mul(child_level.entry_size()))),
                attrs: leaf.attrs,
            }),
            other => other,
        }
    }

    pub(super) const fn is_valid(self) -> bool {
        !matches!(self, Self::Invalid(_))
    }
}
