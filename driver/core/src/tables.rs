// SPDX-License-Identifier: GPL-2.0-only
//! Memory that the hypervisor is given for a VM's tables (GIVE_MEMORY), when it has none left for them.
//!
//! The kernel must not touch it until the VM is gone: it is hidden from those who read all of its map.

use gzvm_abi::hypercall::Function;

use crate::counters::TABLE_PAGES;
use crate::device::{BLOCK_ORDER, BLOCK_PAGES, has_function};
use crate::hypercall::call;
use crate::kernel::mm::{self, Hiding};
use crate::kernel::print::pr_warn;
use crate::kernel::{KVec, Result, code, task};

/// 2 MiB of page frames, aligned, by the first one's number.
struct Block(u64);

impl Block {
    fn new() -> Result<Self> {
        let block = Self(mm::alloc_frames(BLOCK_ORDER)?);
        TABLE_PAGES.add(BLOCK_PAGES);
        let hiding = Hiding::begin();
        hiding.hide(block.0, BLOCK_PAGES);
        Ok(block)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        mm::free_frames(self.0, BLOCK_ORDER);
        TABLE_PAGES.sub(BLOCK_PAGES);
        task::cond_resched();
    }
}

/// What a VM's tables have. It must outlive the VM.
pub struct Tables {
    blocks: KVec<Block>,
}

impl Tables {
    /// Nothing.
    pub fn new() -> Self {
        Self { blocks: KVec::new() }
    }

    /// The hypervisor has no memory left for the tables of this VM: it gets some. ENOMEM: there is none here either, or it takes no more.
    pub fn grow(&mut self, vm: u16) -> Result {
        if !has_function(Function::GiveMemory) {
            return Err(code::ENOMEM);
        }
        self.blocks.reserve_one()?;
        let block = Block::new()?;
        call(Function::GiveMemory, [vm.into(), block.0]).map_err(|_| code::ENOMEM)?;
        if let Err(block) = self.blocks.push_within_capacity(block) {
            pr_warn!("VM {vm}: 2 MiB are lost");
            core::mem::forget(block);
        }
        Ok(())
    }
}
