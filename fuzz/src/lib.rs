// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is fuzzed: see [`bodies`] and [`devices`], which `core/tests/fuzz_corpus.rs` and `vmm/tests/fuzz_corpus.rs` run over the
//! committed corpora too.

pub mod bodies;
pub mod devices;
