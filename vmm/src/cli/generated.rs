// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gz completions`, `gz man`: what follows from the definitions of the options.

use std::fmt;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use super::Cli;

/// Options of `gz completions`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct CompletionOptions {
    /// Whose
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Options of `gz man`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
pub struct ManOptions {
    /// Where; made if it is not there
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// A script for a shell.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// Its text.
    pub script: String,
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.script)
    }
}

/// `gz completions`.
pub fn completions(options: &CompletionOptions) -> Script {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), "gz", &mut script);
    Script { script: String::from_utf8_lossy(&script).into_owned() }
}

/// Where manual pages are.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Pages {
    /// `gz.1`, and `gz-COMMAND.1`.
    pub folder: PathBuf,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the manual pages are in {}", self.folder.display())
    }
}

/// `gz man`.
///
/// # Errors
/// The folder can't be written.
pub fn man(options: &ManOptions) -> anyhow::Result<Pages> {
    let place = || options.folder.display().to_string();
    fs::create_dir_all(&options.folder).with_context(place)?;
    clap_mangen::generate_to(Cli::command(), &options.folder).with_context(place)?;
    Ok(Pages { folder: options.folder.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn completions_know_commands_and_options() {
        for &shell in Shell::value_variants() {
            let script = completions(&CompletionOptions { shell }).script;
            for word in ["on-reset", "pause", "balloon"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let folder = std::env::temp_dir().join(format!("gz-man-{}", std::process::id()));
        man(&ManOptions { folder: folder.clone() }).unwrap();
        for command in Cli::command().get_subcommands() {
            let page = fs::read_to_string(folder.join(format!("gz-{}.1", command.get_name()))).unwrap();
            assert!(page.contains(".SH NAME"), "{}", command.get_name());
        }
        let run = fs::read_to_string(folder.join("gz-run.1")).unwrap();
        assert!(run.contains("strict\\-mmio") && run.contains("Exit codes"));
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        assert!(man(&ManOptions { folder: folder.clone() }).is_err());
        fs::remove_file(&folder).unwrap();
    }
}
