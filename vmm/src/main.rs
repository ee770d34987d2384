// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program `gz`; see the library of the same name.

use std::process::ExitCode;

use clap::Parser;
use gz::cli::{Cli, Command};
use gz::exit::{CODE_VMM_ERROR, EndReason};
use gz::{control, sign, terminal, vm};

fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    if let Some((request, socket)) = command.request() {
        return say(control::ask(&socket.path, request));
    }
    let options = match command {
        Command::Run(options) => options,
        Command::Sign(options) => return say(sign::sign(&options)),
        Command::PublicKey(options) => return say(sign::public_key(&options)),
        _ => return ExitCode::SUCCESS,
    };
    tracing_subscriber::fmt()
        .with_max_level(options.manage.log_level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .init();
    restore_terminal_on_panic();
    let reason = vm::run(&options);
    if reason != EndReason::PowerOff {
        eprintln!("gz: {reason}");
    }
    ExitCode::from(reason.code())
}

/// The end of a command that does not run a guest.
fn say(answer: anyhow::Result<String>) -> ExitCode {
    match answer {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gz: {error:#}");
            ExitCode::from(CODE_VMM_ERROR)
        }
    }
}

/// A panic in any thread ends the process: half a VM is of no use.
fn restore_terminal_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        terminal::restore();
        default(info);
        std::process::exit(CODE_VMM_ERROR.into());
    }));
}
