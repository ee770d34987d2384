// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mistakes that tests turn on, to see that the tests of what they break fail (threats 16 and 35 of `docs/threat-model.md`). In
//! anything but this crate's own tests, [`broken`] is false for the compiler.
//!
//! A mistake is one line where the right thing is done.

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), allow(dead_code))]
pub enum Mistake {
    /// As many page numbers are read as a descriptor has room for.
    TrustedLength,
    /// An answer is as long as the device likes, not the buffer.
    PastBuffer,
    /// Sectors behind the disk's end.
    AnySector,
    /// Rings may be where no memory is.
    AnyRing,
    /// A driver may have features that were not offered.
    AnyFeature,
    /// A back end's frame may be longer than the buffer for it.
    AnyFrame,
    /// As many pairs of queues are in use as a driver likes.
    AnyPairs,
    /// A back end's successor may be another device.
    AnyDevice,
    /// A successor begins where the rings' positions are, whatever was finished out of order.
    PositionsOnly,
    /// Rings that went round unseen are followed as if they had not.
    RoundAndRound,
}

/// Never.
#[cfg(not(test))]
pub(crate) const fn broken(_mistake: Mistake) -> bool {
    false
}

#[cfg(test)]
pub(crate) use tests::broken;

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::panic::catch_unwind;

    use super::Mistake;
    use crate::devices::virtio::balloon::request::tests as balloon;
    use crate::devices::virtio::blk::request::tests as blk;
    use crate::devices::virtio::mmio::tests as mmio;
    use crate::devices::virtio::net::backend::passt::tests as passt;
    use crate::devices::virtio::net::control::tests as control;
    use crate::devices::virtio::rng::request::tests as rng;
    use crate::devices::virtio::vhost_user::link::tests as link;
    use crate::devices::virtio::vhost_user::unfinished::tests as unfinished;

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
    fn threat_16() {
        is_found(Mistake::AnyFrame, passt::nonsense_and_the_end_are_errors);
        is_found(Mistake::AnyDevice, link::a_successor_is_the_same_device);
        is_found(Mistake::PositionsOnly, unfinished::what_was_finished_out_of_order_is_not_done_again);
    }

    #[test]
    fn threat_35() {
        is_found(Mistake::TrustedLength, balloon::endless_buffers_are_read_in_part);
        is_found(Mistake::PastBuffer, rng::a_buffer_is_filled_and_nothing_else);
        is_found(Mistake::AnySector, blk::what_is_out_of_range_is_an_error);
        is_found(Mistake::AnyRing, mmio::queues_outside_memory_need_a_reset);
        is_found(Mistake::AnyFeature, mmio::wrong_features_are_not_ok);
        is_found(Mistake::AnyPairs, control::numbers_that_cannot_be_change_nothing);
        is_found(Mistake::RoundAndRound, unfinished::who_is_too_fast_is_lost_until_the_queue_is_empty);
    }
}
