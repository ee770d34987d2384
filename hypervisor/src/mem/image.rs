// SPDX-License-Identifier: Apache-2.0 OR MIT
//! An image that the boot loader left in memory, kept in pages of the hypervisor.

use gzvm_core::addr::{PAGE_SIZE, Pa, VmId};
use gzvm_core::fdt::machine::Region;
use gzvm_core::memory::PaRange;
use gzvm_core::memory::ownership::State;

use super::pool;
use crate::platform;

/// A copy, for the life of the system.
pub struct Image {
    bytes: &'static [u8],
}

impl Image {
    /// Copies a module of the boot loader that is at most `limit` bytes. At boot only, before the host runs.
    pub fn keep(module: Region, limit: u64) -> Result<Self, &'static str> {
        if module.size == 0 || module.size > limit {
            return Err("its size is out of range");
        }
        let pages = module.size.div_ceil(PAGE_SIZE) as usize;
        let copy = pool::alloc(pages, 1).map_err(|_| "there is no room for it")?;
        // SAFETY: a module named by the boot loader, which is trusted, in RAM, which is mapped; the pages are fresh, ours,
        // and never freed.
        let bytes = unsafe {
            core::ptr::copy_nonoverlapping(module.base as *const u8, copy.0 as *mut u8, module.size as usize);
            core::slice::from_raw_parts(copy.0 as *const u8, module.size as usize)
        };
        Ok(Self { bytes })
    }

    /// The image.
    pub const fn bytes(&self) -> &'static [u8] {
        self.bytes
    }

    /// Fills a page that is VM `vm`'s alone, and not mapped yet, with what is `offset` bytes into the image; behind its
    /// end with zeros. False if the page is not the VM's.
    pub fn copy_to(&self, vm: VmId, offset: u64, page: PaRange) -> bool {
        let Pa(to) = page.start();
        if page.size() != PAGE_SIZE || platform::ownership().lock().state(Pa(to)) != Ok(State::Vm(vm)) {
            return false;
        }
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let part = rest.get(..PAGE_SIZE as usize).unwrap_or(rest);
        // SAFETY: a whole page of RAM, the VM's alone: neither the host nor, not being mapped, the VM reaches it.
        unsafe {
            super::zero(to, PAGE_SIZE);
            core::ptr::copy_nonoverlapping(part.as_ptr(), to as *mut u8, part.len());
        }
        true
    }
}
