// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A small device tree, as a host makes one for a guest (Devicetree Specification 0.4, chapter 5).

use gzvm_guest_kit::ArrayVec;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

const HEADER: u32 = 40;
/// The map of reservations: its end alone.
const RESERVATIONS: u32 = 16;

/// One in the making.
pub struct Tree {
    structure: ArrayVec<u8, 1024>,
    strings: ArrayVec<u8, 256>,
}

impl Tree {
    /// With an open root.
    pub fn new() -> Self {
        let mut tree = Self { structure: ArrayVec::new(), strings: ArrayVec::new() };
        tree.begin("");
        tree
    }

    /// Opens a node in the one that is open.
    pub fn begin(&mut self, name: &str) -> &mut Self {
        self.word(BEGIN_NODE);
        self.structure.extend(name.bytes().chain([0]));
        self.pad()
    }

    /// Closes it.
    pub fn end(&mut self) -> &mut Self {
        self.word(END_NODE);
        self
    }

    /// A property that is a text.
    pub fn text(&mut self, name: &str, value: &str) -> &mut Self {
        self.property(name, value.bytes().chain([0]))
    }

    /// A property of numbers.
    pub fn cells(&mut self, name: &str, value: &[u32]) -> &mut Self {
        self.property(name, value.iter().flat_map(|cell| cell.to_be_bytes()))
    }

    /// `reg`.
    pub fn range(&mut self, start: u64, size: u64) -> &mut Self {
        self.property("reg", [start, size].into_iter().flat_map(u64::to_be_bytes))
    }

    fn property(&mut self, name: &str, value: impl Iterator<Item = u8> + Clone) -> &mut Self {
        self.word(PROPERTY);
        self.word(value.clone().count() as u32);
        self.word(self.strings.len() as u32);
        self.strings.extend(name.bytes().chain([0]));
        self.structure.extend(value);
        self.pad()
    }

    fn word(&mut self, word: u32) {
        self.structure.extend(word.to_be_bytes());
    }

    fn pad(&mut self) -> &mut Self {
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
        self
    }

    /// The whole of it.
    pub fn finish(mut self) -> ArrayVec<u8, 2048> {
        self.end();
        self.word(END);
        let (structure, strings) = (self.structure.len() as u32, self.strings.len() as u32);
        let at = HEADER + RESERVATIONS;
        let header = [
            0xD00D_FEED,
            at + structure + strings,
            at,
            at + structure,
            HEADER,
            17,
            16,
            0,
            strings,
            structure,
        ];
        let mut blob = ArrayVec::new();
        blob.extend(header.into_iter().flat_map(u32::to_be_bytes));
        blob.extend([0; RESERVATIONS as usize]);
        blob.extend(self.structure);
        blob.extend(self.strings);
        blob
    }
}
