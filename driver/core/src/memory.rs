// SPDX-License-Identifier: GPL-2.0-only
//! A VM's memory: slots, demand paging, pages given back.
//!
//! All calls that give or take pages run under the VM's memory mutex, which also guards the mailbox. Pages come from the
//! creator's address space, which is the caller's ([`Vm`](crate::vm::Vm) sees to that).
//!
//! Demand paging brings in the whole 2 MiB block around a fault the first time, clipped to the slot; what can't be
//! pinned around the faulting page is left out. Later faults in that block (pages the guest gave back, or left out)
//! bring in one page; but where they follow one another, more and more of those behind ([`Streams`]), as a guest
//! does that takes back what it gave.
//!
//! Pages of a file of guest memory ([`guest_memory`](crate::guest_memory)) are not pinned. Where they go to a protected VM, every
//! call that may take them from the host is made by [`Target::give`].
//!
//! Pages go by the guest's own wish (relinquish), with their slot (size 0), or by DISCARD: always the hypervisor first,
//! in steps, and the pins after it is done with them.

use gzvm_abi::PAGE_SIZE;
use gzvm_abi::hypercall::{Constituent, Function, REGION_BUFFER_SIZE, RegionHeader, Tuple, host_access};
use gzvm_abi::ioctl::{Discard, UserspaceMemoryRegion};

use crate::broken::{Mistake, broken};
use crate::device::{self, BLOCK_PAGES};
use crate::hypercall::{self, call, in_steps, retry};
use crate::kernel::page::Pages;
use crate::kernel::print::pr_warn;
use crate::kernel::{KVec, Result, code, mm, task};
use crate::pins::{Pins, Source};
use crate::tables::Tables;

/// Most pages in a slot.
const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;
/// How often a call that finds the hypervisor busy is made.
const BUSY_TRIES: u32 = 10_000;
/// Most pages that a fault brings in of a block of which something is there.
const MOST_AHEAD: u64 = 64;
/// Constituents that fit in the region buffer after the header.
const MAX_CONSTITUENTS: usize = 510;

/// Contents of the region buffer.
#[derive(zerocopy::FromBytes, zerocopy::IntoBytes)]
#[repr(C)]
struct RegionBuffer {
    header: RegionHeader,
    constituents: [Constituent; MAX_CONSTITUENTS],
    unused: u64,
}
const _: () = assert!(size_of::<RegionBuffer>() as u64 == REGION_BUFFER_SIZE);

/// How guest pages come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    /// All of a slot when it is registered.
    Eager,
    /// One page a fault.
    Single,
    /// A block around each fault.
    Block,
}

struct Slot {
    id: u32,
    gfn: u64,
    pages: u64,
    pins: Pins,
}

impl Slot {
    fn end(&self) -> u64 {
        self.gfn.saturating_add(self.pages)
    }

    fn contains(&self, gfn: u64) -> bool {
        (self.gfn..self.end()).contains(&gfn)
    }
}

/// The VM as calls name it.
struct Target {
    id: u16,
    /// What it is given leaves the host.
    protected: bool,
    tables: Tables,
}

impl Target {
    /// Makes a call that gives it pages of the slot; of a block at the most, so that it needs few tables. Where the hypervisor has none
    /// left it is given memory for more, and asked again.
    fn map(&mut self, slot: &Slot, gfn: u64, pages: u64, mut f: impl FnMut() -> Result) -> Result {
        match self.give(slot, gfn, pages, &mut f) {
            Err(code::ENOMEM) if self.tables.grow(self.id).is_ok() => self.give(slot, gfn, pages, f),
            other => other,
        }
    }

    /// Makes a call that gives it pages of the slot, or takes them from the host's sight.
    fn give(&self, slot: &Slot, gfn: u64, pages: u64, f: impl FnOnce() -> Result) -> Result {
        match slot.pins.file(gfn) {
            Some((file, page)) if self.protected => file.give(page, pages, f),
            _ => f(),
        }
    }
}

/// Where faults follow one another: the page behind what the last one brought in, and how many pages that were.
#[derive(Default)]
struct Streams {
    /// One for each of a few vCPUs at work; which is the oldest.
    ends: [(u64, u64); 4],
    oldest: usize,
}

impl Streams {
    /// How many pages a fault on `gfn` should bring in; the caller tells what came of it.
    fn wanted(&mut self, gfn: u64) -> u64 {
        let followed = self.ends.iter_mut().find(|(end, pages)| *end == gfn && *pages != 0);
        followed.map_or(1, |stream| core::mem::take(stream).1.saturating_mul(2).min(MOST_AHEAD))
    }

    /// A fault on `gfn` brought in so many pages.
    fn came(&mut self, gfn: u64, pages: u64) {
        let free = self.ends.iter().position(|(_, pages)| *pages == 0);
        let place = free.unwrap_or_else(|| {
            self.oldest = self.oldest.wrapping_add(1) % self.ends.len();
            self.oldest
        });
        if let Some(end) = self.ends.get_mut(place) {
            *end = (gfn.saturating_add(pages), pages);
        }
    }
}

/// The slots of a VM and what is needed to fill them.
pub struct Memory {
    vm: Target,
    paging: Paging,
    /// In ascending order of their addresses.
    slots: KVec<Slot>,
    streams: Streams,
    /// A slot was removed before: a vCPU may still come with a fault in it.
    removed: bool,
    mailbox: Pages<0>,
}

impl Memory {
    /// No slots. Allocates the mailbox.
    pub fn new() -> Result<Self> {
        Ok(Self {
            vm: Target { id: 0, protected: false, tables: Tables::new() },
            paging: Paging::Eager,
            slots: KVec::new(),
            streams: Streams::default(),
            removed: false,
            mailbox: Pages::new()?,
        })
    }

    /// Physical address of the page through which PFNs are passed.
    pub fn mailbox_pa(&self) -> u64 {
        self.mailbox.pa()
    }

    /// Tells which VM this is of, and how its pages come in.
    pub fn start(&mut self, vm_id: u16, paging: Paging) {
        self.vm.id = vm_id;
        self.paging = paging;
    }

    /// The VM is protected from now on.
    pub fn protect(&mut self) {
        self.vm.protected = true;
    }

    /// SET_USER_MEMORY_REGION.
    ///
    /// EINVAL: slot number, alignment, size, wrap, or a hole in the caller's mapping. EFAULT: nothing mapped at the address, or the
    /// hypervisor refuses the purpose. EEXIST: the slot is in use or overlaps another.
    ///
    /// Size 0 removes the slot, if the hypervisor can. EINVAL: there is none.
    pub fn set_region(&mut self, region: &UserspaceMemoryRegion) -> Result {
        let number = usize::try_from(region.slot).map_err(|_| code::EINVAL)?;
        let aligned =
            (region.guest_phys_addr | region.memory_size | region.userspace_addr).is_multiple_of(PAGE_SIZE);
        let (gfn, pages) = (region.guest_phys_addr / PAGE_SIZE, region.memory_size / PAGE_SIZE);
        let end = region.guest_phys_addr.checked_add(region.memory_size).ok_or(code::EINVAL)? / PAGE_SIZE;
        if number >= device::max_slots() || !aligned || pages > MAX_SLOT_PAGES {
            return Err(code::EINVAL);
        }
        if pages == 0 && device::has_function(Function::RemoveMemregion) {
            return self.remove(region.slot);
        }
        let file = mm::check_user_range(region.userspace_addr, region.memory_size.max(1))?;
        if pages == 0 {
            return Err(code::EINVAL);
        }
        let taken = |s: &Slot| s.id == region.slot || (gfn < s.end() && s.gfn < end);
        if self.slots.iter().any(taken) {
            return Err(code::EEXIST);
        }
        self.slots.reserve_one()?;

        let vm = u64::from(self.vm.id);
        let source = match file {
            Some((file, page)) => {
                file.check_map(page, pages)?;
                call(Function::HostAccess, [host_access::ANNOUNCE, vm])?;
                Source::File(file, page)
            }
            None => Source::User(region.userspace_addr),
        };
        let slot = Slot { id: region.slot, gfn, pages, pins: Pins::new(gfn, pages, source)? };
        let mut buffer = Pages::<1>::new()?;
        call(
            Function::MemregionPurpose,
            [vm, region.guest_phys_addr, region.memory_size, region.flags.into()],
        )
        .map_err(|_| code::EFAULT)?;
        let header = RegionHeader {
            slot: slot.id,
            constituent_cnt: 0,
            total_pages: pages,
            gpa: region.guest_phys_addr,
        };
        buffer.store::<_, 0>(header);
        call(Function::SetMemregion, [vm, REGION_BUFFER_SIZE, buffer.pa()])?;

        let place = self.slots.partition_point(|s| s.gfn < gfn);
        self.slots.insert_within_capacity(place, slot).map_err(|_| code::ENOMEM)?;
        // From here on the slot stays whatever happens: the hypervisor may hold pages of it.
        let slot = self.slots.get_mut(place).ok_or(code::EINVAL)?;
        if self.paging == Paging::Eager {
            populate(&mut self.vm, slot, &mut buffer, &mut self.mailbox)
        } else {
            Ok(())
        }
    }

    /// Brings all pages of all slots in, for a VM that must not fault.
    pub fn populate_all(&mut self) -> Result {
        let mut buffer = Pages::new()?;
        for slot in self.slots.iter_mut() {
            populate(&mut self.vm, slot, &mut buffer, &mut self.mailbox)?;
        }
        self.paging = Paging::Eager;
        Ok(())
    }

    /// How pages come in.
    pub fn paging(&self) -> Paging {
        self.paging
    }

    /// A guest touched `gpa`, which is not mapped. ERESTARTSYS: a signal came first, let the guest try again.
    pub fn fault(&mut self, gpa: u64) -> Result {
        let gfn = gpa / PAGE_SIZE;
        let (paging, vm) = (self.paging, &mut self.vm);
        let removed = self.removed;
        let Some(slot) = slot_of(&mut self.slots, gfn) else {
            // What was a slot when the guest touched it is device space now: let it see that.
            return if removed { Ok(()) } else { Err(code::EFAULT) };
        };
        match paging {
            Paging::Eager => Err(code::EFAULT),
            Paging::Single => {
                let pfn = one_page(slot, gfn)?;
                map_contiguous(vm, slot, pfn, gfn, 1)
            }
            Paging::Block => {
                if slot.pins.block_is_empty(gfn) && map_window(vm, slot, gfn, self.mailbox.as_mut_array())? {
                    return Ok(());
                }
                let wanted = self.streams.wanted(gfn);
                let pages = map_run(vm, slot, gfn, wanted, self.mailbox.as_mut_array())?;
                self.streams.came(gfn, pages);
                Ok(())
            }
        }
    }

    /// The guest gave the page at `gpa` back, and the hypervisor has unmapped it.
    pub fn relinquish(&mut self, gpa: u64) {
        let gfn = gpa / PAGE_SIZE;
        let Some(slot) = slot_of(&mut self.slots, gfn) else { return };
        let Some(pfn) = slot.pins.get(gfn) else { return };
        // Another vCPU may have touched it again before we came here: then it is the guest's, and stays.
        if !device::has_function(Function::HostAccess) || hypercall::host_access(pfn).1 {
            // If that can't be noted the page stays, for the guest to have it again.
            let _ = slot.pins.release(gfn, 1);
        }
    }

    /// A vCPU of a protected VM stops sharing the page at `gpa` with the host: no user space may have it when it goes.
    pub fn unshare(&mut self, vcpu: Tuple, gpa: u64) {
        if broken(Mistake::NoAnnounce) {
            return;
        }
        let gfn = gpa / PAGE_SIZE;
        let vm = &self.vm;
        let Some(slot) = slot_of(&mut self.slots, gfn).filter(|s| s.pins.get(gfn).is_some()) else { return };
        let gone = vm.give(slot, gfn, 1, || {
            let take = || call(Function::HostAccess, [host_access::UNSHARE, vcpu.to_reg()]).map(drop);
            // No signal keeps the page in a mapping: the next RUN takes it from the host in any case.
            retry(BUSY_TRIES, take, || {
                task::cond_resched();
                Ok(())
            })
        });
        if let Err(e) = gone {
            pr_warn!("VM {}: page {gfn:#x} is not taken from the host (error {})", vm.id, -e.to_errno());
        }
    }

    /// DISCARD: the host gets the pages back; where the guest touches them again it gets what user space has there by
    /// then. EINVAL: no whole pages of one slot. EOPNOTSUPP: the hypervisor can't, or the VM must not fault. ENOMEM: the guest finds
    /// its old pages, those from here on.
    pub fn discard(&mut self, range: &Discard) -> Result {
        if !device::has_function(Function::UnmapGuest) || self.paging == Paging::Eager {
            return Err(code::EOPNOTSUPP);
        }
        if range.size == 0 || !(range.guest_phys_addr | range.size).is_multiple_of(PAGE_SIZE) {
            return Err(code::EINVAL);
        }
        let end = range.guest_phys_addr.checked_add(range.size).ok_or(code::EINVAL)? / PAGE_SIZE;
        let vm = u64::from(self.vm.id);
        let mut gfn = range.guest_phys_addr / PAGE_SIZE;
        let slot = slot_of(&mut self.slots, gfn).filter(|s| end <= s.end()).ok_or(code::EINVAL)?;
        while gfn < end {
            let block_end = (gfn / BLOCK_PAGES).saturating_add(1).saturating_mul(BLOCK_PAGES).min(end);
            if !slot.pins.block_is_empty(gfn) {
                let pages = block_end.saturating_sub(gfn);
                if !broken(Mistake::DiscardTooEarly) {
                    in_steps(|| call(Function::UnmapGuest, [vm, gfn, pages]))?;
                }
                slot.pins.release(gfn, pages)?;
            }
            gfn = block_end;
            task::cond_resched();
        }
        Ok(())
    }

    /// Removes a slot and unpins its pages. If a signal interrupts it, the slot is whole: pages come back on demand.
    fn remove(&mut self, id: u32) -> Result {
        let place = self.slots.iter().position(|s| s.id == id).ok_or(code::EINVAL)?;
        in_steps(|| call(Function::RemoveMemregion, [self.vm.id.into(), id.into()]))?;
        self.removed = true;
        self.slots.remove(place).map(drop).ok_or(code::EINVAL)
    }
}

/// The slot that holds a page, of slots in order.
fn slot_of(slots: &mut [Slot], gfn: u64) -> Option<&mut Slot> {
    let behind = slots.partition_point(|s| s.gfn <= gfn);
    slots.get_mut(behind.checked_sub(1)?).filter(|s| s.contains(gfn))
}

/// Makes a call of the hypervisor again while it is busy.
fn patiently(f: impl FnMut() -> Result) -> Result {
    retry(BUSY_TRIES, f, || {
        task::cond_resched();
        if task::signal_pending() { Err(code::ERESTARTSYS) } else { Ok(()) }
    })
}

/// Maps pages that follow one another in the machine too, from `pfn` on.
fn map_contiguous(vm: &mut Target, slot: &Slot, pfn: u64, gfn: u64, pages: u64) -> Result {
    let args = [vm.id.into(), slot.id.into(), pfn, gfn, pages];
    vm.map(slot, gfn, pages, || patiently(|| call(Function::MapGuest, args).map(drop)))
}

fn map_block(vm: &mut Target, slot: &Slot, gfn: u64, pages: u64) -> Result {
    let args = [vm.id.into(), slot.id.into(), gfn, pages];
    vm.map(slot, gfn, pages, || patiently(|| call(Function::MapGuestBlock, args).map(drop)))
}

/// The PFN under `gfn`, taken now if it was not.
fn one_page(slot: &mut Slot, gfn: u64) -> Result<u64> {
    if let Some(pfn) = slot.pins.get(gfn) {
        return Ok(pfn);
    }
    let mut pfn = [0];
    slot.pins.take(gfn, &mut pfn)?;
    let [pfn] = pfn;
    Ok(pfn)
}

/// Maps the block around `fault`, of which no page is pinned. Did that include `fault`?
fn map_window(
    vm: &mut Target,
    slot: &mut Slot,
    fault: u64,
    mailbox: &mut [u64; BLOCK_PAGES as usize],
) -> Result<bool> {
    let block = fault - fault % BLOCK_PAGES;
    let end = block.saturating_add(BLOCK_PAGES).min(slot.end());
    let mut at = block.max(slot.gfn);
    let mut served = false;
    if device::maps_runs()
        && end - at == BLOCK_PAGES
        && let Some(pfn) = slot.pins.take_block(at)
    {
        return map_contiguous(vm, slot, pfn, at, BLOCK_PAGES).map(|()| true);
    }
    while at < end {
        let want = device::map_batch().min(end - at);
        let pfns = mailbox.get_mut(..want as usize).ok_or(code::EINVAL)?;
        // A neighbour that can't be had is no reason to fail; the faulting page itself is tried again alone.
        let Ok(got) = slot.pins.take(at, pfns) else { break };
        let got = got as u64;
        let mapped = map_block(vm, slot, at, got);
        if (at..at.saturating_add(got)).contains(&fault) {
            mapped?;
            served = true;
        } else if mapped.is_err() {
            break;
        }
        if got < want {
            break;
        }
        at = at.saturating_add(got);
    }
    Ok(served)
}

/// Maps `gfn`, and up to `wanted` pages from there on as far as none is pinned and they lie in the same block. How many.
fn map_run(
    vm: &mut Target,
    slot: &mut Slot,
    gfn: u64,
    wanted: u64,
    mailbox: &mut [u64; BLOCK_PAGES as usize],
) -> Result<u64> {
    let end = (gfn / BLOCK_PAGES).saturating_add(1).saturating_mul(BLOCK_PAGES).min(slot.end());
    let end = gfn.saturating_add(wanted.min(device::map_batch())).min(end);
    let free = (gfn..end).take_while(|&g| slot.pins.get(g).is_none()).count();
    let [first, ..] = mailbox;
    if free <= 1 {
        *first = one_page(slot, gfn)?;
        return map_block(vm, slot, gfn, 1).map(|()| 1);
    }
    let got = slot.pins.take(gfn, mailbox.get_mut(..free).ok_or(code::EINVAL)?)? as u64;
    match map_block(vm, slot, gfn, got) {
        Ok(()) => Ok(got),
        // What is wrong with a neighbour is found out when it is touched.
        Err(e) if got == 1 || e == code::ERESTARTSYS => Err(e),
        Err(_) => map_block(vm, slot, gfn, 1).map(|()| 1),
    }
}

/// Brings in all pages of a slot that are not there, through the region buffer.
fn populate(vm: &mut Target, slot: &mut Slot, buffer: &mut Pages<1>, scratch: &mut Pages<0>) -> Result {
    let mut gfn = slot.gfn;
    while gfn < slot.end() {
        if task::signal_pending() {
            return Err(code::EINTR);
        }
        // One chunk at most per block, so that runs of pages fit the buffer even if none are contiguous.
        let chunk_end = (gfn.saturating_add(MAX_CONSTITUENTS as u64))
            .min(slot.end())
            .min((gfn / BLOCK_PAGES).saturating_add(1).saturating_mul(BLOCK_PAGES));
        let [region] = buffer.as_mut_array::<RegionBuffer, 1>();
        let mut runs = 0;
        let mut at = gfn;
        while at < chunk_end {
            let pfns = scratch.as_mut_array::<u64, { BLOCK_PAGES as usize }>();
            let got = match slot.pins.get(at) {
                Some(pfn) => {
                    let [first, ..] = pfns;
                    *first = pfn;
                    1
                }
                None => {
                    let free = (at..chunk_end).take_while(|&g| slot.pins.get(g).is_none()).count();
                    slot.pins.take(at, pfns.get_mut(..free).ok_or(code::EINVAL)?)?
                }
            };
            for &pfn in pfns.iter().take(got) {
                add_page(&mut region.constituents, &mut runs, pfn)?;
            }
            at = at.saturating_add(got as u64);
        }
        region.header = RegionHeader {
            slot: slot.id,
            constituent_cnt: runs as u32,
            total_pages: at - gfn,
            gpa: gfn.saturating_mul(PAGE_SIZE),
        };
        let args = [vm.id.into(), REGION_BUFFER_SIZE, buffer.pa()];
        vm.map(slot, gfn, at - gfn, || patiently(|| call(Function::SetMemregion, args).map(drop)))?;
        task::cond_resched();
        gfn = at;
    }
    Ok(())
}

/// Appends a page to runs of contiguous ones.
fn add_page(runs: &mut [Constituent], used: &mut usize, pfn: u64) -> Result {
    let address = pfn.checked_mul(PAGE_SIZE).ok_or(code::EINVAL)?;
    if let Some(last) = used.checked_sub(1).and_then(|i| runs.get_mut(i))
        && last.address.saturating_add(u64::from(last.pg_cnt).saturating_mul(PAGE_SIZE)) == address
    {
        last.pg_cnt = last.pg_cnt.saturating_add(1);
        return Ok(());
    }
    let run = runs.get_mut(*used).ok_or(code::EINVAL)?;
    *run = Constituent { address, pg_cnt: 1, ..Constituent::default() };
    *used = used.saturating_add(1);
    Ok(())
}
