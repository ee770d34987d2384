// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM's memory: slots, stage 2, and what the host gave. Plain VMs share the host's pages; protected ones own theirs, see
//! [`private`].

use arrayvec::ArrayVec;
use gzvm_core::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE, Pa, VmId};
use gzvm_core::memory::loans::Pages;
use gzvm_core::memory::ownership::{Dirty, Ownership, OwnershipError, Transition};
use gzvm_core::memory::slots::Slots;
use gzvm_core::memory::stage2::{Annotation, Attrs, MapError, MemoryType, Progress, Stage2, Vacancy, Walk};
use gzvm_core::memory::{IpaRange, PaRange};

use super::firmware::Window;
use super::private;
use crate::arch::barrier;
use crate::mem::guest::GuestBytes;
use crate::mem::host::SharedPages;
use crate::mem::pool::{self, Account, Exhausted};
use crate::mem::tables::{Tables, VmTlb};
use crate::platform;
use gzvm_core::broken::{Mistake, broken};

/// Pages that a VM's tables may take: enough to map 16 GiB by single pages, and its device holes; but
/// no more than half of the pool.
const TABLE_LIMIT: u64 = 8192 + 256;
/// Pages in a block of 2 MiB.
const BLOCK_PAGES: u64 = 512;
/// Runs of pages that one step of taking a protected VM apart leaves to be scrubbed.
const MOST_DIRTY: usize = 8;
/// What such a step does at most, in pages scrubbed.
const SCRUB_PAGES: u64 = 64;
/// To give a run back costs as much as to scrub so many pages.
const GIVE_BACK_COST: u64 = 5;
/// The note in stage 2 at an MMIO page that the guest has named.
const NAMED: Annotation = Annotation(1);
/// The note in stage 2 where a page of another VM was, which went: no store of the guest's that still goes there is for the VMM.
const WITHDRAWN: Annotation = Annotation(2);

/// A VM's memory.
pub struct VmMemory {
    /// What the guest sees.
    pub stage2: Stage2,
    /// What its tables cost.
    pub account: Account,
    /// Memory slots.
    pub slots: Slots,
    /// Page of MAP_GUEST_BLOCK's page frame numbers, shared by the host.
    pub mailbox: Option<SharedPages>,
    root_pages: usize,
    /// The VM if it is protected: pages are donated to it, not shared with it.
    owner: Option<VmId>,
    /// Taken from the VM, to be scrubbed.
    dirty: ArrayVec<Dirty, MOST_DIRTY>,
    /// Where the firmware is that a protected VM starts with.
    firmware: Option<Window>,
    /// MMIO goes to the VMM only where the guest has named the page.
    guarded: bool,
    /// The driver wants to know of a page that the guest stops sharing before the host loses it.
    announces: bool,
    /// What its RAM is in its tables.
    ram: MemoryType,
}

/// Marks pages of the host as shared with a VM.
pub fn share(range: PaRange) -> Result<(), OwnershipError> {
    if broken(Mistake::MapAnything) {
        return Ok(());
    }
    platform::ownership().lock().apply(range, Transition::ShareWithVm)
}

/// Takes such a mark back.
pub fn unshare(range: PaRange) {
    unshare_in(&mut platform::ownership().lock(), range);
}

/// The VM does not reach this memory any more, or never did: it is the host's alone.
fn release(owner: Option<VmId>, range: PaRange, account: &mut Account) {
    match owner {
        Some(vm) => {
            if let Some(dirty) = private::take(vm, range) {
                let _nothing = private::give_back(dirty, u64::MAX, account);
            }
        }
        None => unshare(range),
    }
}

fn unshare_in(ownership: &mut Ownership<'_>, range: PaRange) {
    if let Err(e) = ownership.apply(range, Transition::UnshareWithVm) {
        log::error!("unshare {range:?}: {e} (hypervisor bug)");
    }
}

impl VmMemory {
    /// What `ipa` translates to.
    pub fn walk(&self, ipa: Ipa) -> Walk {
        // A look takes no pages.
        let mut nobody = Account::new(0);
        self.stage2.walk(&Tables { account: &mut nobody }, ipa)
    }

    /// No memory, and no slots: for the VM `id`, with so many bits of addresses. With `forced`, the CPU makes its accesses to RAM
    /// cacheable (HCR_EL2.FWB).
    pub fn new(id: VmId, bits: u8, pa_bits: u8, forced: bool) -> Result<Self, Exhausted> {
        let root_pages = Stage2::root_pages(bits);
        let root = pool::alloc(root_pages, root_pages)?;
        let Ok(stage2) = Stage2::new(root, bits, pa_bits, id.0) else {
            pool::free(root, root_pages);
            return Err(Exhausted);
        };
        let limit = if broken(Mistake::NoTables) { 0 } else { TABLE_LIMIT.min(pool::usage().1 / 2) };
        Ok(Self {
            stage2,
            account: Account::new(limit),
            slots: Slots::new(bits),
            mailbox: None,
            root_pages,
            owner: None,
            dirty: ArrayVec::new(),
            firmware: None,
            guarded: false,
            announces: false,
            ram: if forced { MemoryType::Forced } else { MemoryType::Normal },
        })
    }

    /// The root of a memory that never held anything.
    pub fn free_root(root: Pa, bits: u8) {
        pool::free(root, Stage2::root_pages(bits));
    }

    /// From now on pages are the VM's own. Only with nothing mapped, and once. In the window they hold the firmware.
    pub fn protect(&mut self, firmware: Option<Window>) -> Result<(), MapFailure> {
        let all = 1u64.wrapping_shl(self.stage2.ipa_bits().into());
        let all = IpaRange::new(Ipa(0), all).map_err(|_| MapFailure::Invalid)?;
        if self.owner.is_some() || self.first_mapped(all).is_some() {
            return Err(MapFailure::Invalid);
        }
        self.owner = Some(VmId(self.stage2.vmid()));
        self.firmware = firmware;
        Ok(())
    }

    /// Pages that the hypervisor spends on it.
    pub fn table_pages(&mut self) -> u64 {
        let given = self.account.given().blocks().wrapping_mul(BLOCK_PAGES);
        self.account.used().saturating_add(self.root_pages as u64).saturating_add(given)
    }

    /// One step of taking it apart, with nobody inside the VM.
    pub fn destroy_step(&mut self, budget: u64) -> Progress {
        if let Some(page) = self.mailbox.take() {
            unshare(page.range());
        }
        let root = self.stage2.root();
        let mut tlb = VmTlb { root };
        let progress = match self.owner {
            Some(vm) => self.dismantle(vm, &mut tlb, budget.min(SCRUB_PAGES)),
            None => {
                let mut tables = Tables { account: &mut self.account };
                // Locked once for the step, not once a page: other CPUs may be taking VMs apart as well.
                let mut ownership = platform::ownership().lock();
                self.stage2.teardown_step(&mut tables, &mut tlb, budget, |_, mapped| {
                    unshare_in(&mut ownership, mapped.pa);
                })
            }
        };
        if progress == Progress::More || self.return_given(budget.min(SCRUB_PAGES)) == Progress::More {
            return Progress::More;
        }
        pool::free(root, self.root_pages);
        Progress::Done
    }

    /// One step of giving back what the host gave for tables, all of which are gone.
    fn return_given(&mut self, budget: u64) -> Progress {
        let _ = self.scrub_step(budget);
        if self.dirty.is_empty() {
            if broken(Mistake::KeepGiven) {
                return Progress::Done;
            }
            let Some(block) = private::spare_block(&mut self.account) else { return Progress::Done };
            self.keep_dirty(Some(block));
        }
        Progress::More
    }

    /// Memory of the host's for the tables of this VM, a block of 2 MiB; how many such it has then.
    pub fn take_for_tables(&mut self, block: PaRange) -> Result<u64, MapFailure> {
        if self.stage2.is_dying() {
            return Err(MapFailure::Invalid);
        }
        private::take_for_tables(block, &mut self.account)?;
        Ok(self.account.given().blocks())
    }

    /// Maps host memory at `ipa`, which lies in a slot. Mapping the same again is fine.
    pub fn map(&mut self, ipa: IpaRange, pa: Pa) -> Result<(), MapFailure> {
        let target = PaRange::new(pa, ipa.size()).map_err(|_| MapFailure::Invalid)?;
        let tables = Tables { account: &mut self.account };
        let vacancy = self.stage2.vacancy(&tables, ipa);
        if vacancy.is_some() || self.first_mapped(ipa).is_none() {
            return self.map_fresh(ipa, target, vacancy);
        }
        // Another vCPU was here first, at least for a part.
        for page in 0..ipa.pages() {
            let offset = page.wrapping_mul(PAGE_SIZE);
            let (ipa, pa) = (Ipa(ipa.start().0.wrapping_add(offset)), Pa(pa.0.wrapping_add(offset)));
            let walk = self.walk(ipa);
            match walk {
                Walk::Mapped { pa: have, .. } if have == pa => {}
                Walk::Mapped { .. } | Walk::OutOfRange => return Err(MapFailure::Invalid),
                Walk::Unmapped { .. } => {
                    let one = IpaRange::new(ipa, PAGE_SIZE).map_err(|_| MapFailure::Invalid)?;
                    let target = PaRange::new(pa, PAGE_SIZE).map_err(|_| MapFailure::Invalid)?;
                    self.map_fresh(one, target, None)?;
                }
            }
        }
        Ok(())
    }

    /// Maps where nothing is mapped; `vacancy` is that of `ipa`, if it has one.
    fn map_fresh(&mut self, ipa: IpaRange, pa: PaRange, vacancy: Option<Vacancy>) -> Result<(), MapFailure> {
        let owner = self.owner;
        match owner {
            Some(vm) => private::donate(vm, pa, &mut self.account)?,
            None => share(pa).map_err(|_| MapFailure::NotHosts)?,
        }
        if let (Some(vm), Some(window)) = (owner, self.firmware)
            && !window.fill(vm, ipa.start(), pa)
        {
            release(owner, pa, &mut self.account);
            return Err(MapFailure::NotHosts);
        }
        if self.ram != MemoryType::Forced {
            // The guest may look with its caches off at what the VMM wrote with caches on.
            barrier::clean_invalidate(pa.start().0 as usize, pa.size() as usize);
        }
        barrier::ic_ialluis();
        let named = if broken(Mistake::MailboxAgain) { self.named_by_now() } else { None };
        let root = self.stage2.root();
        let mut tables = Tables { account: &mut self.account };
        let target = named.unwrap_or(pa.start());
        let attrs = Attrs { memory: self.ram, ..Attrs::RAM };
        let tlb = &mut VmTlb { root };
        let mapped = match vacancy {
            Some(vacancy) => self.stage2.fill(&mut tables, tlb, vacancy, target, attrs),
            None => self.stage2.map(&mut tables, tlb, ipa, target, attrs),
        };
        mapped.map_err(|e| {
            release(owner, pa, &mut self.account);
            match e {
                MapError::OutOfTables(_) => MapFailure::NoMemory,
                _ => MapFailure::Invalid,
            }
        })
    }

    /// What the mailbox names first by now: a mistake.
    fn named_by_now(&self) -> Option<Pa> {
        Pa::from_frame(self.mailbox.as_ref()?.load(0))
    }

    /// One step of taking a protected VM's memory apart: what was taken before is scrubbed and returned first, each run of it as one.
    fn dismantle(&mut self, vm: VmId, tlb: &mut VmTlb, budget: u64) -> Progress {
        let mut left = budget;
        loop {
            left = self.scrub_step(left);
            if left == 0 {
                return Progress::More;
            }
            // An entry costs at least one of the budget, so there is room for what comes.
            let entries = left.min(MOST_DIRTY as u64);
            left = left.saturating_sub(entries);
            let mut taken = ArrayVec::<_, MOST_DIRTY>::new();
            let tables = &mut Tables { account: &mut self.account };
            let progress = self.stage2.teardown_step(tables, tlb, entries, |_, mapped| {
                if let Err(e) = taken.try_push(mapped.pa) {
                    log::error!("teardown: {e} (hypervisor bug; the pages are lost)");
                }
            });
            for memory in &taken {
                self.keep_dirty(private::take(vm, *memory));
            }
            if progress == Progress::Done && taken.is_empty() {
                return Progress::Done;
            }
        }
    }

    /// Scrubs and gives back, as far as `left` goes; what is left of that.
    fn scrub_step(&mut self, mut left: u64) -> u64 {
        while left > 0
            && let Some(dirty) = self.dirty.pop()
        {
            let pages = left.min(dirty.left().pages());
            left = left.saturating_sub(pages);
            match private::give_back(dirty, pages, &mut self.account) {
                None => left = left.saturating_sub(GIVE_BACK_COST),
                rest => self.keep_dirty(rest),
            }
        }
        left
    }

    fn keep_dirty(&mut self, dirty: Option<Dirty>) {
        if let Some(Err(e)) = dirty.map(|dirty| self.dirty.try_push(dirty)) {
            log::error!("teardown: {e} (hypervisor bug; the pages are lost)");
        }
    }

    /// The page of a protected VM at `ipa`; none if there is none yet, or no slot.
    fn private_page(&self, ipa: Ipa) -> Result<PaRange, NoPage> {
        let walk = self.walk(ipa);
        match walk {
            Walk::Mapped { pa, .. } if ipa.is_aligned(PAGE_SIZE) => {
                PaRange::page_of(pa).ok_or(NoPage::Nowhere)
            }
            Walk::Unmapped { .. } if ipa.is_aligned(PAGE_SIZE) && self.slots.find(ipa).is_some() => {
                Err(NoPage::Absent)
            }
            _ => Err(NoPage::Nowhere),
        }
    }

    /// The pages of a protected VM at `range`, or the first address that is in the way.
    pub fn private_pages(&self, range: IpaRange) -> Result<Pages, (Ipa, NoPage)> {
        let mut pages = Pages::new();
        for n in 0..range.pages() {
            let ipa = Ipa(range.start().0.wrapping_add(n.wrapping_mul(PAGE_SIZE)));
            let page = self.private_page(ipa).map_err(|why| (ipa, why))?;
            pages.try_push(page.start()).map_err(|_| (ipa, NoPage::Nowhere))?;
        }
        Ok(pages)
    }

    /// Where a message of the guest's is, in one page of its own; for `write`, one that it may write.
    pub fn message_page(&self, ipa: Ipa, write: bool) -> Result<GuestBytes<'_>, NoPage> {
        let walk = self.walk(ipa);
        match walk {
            Walk::Mapped { pa, attrs, .. } if attrs.write || !write => {
                GuestBytes::new(&platform::ownership().lock(), self.owner, pa).map_err(|_| NoPage::Nowhere)
            }
            Walk::Unmapped { .. } if self.slots.find(ipa).is_some() => Err(NoPage::Absent),
            _ => Err(NoPage::Nowhere),
        }
    }

    /// Maps pages of another VM at `at`, where there must be nothing: no slot; no mapping and no MMIO page that the guest has
    /// named, with which stage 2 would conflict. They are no code.
    pub fn borrow(&mut self, at: IpaRange, pages: &Pages, write: bool) -> Result<(), MapFailure> {
        if self.slots.overlap(&at) {
            return Err(MapFailure::Invalid);
        }
        let execute = broken(Mistake::LentToRun);
        let attrs = Attrs { write, execute, memory: self.ram, ..Attrs::RAM };
        let root = self.stage2.root();
        let mut rest = Some(at);
        for (n, pa) in (0u64..).zip(pages) {
            let Some((page, behind)) = rest.map(|r| r.split_first(1)) else { break };
            let mut tables = Tables { account: &mut self.account };
            let done = self.stage2.map_over(&mut tables, &mut VmTlb { root }, page, *pa, attrs, WITHDRAWN);
            if let Err(e) = done {
                // Those before it go again; of the first there are none.
                if let Ok(mapped) = IpaRange::from_pages(at.start(), n) {
                    self.withdraw(mapped)?;
                }
                return Err(match e {
                    MapError::OutOfTables(_) => MapFailure::NoMemory,
                    _ => MapFailure::Invalid,
                });
            }
            rest = behind;
        }
        Ok(())
    }

    /// Takes pages of another VM from the guest, which may run: the TLB is clean afterwards.
    pub fn withdraw(&mut self, at: IpaRange) -> Result<(), MapFailure> {
        let root = self.stage2.root();
        let tables = &mut Tables { account: &mut self.account };
        self.stage2.annotate(tables, &mut VmTlb { root }, at, WITHDRAWN).map_err(|_| MapFailure::Invalid)
    }

    /// A protected guest lets the host see its pages from `ipa` on, or takes that back: of so many those that one block or
    /// page of stage 2 holds; how many these were.
    pub fn expose(&mut self, ipa: Ipa, pages: u64, visible: bool) -> Result<u64, NoPage> {
        let Some(vm) = self.owner else { return Err(NoPage::Nowhere) };
        let run = self.private_run(ipa, pages)?;
        let done = if visible { private::share(vm, run) } else { private::unshare(vm, run) };
        done.map_err(|_| NoPage::Nowhere)?;
        Ok(run.pages())
    }

    fn private_run(&self, ipa: Ipa, pages: u64) -> Result<PaRange, NoPage> {
        let first = self.private_page(ipa)?;
        let Walk::Mapped { level, .. } = self.walk(ipa) else { return Err(NoPage::Nowhere) };
        let size = level.entry_size();
        let behind = size.wrapping_sub(ipa.0 & size.wrapping_sub(1)).wrapping_shr(PAGE_SHIFT);
        // A block of 1 GiB would be too much for one call.
        let pages = pages.min(behind).min(BLOCK_PAGES);
        PaRange::new(first.start(), pages.wrapping_mul(PAGE_SIZE)).map_err(|_| NoPage::Nowhere)
    }

    /// From now on the driver is told before the host loses a page that was shared.
    pub fn announce_unshare(&mut self) {
        self.announces = true;
    }

    /// Is the driver to be told before the guest stops sharing this page?
    pub fn announces_unshare(&self, ipa: Ipa) -> bool {
        match (self.owner, self.private_page(ipa)) {
            (Some(vm), Ok(page)) if self.announces => private::is_shared(vm, page),
            _ => false,
        }
    }

    /// From now on MMIO goes to the VMM only where the guest says so.
    pub fn guard(&mut self) {
        self.guarded = true;
    }

    /// The guest names an MMIO page, or takes that back.
    pub fn name_mmio(&mut self, ipa: Ipa, named: bool) -> Result<(), NoPage> {
        // Where another VM's page is mapped there is no device.
        let mapped = matches!(self.walk(ipa), Walk::Mapped { .. });
        if !ipa.is_aligned(PAGE_SIZE) || self.slots.find(ipa).is_some() || mapped {
            return Err(NoPage::Nowhere);
        }
        let page = IpaRange::new(ipa, PAGE_SIZE).map_err(|_| NoPage::Nowhere)?;
        let note = if named { NAMED } else { Annotation::NONE };
        let root = self.stage2.root();
        let tables = &mut Tables { account: &mut self.account };
        self.stage2.annotate(tables, &mut VmTlb { root }, page, note).map_err(|_| NoPage::Nowhere)
    }

    /// Whether an access to a device at `ipa` is not for the VMM.
    pub fn refuses_mmio(&self, ipa: Ipa) -> bool {
        let walk = self.walk(ipa);
        match walk {
            Walk::Unmapped { note: WITHDRAWN, .. } => true,
            Walk::Unmapped { note: NAMED, .. } => false,
            _ => self.guarded,
        }
    }

    /// Takes a page of the guest's back from it. True if there was one.
    pub fn unmap_page(&mut self, ipa: Ipa) -> bool {
        let walk = self.walk(ipa);
        let Walk::Mapped { pa, .. } = walk else { return false };
        let page = ipa.align_down(PAGE_SIZE);
        let (Ok(range), Ok(target)) =
            (IpaRange::new(page, PAGE_SIZE), PaRange::new(pa.align_down(PAGE_SIZE), PAGE_SIZE))
        else {
            return false;
        };
        // What is lent stays until it is taken back, and what is borrowed is another's.
        if self.owner.is_some_and(|vm| !private::owns(vm, target)) {
            return false;
        }
        let root = self.stage2.root();
        let mut tables = Tables { account: &mut self.account };
        if self.stage2.unmap(&mut tables, &mut VmTlb { root }, range).is_err() {
            return false;
        }
        release(self.owner, target, &mut self.account);
        true
    }

    /// Takes some `budget` pages of `range` back from the guest; pages that are not there cost nothing. Its
    /// vCPUs may run: the TLB is clean before a page counts as the host's alone.
    ///
    /// Restartable by being called again with the same range: emptied tables are gone, so getting past what
    /// was done before takes a look at three tables at the most.
    pub fn unmap_step(&mut self, range: IpaRange, budget: u64) -> Result<Progress, MapFailure> {
        // A protected guest's pages can't be replaced by others behind its back.
        if self.owner.is_some() && !broken(Mistake::UnmapProtected) {
            return Err(MapFailure::Protected);
        }
        let mut left = budget;
        let mut rest = Some(range);
        while let Some(part) = rest {
            let Some(first) = self.first_mapped(part) else { break };
            if left == 0 {
                return Ok(Progress::More);
            }
            // From there to the end of its 2 MiB, if there is budget: one invalidation for all of it.
            let start = first.start().max(part.start());
            let to_block_end = BLOCK_PAGES.wrapping_sub(start.0.wrapping_shr(PAGE_SHIFT) % BLOCK_PAGES);
            let most = if first.pages() < BLOCK_PAGES { left } else { BLOCK_PAGES };
            let behind = part.end().0.wrapping_sub(start.0);
            let behind = IpaRange::new(start, behind).map_err(|_| MapFailure::Invalid)?;
            let (window, after) = behind.split_first(to_block_end.min(most));
            left = left.saturating_sub(self.unmap_window(window)?);
            rest = after;
        }
        Ok(Progress::Done)
    }

    /// The first block or page that overlaps `range`.
    fn first_mapped(&mut self, range: IpaRange) -> Option<IpaRange> {
        let mut first = None;
        self.stage2.for_each(&Tables { account: &mut self.account }, range, |mapped| {
            first = Some(mapped.ipa);
            false
        });
        first
    }

    /// Unmaps `window`, which lies in one block of 2 MiB; how many pages that were.
    fn unmap_window(&mut self, window: IpaRange) -> Result<u64, MapFailure> {
        let mut runs = ArrayVec::<PaRange, { BLOCK_PAGES as usize }>::new();
        self.stage2.for_each(&Tables { account: &mut self.account }, window, |mapped| {
            mapped.within(window).is_none_or(|run| runs.try_push(run).is_ok())
        });
        let root = self.stage2.root();
        let mut tables = Tables { account: &mut self.account };
        self.stage2.unmap(&mut tables, &mut VmTlb { root }, window).map_err(|e| match e {
            MapError::OutOfTables(_) => MapFailure::NoMemory,
            _ => MapFailure::Invalid,
        })?;
        let mut ownership = platform::ownership().lock();
        for run in &runs {
            unshare_in(&mut ownership, *run);
        }
        Ok(runs.iter().fold(0, |pages, run| pages.saturating_add(run.pages())))
    }
}

/// Why memory can't be mapped, or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapFailure {
    /// A range is bad, or something else is mapped there.
    Invalid,
    /// It is not the host's RAM.
    NotHosts,
    /// No page for a table.
    NoMemory,
    /// The host may not do that to a protected VM.
    Protected,
    /// An SMMU did not confirm that the host's devices lost it.
    Dma,
}

/// Why a page of a guest's can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPage {
    /// It is in a slot: the driver has to bring it.
    Absent,
    /// It is nowhere, or the call makes no sense for it.
    Nowhere,
}
