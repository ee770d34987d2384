// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The conformance suite at hypercall level: a case for each row of the ABI's tables, named after it
//! (`hypercall::map_guest`, `capability::enable_idle_0x9203`, `exit::mmio`, `struct::hwstate`), and the
//! call sequences of drivers (`sequence::...`).
//!
//! Layouts and numbers are written out here and not taken from `gzvm_abi`, which is under test too.
//! Every case checks that nothing of it is left in the hypervisor. `tests/src/cases/conformance.rs` has
//! the list of names that must be there; what no table demands of a host is in [`crate::abuse`].

mod capability;
mod convention;
mod exits;
mod interrupts;
mod memory;
mod play;
mod programs;
mod sequence;
mod structs;
mod vcpu;
mod vms;

use core::fmt;

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, RegionHeader, Status};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, Reply, call};
use gzvm_guest_kit::{check_eq, fail, gic, machine, skip, smp, timer};

use crate::guest_runs::{STOP, TUPLE, runs_tuple};
use crate::pages;
use crate::vm;

/// All lists.
pub const LISTS: [&[Case]; 9] = [
    convention::CASES,
    vms::CASES,
    memory::CASES,
    vcpu::CASES,
    interrupts::CASES,
    capability::CASES,
    exits::CASES,
    structs::CASES,
    sequence::CASES,
];

/// What a VM must not leave behind.
fn held() -> Result<[u64; 5], Verdict> {
    let all = [Counter::Vms, Counter::Vcpus, Counter::PoolUsed, Counter::PagesShared, Counter::PagesPrivate];
    let mut values = [0; 5];
    for (value, counter) in values.iter_mut().zip(all) {
        let Some(now) = hypercall::counter(counter) else { fail!("no counter {counter:?}") };
        *value = now;
    }
    Ok(values)
}

/// Runs a case and checks that nothing is left of it.
fn leaves_nothing(case: impl FnOnce() -> Outcome) -> Outcome {
    let before = held()?;
    let outcome = case();
    pages::reset();
    outcome?;
    check_eq!(held()?, before, "VMs, vCPUs, pool, shared and private pages that are left");
    Ok(())
}

/// The reply has exactly this status, and on an error no results.
fn answers(reply: Reply, status: Status, what: fmt::Arguments) -> Outcome {
    check_eq!(reply.x0 as u32 as i32, status as i32, "{what}: x0");
    if status != Status::Success {
        check_eq!(reply.values, [0; 3], "{what}: x1 to x3 of an error");
    }
    Ok(())
}

/// A VM without anything. Dropping it destroys it.
struct Bare {
    id: u64,
}

impl Bare {
    fn new() -> Result<Self, Verdict> {
        Ok(Self { id: vm::create_bare()?.into() })
    }

    fn tuple(&self, vcpu: u64) -> u64 {
        self.id << 16 | vcpu
    }

    /// A call with the VM's id in x1.
    fn call(&self, function: Function, args: &[u64]) -> Reply {
        let mut all = [0; 7];
        all[0] = self.id;
        all[1..=args.len()].copy_from_slice(args);
        call(function, &all)
    }

    /// SET_MEMREGION of a header at `buffer`.
    fn set_region(&self, buffer: u64, slot: u32, total_pages: u64, gpa: u64) -> Reply {
        pages::put(buffer, RegionHeader { slot, constituent_cnt: 0xDEAD_BEEF, total_pages, gpa });
        self.call(Function::SetMemregion, &[8192, buffer])
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = vm::destroy(self.id as u16);
    }
}

/// Runs a vCPU on CPU 1 until it exits with MMIO, or [`stop_second`]. Its pages must be mapped.
fn start_second(tuple: u64) -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    STOP.store(false, core::sync::atomic::Ordering::SeqCst);
    TUPLE.store(tuple, core::sync::atomic::Ordering::SeqCst);
    if let Err(code) = smp::start(1, runs_tuple) {
        fail!("CPU 1 does not start: {code}");
    }
    Ok(())
}

/// Waits for CPU 1 to end by itself.
fn second_ends(ms: u64) -> bool {
    timer::wait_ms(ms, || smp::join_if_done(1))
}

/// Makes CPU 1 end.
fn stop_second() -> Outcome {
    STOP.store(true, core::sync::atomic::Ordering::SeqCst);
    let stopped = timer::wait_ms(10_000, || {
        gic::send_sgi(machine::get().cpus[1], 1);
        timer::wait_ms(1, || false);
        smp::join_if_done(1)
    });
    if stopped { Ok(()) } else { Err(Verdict::fail(format_args!("CPU 1 does not come back from RUN"))) }
}
