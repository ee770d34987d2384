// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is asked of a running VM: `gz pause` and its like.

use clap::Args;

use super::MemSize;

/// Which running VM.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct Which {
    /// Its name, or (with a slash in it) the path of its control socket
    #[arg(value_name = "VM")]
    pub vm: String,
}

/// Which service, and what to say to it.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CallOptions {
    /// Which VM.
    #[command(flatten)]
    pub which: Which,
    /// Its service (gz run --rpc)
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// The message in hexadecimal digits; without it, the bytes of standard input
    #[arg(value_name = "HEX")]
    pub message: Option<String>,
    /// The answer's bytes as they are, instead of hexadecimal digits
    #[arg(long, conflicts_with = "json")]
    pub raw: bool,
    /// How long the answer may take, in ms
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    pub timeout: u32,
}

/// Which running VM, and how much of its memory it shall give back.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct BalloonOptions {
    /// Which one.
    #[command(flatten)]
    pub which: Which,
    /// In MiB, or with K, M, G or T; 0 gives all back to the guest
    #[arg(value_name = "SIZE")]
    pub size: Option<MemSize>,
    /// Waits until the guest has followed
    #[arg(long, requires = "size")]
    pub wait: bool,
}
