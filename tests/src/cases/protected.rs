// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: protected VMs, from `gz run --protected` to their end.

use std::{fs, time::Duration};

use anyhow::Result;
use ed25519_dalek::SigningKey;
use gzvm_firmware_verify::manifest;

use super::{BOOT_LIMIT, Host, WHOLE, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
    results::Results,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "protected::starts_what_is_signed", WHOLE, starts_what_is_signed),
        Case::new(Tier::System, "protected::linux", WHOLE, linux),
    ]
}

/// The key that the firmware is built with, unless told otherwise.
const KEY: &str = include_str!("../../../firmware/keys/development.key");

/// Kernel and manifest, signed with that key.
fn signed(kernel: &[u8], initrd: &[u8], arguments: &str) -> Result<Vec<u8>> {
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(KEY.trim().as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    let mut payload = kernel.to_vec();
    payload.extend(manifest::sign(&SigningKey::from_bytes(&key), kernel, initrd, arguments.as_bytes()));
    Ok(payload)
}

/// A stock kernel, with a module for bounce buffers, reads and writes its disk.
fn linux(context: &Context) -> Result<()> {
    const ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet";
    let module = context.layout.part("gzvm-guest.ko");
    let inside = [
        Extra::text("/etc/modules", "gzvm-guest virtio_mmio virtio_blk\n"),
        Extra::file("/lib/modules/gzvm-guest.ko", 0o644, &module)?,
        Extra::script(INSIDE_LINUX),
    ];
    let initrd = initrd::guest(&context.layout, &inside)?;
    let kernel = fs::read(context.layout.kernel())?;
    let payload = signed(&kernel, &initrd, ARGUMENTS)?;
    let file = |path: &str, content| Extra { path: path.to_owned(), mode: 0o644, content };
    let extras = [file("/guest/signed.Image", payload), file("/guest/protected.cpio", initrd)];
    let script = format!(
        ". /etc/test-library
held >/tmp/before
gz run --protected --kernel /guest/signed.Image --initrd /guest/protected.cpio --cmdline '{ARGUMENTS}' --disk /guest/disk.img \
    --cpus 2 --mem 256M </dev/null
status=$?
holds guest_ends_well \"exit status $status\" [ $status = 0 ]
counters_return
finish"
    );
    let mut console = context.start(&scripted(context, Host::Gzvm, &script, &extras)?, "console")?;
    console.wait_for("[HOST] Linux", BOOT_LIMIT)?;
    console.wait_for("pvmfw: the payload is signed", BOOT_LIMIT)?;
    console.wait_for("DISK-IS-GOOD", BOOT_LIMIT)?;
    console.wait_for("[DONE]", Duration::from_secs(60))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

const INSIDE_LINUX: &str = "dmesg | grep gzvm
mount /dev/vda /mnt && grep -q hello /mnt/hello.txt || exit 1
dd if=/dev/urandom of=/tmp/data bs=64k count=20 2>/dev/null
cp /tmp/data /mnt/data && sync && echo 3 >/proc/sys/vm/drop_caches
cmp /tmp/data /mnt/data && [ $(nproc) = 2 ] && echo DISK-IS-GOOD
rm /mnt/data
umount /mnt";

fn starts_what_is_signed(context: &Context) -> Result<()> {
    let extras = [Extra::text("/guest/development.key", KEY)];
    let machine = scripted(context, Host::Gzvm, SCRIPT, &extras)?;
    results(context, &machine, Duration::from_secs(400))?.check()
}

const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
arguments="hyp=gzvm filter=memory,timer,psci"
cd /tmp
gz sign --key /guest/development.key --kernel /guest/testguest.Image --cmdline "$arguments" --output signed
run() { # KERNEL ARGUMENTS...
    kernel=$1
    shift
    timeout -s KILL 300 gz run --protected --kernel $kernel --cpus 2 --mem 64M "$@" >out 2>&1 </dev/null
    status=$?
    sed 's/^/    | /; s/\[\([A-Z]*\)\] /<\1> /' out | tail -n 70
}
aborts=$(counter host_abort)
(
    most=0
    while [ ! -e over ]; do
        pages=$(counter driver_private_pages)
        [ $pages -gt $most ] && most=$pages
        echo $most >most
        usleep 50000
    done
) &
run signed --cmdline "$arguments"
touch over
wait
# Its memory is a file of the driver's, and whatever gz does there is not stopped by an abort.
holds memory_leaves_gz "at most $(cat most) pages" [ $(cat most) -gt 1000 ]
holds no_aborts "$aborts, then $(counter host_abort)" [ $(counter host_abort) = $aborts ]
holds signed_runs "exit status $status" [ $status = 0 ]
holds firmware_says_so "it does not" grep -q "pvmfw: the payload is signed" out
holds its_cases_pass "see above" grep -q "^\[DONE\].*failed=0" out
run signed --cmdline "$arguments more"
holds other_arguments_are_refused "status $status" grep -q "pvmfw: not started: the boot arguments" out
run /guest/testguest.Image --cmdline "$arguments"
holds unsigned_is_refused "status $status" grep -q "pvmfw: not started: the kernel is not signed" out
counters_return
finish"#;
