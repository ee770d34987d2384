// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: Linux guests with `gzvm-rpc.ko`, which has their channels as files. A plain one and a protected one call the key
//! store, each with its own rights; one serves another one, and is killed.

use std::time::Duration;

use anyhow::Result;

use super::protected::signed;
use super::{Host, results, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
    modules,
};

const NEEDS: &[&str] = &[
    "hypervisor.Image",
    "gzvm.ko",
    "gzvm-guest.ko",
    "gzvm-rpc.ko",
    "gz",
    "host-initrd.cpio",
    "gzvm-check",
    "keystore",
    "guest-keystore.Image",
];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new(Tier::System, "rpc::linux_guests", NEEDS, linux_guests)]
}

fn linux_guests(context: &Context) -> Result<()> {
    let part = |name: &str| context.layout.part(name);
    // gzvm-guest refuses to load in a plain VM.
    let mut inside = modules::load(&context.layout, "gzvm-guest gzvm-rpc", &[])?;
    inside.extend([
        Extra::file("/lib/modules/gzvm-guest.ko", 0o644, &part("gzvm-guest.ko"))?,
        Extra::file("/lib/modules/gzvm-rpc.ko", 0o644, &part("gzvm-rpc.ko"))?,
        Extra::file("/bin/gzvm-check", 0o755, &part("gzvm-check"))?,
        Extra::file("/bin/keystore", 0o755, &part("keystore"))?,
        Extra::script(INSIDE),
    ]);
    let initrd = initrd::guest(&context.layout, &inside)?;
    let store = signed(&std::fs::read(part("guest-keystore.Image"))?, &[], "")?;
    let extras = [
        Extra { path: "/guest/store.Image".to_owned(), ..store },
        Extra { path: "/guest/rpc.cpio".to_owned(), mode: 0o644, content: initrd },
    ];
    let mut machine = scripted(context, Host::Gzvm, SCRIPT, &extras)?;
    machine.memory = "3G".to_owned();
    results(context, &machine, Duration::from_secs(900))?.check()
}

/// What the guests do, by the kernel argument `part`.
const INSIDE: &str = r#". /etc/profile
ls -l /dev/gzvm-rpc
store=$(argument store)
# own NAME COMMAND...: what the store says to it.
own() {
    name=$1
    shift
    echo "SAYS $name $(keystore --measurement $store /dev/gzvm-rpc/keys "$@" 2>&1 <words | tail -n 1)"
}
printf 'words to sign' >words
# More than a message has room for.
document() { dd if=/bin/keystore bs=1000 count=50 skip=$1 2>/dev/null; }
case $(argument part) in
serve)
    gzvm-check serve /dev/gzvm-rpc/echo.1 &
    gzvm-check serve /dev/gzvm-rpc/echo
    echo "SAYS status $?"
    ;;
plain)
    own whoami whoami
    own list list
    own make make
    own sign sign $(argument key)
    own verify verify $(argument key) $(argument signature)
    document 0 >words
    own document sign $(argument key)
    gzvm-check caller /dev/gzvm-rpc/echo
    echo "SAYS status $?"
    rmmod gzvm_rpc && ! ls /dev/gzvm-rpc && insmod /lib/modules/gzvm-rpc.ko && ls /dev/gzvm-rpc/keys && own again whoami
    ;;
protected)
    keystore --measurement ${store#??}00 /dev/gzvm-rpc/keys make
    echo "SAYS mistaken $?"
    own whoami whoami
    key=$(keystore /dev/gzvm-rpc/keys make)
    echo "SAYS key $key"
    signature=$(keystore /dev/gzvm-rpc/keys sign $key <words)
    own verify verify $key $signature
    own sign sign $(argument key)
    own list list
    document 0 >words
    own others sign $(argument key)
    signature=$(keystore /dev/gzvm-rpc/keys sign $key <words)
    echo "SAYS document $signature"
    own same verify $key $signature
    document 1 >words
    own another verify $key $signature
    head -c 65537 /bin/keystore >words
    own more sign $key
    # SignGranted of 5000 bytes.
    gzvm-check lender /dev/gzvm-rpc/keys 06${key}8827
    echo "SAYS status $?"
    own forget forget $key
    ;;
esac
dmesg | grep -E 'WARNING:|BUG:|Oops|Internal error|Call trace:' | grep -v 'soft lockup' >complaints
cat complaints
echo "SAYS complaints $(wc -l <complaints)"
"#;

const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
cd /tmp
gz run --name store --protected --kernel /guest/store.Image --cmdline "" --mem 64M --rpc keys \
    --rpc-with host,plain,protected >store.out 2>&1 </dev/null &
store=$!
serves() { grep -q "keystore: serving" store.out || ! kill -0 $store; }
holds store_serves "$(cat store.out)" within serves
printf 'words to sign' >words
key=$(keystore store make)
signature=$(keystore store sign $key <words)
identity=$(gz status store | sed -n 's/.*measurement \([0-9a-f]*\), sealed$/\1/p')
arguments="console=ttyS0 panic=-1 quiet cryptomgr.notests store=$identity key=$key signature=$signature"
# linux PART OPTIONS...: a guest, whose output is in PART.out.
linux() {
    part=$1
    shift
    timeout -s KILL 400 gz run --initrd /guest/rpc.cpio --mem 256M "$@" >$part.out 2>&1 </dev/null
}
# said PART NAME TEXT: the guest said so.
said() {
    was=$(sed -n "s/^.*SAYS $2 //p" $1.out | tr -d '\r')
    holds $1_$2 "says: $was" eval "case \$was in $3) true ;; *) false ;; esac"
}
# Linux takes its time to start.
in_minutes() { looks 3000 100000 "$@"; }
shows() { sed 's/^/    | /; s/\[\([A-Z]*\)\] /<> /' $1.out; }

linux serve --name echo --kernel /guest/Image --cmdline "$arguments part=serve" --rpc echo,clients=2 --rpc-with plain &
until_serving() { [ "$(grep -c serving serve.out)" = 2 ] || grep -q "ended with" serve.out; }
holds a_linux_guest_serves "$(tail -n 3 serve.out)" in_minutes until_serving
linux plain --kernel /guest/Image --cmdline "$arguments part=plain" --rpc-to keys@store --rpc-to echo@echo --rpc-with plain,protected &
caller=$!
waits() { grep -q WAITS-FOR-THE-END plain.out || ! kill -0 $caller 2>/dev/null; }
holds caller_comes_to_its_end "$(tail -n 3 plain.out)" in_minutes waits
kill -9 $(gz --json info echo | sed 's/.*"pid":\([0-9]*\).*/\1/')
wait $caller
shows serve
shows plain
said plain whoami "VM*"
said plain list '"$key host"'
said plain make "*NotForYou*"
said plain sign "*NotForYou* | *NotYours*"
said plain verify good
said plain status 0
said plain document "*lent*protected*"
holds all_checks_of_the_caller "$(grep FAIL plain.out)" grep -q "passed=7 failed=0" plain.out
said plain again "VM*"
said plain complaints 0

gz sign --key /guest/development.key --kernel /guest/Image --initrd /guest/rpc.cpio --cmdline "$arguments part=protected" --output signed
linux protected --protected --kernel signed --cmdline "$arguments part=protected" --rpc-to keys@store --rpc-with protected
shows protected
said protected mistaken 1
said protected whoami '"protected VM"*'
said protected key "????????????????????????????????????????????????????????????????"
said protected verify good
said protected sign "*NotYours*"
said protected list '*"protected VM"*'
said protected others "*NotYours*"
said protected same good
said protected another bad
said protected more "*65536*"
said protected status 0
holds all_checks_of_the_lender "$(grep FAIL protected.out)" grep -q "passed=5 failed=0" protected.out
said protected forget forgotten
# The host has the document, too, but no memory to lend.
protected_key=$(sed -n 's/^.*SAYS key //p' protected.out | tr -d '\r')
signature=$(sed -n 's/^.*SAYS document //p' protected.out | tr -d '\r')
document() { dd if=/bin/keystore bs=1000 count=50 skip=$1 2>/dev/null; }
document 0 >first
document 1 >second
holds the_document_is_signed "$signature" keystore store verify $protected_key $signature <first
ends another_is_not 3 bad sh -c "keystore store verify $protected_key $signature <second"
ends the_host_lends_nothing 1 'protected VM' sh -c "keystore store sign $key <first"
said protected complaints 0
gz kill store
wait
counters_return
finish"#;
