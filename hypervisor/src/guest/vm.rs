// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A VM and its vCPUs.

use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::arch::lock::Mutex;
use gzvm_abi::MAX_VCPUS_EXTENDED as MAX_VCPUS;
use gzvm_abi::{DEFAULT_SPIS, MAX_SPIS};
use gzvm_core::addr::{PAGE_SIZE, VcpuId, VmId};
use gzvm_core::fdt::machine::MAX_CPUS;
use gzvm_core::memory::PaRange;
use gzvm_core::memory::loans::Party;
use gzvm_core::memory::stage2::Progress;
use gzvm_core::platform::psci::PowerStates;
use gzvm_core::vgic::{self, INLINE_SPIS, Kicks, MoreSpis, VcpuState};
use gzvm_core::vm::identity::Measurement;
use gzvm_core::vm::lifecycle::State;

use super::firmware::Window;
use super::lending;
use super::life::Life;
use super::memory::{MapFailure, VmMemory, share, unshare};
use super::registry;
use super::rpc::{self, VmRpc};
use super::vcpu::Vcpu;
use super::watch::VmWatch;
use crate::arch::decision::FORCED_WRITE_BACK;
use crate::arch::fp::{GuestFp, SveRegs};
use crate::arch::percpu::{PerCpu, kick};
use crate::arch::world;
use crate::mem::boxed::{PageBox, pages_of};
use crate::mem::host::SharedPages;
use crate::mem::pool::{self};
use crate::platform;
use gzvm_core::broken::{Mistake, broken};

/// IPA bits of a guest, as crosvm and our VMM assume.
pub const IPA_BITS: u8 = 40;
/// vCPUs that one step of taking a VM apart takes away, each for up to 27,000 instructions. Drivers
/// have mostly done so before.
const VCPUS_A_STEP: u32 = 2;
/// No frame given yet.
const NO_FRAME: u64 = u64::MAX;

const _: () = assert!(MAX_VCPUS == vgic::MAX_VCPUS);
const _: () = assert!(MAX_SPIS == vgic::MAX_SPIS && DEFAULT_SPIS == INLINE_SPIS);
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

/// VMs made so far.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// A VM.
pub struct Vm {
    /// Which one it is.
    pub party: Party,
    /// VTTBR_EL2, and VTCR_EL2's T0SZ and SL0: fixed for life, so that RUN needs no lock for them.
    pub vttbr: u64,
    /// See [`vttbr`](Self::vttbr).
    pub vtcr_fields: (u8, u8),
    /// HCR_EL2 while one of its vCPUs runs.
    pub hcr: u64,
    /// Its vCPUs have SVE.
    pub sve: AtomicBool,
    protected: AtomicBool,
    firmware_entry: AtomicU64,
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
    /// Who it is, once that was asked for: see [`measured`](Self::measured).
    pub measurement: Mutex<Option<Measurement>>,
    /// Which of its exceptions are watched.
    pub watch: VmWatch,
    /// With whom it may have channels.
    pub rpc: VmRpc,
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
        let vgic = PageBox::new(Vgic::new(DEFAULT_SPIS, None))?;
        let forced = FORCED_WRITE_BACK.rely();
        let memory = VmMemory::new(id, bits, pa_bits, forced)?;
        let (root, vtcr_fields) = (memory.stage2.root(), memory.stage2.vtcr_fields());
        PageBox::new(Self {
            party: Party { id, generation: GENERATION.fetch_add(1, Ordering::Relaxed) },
            vttbr: world::vttbr(root.0, id.0),
            vtcr_fields,
            hcr: world::hcr_guest(forced),
            sve: AtomicBool::new(false),
            protected: AtomicBool::new(false),
            firmware_entry: AtomicU64::new(NO_FRAME),
            memory: Mutex::new(memory),
            vgic: Mutex::new(vgic),
            power: Mutex::new(PowerStates::default()),
            vcpus: [const { Mutex::new(None) }; MAX_VCPUS],
            running: [const { AtomicU32::new(0) }; MAX_VCPUS],
            idle: [const { AtomicBool::new(false) }; MAX_VCPUS],
            life: Life::new(),
            measurement: Mutex::new(None),
            watch: VmWatch::new(),
            rpc: VmRpc::new(),
            abandoned: AtomicBool::new(false),
            gicd: AtomicU64::new(NO_FRAME),
            gicr: AtomicU64::new(NO_FRAME),
            last_vcpu: [const { AtomicU8::new(0) }; MAX_CPUS],
            vcpu_count: AtomicU32::new(0),
        })
        .map_err(|e| {
            VmMemory::free_root(root, bits);
            e.into()
        })
    }

    /// Protected: the host may know nothing of it.
    #[inline(always)]
    pub fn protected(&self) -> bool {
        self.protected.load(Ordering::Relaxed)
    }

    /// Where vCPU 0 starts, if that is not the host's to say.
    pub fn firmware_entry(&self) -> Option<u64> {
        Some(self.firmware_entry.load(Ordering::SeqCst)).filter(|entry| *entry != NO_FRAME)
    }

    /// Makes it protected for life: a VM that has not run, with nothing in it yet. With a firmware, it starts there.
    pub fn protect(&self, firmware: Option<Window>) -> Result<(), MapFailure> {
        let mut memory = self.memory.lock();
        if self.life.state() != State::Created || self.protected() {
            return Err(MapFailure::Invalid);
        }
        if let Some(window) = firmware {
            self.firmware_entry.store(window.entry(), Ordering::SeqCst);
        }
        self.protected.store(true, Ordering::SeqCst);
        let done = match self.vcpu_count.load(Ordering::SeqCst) {
            0 => memory.protect(firmware),
            _ => Err(MapFailure::Invalid),
        };
        if done.is_err() {
            self.protected.store(false, Ordering::SeqCst);
            self.firmware_entry.store(NO_FRAME, Ordering::SeqCst);
        }
        done
    }

    /// Gives it another number of SPIs, while it has no vCPU.
    pub fn set_spis(&self, spis: usize) -> Result<(), CreateError> {
        let more = if spis > INLINE_SPIS { Some(PageBox::new(MoreSpis::default())?) } else { None };
        let outcome = self.vgic.lock().set_spis(spis, more);
        // The box that is left over goes outside the lock: the pool has its own.
        outcome.map(drop).map_err(|_| CreateError::Exists)
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
        let sve = self.sve.load(Ordering::SeqCst);
        let fp = GuestFp::new(sve)?;
        share(area).map_err(|_| CreateError::BadPages)?;
        let mut vcpu = match PageBox::new(Vcpu::new(id, SharedPages::new(area), fp)) {
            Ok(vcpu) => vcpu,
            Err(e) => {
                unshare(area);
                return Err(e.into());
            }
        };
        // Before the look at the entry: `protect` writes that, and then looks for vCPUs.
        let as_given = self.life.hold(|_| {
            let same = self.sve.load(Ordering::SeqCst) == sve;
            if same {
                self.vcpu_count.fetch_max(u32::from(id.0) + 1, Ordering::SeqCst);
            }
            same
        });
        if !as_given {
            unshare(area);
            return Err(CreateError::Exists);
        }
        if let Some(entry) = self.firmware_entry() {
            vcpu.reset(entry, 0);
        }
        vcpu.publish_offset(self.cntvoff());
        *slot = Some(vcpu);
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
            if !broken(Mistake::LeakShared) {
                unshare(vcpu.shared.range());
            }
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
        let mut removed = 0;
        for n in 0..MAX_VCPUS {
            if self.vcpus.get_mut(n).is_some_and(|vcpu| vcpu.get_mut().is_some()) {
                let _ = self.remove_vcpu(VcpuId(n as u16));
                removed += 1;
            }
            if removed == VCPUS_A_STEP {
                return Progress::More;
            }
        }
        if removed != 0 {
            return Progress::More;
        }
        if rpc::end_step(self) == Progress::More {
            return Progress::More;
        }
        match lending::end_step(self, budget) {
            Progress::More => Progress::More,
            Progress::Done => self.memory.get_mut().destroy_step(budget),
        }
    }

    /// Bytes that the hypervisor spends on the VM.
    pub fn metadata_bytes(&self) -> u64 {
        let tables = self.memory.lock().table_pages();
        let vcpus = self.vcpus.iter().filter(|v| v.try_lock().is_none_or(|v| v.is_some())).count() as u64;
        let sve = if self.sve.load(Ordering::SeqCst) { pages_of::<SveRegs>() } else { 0 };
        let more_spis = if self.vgic.lock().has_more_spis() { pages_of::<MoreSpis>() } else { 0 };
        let fixed = (pages_of::<Self>() + pages_of::<Vgic>() + more_spis) as u64;
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
    #[inline(always)]
    pub fn kick(&self, kicks: Kicks) -> u64 {
        if kicks.is_empty() { 0 } else { self.kick_all(kicks) }
    }

    fn kick_all(&self, kicks: Kicks) -> u64 {
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
    if kicked.is_ok()
        && let Some(gic) = this.gic()
    {
        gic.send_kick(target.sgi_target);
    }
}
