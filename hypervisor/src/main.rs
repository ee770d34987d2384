// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The GenieZone hypervisor: the EL2 image.
//!
//! ```text
//!   entry.S --> boot.rs --> host/ (the host VM, its traps)
//!                              |  HVC
//!                          hypercall/ (one service a file) --> guest/ (VMs, vCPUs, the run loop)
//!                              |                                  |
//!               gzvm-core: all decisions (memory, vgic, platform, vcpu)
//!                              |                                  |
//!                            mem/  arch/   (the only unsafe code)
//! ```
//!
//! Principles: exits are values, matched in one place; what comes from outside is copied once and
//! checked; nothing a host or guest does may panic; every lock is held for a bounded time, and they
//! nest as `guest/mod.rs` says.

#![no_std]
#![no_main]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]
#![warn(missing_docs)]

mod arch;
mod boot;
mod console;
mod guest;
mod host;
mod hypercall;
mod mem;
mod panic;
mod platform;
