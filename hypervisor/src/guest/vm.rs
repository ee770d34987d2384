// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM and its vCPUs.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::arch::lock::Mutex;
use arrayvec::ArrayVec;
use gzvm_abi::MAX_VCPUS_EXTENDED as MAX_VCPUS;
use gzvm_abi::run::HWSTATE_OFFSET;
use gzvm_core::addr::{Ipa, PAGE_SHIFT, PAGE_SIZE, Pa, VcpuId, VmId};
use gzvm_core::fdt::machine::MAX_CPUS;
use gzvm_core::memory::ownership::{Dirty, Ownership, Transition};
use gzvm_core::memory::slots::Slots;
use gzvm_core::memory::stage2::{Annotation, Attrs, MapError, Progress, Stage2, Walk};
use gzvm_core::memory::{IpaRange, PaRange};
use gzvm_core::platform::psci::PowerStates;
use gzvm_core::vcpu::decode::emulate::Emulation;
use gzvm_core::vcpu::mmio::PendingLoad;
use gzvm_core::vgic::{self, CpuInterface, Kicks, VcpuState};
use gzvm_core::vm::lifecycle::State;
use zerocopy::IntoBytes;

use super::life::Life;
use super::private;
use super::registry;
use super::timer::PhysicalTimer;
use super::watch::{VcpuWatch, VmWatch};
use crate::arch::debug::DebugRegs;
use crate::arch::el1::{El1Regs, SCTLR_EL1_RESET};
use crate::arch::fp::{GuestFp, SveRegs};
use crate::arch::frame::{GuestRegs, PSTATE_EL1H_MASKED};
use crate::arch::percpu::{PerCpu, kick};
use crate::arch::timer::VirtualTimer;
use crate::arch::{barrier, cpu, gic};
use crate::mem::boxed::{PageBox, pages_of};
use crate::mem::host::SharedPages;
use crate::mem::pool::{self, Account};
use crate::mem::tables::{Tables, VmTlb};
use crate::platform;

/// IPA bits of a guest, as crosvm and our VMM assume.
pub const IPA_BITS: u8 = 40;
/// SPIs of a guest.
const NR_SPIS: usize = 256;
/// Pages that a VM's tables may take: enough to map 16 GiB by single pages, and its device holes; but
/// no more than half of the pool.
const TABLE_LIMIT: u64 = 8192 + 256;
/// Pages in a block of 2 MiB.
const BLOCK_PAGES: u64 = 512;
/// No frame given yet.
const NO_FRAME: u64 = u64::MAX;

const _: () = assert!(MAX_VCPUS == vgic::MAX_VCPUS);
/// What a VM with one vCPU costs besides its tables: at most 24 KiB.
const _: () =
    assert!(pages_of::<Vm>() + pages_of::<Vgic>() + pages_of::<Vcpu>() + pages_of::<VcpuState>() <= 6);

/// The virtual GIC's parts live in pages of the pool.
pub struct GicMemory;

impl vgic::Memory for GicMemory {
    type Box<T> = PageBox<T>;
}

/// A VM's virtual GIC.
pub type Vgic = vgic::Vgic<GicMemory>;

/// Why a VM or vCPU can't be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// The pool is used up.
    NoMemory,
    /// No slot is free.
    TooMany,
    /// It exists.
    Exists,
    /// The shared area is not the host's memory.
    BadPages,
}

impl From<pool::Exhausted> for CreateError {
    fn from(_: pool::Exhausted) -> Self {
        Self::NoMemory
    }
}

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
    /// MMIO goes to the VMM only where the guest has named the page.
    guarded: bool,
}

/// Runs of pages that one step of taking a protected VM apart leaves to be scrubbed.
const MOST_DIRTY: usize = 16;
/// Pages that it scrubs: some 64 KiB.
const SCRUB_PAGES: u64 = 64;
/// The note in stage 2 at an MMIO page that the guest has named.
const NAMED: Annotation = Annotation(1);

/// A VM.
pub struct Vm {
    /// VTTBR_EL2, and VTCR_EL2's T0SZ and SL0: fixed for life, so that RUN needs no lock for them.
    pub vttbr: u64,
    /// See [`vttbr`](Self::vttbr).
    pub vtcr_fields: (u8, u8),
    /// Its vCPUs have SVE.
    pub sve: AtomicBool,
    protected: AtomicBool,
    /// Memory.
    pub memory: Mutex<VmMemory>,
    /// Interrupts.
    pub vgic: Mutex<PageBox<Vgic>>,
    /// Power of the vCPUs.
    pub power: Mutex<PowerStates<MAX_VCPUS>>,
    /// vCPUs. Only ever tried: held while the vCPU runs.
    pub vcpus: [Mutex<Option<PageBox<Vcpu>>>; MAX_VCPUS],
    /// The physical CPU that runs each vCPU, plus one.
    pub running: [AtomicU32; MAX_VCPUS],
    /// vCPUs whose last exit was IDLE: they need a wake-up, not a kick.
    pub idle: [AtomicBool; MAX_VCPUS],
    /// Whether it runs, is paused, is over.
    pub life: Life,
    /// Which of its exceptions are watched.
    pub watch: VmWatch,
    /// Its driver has called DESTROY_VM and does not come again: see `registry::work_off`. Set under the slot's lock.
    pub abandoned: AtomicBool,
    /// Guest physical addresses of distributor and first redistributor.
    pub gicd: AtomicU64,
    /// See [`gicd`](Self::gicd).
    pub gicr: AtomicU64,
    /// Per physical CPU: the vCPU that ran there last, plus one.
    pub last_vcpu: [AtomicU8; MAX_CPUS],
    /// Highest vCPU ever created, plus one: so many redistributors there are.
    pub vcpu_count: AtomicU32,
}

impl Vm {
    /// A VM without memory and vCPUs; its id is its VMID too.
    pub fn new(id: VmId) -> Result<PageBox<Self>, CreateError> {
        let pa_bits = PerCpu::this().with(|s| s.features.pa_bits);
        let bits = IPA_BITS.min(pa_bits);
        let root_pages = Stage2::root_pages(bits);
        let vgic = PageBox::new(Vgic::new(NR_SPIS, None))?;
        let root = pool::alloc(root_pages, root_pages)?;
        let Ok(stage2) = Stage2::new(root, bits, pa_bits, id.0) else {
            pool::free(root, root_pages);
            return Err(CreateError::NoMemory);
        };
        let vtcr_fields = stage2.vtcr_fields();
        let memory = VmMemory {
            stage2,
            account: Account::new(TABLE_LIMIT.min(pool::usage().1 / 2)),
            slots: Slots::new(bits),
            mailbox: None,
            root_pages,
            owner: None,
            dirty: ArrayVec::new(),
            guarded: false,
        };
        PageBox::new(Self {
            vttbr: cpu::vttbr(root.0, id.0),
            vtcr_fields,
            sve: AtomicBool::new(false),
            protected: AtomicBool::new(false),
            memory: Mutex::new(memory),
            vgic: Mutex::new(vgic),
            power: Mutex::new(PowerStates::default()),
            vcpus: [const { Mutex::new(None) }; MAX_VCPUS],
            running: [const { AtomicU32::new(0) }; MAX_VCPUS],
            idle: [const { AtomicBool::new(false) }; MAX_VCPUS],
            life: Life::new(),
            watch: VmWatch::new(),
            abandoned: AtomicBool::new(false),
            gicd: AtomicU64::new(NO_FRAME),
            gicr: AtomicU64::new(NO_FRAME),
            last_vcpu: [const { AtomicU8::new(0) }; MAX_CPUS],
            vcpu_count: AtomicU32::new(0),
        })
        .map_err(|e| {
            pool::free(root, root_pages);
            e.into()
        })
    }

    /// Protected: the host may know nothing of it.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.protected.load(Ordering::Relaxed)
    }

    /// Makes it protected for life: a VM that has not run, with nothing in it yet.
    pub fn protect(&self, id: VmId) -> Result<(), MapFailure> {
        let mut memory = self.memory.lock();
        let fresh = self.life.state() == State::Created && self.vcpu_count.load(Ordering::SeqCst) == 0;
        if !fresh || memory.owner.is_some() || !memory.is_empty() {
            return Err(MapFailure::Invalid);
        }
        memory.owner = Some(id);
        self.protected.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Adds a vCPU with its shared area.
    pub fn add_vcpu(&self, id: VcpuId, area: PaRange) -> Result<(), CreateError> {
        let slot = self.vcpus.get(usize::from(id.0)).ok_or(CreateError::TooMany)?;
        let mut slot = slot.try_lock().ok_or(CreateError::Exists)?;
        if slot.is_some() {
            return Err(CreateError::Exists);
        }
        let nr_lrs = platform::fewest_lrs();
        let gic_state = PageBox::new(VcpuState::default())?;
        let fp = GuestFp::new(self.sve.load(Ordering::SeqCst))?;
        share(area).map_err(|_| CreateError::BadPages)?;
        let vcpu = match PageBox::new(Vcpu::new(id, SharedPages::new(area), fp)) {
            Ok(vcpu) => vcpu,
            Err(e) => {
                unshare(area);
                return Err(e.into());
            }
        };
        vcpu.publish_offset(self.cntvoff());
        *slot = Some(vcpu);
        self.vcpu_count.fetch_max(u32::from(id.0) + 1, Ordering::SeqCst);
        // A former vCPU of this number may have left TLB entries.
        self.last_vcpu.iter().for_each(|last| last.store(0, Ordering::Relaxed));
        self.power.lock().add(id);
        let mut vgic = self.vgic.lock();
        let unused = vgic.add_vcpu(id, nr_lrs, gic_state);
        if id.0 != 0 {
            let _ = vgic.set_power(id, false);
        }
        drop(vgic);
        // Outside the lock: the pool has its own.
        drop(unused);
        registry::VCPUS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a vCPU away; false while it runs. Taking away what is not there is fine.
    pub fn remove_vcpu(&self, id: VcpuId) -> bool {
        let Some(slot) = self.vcpus.get(usize::from(id.0)) else { return true };
        let Some(mut slot) = slot.try_lock() else { return false };
        if let Some(vcpu) = slot.take() {
            unshare(vcpu.shared.range());
            self.power.lock().remove(id);
            let (kicks, gic_state) = self.vgic.lock().remove_vcpu(id);
            drop(gic_state);
            let _ = self.kick(kicks);
            registry::VCPUS.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }

    /// One step of taking the VM apart. Nobody else is inside (`&mut`).
    pub fn destroy_step(&mut self, budget: u64) -> Progress {
        self.condemn();
        for n in 0..MAX_VCPUS {
            let _ = self.remove_vcpu(VcpuId(n as u16));
        }
        let memory = self.memory.get_mut();
        if let Some(page) = memory.mailbox.take() {
            unshare(page.range());
        }
        let root = memory.stage2.root();
        let mut tlb = VmTlb { root };
        if let Some(vm) = memory.owner {
            let progress = memory.dismantle(vm, &mut tlb, budget.min(SCRUB_PAGES));
            if progress == Progress::Done {
                pool::free(root, memory.root_pages);
            }
            return progress;
        }
        let mut tables = Tables { account: &mut memory.account };
        // Locked once for the step, not once a page: other CPUs may be taking VMs apart as well.
        let mut ownership = platform::ownership().lock();
        let progress = memory.stage2.teardown_step(&mut tables, &mut tlb, budget, |_, mapped| {
            unshare_in(&mut ownership, mapped.pa);
        });
        drop(ownership);
        if progress == Progress::Done {
            pool::free(root, memory.root_pages);
        }
        progress
    }

    /// Bytes that the hypervisor spends on the VM.
    pub fn metadata_bytes(&self) -> u64 {
        let tables = {
            let memory = self.memory.lock();
            memory.account.used().saturating_add(memory.root_pages as u64)
        };
        let vcpus = self.vcpus.iter().filter(|v| v.try_lock().is_none_or(|v| v.is_some())).count() as u64;
        let sve = if self.sve.load(Ordering::SeqCst) { pages_of::<SveRegs>() } else { 0 };
        let fixed = (pages_of::<Self>() + pages_of::<Vgic>()) as u64;
        tables
            .saturating_add(fixed)
            .saturating_add(vcpus.saturating_mul((pages_of::<Vcpu>() + pages_of::<VcpuState>() + sve) as u64))
            .saturating_mul(PAGE_SIZE)
    }

    /// Makes running vCPUs exit; those of them that sleep (bit n: vCPU n) are the driver's to wake.
    ///
    /// Nobody is missed: a vCPU sets its `idle` under the lock under which the change was made, after a
    /// look for something to do (`Running::wait_for_interrupt` and the vGIC, `enter` and the power
    /// states). So either it saw the change and does not sleep, or its flag is seen here.
    pub fn kick(&self, kicks: Kicks) -> u64 {
        let mut sleeping = 0;
        for v in kicks.iter() {
            let n = usize::from(v.0);
            if let Some(cpu) = self.running.get(n).and_then(|r| r.load(Ordering::SeqCst).checked_sub(1)) {
                kick_cpu(cpu as usize);
            }
            if self.idle.get(n).is_some_and(|i| i.load(Ordering::SeqCst)) {
                sleeping |= Kicks::of(v).0;
            }
        }
        sleeping
    }
}

/// Takes a physical CPU out of its guest, if it is in one.
fn kick_cpu(index: usize) {
    let Some(target) = platform::get().cpus.get(index) else { return };
    let this = PerCpu::this();
    if core::ptr::eq(*target, this) {
        return;
    }
    let kicked =
        target.guest_state.compare_exchange(kick::GUEST, kick::KICKED, Ordering::SeqCst, Ordering::SeqCst);
    if kicked.is_ok() {
        this.with(|s| {
            if let Some(gic) = &s.gic {
                gic.send_kick(target.mpidr);
            }
        });
    }
}

/// Marks pages of the host as shared with a VM.
pub fn share(range: PaRange) -> Result<(), gzvm_core::memory::ownership::OwnershipError> {
    platform::ownership().lock().apply(range, Transition::ShareWithVm)
}

/// Takes such a mark back.
pub fn unshare(range: PaRange) {
    unshare_in(&mut platform::ownership().lock(), range);
}

/// The VM does not reach this memory any more, or never did: it is the host's alone.
fn release(owner: Option<VmId>, range: PaRange) {
    match owner {
        Some(vm) => {
            if let Some(dirty) = private::take(vm, range) {
                private::give_back(dirty);
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
    /// Maps host memory at `ipa`, which lies in a slot. Mapping the same again is fine.
    pub fn map(&mut self, ipa: IpaRange, pa: Pa) -> Result<(), MapFailure> {
        let target = PaRange::new(pa, ipa.size()).map_err(|_| MapFailure::Invalid)?;
        let mut occupied = false;
        {
            let tables = Tables { account: &mut self.account };
            self.stage2.for_each(&tables, ipa, |_| {
                occupied = true;
                false
            });
        }
        if !occupied {
            return self.map_fresh(ipa, target);
        }
        // Another vCPU was here first, at least for a part.
        for page in 0..ipa.pages() {
            let offset = page.wrapping_mul(PAGE_SIZE);
            let (ipa, pa) = (Ipa(ipa.start().0.wrapping_add(offset)), Pa(pa.0.wrapping_add(offset)));
            let walk = self.stage2.walk(&Tables { account: &mut self.account }, ipa);
            match walk {
                Walk::Mapped { pa: have, .. } if have == pa => {}
                Walk::Mapped { .. } | Walk::OutOfRange => return Err(MapFailure::Invalid),
                Walk::Unmapped { .. } => {
                    let one = IpaRange::new(ipa, PAGE_SIZE).map_err(|_| MapFailure::Invalid)?;
                    let target = PaRange::new(pa, PAGE_SIZE).map_err(|_| MapFailure::Invalid)?;
                    self.map_fresh(one, target)?;
                }
            }
        }
        Ok(())
    }

    fn map_fresh(&mut self, ipa: IpaRange, pa: PaRange) -> Result<(), MapFailure> {
        let owner = self.owner;
        match owner {
            Some(vm) => private::donate(vm, pa)?,
            None => share(pa).map_err(|_| MapFailure::NotHosts)?,
        }
        // The guest may look with its caches off at what the VMM wrote with caches on.
        barrier::clean_invalidate(pa.start().0 as usize, pa.size() as usize);
        barrier::ic_ialluis();
        let root = self.stage2.root();
        let mut tables = Tables { account: &mut self.account };
        self.stage2.map(&mut tables, &mut VmTlb { root }, ipa, pa.start(), Attrs::RAM).map_err(|e| {
            release(owner, pa);
            match e {
                MapError::OutOfTables(_) => MapFailure::NoMemory,
                _ => MapFailure::Invalid,
            }
        })
    }

    /// Whether nothing is mapped.
    fn is_empty(&mut self) -> bool {
        let mut empty = true;
        let all = 1u64.wrapping_shl(self.stage2.ipa_bits().into());
        if let Ok(all) = IpaRange::new(Ipa(0), all) {
            self.stage2.for_each(&Tables { account: &mut self.account }, all, |_| {
                empty = false;
                false
            });
        }
        empty
    }

    /// One step of taking a protected VM's memory apart: what was taken before is scrubbed and returned first.
    fn dismantle(&mut self, vm: VmId, tlb: &mut VmTlb, budget: u64) -> Progress {
        let mut left = budget;
        loop {
            while left > 0
                && let Some(dirty) = self.dirty.pop()
            {
                let (first, rest) = dirty.split_first(left);
                left = left.saturating_sub(first.range().pages());
                private::give_back(first);
                self.keep_dirty(rest);
            }
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

    fn keep_dirty(&mut self, dirty: Option<Dirty>) {
        if let Some(Err(e)) = dirty.map(|dirty| self.dirty.try_push(dirty)) {
            log::error!("teardown: {e} (hypervisor bug; the pages are lost)");
        }
    }

    /// The page of a protected VM at `ipa`; none if there is none yet, or no slot.
    fn private_page(&mut self, ipa: Ipa) -> Result<PaRange, NoPage> {
        let walk = self.stage2.walk(&Tables { account: &mut self.account }, ipa);
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

    /// A protected guest lets the host see its page, or takes that back.
    pub fn expose(&mut self, ipa: Ipa, visible: bool) -> Result<(), NoPage> {
        let Some(vm) = self.owner else { return Err(NoPage::Nowhere) };
        let page = self.private_page(ipa)?;
        let done = if visible { private::share(vm, page) } else { private::unshare(vm, page) };
        done.map_err(|_| NoPage::Nowhere)
    }

    /// From now on MMIO goes to the VMM only where the guest says so.
    pub fn guard(&mut self) {
        self.guarded = true;
    }

    /// The guest names an MMIO page, or takes that back.
    pub fn name_mmio(&mut self, ipa: Ipa, named: bool) -> Result<(), NoPage> {
        if !ipa.is_aligned(PAGE_SIZE) || self.slots.find(ipa).is_some() {
            return Err(NoPage::Nowhere);
        }
        let page = IpaRange::new(ipa, PAGE_SIZE).map_err(|_| NoPage::Nowhere)?;
        let note = if named { NAMED } else { Annotation::NONE };
        let root = self.stage2.root();
        let tables = &mut Tables { account: &mut self.account };
        self.stage2.annotate(tables, &mut VmTlb { root }, page, note).map_err(|_| NoPage::Nowhere)
    }

    /// Whether an access to a device at `ipa` is not for the VMM.
    pub fn refuses_mmio(&mut self, ipa: Ipa) -> bool {
        let walk = self.stage2.walk(&Tables { account: &mut self.account }, ipa);
        self.guarded && !matches!(walk, Walk::Unmapped { note: NAMED, .. })
    }

    /// Takes a page of the guest's back from it. True if there was one.
    pub fn unmap_page(&mut self, ipa: Ipa) -> bool {
        let walk = self.stage2.walk(&Tables { account: &mut self.account }, ipa);
        let Walk::Mapped { pa, .. } = walk else { return false };
        let page = ipa.align_down(PAGE_SIZE);
        let (Ok(range), Ok(target)) =
            (IpaRange::new(page, PAGE_SIZE), PaRange::new(pa.align_down(PAGE_SIZE), PAGE_SIZE))
        else {
            return false;
        };
        let root = self.stage2.root();
        let mut tables = Tables { account: &mut self.account };
        if self.stage2.unmap(&mut tables, &mut VmTlb { root }, range).is_err() {
            return false;
        }
        release(self.owner, target);
        true
    }

    /// Takes some `budget` pages of `range` back from the guest; pages that are not there cost nothing. Its
    /// vCPUs may run: the TLB is clean before a page counts as the host's alone.
    ///
    /// Restartable by being called again with the same range: emptied tables are gone, so getting past what
    /// was done before takes a look at three tables at the most.
    pub fn unmap_step(&mut self, range: IpaRange, budget: u64) -> Result<Progress, MapFailure> {
        // A protected guest's pages can't be replaced by others behind its back.
        if self.owner.is_some() {
            return Err(MapFailure::Protected);
        }
        let mut left = budget;
        let mut rest = Some(range);
        while let Some(part) = rest {
            let Some(first) = self.first_mapped(part) else { break };
            if left == 0 {
                return Ok(Progress::More);
            }
            // From there to the end of its 2 MiB: one invalidation for all of it.
            let start = first.max(part.start());
            let to_block_end = BLOCK_PAGES.wrapping_sub(start.0.wrapping_shr(PAGE_SHIFT) % BLOCK_PAGES);
            let behind = part.end().0.wrapping_sub(start.0);
            let behind = IpaRange::new(start, behind).map_err(|_| MapFailure::Invalid)?;
            let (window, after) = behind.split_first(to_block_end);
            left = left.saturating_sub(self.unmap_window(window)?);
            rest = after;
        }
        Ok(Progress::Done)
    }

    /// Where the first block or page that overlaps `range` starts.
    fn first_mapped(&mut self, range: IpaRange) -> Option<Ipa> {
        let mut first = None;
        self.stage2.for_each(&Tables { account: &mut self.account }, range, |mapped| {
            first = Some(mapped.ipa.start());
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
}

/// Why a page of a guest's can't be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPage {
    /// It is in a slot: the driver has to bring it.
    Absent,
    /// It is nowhere, or the call makes no sense for it.
    Nowhere,
}

/// What a vCPU waits for when it comes back from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A load's data.
    Load(PendingLoad),
    /// x0..x3 of the wall-clock call.
    Ptp,
    /// A load or store that takes several accesses: the answer to the current one.
    Emulation(Emulation),
}

/// A vCPU.
pub struct Vcpu {
    /// Its index.
    pub id: VcpuId,
    /// General registers.
    pub regs: GuestRegs,
    /// EL1 registers while it does not run.
    pub el1: El1Regs,
    /// Virtual timer while it does not run.
    pub timer: VirtualTimer,
    /// Physical timer.
    pub ptimer: PhysicalTimer,
    /// FP registers while they are not in a CPU.
    pub fp: GuestFp,
    /// Virtual CPU interface.
    pub gic: CpuInterface,
    /// What it shares with the driver.
    pub shared: SharedPages,
    /// What the last exit waits for.
    pub pending: Option<Pending>,
    /// In a PSCI power-down state: where it starts when that is over, and with what in x0.
    pub resume: Option<(u64, u64)>,
    /// vCPUs that sleep and have to be woken (bit n: vCPU n), of whom the driver has not been told yet.
    pub wake_others: u64,
    /// When its thread last did anything but come straight back, in ticks; kept under the public driver alone.
    pub rested: u64,
    /// Resampled interrupts that the guest has ended, of which the driver has not been told yet.
    pub resampled: ArrayVec<u32, 16>,
    /// OS lock: keeps debug exceptions off.
    pub os_lock: bool,
    /// MDSCR_EL1 as the guest wrote it; of it, what takes effect is in the real register.
    pub mdscr: u64,
    /// Breakpoints and watchpoints.
    pub debug: DebugRegs,
    /// Its part of the VM's watch.
    pub watch: VcpuWatch,
}

impl Vcpu {
    fn new(id: VcpuId, shared: SharedPages, fp: GuestFp) -> Self {
        let mut vcpu = Self {
            id,
            regs: GuestRegs::default(),
            el1: El1Regs::default(),
            timer: VirtualTimer::default(),
            ptimer: PhysicalTimer::default(),
            fp,
            gic: CpuInterface::default(),
            shared,
            pending: None,
            resume: None,
            wake_others: 0,
            rested: 0,
            resampled: ArrayVec::new(),
            os_lock: false,
            mdscr: 0,
            debug: DebugRegs::default(),
            watch: VcpuWatch::default(),
        };
        vcpu.reset(0, 0);
        vcpu
    }

    /// Reset state, starting at `entry` with `context` in x0. Nothing survives.
    pub fn reset(&mut self, entry: u64, context: u64) {
        self.regs = GuestRegs::default();
        self.regs.pc = entry;
        self.regs.pstate = PSTATE_EL1H_MASKED;
        self.regs.x[0] = context;
        self.el1 = El1Regs { sctlr: SCTLR_EL1_RESET, ..El1Regs::default() };
        self.timer = VirtualTimer::default();
        self.ptimer.reset();
        self.fp.reset();
        self.gic = CpuInterface { vmcr: gic::VMCR_RESET, ..CpuInterface::default() };
        self.pending = None;
        self.resume = None;
        self.os_lock = false;
        self.mdscr = 0;
        self.debug = DebugRegs::default();
        self.watch = VcpuWatch::default();
    }

    /// Reset state, but for the timers, which count on in a power-down state.
    pub fn wake(&mut self, entry: u64, context: u64) {
        let (timer, ptimer) = (self.timer, self.ptimer);
        self.reset(entry, context);
        self.timer = VirtualTimer { kctl: 0, ..timer };
        self.ptimer = ptimer;
    }

    /// MPIDR_EL1 as the guest reads it.
    pub fn mpidr(&self) -> u64 {
        1 << 31 | u64::from(vgic::affinity(self.id))
    }

    /// Fetches what the guest has ended, as much as there is room for. What stays in the vGIC is next.
    #[inline(always)]
    pub fn fetch_resampled(&mut self, vgic: &mut Vgic) {
        if vgic.has_resampled() {
            self.fetch(vgic);
        }
    }

    #[cold]
    fn fetch(&mut self, vgic: &mut Vgic) {
        while !self.resampled.is_full()
            && let Some(intid) = vgic.take_resampled()
        {
            self.resampled.push(intid.0);
        }
    }

    /// Tells the driver the counter offset.
    pub fn publish_offset(&self, cntvoff: u64) {
        self.publish(cntvoff, 0, 0);
    }

    /// Fills the hardware state page.
    pub fn publish(&self, vtimer_offset: u64, vtimer_delay: u64, vtimer_migrate: u32) {
        let state =
            gzvm_abi::run::HwState { vtimer_offset, vtimer_delay, vtimer_migrate, ..Default::default() };
        self.shared.write(HWSTATE_OFFSET, state.as_bytes());
    }
}
