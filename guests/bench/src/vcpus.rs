// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What another vCPU costs, by how many are there: `vcpus=start` starts them one after the other; those that have started sleep. At the end
//! all wake up and turn themselves off.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use gzvm_guest_kit::{arch, gic, println, smp, timer};

use super::operations::{Bench, Cost};

const SGI: u32 = 1;
/// For vCPUs that find out that they are to end.
const PATIENCE_MS: u64 = 20_000;

static ALIVE: AtomicUsize = AtomicUsize::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

/// Starts all vCPUs, and ends them.
pub fn main(bench: &Bench) {
    gic::init_distributor();
    gic::init_cpu();
    let count = smp::count();
    let mut cost = Cost::NONE;
    for cpu in 1..count {
        let start = timer::now();
        if let Err(code) = smp::start(cpu, sleeper) {
            return println!("[FAIL] vcpu-start: CPU {cpu} does not start ({code})");
        }
        cost.add(timer::now() - start);
    }
    if !timer::wait_ms(PATIENCE_MS, || ALIVE.load(SeqCst) == count - 1) {
        return println!("[FAIL] vcpu-start: {} of {count} CPUs are there", ALIVE.load(SeqCst) + 1);
    }
    STOP.store(true, SeqCst);
    gic::send_sgi_others(SGI);
    for cpu in 1..count {
        if let Err(code) = smp::join(cpu) {
            return println!("[FAIL] vcpu-start: CPU {cpu} does not end ({code})");
        }
    }
    if count > 1 {
        bench.report("vcpu-start", cost, 0);
    }
}

/// A vCPU until the end. The interrupt stays pending: it only has to end WFI.
fn sleeper() {
    gic::init_cpu();
    ALIVE.fetch_add(1, SeqCst);
    while !STOP.load(SeqCst) {
        arch::wfi();
    }
}
