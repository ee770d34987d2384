// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Whether bytes are the image of a digest: by hashing them, or faster if the hypervisor remembers that firmware has hashed them
//! before, since the machine's boot.
//!
//! What is remembered is a tag of the bytes under a key that is the digest's own, and secret (`gzvm_core::vm::images`). Other
//! bytes have the same tag with a probability below 2^-100, and nobody can look for them: the host sees neither key nor
//! tag, and has one attempt each time it starts a VM. As with the hash, a page is the VM's own before its bytes count.

use crate::broken::{Mistake, broken};
use crate::manifest::Hash;

/// The secret key of an image.
pub type Key = [u64; 2];
/// The tag of an image's bytes.
pub type Tag = [u64; 2];

/// What of an image is hashed faster than anything is remembered of it, in bytes.
pub const WORTH_IT: usize = 64 << 10;

/// The hypervisor, which remembers.
pub trait Memory {
    /// The key for an image of this digest, and whether a tag is remembered under it. None if nothing is remembered here.
    fn key(&mut self, digest: &Hash) -> Option<(Key, bool)>;
    /// Whether the tag remembered under this key is this one.
    fn check(&mut self, key: Key, tag: Tag) -> bool;
    /// Remembers it.
    fn remember(&mut self, key: Key, tag: Tag);
}

/// How the bytes of images are told apart.
#[derive(Clone, Copy)]
pub struct Ways {
    /// [`sha256`](crate::manifest::sha256), or a faster one.
    pub sha256: fn(&[u8]) -> Hash,
    /// `gzvm_polyval`'s tag, where that is faster.
    pub tag: Option<fn(Key, &[u8]) -> Tag>,
}

/// How bytes were found to be an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// They have the digest.
    Hashed,
    /// They have the tag that is remembered.
    Known,
}

/// Whether `bytes` have this digest, and how that was found.
pub fn find(bytes: &[u8], digest: &Hash, ways: Ways, memory: &mut impl Memory) -> Option<Found> {
    let hashed = || ((ways.sha256)(bytes) == *digest).then_some(Found::Hashed);
    let Some(tag) = ways.tag.filter(|_| bytes.len() >= WORTH_IT) else { return hashed() };
    let Some((key, known)) = memory.key(digest) else { return hashed() };
    if known && (memory.check(key, tag(key, bytes)) || broken(Mistake::AnyTag)) {
        return Some(Found::Known);
    }
    let found = hashed();
    if found.is_some() || broken(Mistake::RememberAnything) {
        memory.remember(key, tag(key, bytes));
    }
    found
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{cell::Cell, collections::BTreeMap};

    use super::*;
    use crate::manifest::sha256;

    thread_local! {
        static HASHED: Cell<u32> = const { Cell::new(0) };
    }

    const WAYS: Ways = Ways {
        sha256: |bytes| {
            HASHED.set(HASHED.get() + 1);
            sha256(bytes)
        },
        tag: Some(gzvm_polyval::software),
    };

    /// Keys as the hypervisor makes them, though not secret ones.
    #[derive(Default)]
    struct Remembers(BTreeMap<Key, Tag>);

    impl Memory for Remembers {
        fn key(&mut self, digest: &Hash) -> Option<(Key, bool)> {
            let [a, b, ..] = digest.as_chunks().0 else { unreachable!() };
            let key = [u64::from_le_bytes(*a), u64::from_le_bytes(*b)];
            Some((key, self.0.contains_key(&key)))
        }
        fn check(&mut self, key: Key, tag: Tag) -> bool {
            self.0.get(&key) == Some(&tag)
        }
        fn remember(&mut self, key: Key, tag: Tag) {
            self.0.insert(key, tag);
        }
    }

    const NO: (Option<Found>, u32) = (None, 1);
    const HASHED_ONCE: (Option<Found>, u32) = (Some(Found::Hashed), 1);
    const AT_ONCE: (Option<Found>, u32) = (Some(Found::Known), 0);

    /// Whether it is the image, and how often it was hashed.
    fn is(bytes: &[u8], digest: &Hash, memory: &mut impl Memory) -> (Option<Found>, u32) {
        HASHED.set(0);
        (find(bytes, digest, WAYS, memory), HASHED.get())
    }

    #[test]
    pub(crate) fn what_was_hashed_once_is_known_and_nothing_else() {
        let memory = &mut Remembers::default();
        let image = vec![0x5A; WORTH_IT];
        let digest = sha256(&image);
        let mut changed = image.clone();
        *changed.last_mut().unwrap() ^= 1;
        // What is wrong is not remembered as if it were right.
        assert_eq!(is(&changed, &digest, memory), NO);
        assert_eq!(is(&changed, &digest, memory), NO);
        assert_eq!(is(&image, &digest, memory), HASHED_ONCE);
        assert_eq!(is(&image, &digest, memory), AT_ONCE, "the second time");
        assert_eq!(is(&changed, &digest, memory), NO, "changed afterwards");
        assert_eq!(is(&image, &digest, memory), AT_ONCE, "after an attempt");
        // Another image is another one's.
        assert_eq!(is(&changed, &sha256(&changed), memory), HASHED_ONCE);
        assert_eq!(is(&image, &sha256(&changed), memory), NO);
    }

    #[test]
    fn small_ones_and_cpus_without_a_tag_are_hashed() {
        let memory = &mut Remembers::default();
        let small = vec![1; WORTH_IT - 1];
        for _ in 0..2 {
            assert_eq!(is(&small, &sha256(&small), memory), HASHED_ONCE);
        }
        let image = vec![1; WORTH_IT];
        for _ in 0..2 {
            let found = find(&image, &sha256(&image), Ways { tag: None, ..WAYS }, memory);
            assert_eq!(found, Some(Found::Hashed));
        }
        assert!(memory.0.is_empty());
    }

    #[test]
    fn a_hypervisor_that_remembers_nothing_is_no_obstacle() {
        struct Nothing;
        impl Memory for Nothing {
            fn key(&mut self, _: &Hash) -> Option<(Key, bool)> {
                None
            }
            fn check(&mut self, _: Key, _: Tag) -> bool {
                unreachable!()
            }
            fn remember(&mut self, _: Key, _: Tag) {
                unreachable!()
            }
        }
        let image = vec![1; WORTH_IT];
        for _ in 0..2 {
            assert_eq!(is(&image, &sha256(&image), &mut Nothing), HASHED_ONCE);
            assert_eq!(is(&image, &[0; 32], &mut Nothing), NO);
        }
    }
}
