// SPDX-License-Identifier: GPL-2.0-only
//! Probing the hypervisor, and the ioctls of `/dev/gzvm` itself.

use core::sync::atomic::{AtomicU64, Ordering};

use gzvm_abi::MAX_MEMSLOTS;
use gzvm_abi::hypercall::{EXT_MAGIC, Function, PROBE_VERSION, cap};
use gzvm_abi::ioctl::{self, extension};

use crate::guest_memory::GuestMemory;
use crate::hypercall::call;
use crate::kernel::print::{pr_err, pr_info, pr_warn};
use crate::kernel::{Result, code, pa_bits, uaccess};
use crate::vm::Vm;

/// Pages in the largest block of demand paging, and entries in the mailbox.
pub const BLOCK_PAGES: u64 = 512;
/// That as a power of two.
pub const BLOCK_ORDER: u32 = BLOCK_PAGES.ilog2();
const DEFAULT_DESTROY_BATCH: u64 = 128;
/// From this version of the extensions on, GET_ONE_REG is complete, and wake-ups name whom they are for.
const NAMES_SLEEPERS: u64 = 2;
/// Slots of a VM under any hypervisor of the public ABI.
const PUBLIC_MEMSLOTS: usize = 10;

static MAP_BATCH: AtomicU64 = AtomicU64::new(BLOCK_PAGES);
static DESTROY_BATCH: AtomicU64 = AtomicU64::new(DEFAULT_DESTROY_BATCH);
/// EXT_INFO's mask; 0 for a hypervisor that has no extensions.
static EXTENSIONS: AtomicU64 = AtomicU64::new(0);
/// EXT_INFO's version; 0 likewise.
static VERSION: AtomicU64 = AtomicU64::new(0);

/// Pages in one MAP_GUEST_BLOCK; divides [`BLOCK_PAGES`].
pub fn map_batch() -> u64 {
    MAP_BATCH.load(Ordering::Relaxed)
}

/// Pages in one step of DESTROY_VM.
pub fn destroy_batch() -> u64 {
    DESTROY_BATCH.load(Ordering::Relaxed)
}

/// Does the hypervisor have this function of ours?
pub fn has_function(function: Function) -> bool {
    EXTENSIONS.load(Ordering::Relaxed) & function.extension_bit() != 0
}

/// Does one MAP_GUEST map contiguous pages? The public driver never asked for more than one.
pub fn maps_runs() -> bool {
    EXTENSIONS.load(Ordering::Relaxed) != 0
}

/// Are registers of 128 bits, and system registers, known?
pub fn knows_registers() -> bool {
    VERSION.load(Ordering::Relaxed) >= NAMES_SLEEPERS
}

/// The vCPUs that a wake-up mask of the hypervisor names; all of them if it gives none.
pub fn sleepers(mask: u64) -> u64 {
    if VERSION.load(Ordering::Relaxed) >= NAMES_SLEEPERS { mask } else { u64::MAX }
}

/// Memory slots of a VM.
pub fn max_slots() -> usize {
    // Ours grew together with the ability to lose some.
    if has_function(Function::RemoveMemregion) { MAX_MEMSLOTS } else { PUBLIC_MEMSLOTS }
}

/// Meets the hypervisor. On an error the log says why.
pub fn probe() -> Result {
    let (major, minor, sub) = PROBE_VERSION;
    let version = call(Function::Probe, [major, minor, sub]).map_err(|e| {
        pr_err!(
            "no GenieZone hypervisor for driver version {major}.{minor} answers (PROBE: error {})",
            -e.to_errno()
        );
        code::ENODEV
    })?;

    let batch = match call(Function::EnableCap, [0, cap::QUERY_HYP_BATCH_PAGES]) {
        Ok(reply) if reply.x1 != 0 && BLOCK_PAGES.is_multiple_of(reply.x1) => reply.x1,
        Ok(reply) => {
            pr_err!("the hypervisor maps {} pages at a time, which does not divide {BLOCK_PAGES}", reply.x1);
            return Err(code::EFAULT);
        }
        Err(_) => BLOCK_PAGES,
    };
    MAP_BATCH.store(batch, Ordering::Relaxed);

    let batch = match call(Function::EnableCap, [0, cap::QUERY_DESTROY_BATCH_PAGES]) {
        Ok(reply) if reply.x1.is_power_of_two() => reply.x1,
        Ok(reply) => {
            pr_warn!("the hypervisor destroys {} pages at a time: using {DEFAULT_DESTROY_BATCH}", reply.x1);
            DEFAULT_DESTROY_BATCH
        }
        Err(_) => DEFAULT_DESTROY_BATCH,
    };
    DESTROY_BATCH.store(batch, Ordering::Relaxed);

    let (extensions, mask) = match call(Function::ExtInfo, []) {
        Ok(reply) if reply.x1 == EXT_MAGIC => (reply.x2, reply.x3),
        _ => (0, 0),
    };
    VERSION.store(extensions, Ordering::Relaxed);
    EXTENSIONS.store(mask, Ordering::Relaxed);
    pr_info!(
        "GenieZone hypervisor {}.{}.{}, driver {major}.{minor}.{sub}{}",
        version.x1 as u32,
        version.x2 as u32,
        version.x3,
        if mask != 0 { ", with extensions" } else { "" }
    );
    Ok(())
}

/// An ioctl of `/dev/gzvm`.
pub fn ioctl(cmd: u32, arg: u64) -> Result<i64> {
    match cmd {
        ioctl::CREATE_VM => Vm::create(arg),
        ioctl::CHECK_EXTENSION => check_extension(arg),
        ioctl::CREATE_GUEST_MEMORY if has_function(Function::HostAccess) => {
            GuestMemory::create(&uaccess::read(arg)?)
        }
        ioctl::GET_VCPU_MMAP_SIZE if arg == 0 => Ok(gzvm_abi::PAGE_SIZE as i64),
        ioctl::GET_VCPU_MMAP_SIZE => Err(code::EINVAL),
        _ => Err(code::ENOTTY),
    }
}

/// CHECK_EXTENSION: `arg` points to the capability, which the answer overwrites.
pub fn check_extension(arg: u64) -> Result<i64> {
    let answer: u64 = match uaccess::read::<u64>(arg)? {
        cap::PROTECTED_VM => 1,
        cap::VM_GPA_SIZE => pa_bits().into(),
        cap::WATCH if has_function(Function::SetWatch) => call(Function::SetWatch, [0])?.x1,
        cap::CONTROL if has_function(Function::Control) => 1,
        extension::MAX_VCPUS if has_function(Function::ExtInfo) => gzvm_abi::MAX_VCPUS_EXTENDED as u64,
        extension::NR_MEMSLOTS => max_slots() as u64,
        extension::REMOVE_SLOT if has_function(Function::RemoveMemregion) => 1,
        extension::IRQ_LEVEL | extension::IRQFD_RESAMPLE if has_function(Function::IrqLevel) => 1,
        extension::GET_ONE_REG if knows_registers() => 1,
        extension::RUN_MMAP => 1,
        extension::VGIC_SPIS if has_function(Function::VgicSpis) => gzvm_abi::MAX_SPIS as u64,
        extension::GUEST_MEMORY if has_function(Function::HostAccess) => 1,
        extension::RPC if has_function(Function::RpcConnect) => call(Function::RpcPolicy, [0])?.x1,
        extension::MEASUREMENT if has_function(Function::Measurement) => 1,
        extension::TABLE_MEMORY if has_function(Function::GiveMemory) => {
            call(Function::GiveMemory, [0, 0])?.x1
        }
        extension::DISCARD if has_function(Function::UnmapGuest) => 1,
        cap::VM_FEATURES if has_function(Function::VmFeatures) => call(Function::VmFeatures, [0, 0])?.x1,
        _ => return Err(code::EOPNOTSUPP),
    };
    uaccess::write(arg, &answer)?;
    Ok(0)
}
