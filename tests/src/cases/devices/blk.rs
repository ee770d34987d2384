// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Disks.

use anyhow::Result;

use super::Pair;
use crate::{
    cases::WHOLE,
    harness::{Case, Context, Tier},
    initrd::Extra,
    qcow2,
};

/// The tests of this file.
pub fn cases() -> Vec<Case> {
    let case = |name: &str, protected, transport: &'static str| {
        Case::new(Tier::System, format!("devices::blk::{name}"), WHOLE, move |context| {
            let host = format!("kernel=\"$kernel --virtio-transport {transport}\"\n{HOST}");
            let inside = format!("echo PCI-$(ls /sys/bus/pci/devices 2>/dev/null | wc -l)\n{INSIDE}");
            let pair = Pair {
                protected,
                guest: (&[], &inside, Vec::new()),
                host: (&[], &host, vec![image(context)?]),
                ..Pair::default()
            };
            pair.run(context)
        })
    };
    vec![
        case("plain", false, "mmio"),
        case("protected", true, "mmio"),
        case("pci", false, "pci"),
        case("pci_of_a_protected_guest", true, "pci"),
    ]
}

/// An empty qcow2 image of 64 MiB.
pub fn image(context: &Context) -> Result<Extra> {
    let path = context.write("disk.qcow2", &[])?;
    qcow2::create(&path, 64 << 20)?;
    Extra::file("/guest/disk.qcow2", 0o644, &path)
}

/// The first time: writes to a qcow2 disk (vda) and a raw one (vdb), and discards all of the latter. The second time: all is there.
const INSIDE: &str = r#"echo SERIALS-$(cat /sys/block/vda/serial)-$(cat /sys/block/vdb/serial)
sum() { dd if=/dev/vda bs=64k skip=$1 count=$2 2>/dev/null | md5sum | cut -c 1-32; }
if [ $(cat /sys/block/vda/ro) = 1 ]; then
    echo AGAIN-$(sum 100 160)-$(sum 800 16)
    dd if=/dev/zero of=/dev/vda bs=512 count=1 2>/dev/null || echo WRITES-ARE-REFUSED
    exit
fi
dd if=/dev/urandom of=/dev/vda bs=64k seek=100 count=160 conv=fsync 2>/dev/null
dd if=/dev/urandom of=/dev/vda bs=64k seek=800 count=16 conv=fsync 2>/dev/null
blkdiscard -o $((800 * 65536)) -l $((8 * 65536)) /dev/vda && echo DISCARDED
echo 3 >/proc/sys/vm/drop_caches
echo FIRST-$(sum 100 160)-$(sum 800 16)
echo QUEUES-$(ls /sys/block/vda/mq | wc -l)-$(ls /sys/block/vdb/mq | wc -l)
dd if=/dev/urandom of=/tmp/data bs=64k count=64 2>/dev/null
# By both CPUs at once, past the cache.
for cpu in 0 1; do
    taskset $((cpu + 1)) dd if=/tmp/data of=/dev/vdb bs=64k skip=$((cpu * 32)) seek=$((cpu * 32)) count=32 oflag=direct conv=notrunc 2>/dev/null &
done
wait
sync
[ "$(md5sum </dev/vdb)" = "$(md5sum </tmp/data)" ] && echo FULL
read -r line
blkdiscard /dev/vdb && [ $(dd if=/dev/vdb bs=64k count=64 2>/dev/null | tr -d '\0' | wc -c) = 0 ] && echo EMPTY
read -r line"#;

const HOST: &str = r#"truncate -s 4M /tmp/raw.img
mkfifo /tmp/keys
exec 3<>/tmp/keys
space() { du -k /tmp/raw.img | cut -f 1; }
gz run $kernel --cmdline "$arguments" --cpus 2 --mem 256M --disk /guest/disk.qcow2,format=qcow2,serial=QCOW-7 --disk /tmp/raw.img,queues=2 \
    >/tmp/gz.out 2>&1 <&3 &
gz=$!
case $kernel in *pci) functions=2 ;; *) functions=0 ;; esac
holds transport "another" said PCI-$functions
holds serial_numbers "others" said SERIALS-QCOW-7-raw.img
holds queues "others" said QUEUES-1-2
holds discards "it can't" said DISCARDED
holds writes "not" said FULL
holds raw_disk_is_full "$(space) KiB" [ $(space) -ge 4096 ]
holds image_grows "$(du -k /guest/disk.qcow2)" [ $(du -k /guest/disk.qcow2 | cut -f 1) -gt 10000 ]
echo go >&3
holds discarded_sectors_are_zeros "they are not" said EMPTY
holds host_has_its_space_again "$(space) KiB" [ $(space) -lt 512 ]
echo go >&3
guest_ends
first=$(sed -n 's/.*FIRST-\([0-9a-f-]*\).*/\1/p' /tmp/gz.out)
guest --disk /guest/disk.qcow2,format=qcow2,ro --disk /tmp/raw.img
holds content_stays "not $first" said "AGAIN-$first"
holds read_only "it is not" said WRITES-ARE-REFUSED
guest_ends
ends raw_is_said_to_be_qcow2 1 'format=qcow2' gz run $kernel --disk /guest/disk.qcow2"#;
