// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers (IHI 0070, chapter 6): offsets, the features that we ask for, and values.

use super::Unfit;
use crate::addr::{Pa, pa_bits};

/// SMMU_IDR0: features.
pub const IDR0: u64 = 0x0;
/// SMMU_IDR1: sizes.
pub const IDR1: u64 = 0x4;
/// SMMU_IDR5: address sizes and granules.
pub const IDR5: u64 = 0x14;
/// SMMU_CR0: what is on.
pub const CR0: u64 = 0x20;
/// SMMU_CR0ACK: what of CR0 is in force.
pub const CR0ACK: u64 = 0x24;
/// SMMU_CR1: how tables and queues are accessed.
pub const CR1: u64 = 0x28;
/// SMMU_CR2.
pub const CR2: u64 = 0x2C;
/// SMMU_GBPA: what happens to transactions while the SMMU is off.
pub const GBPA: u64 = 0x44;
/// SMMU_IRQ_CTRL.
pub const IRQ_CTRL: u64 = 0x50;
/// SMMU_GERROR: global errors; an error is active where it differs from [`GERRORN`].
pub const GERROR: u64 = 0x60;
/// SMMU_GERRORN.
pub const GERRORN: u64 = 0x64;
/// SMMU_STRTAB_BASE, 64 bits.
pub const STRTAB_BASE: u64 = 0x80;
/// SMMU_STRTAB_BASE_CFG.
pub const STRTAB_BASE_CFG: u64 = 0x88;
/// SMMU_CMDQ_BASE, 64 bits.
pub const CMDQ_BASE: u64 = 0x90;
/// SMMU_CMDQ_PROD.
pub const CMDQ_PROD: u64 = 0x98;
/// SMMU_CMDQ_CONS.
pub const CMDQ_CONS: u64 = 0x9C;
/// SMMU_EVENTQ_BASE, 64 bits.
pub const EVENTQ_BASE: u64 = 0xA0;
/// SMMU_EVENTQ_PROD, in register page 1.
pub const EVENTQ_PROD: u64 = 0x1_00A8;
/// SMMU_EVENTQ_CONS, in register page 1.
pub const EVENTQ_CONS: u64 = 0x1_00AC;
/// Bytes of the two register pages.
pub const FRAME_SIZE: u64 = 0x2_0000;

/// CR0.SMMUEN: transactions are translated.
pub const CR0_SMMUEN: u32 = 1 << 0;
/// CR0.EVENTQEN.
pub const CR0_EVENTQEN: u32 = 1 << 2;
/// CR0.CMDQEN.
pub const CR0_CMDQEN: u32 = 1 << 3;

/// CR1: tables and queues are write-back cacheable, inner shareable memory.
pub const CR1_CACHEABLE: u32 = 3 << 10 | 1 << 8 | 1 << 6 | 3 << 4 | 1 << 2 | 1;

/// CR2.PTM (TLB invalidations that CPUs broadcast are not for this SMMU; it gets commands) and RECINVSID (streams outside
/// the table are recorded as events). E2H = 0.
pub const CR2_PRIVATE_TLB_RECORD_STREAMS: u32 = 1 << 2 | 1 << 1;

/// GBPA.UPDATE: to be set with a new value; reads as 0 when that is in force.
pub const GBPA_UPDATE: u32 = 1 << 31;
/// GBPA.ABORT.
pub const GBPA_ABORT: u32 = 1 << 20;

const STAGE_2: u32 = 1 << 0;
const COHERENT: u32 = 1 << 4;
const HYP: u32 = 1 << 9;
const PRESET: u32 = 3 << 29;
const GRAN4K: u32 = 1 << 4;
/// STRTAB_BASE.RA, CMDQ_BASE.RA, EVENTQ_BASE.WA: a hint to allocate in caches.
const ALLOCATE: u64 = 1 << 62;

/// What we use of an SMMU's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// log2 of the number of StreamIDs.
    pub stream_bits: u8,
    /// Two-level stream tables.
    pub two_level: bool,
    /// log2 of the most commands.
    pub max_commands: u8,
    /// log2 of the most events.
    pub max_events: u8,
    /// Bits of physical addresses, and so of intermediate ones.
    pub address_bits: u8,
    /// Has TLB entries of EL2 that have to be dropped once.
    pub hyp: bool,
}

const fn field(value: u32, shift: u32, bits: u32) -> u32 {
    value.wrapping_shr(shift) & 1u32.wrapping_shl(bits).wrapping_sub(1)
}

impl Features {
    /// From IDR0, IDR1 and IDR5.
    ///
    /// # Errors
    /// Something is missing that we can't do without.
    pub const fn read(idr0: u32, idr1: u32, idr5: u32) -> Result<Self, Unfit> {
        if idr0 & STAGE_2 == 0 {
            return Err(Unfit::NoStage2);
        }
        if idr0 & COHERENT == 0 {
            return Err(Unfit::NotCoherent);
        }
        // TTF bit 1: AArch64 tables. TTENDIAN: 0 mixed, 2 little, 3 big.
        if field(idr0, 2, 2) & 2 == 0 || field(idr0, 21, 2) == 3 || idr5 & GRAN4K == 0 {
            return Err(Unfit::Tables);
        }
        if idr1 & PRESET != 0 {
            return Err(Unfit::Preset);
        }
        let address_bits = pa_bits(field(idr5, 0, 3));
        Ok(Self {
            stream_bits: field(idr1, 0, 6) as u8,
            two_level: field(idr0, 27, 2) == 1,
            max_commands: field(idr1, 21, 5) as u8,
            max_events: field(idr1, 16, 5) as u8,
            address_bits,
            hyp: idr0 & HYP != 0,
        })
    }
}

/// STRTAB_BASE of a table.
pub const fn strtab_base(table: Pa) -> u64 {
    table.0 | ALLOCATE
}

/// CMDQ_BASE or EVENTQ_BASE of a queue with `1 << log2` entries.
pub const fn queue_base(queue: Pa, log2: u8) -> u64 {
    queue.0 | ALLOCATE | log2 as u64
}
