// SPDX-License-Identifier: Apache-2.0 OR MIT
//! All devices at once in gz's sandbox, through a reset of the guest: what a second life opens again is allowed, too.

use super::{Pair, peers};
use crate::{
    cases::WHOLE,
    harness::{Case, Tier},
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    [("sandbox::devices", false), ("sandbox::devices_of_a_protected_guest", true)]
        .map(|(name, protected)| {
            Case::new(Tier::System, name, WHOLE, move |context| {
                let image = super::blk::image(context)?;
                let mut files = peers(&context.layout, &["socat1", "virtiofsd"])?;
                files.push(image);
                let pair = Pair {
                    protected,
                    arguments: "console=hvc0 panic=-1 quiet cryptomgr.notests",
                    guest: (
                        &["virtio_net", "virtio_rng", "vmw_vsock_virtio_transport"],
                        INSIDE,
                        peers(&context.layout, &["socat1"])?,
                    ),
                    host: (&["tun", "vhost_vsock"], HOST, files),
                };
                pair.run(context)
            })
        })
        .into()
}

/// Uses each device; resets in the first life, which its disk remembers.
const INSIDE: &str = r#"life=$(($(dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\0') + 1))
echo LIFE-$life-ON-$(tty)
echo $life | dd of=/dev/vda conv=fsync 2>/dev/null
# The image grows, and shrinks again.
dd if=/dev/urandom of=/dev/vda bs=64k seek=$((life * 100)) count=64 conv=fsync 2>/dev/null
blkdiscard -o $((life * 6553600)) -l 1048576 /dev/vda && echo DISK-$life
mount -t virtiofs shared /mnt && echo $life >/mnt/life-$life && echo FOLDER-$life-$(ls /mnt | wc -l)
umount /mnt
echo RANDOM-$life-$(head -c 100 /dev/hwrng | wc -c)
ip link set eth0 up
ip addr add 10.9.0.2/24 dev eth0
n=0
until ping -c 1 -W 1 10.9.0.1 >/dev/null || [ $n = 60 ]; do n=$((n + 1)); done
[ $n = 60 ] || echo PING-$life
# The console is a port as well, without a name.
port=$(grep -l '^port$' /sys/class/virtio-ports/*/name)
port=${port%/name}
exec 3<>/dev/${port##*/}
echo PORT-$life
line=
until [ "$line" = end ]; do read -r line <&3 || usleep 200000; done
exec 3<&-
echo PORT-$life-$line
n=0
until (echo VSOCK-$life; sleep 2) | socat -t 30 - VSOCK-CONNECT:2:2001 || [ $n = 20 ]; do n=$((n + 1)); sleep 1; done
[ $life = 1 ] && reboot -f
sleep 1000"#;

const HOST: &str = r#"mkdir /tmp/shared
virtiofsd --socket-path /tmp/fs.sock --shared-dir /tmp/shared --sandbox none --seccomp none >/tmp/virtiofsd.out 2>&1 &
holds virtiofsd_listens "$(cat /tmp/virtiofsd.out)" appears /tmp/fs.sock
socat VSOCK-LISTEN:2001,fork EXEC:cat &
socat=$!
# Threads come and go meanwhile, so those with another state are what counts, and that there are any.
seccomp() { cat /proc/$gz/task/*/status 2>/dev/null | sed -n 's/^Seccomp:.//p' | sort -u; }
guest --name vm --on-reset restart --console virtio --disk /guest/disk.qcow2,format=qcow2 --net tap=tap0,queues=2 --rng \
    --port port=/tmp/port --vsock 5 --fs shared=/tmp/fs.sock
appears /sys/class/net/tap0
ip addr add 10.9.0.1/24 dev tap0
ip link set tap0 up
for life in 1 2; do
    holds console_in_life_$life "no" said "LIFE-$life-ON-/dev/hvc0"
    holds confined_in_life_$life "$(gz info vm)" [ "$(gz info vm | sed -n 's/^sandbox *//p')" = 'files and system calls' ]
    holds disk_in_life_$life "no" said DISK-$life
    holds folder_in_life_$life "$(cat /tmp/virtiofsd.out)" said FOLDER-$life-$life
    holds random_in_life_$life "no" said RANDOM-$life-100
    holds network_in_life_$life "no" said PING-$life
    holds port_in_life_$life "no" said PORT-$life
    (echo end; sleep 2) | socat - UNIX-CONNECT:/tmp/port
    holds port_takes_in_life_$life "no" said PORT-$life-end
    holds vsock_in_life_$life "no" said VSOCK-$life
    holds all_threads_are_filtered_in_life_$life "$(seccomp)" [ "$(seccomp)" = 2 ]
done
gz stop vm >/dev/null
wait $gz
status=$?
sed 's/^/    | /' /tmp/gz.out | tail -n 40
holds ends_in_order "exit status $status" [ $status = 5 ]
holds nothing_is_left "$(ls /run/gz /tmp/port 2>/dev/null)" [ -z "$(ls /run/gz)" -a ! -e /tmp/port ]
kill $socat"#;
