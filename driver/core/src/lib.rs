// SPDX-License-Identifier: GPL-2.0-only
//! The logic of `gzvm.ko`: `/dev/gzvm` over the GenieZone hypervisor's hypercalls.
//!
//! - [`entry`]: what the kernel calls; turns pointers into objects.
//! - [`device`]: probing the hypervisor, and the ioctls of `/dev/gzvm` itself.
//! - [`vm`]: a VM, its ioctls, its end. [`vcpu`]: a vCPU and its run loop.
//! - [`memory`]: slots, demand paging; [`pins`]: which page of the host lies under which of the guest; [`guest_memory`]: memory
//!   that is a file, and leaves user space when it becomes a protected VM's.
//! - [`ioeventfd`], [`irqfd`]: eventfds signalled by guest writes, and interrupts raised by eventfds.
//! - [`channel`]: calls between VMs, and between VMs and the host.
//! - [`hypercall`]: the calls, and how their status becomes an errno.
//! - [`kernel`]: safe types over the C shim, named like those of the kernel's own Rust crate.
//!
//! Invariants:
//! - A page of the host that the hypervisor may have mapped stays pinned until the guest gives it
//!   back or DESTROY_VM has succeeded. If that call fails, the pages are leaked on purpose.
//! - No allocation is infallible, and each failing step undoes the steps before it.
//! - Lock order: vCPU creation or a vCPU's run lock, then memory, then a file of guest memory. The lists of irqfds,
//!   ioeventfds and channels, and a channel's pages, stand alone.
//!
//! Unsafe code is in [`kernel`] and [`entry`] alone. Tests replace the shim ([`sys`]) by a fake.

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

mod broken;
mod channel;
mod counters;
mod device;
#[expect(unsafe_code, reason = "the C side's pointers")]
pub mod entry;
mod guest_memory;
mod hypercall;
mod ioeventfd;
mod irqfd;
#[expect(unsafe_code, reason = "the C side's services")]
mod kernel;
mod memory;
mod pins;
#[cfg(not(test))]
#[expect(unsafe_code, reason = "foreign functions")]
mod sys;
#[cfg(test)]
#[path = "fake/mod.rs"]
#[expect(unsafe_code, reason = "stands in for C")]
mod sys;
mod tables;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;

/// A Rust panic is a bug of the driver: the kernel's BUG takes it from here.
#[cfg(all(not(test), target_os = "none"))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    kernel::bug(info)
}
