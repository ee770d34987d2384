// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Commands (IHI 0070, 4): two words each.

use crate::addr::{Ipa, PAGE_SIZE};
use crate::memory::IpaRange;

/// Words of an entry.
pub const WORDS: u64 = 2;
/// Most pages that are invalidated one by one.
const MAX_PAGES: u64 = 16;
/// Most commands that [`invalidation`] makes.
pub const MAX_BATCH: usize = MAX_PAGES as usize;

/// What the SMMU is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// CMD_CFGI_ALL: drop every cached configuration.
    ForgetStreams,
    /// CMD_TLBI_NSNH_ALL: drop every translation of EL1.
    ForgetAll,
    /// CMD_TLBI_EL2_ALL: drop every translation of EL2.
    ForgetEl2,
    /// CMD_TLBI_S12_VMALL: drop every translation of a VMID.
    ForgetVm(u16),
    /// CMD_TLBI_S2_IPA: drop the stage-2 translation of an address; with `leaf`, tables on the way stay cached.
    ForgetIpa {
        /// The VMID.
        vmid: u16,
        /// The address.
        ipa: Ipa,
        /// Only blocks and pages were changed.
        leaf: bool,
    },
    /// CMD_SYNC: is consumed when all before it is done, transactions that used what was dropped included. Signals nothing.
    Sync,
}

impl Command {
    /// As the queue holds it.
    pub const fn encode(self) -> [u64; 2] {
        match self {
            // Range: all.
            Self::ForgetStreams => [0x04, 31],
            Self::ForgetEl2 => [0x20, 0],
            Self::ForgetVm(vmid) => [0x28 | (vmid as u64) << 32, 0],
            Self::ForgetIpa { vmid, ipa, leaf } => {
                [0x2A | (vmid as u64) << 32, ipa.0 & 0x000F_FFFF_FFFF_F000 | leaf as u64]
            }
            Self::ForgetAll => [0x30, 0],
            Self::Sync => [0x46, 0],
        }
    }
}

/// What drops `range` of a VMID: page by page if that is little, else everything.
pub fn invalidation(vmid: u16, range: IpaRange, leaf: bool) -> impl Iterator<Item = Command> + Clone {
    let pages = range.pages();
    let single = pages <= MAX_PAGES;
    let start = range.start().0;
    let page = move |i: u64| Ipa(start.wrapping_add(i.wrapping_mul(PAGE_SIZE)));
    (0..if single { pages } else { 1 }).map(move |i| {
        if single { Command::ForgetIpa { vmid, ipa: page(i), leaf } } else { Command::ForgetVm(vmid) }
    })
}
