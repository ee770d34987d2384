// SPDX-License-Identifier: Apache-2.0 OR MIT
//! From the boot loader's jump to the host's first instruction, in one straight line.
//!
//! 1. read the device tree, start the console, say who we are;
//! 2. check what we need: GICv3, timer, memory;
//! 3. reserve memory, build EL2's own map, switch to it;
//! 4. ownership, per-CPU blocks, the host's stage 2;
//! 5. start the host, or, with none, idle.

use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use gzvm_core::addr::{BLOCK_2M, PAGE_SIZE, Pa};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::fdt::dma::{MAX_SMMUS, MAX_UNGUARDED};
use gzvm_core::fdt::machine::{MAX_RESERVED, Machine, PsciMethod, Region};
use gzvm_core::fdt::{host_tree, placement};
use gzvm_core::memory::PaRange;
use gzvm_core::memory::ownership::{Ownership, Sizes, Transition};
use gzvm_core::memory::pool::Pool;
use log::{info, warn};

use crate::arch::decision::{FORCED_WRITE_BACK, WIDE_VMIDS};
use crate::arch::gic::CpuGic;
use crate::arch::id::Features;
use crate::arch::percpu::{PerCpu, STACKS_PAGES, power};
use crate::arch::{barrier, cpu, frame};
use crate::guest;
use crate::host::lpis::MAX_WITHHELD;
use crate::mem::boxed::{PageBox, pages_of};
use crate::mem::{self, pool, stage1};
use crate::platform::{self, Platform};
use crate::{console, host};

/// Room for the host's device tree: the boot loader's and what we add.
const TREE_SLACK: u64 = 64 << 10;
/// Pool pages besides what scales with RAM.
const POOL_BASE: u64 = 3 << 19;
/// What the hypervisor takes is a multiple of this. By whole blocks it would take a quarter more of a small machine; so the host's map has a
/// table for the block that both have a part of.
const OWN_GRANULE: u64 = 64 << 10;
/// The pool gets RAM / this: enough to map every page into some VM by 4 KiB.
const POOL_SHARE: u64 = 512;

/// What ends the boot.
#[derive(Debug)]
enum BootError {
    NoDeviceTree,
    NoMemory,
    TreeTooLarge,
    OnlyVhe,
    NoGic,
    NoTimer,
    NoRedistributor,
    NoRoom(u64),
    NarrowVmids,
    NoForcedWriteBack,
    HostImage(&'static str),
    Smmu(u64),
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoDeviceTree => write!(f, "no valid device tree in x0"),
            Self::NoMemory => write!(f, "the device tree names no usable memory"),
            Self::TreeTooLarge => {
                write!(f, "the device tree has more memory ranges or SMMUs than this hypervisor handles")
            }
            Self::OnlyVhe => write!(f, "this CPU's EL2 has HCR_EL2.E2H fixed to 1, which is not supported"),
            Self::NoGic => write!(
                f,
                "this machine has no GICv3 (device tree: no \"arm,gic-v3\"); QEMU: -M virt,gic-version=3"
            ),
            Self::NoTimer => write!(f, "the device tree has no \"arm,armv8-timer\" with an EL2 timer"),
            Self::NoRedistributor => write!(f, "no GIC redistributor has this CPU's affinity"),
            Self::NoRoom(bytes) => {
                write!(f, "not enough memory: no free range of {} KiB for the hypervisor", bytes >> 10)
            }
            Self::NarrowVmids => {
                write!(f, "this CPU has VMIDs of 8 bits, and there are VMs by now whose ids need 16")
            }
            Self::NoForcedWriteBack => {
                write!(f, "this CPU lacks FEAT_S2FWB, and there are VMs by now that rely on it")
            }
            Self::Smmu(base) => write!(f, "the SMMU at {base:#x} can't be told to block its devices"),
            Self::HostImage(why) => write!(f, "the host image can't be started: {why}"),
        }
    }
}

/// Not at EL2: says so and stops. Runs with the MMU off; no atomics, no logger.
#[unsafe(no_mangle)]
extern "C" fn boot_without_el2(dtb: usize, _el: usize) -> ! {
    // SAFETY: the boot loader's x0; memory is accessible untranslated.
    if let Some(fdt) = unsafe { mem::boot_device_tree(dtb) }.and_then(|d| Fdt::new(d).ok())
        && let Some(uart) = Machine::from_fdt(fdt).uart
    {
        console::print_early(
            &uart,
            "gzvm: not started at EL2: the GenieZone hypervisor needs it. QEMU: -M virt,virtualization=on. Stopped.\n",
        );
    }
    cpu::halt()
}

/// The first CPU, at EL2 with a provisional map.
#[unsafe(no_mangle)]
extern "C" fn boot_primary(dtb: usize, image_base: usize) -> ! {
    cpu::early_init();
    match boot(dtb, image_base) {
        Ok(never) => match never {},
        Err(e) => {
            log::error!("{e}. Stopped.");
            cpu::halt()
        }
    }
}

fn boot(dtb: usize, image_base: usize) -> Result<core::convert::Infallible, BootError> {
    // SAFETY: the boot loader's x0; entry.S mapped it as normal memory.
    let blob = unsafe { mem::boot_device_tree(dtb) };
    let fdt = blob.and_then(|b| Fdt::new(b).ok());
    let Some((blob, fdt)) = blob.zip(fdt) else {
        console::init(None);
        return Err(BootError::NoDeviceTree);
    };
    let machine = Machine::from_fdt(fdt);
    console::init(machine.uart.as_ref());
    #[cfg(feature = "crash-test")]
    crate::hypercall::crash::break_at_boot(machine.host.as_ref());
    let features = Features::detect();
    banner(&machine, &features, image_base);

    if machine.truncated || machine.dma.truncated {
        return Err(BootError::TreeTooLarge);
    }
    if cpu::stuck_in_vhe() {
        return Err(BootError::OnlyVhe);
    }
    let gic = machine.gic.clone().ok_or(BootError::NoGic)?;
    let timers = machine.timer.ok_or(BootError::NoTimer)?;
    let banks = usable_banks(&machine, &features);
    if banks.is_empty() {
        return Err(BootError::NoMemory);
    }

    let tree = Region { base: dtb as u64, size: blob.len() as u64 };
    stage1::extend_boot_map(&banks);
    let layout = Layout::choose(&machine, &banks, tree)?;
    pool::init(layout.pool()?);
    let cpus = percpu_blocks(&machine)?;
    let ttbr = map_hypervisor(&machine, &banks, &cpus);
    info!(
        "memory: {} KiB of {} MiB for the hypervisor at {:#x}, image {} KiB at {:#x}",
        layout.own.size >> 10,
        machine.memory_size() >> 20,
        layout.own.base,
        stage1::image().size >> 10,
        stage1::image().base,
    );

    let ownership = layout.ownership(&machine, &banks)?;
    let mut published = ArrayVec::new();
    for block in cpus {
        publish(block, ttbr, &mut published);
    }
    let own = [layout.own, image_pages()];
    let mut withheld: ArrayVec<Region, { MAX_SMMUS + MAX_UNGUARDED + MAX_WITHHELD }> =
        machine.dma.withheld().filter(|_| !broken(Mistake::SmmuForHost)).collect();
    if !machine.dma.smmus.is_empty() {
        withheld.extend(host::lpis::init(&gic));
    }
    host::init(&banks, &own, &withheld, &features).map_err(|_| BootError::NoRoom(layout.own.size))?;
    host::dma::init(&machine.dma, |bits| host::stage2_for_devices(&features, bits))
        .map_err(BootError::Smmu)?;
    match machine.pvmfw.map(guest::firmware::init) {
        None => info!("no firmware for protected VMs (device tree: no such module in /chosen)"),
        Some(Ok(digest)) => {
            let [a, b, c, d, ..] = digest;
            info!("firmware for protected VMs: SHA-256 {a:02x}{b:02x}{c:02x}{d:02x}...");
        }
        Some(Err(why)) => warn!("the firmware for protected VMs is not used: {why}"),
    }
    let firmware = machine.psci == Some(PsciMethod::Smc);
    let firmware_trng = firmware && guest::random::firmware_has_it();
    if !firmware {
        warn!("no PSCI by SMC: the host gets one CPU, and can't power off");
    }
    platform::init(Platform { gic, timers, cpus: published, firmware, firmware_trng }, ownership);

    let this = start_cpu(cpu::mpidr_affinity())?;
    this.power.store(power::ON, core::sync::atomic::Ordering::SeqCst);
    let Some(image) = machine.host else {
        info!("no host image (device tree: no multiboot module in /chosen): idle");
        info!("log ring at {:#x}", console::RING.address());
        cpu::halt()
    };
    let entry = check_image(&image.kernel)?;
    // SAFETY: the range was reserved by the layout for this, once, and nothing else uses it.
    let buffer = unsafe { mem::carve::<u8>(layout.tree.base, layout.tree.size as usize) };
    let used = host_tree::write(fdt, buffer, &image, &own, &machine.dma)
        .map_err(|_| BootError::NoRoom(layout.tree.size))?;
    // The host starts with its caches off.
    barrier::clean_invalidate(layout.tree.base as usize, used);
    info!("host: kernel {:#x}, {} bytes of device tree at {:#x}: starting", entry, used, layout.tree.base);
    // SAFETY: `start_cpu` set up the host's EL1 and stage 2 on this CPU.
    unsafe { frame::start_host(layout.tree.base, entry) }
}

fn banner(machine: &Machine<'_>, features: &Features, image_base: usize) {
    info!("GenieZone hypervisor {} at EL2, image at {image_base:#x}", env!("CARGO_PKG_VERSION"));
    info!(
        "machine: {}, {} CPUs (MIDR {:#x}), {} MiB RAM, {} PA bits",
        machine.model,
        machine.cpus.len(),
        cpu::midr(),
        machine.memory_size() >> 20,
        features.pa_bits,
    );
    info!(
        "GICv3: {}, PSCI: {:?}, SMMUv3: {}",
        if machine.gic.is_some() { "yes" } else { "no" },
        machine.psci,
        if machine.dma.smmus.is_empty() { "no" } else { "yes" },
    );
}

/// Whole pages of RAM inside the IPA space we can give the host.
fn usable_banks(machine: &Machine<'_>, features: &Features) -> ArrayVec<Region, 16> {
    let limit = 1u64 << host::ipa_bits(features);
    let mut banks = ArrayVec::new();
    for r in &machine.memory {
        let base = r.base.next_multiple_of(PAGE_SIZE);
        let end = r.end().min(limit) & !(PAGE_SIZE - 1);
        if end < r.end() & !(PAGE_SIZE - 1) {
            warn!("memory from {:#x} on is out of the host's reach and not used", end.max(base));
        }
        if end > base {
            banks.push(Region { base, size: end - base });
        }
    }
    banks
}

fn pages_around(region: &Region) -> Region {
    let base = region.base & !(PAGE_SIZE - 1);
    Region { base, size: region.end().saturating_sub(base).next_multiple_of(PAGE_SIZE) }
}

/// The image rounded out to pages: taken from the host.
fn image_pages() -> Region {
    let image = stage1::image();
    Region { base: image.base, size: image.size.next_multiple_of(PAGE_SIZE) }
}

/// The hypervisor's own range, cut into its uses.
struct Layout {
    own: Region,
    blocks: (u64, usize),
    pages: (u64, usize),
    bitmap: (u64, usize),
    pool: Region,
    /// The host's device tree: just below, and the host's.
    tree: Region,
}

impl Layout {
    fn choose(machine: &Machine<'_>, banks: &[Region], tree: Region) -> Result<Self, BootError> {
        let ranges = ranges(banks);
        let sizes = Sizes::of(&ranges);
        let ram = machine.memory_size();
        let pool_bytes = (POOL_BASE + ram / POOL_SHARE).next_multiple_of(PAGE_SIZE);
        let bitmap_words = Pool::words(pool_bytes / PAGE_SIZE);
        let fixed = (sizes.blocks as u64 * 4).next_multiple_of(PAGE_SIZE)
            + (sizes.pages as u64 * 4).next_multiple_of(PAGE_SIZE)
            + (bitmap_words * 8).next_multiple_of(PAGE_SIZE);
        let own_bytes = (fixed + pool_bytes).next_multiple_of(OWN_GRANULE);
        let tree_bytes = (tree.size + TREE_SLACK).next_multiple_of(PAGE_SIZE);
        let modules =
            machine.host.iter().flat_map(|h| [Some(h.kernel), h.initrd]).chain([machine.pvmfw]).flatten();
        // The kernel's BSS lies behind its file: leave it some room.
        let modules = modules.map(|m| Region { base: m.base, size: m.size + (64 << 20) });
        let fixed_ranges = [image_pages(), tree];
        let taken = machine.reserved.iter().copied().chain(fixed_ranges).chain(modules);
        // What the provisional map does not reach can't be used before the switch.
        let near = |r: &Region| r.end() <= stage1::BOOT_MAP_SIZE;
        let candidates: ArrayVec<Region, 16> = banks.iter().copied().filter(near).collect();
        let whole = placement::place(&candidates, taken, own_bytes + tree_bytes)
            .ok_or(BootError::NoRoom(own_bytes))?;
        let own = Region { base: whole.end() - own_bytes, size: own_bytes };
        let tree = Region { base: whole.base, size: tree_bytes };
        let mut at = own.base;
        let mut cut = |bytes: u64| {
            let base = at;
            at += bytes.next_multiple_of(PAGE_SIZE);
            base
        };
        let blocks = (cut(sizes.blocks as u64 * 4), sizes.blocks);
        let pages = (cut(sizes.pages as u64 * 4), sizes.pages);
        let bitmap = (cut(bitmap_words * 8), bitmap_words as usize);
        let pool = Region { base: at, size: own.end() - at };
        Ok(Self { own, blocks, pages, bitmap, pool, tree })
    }

    fn pool(&self) -> Result<Pool<'static>, BootError> {
        let range = PaRange::new(Pa(self.pool.base), self.pool.size)
            .map_err(|_| BootError::NoRoom(self.pool.size))?;
        // One word more where rounding up made the pool larger than planned.
        let words = Pool::words(range.pages()) as usize;
        if words > self.bitmap.1.next_multiple_of(512) {
            return Err(BootError::NoRoom(self.pool.size));
        }
        // SAFETY: reserved by `choose` for this; the bitmap's last page has room for the extra words.
        let bitmap = unsafe { mem::carve::<u64>(self.bitmap.0, words) };
        Pool::new(range, bitmap).map_err(|_| BootError::NoRoom(self.pool.size))
    }

    /// All RAM is the host's but EL2's own, and what firmware keeps: the host may reach the latter
    /// (its stage 2 has it), but nobody can hand it to EL2 or a VM.
    fn ownership(&self, machine: &Machine<'_>, banks: &[Region]) -> Result<Ownership<'static>, BootError> {
        // SAFETY: reserved by `choose` for this, each once.
        let (blocks, pages) = unsafe {
            (mem::carve::<u32>(self.blocks.0, self.blocks.1), mem::carve::<u32>(self.pages.0, self.pages.1))
        };
        let mut holes = ArrayVec::<Region, { MAX_RESERVED + 2 }>::new();
        holes.extend([self.own, image_pages()]);
        holes.extend(machine.reserved.iter().map(pages_around));
        let ranges = ranges(banks);
        let mut table = Ownership::new(&ranges, blocks, pages).map_err(|_| BootError::NoMemory)?;
        for bank in &ranges {
            for part in host::without(Region { base: bank.start().0, size: bank.size() }, &holes) {
                if let Ok(range) = PaRange::new(Pa(part.base), part.size) {
                    table.apply(range, Transition::HypervisorToHost).map_err(|_| BootError::NoMemory)?;
                }
            }
        }
        Ok(table)
    }
}

fn ranges(banks: &[Region]) -> ArrayVec<PaRange, 16> {
    banks.iter().filter_map(|b| PaRange::new(Pa(b.base), b.size).ok()).collect()
}

type Blocks = ArrayVec<PageBox<PerCpu>, 64>;

/// A block and stacks for every CPU of the tree.
fn percpu_blocks(machine: &Machine<'_>) -> Result<Blocks, BootError> {
    let mut blocks = Blocks::new();
    for (index, mpidr) in machine.cpus.iter().enumerate() {
        let no_room = |_| BootError::NoRoom((pages_of::<PerCpu>() as u64) << 12);
        let mut block = PageBox::new(PerCpu::new(index, *mpidr)).map_err(no_room)?;
        block.set_stacks(pool::alloc(STACKS_PAGES as usize, 1).map_err(no_room)?.0);
        blocks.push(block);
    }
    Ok(blocks)
}

fn map_hypervisor(machine: &Machine<'_>, banks: &[Region], cpus: &Blocks) -> u64 {
    let mut map = stage1::Builder::new();
    let no_map: ArrayVec<Region, MAX_RESERVED> = machine.no_map.iter().map(pages_around).collect();
    banks.iter().flat_map(|bank| host::without(*bank, &no_map)).for_each(|part| map.ram(part));
    map.image();
    cpus.iter().flat_map(|block| block.guards()).for_each(|guard| map.unmap_page(guard));
    if let Some(uart) = &machine.uart {
        map.device(Region { base: uart.region.base, size: uart.region.size.max(PAGE_SIZE) });
    }
    if let Some(gic) = &machine.gic {
        map.device(gic.dist);
        gic.redist.iter().for_each(|r| map.device(*r));
    }
    for smmu in &machine.dma.smmus {
        map.device(smmu.region);
    }
    map.activate()
}

fn publish(mut block: PageBox<PerCpu>, ttbr: u64, published: &mut ArrayVec<&'static PerCpu, 64>) {
    let (mair, tcr, sctlr) = cpu::stage1_registers();
    block.ttbr0 = ttbr;
    block.mair = mair;
    block.tcr = tcr;
    block.sctlr = sctlr;
    let block: &'static PerCpu = block.leak();
    // A CPU that starts reads its block with the MMU off.
    barrier::clean_invalidate(core::ptr::from_ref(block) as usize, size_of::<PerCpu>());
    published.push(block);
}

/// Makes this CPU ready to run the host and guests.
fn start_cpu(mpidr: u64) -> Result<&'static PerCpu, BootError> {
    let this = platform::cpu_by_mpidr(mpidr).ok_or(BootError::NoRedistributor)?;
    this.install();
    let (vttbr, vtcr) = host::translation_registers();
    this.with(|state| state.init(vttbr, vtcr));
    let (vmid16, fwb) = this.with(|state| (state.features.vmid16, state.features.fwb));
    if !WIDE_VMIDS.joins(vmid16) {
        return Err(BootError::NarrowVmids);
    }
    if !FORCED_WRITE_BACK.joins(fwb) {
        return Err(BootError::NoForcedWriteBack);
    }
    let p = platform::get();
    let gic = CpuGic::init(&p.gic, &p.timers, mpidr).ok_or(BootError::NoRedistributor)?;
    platform::set_lrs(gic.nr_lrs);
    this.set_gic(gic);
    Ok(this)
}

/// A further CPU, on its own stack and the final map.
#[unsafe(no_mangle)]
extern "C" fn boot_secondary(_block: &'static PerCpu) -> ! {
    use core::sync::atomic::Ordering;
    match start_cpu(cpu::mpidr_affinity()) {
        Ok(this) => {
            let entry = this.host_entry.load(Ordering::SeqCst);
            let context = this.host_context.load(Ordering::SeqCst);
            this.power.store(power::ON, Ordering::SeqCst);
            // SAFETY: `start_cpu` set up the host's EL1 and stage 2 on this CPU.
            unsafe { frame::start_host(context, entry) }
        }
        Err(e) => {
            log::error!("CPU {:#x}: {e}. Stopped.", cpu::mpidr_affinity());
            cpu::halt()
        }
    }
}

/// The entry point of an arm64 `Image` (Documentation/arch/arm64/booting.rst).
fn check_image(kernel: &Region) -> Result<u64, BootError> {
    if kernel.size < 64 {
        return Err(BootError::HostImage("it is empty"));
    }
    // SAFETY: a boot module in RAM, given to us until the host starts.
    let header = unsafe { mem::carve::<u64>(kernel.base & !7, 8) };
    let (Some(text_offset), Some(magic)) = (header.get(1), header.get(7)) else {
        return Err(BootError::HostImage("it is empty"));
    };
    if *magic as u32 != 0x644D_5241 {
        return Err(BootError::HostImage("it is no arm64 Image (compressed kernels must be unpacked)"));
    }
    if kernel.base.wrapping_sub(*text_offset) & (BLOCK_2M - 1) != 0 {
        return Err(BootError::HostImage("its address is not a multiple of 2 MiB"));
    }
    Ok(kernel.base)
}
