// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SHA-256 digests in registers, as all calls carry them: eight bytes a word, little-endian, the first in the lowest bits of the
//! first word.

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// The words that carry it.
pub fn words(digest: &Digest) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(digest.as_chunks().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    words
}

/// What such words carry.
pub fn from_words(words: [u64; 4]) -> Digest {
    let mut digest = [0; 32];
    for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_le_bytes();
    }
    digest
}
