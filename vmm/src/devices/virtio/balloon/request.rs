// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers of a balloon's queues: which of the guest's pages they name. Nothing here is trusted; whether a
//! page is RAM is for the one who gives it back to say.

use std::ops::Deref;

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestMemory, GuestMemoryMmap};

use crate::broken::{Mistake, broken};

/// Bytes in a page, and in what a page number counts (5.5.6).
pub const PAGE: u64 = 4096;
/// Most page numbers read from one buffer; Linux sends 256.
const MOST: usize = 4096;

/// Adjoining pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Guest physical address.
    pub address: u64,
    /// Bytes.
    pub size: u64,
}

/// Pages that went into the balloon: an array of 32-bit page numbers, in any order.
pub fn inflated<M>(memory: &GuestMemoryMmap, chain: DescriptorChain<M>, mut give: impl FnMut(Run))
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    let mut pages = Vec::new();
    for descriptor in chain.readable() {
        let room = if broken(Mistake::TrustedLength) { usize::MAX } else { MOST - pages.len() };
        let count = (descriptor.len() as usize / 4).min(room);
        let mut bytes = vec![0; count * 4];
        if memory.read_slice(&mut bytes, descriptor.addr()).is_err() {
            tracing::warn!("virtio-balloon: a buffer is outside of memory");
            break;
        }
        let (numbers, _) = bytes.as_chunks();
        pages.extend(numbers.iter().map(|number| u32::from_le_bytes(*number)));
    }
    pages.sort_unstable();
    pages.dedup();
    for run in pages.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
        if let Some(first) = run.first() {
            give(Run { address: u64::from(*first) * PAGE, size: run.len() as u64 * PAGE });
        }
    }
}

/// Free pages that the guest reports: each descriptor is a range. What is not whole pages is left out.
pub fn reported<M>(chain: DescriptorChain<M>, mut give: impl FnMut(Run))
where
    M: Deref + Clone,
    M::Target: GuestMemory,
{
    for descriptor in chain.writable() {
        let end = descriptor.addr().0.saturating_add(descriptor.len().into()) / PAGE * PAGE;
        let Some(address) = descriptor.addr().0.checked_next_multiple_of(PAGE) else { continue };
        if let Some(size) = end.checked_sub(address).filter(|size| *size != 0) {
            give(Run { address, size });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use virtio_bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::GuestAddress;

    const SIZE: usize = 0x10000;

    fn runs(descriptors: &[(u64, u32)], write: bool, fill: impl FnOnce(&GuestMemoryMmap)) -> Vec<Run> {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)]).unwrap();
        let ring = MockSplitQueue::new(&memory, 16);
        fill(&memory);
        let last = descriptors.len().saturating_sub(1);
        let flags = if write { VRING_DESC_F_WRITE } else { 0 };
        let descriptors: Vec<_> = (0_u16..)
            .zip(descriptors)
            .map(|(n, &(address, len))| {
                let next = if usize::from(n) == last { 0 } else { VRING_DESC_F_NEXT };
                RawDescriptor::from(Descriptor::new(address, len, (flags | next) as u16, n + 1))
            })
            .collect();
        let chain = ring.build_desc_chain(&descriptors).unwrap();
        let mut runs = Vec::new();
        if write {
            reported(chain, |run| runs.push(run));
        } else {
            inflated(&memory, chain, |run| runs.push(run));
        }
        runs
    }

    #[test]
    fn numbers_become_runs() {
        let got = runs(&[(0x8000, 8), (0x9000, 11)], false, |memory| {
            for (at, pfn) in [(0x8000, 7_u32), (0x8004, 5), (0x9000, 6), (0x9004, u32::MAX)] {
                memory.write_obj(pfn, GuestAddress(at)).unwrap();
            }
        });
        let top = u64::from(u32::MAX) * PAGE;
        assert_eq!(got, [Run { address: 5 * PAGE, size: 3 * PAGE }, Run { address: top, size: PAGE }]);
    }

    #[test]
    fn buffers_outside_memory_and_endless_ones_do_no_harm() {
        assert_eq!(runs(&[(0xFFFF_0000, 64)], false, |_| ()), []);
        assert_eq!(runs(&[(u64::MAX, u32::MAX)], false, |_| ()), []);
        // All zero: page 0, many times.
        let all = runs(&[(0x8000, 0x4000), (0x8000, 0x4000)], false, |_| ());
        assert_eq!(all, [Run { address: 0, size: PAGE }]);
    }

    #[test]
    pub(crate) fn endless_buffers_are_read_in_part() {
        // Page 0, as often as a buffer may say so, and then others.
        let first = u32::try_from(4 * MOST).unwrap();
        let got = runs(&[(0x4000, first), (0x8000, 4)], false, |memory| {
            memory.write_obj(7_u32, GuestAddress(0x8000)).unwrap();
            memory.write_obj(7_u32, GuestAddress(0x4000)).unwrap();
        });
        assert_eq!(got, [Run { address: 0, size: PAGE }, Run { address: 7 * PAGE, size: PAGE }]);
        let got = runs(&[(0x8000, first), (0x7000, 4)], false, |memory| {
            memory.write_obj(7_u32, GuestAddress(0x7000)).unwrap();
        });
        assert_eq!(got, [Run { address: 0, size: PAGE }]);
    }

    #[test]
    fn reports_are_cut_to_whole_pages() {
        assert_eq!(
            runs(&[(0x1001, 0x2000), (0x5000, 0xFFF), (0x7FFF, 1)], true, |_| ()),
            [Run { address: 0x2000, size: 0x1000 }]
        );
        assert_eq!(runs(&[(u64::MAX, u32::MAX)], true, |_| ()), []);
    }

    proptest! {
        #[test]
        fn any_report_is_whole_pages_inside_it(address: u64, len: u32) {
            for run in runs(&[(address, len)], true, |_| ()) {
                prop_assert!(run.address % PAGE == 0 && run.size % PAGE == 0 && run.size > 0);
                prop_assert!(run.address >= address);
                prop_assert!(run.size <= len.into());
            }
        }
    }
}
