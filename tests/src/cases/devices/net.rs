// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Network: a tap interface of the host.

use super::Pair;
use crate::{
    cases::WHOLE,
    harness::{Case, Context, Tier},
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let tap = |protected| {
        move |context: &Context| {
            let pair = Pair {
                protected,
                guest: (&["virtio_net"], TAP_INSIDE, Vec::new()),
                host: (&["tun"], TAP, Vec::new()),
                ..Pair::default()
            };
            pair.run(context)
        }
    };
    vec![
        Case::new(Tier::System, "devices::net::tap", WHOLE, tap(false)),
        Case::new(Tier::System, "devices::net::tap_of_a_protected_guest", WHOLE, tap(true)),
    ]
}

/// 8 MiB each way by TCP, and datagrams that are cut into many frames.
const TAP_INSIDE: &str = "ip link set eth0 up
ip addr add 10.9.0.2/24 dev eth0
echo MAC-$(cat /sys/class/net/eth0/address)
n=0
until ping -c 1 -W 1 10.9.0.1 >/dev/null || [ $n = 60 ]; do n=$((n + 1)); done
ping -c 3 -s 20000 10.9.0.1 | grep -q ' 0% packet loss' && echo PING-IS-GOOD
# nc ends with the first direction that does: an input without an end.
mkfifo /tmp/open
exec 3<>/tmp/open
nc 10.9.0.1 1000 <&3 >/tmp/data
echo SUM-$(md5sum </tmp/data | cut -c 1-32)
nc 10.9.0.1 1001 </tmp/data
echo SENT";

const TAP: &str = r#"head -c 8388608 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
before=$(counter driver_ioevents)
guest --net tap=tap0,mac=02:00:00:00:00:05
holds tap_is_made "no tap0" appears /sys/class/net/tap0
ip addr add 10.9.0.1/24 dev tap0
ip link set tap0 up
nc -l -p 1000 </tmp/data >/dev/null &
mkfifo /tmp/open
exec 3<>/tmp/open
nc -l -p 1001 <&3 >/tmp/came &
holds address_is_as_asked_for "another" said MAC-02:00:00:00:00:05
holds ping "lost" said PING-IS-GOOD
holds guest_receives "not $sum" said SUM-$sum
holds guest_sends "not all of it" said SENT
usleep 500000
holds host_receives "not $sum" [ "$(md5sum </tmp/came | cut -c 1-32)" = $sum ]
notified=$(($(counter driver_ioevents) - before))
holds queues_notify_by_ioeventfd "$notified times" [ $notified -gt 50 ]
guest_ends"#;
