// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The fuzz targets of devices (`fuzz/`) over their committed corpora, and over mutations of these.

#[path = "../../fuzz/src/devices.rs"]
mod devices;
#[path = "../../fuzz/src/replay.rs"]
mod replay;
#[path = "../../fuzz/src/vsock.rs"]
mod vsock;

use std::path::Path;

/// A target's name and body.
type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 8] = [
    ("blk", devices::blk),
    ("net", devices::net),
    ("console", devices::console),
    ("rng", devices::rng),
    ("balloon", devices::balloon),
    ("transport", devices::transport),
    ("vhost_user", devices::vhost_user),
    ("vsock", vsock::vsock),
];

#[test]
fn corpus_and_what_is_near_it() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    for (name, body) in TARGETS {
        replay::replay(&corpus, name, 100, body);
    }
}
