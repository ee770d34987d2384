// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The CPU: registers, vectors, world switch, GIC, timer, firmware calls. One of the two places
//! with unsafe code; what it offers upwards is safe to call, or says what it asks for.

pub mod barrier;
pub mod cpu;
pub mod debug;
pub mod decision;
pub mod el1;
pub mod fp;
pub mod frame;
pub mod gic;
pub mod id;
pub mod lock;
pub mod mmio;
pub mod percpu;
#[cfg(feature = "crash-test")]
pub mod provoke;
pub mod rng;
pub mod smc;
pub mod smmu;
pub mod sysreg;
pub mod timer;
pub mod world;

core::arch::global_asm!(include_str!("entry.S"));
core::arch::global_asm!(include_str!("vectors.S"));
core::arch::global_asm!(include_str!("fp.S"));
core::arch::global_asm!(include_str!("memory.S"));
