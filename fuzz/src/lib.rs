// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is fuzzed: see [`bodies`], which `core/tests/fuzz_corpus.rs` runs over the committed corpus too.

pub mod bodies;
