// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Console and ports.

use std::time::Duration;

use anyhow::Result;

use super::{Pair, peers};
use crate::{
    cases::{BOOT_LIMIT, WHOLE},
    harness::{Case, Context, Tier},
    results::Results,
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let ports = |protected| {
        move |context: &Context| {
            let pair = Pair {
                protected,
                guest: (&[], PORTS_INSIDE, Vec::new()),
                host: (&[], PORTS, peers(&context.layout, &["socat1"])?),
                ..Pair::default()
            };
            pair.run(context)
        }
    };
    vec![
        Case::new(Tier::System, "devices::console::terminal", WHOLE, terminal),
        Case::new(Tier::System, "devices::console::ports", WHOLE, ports(false)),
        Case::new(Tier::System, "devices::console::ports_of_a_protected_guest", WHOLE, ports(true)),
    ]
}

fn terminal(context: &Context) -> Result<()> {
    let pair = Pair {
        arguments: "console=hvc0 panic=-1 quiet cryptomgr.notests",
        guest: (&[], TERMINAL_INSIDE, Vec::new()),
        host: (&[], TERMINAL, Vec::new()),
        ..Pair::default()
    };
    let mut console = context.start(&pair.machine(context)?, "console")?;
    console.wait_for("TYPE-A-LINE", BOOT_LIMIT + BOOT_LIMIT)?;
    console.type_line("hello")?;
    console.wait_for("[DONE]", BOOT_LIMIT)?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

/// The guest's session is on hvc0. It says its size whenever that changes, and what is typed.
const TERMINAL_INSIDE: &str = "echo TTY-$(tty)
size=
while [ \"$size\" != '41 133' ]; do
    now=$(stty size)
    [ \"$now\" = \"$size\" ] || echo SIZE-$now | tr ' ' x
    size=$now
    usleep 100000
done
echo TYPE
read -r line
echo TYPED-$line";

/// The machine's own terminal is gz's.
const TERMINAL: &str = r#"stty -F /dev/ttyAMA0 rows 24 cols 80
gz run $kernel --cmdline "$arguments" --mem 256M --console virtio >/tmp/gz.out 2>&1 </dev/ttyAMA0 &
gz=$!
holds console_is_virtio "another" said TTY-/dev/hvc0
holds size_is_told "another" said SIZE-24x80
stty -F /dev/ttyAMA0 rows 41 cols 133
# Without job control nobody else sends it.
kill -WINCH $gz
holds change_is_told "not" said SIZE-41x133
holds guest_waits_for_keys "not" said TYPE
echo TYPE-A-LINE
holds keys_arrive "not" said TYPED-hello
guest_ends"#;

/// Echoes what comes through one port, as long as the other end is there; and sends a megabyte through the other.
const PORTS_INSIDE: &str =
    "port() { for p in /sys/class/virtio-ports/*; do [ $(cat $p/name) = $1 ] && echo /dev/${p##*/}; done; }
echo PORTS-$(port echo)-$(port org.test.data)
exec 3<>$(port echo)
echo READY
line=
until [ \"$line\" = end ]; do
    # It reads nothing while nobody is there.
    read -r line <&3 || { usleep 200000; continue; }
    echo \"echo $line\" >&3
done
exec 3<&-
n=0
touch /tmp/got
# Open once: a close throws away what came after the last read, and nobody being there ends a read.
exec 3<$(port org.test.data)
until [ $(wc -c </tmp/got) -ge 1048576 ] || [ $n = 300 ]; do
    cat <&3 >>/tmp/got
    usleep 100000
    n=$((n + 1))
done
exec 3<&-
echo GOT-$(wc -c </tmp/got)
echo SUM-$(md5sum </tmp/got | cut -c 1-32)
cat /tmp/got >$(port org.test.data)
echo SENT";

const PORTS: &str = r#"head -c 1048576 /dev/urandom >/tmp/data
sum=$(md5sum </tmp/data | cut -c 1-32)
guest --port echo=/tmp/echo --port org.test.data=/tmp/port
holds ports_have_names "none" said 'PORTS-/dev/vport[0-9]*p0-/dev/vport[0-9]*p1'
holds guest_is_ready "not" said READY
socket_mode=$(stat -c %a /tmp/echo)
holds socket_is_ours_alone "$socket_mode" [ $socket_mode = 600 ]
answer=$( (echo one; sleep 2) | socat - UNIX-CONNECT:/tmp/echo)
holds first_program "$answer" [ "$answer" = "echo one" ]
# It has gone; the guest's program goes on with the next one.
sleep 1
answer=$( (echo two; echo end; sleep 2) | socat - UNIX-CONNECT:/tmp/echo | tr '\n' /)
holds second_program "$answer" [ "$answer" = "echo two/echo end/" ]
socat -u /tmp/data UNIX-CONNECT:/tmp/port
holds a_megabyte_in "not $sum" said SUM-$sum
timeout 60 socat -u UNIX-CONNECT:/tmp/port /tmp/came &
reader=$!
holds guest_sends "not all of it" said SENT
within has_bytes /tmp/came 1048576
holds a_megabyte_out "not $sum" [ "$(md5sum </tmp/came | cut -c 1-32)" = $sum ]
guest_ends"#;
