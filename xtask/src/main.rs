// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask VERB`: the project's one command.

mod bench;
mod build;
mod gdb;
mod process;
mod run;
mod setup;
mod test;
mod unsafe_count;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use gzvm_tests::layout::Layout;

/// GenieZone in Rust: set up, build, run, test, measure, debug.
///
/// Finished parts lie in target/gz, consoles of failed tests in target/gz/logs, downloads in
/// ~/.cache/geniezone (GENIEZONE_CACHE names another place).
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what this machine lacks (Debian 12 or 13); the other verbs do it by themselves
    Setup(setup::Options),
    /// Build the parts that run in the emulated machine
    Build {
        /// Which parts; without any, all
        #[arg(value_enum)]
        parts: Vec<build::Part>,
    },
    /// Start the whole system: hypervisor, Linux as host VM, Linux as guest at an interactive shell
    Run(Box<run::Options>),
    /// Run the tests: cargo xtask test [TIER] [-- FILTER...]
    Test(test::Options),
    /// Count instructions per operation, under gzvm and under KVM
    Bench(bench::Options),
    /// Start the machine under gdb with the hypervisor's symbols
    Gdb(Box<gdb::Options>),
    /// What continuous integration runs: every tier, without a terminal
    Ci,
}

fn main() -> ExitCode {
    match carry_out(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(arguments: Arguments) -> Result<()> {
    let layout = Layout::find()?;
    match arguments.verb {
        Verb::Setup(options) => {
            setup::ensure(&layout, &options)?;
            eprintln!("All that building and running needs is there ({}).", layout.cache.display());
            Ok(())
        }
        Verb::Build { parts } => {
            setup::ensure(&layout, &setup::Options::default())?;
            let parts = if parts.is_empty() { build::ALL.to_vec() } else { parts };
            build::build(&layout, &parts)?;
            eprintln!("Finished parts are in {}", layout.out.display());
            Ok(())
        }
        Verb::Run(options) => run::run(&layout, &options),
        Verb::Test(options) => test::test(&layout, &options),
        Verb::Bench(options) => bench::bench(&layout, &options),
        Verb::Gdb(options) => gdb::gdb(&layout, &options),
        Verb::Ci => {
            test::test(&layout, &test::Options { tier: None, jobs: None, list: false, filter: Vec::new() })
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
