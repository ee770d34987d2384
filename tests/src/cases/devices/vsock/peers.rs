// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sockets between guests, and of these with the host: `tests/sockets` at all ends, the host kernel's vhost_vsock for the host's.

use std::time::Duration;

use super::{Pair, files};
use crate::{
    cases::WHOLE,
    harness::{Case, Tier},
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let short = "MIB=1 COUNT=20";
    // Of the long ones, streams and messages go different ways.
    let long = "MIB=1024 COUNT=1000";
    [
        (Tier::System, "devices::vsock::peers", false, short, &[TALK, POLICY, KILLS][..], 900),
        (Tier::System, "devices::vsock::protected_peers", true, short, &[TALK, POLICY], 900),
        (Tier::Soak, "devices::vsock::gibibyte", false, long, &[LONG], 6000),
        (Tier::Soak, "devices::vsock::protected_gibibyte", true, long, &[LONG], 6000),
    ]
    .map(|(tier, name, protected, sizes, steps, seconds)| {
        Case::new(tier, name, WHOLE, move |context| {
            let host = format!("{sizes}\n{HOST}\n{}\n{END}", steps.join("\n"));
            let pair = Pair {
                protected,
                guest: (&["vmw_vsock_virtio_transport"], INSIDE, files(context)?),
                host: (&["vhost_vsock"], &host, files(context)?),
                ..Pair::default()
            };
            pair.run_for(context, Duration::from_secs(seconds))
        })
    })
    .into()
}

/// What guests serve, and the host as well; and a shell, by which the host has a guest do something.
const INSIDE: &str = r#"for kind in stream seqpacket; do
    port=$([ $kind = stream ] && echo 1000 || echo 2000)
    sockets echo $kind $((port + 0)) &
    sockets hang $kind $((port + 1)) &
    sockets receive $kind $((port + 2)) &
done
# What a shell leaves in the background keeps its connection: that one ends when nothing is said for a second.
socat -t 1 VSOCK-LISTEN:3001,fork EXEC:/bin/sh &
echo READY
socat -t 6000 VSOCK-LISTEN:3000,fork EXEC:/bin/sh"#;

const HOST: &str = r#"for kind in stream seqpacket; do
    port=$([ $kind = stream ] && echo 1000 || echo 2000)
    sockets echo $kind $((port + 0)) &
    sockets hang $kind $((port + 1)) &
    sockets receive $kind $((port + 2)) &
done
# start CID OPTIONS...: a guest with this address.
start() {
    cid=$1
    shift
    gz run $kernel --cmdline "$arguments" --cpus 2 --mem 256M --name vm$cid --vsock $cid$* >/tmp/gz.$cid 2>&1 </dev/null &
    eval gz$cid=$!
}
# Its servers were started before that.
is_ready() { grep -q READY /tmp/gz.$1 && [ "$(on $1 echo LISTENS 2>/dev/null)" = LISTENS ]; }
# on CID COMMAND...: has a guest do something, or the host (2).
on() {
    where=$1
    shift
    if [ $where = 2 ]; then sh -c "$*"; else echo "$*" | socat -t 6000 - VSOCK-CONNECT:$where:3000; fi
}
# begin CID COMMAND...: the same for what stays in the background.
begin() {
    where=$1
    shift
    if [ $where = 2 ]; then sh -c "$* &"; else echo "$* &" | socat -t 10 - VSOCK-CONNECT:$where:3001; fi
}
# says NAME TEXT CID COMMAND...: it says this.
says() {
    name=$1 text=$2
    shift 2
    answer=$(on "$@" 2>&1 | tail -n 1)
    holds $name "$answer" expr "$answer" : ".*$text"
}
start 5 ,peer=6
start 6 ,peer=5
holds guest_5_is_ready "$(tail -n 1 /tmp/gz.5)" within is_ready 5
holds guest_6_is_ready "$(tail -n 1 /tmp/gz.6)" within is_ready 6"#;

/// Each way, in both kinds: data, messages, connections at once.
const TALK: &str = r#"for way in 2:5 5:2 5:6 6:5; do
    from=${way%:*} to=${way#*:}
    says stream_$way SENT-$MIB $from sockets send stream $to 1002 $MIB
    says seqpacket_$way SENT-$MIB $from sockets send seqpacket $to 2002 $MIB
    says messages_$way MESSAGES $from sockets messages $to 2000
    says many_$way MANY-$COUNT $from sockets many stream $to 1000 $COUNT
    says refused_$way 'reset by peer\|refused' $from sockets send stream $to 999 1
done
says no_such_guest 'reset by peer' 5 sockets send stream 99 1000 1"#;

/// One that would talk, but is no peer of the one that it names; and that two have named each other, which have not
/// started at once.
const POLICY: &str = r#"start 7 ,peer=5
holds guest_7_is_ready "$(tail -n 1 /tmp/gz.7)" within is_ready 7
says no_peer_of_5 'reset by peer' 7 sockets send stream 5 1002 1
says no_peer_of_7 'reset by peer' 5 sockets send stream 7 1002 1
says unnamed 'reset by peer' 7 sockets send stream 6 1002 1
says host_of_7 SENT-1 7 sockets send stream 2 1002 1
gz stop vm7 >/dev/null
wait $gz7
gz run $kernel --cmdline "$arguments" --mem 256M --vsock 6,peer=5 >/tmp/second 2>&1 </dev/null
holds address_is_taken "$(cat /tmp/second)" grep -q 'does another guest have it' /tmp/second"#;

/// The other side is killed while connections are in each state.
const KILLS: &str = r#"states='established shut both full'
# hold CID TO: connections of CID with TO, in each state.
hold() {
    for kind in stream seqpacket; do
        port=$([ $kind = stream ] && echo 1001 || echo 2001)
        for state in $states; do
            begin $1 "sockets hold $kind $2 $port $state >/tmp/hold-$2-$kind-$state 2>&1 </dev/null"
        done
    done
}
in_state() { [ "$(on $1 "grep -l $3 /tmp/hold-$2-* | wc -l")" = $4 ]; }
# come_to CID TO WORD COUNT: so many are in this state within a minute. Each look is a connection of its own, so there are few.
come_to() {
    for look in $(seq 30); do
        in_state "$@" && return
        sleep 2
    done
    return 1
}
ended() {
    holds $3 "$(on $1 "tail -n 1 /tmp/hold-$2-*" | tr '\n' ' ')" come_to $1 $2 ENDED $4
    on $1 "tail -n 1 /tmp/hold-$2-*; rm /tmp/hold-$2-*" | sed -n 's/^ENDED/    | &/p'
}
hold 5 6
holds states_with_6 "$(on 5 'cat /tmp/hold-6-*')" come_to 5 6 STATE 8
gz pause vm6 >/dev/null
begin 5 "sockets hold stream 6 1001 requested >/tmp/hold-6-requested 2>&1 </dev/null"
holds request_is_sent "no" come_to 5 6 STATE 9
sleep 2
holds request_waits "it does not" in_state 5 6 ENDED 0
kill -9 $gz6
wait $gz6 2>/dev/null
ended 5 6 death_of_guest_6_ends_connections 9
says guest_6_is_gone 'reset by peer' 5 sockets send stream 6 1002 1
# Another one with its address.
start 6 ,peer=5
holds guest_6_is_ready_again "$(tail -n 1 /tmp/gz.6)" within is_ready 6
says stream_with_the_new_6 SENT-1 5 sockets send stream 6 1002 1
says stream_of_the_new_6 SENT-1 6 sockets send stream 5 1002 1
hold 5 2
holds states_with_the_host "$(on 5 'cat /tmp/hold-2-*')" come_to 5 2 STATE 8
kill -9 $(pidof sockets)
ended 5 2 death_of_a_program_ends_connections 8
hold 2 5
holds states_of_the_host "$(cat /tmp/hold-5-*)" come_to 2 5 STATE 8
kill -9 $gz5
wait $gz5 2>/dev/null
ended 2 5 death_of_guest_5_ends_connections 8"#;

/// For long: streams and messages, host and guests.
const LONG: &str = r#"says stream_2:5 SENT-$MIB 2 sockets send stream 5 1002 $MIB
says seqpacket_5:2 SENT-$MIB 5 sockets send seqpacket 2 2002 $MIB
says stream_5:6 SENT-$MIB 5 sockets send stream 6 1002 $MIB
says seqpacket_6:5 SENT-$MIB 6 sockets send seqpacket 5 2002 $MIB
for way in 2:5 5:2 5:6 6:5; do
    says many_$way MANY-$COUNT ${way%:*} sockets many stream ${way#*:} 1000 $COUNT
    says many_messages_$way MANY-$COUNT ${way%:*} sockets many seqpacket ${way#*:} 2000 $COUNT
done"#;

const END: &str = r#"tail -n 3 /tmp/gz.5 /tmp/gz.6 | sed 's/^/    | /; s/\[\([A-Z]*\)\] /<\1> /'
gz stop vm5 >/dev/null 2>&1
gz stop vm6 >/dev/null 2>&1
wait $gz5 $gz6
kill -9 $(pidof sockets) 2>/dev/null
gz ps >/dev/null
holds nothing_is_left "$(ls /run/gz)" [ -z "$(ls /run/gz)" ]"#;
