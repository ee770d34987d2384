// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The test guest: what a virtual machine must look like from inside.
//!
//! Runs as a guest of `gz` (gzvm or KVM), and directly on QEMU without EL2, which validates the
//! tests against an emulated real machine. Boot arguments:
//!
//! - `filter=A,B`: only cases whose name contains A or B.
//! - `hyp=gzvm|kvm|none`: what is below, where a case expects something of one of them only.
//!   Without it: `none` if there is no vendor hypervisor UID.
//! - `granule=16|64`: runs on pages of so many KiB, if the CPU has them.
//! - `given=sve`: the VM was given SVE.
//! - `crash=NAME`: no cases; the guest ends in the way that [`crash`] describes.

#![cfg_attr(target_os = "none", no_std, no_main)]
// A failure carries its text: there is no heap, and failures are rare.
#![allow(clippy::result_large_err)]

#[cfg(target_os = "none")]
mod branch;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod debug;
#[cfg(target_os = "none")]
mod decoded;
#[cfg(target_os = "none")]
mod devices;
#[cfg(target_os = "none")]
mod firmware;
#[cfg(target_os = "none")]
mod gic_registers;
#[cfg(target_os = "none")]
mod gic_sweep;
#[cfg(target_os = "none")]
mod granules;
#[cfg(target_os = "none")]
mod hashes;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod power;
#[cfg(target_os = "none")]
mod ptimer;
#[cfg(target_os = "none")]
mod registers;
#[cfg(target_os = "none")]
mod sgi;
#[cfg(target_os = "none")]
mod suspend;
#[cfg(target_os = "none")]
mod sve;
#[cfg(target_os = "none")]
mod sweep;
#[cfg(target_os = "none")]
mod sysregs;
#[cfg(target_os = "none")]
mod time;
#[cfg(target_os = "none")]
mod util;

#[cfg(target_os = "none")]
gzvm_guest_kit::entry!(guest);

#[cfg(target_os = "none")]
fn guest() {
    use gzvm_guest_kit::{case, gic, machine, println, smp};

    println!("gzvm test guest: {} CPUs, below: {:?}", smp::count(), util::below());
    if let Some(how) = machine::get().arg("crash") {
        return crash::run(how);
    }
    gic::init_distributor();
    gic::init_cpu();
    case::run(&[
        granules::CASES,
        registers::CASES,
        branch::CASES,
        sve::CASES,
        sysregs::CASES,
        sweep::CASES,
        debug::CASES,
        firmware::CASES,
        hashes::CASES,
        power::CASES,
        suspend::CASES,
        devices::CASES,
        decoded::CASES,
        time::CASES,
        ptimer::CASES,
        sgi::CASES,
        interrupts::CASES,
        gic_registers::CASES,
        gic_sweep::CASES,
        memory::CASES,
    ]);
}

/// Runs on bare metal only.
#[cfg(not(target_os = "none"))]
fn main() {}
