// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How `gz` is spoken to, and speaks.

use std::path::PathBuf;

use clap::Args;

/// How `gz` is spoken to, and speaks.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(next_help_heading = "Management")]
pub struct ManageOptions {
    /// Options from a TOML file: their names are its keys. Those on the command line replace the file's
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Runs nothing: prints what the options and the file come to, as such a file (or as JSON)
    #[arg(long)]
    pub dry_run: bool,

    /// Listens at this socket for `gz pause`, `resume`, `stop`, `reset`, `status` and `balloon`
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,

    /// Messages on standard error: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: tracing::Level,
}
