// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Functions on other CPUs.
//!
//! [`start`] turns a CPU on by PSCI; the CPU runs the function and turns itself off; [`join`]
//! waits for that. So every use also tests CPU_ON and CPU_OFF.
//!
//! ```text
//!   Off --start--> Starting --CPU--> Running --function returns--> Done --CPU_OFF seen--> Off
//! ```

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};

use crate::{MAX_CPUS, arch, boot, machine, psci, timer};

const OFF: u8 = 0;
const STARTING: u8 = 1;
const RUNNING: u8 = 2;
const DONE: u8 = 3;

static STATE: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(OFF) }; MAX_CPUS];
static FUNCTION: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];

/// How long a CPU may take to come up or go down.
const PATIENCE_MS: u64 = 20_000;

/// How many CPUs there are.
pub fn count() -> usize {
    machine::get().cpus.len()
}

/// Runs `f` on CPU `cpu`, which must be off.
///
/// # Errors
/// What PSCI said, or -100 if the CPU did not come up.
pub fn start(cpu: usize, f: fn()) -> Result<(), i32> {
    FUNCTION[cpu].store(f as usize, SeqCst);
    STATE[cpu].store(STARTING, SeqCst);
    let result = psci::cpu_on(machine::get().cpus[cpu], boot::secondary_entry(), cpu as u64);
    if result != 0 {
        STATE[cpu].store(OFF, SeqCst);
        return Err(result);
    }
    if timer::wait_ms(PATIENCE_MS, || STATE[cpu].load(SeqCst) >= RUNNING) { Ok(()) } else { Err(-100) }
}

/// Waits until the function on CPU `cpu` has returned and the CPU is off.
///
/// # Errors
/// -101 if the function does not return, -102 if the CPU does not turn off.
pub fn join(cpu: usize) -> Result<(), i32> {
    if !timer::wait_ms(PATIENCE_MS, || STATE[cpu].load(SeqCst) == DONE) {
        return Err(-101);
    }
    let mpidr = machine::get().cpus[cpu];
    if !timer::wait_ms(PATIENCE_MS, || psci::affinity_info(mpidr) == psci::AFFINITY_OFF) {
        return Err(-102);
    }
    STATE[cpu].store(OFF, SeqCst);
    Ok(())
}

pub(crate) fn secondary(cpu: usize) -> ! {
    STATE[cpu].store(RUNNING, SeqCst);
    let f = FUNCTION[cpu].load(SeqCst);
    // SAFETY: `start` stored a function of this type.
    let f: fn() = unsafe { core::mem::transmute(f) };
    f();
    arch::irq_disable();
    STATE[cpu].store(DONE, SeqCst);
    psci::cpu_off()
}

/// Whether CPU `cpu` is off for the kit.
pub fn is_off(cpu: usize) -> bool {
    STATE[cpu].load(SeqCst) == OFF
}

/// As [`join`], for a CPU whose function may still run: false then.
pub fn join_if_done(cpu: usize) -> bool {
    if STATE[cpu].load(SeqCst) == DONE {
        return join(cpu).is_ok();
    }
    is_off(cpu)
}
