// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Writes a flattened device tree (Devicetree Specification, chapter 5) into a buffer, in one pass
//! and without a heap. `dtoolkit` can change properties in place but not add nodes without one.

/// The tree outgrew its buffer, or nodes were not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the device tree outgrows its buffer")]
pub struct NoSpace;

const MAGIC: u32 = 0xD00D_FEED;
const HEADER: usize = 40;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const END: u32 = 9;

/// A tree being written. The header and the reservation map come first, then the structure block;
/// the strings gather at the buffer's end and are moved down by [`finish`](Self::finish).
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    /// Next free byte of the structure block.
    at: usize,
    structure: usize,
    reservations: usize,
    /// Where the strings begin; they end at the buffer's end, youngest first.
    strings_len: usize,
    strings_area: usize,
}

impl<'a> Writer<'a> {
    /// Begins a tree in `buffer` with these memory reservations (address, size).
    ///
    /// A quarter of the buffer is set aside for property names.
    pub fn new(
        buffer: &'a mut [u8],
        reservations: impl Iterator<Item = (u64, u64)>,
    ) -> Result<Self, NoSpace> {
        let area = buffer.len() / 4;
        let strings_area = (buffer.len().checked_sub(area).ok_or(NoSpace)?) & !7;
        let mut w =
            Self { buffer, at: HEADER, structure: 0, reservations: HEADER, strings_len: 0, strings_area };
        for (address, size) in reservations.chain(core::iter::once((0, 0))) {
            w.bytes(&address.to_be_bytes())?;
            w.bytes(&size.to_be_bytes())?;
        }
        w.structure = w.at;
        Ok(w)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), NoSpace> {
        let end = self.at.checked_add(bytes.len()).filter(|e| *e <= self.strings_area).ok_or(NoSpace)?;
        self.buffer.get_mut(self.at..end).ok_or(NoSpace)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }

    fn word(&mut self, word: u32) -> Result<(), NoSpace> {
        self.bytes(&word.to_be_bytes())
    }

    fn pad(&mut self) -> Result<(), NoSpace> {
        while self.at & 3 != 0 {
            self.bytes(&[0])?;
        }
        Ok(())
    }

    /// The offset of `name` in the strings block, adding it if need be.
    fn string(&mut self, name: &str) -> Result<u32, NoSpace> {
        let end = self.strings_area.checked_add(self.strings_len).ok_or(NoSpace)?;
        let known = self.buffer.get(self.strings_area..end).ok_or(NoSpace)?;
        let mut offset = 0usize;
        for s in known.split(|b| *b == 0) {
            if s == name.as_bytes() && !s.is_empty() {
                return u32::try_from(offset).map_err(|_| NoSpace);
            }
            offset = offset.checked_add(s.len()).and_then(|o| o.checked_add(1)).ok_or(NoSpace)?;
        }
        let offset = u32::try_from(self.strings_len).map_err(|_| NoSpace)?;
        let text_end = end.checked_add(name.len()).ok_or(NoSpace)?;
        let next = text_end.checked_add(1).ok_or(NoSpace)?;
        self.buffer.get_mut(end..text_end).ok_or(NoSpace)?.copy_from_slice(name.as_bytes());
        *self.buffer.get_mut(text_end).ok_or(NoSpace)? = 0;
        self.strings_len = next.checked_sub(self.strings_area).ok_or(NoSpace)?;
        Ok(offset)
    }

    /// Opens a node.
    pub fn begin_node(&mut self, name: &str) -> Result<(), NoSpace> {
        self.word(BEGIN_NODE)?;
        self.bytes(name.as_bytes())?;
        self.bytes(&[0])?;
        self.pad()
    }

    /// Adds a property to the open node; only before its first child.
    pub fn property(&mut self, name: &str, value: &[u8]) -> Result<(), NoSpace> {
        let name = self.string(name)?;
        self.word(PROP)?;
        self.word(u32::try_from(value.len()).map_err(|_| NoSpace)?)?;
        self.word(name)?;
        self.bytes(value)?;
        self.pad()
    }

    /// Closes the open node.
    pub fn end_node(&mut self) -> Result<(), NoSpace> {
        self.word(END_NODE)
    }

    /// Writes the header; returns the bytes used.
    pub fn finish(mut self) -> Result<usize, NoSpace> {
        self.word(END)?;
        let strings = self.at;
        let source_end = self.strings_area.checked_add(self.strings_len).ok_or(NoSpace)?;
        if source_end > self.buffer.len() || strings > self.strings_area {
            return Err(NoSpace);
        }
        self.buffer.copy_within(self.strings_area..source_end, strings);
        let total = strings.checked_add(self.strings_len).ok_or(NoSpace)?;
        let size_struct = strings.checked_sub(self.structure).ok_or(NoSpace)?;
        let header = [
            MAGIC as usize,
            total,
            self.structure,
            strings,
            self.reservations,
            17,
            16,
            0,
            self.strings_len,
            size_struct,
        ];
        for (slot, value) in self.buffer.chunks_exact_mut(4).zip(header) {
            slot.copy_from_slice(&u32::try_from(value).map_err(|_| NoSpace)?.to_be_bytes());
        }
        Ok(total)
    }
}
