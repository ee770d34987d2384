// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gz`: a virtual machine monitor for GenieZone, and for KVM.
//!
//! ```text
//!   cli ──► vm ──► loader, fdt ──► memory (guest RAM)
//!            │
//!            ├──► hypervisor { gzvm | kvm } : VM, vCPUs, irqfd, ioeventfd
//!            ├──► vcpu : a thread per vCPU, exits ──► bus ──► devices
//!            ├──► backends : what is behind virtio devices on the host
//!            ├──► console, terminal, signals, events
//!            ├──► sandbox : before anything else runs than the main thread
//!            ├──► rpc : channels that the hypervisor carries, made for those who ask at the control socket
//!            └──► control : name and socket  ◄── commands : gz ps, pause, console …
//! ```
//!
//! [`layout`] is the guest's address map, [`exit`] the table of exit codes. The guest is not
//! trusted: whatever it writes to a device ends in an error value, a log line, or the end of its own
//! VM. Unsafe code is at the edges: ioctls and mappings ([`hypervisor`], [`memory`]), file I/O on
//! guest memory ([`devices::virtio::blk::backend`]), terminal and signals.

pub mod backends;
mod broken;
pub mod bus;
pub mod cli;
pub mod commands;
pub mod console;
pub mod control;
pub mod devices;
pub mod events;
pub mod exit;
pub mod fdt;
pub mod hypervisor;
pub mod layout;
pub mod loader;
pub mod memory;
pub mod progress;
pub mod rpc;
pub mod sandbox;
pub mod sign;
pub mod signals;
pub mod terminal;
pub mod vcpu;
pub mod vm;
pub mod watch;
