// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: the key store of `examples/keystore` in a protected VM, its callers with their rights, and an attacker on the host.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use ed25519_dalek::{Signature, SigningKey, VerifyingKey};

use super::protected::{places, signed};
use super::{BOOT_LIMIT, Host, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::Extra,
    results::Results,
};

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![Case::new(Tier::System, "rpc::keystore", NEEDS, keystore)]
}

const NEEDS: &[&str] = &[
    "hypervisor.Image",
    "gzvm.ko",
    "gz",
    "host-initrd.cpio",
    "gzvm-check",
    "keystore",
    "guest-keystore.Image",
    "guest-keyuser.Image",
];

/// The host, a protected VM and a plain one call the store. Then this test, which sees all RAM of the machine, finds the secret of
/// the host's key in it; and the host, which is told what to look for, does not.
fn keystore(context: &Context) -> Result<()> {
    let part = |name: &str| context.layout.part(name);
    let image = |path: &str, name: &str| -> Result<Extra> {
        Ok(Extra { path: path.to_owned(), ..signed(&fs::read(part(name))?, &[], "")? })
    };
    let extras = [
        image("/guest/store.Image", "guest-keystore.Image")?,
        Extra::file("/bin/gzvm-check", 0o755, &part("gzvm-check"))?,
    ];
    let mut machine = scripted(context, Host::Gzvm, SCRIPT, &extras)?.parallel();
    let ram = context.file("ram");
    machine.memory = "1G".to_owned();
    machine.ram = Some(ram.clone());
    let mut console = context.start(&machine, "console")?;
    console.wait_for("WHAT-IS-THE-SECRET", BOOT_LIMIT + BOOT_LIMIT)?;
    let text = console.text();
    let told = text.lines().find_map(|line| line.trim().strip_prefix("SIGNED ")).context("no signature")?;
    let (key, signature) = told.split_once(' ').context("no signature")?;
    let key = VerifyingKey::from_bytes(&unhex(key)?).map_err(anyhow::Error::msg)?;
    let signature = Signature::from_bytes(&unhex(signature)?);
    key.verify_strict(b"words to sign", &signature).map_err(anyhow::Error::msg)?;
    let secret = secret_of(&ram, &key)?;
    ensure!(!places(&ram, &secret)?.is_empty(), "the secret is not where it was found");
    let (first, second) = secret.split_at(16);
    console.type_line(&format!("{} {}", hex(first), hex(second)))?;
    console.wait_for("STORE-IS-KILLED", Duration::from_secs(300))?;
    let left = places(&ram, &secret)?.len();
    fs::remove_file(ram)?;
    ensure!(left == 0, "{left} times the secret is left in memory");
    console.type_line("")?;
    console.wait_for("[DONE]", Duration::from_secs(60))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

/// The secret that belongs to a public key, which the store keeps beside it.
fn secret_of(ram: &Path, key: &VerifyingKey) -> Result<[u8; 32]> {
    /// How far from it.
    const AROUND: u64 = 256;
    let file = File::open(ram)?;
    for place in places(ram, key.as_bytes())? {
        let mut near = [0; 2 * AROUND as usize + 32];
        if file.read_exact_at(&mut near, place.saturating_sub(AROUND)).is_err() {
            continue;
        }
        let candidates = near.windows(32).filter_map(|window| <[u8; 32]>::try_from(window).ok());
        for secret in candidates {
            if SigningKey::from_bytes(&secret).verifying_key() == *key {
                return Ok(secret);
            }
        }
    }
    anyhow::bail!("the secret is nowhere beside its key: the search is no good")
}

fn unhex<const N: usize>(digits: &str) -> Result<[u8; N]> {
    let digits = digits.trim();
    ensure!(digits.len() == 2 * N, "not {N} bytes: {digits}");
    let mut bytes = [0; N];
    for (n, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * n..2 * n + 2], 16)?;
    }
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const SCRIPT: &str = r#". /etc/test-library
held >/tmp/before
cd /tmp
cat >store.toml <<END
name = "store"
kernel = "/guest/store.Image"
protected = true
cmdline = ""
mem = "64M"
rpc = ["keys,clients=2"]
rpc-with = ["host", "plain", "protected"]
END
gz run --config store.toml >store.out 2>&1 </dev/null &
store=$!
serves() { grep -q "keystore: serving 2 callers" store.out || ! kill -0 $store; }
holds store_serves "$(cat store.out)" within serves
sed 's/^/    | /' store.out
# says NAME TEXT COMMAND...: the command succeeds and says exactly this.
says() {
    says_name=$1 says_text=$2
    shift 2
    said=$("$@" 2>&1)
    holds $says_name "says: $said" [ "$said" = "$says_text" ]
}
says host_is_the_host host keystore store whoami
key=$(keystore store make)
holds host_makes_a_key "$key" [ ${#key} = 64 ]
printf 'words to sign' >words
printf 'other words' >others
signature=$(keystore store sign $key <words)
echo "SIGNED $key $signature"
says good_is_good good keystore store verify $key $signature <words
says bad_is_bad bad keystore store verify $key $signature <others
says keys_are_listed "$key host" keystore store list
says shell_calls_a_service 000000 gz rpc store keys 00
says with_json '{"answer":"000000"}' gz --json rpc store keys 00
holds with_standard_input "it differs" [ "$(printf '\0' | gz rpc store keys)" = 000000 ]
holds with_raw_output "it differs" [ "$(gz rpc --raw store keys 00 | od -An -tx1 | tr -d ' ')" = 000000 ]
says nonsense_is_refused 0100 gz rpc store keys ffffffff
# A request for a signature of memory that the host can't send along, and the refusal.
says the_host_grants_nothing 0106 gz rpc store keys 06${key}01
says info_tells_services "keys" sh -c "gz info store | sed -n 's/^services *//p'"
ends no_such_service 1 'no service log' gz rpc store log 00
ends a_message_is_digits 1 'hexadecimal' gz rpc store keys 0x
ends a_message_is_a_page 1 '4096 at the most' sh -c 'head -c 4097 /dev/zero | gz rpc store keys'

# user NAME ARGUMENTS OPTIONS...: a guest that calls the store.
user() {
    user=$1 arguments=$2
    shift 2
    timeout -s KILL 120 gz run --cmdline "$arguments" --mem 64M --rpc-to keys@store --rpc-with protected "$@" >user.out 2>&1 </dev/null
    status=$?
    sed 's/^/    | /; s/\[\([A-Z]*\)\] /<> /' user.out
}
calls() { holds $1 "exit status $status" grep -q "^\[DONE\] passed=9 failed=0" user.out; }
# The protected one knows whom it calls, and is signed along with that.
identity=$(gz status store | sed -n 's/.*measurement \([0-9a-f]*\), sealed$/\1/p')
sign() { gz sign --key /guest/development.key --kernel /guest/keyuser.Image --cmdline "$1" --output user; }
sign "store=$identity"
user protected "store=$identity" --protected --kernel user
calls protected_calls
other=$(echo $identity | tr 0-9a-f 1-9a-f0)
sign "store=$other filter=peer_is"
user mistaken "store=$other filter=peer_is" --protected --kernel user
holds another_store_is_noticed "exit status $status" grep -q "the peer is $identity, not $other" user.out
user plain "" --kernel /guest/keyuser.Image
calls plain_calls
guests=$(keystore store list | grep "protected VM" | cut -d ' ' -f 1)
holds guests_key_is_listed "$(keystore store list)" [ ${#guests} = 64 ]
ends guests_key_is_not_the_hosts 1 'refused: NotYours' sh -c "keystore store sign $guests <words"
ends guests_key_is_not_forgotten 1 'refused: NotYours' keystore store forget $guests
ends policies_are_kept 1 'policy' gz run --kernel /guest/keyuser.Image --cmdline "" --mem 64M --rpc-to keys@store --rpc-with host
ends nobody_there 1 'no VM of this name' gz run --kernel /guest/keyuser.Image --cmdline "" --mem 64M --rpc-to keys@nobody
for n in 1 2 3 4 5; do keystore store make; done >made
ends nobody_takes_all_the_room 1 'refused: Full' keystore store make
says forgets forgotten keystore store forget $(head -n 1 made)
holds makes_again "$(keystore store list)" keystore store make

echo WHAT-IS-THE-SECRET
read -r first second
# The same beginning in a file of the host's: what is there is found.
control=c0ffee00c0ffee00c0ffee00c0ffee00
printf "$(echo $first$control | sed 's/../\\x&/g')" >own
aborts=$(counter host_abort)
gzvm-check search -x $first $second $control >found
cat found
holds all_memory_is_searched "$(head -n 1 found)" [ $(awk '/^searched/ { print $2 }' found) -gt 900 ]
holds hosts_own_is_found "it is not" [ $(awk -v w=$control '$1 == w { print $2 }' found) -gt 0 ]
holds secret_is_nowhere "it is" [ "$(awk -v w=$second '$1 == w { print $2 }' found)" = 0 ]
holds no_abort_in_the_kernel "$(counter host_abort), $aborts before" [ "$(counter host_abort)" = "$aborts" ]
says store_lives_on good keystore store verify $key $signature <words
kill -9 $store
wait $store
ends who_is_gone_is_told 1 'no VM of this name' keystore store whoami
counters_return
rm -f own
echo STORE-IS-KILLED
read -r line
dmesg | grep -E 'Internal error|Call trace|BUG:'
holds no_kernel_complaints "see above" [ $? = 1 ]
finish"#;
