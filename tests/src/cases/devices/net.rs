// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Network: a tap interface of the host, and passt.

use super::{Pair, peers};
use crate::{
    cases::WHOLE,
    harness::{Case, Context, Tier},
    initrd::Extra,
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
    let queues = |name: &str, protected, options: &'static str| {
        Case::new(Tier::System, format!("devices::net::{name}"), WHOLE, move |context| {
            let modules: &[_] = if options.contains("vhost") { &["tun", "vhost_net"] } else { &["tun"] };
            // Of each packet there is another copy in a protected guest.
            let bytes = if protected { 524_288 } else { 2_097_152 };
            let sockets = Extra::file("/bin/sockets", 0o755, &context.layout.part("sockets"))?;
            let pair = Pair {
                protected,
                guest: (&["virtio_net"], QUEUES_INSIDE, vec![sockets]),
                host: (modules, &format!("options='{options}' bytes={bytes}\n{QUEUES}"), Vec::new()),
                ..Pair::default()
            };
            pair.run(context)
        })
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
        queues("queues", false, "--net tap=tap0,queues=2"),
        queues("queues_of_a_protected_guest", true, "--net tap=tap0,queues=2"),
        queues("queues_by_pci_and_vhost", false, "--virtio-transport pci --net tap=tap0,queues=2,vhost"),
        Case::new(Tier::System, "devices::net::tap", WHOLE, tap(false, false)),
        Case::new(Tier::System, "devices::net::tap_of_a_protected_guest", WHOLE, tap(true, false)),
        Case::new(Tier::System, "devices::net::vhost", WHOLE, tap(false, true)),
        Case::new(Tier::System, "devices::net::vhost_of_a_protected_guest", WHOLE, tap(true, true)),
    ]
}

/// 2 MiB each way by TCP, and datagrams that are cut into many frames.
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

const TAP: &str = r#"head -c 2097152 /dev/urandom >/tmp/data
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

/// So many bytes each way from one CPU and from the other, whose queues are different ones; with one pair, and with two again; by a driver that
/// is bound a second time.
const QUEUES_INSIDE: &str = r#"up() {
    ip link set eth0 up
    ip addr add 10.9.0.2/24 dev eth0
    n=0
    until ping -c 1 -W 1 10.9.0.1 >/dev/null || [ $n = 60 ]; do n=$((n + 1)); done
}
of() { ls /sys/class/net/eth0/queues | grep -c $1; }
mkfifo /tmp/open
exec 3<>/tmp/open
# way CPU PORT: what it receives from there, to the next port; until the third one says that it may go on. Acknowledgements leave by the
# queue of the CPU that was interrupted.
way() {
    echo $((1 << $1)) >/proc/irq/$(sed -n "s/^ *\([0-9]*\):.* ${device##*/}$/\1/p" /proc/interrupts)/smp_affinity
    n=0
    until taskset $((1 << $1)) nc 10.9.0.1 $2 <&3 >/tmp/data && [ -s /tmp/data ] || [ $n = 300 ]; do
        n=$((n + 1))
        usleep 200000
    done
    echo SUM-$2-$(md5sum </tmp/data | cut -c 1-32)
    taskset $((1 << $1)) nc 10.9.0.1 $(($2 + 1)) </tmp/data
    echo SENT-$2
    n=0
    until nc 10.9.0.1 $(($2 + 2)) </dev/null || [ $n = 300 ]; do n=$((n + 1)); usleep 200000; done
}
device=$(readlink /sys/class/net/eth0/device)
up
echo QUEUES-$(of rx)-$(of tx)-$(sockets channels eth0)
way 0 1000
way 1 1010
echo ONE-$(sockets channels eth0 1)-$(of rx)-$(of tx)
way 0 1020
echo TWO-$(sockets channels eth0 2)-$(of rx)-$(of tx)
way 1 1030
cd /sys/bus/virtio/drivers/virtio_net
echo ${device##*/} >unbind
echo ${device##*/} >bind
cd /
up
echo AGAIN-$(of rx)-$(of tx)
way 1 1040"#;

const QUEUES: &str = r#"head -c $bytes /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
mkfifo /tmp/open
exec 3<>/tmp/open
queues() { ls /sys/class/net/tap0/queues | grep -c $1; }
# of_tap NUMBER: so many queues are attached.
of_tap() { [ "$(queues rx) $(queues tx)" = "$1 $1" ]; }
# thread PAIR: that serves it.
thread() {
    for task in /proc/$gz/task/*; do
        case $(cat $task/comm) in gz-net | vhost-*) echo ${task##*/} ;; esac
    done | sort -n | sed -n "$(($1 + 1))p"
}
# did PAIR: what its thread has read and written, in bytes; of the kernel's, how often it has slept.
did() {
    task=/proc/$gz/task/$(thread $1)
    case $options in
    *vhost*) echo $(sed -n 's/^voluntary_ctxt_switches:[^0-9]*//p' $task/status) 0 ;;
    *) echo $(sed -n 's/^rchar: //p; s/^wchar: //p' $task/io) ;;
    esac
}
case $options in *vhost*) least=40 ;; *) least=$((bytes * 3 / 4)) ;; esac
# serve PORT PAIR: both ways, which is the work of its thread.
serve() {
    set -- $1 $2 $(did 0) $(did 1)
    nc -l -p $1 </tmp/data >/dev/null &
    nc -l -p $(($1 + 1)) <&3 >/tmp/came &
    holds receives_$1 "not $sum" said SUM-$1-$sum
    holds sends_$1 "not all of it" said SENT-$1
    usleep 500000
    holds came_$1 "not $sum" [ "$(md5sum </tmp/came | cut -c 1-32)" = $sum ]
    set -- $1 $2 "$@" $(did 0) $(did 1)
    first="$(($9 - $5)) and $((${10} - $6))" second="$((${11} - $7)) and $((${12} - $8))"
    if [ $2 = 0 ]; then mine=$first other=$second; else mine=$second other=$first; fi
    echo "port $1: by the thread of pair 0: $first, by that of pair 1: $second"
    holds by_its_pair_$1 "$mine of pair $2" at_least $mine
    holds not_by_the_other_$1 "$other, not of pair $2" less $other
    nc -l -p $(($1 + 2)) </dev/null >/dev/null &
}
# The words of did's difference, with `and` between them.
at_least() { [ $1 -ge $least ] && { [ $least = 40 ] || [ $3 -ge $least ]; }; }
less() { [ $1 -lt $least ] && [ $3 -lt $least ]; }
guest --name vm $options
holds tap_is_made "no tap0" appears /sys/class/net/tap0
ip addr add 10.9.0.1/24 dev tap0
ip link set tap0 up
holds guest_has_two "$(grep QUEUES /tmp/gz.out)" said QUEUES-2-2-CHANNELS-2-OF-2
holds tap_has_two "$(queues rx) $(queues tx)" of_tap 2
holds confined "$(gz info vm)" [ "$(gz info vm | sed -n 's/^sandbox *//p')" = 'files and system calls' ]
case $options in
*vhost*)
    holds kernel_serves "$(ls /proc/$gz/fd -l)" [ "$(ls -l /proc/$gz/fd | grep -c /dev/vhost-net)" = 2 ]
    holds only_control_is_ours "$(cat /proc/$gz/task/*/comm)" [ "$(cat /proc/$gz/task/*/comm | grep gz-net)" = gz-net-control ]
    ;;
*) holds a_thread_for_each "$(cat /proc/$gz/task/*/comm)" [ "$(cat /proc/$gz/task/*/comm | grep -cx gz-net)" = 2 ] ;;
esac
serve 1000 0
serve 1010 1
holds guest_has_one "$(grep ONE /tmp/gz.out)" said ONE-CHANNELS-1-OF-2-1-1
holds tap_has_one "$(queues rx) $(queues tx)" of_tap 1
serve 1020 0
holds guest_has_two_again "$(grep TWO /tmp/gz.out)" said TWO-CHANNELS-2-OF-2-2-2
holds tap_has_two_again "$(queues rx) $(queues tx)" of_tap 2
serve 1030 1
holds second_driver_has_two "$(grep AGAIN /tmp/gz.out)" said AGAIN-2-2
holds tap_has_two_of_it "$(queues rx) $(queues tx)" of_tap 2
serve 1040 1
guest_ends"#;

/// An address by DHCP, which is the host's; the gateway's address is the host to the guest. 1 MiB each way.
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
head -c 1048576 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
nc -l -p 1000 </tmp/data >/dev/null &
guest --name vm --net passt,tcp=2222:22
holds guest_has_a_lease "none" said LEASE-10.7.0.2-10.7.0.1
holds guest_receives "not $sum" said SUM-$sum
holds confined "$(gz info vm)" [ "$(gz info vm | sed -n 's/^sandbox *//p')" = 'files and system calls' ]
mkfifo /tmp/open
exec 3<>/tmp/open
comes() { nc 127.0.0.1 2222 <&3 >/tmp/came && [ -s /tmp/came ]; }
looks 60 1000000 comes
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
# Or it had ended only when the guest ran already, which goes on without a network.
holds it_ends_as_our_own_failure "exit status $status" eval '[ $status = 1 ] || grep -q "the network is gone" /tmp/gz.out'"#;
