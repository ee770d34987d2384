// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Sockets between guest and host.

mod figures;
mod peers;

use anyhow::Result;

use super::{Host, Pair, scripted};
use crate::{
    cases::WHOLE,
    harness::{Case, Context, Tier},
    initrd::Extra,
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = peers::cases();
    cases.extend(figures::cases());
    cases.extend(with_host());
    cases.push(by_pci());
    cases
}

/// socat at both ends, and socat in many processes.
fn with_host() -> [Case; 2] {
    [("devices::vsock::plain", false), ("devices::vsock::protected", true)].map(|(name, protected)| {
        Case::new(Tier::System, name, WHOLE, move |context| {
            let pair = Pair {
                protected,
                guest: (&["vmw_vsock_virtio_transport"], INSIDE, super::peers(&context.layout, &["socat1"])?),
                host: (
                    &["vhost_vsock"],
                    &format!("{GREET}{HOST}"),
                    super::peers(&context.layout, &["socat1"])?,
                ),
                ..Pair::default()
            };
            pair.run(context)
        })
    })
}

/// socat at both ends, the device a PCI function: served by the host's kernel, and by gz.
fn by_pci() -> Case {
    Case::new(Tier::System, "devices::vsock::pci", WHOLE, |context| {
        let socat = || super::peers(&context.layout, &["socat1"]);
        let pair = Pair {
            guest: (&["vmw_vsock_virtio_transport"], PCI_INSIDE, socat()?),
            host: (&["vhost_vsock"], &format!("{GREET}{PCI}"), socat()?),
            ..Pair::default()
        };
        pair.run(context)
    })
}

/// What a guest's server answers goes to `answer`; it may not be there yet.
const GREET: &str = r#"greet() {
    answer= try=0
    until [ "$answer" = hello ] || [ $try = 10 ]; do
        try=$((try + 1))
        answer=$( (echo hello; sleep 2) | socat - VSOCK-CONNECT:5:1000)
    done
}
"#;

/// Programs of guests and hosts.
fn files(context: &Context) -> Result<Vec<Extra>> {
    let mut files = super::peers(&context.layout, &["socat1"])?;
    files.push(Extra::file("/bin/sockets", 0o755, &context.layout.part("sockets"))?);
    Ok(files)
}

/// A server that echoes, another that takes what is sent; and a client. All at once: many clients of a server of the host's.
const INSIDE: &str = r#"socat VSOCK-LISTEN:1000,fork EXEC:cat &
echo READY
socat -u VSOCK-LISTEN:1001 /tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
echo SUM-$sum
until socat -u /tmp/data VSOCK-CONNECT:2:2000; do usleep 200000; done
echo SENT
# The kernel gives a connection two seconds to come about, which is little where fifty do so on an emulated CPU.
one() {
    for try in 1 2 3 4 5; do
        (echo $1; sleep 5) | socat -t 30 - VSOCK-CONNECT:2:2001 >/tmp/answer-$1 2>/dev/null && break
    done
}
n=0
while [ $n -lt 50 ]; do
    one $n &
    n=$((n + 1))
done
n=0
until [ "$(cat /tmp/answer-* | wc -l)" = 50 ] || [ $n = 120 ]; do n=$((n + 1)); sleep 1; done
good=0
for k in $(seq 0 49); do [ "$(cat /tmp/answer-$k)" = $k ] && good=$((good + 1)); done
echo MANY-$good
socat -u VSOCK-CONNECT:2:9999 /dev/null 2>&1 | grep -o 'reset by peer\|refused'
echo KILL-ME
(echo up; sleep 1000) | socat - VSOCK-CONNECT:2:2002"#;

const HOST: &str = r#"head -c 4194304 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
guest --vsock 5
holds guest_is_ready "not" said READY
gz run $kernel --cmdline "$arguments" --mem 256M --vsock 5 >/tmp/second 2>&1 </dev/null
holds address_is_taken "$(cat /tmp/second)" grep -q 'does another guest have it' /tmp/second
greet
holds guest_answers "$answer" [ "$answer" = hello ]
socat -u /tmp/data VSOCK-CONNECT:5:1001
holds guest_receives "not $sum" said SUM-$sum
socat -u VSOCK-LISTEN:2000 /tmp/came &
holds guest_sends "not" said SENT
within has_bytes /tmp/came 4194304
holds host_receives "not $sum" [ "$(md5sum </tmp/came | cut -c 1-32)" = $sum ]
socat VSOCK-LISTEN:2001,fork,backlog=64 EXEC:cat 2>/dev/null &
server=$!
(socat -u VSOCK-LISTEN:2002 CREATE:/tmp/rest; echo ENDED-$? >/tmp/ended) &
holds fifty_at_once "$(grep MANY /tmp/gz.out)" said MANY-50
holds nobody_listens "not refused" said 'reset by peer\|refused'
kill $server
holds guest_connects "not" said KILL-ME
sleep 3
holds connection_is_up "it is not" [ "$(cat /tmp/rest)" = up -a ! -e /tmp/ended ]
kill -9 $gz
holds death_ends_connections "they stay" appears /tmp/ended
wait $gz 2>/dev/null
killall socat 2>/dev/null
# The address is free again: a guest of its own with it, to its end.
guest --vsock 5
holds address_is_free_again "$(tail -n 1 /tmp/gz.out)" said READY
kill $gz
wait $gz
status=$?
holds ends_by_signal "exit status $status" [ $status = 143 ]"#;

/// A server that echoes, another that takes what is sent; and a client.
const PCI_INSIDE: &str = r#"echo FUNCTIONS-$(readlink -f /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio* | grep -c pci)
socat VSOCK-LISTEN:1000,fork EXEC:cat &
echo READY
socat -u VSOCK-LISTEN:1001 /tmp/data
echo SUM-$(md5sum </tmp/data | cut -c 1-32)
until socat -u /tmp/data VSOCK-CONNECT:2:2000; do usleep 200000; done
socat -u VSOCK-CONNECT:2:9999 /dev/null 2>&1 | grep -o 'reset by peer\|refused'"#;

const PCI: &str = r#"head -c 262144 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
for by in kernel gz; do
    case $by in kernel) vsock=5 ;; gz) vsock=5,peer=6 ;; esac
    guest --virtio-transport pci --vsock $vsock
    holds guest_is_ready_$by "not" said READY
    holds a_function_$by "$(grep FUNCTIONS /tmp/gz.out)" said FUNCTIONS-1
    greet
    holds guest_answers_$by "$answer" [ "$answer" = hello ]
    looks 60 1000000 socat -u /tmp/data VSOCK-CONNECT:5:1001
    holds guest_receives_$by "not $sum" said SUM-$sum
    socat -u VSOCK-LISTEN:2000 CREATE:/tmp/came
    holds host_receives_$by "$(wc -c </tmp/came) bytes" cmp -s /tmp/data /tmp/came
    holds nobody_listens_$by "not refused" said 'reset by peer\|refused'
    guest_ends
done"#;
