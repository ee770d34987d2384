// SPDX-License-Identifier: Apache-2.0 OR MIT
//! NOR flash with the Common Flash Interface (JEDEC JESD68) and Intel's extended command set
//! (JEP137, 0x0001), as QEMU's `virt` machine has it for UEFI's variables: two 16-bit chips side by
//! side on a 32-bit bus. Both always get the same command.
//!
//! ```text
//!            0x20/0x40/0xE8/0x60   next store     0xD0, or done
//!   array ──────────────────────▶ expects ... ─────────────────▶ status ──0xFF──▶ array
//!     ├──0x70──▶ status   ├──0x90──▶ identification   └──0x98──▶ query
//! ```
//!
//! Every command is done at once, so the status always says "ready". The content is that of a file,
//! which every change reaches at once; what the file lacks at its end is erased flash.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::bus::MmioDevice;
use crate::exit::EndReason;

/// Bytes of an erase block, both chips together.
const BLOCK: usize = 256 << 10;
/// Words of the write buffer; firmware asks for up to 32.
const BUFFER_WORDS: u32 = 512;
/// log2 of the write buffer's bytes, per chip.
const BUFFER_SHIFT: u8 = 10;

/// Status of one chip: ready, no error.
const READY: u8 = 0x80;
const COMMAND_ERROR: u8 = 0x30;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Reads show the content.
    Array,
    /// Reads show the status.
    Status,
    /// Reads show maker, chip, and each block's lock.
    Identification,
    /// Reads show the query table.
    Query,
    /// The next store is the word to program.
    Word,
    /// The next store is the number of words, less one.
    BufferCount,
    /// So many words are still to come.
    Buffer(u32),
    /// The next store must confirm the buffer.
    BufferConfirm,
    /// The next store must confirm the erasure.
    EraseConfirm,
    /// The next store says whether to lock or unlock: nothing is ever locked.
    Lock,
}

#[derive(Debug)]
struct Content {
    state: State,
    status: u8,
    file: File,
    /// Of the file.
    length: u64,
    /// `None`: erased.
    blocks: Vec<Option<Box<[u8]>>>,
    /// Stores of the buffer, applied when confirmed.
    pending: Vec<(usize, u32)>,
}

/// The flash.
#[derive(Debug)]
pub struct Flash(Mutex<Content>);

impl Flash {
    /// Flash of `size` bytes with the content of the file at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// A file that can't be read and written, is in use, or is larger than the flash.
    pub fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| io::Error::other("in use by another VM"))?;
        let length = file.metadata()?.len();
        if length > size {
            return Err(io::Error::other(format!("has {length} bytes, and the flash {size}")));
        }
        let mut blocks: Vec<_> = (0..usize::try_from(size).unwrap_or(0) / BLOCK).map(|_| None).collect();
        let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut content, 0)?;
        for (block, content) in blocks.iter_mut().zip(content.chunks(BLOCK)) {
            let mut bytes = vec![0xFF; BLOCK].into_boxed_slice();
            for (to, from) in bytes.iter_mut().zip(content) {
                *to = *from;
            }
            *block = Some(bytes);
        }
        let (state, status) = (State::Array, READY);
        let pending = Vec::new();
        Ok(Self(Mutex::new(Content { state, status, file, length, blocks, pending })))
    }
}

/// The same byte for both chips.
const fn both(value: u8) -> u32 {
    value as u32 | (value as u32) << 16
}

impl Content {
    fn byte(&self, offset: usize) -> u8 {
        let block = self.blocks.get(offset / BLOCK).and_then(Option::as_ref);
        block.and_then(|block| block.get(offset % BLOCK)).copied().unwrap_or(0xFF)
    }

    /// Programming only clears bits.
    fn program(&mut self, offset: usize, value: u32) {
        let Some(block) = self.blocks.get_mut(offset / BLOCK) else { return };
        let block = block.get_or_insert_with(|| vec![0xFF; BLOCK].into_boxed_slice());
        let mut word = value.to_le_bytes();
        for (index, byte) in word.iter_mut().enumerate() {
            if let Some(to) = block.get_mut(offset % BLOCK + index) {
                *to &= *byte;
                *byte = *to;
            }
        }
        self.save(offset, &word);
    }

    fn erase(&mut self, offset: usize) {
        if let Some(block) = self.blocks.get_mut(offset / BLOCK) {
            *block = None;
            let start = offset / BLOCK * BLOCK;
            if (start as u64) < self.length {
                self.save(start, &[0xFF; BLOCK]);
            }
        }
    }

    /// Writes to the file, which grows by whole erased blocks.
    fn save(&mut self, offset: usize, bytes: &[u8]) {
        let result = (|| {
            let end = offset as u64 + bytes.len() as u64;
            while self.length < end {
                let next = (self.length / BLOCK as u64 + 1) * BLOCK as u64;
                let erased = vec![0xFF; usize::try_from(next - self.length).unwrap_or(0)];
                self.file.write_all_at(&erased, self.length)?;
                self.length = next;
            }
            self.file.write_all_at(bytes, offset as u64)
        })();
        if let Err(error) = result {
            tracing::warn!("--variables: {error}; what the guest has written will be lost");
        }
    }

    /// What a load of the word at `offset` shows.
    fn word(&self, offset: usize) -> u32 {
        match self.state {
            State::Array => u32::from_le_bytes([0, 1, 2, 3].map(|index| self.byte(offset + index))),
            State::Identification => match (offset % BLOCK) / 4 {
                0 => both(0x89),
                1 => both(0x18),
                // Not locked.
                _ => 0,
            },
            State::Query => both(self.query(offset / 4)),
            _ => both(self.status),
        }
    }

    /// Byte `index` of the query table of one chip (JESD68, 2.3).
    fn query(&self, index: usize) -> u8 {
        let size = (self.blocks.len() * BLOCK / 2).max(1);
        // Erase blocks less one, and bytes of one in units of 256; per chip.
        let count = self.blocks.len().saturating_sub(1).to_le_bytes();
        let block = (BLOCK / 2 / 256).to_le_bytes();
        match index {
            0x10 => b'Q',
            0x11 => b'R',
            0x12 => b'Y',
            // Intel's extended command set; its table.
            0x13 => 1,
            0x15 => 0x31,
            // Supply voltages, as such chips have them.
            0x1B => 0x45,
            0x1C => 0x55,
            // 2^n microseconds for a word and for the buffer, milliseconds for a block; at most 2^n times as long.
            0x1F | 0x20 => 7,
            0x21 => 10,
            0x23..=0x25 => 4,
            0x27 => size.ilog2() as u8,
            // 16-bit interface.
            0x28 => 1,
            0x2A => BUFFER_SHIFT,
            // One region of equal blocks.
            0x2C => 1,
            0x2D => count[0],
            0x2E => count[1],
            0x2F => block[0],
            0x30 => block[1],
            0x31 => b'P',
            0x32 => b'R',
            0x33 => b'I',
            0x34 => b'1',
            0x35 => b'0',
            _ => 0,
        }
    }

    /// Takes the store of `value` to the word at `offset`.
    fn store(&mut self, offset: usize, value: u32) {
        let command = value.to_le_bytes()[0];
        self.state = match self.state {
            State::Word => {
                self.program(offset, value);
                State::Status
            }
            State::BufferCount => {
                self.pending.clear();
                match (value & 0xFFFF) + 1 {
                    count @ 1..=BUFFER_WORDS => State::Buffer(count),
                    _ => self.refuse(),
                }
            }
            State::Buffer(left) => {
                self.pending.push((offset, value));
                if left > 1 { State::Buffer(left - 1) } else { State::BufferConfirm }
            }
            State::BufferConfirm if command == 0xD0 => {
                for (offset, value) in std::mem::take(&mut self.pending) {
                    self.program(offset, value);
                }
                State::Status
            }
            State::EraseConfirm if command == 0xD0 => {
                self.erase(offset);
                State::Status
            }
            State::Lock if matches!(command, 0x01 | 0xD0 | 0x2F) => State::Status,
            State::BufferConfirm | State::EraseConfirm | State::Lock => self.refuse(),
            State::Array | State::Status | State::Identification | State::Query => self.command(command),
        };
    }

    fn command(&mut self, command: u8) -> State {
        match command {
            0x10 | 0x40 => State::Word,
            0x20 => State::EraseConfirm,
            0x50 => {
                self.status = READY;
                State::Status
            }
            0x60 => State::Lock,
            0x70 => State::Status,
            0x90 => State::Identification,
            0x98 => State::Query,
            0xE8 => State::BufferCount,
            // 0xFF, and 0xF0 of the other command set; also what is unknown.
            _ => State::Array,
        }
    }

    /// A wrong sequence, as the status tells until it is cleared.
    fn refuse(&mut self) -> State {
        self.status |= COMMAND_ERROR;
        State::Status
    }
}

impl MmioDevice for Flash {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(offset) = usize::try_from(offset) else { return };
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset + index;
            let word = content.word(at & !3).to_le_bytes();
            *byte = word.get(at & 3).copied().unwrap_or(0);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        let mut content = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut offset = usize::try_from(offset).ok()?;
        // The bus is 32 bits wide: narrower stores leave the other lanes as they float.
        for chunk in data.chunks(4) {
            let mut word = [0xFF; 4];
            for (to, from) in word.iter_mut().skip(offset & 3).zip(chunk) {
                *to = *from;
            }
            // A command that reaches one chip only is a command all the same.
            if chunk.len() < 4 && !matches!(content.state, State::Word | State::Buffer(_)) {
                word = both(chunk.first().copied().unwrap_or(0xFF)).to_le_bytes();
            }
            content.store(offset & !3, u32::from_le_bytes(word));
            offset += chunk.len();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::loader::tests::TempFile;

    fn flash(name: &str) -> (Flash, TempFile) {
        let file = TempFile::new(name, b"");
        (Flash::open(&file.0, 1 << 20).unwrap(), file)
    }

    fn write(flash: &Flash, offset: u64, value: u32) {
        assert_eq!(flash.write(offset, &value.to_le_bytes()), None);
    }

    fn read(flash: &Flash, offset: u64) -> u32 {
        let mut data = [0; 4];
        flash.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    const ARRAY: u32 = 0x00FF_00FF;
    const STATUS_READY: u32 = 0x0080_0080;

    #[test]
    fn words_are_programmed_and_blocks_erased() {
        let (flash, _file) = flash("flash-words");
        assert_eq!(read(&flash, 0x100), u32::MAX);
        for (value, content) in [(0x1234_5678, 0x1234_5678), (0xFF00_FF00, 0x1200_5600)] {
            write(&flash, 0x100, 0x0040_0040);
            write(&flash, 0x100, value);
            assert_eq!(read(&flash, 0), STATUS_READY);
            write(&flash, 0, ARRAY);
            assert_eq!(read(&flash, 0x100), content, "bits are only cleared");
        }
        let mut bytes = [0; 8];
        flash.read(0xFE, &mut bytes);
        assert_eq!(bytes, [0xFF, 0xFF, 0x00, 0x56, 0x00, 0x12, 0xFF, 0xFF]);
        write(&flash, 0x100, 0x0020_0020);
        write(&flash, 0x100, 0x00D0_00D0);
        write(&flash, 0, ARRAY);
        assert_eq!(read(&flash, 0x100), u32::MAX);
    }

    #[test]
    fn the_buffer_is_written_when_confirmed() {
        let (flash, _file) = flash("flash-buffer");
        let base = BLOCK as u64;
        write(&flash, base, 0x00E8_00E8);
        assert_eq!(read(&flash, base), STATUS_READY, "the buffer is free");
        write(&flash, base, 0x0001_0001);
        write(&flash, base, 1);
        write(&flash, base + 4, 2);
        write(&flash, base, 0x00D0_00D0);
        assert_eq!(read(&flash, base), STATUS_READY);
        write(&flash, base, ARRAY);
        assert_eq!((read(&flash, base), read(&flash, base + 4)), (1, 2));
    }

    #[test]
    fn wrong_sequences_change_nothing_and_are_told() {
        let (flash, _file) = flash("flash-wrong");
        write(&flash, 0, 0x0020_0020);
        write(&flash, 0, ARRAY);
        assert_eq!(read(&flash, 0), both(READY | COMMAND_ERROR));
        write(&flash, 0, 0x0050_0050);
        write(&flash, 0, 0x00E8_00E8);
        write(&flash, 0, 0xFFFF_FFFF);
        assert_eq!(read(&flash, 0), both(READY | COMMAND_ERROR), "longer than the buffer");
        write(&flash, 0, 0x0050_0050);
        assert_eq!(read(&flash, 0), STATUS_READY);
        // Behind the end.
        write(&flash, 4 << 20, 0x0040_0040);
        write(&flash, 4 << 20, 0);
    }

    #[test]
    fn content_is_kept_in_the_file() {
        let (flash, file) = flash("flash-file");
        let second = BLOCK as u64 + 8;
        write(&flash, second, 0x0040_0040);
        write(&flash, second, 0x4711);
        assert!(Flash::open(&file.0, 1 << 20).is_err(), "in use");
        drop(flash);
        let flash = Flash::open(&file.0, 1 << 20).unwrap();
        assert_eq!((read(&flash, second), read(&flash, 0)), (0x4711, u32::MAX));
        write(&flash, second, 0x0020_0020);
        write(&flash, second, 0x00D0_00D0);
        drop(flash);
        assert!(std::fs::read(&file.0).unwrap().iter().all(|&byte| byte == 0xFF));
        assert!(Flash::open(&file.0, BLOCK as u64).is_err(), "too large");
    }

    #[test]
    fn drivers_can_tell_what_it_is() {
        let (flash, _file) = flash("flash-query");
        write(&flash, 0x55 * 4, 0x0098_0098);
        let query: Vec<_> = (0x10..0x13).map(|index| read(&flash, index * 4)).collect();
        assert_eq!(query, [b'Q', b'R', b'Y'].map(both));
        assert_eq!(read(&flash, 0x27 * 4), both(19), "two chips of half the size");
        write(&flash, 0, 0x0090_0090);
        assert_eq!((read(&flash, 0), read(&flash, 8)), (both(0x89), 0));
    }
}
