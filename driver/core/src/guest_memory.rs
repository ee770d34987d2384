// SPDX-License-Identifier: GPL-2.0-only
//! Guest memory that is a file of the driver's (CREATE_GUEST_MEMORY).
//!
//! ```text
//!   nothing --touched--> the host's --give, for a protected VM--> private
//!      ^                                                            |
//!      +----------------- put, by the last slot that had it --------+
//! ```
//! User space maps the file; its pages are page frames to the kernel, so nobody gets hold of them (no direct I/O, no access
//! by other processes). A page becomes private, and leaves every mapping, in one critical section with the hypercall that gives it
//! away. An access to a private page asks the hypervisor: what the guest shares is mapped, all else is SIGBUS, or EFAULT of
//! the system call. A guest that stops sharing a page says so before the page leaves the host, see
//! [`Memory::unshare`](crate::memory::Memory::unshare). A private page that comes back has been scrubbed; it is freed,
//! and reads as zero like any that was never there.
//!
//! A private page is passed over by readers of the kernel's own map, which maps it still.
//!
//! A block of 2 MiB is one piece of the kernel's where it has one. As long as all of its pages are taken, given away and put together,
//! each of these is one step; whatever concerns a single page of it makes a table of its pages.
//!
//! Invariants, under the lock:
//! - A page with users, which are slots that got it, is not freed.
//! - A private page is in a mapping only if the host may access it.
//!
//! The lock is taken by faults of user space: nothing of user space may be touched under it.

use zerocopy::FromZeros;

use crate::broken::{Mistake, broken};
use crate::counters::{GUEST_MEMORY_PAGES, PRIVATE_FAULTS, PRIVATE_PAGES};
use crate::device::{BLOCK_ORDER, BLOCK_PAGES};
use crate::hypercall::host_access;
use crate::kernel::file::{self, MemoryFile};
use crate::kernel::mm::Hiding;
use crate::kernel::sync::{Class, Mutex};
use crate::kernel::{KBox, KVec, Result, code, mm, task};
use gzvm_abi::PAGE_SIZE;

/// Most pages in a file: as many as in a slot.
const MOST_PAGES: u64 = (1 << 31) - 1;
const BLOCK: usize = BLOCK_PAGES as usize;

#[derive(FromZeros)]
#[repr(C)]
struct Block {
    /// One piece of the kernel's, whose pages are all alike: its first PFN + 1. Or 0.
    whole: u64,
    /// Of such a block, for all of its pages; what follows is zero then.
    whole_users: u16,
    whole_private: u8,
    /// PFN + 1, or 0 for nothing.
    frames: [u64; BLOCK],
    /// Slots that have the page.
    users: [u16; BLOCK],
    /// Not 0: a protected VM's.
    private: [u8; BLOCK],
}

/// A file's pages.
pub struct GuestMemory {
    pages: u64,
    blocks: Mutex<KVec<Option<KBox<Block>>>>,
}

/// One page's places in its block.
struct Entry<'a> {
    frame: &'a mut u64,
    users: &'a mut u16,
    private: &'a mut u8,
}

impl Block {
    /// The places of one page. A block that was whole is no longer.
    fn entry(&mut self, index: usize) -> Result<Entry<'_>> {
        self.split();
        let frame = self.frames.get_mut(index).ok_or(code::EINVAL)?;
        let users = self.users.get_mut(index).ok_or(code::EINVAL)?;
        let private = self.private.get_mut(index).ok_or(code::EINVAL)?;
        Ok(Entry { frame, users, private })
    }

    /// Fills all of an empty block, if the kernel has so much in one piece.
    fn fill(&mut self) {
        if let Ok(first) = mm::alloc_frames(BLOCK_ORDER) {
            self.whole = first.wrapping_add(1);
            GUEST_MEMORY_PAGES.add(BLOCK_PAGES);
        }
    }

    /// Its first PFN, if it is whole.
    fn first(&self) -> Option<u64> {
        self.whole.checked_sub(1)
    }

    /// Each page has its own frame, users and privacy from now on.
    fn split(&mut self) {
        let Some(first) = self.first() else { return };
        self.whole = 0;
        mm::split_frames(first, BLOCK_ORDER);
        for (frame, pfn) in self.frames.iter_mut().zip(first..) {
            *frame = pfn.wrapping_add(1);
        }
        self.users.fill(self.whole_users);
        self.private.fill(self.whole_private);
    }

    /// PFN and privacy of a page; a frame is allocated now if there was none.
    fn look(&mut self, index: usize) -> Result<(u64, bool)> {
        if let Some(first) = self.first() {
            return Ok((first.wrapping_add(index as u64), self.whole_private != 0));
        }
        let mut entry = self.entry(index)?;
        Ok((entry.frame()?, *entry.private != 0))
    }

    /// Makes pages private that have users.
    fn give(&mut self, index: usize, pages: u64, hiding: &Hiding) -> Result {
        if let Some(first) = self.first()
            && (pages == BLOCK_PAGES || self.whole_private != 0)
        {
            if self.whole_users == 0 {
                return Err(code::EFAULT);
            }
            if core::mem::replace(&mut self.whole_private, 1) == 0 {
                hide(hiding, first, BLOCK_PAGES);
            }
            return Ok(());
        }
        for index in (index..BLOCK).take(pages as usize) {
            let mut entry = self.entry(index)?;
            if *entry.users == 0 {
                return Err(code::EFAULT);
            }
            if core::mem::replace(entry.private, 1) == 0 {
                hide(hiding, entry.frame()?, 1);
            }
        }
        Ok(())
    }

    /// Takes a user from pages; `unmap` comes before any is freed. Is the block as if it had never been there?
    fn put(&mut self, index: usize, pages: u64, mut unmap: impl FnMut()) -> bool {
        if self.whole != 0 && pages == BLOCK_PAGES {
            self.whole_users = self.whole_users.saturating_sub(1);
            if self.whole_users != 0 || self.whole_private == 0 {
                return false;
            }
            unmap();
            self.free_whole();
            return true;
        }
        for index in (index..BLOCK).take(pages as usize) {
            let Ok(mut entry) = self.entry(index) else { return false };
            *entry.users = entry.users.saturating_sub(1);
            if *entry.users == 0 && *entry.private != 0 {
                unmap();
                entry.free();
            }
        }
        false
    }

    fn free_whole(&mut self) {
        let Some(first) = self.first() else { return };
        if core::mem::take(&mut self.whole_private) != 0 {
            PRIVATE_PAGES.sub(BLOCK_PAGES);
        }
        self.whole = 0;
        mm::free_frames(first, BLOCK_ORDER);
        GUEST_MEMORY_PAGES.sub(BLOCK_PAGES);
    }

    /// Frees what has no users.
    fn free_unused(&mut self) {
        if self.whole != 0 {
            if self.whole_users == 0 {
                self.free_whole();
            }
            return;
        }
        for index in 0..BLOCK {
            if let Ok(mut entry) = self.entry(index)
                && *entry.users == 0
            {
                entry.free();
            }
        }
    }
}

/// Hides pages that become private.
fn hide(hiding: &Hiding, first: u64, pages: u64) {
    if !broken(Mistake::NoHiding) {
        hiding.hide(first, pages);
    }
    PRIVATE_PAGES.add(pages);
}

/// Of pages, each block's part: its number, the first page's index in it, and how many.
fn parts(page: u64, pages: u64) -> impl Iterator<Item = (u64, usize, u64)> {
    let end = page.saturating_add(pages);
    let mut at = page;
    core::iter::from_fn(move || {
        let (block, index) = (at / BLOCK_PAGES, at % BLOCK_PAGES);
        let here = BLOCK_PAGES.saturating_sub(index).min(end.saturating_sub(at));
        at = at.saturating_add(here);
        (here != 0).then_some((block, index as usize, here))
    })
}

impl Entry<'_> {
    /// Its PFN; allocated now if there was none.
    fn frame(&mut self) -> Result<u64> {
        if *self.frame == 0 {
            *self.frame = mm::alloc_frames(0)?.wrapping_add(1);
            GUEST_MEMORY_PAGES.add(1);
        }
        self.frame.checked_sub(1).ok_or(code::ENOMEM)
    }

    fn free(&mut self) {
        if core::mem::take(self.private) != 0 {
            PRIVATE_PAGES.sub(1);
        }
        if let Some(pfn) = core::mem::take(self.frame).checked_sub(1) {
            mm::free_frames(pfn, 0);
            GUEST_MEMORY_PAGES.sub(1);
        }
    }
}

impl GuestMemory {
    /// CREATE_GUEST_MEMORY: a file's descriptor. EINVAL: size or flags.
    pub fn create(request: &gzvm_abi::ioctl::GuestMemory) -> Result<i64> {
        let pages = request.size / PAGE_SIZE;
        if request.flags != 0 || !request.size.is_multiple_of(PAGE_SIZE) || pages == 0 || pages > MOST_PAGES {
            return Err(code::EINVAL);
        }
        let blocks = KVec::filled(pages.div_ceil(BLOCK_PAGES) as usize, || None)?;
        file::memory_fd(KBox::new(Self { pages, blocks: Mutex::new(Class::GuestMemory, blocks)? })?)
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.pages.saturating_mul(PAGE_SIZE)
    }

    /// Are there such pages? EINVAL if not.
    pub fn check_map(&self, page: u64, pages: u64) -> Result {
        let end = page.checked_add(pages).ok_or(code::EINVAL)?;
        if end <= self.pages { Ok(()) } else { Err(code::EINVAL) }
    }

    /// The block of a page, which is there from now on, and the page's index in it.
    fn block<'a>(
        &self,
        blocks: &'a mut KVec<Option<KBox<Block>>>,
        page: u64,
    ) -> Result<(&'a mut Block, usize)> {
        if page >= self.pages {
            return Err(code::EFAULT);
        }
        let place = blocks.get_mut((page / BLOCK_PAGES) as usize).ok_or(code::EFAULT)?;
        if place.is_none() {
            let mut block = KBox::<Block>::zeroed()?;
            // Blocks are the cheapest to give away, and to map for a guest.
            if page - page % BLOCK_PAGES <= self.pages.saturating_sub(BLOCK_PAGES) {
                block.fill();
            }
            *place = Some(block);
        }
        Ok((place.as_deref_mut().ok_or(code::EFAULT)?, (page % BLOCK_PAGES) as usize))
    }

    /// User space touched a page, which `insert` maps there. EFAULT: it is a protected VM's, or none.
    pub fn fault(&self, page: u64, insert: impl FnOnce(u64) -> Result) -> Result {
        let mut blocks = self.blocks.lock();
        let (block, index) = self.block(&mut blocks, page)?;
        let (pfn, private) = block.look(index)?;
        if private && !host_access(pfn).0 && !broken(Mistake::MapPrivate) {
            PRIVATE_FAULTS.add(1);
            return Err(code::EFAULT);
        }
        // Under the lock: it can't become private in between.
        insert(pfn)
    }

    /// Notes a slot as a user of pages from `page` on. How many, at least one; their PFNs are in `pfns` then.
    pub fn take(&self, page: u64, pfns: &mut [u64]) -> Result<usize> {
        let mut blocks = self.blocks.lock();
        let mut taken = 0;
        for (pfn, page) in pfns.iter_mut().zip(page..) {
            let got = self.block(&mut blocks, page).and_then(|(block, index)| {
                let mut entry = block.entry(index)?;
                let users = entry.users.checked_add(1).ok_or(code::ENOMEM)?;
                let frame = entry.frame()?;
                *entry.users = users;
                Ok(frame)
            });
            match got {
                Ok(frame) => *pfn = frame,
                Err(e) if taken == 0 => return Err(e),
                Err(_) => break,
            }
            taken += 1;
        }
        Ok(taken)
    }

    /// As [`take`](Self::take), of the block from `page` on, if that is one piece whose pages are all alike: its first PFN.
    pub fn take_block(&self, page: u64) -> Option<u64> {
        let mut blocks = self.blocks.lock();
        let (block, 0) = self.block(&mut blocks, page).ok()? else { return None };
        let first = block.first()?;
        block.whole_users = block.whole_users.checked_add(1)?;
        Some(first)
    }
}

impl MemoryFile {
    /// Makes pages that the caller has taken private, takes them from user space, and then does `f`, which gives them to
    /// a protected VM or has one take them back from the host. What comes of it is for the hypervisor to say: see
    /// [`GuestMemory::fault`].
    pub fn give<R>(&self, page: u64, pages: u64, f: impl FnOnce() -> Result<R>) -> Result<R> {
        let hiding = Hiding::begin();
        let mut blocks = self.blocks.lock();
        for (number, index, here) in parts(page, pages) {
            let (block, _) = self.block(&mut blocks, number.saturating_mul(BLOCK_PAGES))?;
            block.give(index, here, &hiding)?;
        }
        drop(hiding);
        if !broken(Mistake::KeepMapping) {
            self.unmap(page, pages);
        }
        f()
    }

    /// Ends what [`take`](GuestMemory::take) began, for pages that the hypervisor has let go.
    pub fn put(&self, page: u64, pages: u64) {
        let mut blocks = self.blocks.lock();
        let mut mapped = true;
        let mut unmap = || {
            // What the guest shared may still be mapped.
            if core::mem::take(&mut mapped) {
                self.unmap(page, pages);
            }
        };
        for (number, index, here) in parts(page, pages) {
            let Some(place) = blocks.get_mut(number as usize) else { return };
            if place.as_deref_mut().is_some_and(|block| block.put(index, here, &mut unmap)) {
                *place = None;
            }
        }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        let mut blocks = self.blocks.lock();
        for block in blocks.iter_mut().filter_map(|place| place.as_deref_mut()) {
            if !broken(Mistake::KeepFrames) {
                block.free_unused();
            }
            task::cond_resched();
        }
    }
}
