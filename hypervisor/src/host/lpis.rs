// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Where devices are kept from memory that is not the host's, the GIC is too: see `gzvm_core::platform::redistributor`. ITSs are
//! withheld as a whole (`gzvm_core::fdt::dma`).

use arrayvec::ArrayVec;
use gzvm_core::addr::{Ipa, PAGE_SIZE};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::fdt::machine::{Gic, MAX_CPUS, Region};
use gzvm_core::platform::redistributor::{is_valid, load, store};
use gzvm_core::vcpu::mmio::PendingLoad;
use gzvm_core::vcpu::syndrome::DataAccess;
use spin::Once;

use crate::arch::frame::HostFrame;
use crate::arch::gic::{self, Redistributor};

/// Most ranges that are withheld: RD_base of each CPU, and its frames for virtual LPIs.
pub const MAX_WITHHELD: usize = 2 * MAX_CPUS;

static TRAPPED: Once<ArrayVec<Redistributor, MAX_CPUS>> = Once::new();

/// Traps the host's accesses to the GIC's table registers. What to withhold for that.
pub fn init(gic: &Gic) -> ArrayVec<Region, MAX_WITHHELD> {
    let found = TRAPPED.call_once(|| gic::redistributors(gic).take(MAX_CPUS).collect());
    let pages = found.iter().map(|r| Region { base: r.base, size: PAGE_SIZE });
    pages.chain(found.iter().filter_map(|r| r.virtual_lpis)).take(MAX_WITHHELD).collect()
}

/// Does the host's access at `ipa`, if it is one of those. Whether it was.
pub fn access(frame: &mut HostFrame, ipa: Ipa, access: DataAccess) -> bool {
    let offset = ipa.0 & (PAGE_SIZE - 1);
    let Some(redistributor) = TRAPPED.get().and_then(|all| all.iter().find(|r| r.base == ipa.0 - offset))
    else {
        return false;
    };
    if !is_valid(offset, access.size) {
        return false;
    }
    let registers = redistributor.frame;
    match PendingLoad::of(access) {
        None => {
            let value = frame.x.get(usize::from(access.rt)).copied().unwrap_or(0);
            if let Some(value) = store(offset, access.size, value) {
                registers.write32(offset, value);
            } else if broken(Mistake::GicTables) {
                registers.write32(offset, value as u32);
            }
        }
        Some(pending) => {
            let value = match access.size {
                8 => registers.read64(offset),
                _ => registers.read32(offset).into(),
            };
            let (register, value) = pending.complete(load(offset, value));
            if let Some(x) = frame.x.get_mut(usize::from(register)) {
                *x = value;
            }
        }
    }
    frame.step();
    true
}
