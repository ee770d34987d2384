// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The calls by which protected VMs lend memory to each other, decoded: `docs/abi.md`, "Memory between protected VMs".

use crate::addr::{Ipa, VmId};
use crate::memory::IpaRange;
use crate::memory::loans::Handle;
use gzvm_abi::guest;

/// What none of SMCCC's codes says: there is no room for it. Less may fit, or the same later.
pub const NO_MEMORY: u64 = -4i64 as u64;

/// A call, its arguments in range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Who am I.
    Id,
    /// Another VM may map these pages of mine.
    Share {
        /// The pages.
        pages: IpaRange,
        /// The other VM.
        borrower: VmId,
        /// It may write.
        write: bool,
    },
    /// I map what is lent to me.
    Retrieve {
        /// The loan.
        handle: Handle,
        /// Where, and in how many pages.
        at: IpaRange,
    },
    /// I don't need it any more.
    Relinquish(Handle),
    /// I take back what I lent.
    Reclaim(Handle),
}

/// The call with these x1..x4; nothing where one of them is out of range.
pub fn decode(fid: u32, [x1, x2, x3, x4]: [u64; 4]) -> Option<Call> {
    let pages = |start, count| {
        let fits = count <= guest::VM_MEM_MOST_PAGES as u64;
        IpaRange::from_pages(Ipa(start), count).ok().filter(|_| fits)
    };
    match fid {
        guest::VM_ID => Some(Call::Id),
        guest::VM_MEM_SHARE => {
            let write = match x4 {
                guest::VM_MEM_READ => false,
                guest::VM_MEM_READ_WRITE => true,
                _ => return None,
            };
            let borrower = VmId(u16::try_from(x3).ok()?);
            Some(Call::Share { pages: pages(x1, x2)?, borrower, write })
        }
        guest::VM_MEM_RETRIEVE => Some(Call::Retrieve { handle: Handle(x1), at: pages(x2, x3)? }),
        guest::VM_MEM_RELINQUISH => Some(Call::Relinquish(Handle(x1))),
        guest::VM_MEM_RECLAIM => Some(Call::Reclaim(Handle(x1))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_at_their_ends() {
        let share = |args| decode(guest::VM_MEM_SHARE, args);
        let pages = |start, count| IpaRange::from_pages(Ipa(start), count).unwrap();
        let most = guest::VM_MEM_MOST_PAGES as u64;
        for (count, rights, write) in [(1, 1, false), (1, 3, true), (most, 3, true)] {
            let call = Call::Share { pages: pages(0x8000_0000, count), borrower: VmId(0xFFFE), write };
            assert_eq!(share([0x8000_0000, count, 0xFFFE, rights]), Some(call));
        }
        for args in [
            [0x8000_0000, 0, 2, 3],
            [0x8000_0000, most + 1, 2, 3],
            [0x8000_0000, u64::MAX, 2, 3],
            [0x8000_0001, 1, 2, 3],
            [u64::MAX - 0xFFF, 1, 2, 3],
            [0x8000_0000, 1, 0x1_0002, 3],
            [0x8000_0000, 1, 2, 0],
            [0x8000_0000, 1, 2, 2],
            [0x8000_0000, 1, 2, 7],
            [0x8000_0000, 1, 2, 1 << 32 | 1],
        ] {
            assert_eq!(share(args), None, "{args:x?}");
        }
        let retrieve = |args| decode(guest::VM_MEM_RETRIEVE, args);
        let call = Call::Retrieve { handle: Handle(7), at: pages(0x1000, most) };
        assert_eq!(retrieve([7, 0x1000, most, 0]), Some(call));
        for args in [[7, 0x1008, 1, 0], [7, 0x1000, 0, 0], [7, 0x1000, most + 1, 0], [7, u64::MAX, 1, 0]] {
            assert_eq!(retrieve(args), None, "{args:x?}");
        }
    }
}
