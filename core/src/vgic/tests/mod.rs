// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Tests of the virtual GIC.
//!
//! - [`cpu`]: a simulated virtual CPU interface, the part of the hardware that works on list registers.
//! - [`oracle`]: a GICv3 without list registers, written for clarity, knowing nothing of the rest.
//! - [`machine`]: vCPUs on simulated CPUs, and an EL2 that flushes, syncs and kicks.
//! - [`property`]: random operations on machine and oracle; [`late`]: with kicks that come late. [`random`]: how
//!   such runs are repeated.
//! - [`abuse`]: any call with any argument. [`invariants`]: what must hold after each step.
//! - [`directed`]: the cases in which others failed. [`registers`]: register by register, and sweeps.

mod abuse;
mod cpu;
mod directed;
mod invariants;
mod late;
mod machine;
mod oracle;
mod property;
mod random;
mod registers;

/// Boxes of a PC.
pub struct Heap;

impl crate::vgic::Memory for Heap {
    type Box<T> = Box<T>;
}

type Vgic = crate::vgic::Vgic<Heap>;
