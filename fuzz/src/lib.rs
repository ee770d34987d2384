// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is fuzzed: see [`bodies`], [`devices`], [`vsock`] and [`firmware`], which `fuzz_corpus.rs` in `core/tests`, `vmm/tests` and
//! `firmware/verify/tests` runs over the committed corpora too.

pub mod bodies;
pub mod devices;
pub mod firmware;
pub mod vsock;
