// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which images the firmware of protected VMs has verified since boot, so that it need not hash them again: of each a tag, under a
//! key that nobody but firmware is told.
//!
//! ```text
//!   secret   32 bytes of entropy, once a boot
//!   key      the first 16 bytes of SHA-256("GZVMIMG1" || secret || SHA-256 of the image)
//!   tag      16 bytes, of the image's bytes under that key: POLYVAL, by the firmware
//! ```
//! Whoever learns a key, or makes one up, can forge bytes for that image alone. A key is told before a VM's measurement is sealed, to a VM
//! that started with the hypervisor's firmware: the same code that says what is measured.

use gzvm_abi::digest::{Digest, words};
use sha2::{Digest as _, Sha256};

/// So many are remembered; the oldest makes room.
pub const MOST: usize = 16;

/// The key of an image: two words, as calls carry them.
pub type Key = [u64; 2];
/// The tag of an image's bytes.
pub type Tag = [u64; 2];

/// What is remembered.
pub struct Images {
    secret: [u8; 32],
    known: [Option<(Key, Tag)>; MOST],
    /// The next to be overwritten.
    next: usize,
}

impl Images {
    /// Remembers nothing yet. `entropy`: 384 bits of which nobody knows anything.
    pub fn new(entropy: [[u64; 3]; 2]) -> Self {
        let mut hash = Sha256::new_with_prefix(b"GZVMIMGS");
        for word in entropy.as_flattened() {
            hash.update(word.to_le_bytes());
        }
        Self { secret: hash.finalize().into(), known: [None; MOST], next: 0 }
    }

    /// The key of the image that has this digest.
    pub fn key(&self, digest: &Digest) -> Key {
        let hash: Digest = Sha256::new_with_prefix(b"GZVMIMG1")
            .chain_update(self.secret)
            .chain_update(digest)
            .finalize()
            .into();
        let [low, high, ..] = words(&hash);
        [low, high]
    }

    fn find(&self, key: Key) -> Option<Tag> {
        self.known.iter().flatten().find(|(of, _)| *of == key).map(|(_, tag)| *tag)
    }

    /// Whether a tag is remembered under this key.
    pub fn knows(&self, key: Key) -> bool {
        self.find(key).is_some()
    }

    /// Whether it is this one.
    pub fn check(&self, key: Key, tag: Tag) -> bool {
        // How many bits are right takes no time.
        self.find(key).is_some_and(|[low, high]| (low ^ tag[0]) | (high ^ tag[1]) == 0)
    }

    /// Remembers it.
    pub fn remember(&mut self, key: Key, tag: Tag) {
        let same = self.known.iter().position(|one| one.is_some_and(|(of, _)| of == key));
        let at = same.unwrap_or(self.next);
        if let Some(one) = self.known.get_mut(at) {
            *one = Some((key, tag));
        }
        if same.is_none() {
            self.next = self.next.wrapping_add(1) % MOST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTROPY: [[u64; 3]; 2] = [[1, 2, 3], [4, 5, 6]];

    #[test]
    fn keys_are_the_images_and_the_boots() {
        let images = Images::new(ENTROPY);
        let key = images.key(&[7; 32]);
        assert_eq!(Images::new(ENTROPY).key(&[7; 32]), key);
        for n in 0..32 {
            let mut other = [7; 32];
            other[n] ^= 1;
            assert_ne!(images.key(&other), key, "byte {n} of the digest");
        }
        for n in 0..6 {
            let mut other = ENTROPY;
            other[n / 3][n % 3] ^= 1 << 63;
            assert_ne!(Images::new(other).key(&[7; 32]), key, "word {n} of the entropy");
        }
    }

    #[test]
    fn what_was_remembered_is_known_and_nothing_else() {
        let mut images = Images::new(ENTROPY);
        let (key, tag) = (images.key(&[1; 32]), [3, 4]);
        assert!(!images.knows(key) && !images.check(key, tag) && !images.check(key, [0; 2]));
        images.remember(key, tag);
        assert!(images.knows(key) && images.check(key, tag));
        for bit in 0..64 {
            assert!(
                !images.check(key, [3 ^ 1 << bit, 4]) && !images.check(key, [3, 4 ^ 1 << bit]),
                "bit {bit}"
            );
        }
        let other = images.key(&[2; 32]);
        assert!(!images.knows(other) && !images.check(other, tag));
        images.remember(key, [5, 6]);
        assert!(images.check(key, [5, 6]) && !images.check(key, tag), "another tag of the same image");
    }

    #[test]
    fn the_oldest_makes_room() {
        let mut images = Images::new(ENTROPY);
        let key = |n: usize| [n as u64, 0];
        for n in 0..MOST {
            images.remember(key(n), [0, 0]);
            images.remember(key(n), [1, 1]);
        }
        assert!((0..MOST).all(|n| images.check(key(n), [1, 1])), "one image takes one place");
        for n in MOST..3 * MOST {
            images.remember(key(n), [1, 1]);
            assert!(!images.knows(key(n - MOST)) && images.knows(key(n)) && images.knows(key(n + 1 - MOST)));
        }
    }
}
