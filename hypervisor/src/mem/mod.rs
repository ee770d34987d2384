// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Physical memory as EL2 reaches it. One of the two places with unsafe code.
//!
//! EL2 maps all RAM at its physical address (`stage1`), so physical = virtual here. What may be
//! touched is decided by ownership, not by the map:
//!
//! - [`pool`]: the hypervisor's own pages, handed out zeroed, charged to an account;
//! - [`boxed`]: values in pool pages;
//! - [`shared`]: what devices read and write of it;
//! - [`host`]: copies to and from memory that is the host's, checked page by page;
//! - [`guest`]: copies to and from memory that is a VM's;
//! - [`image`]: what the boot loader left, kept;
//! - [`tables`]: stage-2 table pages and TLB, for `gzvm_core::memory::stage2`.

pub mod boxed;
pub mod guest;
pub mod host;
pub mod image;
pub mod pool;
pub mod shared;
pub mod stage1;
pub mod tables;

use core::ops::Range;

use gzvm_core::fdt::machine::Region;
use gzvm_core::memory::ownership::{Dirty, Scrubbed};

use crate::arch::barrier;
use crate::arch::mmio::Frame;
use crate::arch::percpu::PerCpu;
use gzvm_core::broken::{Mistake, broken};

/// The register frame of a device in the device tree.
pub fn device_frame(region: &Region) -> Frame {
    // SAFETY: devices of the device tree are mapped as device memory by the boot map and by
    // `stage1`; a tree that calls RAM a device comes from the boot loader, which is trusted.
    unsafe { Frame::new(region.base, region.size.max(0x1000)) }
}

/// The boot loader's device tree, if there is one at `address`.
///
/// # Safety
/// `address` must be what the boot loader passed in x0, mapped as normal memory for 2 MiB.
pub unsafe fn boot_device_tree(address: usize) -> Option<&'static [u8]> {
    const MAGIC: u32 = 0xD00D_FEED;
    const MAX_SIZE: usize = 2 << 20;
    if address == 0 || address & 7 != 0 {
        return None;
    }
    // SAFETY: the caller's promise; 8 aligned bytes.
    let (magic, size) = unsafe {
        let words = address as *const u32;
        (u32::from_be(words.read()), u32::from_be(words.add(1).read()) as usize)
    };
    if magic != MAGIC || !(40..=MAX_SIZE).contains(&size) {
        return None;
    }
    // SAFETY: the header vouches for `size` bytes, which nobody writes while EL2 boots.
    Some(unsafe { core::slice::from_raw_parts(address as *const u8, size) })
}

/// Zeroes RAM that EL2 owns at this moment.
///
/// # Safety
/// Nothing else may refer to the range, whole pages, and it must be mapped RAM.
unsafe fn zero(address: u64, bytes: u64) {
    // SAFETY: the caller's promise.
    unsafe { barrier::zero(address as usize, bytes as usize) };
}

/// Overwrites the next `pages` of memory that was taken from a VM, down to the point of coherency; what is left to be
/// scrubbed, if anything is.
pub fn scrub(memory: Dirty, pages: u64) -> Result<Scrubbed, Dirty> {
    memory.scrub(pages, |range| {
        if broken(Mistake::NoScrub) {
            return;
        }
        // SAFETY: RAM that the ownership table has as nobody's; the VM does not reach it any more, and what the host
        // still sees of it is its to lose.
        unsafe { zero(range.start().0, range.size()) };
        barrier::clean_invalidate(range.start().0 as usize, range.size() as usize);
    })
}

/// A range of the hypervisor's reserved memory as a slice, for the life of the system. Only boot
/// carves these out, each range once.
///
/// # Safety
/// The range must be inside the reserved region, aligned for `T`, disjoint from every other use,
/// and any bytes must be a valid `T` (integers).
pub unsafe fn carve<T: zerocopy::FromBytes>(address: u64, count: usize) -> &'static mut [T] {
    // SAFETY: the caller's promise.
    unsafe { core::slice::from_raw_parts_mut(address as *mut T, count) }
}

/// A frame record (x29, x30) of a stack, for a backtrace. None if `fp` is not in a stack that this
/// CPU uses.
pub fn stack_record(fp: u64) -> Option<(u64, u64)> {
    let own = PerCpu::try_this().map(PerCpu::stack);
    let holds = |stack: &Range<u64>| fp & 15 == 0 && stack.contains(&fp) && stack.contains(&(fp | 15));
    if !own.iter().chain([&stage1::boot_stack()]).any(holds) {
        return None;
    }
    // SAFETY: 16 aligned bytes of a stack, mapped for good; only this CPU writes to them.
    unsafe {
        let record = fp as *const u64;
        Some((record.read_volatile(), record.add(1).read_volatile()))
    }
}
