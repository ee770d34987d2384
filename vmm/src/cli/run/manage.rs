// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How `gz` is spoken to, and speaks.

use std::path::PathBuf;

use clap::Args;

use crate::control::names;

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

    /// The VM's name, for `gz ps`, `info`, `pause` and their like [default: guest-PROCESS]
    #[arg(long, value_name = "NAME", value_parser = names::check)]
    pub name: Option<String>,

    /// Where its control socket is [default: in the run directory]
    #[arg(long, value_name = "SOCKET")]
    pub control: Option<PathBuf>,

    /// Does not confine gz: a guest that takes it over has all that its user has
    #[arg(long)]
    pub no_sandbox: bool,

    /// Messages on standard error: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "warn")]
    pub log_level: tracing::Level,
}
