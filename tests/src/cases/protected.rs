// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: protected VMs, from `gz run --protected` to their end.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};
use ed25519_dalek::SigningKey;
use gzvm_firmware_verify::manifest::{self, Payload};
use memchr::memmem::Finder;

use super::{BOOT_LIMIT, Host, WHOLE, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
    machine::Machine,
    modules,
    results::Results,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "protected::starts_what_is_signed", WHOLE, starts_what_is_signed),
        Case::new(Tier::System, "protected::bare_metal", WHOLE, bare_metal),
        Case::new(Tier::System, "protected::measurement", WHOLE, measurement),
        Case::new(Tier::System, "protected::linux", WHOLE, linux),
        Case::new(Tier::System, "protected::host_finds_nothing", SEARCHED, host_finds_nothing),
    ]
}

/// With the program that searches the kernel's map.
const SEARCHED: &[&str] = &["hypervisor.Image", "gzvm.ko", "gz", "host-initrd.cpio", "gzvm-check"];

/// The key that the firmware is built with, unless told otherwise.
pub const KEY: &str = include_str!("../../../firmware/keys/development.key");

/// Kernel and manifest, signed with that key, as `/guest/signed.Image`.
pub fn signed(kernel: &[u8], initrd: &[u8], arguments: &str) -> Result<Extra> {
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(KEY.trim().as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits)?, 16)?;
    }
    let mut content = kernel.to_vec();
    let payload = Payload { kernel, initrd, bootargs: arguments.as_bytes() };
    content.extend(manifest::sign(&SigningKey::from_bytes(&key), &payload, 1));
    Ok(Extra { path: "/guest/signed.Image".to_owned(), mode: 0o644, content })
}

const ARGUMENTS: &str = "console=ttyS0 panic=-1 quiet cryptomgr.notests";

/// A bare-metal guest with a disk.
fn bare_metal(context: &Context) -> Result<()> {
    const ARGUMENTS: &str = "";
    let kernel = fs::read(context.layout.part("guest-bounce.Image"))?;
    let image = signed(&kernel, &[], ARGUMENTS)?;
    let script = format!(
        "gz run --protected --kernel /guest/signed.Image --cmdline '{ARGUMENTS}' --disk /guest/disk.img --mem 64M </dev/null
echo \"gz ended with $?\""
    );
    let mut console = context.start(&scripted(context, Host::Gzvm, &script, &[image])?, "console")?;
    console.wait_for("pvmfw: the payload is signed", BOOT_LIMIT)?;
    console.wait_for("[DONE]", BOOT_LIMIT)?;
    console.wait_for("gz ended with 0", Duration::from_secs(60))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

/// Host and guest are told the same of who the guest is: the same again for the same, another for all else.
fn measurement(context: &Context) -> Result<()> {
    let extras = [
        Extra::text("/guest/development.key", KEY),
        Extra::file("/guest/bounce.Image", 0o644, &context.layout.part("guest-bounce.Image"))?,
    ];
    let machine = scripted(context, Host::Gzvm, MEASURE, &extras)?;
    results(context, &machine, Duration::from_secs(400))?.check()
}

const MEASURE: &str = r#". /etc/test-library
held >/tmp/before
cd /tmp
signed() { # COMMAND_LINE VERSION OUTPUT
    gz sign --key /guest/development.key --kernel /guest/bounce.Image --cmdline "$1" --version $2 --output $3
}
measure() { # NAME KERNEL COMMAND_LINE OPTIONS...
    name=$1 kernel=$2 arguments=$3
    shift 3
    timeout -s KILL 120 gz run --log-level info --protected --kernel $kernel --cmdline "$arguments" --disk /guest/disk.img "$@" >out 2>err </dev/null
    guest=$(tr -d '\r' <out | sed -n 's/.*note: measurement \([0-9a-f]*\)$/\1/p')
    host=$(sed -n 's/.*measurement \([0-9a-f]*\), sealed$/\1/p' err)
    sed 's/^/    | /; s/\[\([A-Z]*\)\] /<\1> /' out err
    holds ${name}_is_told_to_both "guest $guest, host $host" [ ${#host} = 64 -a "$guest" = "$host" ]
    seen=$(grep -c "$host" values)
    echo $host >>values
}
touch values
signed a=1 1 one
signed a=2 1 other
signed a=1 2 later
measure first one a=1 --mem 64M
measure again one a=1 --mem 64M
holds same_again "$(cat values)" [ $seen = 1 ]
measure other_arguments other a=2 --mem 64M
holds other_arguments_are_another "$(cat values)" [ $seen = 0 ]
measure later_version later a=1 --mem 64M
holds later_version_is_another "$(cat values)" [ $seen = 0 ]
measure more_memory one a=1 --mem 128M
holds more_memory_is_another "$(cat values)" [ $seen = 0 ]
measure watched one a=1 --mem 64M --watch undefined
holds watched_is_another "$(cat values)" [ $seen = 0 ]
counters_return
finish"#;

/// A signed stock kernel, and an initrd with the module for bounce buffers and `more` of the kernel's, that runs `script` with
/// `files` at hand.
pub fn signed_linux(
    context: &Context,
    more: &[&str],
    arguments: &str,
    script: &str,
    files: Vec<Extra>,
) -> Result<[Extra; 2]> {
    let module = context.layout.part("gzvm-guest.ko");
    let mut inside = modules::load(&context.layout, "gzvm-guest virtio_mmio virtio_blk", more)?;
    inside.push(Extra::file("/lib/modules/gzvm-guest.ko", 0o644, &module)?);
    inside.push(Extra::script(script));
    inside.extend(files);
    let initrd = initrd::guest(&context.layout, &inside)?;
    let kernel = fs::read(context.layout.kernel())?;
    let image = signed(&kernel, &initrd, arguments)?;
    Ok([image, Extra { path: "/guest/protected.cpio".to_owned(), mode: 0o644, content: initrd }])
}

/// A stock kernel, with a module for bounce buffers, reads and writes its disk.
fn linux(context: &Context) -> Result<()> {
    let extras = signed_linux(context, &[], ARGUMENTS, INSIDE_LINUX, Vec::new())?;
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

/// What the guest plants: the first digits of a hash that nobody else computes.
const SECRET: &[u8] = b"81cc255e17b34bfb";

/// The host looks for what a guest has in its memory: in gz's memory and in all that its kernel's map shows while the guest runs,
/// and in all RAM of the machine when the guest has been killed.
fn host_finds_nothing(context: &Context) -> Result<()> {
    let check = Extra::file("/bin/gzvm-check", 0o755, &context.layout.part("gzvm-check"))?;
    let extras = [signed_linux(context, &[], ARGUMENTS, PLANT, Vec::new())?.as_slice(), &[check]].concat();
    let mut machine = scripted(context, Host::Gzvm, LOOK, &extras)?.parallel();
    let ram = context.file("ram");
    machine.memory = "1G".to_owned();
    machine.ram = Some(ram.clone());
    let mut console = context.start(&machine, "console")?;
    console.wait_for("SECRET-IS-PLANTED", BOOT_LIMIT + BOOT_LIMIT)?;
    let there = places(&ram, SECRET)?.len();
    ensure!(there > 500_000, "the guest has planted {there}: the search is no good");
    console.wait_for("HOST-HAS-LOOKED", Duration::from_secs(300))?;
    console.type_line("")?;
    console.wait_for("GUEST-IS-KILLED", Duration::from_secs(120))?;
    let left = places(&ram, SECRET)?.len();
    fs::remove_file(ram)?;
    ensure!(left == 0, "{left} times the guest's secret is left in memory");
    console.type_line("")?;
    console.wait_for("[DONE]", Duration::from_secs(60))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

/// Where the machine's RAM has the secret.
pub fn places(ram: &Path, secret: &[u8]) -> Result<Vec<u64>> {
    let mut file = File::open(ram)?;
    let finder = Finder::new(secret);
    let mut chunk = vec![0; 8 << 20];
    let (mut found, mut kept, mut start) = (Vec::new(), 0, 0_u64);
    loop {
        let read = file.read(&mut chunk[kept..])?;
        if read == 0 {
            return Ok(found);
        }
        let end = kept + read;
        found.extend(finder.find_iter(&chunk[..end]).map(|at| start + at as u64));
        // What may be the start of one.
        kept = end.min(secret.len() - 1);
        start += (end - kept) as u64;
        chunk.copy_within(end - kept..end, 0);
    }
}

const PLANT: &str = "mount -o remount,size=100% /tmp
yes $(echo planted | md5sum | cut -c 1-16) | head -c 16777216 >/tmp/secret
echo SECRET-IS-PLANTED
while true; do sleep 10; done";

const LOOK: &str = r#". /etc/test-library
held >/tmp/before
gz run --protected --kernel /guest/signed.Image --initrd /guest/protected.cpio --cmdline 'console=ttyS0 panic=-1 quiet cryptomgr.notests'     --disk /guest/disk.img --cpus 2 --mem 128M >/tmp/gz.out 2>&1 </dev/null &
gz=$!
until grep -q SECRET-IS-PLANTED /tmp/gz.out; do usleep 200000; kill -0 $gz || { cat /tmp/gz.out; break; }; done
aborts=$(counter host_abort)
echo SECRET-IS-PLANTED
# RAM is the largest file of gzvm's that gz has mapped.
range=$(grep rw-s /proc/$gz/maps | grep -i gzvm | sed 's/ .*//' | awk -F- '{ print length($2), $0 }' | sort | sed 's/.* //' | while IFS=- read -r from to; do
    echo $((0x$to - 0x$from)) $from; done | sort -n | tail -n 1)
size=${range% *} from=${range#* }
echo "gz has $size bytes of guest memory at 0x$from"
holds ram_is_found "no such mapping: $(cat /proc/$gz/maps)" [ ${size:-0} = $((128 << 20)) ]
dd if=/proc/$gz/mem of=/tmp/seen bs=4096 skip=$((0x$from / 4096)) count=$((size / 4096)) conv=noerror 2>/tmp/dd.out
tail -n 1 /tmp/dd.out
holds most_is_out_of_reach "$(grep -c error /tmp/dd.out) errors" [ $(grep -c 'rror' /tmp/dd.out) -gt 1000 ]
holds secret_is_not_seen "it is" [ $(grep -c "8[1]cc255e17b34bfb" /tmp/seen) = 0 ]
rm /tmp/seen
# The same beginning in a file of the host's: what is there is found.
echo 81cc255e"17"HOSTS-OWN >/tmp/own
gzvm-check search 81cc255e 17b34bfb 17HOSTS-OWN >/tmp/found
cat /tmp/found
holds all_memory_is_searched "$(head -n 1 /tmp/found)" [ $(awk '/^searched/ { print $2 }' /tmp/found) -gt 900 ]
holds hosts_own_is_found "it is not" [ $(awk '/HOSTS/ { print $2 }' /tmp/found) -gt 0 ]
holds secret_is_nowhere "it is" [ "$(awk '/^17b34bfb/ { print $2 }' /tmp/found)" = 0 ]
holds no_abort_in_the_kernel "$(counter host_abort) aborts, $aborts before" [ "$(counter host_abort)" = "$aborts" ]
holds guest_lives_on "gz is gone" kill -0 $gz
echo HOST-HAS-LOOKED
read -r line
kill -9 $gz
wait $gz
counters_return
echo GUEST-IS-KILLED
read -r line
dmesg | grep -E 'Internal error|Call trace|BUG:'
holds no_kernel_complaints "see above" [ $? = 1 ]
finish"#;

const INSIDE_LINUX: &str = "dmesg | grep gzvm
mount /dev/vda /mnt && grep -q hello /mnt/hello.txt || exit 1
dd if=/dev/urandom of=/tmp/data bs=64k count=20 2>/dev/null
cp /tmp/data /mnt/data && sync && echo 3 >/proc/sys/vm/drop_caches
cmp /tmp/data /mnt/data && [ $(nproc) = 2 ] && echo DISK-IS-GOOD
rm /mnt/data
umount /mnt";

fn starts_what_is_signed(context: &Context) -> Result<()> {
    results(context, &machine_with_payloads(context, SIGNED_RUNS)?, Duration::from_secs(400))?.check()
}

/// A machine on which payloads that have to be refused are tried, after `first`.
pub fn machine_with_payloads(context: &Context, first: &str) -> Result<Machine> {
    let extras = [Extra::text("/guest/development.key", KEY)];
    scripted(context, Host::Gzvm, &format!("{PREPARE}{first}{REFUSALS}"), &extras)
}

const PREPARE: &str = r#". /etc/test-library
held >/tmp/before
cd /tmp
# sign ARGUMENTS OUTPUT OPTIONS...
sign() {
    arguments=$1 output=$2
    shift 2
    gz sign --kernel /guest/testguest.Image --cmdline "$arguments" --output $output "$@"
}
run() { # KERNEL ARGUMENTS...
    kernel=$1
    shift
    timeout -s KILL 300 gz run --protected --kernel $kernel --cpus 2 --mem 64M "$@" >out 2>&1 </dev/null
    status=$?
    sed 's/^/    | /; s/\[\([A-Z]*\)\] /<\1> /' out | tail -n 70
}
key=/guest/development.key
"#;

const SIGNED_RUNS: &str = r#"
arguments="hyp=gzvm filter=memory,timer,psci"
sign "$arguments" signed --key $key
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
"#;

const REFUSALS: &str = r#"
arguments="hyp=gzvm filter=memory::set_way"
# refused NAME KERNEL ARGUMENTS WHY
refused() {
    run $2 --cmdline "$3"
    holds $1 "status $status" grep -q "pvmfw: not started: $4" out
}
sign "$arguments" signed --key $key
# Verified twice, the second time by what is remembered; of that image and no other bytes.
started() {
    run signed --cmdline "$arguments"
    holds $1 "status $status" grep -q "pvmfw: the payload is signed" out
}
started starts
started starts_again
holds is_not_hashed_again "it is" grep -q "images verified before: 1" out
size=$(stat -c %s signed)
flipped() { # OFFSET
    cp signed changed
    printf '\001' | dd of=changed bs=1 seek=$1 conv=notrunc 2>/dev/null
    cmp -s signed changed && printf '\002' | dd of=changed bs=1 seek=$1 conv=notrunc 2>/dev/null
    cmp -s signed changed && echo "nothing is changed at $1"
}
flipped $((size - 513))
refused changed_is_refused changed "$arguments" "the kernel is not the one"
flipped $((size / 2))
refused changed_elsewhere_is_refused changed "$arguments" "the kernel is not the one"
started starts_after_attempts
refused other_arguments_are_refused signed "$arguments more" "the boot arguments"
sign "$arguments" old --key $key --version 0
refused old_is_refused old "$arguments" "the payload is of version 0, and 1 is the oldest"
tr 0-9a-f 1-9a-f0 <$key >other.key
sign "$arguments" others --key other.key
refused other_key_is_refused others "$arguments" "the manifest's signature"
refused unsigned_is_refused /guest/testguest.Image "$arguments" "the kernel is not signed"
counters_return
finish"#;
