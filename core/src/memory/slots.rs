// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory slots: which guest physical addresses of a VM are memory, and the buffer in which the
//! driver hands that memory over (ABI section 1.4).
//!
//! A registered slot never changes; it goes with its VM, or by REMOVE_MEMREGION once nothing of it
//! is mapped. Slots do not overlap. The purpose of a slot's range is announced before the slot itself
//! (MEMREGION_PURPOSE, then SET_MEMREGION). A second SET_MEMREGION for a slot populates (part of) it.

use super::{IpaRange, PaRange, RangeError};
use crate::addr::{Ipa, PAGE_SHIFT, Pa};
use arrayvec::ArrayVec;
use gzvm_abi::MAX_MEMSLOTS;
use gzvm_abi::hypercall::purpose;

bitflags::bitflags! {
    /// What a range is for. Empty: memory that was added later, such as a device's.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Purpose: u32 {
        /// Ordinary guest memory.
        const GUEST_MEM = purpose::GUEST_MEM;
        /// The protected VM's firmware.
        const PROTECTED_FW = purpose::PROTECTED_FW;
        /// Bounce buffers of a protected VM.
        const STATIC_SWIOTLB = purpose::STATIC_SWIOTLB;
    }
}

/// Why a slot, or a range of one, was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// No range of pages.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The slot's number is too large.
    #[error("slot {0} does not exist")]
    NoSuchSlot(u32),
    /// The range passes the VM's IPA size.
    #[error("slot passes the end of the address space")]
    OutOfReach,
    /// Another slot holds part of the range.
    #[error("slot overlaps slot {0}")]
    Overlap(u32),
    /// The slot has not been registered.
    #[error("slot {0} is not registered")]
    NotRegistered(u32),
    /// The range is not within the slot.
    #[error("range is not within the slot")]
    OutsideSlot,
    /// Unknown purpose bits.
    #[error("unknown purpose {0:#x}")]
    Purpose(u32),
    /// More purposes announced than slots can exist.
    #[error("too many purposes announced")]
    TooManyPurposes,
}

/// A registered slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its number.
    pub id: u32,
    /// Where the guest sees it.
    pub range: IpaRange,
    /// What was announced for exactly this range.
    pub purpose: Purpose,
}

/// What a SET_MEMREGION is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetRegion {
    /// The slot's first: it is registered now. The buffer's constituents mean nothing.
    Registered(Slot),
    /// A later one: the constituents are for this part of the slot.
    Populate(Slot, IpaRange),
}

/// The slots of a VM.
pub struct Slots {
    ipa_bits: u8,
    /// In ascending order of their ranges.
    slots: ArrayVec<Slot, MAX_MEMSLOTS>,
    announced: ArrayVec<(IpaRange, Purpose), MAX_MEMSLOTS>,
}

impl Slots {
    /// No slots, in an address space of `ipa_bits`.
    pub const fn new(ipa_bits: u8) -> Self {
        Self { ipa_bits, slots: ArrayVec::new_const(), announced: ArrayVec::new_const() }
    }

    /// MEMREGION_PURPOSE: what the slot with exactly this range, to be registered, is for.
    ///
    /// # Errors
    /// A bad range, unknown bits, too many announced.
    pub fn announce(&mut self, gpa: Ipa, size: u64, flags: u64) -> Result<(), SlotError> {
        let range = self.checked(IpaRange::new(gpa, size)?)?;
        let flags = u32::try_from(flags).map_err(|_| SlotError::Purpose(u32::MAX))?;
        let purpose = Purpose::from_bits(flags).ok_or(SlotError::Purpose(flags))?;
        if let Some((_, old)) = self.announced.iter_mut().find(|(r, _)| *r == range) {
            *old = purpose;
            return Ok(());
        }
        self.announced.try_push((range, purpose)).map_err(|_| SlotError::TooManyPurposes)
    }

    /// SET_MEMREGION: registers a slot, or finds the part of it that is to be populated.
    ///
    /// # Errors
    /// See [`SlotError`]; nothing was registered.
    pub fn set_region(&mut self, header: &RegionHeader) -> Result<SetRegion, SlotError> {
        let range = self.checked(IpaRange::from_pages(header.gpa, header.total_pages)?)?;
        let id = header.slot;
        match self.by_number(id) {
            Ok(slot) if slot.range.covers(&range) => return Ok(SetRegion::Populate(*slot, range)),
            Ok(_) => return Err(SlotError::OutsideSlot),
            Err(SlotError::NotRegistered(_)) => {}
            Err(e) => return Err(e),
        }
        if let Some(other) = self.iter().find(|s| s.range.overlaps(&range)) {
            return Err(SlotError::Overlap(other.id));
        }
        let place = self.slots.partition_point(|s| s.range.start() < range.start());
        let announced = self.announced.iter().position(|(r, _)| *r == range);
        let purpose = announced.and_then(|at| self.announced.pop_at(at)).map_or(Purpose::empty(), |(_, p)| p);
        let slot = Slot { id, range, purpose };
        // There is room: each number occurs once.
        self.slots.try_insert(place, slot).map_err(|_| SlotError::NoSuchSlot(id))?;
        Ok(SetRegion::Registered(slot))
    }

    /// The slot that holds `ipa`.
    pub fn find(&self, ipa: Ipa) -> Option<&Slot> {
        let behind = self.slots.partition_point(|s| s.range.start() <= ipa);
        self.slots.get(behind.checked_sub(1)?).filter(|s| s.range.contains(ipa))
    }

    /// Whether a slot holds part of `range`.
    pub fn overlap(&self, range: &IpaRange) -> bool {
        self.iter().any(|s| s.range.overlaps(range))
    }

    /// The slot with this number.
    ///
    /// # Errors
    /// No such number, or not registered.
    pub fn by_number(&self, id: u32) -> Result<&Slot, SlotError> {
        if usize::try_from(id).is_ok_and(|n| n < MAX_MEMSLOTS) {
            self.iter().find(|s| s.id == id).ok_or(SlotError::NotRegistered(id))
        } else {
            Err(SlotError::NoSuchSlot(id))
        }
    }

    /// Forgets a slot, of which nothing may be mapped any more (REMOVE_MEMREGION).
    ///
    /// # Errors
    /// As [`by_number`](Self::by_number).
    pub fn remove(&mut self, id: u32) -> Result<Slot, SlotError> {
        let slot = *self.by_number(id)?;
        self.slots.retain(|s| s.id != id);
        Ok(slot)
    }

    /// Whether all of `length` bytes from `start` on are slots' memory. Nothing is not.
    pub fn hold(&self, start: Ipa, length: u64) -> bool {
        let Some(end) = start.checked_add(length) else { return false };
        let mut at = start;
        // Each slot is passed once.
        for _ in 0..self.slots.len() {
            match self.find(at) {
                Some(slot) if slot.range.end() >= end => return length != 0,
                Some(slot) => at = slot.range.end(),
                None => return false,
            }
        }
        false
    }

    /// `pages` pages from guest frame `gfn`, all of them in slot `id` (MAP_GUEST, MAP_GUEST_BLOCK).
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn pages_of(&self, id: u32, gfn: u64, pages: u64) -> Result<IpaRange, SlotError> {
        let slot = self.by_number(id)?;
        let range = IpaRange::from_frames(gfn, pages)?;
        if slot.range.covers(&range) { Ok(range) } else { Err(SlotError::OutsideSlot) }
    }

    /// `pages` pages from guest frame `gfn`, all of them in one slot (UNMAP_GUEST).
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn pages_of_any(&self, gfn: u64, pages: u64) -> Result<IpaRange, SlotError> {
        let range = IpaRange::from_frames(gfn, pages)?;
        let slot = self.find(range.start()).ok_or(SlotError::OutsideSlot)?;
        if slot.range.covers(&range) { Ok(range) } else { Err(SlotError::OutsideSlot) }
    }

    /// The registered slots, by address.
    pub fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter()
    }

    fn checked(&self, range: IpaRange) -> Result<IpaRange, SlotError> {
        if range.end().0 > 1u64.wrapping_shl(self.ipa_bits.into()) {
            return Err(SlotError::OutOfReach);
        }
        Ok(range)
    }
}

/// Why a region buffer is no region buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// Shorter than the header.
    #[error("region buffer shorter than its header")]
    TooShort,
    /// More constituents than the buffer holds.
    #[error("{0} constituents do not fit the region buffer")]
    TooMany(u32),
    /// A constituent (its index) is no range of pages.
    #[error("constituent {0}: {1}")]
    Constituent(u32, RangeError),
    /// The constituents are not `total_pages` in all.
    #[error("constituents are not as many pages as the header says")]
    WrongTotal,
    /// The header's range is none.
    #[error(transparent)]
    Range(#[from] RangeError),
}

/// The head of a region buffer, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionHeader {
    /// The slot.
    pub slot: u32,
    /// Constituents that follow; not initialised by drivers where they register a slot.
    pub constituents: u32,
    /// Pages.
    pub total_pages: u64,
    /// The first guest physical address.
    pub gpa: Ipa,
}

/// Bytes in the header.
pub const REGION_HEADER: usize = 24;
/// Bytes in a constituent: address (8), pages (4), reserved (4).
pub const CONSTITUENT: usize = 16;

/// A region buffer: a private copy of what the driver wrote, which nobody can change any more.
#[derive(Clone, Copy, Debug)]
pub struct RegionBuffer<'a> {
    header: RegionHeader,
    body: &'a [u8],
}

impl<'a> RegionBuffer<'a> {
    /// Read the header. `copy` must be a copy of the shared page, not the page.
    ///
    /// # Errors
    /// [`RegionError::TooShort`].
    pub fn parse(copy: &'a [u8]) -> Result<Self, RegionError> {
        let (header, body) = copy.split_at_checked(REGION_HEADER).ok_or(RegionError::TooShort)?;
        let header = (|| {
            Some(RegionHeader {
                slot: u32_at(header, 0)?,
                constituents: u32_at(header, 4)?,
                total_pages: u64_at(header, 8)?,
                gpa: Ipa(u64_at(header, 16)?),
            })
        })();
        Ok(Self { header: header.ok_or(RegionError::TooShort)?, body })
    }

    /// The header.
    pub const fn header(&self) -> &RegionHeader {
        &self.header
    }

    /// Check all constituents, and give them with the guest addresses they are for, which adjoin.
    ///
    /// # Errors
    /// See [`RegionError`].
    pub fn constituents(&self) -> Result<Constituents<'a>, RegionError> {
        let count = self.header.constituents;
        let too_many = RegionError::TooMany(count);
        let bytes = usize::try_from(count).ok().and_then(|n| n.checked_mul(CONSTITUENT));
        let body = bytes.and_then(|n| self.body.get(..n)).ok_or(too_many)?;
        let all = IpaRange::from_pages(self.header.gpa, self.header.total_pages)?;
        let mut pages = 0u64;
        for (index, bytes) in (0u32..).zip(body.chunks_exact(CONSTITUENT)) {
            let run = constituent(bytes).map_err(|e| RegionError::Constituent(index, e))?;
            pages = pages.saturating_add(run.pages());
        }
        if pages != all.pages() {
            return Err(RegionError::WrongTotal);
        }
        Ok(Constituents { body, rest: Some(all) })
    }
}

/// Checked constituents: where in the VM, and where in RAM. Their sizes are equal. Whether the
/// addresses are RAM, and the host's, is for the ownership table to say.
#[derive(Clone, Debug)]
pub struct Constituents<'a> {
    body: &'a [u8],
    rest: Option<IpaRange>,
}

impl Iterator for Constituents<'_> {
    type Item = (IpaRange, PaRange);

    fn next(&mut self) -> Option<Self::Item> {
        let (bytes, body) = self.body.split_at_checked(CONSTITUENT)?;
        let run = constituent(bytes).ok()?;
        let (ipa, rest) = self.rest?.split_first(run.pages());
        (self.body, self.rest) = (body, rest);
        Some((ipa, run))
    }
}

fn constituent(bytes: &[u8]) -> Result<PaRange, RangeError> {
    // The slice has the length of a constituent, so both reads succeed.
    let address = u64_at(bytes, 0).ok_or(RangeError::Empty)?;
    let pages = u32_at(bytes, 8).ok_or(RangeError::Empty)?;
    PaRange::new(Pa(address), u64::from(pages).wrapping_shl(PAGE_SHIFT))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
mod tests;
