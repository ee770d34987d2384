// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the firmware of a protected VM checks before it starts a payload, as pure code: the host may have written every
//! byte of it. Once read, a page is the VM's own, so nothing changes under the checks.
//!
//! - [`images`]: whether bytes are an image that was signed;
//! - [`manifest`]: the signed description at the end of a kernel, and how it is made;
//! - [`tree`]: the device tree; what it tells of becomes a [`tree::Plan`].
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

pub mod broken;
pub mod images;
pub mod manifest;
pub mod tree;
