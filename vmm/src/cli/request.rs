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
