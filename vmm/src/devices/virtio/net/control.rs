// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The control queue of an interface with several pairs of queues (virtio 1.2, section 5.1.6.5): one command is known, how many
//! of them are in use.
//!
//! A command is its class, its number, what belongs to it; and room for a byte, the answer. What the driver wrote is judged in a
//! copy. Whatever it was, the device goes on: with VIRTIO_NET_ERR nothing has changed.

use std::io::{self, Read, Write};
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use virtio_queue::{DescriptorChain, Error, Queue};
use vm_memory::GuestMemoryMmap;

use crate::broken::{Mistake, broken};
use crate::devices::virtio::Interrupt;
use crate::devices::virtio::worker::{self, Serve};
use crate::sandbox::Role;

const CLASS: u8 = VIRTIO_NET_CTRL_MQ as u8;
const SET: u8 = VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8;

/// The pairs of queues in use: the first ones, and never none.
pub struct Pairs<S> {
    used: u16,
    /// 0: it may not set the number.
    most: u16,
    /// Takes a pair into use, or out of it: no buffer of its receive queue is used then any more when this returns. A pair that could not be taken
    /// into use is out of it.
    switch: S,
}

impl<S: FnMut(u16, bool) -> io::Result<()>> Pairs<S> {
    /// The first of those that a driver has set up, which accepted `features`.
    pub fn new(there: usize, features: u64, switch: S) -> Self {
        let several = features >> VIRTIO_NET_F_MQ & 1 != 0;
        Self { used: 1, most: if several { there as u16 } else { 0 }, switch }
    }

    /// So many of them from here on. False: that can't be, and all is as before.
    fn set(&mut self, pairs: u16) -> bool {
        if !(1..=self.most).contains(&pairs) && !broken(Mistake::AnyPairs) {
            return false;
        }
        let before = self.used;
        while self.used < pairs {
            if let Err(error) = (self.switch)(self.used, true) {
                tracing::warn!("virtio-net: queue pair {}: {error}", self.used);
                self.shrink(before);
                return false;
            }
            self.used += 1;
        }
        self.shrink(pairs);
        true
    }

    fn shrink(&mut self, pairs: u16) {
        while self.used > pairs {
            self.used -= 1;
            // Nobody serves it any more in any case.
            if let Err(error) = (self.switch)(self.used, false) {
                tracing::warn!("virtio-net: queue pair {}: {error}", self.used);
            }
        }
    }
}

/// Serves the control queue.
pub struct Control<S> {
    pub(super) memory: GuestMemoryMmap,
    pub(super) queue: Queue,
    pub(super) interrupt: Arc<Interrupt>,
    pub(super) pairs: Pairs<S>,
    /// What switching takes.
    pub(super) role: Role,
}

impl<S: FnMut(u16, bool) -> io::Result<()> + Send + 'static> Serve for Control<S> {
    fn serve(&mut self) -> Result<(), Error> {
        let Self { memory, queue, interrupt, pairs, .. } = self;
        worker::serve(queue, memory, interrupt, |chain| answer(memory, chain, |number| pairs.set(number)))
    }

    fn role(&self) -> Role {
        self.role
    }
}

/// Does what a command says; returns how many bytes were written for the driver. One without room for an answer is not done.
fn answer(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    set: impl FnOnce(u16) -> bool,
) -> u32 {
    let room = chain.clone().writer(memory).ok().filter(|room| room.available_bytes() != 0);
    let Some(mut room) = room else {
        tracing::debug!("virtio-net: a command without room for an answer");
        return 0;
    };
    let done = pairs(memory, chain).is_some_and(set);
    let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
    room.write_all(&[answer as u8]).map_or(0, |()| 1)
}

/// The number of pairs that a command sets; none where it is another command, or none.
fn pairs(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> Option<u16> {
    let mut reader = chain.reader(memory).ok()?;
    let mut command = [0; 4];
    if reader.available_bytes() != command.len() {
        return None;
    }
    reader.read_exact(&mut command).ok()?;
    match command {
        [CLASS, SET, low, high] => Some(u16::from_le_bytes([low, high])),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::virtio::tests::{WRITE, chain, memory};
    use vm_memory::{Bytes, GuestAddress};

    const COMMAND: u64 = 0x8000;
    const ANSWER: u64 = 0x9000;
    /// As Linux sends it: the header, what belongs to it, room for the answer.
    const USUAL: [(u64, u32, u16); 3] = [(COMMAND, 2, 0), (COMMAND + 2, 2, 0), (ANSWER, 1, WRITE)];

    /// The answer to `command` in buffers `parts`, if it is one, and the number that was to be set.
    fn ask(command: &[u8], parts: &[(u64, u32, u16)], works: bool) -> (Option<u8>, Option<u16>) {
        let memory = memory();
        memory.write_slice(command, GuestAddress(COMMAND)).unwrap();
        memory.write_obj(0xAA_u8, GuestAddress(ANSWER)).unwrap();
        let mut asked = None;
        let written = answer(&memory, chain(&memory, parts), |pairs| {
            asked = Some(pairs);
            works
        });
        let byte: u8 = memory.read_obj(GuestAddress(ANSWER)).unwrap();
        // Nothing behind the answer is ever written.
        assert_eq!(memory.read_obj::<u32>(GuestAddress(ANSWER + 1)).unwrap(), 0);
        assert_eq!(written == 0, byte == 0xAA);
        ((written == 1).then_some(byte), asked)
    }

    #[test]
    fn the_number_of_pairs_is_set() {
        assert_eq!(ask(&[4, 0, 2, 0], &USUAL, true), (Some(0), Some(2)));
        assert_eq!(ask(&[4, 0, 1, 2], &USUAL, false), (Some(1), Some(0x201)));
        // In one buffer, or in four; with more room than is needed.
        assert_eq!(ask(&[4, 0, 2, 0], &[(COMMAND, 4, 0), (ANSWER, 100, WRITE)], true), (Some(0), Some(2)));
        let bytes: Vec<_> = (0..4).map(|n| (COMMAND + n, 1, 0)).chain([(ANSWER, 1, WRITE)]).collect();
        assert_eq!(ask(&[4, 0, 2, 0], &bytes, true), (Some(0), Some(2)));
    }

    #[test]
    fn other_classes_and_commands_are_errors() {
        // Receive mode, addresses, VLANs, announcements, offloads, none of all.
        for class in (0..=255).filter(|class| *class != CLASS) {
            assert_eq!(ask(&[class, 0, 1, 0], &USUAL, true), (Some(1), None), "class {class}");
        }
        // RSS, hashes.
        for command in 1..=255 {
            assert_eq!(ask(&[CLASS, command, 1, 0], &USUAL, true), (Some(1), None), "command {command}");
        }
    }

    #[test]
    fn commands_of_another_length_are_errors() {
        for len in [0, 1, 2, 3, 5, 0x2000] {
            let parts = [(COMMAND - 0x4000, len, 0), (ANSWER, 1, WRITE)];
            assert_eq!(ask(&[], &parts, true), (Some(1), None), "{len}");
            // The right bytes, but not as many.
            let parts = [(COMMAND, len.min(0x800), 0), (ANSWER, 1, WRITE)];
            assert_eq!(ask(&[4, 0, 1, 0], &parts, true), (Some(1), None), "{len}");
        }
        assert_eq!(ask(&[4, 0, 1, 0], &[(ANSWER, 1, WRITE)], true), (Some(1), None));
    }

    #[test]
    fn commands_that_are_no_memory_are_errors() {
        for foreign in [(0x1_0000, 4, 0), (0xFFFE, 4, 0), (u64::MAX, 4, 0), (COMMAND, u32::MAX - 1, 0)] {
            assert_eq!(
                ask(&[4, 0, 1, 0], &[foreign, (ANSWER, 1, WRITE)], true),
                (Some(1), None),
                "{foreign:x?}"
            );
        }
    }

    #[test]
    fn commands_without_room_for_an_answer_are_not_done() {
        for room in [(ANSWER, 1, 0), (ANSWER, 0, WRITE), (0x1_0000, 1, WRITE), (u64::MAX, 1, WRITE)] {
            assert_eq!(ask(&[4, 0, 1, 0], &[(COMMAND, 4, 0), room], true), (None, None), "{room:x?}");
        }
        assert_eq!(ask(&[4, 0, 1, 0], &[(COMMAND, 4, 0)], true), (None, None));
    }

    /// What is switched when the numbers are set one after the other, of three pairs; pair `fails` can't be taken into use.
    fn switched(numbers: &[u16], fails: u16) -> (Vec<bool>, Vec<(u16, bool)>) {
        let mut log = Vec::new();
        let mut pairs = Pairs::new(3, 1 << VIRTIO_NET_F_MQ, |pair, on| {
            log.push((pair, on));
            if (pair, on) == (fails, true) { Err(io::Error::other("no")) } else { Ok(()) }
        });
        let done = numbers.iter().map(|number| pairs.set(*number)).collect();
        (done, log)
    }

    #[test]
    fn pairs_are_switched_one_by_one() {
        let (done, log) = switched(&[1, 3, 3, 1, 2], 9);
        assert_eq!(done, [true; 5]);
        assert_eq!(log, [(1, true), (2, true), (2, false), (1, false), (1, true)]);
    }

    #[test]
    pub(crate) fn numbers_that_cannot_be_change_nothing() {
        let (done, log) = switched(&[0, 4, 0x100, 0x8000, u16::MAX], 9);
        assert_eq!((done, log), (vec![false; 5], vec![]));
    }

    #[test]
    fn a_pair_that_cannot_be_had_leaves_all_as_it_was() {
        let (done, log) = switched(&[3, 2], 2);
        assert_eq!(done, [false, true]);
        assert_eq!(log, [(1, true), (2, true), (1, false), (1, true)]);
    }
}
