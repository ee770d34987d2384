// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Devices in other programs: those that can be killed in the middle of their work are.

use super::{Pair, back_ends, peers};
use crate::{
    cases::WHOLE,
    harness::{Case, Tier},
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let disk = |name, protected| {
        Case::new(Tier::System, name, WHOLE, move |context| {
            let pair = Pair {
                protected,
                guest: (&[], DISK_INSIDE, Vec::new()),
                host: (&[], DISK, back_ends(&context.layout, &["qemu-storage-daemon"])?),
                ..Pair::default()
            };
            pair.run(context)
        })
    };
    let rng = Case::new(Tier::System, "devices::vhost_user::vhost_device_rng", WHOLE, |context| {
        let pair = Pair {
            guest: (&["virtio_rng"], RNG_INSIDE, Vec::new()),
            host: (&[], RNG, back_ends(&context.layout, &["vhost-device-rng"])?),
            ..Pair::default()
        };
        pair.run(context)
    });
    let folder = Case::new(Tier::System, "devices::vhost_user::virtiofsd", WHOLE, |context| {
        let pair = Pair {
            guest: (&[], FOLDER_INSIDE, Vec::new()),
            host: (&[], FOLDER, peers(&context.layout, &["virtiofsd"])?),
            ..Pair::default()
        };
        pair.run(context)
    });
    vec![
        disk("devices::vhost_user::qemu_storage_daemon", false),
        disk("devices::vhost_user::qemu_storage_daemon_of_a_protected_guest", true),
        rng,
        folder,
    ]
}

/// Writes and reads the whole disk again and again, past the cache, several at once.
const DISK_INSIDE: &str = r#"echo SIZE-$(cat /sys/block/vda/size)
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
sum=$(md5sum </tmp/data)
part() { dd if=/tmp/data of=/dev/vda bs=64k skip=$1 seek=$1 count=16 oflag=direct conv=notrunc 2>/dev/null; }
round=0
while [ $round -lt 18 ]; do
    dd if=/dev/zero of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null
    for at in 0 16 32 48; do part $at & done
    wait
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(md5sum </dev/vda)" = "$sum" ] || { echo WRONG-IN-$round; exit 1; }
    round=$((round + 1))
    echo ROUND-$round
done
dmesg | grep -i 'i/o error'
echo ALL-IS-RIGHT"#;

/// Killed six times while the guest is at work.
const DISK: &str = r#"truncate -s 4M /tmp/vu.img
daemon() {
    qemu-storage-daemon --blockdev driver=file,node-name=f,filename=/tmp/vu.img \
        --export type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path=/tmp/blk.sock,writable=on >>/tmp/daemon.out 2>&1 &
    daemon=$!
}
daemon
holds daemon_listens "$(cat /tmp/daemon.out)" appears /tmp/blk.sock
guest --name vm --vhost-user block,socket=/tmp/blk.sock
holds size "another" said SIZE-8192
# soon COMMAND...: becomes true in a minute. The guest needs 100 ms for a round, and the program is to be killed in six of them.
soon() { looks 3000 20000 "$@"; }
rounds_pass() { [ $(grep -c ROUND- /tmp/gz.out) -gt $rounds ]; }
again() { grep -c 'requests are done again' /tmp/gz.out; }
is_back() { [ $(again) = $kills ]; }
for kills in 1 2 3 4 5 6; do
    rounds=$(grep -c ROUND- /tmp/gz.out)
    soon rounds_pass
    kill -9 $daemon
    wait $daemon 2>/dev/null
    usleep 300000
    daemon
    # Killed before gz knows it, it would not have been there.
    soon is_back
done
holds all_is_written "not" said ALL-IS-RIGHT
guest_ends
holds each_restart_is_seen "$(again)" is_back
holds in_the_middle_of_work "none" grep -q '[1-9][0-9]* requests are done again' /tmp/gz.out
holds no_errors "$(grep -i 'i/o error' /tmp/gz.out)" [ -z "$(grep -i 'i/o error' /tmp/gz.out)" ]
kill $daemon
ends nobody_listens 1 'is the program running' gz run $kernel --vhost-user block,socket=/tmp/nothing"#;

const RNG_INSIDE: &str = r#"echo RNG-$(cat /sys/class/misc/hw_random/rng_current)
[ $(dd if=/dev/hwrng bs=512 count=64 iflag=fullblock 2>/dev/null | gzip | wc -c) -gt 30000 ] && echo RANDOM"#;

/// Not killed: `vhost_user/mod.rs` of gz says why another one could not go on.
const RNG: &str = r#"vhost-device-rng --socket-path /tmp/rng.sock >/tmp/daemon.out 2>&1 &
daemon=$!
holds daemon_listens "$(cat /tmp/daemon.out)" appears /tmp/rng.sock0
guest --vhost-user rng,socket=/tmp/rng.sock0
holds guest_has_it "another" said RNG-virtio_rng
holds it_is_random "not" said RANDOM
guest_ends
kill $daemon 2>/dev/null"#;

const FOLDER_INSIDE: &str = r#"mount -t virtiofs shared /mnt || exit 1
n=0
while dd if=/dev/zero of=/mnt/file bs=64k count=16 conv=fsync 2>/tmp/error; do
    n=$((n + 1))
    echo ROUND-$n
done
cat /tmp/error
ls /mnt/more 2>&1
echo FAILS
umount /mnt
# The mount itself waits for nobody.
{ mount -t virtiofs shared /mnt && ls /mnt; } || echo NO-MOUNT"#;

/// It has a state that no other has: the guest gets errors, no hang.
const FOLDER: &str = r#"mkdir /tmp/shared
virtiofsd --socket-path /tmp/fs.sock --shared-dir /tmp/shared --sandbox none --seccomp none >/tmp/virtiofsd.out 2>&1 &
virtiofsd=$!
holds virtiofsd_listens "$(cat /tmp/virtiofsd.out)" appears /tmp/fs.sock
guest --fs shared=/tmp/fs.sock
holds works "not" said ROUND-5
kill -9 $virtiofsd
holds guest_gets_an_error "it waits" said FAILS
holds later_ones_fail_too "they wait" said NO-MOUNT
guest_ends
ends not_with_balloon 2 'cannot be used with' gz run $kernel --balloon 16M --fs shared=/tmp/fs.sock
holds reason_is_told "not" grep -q 'no other one can go on where it was' /tmp/gz.out"#;
