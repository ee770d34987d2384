// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The logic of the hypervisor, without hardware.
//!
//! Everything that decides lives here; everything that touches the machine lives in `hypervisor/`.
//! No unsafe code, no allocation, no panic that a guest or the host can reach. Builds and tests
//! natively.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod addr;
pub mod broken;
pub mod fdt;
pub mod memory;
pub mod platform;
pub mod rpc;
pub mod smmu;
pub mod vcpu;
pub mod vgic;
pub mod vm;
