// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What boot found out, for everybody: CPUs, GIC, timers. Written once.

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arrayvec::ArrayVec;
use gzvm_core::fdt::machine::{Gic, MAX_CPUS, TimerPpis};
use gzvm_core::memory::ownership::Ownership;
use spin::Once;

use crate::arch::lock::Mutex;

use crate::arch::percpu::PerCpu;

/// The machine, as the run-time parts need it.
pub struct Platform {
    /// GICv3.
    pub gic: Gic,
    /// Timer interrupts.
    pub timers: TimerPpis,
    /// Per-CPU blocks in device-tree order.
    pub cpus: ArrayVec<&'static PerCpu, MAX_CPUS>,
    /// Whether firmware answers SMCs.
    pub firmware: bool,
    /// Whether firmware has random numbers.
    pub firmware_trng: bool,
}

static PLATFORM: Once<Platform> = Once::new();
static OWNERSHIP: Once<Mutex<Ownership<'static>>> = Once::new();
/// [`fewest_lrs`].
static FEWEST_LRS: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Publishes the machine.
pub fn init(platform: Platform, ownership: Ownership<'static>) {
    PLATFORM.call_once(|| platform);
    OWNERSHIP.call_once(|| Mutex::new(ownership));
}

/// The machine. EL2 serves nobody before it is published.
pub fn get() -> &'static Platform {
    match PLATFORM.get() {
        Some(p) => p,
        None => panic!("used before boot was done"),
    }
}

/// Who owns which page.
pub fn ownership() -> &'static Mutex<Ownership<'static>> {
    match OWNERSHIP.get() {
        Some(o) => o,
        None => panic!("used before boot was done"),
    }
}

/// Remembers how many list registers a CPU that starts has.
pub fn set_lrs(count: usize) {
    FEWEST_LRS.fetch_min(count, Relaxed);
}

/// List registers that every CPU started so far has: a vCPU may move between them.
pub fn fewest_lrs() -> usize {
    match FEWEST_LRS.load(Relaxed) {
        usize::MAX => 1,
        count => count,
    }
}

/// The CPU with these affinity fields.
pub fn cpu_by_mpidr(mpidr: u64) -> Option<&'static PerCpu> {
    get().cpus.iter().copied().find(|c| c.mpidr == mpidr & 0xFF_00FF_FFFF)
}
