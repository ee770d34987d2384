// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Virtio in a protected VM: crate virtio-drivers over the memory that this guest shares with the host.
//!
//! The firmware has shared the pool that the device tree names (`restricted-dma-pool`). Rings are in it; buffers are copied
//! into it on their way to the device, and out of it on their way back, so that the host sees and changes nothing else.

use core::ptr::NonNull;

use dtoolkit::Node;
use dtoolkit::standard::NodeStandard;
use spin::Mutex;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};
use virtio_drivers::{BufferDirection, Hal, PhysAddr};

use crate::machine::{self, Range};

const PAGE: usize = 4096;
/// Pages of a pool that are used.
const MOST_PAGES: usize = 2048;
/// Bytes of a virtio-mmio device's registers.
const REGISTERS: usize = 0x200;

/// Which pages of the pool are taken.
static TAKEN: Mutex<[bool; MOST_PAGES]> = Mutex::new([false; MOST_PAGES]);

fn pool() -> Range {
    machine::get().shared.expect("the device tree names memory to share")
}

/// The first of `pages` free pages in a row, which are taken from now on.
fn take(pages: usize) -> Option<usize> {
    let limit = (pool().size as usize / PAGE).min(MOST_PAGES);
    let mut taken = TAKEN.lock();
    let first = (0..=limit.checked_sub(pages)?).find(|&n| !taken[n..n + pages].contains(&true))?;
    taken[first..first + pages].fill(true);
    Some(first)
}

fn give_back(address: u64, pages: usize) {
    let first = (address - pool().start) as usize / PAGE;
    TAKEN.lock()[first..first + pages].fill(false);
}

fn address(page: usize) -> u64 {
    pool().start + (page * PAGE) as u64
}

/// The pool, for virtio-drivers.
pub struct Bounce;

// SAFETY: memory of the pool is mapped, this guest's for nothing else, and handed out once; a copy stays in the buffer and in
// what was taken for it.
unsafe impl Hal for Bounce {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let Some(to) = take(pages).map(address) else { return (0, NonNull::dangling()) };
        // SAFETY: pages of the pool that are nobody else's.
        unsafe { core::ptr::write_bytes(to as *mut u8, 0, pages * PAGE) };
        (to, NonNull::new(to as *mut u8).expect("not at 0"))
    }

    unsafe fn dma_dealloc(paddr: PhysAddr, _: NonNull<u8>, pages: usize) -> i32 {
        give_back(paddr, pages);
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(paddr as *mut u8).expect("not at 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, direction: BufferDirection) -> PhysAddr {
        let pages = buffer.len().div_ceil(PAGE);
        let to = take(pages).map(address).expect("the pool has room");
        let (from, bytes) = (buffer.cast::<u8>().as_ptr(), buffer.len());
        // SAFETY: the caller's buffer, and pages that are nobody else's. What was in them, or in a buffer that is to be
        // filled, goes nowhere.
        unsafe {
            match direction {
                BufferDirection::DeviceToDriver => core::ptr::write_bytes(to as *mut u8, 0, bytes),
                _ => core::ptr::copy_nonoverlapping(from, to as *mut u8, bytes),
            }
        }
        to
    }

    unsafe fn unshare(paddr: PhysAddr, buffer: NonNull<[u8]>, direction: BufferDirection) {
        if direction != BufferDirection::DriverToDevice {
            let to = buffer.cast::<u8>().as_ptr();
            // SAFETY: as in `share`; the host may write meanwhile, and any bytes will do.
            unsafe { core::ptr::copy_nonoverlapping(paddr as *const u8, to, buffer.len()) };
        }
        give_back(paddr, buffer.len().div_ceil(PAGE));
    }
}

/// The virtio-mmio devices of the device tree that are there.
pub fn transports() -> impl Iterator<Item = MmioTransport<'static>> {
    let nodes = machine::get().fdt.map(|fdt| fdt.root());
    let nodes = nodes.into_iter().flat_map(|root| root.children().collect::<crate::ArrayVec<_, 64>>());
    nodes.filter(|node| node.is_compatible("virtio,mmio")).filter_map(|node| {
        let at = node.reg().ok()??.next()?.address::<u64>().ok()?;
        let header = NonNull::new(at as *mut VirtIOHeader)?;
        // SAFETY: registers of a virtio-mmio device, as the device tree says, mapped as device memory.
        unsafe { MmioTransport::new(header, REGISTERS) }.ok()
    })
}
