// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: a stock Linux guest gives memory back to the host, and takes it again; by the control socket, too.

use std::time::Duration;

use anyhow::Result;

use super::{Host, WHOLE, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "balloon::gives_memory_back_and_takes_it", WHOLE, |context| {
            run(context, GUEST, HOST)
        }),
        Case::new(Tier::System, "balloon::resized_at_run_time", WHOLE, |context| run(context, IDLE, RESIZE)),
    ]
}

/// The stock kernel's own driver of a balloon.
const MODULE: &str = "host/modules/kernel/drivers/virtio/virtio_balloon.ko";

fn run(context: &Context, guest: &str, host: &str) -> Result<()> {
    let module = Extra::file("/virtio_balloon.ko", 0o644, &context.layout.cache.join(MODULE))?;
    let guest = initrd::guest(&context.layout, &[module, Extra::script(guest)])?;
    let extra = Extra { path: "/guest/balloon.cpio".to_owned(), mode: 0o644, content: guest };
    let machine = scripted(context, Host::Gzvm, host, &[extra])?;
    results(context, &machine, Duration::from_secs(1600))?.check()
}

/// In the guest: a step is done when its line is out; the next begins with a line of input.
const GUEST: &str = r"mount -o remount,size=100% /tmp
free=$(sed -n 's/^MemFree: *\([0-9]*\) kB/\1/p' /proc/meminfo)
bytes=$(((free - 65536) * 1024))
fill() { head -c $bytes /dev/zero >/tmp/fill; wc -c </tmp/fill; }
got=$(fill)
rm /tmp/fill
echo STEP-filled-$got-of-$bytes
read -r line
insmod /virtio_balloon.ko
until inflated=$(sed -n 's/^balloon_inflate //p' /proc/vmstat); [ ${inflated:-0} -ge 16384 ]; do usleep 100000; done
echo STEP-inflated-$inflated
read -r line
rmmod virtio_balloon
got=$(fill)
[ $got = $bytes ] && echo STEP-taken-all || echo STEP-taken-$got-of-$bytes
read -r line
";

const HOST: &str = r#". /etc/test-library
said() {
    looks 3000 200000 grep -q "$1" /tmp/gz.out && return
    tail -n 25 /tmp/gz.out
    grep -E '^(driver|guest|exit)' $counters
    return 1
}
# pinned -lt|-gt NUMBER: whether the driver has pinned fewer or more pages.
pinned() { [ "$(counter driver_pinned_pages)" "$1" "$2" ]; }
# Whether the host has got most of the balloon's memory; how much, in KiB.
gains() {
    gained=$(($(available) - filled_available))
    [ $gained -gt 45000 ]
}
held >/tmp/before
mkfifo /tmp/input
gz run --kernel /guest/Image --initrd /guest/balloon.cpio --cpus 2 --mem 192M --balloon 64M \
    --cmdline "console=ttyS0 panic=-1 quiet cryptomgr.notests" </tmp/input >/tmp/gz.out 2>&1 &
exec 3>/tmp/input

said STEP-filled
filled=$(counter driver_pinned_pages) filled_available=$(available)
echo "filled: $filled pages pinned, $filled_available KiB available; $(grep STEP-filled /tmp/gz.out)"
holds guest_fills_its_memory "$filled pages are pinned" [ $filled -gt 26000 ]

echo go >&3
holds guest_inflates "no end of it" said STEP-inflated
holds pages_are_unpinned "they are not" within pinned -lt $((filled - 12500))
# Pages wait in lists of the host's CPUs for a while before they count as available.
looks 100 100000 gains
echo "inflated: $(counter driver_pinned_pages) pages pinned, $gained KiB gained"
holds host_gains_memory "only $gained KiB" [ $gained -gt 45000 ]

echo go >&3
holds guest_takes_it_again "no end of it" said STEP-taken-all
holds pages_are_pinned_again "they are not" within pinned -gt $((filled - 5000))
echo "taken: $(counter driver_pinned_pages) pages pinned; $(grep STEP-taken /tmp/gz.out)"

echo go >&3
wait %1
status=$?
holds guest_ends_well "exit status $status" [ $status = 0 ]
exec 3>&-
counters_return
finish"#;

/// A guest that follows its balloon.
const IDLE: &str = "insmod /virtio_balloon.ko
echo STEP-ready
read -r line
";

const RESIZE: &str = r#". /etc/test-library
held >/tmp/before
mkfifo /tmp/input
gz run --kernel /guest/Image --initrd /guest/balloon.cpio --mem 128M --balloon 0 --control /tmp/vm \
    --cmdline "console=ttyS0 panic=-1 quiet cryptomgr.notests" </tmp/input >/tmp/gz.out 2>&1 &
exec 3>/tmp/input
has() { gz balloon /tmp/vm | grep -q "actual $1\$"; }
follows() { # SIZE
    within has $1 && return
    gz balloon /tmp/vm
    tail -n 25 /tmp/gz.out
    return 1
}
looks 600 200000 grep -q STEP-ready /tmp/gz.out
holds starts_empty "$(gz balloon /tmp/vm)" [ "$(gz balloon /tmp/vm)" = "target 0K, actual 0K" ]
holds accepted "refused" gz balloon /tmp/vm 24M
holds grows "it does not" follows 24576K
gz balloon /tmp/vm 32768K
holds grows_further "it does not" follows 32768K
gz balloon /tmp/vm 4M
holds shrinks "it does not" follows 4096K
for wrong in 128M 3K 1T; do
    gz balloon /tmp/vm $wrong 2>/tmp/error
    holds refuses_$wrong "exit status $?" grep -q "must be whole pages" /tmp/error
done
holds target_is_as_it_was "$(gz balloon /tmp/vm)" [ "$(gz balloon /tmp/vm)" = "target 4096K, actual 4096K" ]
echo go >&3
wait %1
status=$?
holds guest_ends_well "exit status $status" [ $status = 0 ]
exec 3>&-
counters_return
finish"#;
