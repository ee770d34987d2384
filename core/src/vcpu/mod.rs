// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU as far as it is logic: what an exit means ([`syndrome`]), and the MMIO access that waits
//! for its answer ([`mmio`]). Registers and the world switch are in `hypervisor/`.

pub mod decode;
pub mod mmio;
pub mod syndrome;
