// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The test host: runs as the host VM directly on the hypervisor, in Linux's place.
//!
//! Calls the hypervisor as a driver does, and as an attacker would: environment, firmware calls,
//! arguments at their boundaries, the life of tiny VMs on one and several CPUs, leaks. Boot
//! argument `filter=A,B`: only cases whose name contains A or B.

#![cfg_attr(target_os = "none", no_std, no_main)]
// A failure carries its text: there is no heap, and failures are rare.
#![allow(clippy::result_large_err)]

#[cfg(target_os = "none")]
mod abuse;
#[cfg(target_os = "none")]
mod addresses;
#[cfg(target_os = "none")]
mod breakpoints;
#[cfg(target_os = "none")]
mod calls;
#[cfg(target_os = "none")]
mod conformance;
#[cfg(target_os = "none")]
mod crash;
#[cfg(target_os = "none")]
mod dma;
#[cfg(target_os = "none")]
mod edu;
#[cfg(target_os = "none")]
mod firmware;
#[cfg(target_os = "none")]
mod guest_runs;
#[cfg(target_os = "none")]
mod host;
#[cfg(target_os = "none")]
mod host_access;
#[cfg(target_os = "none")]
mod hostile;
#[cfg(target_os = "none")]
mod lending;
#[cfg(target_os = "none")]
mod levels;
#[cfg(target_os = "none")]
mod life;
#[cfg(target_os = "none")]
mod longest;
#[cfg(target_os = "none")]
mod measurement;
#[cfg(target_os = "none")]
mod pages;
#[cfg(target_os = "none")]
mod programs;
#[cfg(target_os = "none")]
mod protected;
#[cfg(target_os = "none")]
mod random;
#[cfg(target_os = "none")]
mod rpc;
#[cfg(target_os = "none")]
mod tables;
#[cfg(target_os = "none")]
mod tree;
#[cfg(target_os = "none")]
mod unmap;
#[cfg(target_os = "none")]
mod vectors;
#[cfg(target_os = "none")]
mod vm;
#[cfg(target_os = "none")]
mod watch;

#[cfg(target_os = "none")]
gzvm_guest_kit::entry!(host_vm);

#[cfg(target_os = "none")]
fn host_vm() {
    use gzvm_guest_kit::{ArrayVec, case, gic, println, smp};

    println!("gzvm test host: {} CPUs", smp::count());
    gic::init_distributor();
    gic::init_cpu();
    if crash::run() {
        return;
    }
    let lists = [
        host::CASES,
        calls::CASES,
        guest_runs::CASES,
        vectors::CASES,
        breakpoints::CASES,
        life::CASES,
        watch::CASES,
        random::CASES,
        unmap::CASES,
        addresses::CASES,
        levels::CASES,
        protected::CASES,
        tables::CASES,
        lending::CASES,
        rpc::CASES,
        host_access::CASES,
        dma::CASES,
        firmware::CASES,
        measurement::CASES,
        abuse::CASES,
        hostile::CASES,
        longest::CASES,
    ];
    let all: ArrayVec<&[case::Case], 32> = lists.into_iter().chain(conformance::LISTS).collect();
    case::run(&all);
}

/// Runs on bare metal only.
#[cfg(not(target_os = "none"))]
fn main() {}
