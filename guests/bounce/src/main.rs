// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A bare-metal guest of a protected VM that has a disk: what a service needs, and how little that is.
//!
//! Virtio by crate virtio-drivers, over the memory that the firmware has shared with the host
//! ([`gzvm_guest_kit::bounce`]). The disk is the one of `cargo xtask run`: ext2, with a greeting in a file.

#![cfg_attr(target_os = "none", no_std, no_main)]
// A failure carries its text: there is no heap, and failures are rare.
#![allow(clippy::result_large_err)]

#[cfg(target_os = "none")]
mod cases;

#[cfg(target_os = "none")]
gzvm_guest_kit::entry!(run);

#[cfg(target_os = "none")]
fn run() {
    gzvm_guest_kit::case::run(&[cases::CASES]);
}

#[cfg(not(target_os = "none"))]
fn main() {
    println!("This is a guest: it runs in a virtual machine.");
}
