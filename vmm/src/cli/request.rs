// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is asked of a running guest: `gz pause` and its like.

use std::path::PathBuf;

use clap::Args;

use super::MemSize;

/// Which running guest.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// What was given to `gz run --control`
    #[arg(value_name = "SOCKET")]
    pub path: PathBuf,
}

/// Which running guest, and how much of its memory it shall give back.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct BalloonOptions {
    /// Which one.
    #[command(flatten)]
    pub socket: Socket,
    /// In MiB, or with K, M, G or T; 0 gives all back to the guest
    #[arg(value_name = "SIZE")]
    pub size: Option<MemSize>,
}
