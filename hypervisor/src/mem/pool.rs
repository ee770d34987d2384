// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The hypervisor's pages: everything it needs at run time (tables, VMs, vCPUs, stacks) comes from
//! here, zeroed, and goes back here.

use crate::arch::lock::Mutex;
use gzvm_core::addr::{PAGE_SIZE, Pa};
use gzvm_core::memory::PaRange;
use gzvm_core::memory::pool::Pool;

pub use gzvm_core::memory::pool::Account;

static POOL: Mutex<Option<Pool<'static>>> = Mutex::new(None);

/// The pool has no such run of pages left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// Hands the pool its memory.
pub fn init(pool: Pool<'static>) {
    *POOL.lock() = Some(pool);
}

/// `pages` contiguous zeroed pages, aligned to `align` pages.
pub fn alloc(pages: usize, align: usize) -> Result<Pa, Exhausted> {
    let run = {
        let mut pool = POOL.lock();
        pool.as_mut().ok_or(Exhausted)?.alloc(pages as u64, align as u64).map_err(|_| Exhausted)?
    };
    // SAFETY: the run is ours alone as of now, and pool memory is mapped RAM.
    unsafe { super::zero(run.start().0, run.size()) };
    Ok(run.start())
}

/// Takes a run back.
pub fn free(start: Pa, pages: usize) {
    let Ok(run) = PaRange::new(start, (pages as u64).wrapping_mul(PAGE_SIZE)) else { return };
    if let Some(pool) = POOL.lock().as_mut()
        && let Err(e) = pool.free(run)
    {
        log::error!("pool: {e} (hypervisor bug; the pages are lost)");
    }
}

/// Pages in use, and all pages.
pub fn usage() -> (u64, u64) {
    POOL.lock().as_ref().map_or((0, 0), |p| (p.used_pages(), p.range().pages()))
}
