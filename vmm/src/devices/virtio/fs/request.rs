// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Requests of a folder's queues that nobody is there to serve (FUSE, linux/fuse.h).

use std::io::{Read, Write};

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

/// Where a request's header has its number.
const UNIQUE: usize = 8;
/// Bytes of an answer's header.
const ANSWER: usize = 16;

/// Answers that there is no connection; returns how many bytes that took. Some requests want no answer.
pub fn refuse(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
    let answer = |chain: DescriptorChain<&GuestMemoryMmap>| {
        let mut request = [0; UNIQUE + 8];
        chain.clone().reader(memory).ok()?.read_exact(&mut request).ok()?;
        let mut answer = [0; ANSWER];
        let (len, rest) = answer.split_first_chunk_mut::<4>()?;
        let (error, unique) = rest.split_first_chunk_mut::<4>()?;
        *len = (ANSWER as u32).to_le_bytes();
        *error = (-libc::ENOTCONN).to_le_bytes();
        unique.copy_from_slice(request.get(UNIQUE..)?);
        let mut writer = chain.writer(memory).ok()?;
        if writer.available_bytes() < ANSWER {
            return None;
        }
        writer.write_all(&answer).ok()?;
        Some(ANSWER as u32)
    };
    answer(chain).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::virtio::tests::{WRITE, chain, memory};
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn requests_are_refused_by_their_numbers() {
        let memory = memory();
        memory.write_obj(0x1234_5678_9ABC_u64, GuestAddress(0x8008)).unwrap();
        assert_eq!(
            refuse(&memory, chain(&memory, &[(0x8000, 40, 0), (0x9000, 8, WRITE), (0xA000, 80, WRITE)])),
            16
        );
        assert_eq!(memory.read_obj::<u32>(GuestAddress(0x9000)).unwrap(), 16);
        assert_eq!(memory.read_obj::<i32>(GuestAddress(0x9004)).unwrap(), -107);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0xA000)).unwrap(), 0x1234_5678_9ABC);
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0xA008)).unwrap(), 0);
    }

    #[test]
    fn what_wants_no_answer_or_is_no_request() {
        let memory = memory();
        for parts in [
            &[(0x8000, 40, 0)][..],
            &[(0x8000, 8, 0), (0x9000, 80, WRITE)],
            &[(0x8000, 40, 0), (0x9000, 15, WRITE)],
        ] {
            assert_eq!(refuse(&memory, chain(&memory, parts)), 0);
        }
        assert_eq!(memory.read_obj::<u64>(GuestAddress(0x9000)).unwrap(), 0);
    }
}
