// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Network: a tap interface of the host, and passt.

use super::{Pair, peers};
use crate::{
    cases::WHOLE,
    harness::{Case, Context, Tier},
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let tap = |protected, vhost: bool| {
        move |context: &Context| {
            let (modules, option): (&[_], _) =
                if vhost { (&["tun", "vhost_net"], ",vhost") } else { (&["tun"], "") };
            let pair = Pair {
                protected,
                guest: (&["virtio_net"], TAP_INSIDE, Vec::new()),
                host: (modules, &format!("vhost={option}\n{TAP}"), Vec::new()),
                ..Pair::default()
            };
            pair.run(context)
        }
    };
    let passt = |protected| {
        move |context: &Context| {
            let pair = Pair {
                protected,
                guest: (&["virtio_net"], PASST_INSIDE, Vec::new()),
                host: (&["dummy"], PASST, peers(&context.layout, &["passt"])?),
                ..Pair::default()
            };
            pair.run(context)
        }
    };
    vec![
        Case::new(Tier::System, "devices::net::passt", WHOLE, passt(false)),
        Case::new(Tier::System, "devices::net::passt_of_a_protected_guest", WHOLE, passt(true)),
        Case::new(Tier::System, "devices::net::tap", WHOLE, tap(false, false)),
        Case::new(Tier::System, "devices::net::tap_of_a_protected_guest", WHOLE, tap(true, false)),
        Case::new(Tier::System, "devices::net::vhost", WHOLE, tap(false, true)),
        Case::new(Tier::System, "devices::net::vhost_of_a_protected_guest", WHOLE, tap(true, true)),
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
guest --name vm --net tap=tap0,mac=02:00:00:00:00:05$vhost
holds tap_is_made "no tap0" appears /sys/class/net/tap0
ip addr add 10.9.0.1/24 dev tap0
ip link set tap0 up
nc -l -p 1000 </tmp/data >/dev/null &
mkfifo /tmp/open
exec 3<>/tmp/open
nc -l -p 1001 <&3 >/tmp/came &
holds address_is_as_asked_for "another" said MAC-02:00:00:00:00:05
if [ "$vhost" ]; then
    # Its thread, which the kernel makes.
    holds kernel_serves "$(ls /proc/$gz/fd -l)" [ "$(ls -l /proc/$gz/fd | grep -c /dev/vhost-net)" = 1 ]
    holds no_thread_of_gz "$(cat /proc/$gz/task/*/comm)" [ -z "$(grep -l gz-net /proc/$gz/task/*/comm)" ]
fi
holds ping "lost" said PING-IS-GOOD
holds guest_receives "not $sum" said SUM-$sum
holds guest_sends "not all of it" said SENT
usleep 500000
holds host_receives "not $sum" [ "$(md5sum </tmp/came | cut -c 1-32)" = $sum ]
notified=$(($(counter driver_ioevents) - before))
holds queues_notify_by_ioeventfd "$notified times" [ $notified -gt 50 ]
guest_ends"#;

/// An address by DHCP, which is the host's; the gateway's address is the host to the guest. 4 MiB each way.
const PASST_INSIDE: &str = r#"ip link set eth0 up
cat >/tmp/lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev eth0
ip route add default via $router
echo LEASE-$ip-$router
END
chmod 755 /tmp/lease
udhcpc -i eth0 -s /tmp/lease -n -q -t 20 -T 3
mkfifo /tmp/open
exec 3<>/tmp/open
timeout 200 nc 10.7.0.1 1000 <&3 >/tmp/data
echo SUM-$(md5sum </tmp/data | cut -c 1-32) OF-$(wc -c </tmp/data)
[ -s /tmp/data ] || grep . /sys/class/net/eth0/carrier /sys/class/net/eth0/statistics/[rt]x_packets /proc/interrupts
timeout 200 nc -l -p 22 </tmp/data >/dev/null
echo SENT"#;

/// The host's one interface leads nowhere; passt takes address and route from it all the same.
const PASST: &str = r#"ip link set lo up
ip addr add 10.7.0.2/24 dev dummy0
ip link set dummy0 up
ip route add default via 10.7.0.1
head -c 4194304 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
nc -l -p 1000 </tmp/data >/dev/null &
guest --name vm --net passt,tcp=2222:22
holds guest_has_a_lease "none" said LEASE-10.7.0.2-10.7.0.1
holds guest_receives "not $sum" said SUM-$sum
holds confined "$(gz info vm)" [ "$(gz info vm | sed -n 's/^sandbox *//p')" = 'files and system calls' ]
mkfifo /tmp/open
exec 3<>/tmp/open
n=0
until nc 127.0.0.1 2222 <&3 >/tmp/came && [ -s /tmp/came ] || [ $n = 60 ]; do n=$((n + 1)); sleep 1; done
holds host_receives "not $sum" [ "$(md5sum </tmp/came | cut -c 1-32)" = $sum ]
guest_ends
holds passt_ends "$(pidof passt)" [ -z "$(pidof passt)" ]
# Its end, when it can't begin.
mv /etc/passwd /etc/others
guest --net passt
wait $gz
status=$?
mv /etc/others /etc/passwd
holds an_end_of_passt_is_told "exit status $status: $(tail -n 3 /tmp/gz.out)" grep -q 'passt has ended' /tmp/gz.out
holds it_ends_as_our_own_failure "exit status $status" [ $status = 1 ]"#;
