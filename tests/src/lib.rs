// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tests: one emulated machine, one named test, pass or fail by what its console says.
//!
//! A test is a small function that describes a [`machine::Machine`], starts it, and talks to it through a
//! [`console::Console`] with deadlines. Whatever runs inside reports with [`results`] lines. The whole console of every
//! machine is kept in `target/gz/logs/NAME.log`, and removed when the test passes.
//!
//! Neighbours: `cargo xtask` builds the parts (hypervisor, driver, VMM, initial RAM disks), then calls
//! [`harness::run`] with a tier and a filter. `cargo xtask run` uses the same [`machine`], so what a person sees is what is
//! tested.

pub mod benchmark;
pub mod cases;
pub mod console;
pub mod cpio;
pub mod harness;
pub mod initrd;
pub mod layout;
pub mod machine;
pub mod modules;
pub mod qcow2;
pub mod results;
