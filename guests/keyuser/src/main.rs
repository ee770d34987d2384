// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest that calls the key store in another VM, and looks whether it has the rights that it should have: in a protected VM
//! those of its measurement, in a plain one hardly any. Wants `gz run --rpc-to keys@VM`, and a key of the host's in the store.
//! `store=MEASUREMENT` among the boot arguments: who the store has to be.

#![cfg_attr(target_os = "none", no_std, no_main)]
// A failure carries its text: there is no heap, and failures are rare.
#![allow(clippy::result_large_err)]

#[cfg(target_os = "none")]
mod cases;

#[cfg(target_os = "none")]
gzvm_guest_kit::entry!(run);

#[cfg(target_os = "none")]
fn run() {
    gzvm_guest_kit::gic::init_distributor();
    gzvm_guest_kit::gic::init_cpu();
    gzvm_guest_kit::case::run(&[cases::CASES]);
}

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a guest: it runs in a virtual machine.");
}
