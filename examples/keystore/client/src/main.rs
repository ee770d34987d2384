// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls the key store from the host, or from a Linux guest: one call a run. Exit code 1: it was refused, 2: wrong command line, 3: a bad signature.

#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use gz::rpc;
use gzvm_abi::rpc::peer;
use gzvm_ioctls::ChannelFd;
use keystore::protocol::{Answer, Caller, MOST_BYTES, MOST_GRANTED, PublicKey, Reply, Request, Signature};
use keystore::store::verify;

/// A message's.
const ROOM: usize = gzvm_abi::rpc::MOST_BYTES;
/// How long the store may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Calls a key store in a VM
#[derive(Parser)]
#[command(name = "keystore")]
struct Cli {
    /// The VM: its name, or the path of its control socket; in a guest, the device of its channel
    vm: String,
    /// In a guest: asks nothing unless the store is the protected VM with this measurement
    #[arg(long)]
    measurement: Option<String>,
    /// Its service
    #[arg(long, default_value = "keys")]
    service: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Tells who we are to the store
    Whoami,
    /// Lists all keys, and whose they are
    List,
    /// Makes a key
    Make,
    /// Signs standard input
    Sign {
        /// With this key
        key: String,
    },
    /// Says whether a signature of standard input is good
    Verify {
        /// This key's
        key: String,
        /// The signature
        signature: String,
    },
    /// Destroys a key
    Forget {
        /// This one
        key: String,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("keystore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let channel = rpc::open(&cli.vm, &cli.service)?;
    if let Some(expected) = &cli.measurement {
        let peer = channel.peer().context("who the store is")?;
        let sealed = peer.sender & (peer::PROTECTED | peer::SEALED) == peer::PROTECTED | peer::SEALED;
        ensure!(sealed, "the store is no protected VM, or not started yet");
        ensure!(hex(&peer.measurement) == *expected, "the store is {}", hex(&peer.measurement));
    }
    let message = match cli.what {
        What::Sign { .. } | What::Verify { .. } => standard_input()?,
        _ => Vec::new(),
    };
    // What has no room in a request goes with it.
    let lent = if message.len() > MOST_BYTES { message.as_slice() } else { &[] };
    let request = match &cli.what {
        What::Whoami => Request::WhoAmI,
        What::List => Request::List,
        What::Make => Request::Make,
        What::Sign { key } if !lent.is_empty() => {
            Request::SignGranted { key: bytes(key)?, bytes: u32::try_from(lent.len())? }
        }
        What::Sign { key } => Request::Sign { key: bytes(key)?, message: &message },
        What::Verify { key, signature } => {
            let signature: [u8; 64] = bytes(signature)?;
            let (r, s) = signature.split_at(32);
            let signature: Signature = [r.try_into()?, s.try_into()?];
            if !lent.is_empty() {
                // For that nobody needs the store.
                return Ok(verified(verify(&bytes(key)?, lent, &signature)));
            }
            Request::Verify { key: bytes(key)?, message: &message, signature }
        }
        What::Forget { key } => Request::Forget { key: bytes(key)? },
    };
    match call(&channel, &request, lent)? {
        Reply::You(caller) => println!("{}", name(&caller)),
        Reply::Keys(keys) => {
            for listed in keys.iter().flatten() {
                println!("{} {}", hex(&listed.key), name(&listed.owner));
            }
        }
        Reply::Key(key) => println!("{}", hex(&key)),
        Reply::Signature([r, s]) => println!("{}{}", hex(&r), hex(&s)),
        Reply::Verified(good) => return Ok(verified(good)),
        Reply::Forgotten => println!("forgotten"),
    }
    Ok(ExitCode::SUCCESS)
}

fn verified(good: bool) -> ExitCode {
    println!("{}", if good { "good" } else { "bad" });
    if good { ExitCode::SUCCESS } else { ExitCode::from(3) }
}

/// A typed call: this, and the enums of the protocol, is all there is to it. With memory that is lent to the store, if there is any.
fn call(channel: &ChannelFd, request: &Request<'_>, lent: &[u8]) -> anyhow::Result<Reply> {
    let mut room = [0; ROOM];
    let asked = postcard::to_slice(request, &mut room).context("the request does not fit")?;
    let answer = if lent.is_empty() {
        rpc::call(channel, asked, PATIENCE)?
    } else {
        let what = || {
            format!(
                "{} bytes, lent from one protected VM to another: if it is none, sign the hash",
                lent.len()
            )
        };
        rpc::call_with(channel, asked, lent, PATIENCE).with_context(what)?
    };
    match postcard::from_bytes::<Answer>(&answer).context("an answer that is none")? {
        Ok(reply) => Ok(reply),
        Err(refusal) => bail!("refused: {refusal:?}"),
    }
}

fn standard_input() -> anyhow::Result<Vec<u8>> {
    let mut message = Vec::new();
    io::stdin().take(MOST_GRANTED as u64 + 1).read_to_end(&mut message).context("standard input")?;
    ensure!(message.len() <= MOST_GRANTED, "the message has more than {MOST_GRANTED} bytes: sign its hash");
    Ok(message)
}

fn name(caller: &Caller) -> String {
    match caller {
        Caller::Host => "host".into(),
        Caller::Plain { vm, generation } => format!("VM {vm}, the {generation}th"),
        Caller::Protected(measurement) => format!("protected VM {}", hex(measurement)),
    }
}

fn hex(bytes: &PublicKey) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes<const N: usize>(digits: &str) -> anyhow::Result<[u8; N]> {
    let byte = |at: usize| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..N).map(byte).collect();
    let bytes =
        bytes.filter(|_| digits.len() == 2 * N).with_context(|| format!("not {N} bytes: {digits}"))?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("not {N} bytes"))
}
