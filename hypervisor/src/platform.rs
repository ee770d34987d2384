// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What boot found out, for everybody: CPUs, GIC, timers. Written once.

use arrayvec::ArrayVec;
use gzvm_core::fdt::machine::{Gic, MAX_CPUS, TimerPpis};
use gzvm_core::memory::ownership::Ownership;
use spin::Once;

use crate::arch::lock::Mutex;

use crate::arch::gic::CpuGic;
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
static CPU_GICS: Mutex<[Option<CpuGic>; MAX_CPUS]> = Mutex::new([None; MAX_CPUS]);

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

/// Remembers a CPU's part of the GIC.
pub fn set_cpu_gic(index: usize, gic: CpuGic) {
    if let Some(slot) = CPU_GICS.lock().get_mut(index) {
        *slot = Some(gic);
    }
}

/// List registers that every CPU started so far has: a vCPU may move between them.
pub fn fewest_lrs() -> usize {
    CPU_GICS.lock().iter().flatten().map(|g| g.nr_lrs).min().unwrap_or(1)
}

/// The CPU with these affinity fields.
pub fn cpu_by_mpidr(mpidr: u64) -> Option<&'static PerCpu> {
    get().cpus.iter().copied().find(|c| c.mpidr == mpidr & 0xFF_00FF_FFFF)
}
