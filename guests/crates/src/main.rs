// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A kernel made of other people's crates, as they come from the registry: start-up, MMU and exceptions by aarch64-rt, interrupt
//! controller by arm-gic, timer by arm-sysregs, PSCI by smccc, console by uart_16550. They were written for other machines and
//! other hypervisors; here they must find what they expect. Two CPUs, for `gz run --kernel`.
//!
//! Neighbours: nothing of this repository; its addresses are those of gz's map (crosvm's).

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod kernel;

/// Runs on bare metal only.
#[cfg(not(target_os = "none"))]
fn main() {}
