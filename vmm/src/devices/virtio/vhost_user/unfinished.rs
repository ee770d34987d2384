// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which buffers of a queue a back end has and has not given back, found out from the rings. When it has gone, these are what
//! its successor has to do again.
//!
//! A back end may finish in any order, so the rings' positions alone do not tell. Both rings are read whenever the back end
//! interrupts, which is before the driver hears of it, and once more when it has gone. The driver could offer more buffers than
//! a ring holds without waiting for an interrupt; then what is unfinished is not known until the queue is empty the next time.
//!
//! For the successor the unfinished ones are put in a row: a ring's slots from the position up to which buffers are used, to
//! the one up to which they are available, are as many as there are unfinished buffers. The driver does not read them, and
//! writes only behind them. So any back end goes on where the last one stopped, without a protocol for it (vhost-user's
//! INFLIGHT_SHMFD, which neither of those that we know has).

use std::sync::atomic::Ordering;

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::broken::{Mistake, broken};

/// Of both rings: flags and index.
const RING_HEADER: u64 = 4;
const AVAILABLE_ELEMENT: u64 = 2;
const USED_ELEMENT: u64 = 8;

/// What is known of a queue.
#[derive(Debug)]
pub struct Unfinished {
    available: u16,
    used: u16,
    /// By the number of its first descriptor, whether a buffer is with the back end: how often it was made available, less how often
    /// it was used.
    with: Vec<i32>,
    /// When it was made available the last time.
    since: Vec<u64>,
    /// Buffers that were made available.
    count: u64,
    /// The rings went on too fast, or are nonsense.
    lost: bool,
}

impl Unfinished {
    /// Of a queue that nobody has served yet.
    pub fn new(queue: &Queue) -> Self {
        Self::empty(queue, queue.next_avail())
    }

    /// Of a queue of which all up to a position is used.
    fn empty(queue: &Queue, position: u16) -> Self {
        let size = usize::from(queue.size());
        let (with, since) = (vec![0; size], vec![0; size]);
        Self { available: position, used: position, with, since, count: 0, lost: false }
    }

    /// Reads what has happened. True: buffers have been used since the last time.
    ///
    /// # Errors
    /// A ring is no memory.
    pub fn look(&mut self, memory: &GuestMemoryMmap, queue: &Queue) -> Result<bool, Error> {
        let size = queue.size();
        // In this order, whatever is used has been available before.
        let used = queue.used_idx(memory, Ordering::Acquire)?.0;
        let available = queue.avail_idx(memory, Ordering::Acquire)?.0;
        let progress = used != self.used;
        if used == available {
            *self = Self::empty(queue, used);
            return Ok(progress);
        }
        let mut here = self.available;
        while here != available && !self.lost {
            let slot = u64::from(here % size);
            let head = read_u16(memory, queue.avail_ring(), RING_HEADER + slot * AVAILABLE_ELEMENT)?;
            self.count += 1;
            match (self.with.get_mut(usize::from(head)), self.since.get_mut(usize::from(head))) {
                (Some(with), Some(since)) => (*with, *since) = (*with + 1, self.count),
                _ => self.lost = true,
            }
            here = here.wrapping_add(1);
        }
        let mut here = self.used;
        while here != used && !self.lost {
            let slot = u64::from(here % size);
            let head = read_u16(memory, queue.used_ring(), RING_HEADER + slot * USED_ELEMENT)?;
            match self.with.get_mut(usize::from(head)) {
                Some(with) => *with -= 1,
                None => self.lost = true,
            }
            here = here.wrapping_add(1);
        }
        // It may have come and gone several times since the last look, by turns.
        self.lost |= self.with.iter().any(|with| !matches!(with, 0 | 1));
        // What was read may be newer than it seemed.
        let available_now = queue.avail_idx(memory, Ordering::Acquire)?.0;
        let used_now = queue.used_idx(memory, Ordering::Acquire)?.0;
        let full = available_now.wrapping_sub(used_now) == size;
        self.lost |= match available_now.wrapping_sub(self.available) {
            added if added > size => true,
            added => added == size && !full,
        };
        self.lost |= used_now.wrapping_sub(self.used) >= size;
        (self.available, self.used) = (available, used);
        Ok(progress)
    }

    /// When the back end has gone: makes `queue` begin with what is unfinished; so many buffers. None: that is not known.
    ///
    /// # Errors
    /// A ring is no memory.
    pub fn put_in_a_row(
        &mut self,
        memory: &GuestMemoryMmap,
        queue: &mut Queue,
    ) -> Result<Option<usize>, Error> {
        self.look(memory, queue)?;
        let all = (0_u16..).zip(self.with.iter().zip(&self.since));
        let mut heads: Vec<(u64, u16)> =
            all.filter(|(_, (with, _))| **with == 1).map(|(head, (_, since))| (*since, head)).collect();
        heads.sort_unstable();
        let all = heads.len() == usize::from(self.available.wrapping_sub(self.used));
        if (self.lost || !all) && !broken(Mistake::RoundAndRound) {
            return Ok(None);
        }
        let mut here = self.used;
        for (_, head) in heads.iter().filter(|_| !broken(Mistake::PositionsOnly)) {
            let slot = u64::from(here % queue.size());
            let address = place(queue.avail_ring(), RING_HEADER + slot * AVAILABLE_ELEMENT)?;
            memory.write_obj(head.to_le(), address).map_err(Error::GuestMemory)?;
            here = here.wrapping_add(1);
        }
        queue.set_next_avail(self.used);
        queue.set_next_used(self.used);
        Ok(Some(heads.len()))
    }
}

fn place(ring: u64, offset: u64) -> Result<GuestAddress, Error> {
    ring.checked_add(offset).map(GuestAddress).ok_or(Error::AddressOverflow)
}

fn read_u16(memory: &GuestMemoryMmap, ring: u64, offset: u64) -> Result<u16, Error> {
    memory.read_obj(place(ring, offset)?).map(u16::from_le).map_err(Error::GuestMemory)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::virtio::tests::{WRITE, descriptors, memory};
    use virtio_queue::QueueOwnedT;

    const SIZE: u16 = 16;
    const AVAILABLE: u32 = 0x1000;
    const USED: u32 = 0x2000;

    /// A driver of single-descriptor buffers, and a back end.
    struct Both<'m> {
        memory: &'m GuestMemoryMmap,
        queue: Queue,
        known: Unfinished,
    }

    fn queue() -> Queue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(0), None);
        queue.set_avail_ring_address(Some(AVAILABLE), None);
        queue.set_used_ring_address(Some(USED), None);
        queue.set_ready(true);
        queue
    }

    impl<'m> Both<'m> {
        fn new(memory: &'m GuestMemoryMmap) -> Self {
            for n in 0..SIZE {
                let descriptor = descriptors(n, &[(0x8000 + 64 * u64::from(n), 64, WRITE)])[0];
                memory.write_obj(descriptor, GuestAddress(16 * u64::from(n))).unwrap();
            }
            for ring in [AVAILABLE, USED] {
                memory.write_obj(0_u32, GuestAddress(ring.into())).unwrap();
            }
            Self { memory, queue: queue(), known: Unfinished::new(&queue()) }
        }

        fn offer(&self, heads: &[u16]) {
            let index = GuestAddress(u64::from(AVAILABLE) + 2);
            for head in heads {
                let at: u16 = self.memory.read_obj(index).unwrap();
                let slot = GuestAddress(u64::from(AVAILABLE) + 4 + 2 * u64::from(at % SIZE));
                self.memory.write_obj(*head, slot).unwrap();
                self.memory.write_obj(at.wrapping_add(1), index).unwrap();
            }
        }

        fn finish(&mut self, heads: &[u16]) {
            for head in heads {
                self.queue.add_used(self.memory, *head, 1).unwrap();
            }
        }

        fn look(&mut self) {
            self.known.look(self.memory, &self.queue).unwrap();
        }

        /// What a successor finds.
        fn rest(&mut self) -> Option<Vec<u16>> {
            let mut queue = queue();
            let count = self.known.put_in_a_row(self.memory, &mut queue).unwrap()?;
            assert_eq!(queue.next_used(), self.queue.next_used());
            let chains = queue.iter(self.memory).unwrap();
            let heads: Vec<u16> = chains.map(|chain| chain.head_index()).collect();
            assert_eq!(heads.len(), count);
            Some(heads)
        }
    }

    #[test]
    pub(crate) fn what_was_finished_out_of_order_is_not_done_again() {
        let memory = memory();
        let mut both = Both::new(&memory);
        assert_eq!(both.rest(), Some(vec![]));
        both.offer(&[3, 1, 4, 9, 2]);
        both.finish(&[4, 9]);
        assert_eq!(both.rest(), Some(vec![3, 1, 2]));
        // The driver goes on behind them.
        both.offer(&[9]);
        assert_eq!(both.rest(), Some(vec![3, 1, 2, 9]));
    }

    #[test]
    fn one_that_takes_long_is_remembered() {
        let memory = memory();
        let mut both = Both::new(&memory);
        both.offer(&[7]);
        for _ in 0..10_000 {
            both.offer(&[1, 2, 3]);
            both.finish(&[2, 1, 3]);
            both.look();
        }
        both.offer(&[5]);
        assert_eq!(both.rest(), Some(vec![7, 5]));
    }

    #[test]
    pub(crate) fn a_buffer_comes_and_goes_between_two_looks() {
        let memory = memory();
        let mut both = Both::new(&memory);
        both.offer(&[7, 1, 2]);
        both.look();
        both.finish(&[1]);
        both.offer(&[1, 3]);
        both.finish(&[1, 2]);
        both.offer(&[2, 1]);
        assert_eq!(both.rest(), Some(vec![7, 3, 2, 1]));
        both.finish(&[7]);
        both.offer(&[7]);
        both.finish(&[3, 2, 7]);
        both.offer(&[2, 7, 3]);
        both.finish(&[2]);
        assert_eq!(both.rest(), Some(vec![1, 7, 3]));
    }

    #[test]
    fn a_full_queue() {
        let memory = memory();
        let mut both = Both::new(&memory);
        let all: Vec<u16> = (0..SIZE).rev().collect();
        both.offer(&all);
        assert_eq!(both.rest(), Some(all));
    }

    #[test]
    pub(crate) fn who_is_too_fast_is_lost_until_the_queue_is_empty() {
        let memory = memory();
        let mut both = Both::new(&memory);
        both.offer(&[7]);
        for _ in 0..SIZE {
            both.offer(&[1, 2]);
            both.finish(&[2, 1]);
        }
        assert_eq!(both.rest(), None);
        both.offer(&[3]);
        both.look();
        assert_eq!(both.rest(), None);
        both.finish(&[3, 7]);
        both.look();
        both.offer(&[3]);
        assert_eq!(both.rest(), Some(vec![3]));
    }

    #[test]
    fn nonsense_is_lost() {
        let memory = memory();
        for (offered, finished) in
            [(&[1, 1][..], &[][..]), (&[SIZE], &[]), (&[1, 3], &[2]), (&[1, 2, 3], &[1, 1])]
        {
            let mut both = Both::new(&memory);
            both.offer(offered);
            both.finish(finished);
            assert_eq!(both.rest(), None, "{offered:?} {finished:?}");
        }
    }
}
