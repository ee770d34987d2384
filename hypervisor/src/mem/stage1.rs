// SPDX-License-Identifier: Apache-2.0 OR MIT
//! EL2's own address space: everything at its physical address, each part with its rights and no
//! more: text RX, read-only data RO, everything else RW and never executable, stacks over unmapped
//! guard pages, devices as device memory. Built once at boot (crate `aarch64-paging`).

use core::ops::Range;
use core::ptr::NonNull;

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El23Attributes, PhysicalAddress};
use aarch64_paging::paging::{Constraints, El2, MemoryRegion, PageTable, Translation};
use gzvm_core::addr::PAGE_SIZE;
use gzvm_core::fdt::machine::Region;

use super::pool;
use crate::arch::{barrier, cpu, sysreg};

const DEVICE: El23Attributes =
    El23Attributes::VALID.union(El23Attributes::ACCESSED).union(El23Attributes::XN);
const NORMAL: El23Attributes = El23Attributes::VALID
    .union(El23Attributes::ACCESSED)
    .union(El23Attributes::INNER_SHAREABLE)
    .union(El23Attributes::ATTRIBUTE_INDEX_1);
const DATA: El23Attributes = NORMAL.union(El23Attributes::XN);
const RODATA: El23Attributes = DATA.union(El23Attributes::READ_ONLY);
const TEXT: El23Attributes = NORMAL.union(El23Attributes::READ_ONLY);

/// Root level for 48-bit addresses.
const ROOT_LEVEL: usize = 0;
/// SCTLR_EL2.WXN: writable means not executable.
const SCTLR_WXN: u64 = 1 << 19;

/// What the provisional map of `entry.S` covers.
pub const BOOT_MAP_SIZE: u64 = 512 << 30;

/// Makes all RAM normal memory in the provisional map, in which `entry.S` could only know the image
/// and the device tree to be RAM.
pub fn extend_boot_map(banks: &[Region]) {
    unsafe extern "C" {
        static mut boot_l1: [u64; 512];
    }
    const NORMAL_BLOCK: u64 = 0x705;
    for bank in banks.iter().filter(|b| b.base < BOOT_MAP_SIZE) {
        for gib in bank.base >> 30..=bank.end().min(BOOT_MAP_SIZE).wrapping_sub(1) >> 30 {
            let entry = (&raw mut boot_l1).cast::<u64>().wrapping_add(gib as usize & 511);
            // SAFETY: this table is walked by this CPU only and written by nobody else; the entry is
            // broken before it is remade, and nothing here lives in memory that was not normal.
            unsafe {
                if entry.read_volatile() & 0xFFF == NORMAL_BLOCK {
                    continue;
                }
                entry.write_volatile(0);
                barrier::tlbi_alle2();
                entry.write_volatile(gib << 30 | NORMAL_BLOCK);
            }
        }
    }
    barrier::tlbi_alle2();
}

struct FromPool;

impl Translation<El23Attributes> for FromPool {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El23Attributes>>, PhysicalAddress) {
        // Boot is the only caller; a machine without room for its own tables can't go on.
        let Ok(page) = pool::alloc(1, 1) else { panic!("no memory for the hypervisor's own tables") };
        (self.physical_to_virtual(PhysicalAddress(page.0 as usize)), PhysicalAddress(page.0 as usize))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<El23Attributes>>) {
        pool::free(gzvm_core::addr::Pa(table.as_ptr() as u64), 1);
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El23Attributes>> {
        match NonNull::new(pa.0 as *mut PageTable<El23Attributes>) {
            Some(p) => p,
            None => panic!("a table at address zero"),
        }
    }
}

unsafe extern "C" {
    static image_start: u8;
    static image_text_end: u8;
    static image_rodata_end: u8;
    static image_boot_stack_guard: u8;
    static image_boot_stack_top: u8;
    static image_end: u8;
    fn replace_map(ttbr: u64, mair: u64, tcr: u64, sctlr: u64);
}

fn address(symbol: *const u8) -> u64 {
    symbol as u64
}

/// The image in memory, BSS included.
pub fn image() -> Region {
    let (start, end) = (address(&raw const image_start), address(&raw const image_end));
    Region { base: start, size: end.saturating_sub(start) }
}

/// The stack of the first CPU's boot: first byte, and the byte behind.
pub fn boot_stack() -> Range<u64> {
    address(&raw const image_boot_stack_guard) + PAGE_SIZE..address(&raw const image_boot_stack_top)
}

/// The map being built.
pub struct Builder {
    mapping: Mapping<FromPool, El2>,
}

impl Builder {
    /// An empty map.
    pub fn new() -> Self {
        Self { mapping: Mapping::new(FromPool, ROOT_LEVEL, El2) }
    }

    fn map(&mut self, region: Region, attributes: El23Attributes) {
        let range = MemoryRegion::new(region.base as usize, region.end() as usize);
        let pa = PhysicalAddress(range.start().0);
        if let Err(e) = self.mapping.map_range(&range, pa, attributes, Constraints::NO_CONTIGUOUS_HINT) {
            panic!("can't map {:#x}+{:#x}: {e:?}", region.base, region.size);
        }
    }

    /// RAM: read and write.
    pub fn ram(&mut self, region: Region) {
        self.map(region, DATA);
    }

    /// Device registers.
    pub fn device(&mut self, region: Region) {
        self.map(region, DEVICE);
    }

    /// The image's parts, over the RAM it lies in.
    pub fn image(&mut self) {
        let (start, text_end, rodata_end, guard) = (
            address(&raw const image_start),
            address(&raw const image_text_end),
            address(&raw const image_rodata_end),
            address(&raw const image_boot_stack_guard),
        );
        self.map(Region { base: start, size: text_end.saturating_sub(start) }, TEXT);
        self.map(Region { base: text_end, size: rodata_end.saturating_sub(text_end) }, RODATA);
        self.unmap_page(guard);
    }

    /// Makes a page fault.
    pub fn unmap_page(&mut self, base: u64) {
        self.map(Region { base, size: PAGE_SIZE }, El23Attributes::empty());
    }

    /// Uses the map from now on, for good. Returns TTBR0_EL2.
    pub fn activate(self) -> u64 {
        let root = self.mapping.root_address().0 as u64;
        self.mapping.mark_active();
        core::mem::forget(self.mapping);
        barrier::dsb_sy();
        let (mair, tcr, sctlr) = cpu::stage1_registers();
        // Tables were written with caches on and are walked as cacheable memory; the switch runs
        // with stage 1 off for a moment, on an identity map.
        let image = image();
        barrier::clean_invalidate(image.base as usize, image.size as usize);
        // SAFETY: both maps are identity maps that hold the image, its stack and its data.
        unsafe { replace_map(root, mair, tcr, sctlr | SCTLR_WXN) };
        let _ = sysreg::read!("sctlr_el2");
        root
    }
}
