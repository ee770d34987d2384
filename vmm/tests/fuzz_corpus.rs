// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The fuzz target `devices` (`fuzz/`) over its committed corpus, and over mutations of it.

#[path = "../../fuzz/src/devices.rs"]
mod devices;
#[path = "../../fuzz/src/replay.rs"]
mod replay;

use std::path::Path;

#[test]
fn corpus_and_what_is_near_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    replay::replay(&corpus, "devices", 100, devices::devices);
}
