// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Buffers of a virtio-rng queue: each is filled, as far as a request may go.

use std::io::Write;

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use crate::broken::{Mistake, broken};

/// Most bytes for one buffer; the driver asks again. Linux asks for 64.
const MOST: usize = 4096;

/// Fills the buffer; returns how many bytes it got. Nothing, where it is no memory.
pub fn fill(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
    let mut random = [0; MOST];
    let filled = chain.writer(memory).ok().and_then(|mut buffer| {
        let room = if broken(Mistake::PastBuffer) { MOST } else { buffer.available_bytes().min(MOST) };
        let wanted = random.get_mut(..room)?;
        let count = getrandom(&mut *wanted, GetRandomFlags::empty()).ok()?;
        buffer.write_all(wanted.get(..count)?).ok()?;
        u32::try_from(count).ok()
    });
    filled.unwrap_or_else(|| {
        tracing::debug!("virtio-rng: a buffer was not filled");
        0
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::devices::virtio::tests::{WRITE, chain, memory};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    pub(crate) fn a_buffer_is_filled_and_nothing_else() {
        let memory = memory();
        assert_eq!(fill(&memory, chain(&memory, &[(0x8000, 40, WRITE), (0x9000, 24, WRITE)])), 64);
        let read = |at| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        assert!((0..5).all(|word| read(0x8000 + 8 * word) != 0) && read(0x9010) != 0);
        assert_eq!((read(0x8028), read(0x9018)), (0, 0));
        assert_ne!(read(0x8000), read(0x8008));
    }

    #[test]
    fn large_foreign_and_readable_buffers() {
        let memory = memory();
        assert_eq!(fill(&memory, chain(&memory, &[(0x8000, 0x4000, WRITE)])), 4096);
        assert_eq!(fill(&memory, chain(&memory, &[(0x8000, 64, 0)])), 0);
        for (address, len) in [(0x10_0000, 64), (0xFFF0, 64), (u64::MAX, 64), (0x8000, u32::MAX)] {
            assert_eq!(fill(&memory, chain(&memory, &[(address, len, WRITE)])), 0, "{address:#x} {len}");
        }
    }
}
