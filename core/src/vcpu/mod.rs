// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU as far as it is logic: what an exit means ([`syndrome`]), the MMIO access that waits
//! for its answer ([`mmio`]), the instruction that an exit does not describe ([`decode`]), and what becomes of
//! each system register ([`registers`]). Registers and the world switch are in `hypervisor/`.

pub mod decode;
pub mod mmio;
pub mod registers;
pub mod syndrome;
