// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random numbers.

use super::Pair;
use crate::{
    cases::WHOLE,
    harness::{Case, Tier},
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    [("devices::rng::plain", false), ("devices::rng::protected", true)]
        .map(|(name, protected)| {
            Case::new(Tier::System, name, WHOLE, move |context| {
                let pair = Pair {
                    protected,
                    guest: (&["virtio_rng"], INSIDE, Vec::new()),
                    host: (&[], HOST, Vec::new()),
                    ..Pair::default()
                };
                pair.run(context)
            })
        })
        .into()
}

/// 64 KiB that no compressor makes smaller, from this device.
const INSIDE: &str = "grep -q virtio_rng /sys/class/misc/hw_random/rng_current || exit 1
head -c 65536 /dev/hwrng >/tmp/random
[ $(gzip -c /tmp/random | wc -c) -gt 65536 ] && [ $(wc -c </tmp/random) = 65536 ] && echo RANDOM-IS-GOOD";

const HOST: &str = r#"guest --rng
holds random "it is not" said RANDOM-IS-GOOD
guest_ends"#;
