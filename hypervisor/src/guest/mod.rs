// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests: the VMs that exist ([`registry`]), what a VM is made of ([`vm`], [`memory`], [`vcpu`]), running a vCPU
//! ([`run`], [`quick`]) until the host has to know ([`outcome`]), how it ends ([`life`]), and watching its exceptions ([`watch`]).
//!
//! # Locks
//! A VM is used under the read side of its registry slot, for the whole of a hypercall, RUN
//! included; it is taken apart under the write side, which is only ever tried: DESTROY_VM answers
//! "busy" while anybody is inside. Inside a VM, each of memory, vGIC, power and each vCPU has a lock
//! of its own; they nest in the order vCPU, memory, ownership, power, vGIC; the lifecycle's is a leaf, and so is that of [`images`]. What VMs lend to each
//! other ([`lending`]) comes behind memory, and the memory of a second VM is only tried. A vCPU's lock is held
//! while it runs and only ever tried, so a second RUN of the same vCPU is refused, not queued.

mod calls;
mod emulate;
mod exits;
pub mod firmware;
mod images;
mod lending;
pub mod life;
mod measure;
pub mod memory;
pub mod one_reg;
pub mod outcome;
pub mod private;
mod quick;
pub mod random;
pub mod registry;
pub mod rpc;
pub mod run;
mod sleep;
mod sysreg;
mod timer;
pub mod vcpu;
pub mod vm;
pub mod watch;
