// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The benchmark guest: what operations of a virtual machine cost, in ticks of the counter.
//!
//! Meant for QEMU with `-icount shift=0,sleep=off` and a 1 GHz counter, where a tick is an
//! instruction. The operations are those of kvm-unit-tests' arm micro-bench, so that the figures
//! can be put beside that program's: each iteration is timed by itself with the virtual counter,
//! the cost of an empty iteration is subtracted. One line an operation:
//!
//! ```text
//!   [BENCH] operation=NAME instructions=MEAN min=N max=N iterations=N
//! ```
//! Boot arguments: `iterations=N` (default 1000), `filter=A,B` (operations, by name),
//! `device=ADDRESS` (the VMM's test device, default 0x90000), `timer-ticks=N` (how far ahead the timer
//! is set, default 100000). `calls=serve` and `calls=call` are the two ends of a channel instead, see [`calls`];
//! `faults=4k` and `faults=2m` are memory's first touches, see [`faults`];
//! `vcpus=start` is what another vCPU costs, see [`vcpus`]. `sleep=1` does nothing for ever.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod faults;
#[cfg(target_os = "none")]
mod operations;
#[cfg(target_os = "none")]
mod vcpus;

#[cfg(target_os = "none")]
gzvm_guest_kit::entry!(operations::main);

/// Runs on bare metal only.
#[cfg(not(target_os = "none"))]
fn main() {}
