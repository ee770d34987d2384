// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The fuzz targets of `fuzz/src/firmware.rs`, replayed.

#[path = "../../../fuzz/src/firmware.rs"]
mod firmware;
#[path = "../../../fuzz/src/replay.rs"]
mod replay;

use std::path::Path;

#[test]
fn corpora_and_what_is_near_them() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, body) in firmware::TARGETS {
        replay::replay(&corpus, name, 1000, body);
    }
}
