// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mistakes that tests turn on, to see that the tests of what they break fail (threat 10 of `docs/threat-model.md`). In anything but
//! this crate's own tests, and images of the feature `crash-test`, [`broken`] is false for the compiler.
//!
//! A mistake is one line where the right thing is done.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub enum Mistake {
    /// Anybody's signature will do.
    NoSignature,
    /// Kernel, initrd and boot arguments need not be those that were signed.
    NoHashes,
    /// A manifest of a later format is read like one of today's.
    AnyFormat,
    /// A payload may be older than the firmware asks for.
    AnyVersion,
    /// The payload finds nodes that nobody has thought of.
    AnyNode,
    /// The same of properties of `/chosen`.
    AnyChosen,
    /// Kernel, initrd, tree and pool may be anywhere.
    AnyPlace,
    /// Devices may be where memory is.
    AnyDevice,
    /// CPUs need not be started by HVC.
    AnyConduit,
    /// Channels may have any ports, and any names for them.
    AnyRpc,
    /// A PCI bridge may have properties that nobody has thought of.
    AnyBridge,
    /// Of an image that is known any bytes will do.
    AnyTag,
    /// What was hashed is remembered, right or wrong.
    RememberAnything,
}

impl Mistake {
    /// What an image of the feature `crash-test` has over [`PLACE`] if it is to make it.
    #[must_use]
    pub const fn number(self) -> u64 {
        (self as u64).wrapping_add(1)
    }
}

/// Where the number of the mistake stands in an image of the feature `crash-test`, 8 bytes; as it is, none is made.
pub const PLACE: [u8; 8] = *b"MISTAKE?";

/// Never.
#[cfg(not(any(test, feature = "crash-test")))]
pub(crate) const fn broken(_mistake: Mistake) -> bool {
    false
}

#[cfg(all(feature = "crash-test", not(test)))]
pub(crate) use on::broken;

#[cfg(all(feature = "crash-test", not(test)))]
mod on {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::{Mistake, PLACE};

    /// Nobody stores to it; whoever may is none of the compiler's business.
    #[used]
    static MISTAKE: AtomicU64 = AtomicU64::new(u64::from_le_bytes(PLACE));

    /// Whether the image was told to make the mistake.
    pub(crate) fn broken(mistake: Mistake) -> bool {
        MISTAKE.load(Ordering::Relaxed) == mistake.number()
    }
}

#[cfg(test)]
pub(crate) use tests::broken;

#[cfg(test)]
mod tests {
    use std::{cell::Cell, panic::catch_unwind};

    use super::Mistake;
    use crate::{images::tests as images, manifest::tests as manifest, tree::tests as tree};

    thread_local! {
        static MISTAKE: Cell<Option<Mistake>> = const { Cell::new(None) };
    }

    /// Whether this thread makes the mistake.
    pub(crate) fn broken(mistake: Mistake) -> bool {
        MISTAKE.get() == Some(mistake)
    }

    /// The test passes, and fails with the mistake.
    fn is_found(mistake: Mistake, test: fn()) {
        test();
        MISTAKE.set(Some(mistake));
        let found = catch_unwind(test).is_err();
        MISTAKE.set(None);
        assert!(found, "{mistake:?} is not noticed");
    }

    #[test]
    fn threat_10() {
        is_found(Mistake::NoSignature, manifest::what_was_signed_is_accepted_and_nothing_else);
        is_found(Mistake::NoHashes, manifest::what_was_signed_is_accepted_and_nothing_else);
        is_found(Mistake::AnyFormat, manifest::a_later_format_is_refused);
        is_found(Mistake::AnyVersion, manifest::what_is_older_than_the_minimum_is_refused);
        is_found(Mistake::AnyNode, tree::unknown_things_are_refused);
        is_found(Mistake::AnyChosen, tree::unknown_things_are_refused);
        is_found(Mistake::AnyPlace, tree::parts_are_in_memory_and_apart);
        is_found(Mistake::AnyDevice, tree::devices_are_no_memory);
        is_found(Mistake::AnyConduit, tree::cpus_start_by_psci);
        is_found(Mistake::AnyRpc, tree::channels_are_as_documented);
        is_found(Mistake::AnyBridge, tree::a_pci_bridge_is_as_documented);
        is_found(Mistake::AnyTag, images::what_was_hashed_once_is_known_and_nothing_else);
        is_found(Mistake::RememberAnything, images::what_was_hashed_once_is_known_and_nothing_else);
    }
}
