// SPDX-License-Identifier: Apache-2.0 OR MIT
// Being built by the task "bench": please leave this file alone for now.
//! `cargo xtask bench`: instructions per operation, under gzvm and under its peers.

use std::path::PathBuf;

use anyhow::{Result, bail};
use gzvm_tests::layout::Layout;

/// What `bench` may be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Write the figures as a list of objects {operation, host, vm, instructions}
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Measures.
///
/// # Errors
/// If the benchmark guest is not there.
pub fn bench(layout: &Layout, _options: &Options) -> Result<()> {
    bail!("{} is not built yet", layout.part("guest-bench.Image").display())
}
