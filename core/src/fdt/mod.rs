// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The device tree: what machine this is ([`machine`]), and the tree the host gets to see
//! ([`host_tree`]).
//!
//! The tree comes from the boot loader and is trusted as far as the boot loader is; malformed ones
//! are errors, not panics (`dtoolkit` validates the whole blob before anything here reads it).

mod device;
pub mod dma;
pub mod host_tree;
pub mod machine;
pub mod placement;
pub mod writer;
