// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The fuzz targets (`fuzz/`) over their committed corpora, and over mutations of these.

#[path = "../../fuzz/src/bodies.rs"]
mod bodies;

#[path = "../../fuzz/src/replay.rs"]
mod replay;

use std::path::Path;

#[test]
fn corpora_and_what_is_near_them() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, body) in bodies::TARGETS {
        replay::replay(&corpus, name, 100, body);
    }
}
