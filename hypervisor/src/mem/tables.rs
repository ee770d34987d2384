// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Stage-2 table pages and TLB maintenance, as `gzvm_core::memory::stage2` wants them.

use core::sync::atomic::{AtomicBool, Ordering};

use gzvm_core::addr::{PAGE_SIZE, Pa};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::memory::IpaRange;
use gzvm_core::memory::stage2::{OutOfTables, TableMemory, Tlb};

use super::pool::{self, Account};
use crate::arch::{barrier, sysreg, world};

/// A translation cache did not confirm that it forgot something: pages that were tables are lost from now on, for a walk may
/// still read them.
pub static STALE_WALKS: AtomicBool = AtomicBool::new(false);

/// Table pages from the pool, charged to an account; where there are none, from what the host gave for it.
pub struct Tables<'a> {
    /// Who pays.
    pub account: &'a mut Account,
}

/// A descriptor's address; `index` is below 512 by `TableMemory`'s contract, cut to be sure.
fn entry(table: Pa, index: usize) -> *mut u64 {
    (table.0 as *mut u64).wrapping_add(index & 511)
}

impl TableMemory for Tables<'_> {
    fn read(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: `table` is a page of the pool that serves as a table (only `Stage2` names tables,
        // and it takes them from `alloc_table`); hardware walkers read it concurrently, hence volatile.
        unsafe { entry(table, index).read_volatile() }
    }

    fn write(&mut self, table: Pa, index: usize, descriptor: u64) {
        barrier::dsb_ishst();
        // SAFETY: as in `read`; writers are serialised by the lock around the `Stage2`.
        unsafe { entry(table, index).write_volatile(descriptor) };
    }

    fn alloc_table(&mut self) -> Result<Pa, OutOfTables> {
        if self.account.charge(1).is_ok() {
            match pool::alloc(1, 1) {
                Ok(table) => return Ok(table),
                Err(_) => self.refund(),
            }
        }
        let table = self.account.given().take().ok_or(OutOfTables)?;
        // SAFETY: a page that the host gave, which is the hypervisor's by now, mapped RAM; it has just been free.
        unsafe { super::zero(table.0, PAGE_SIZE) };
        Ok(table)
    }

    fn free_table(&mut self, table: Pa) {
        if STALE_WALKS.load(Ordering::SeqCst) || broken(Mistake::LostTables) {
            return;
        }
        match self.account.given().put_back(table) {
            Ok(true) => {}
            Ok(false) => {
                pool::free(table, 1);
                self.refund();
            }
            Err(e) => log::error!("tables: {e} (hypervisor bug; the page is lost)"),
        }
    }
}

impl Tables<'_> {
    fn refund(&mut self) {
        if let Err(e) = self.account.refund(1) {
            log::error!("table account: {e} (hypervisor bug)");
        }
    }
}

/// TLB maintenance for one VM's tables.
pub struct VmTlb {
    /// Its root table.
    pub root: Pa,
}

impl VmTlb {
    /// Runs `f` with the VMID in VTTBR_EL2. EL2 does not translate by stage 2 itself, and the
    /// tables in force meanwhile are the ones being maintained.
    fn with_vmid(&self, vmid: u16, f: impl FnOnce()) {
        let current = sysreg::read!("vttbr_el2");
        let wanted = world::vttbr(self.root.0, vmid);
        if current != wanted {
            sysreg::write!("vttbr_el2", wanted);
            barrier::isb();
        }
        f();
        if current != wanted {
            sysreg::write!("vttbr_el2", current);
            barrier::isb();
        }
    }
}

impl Tlb for VmTlb {
    fn invalidate(&mut self, vmid: u16, range: IpaRange, _last_level_only: bool) {
        if broken(Mistake::NoVmFlush) && vmid != 0 || broken(Mistake::NoHostFlush) && vmid == 0 {
            return;
        }
        self.with_vmid(vmid, || barrier::tlbi_ipas2(range.start(), range.size()));
    }

    fn invalidate_all(&mut self, vmid: u16) {
        self.with_vmid(vmid, barrier::tlbi_vmid);
    }
}
