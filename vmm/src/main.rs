// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The program `gz`; see the library of the same name.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use gz::cli::{self, Command, RunOptions, config};
use gz::exit::{CODE_VMM_ERROR, EndReason};
use gz::{commands, sign, terminal, vm};
use serde::Serialize;

fn main() -> ExitCode {
    let (cli, matches) = config::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let json = cli.json;
    match cli.command {
        Command::Ps => say(commands::ps(), json),
        Command::Info(which) => say(commands::info(&which), json),
        Command::Status(which) => say(commands::status(&which), json),
        Command::Pause(which) => say(commands::pause(&which), json),
        Command::Resume(which) => say(commands::resume(&which), json),
        Command::Reset(which) => say(commands::reset(&which), json),
        Command::Stop(which) => say(commands::stop(&which), json),
        Command::Kill(which) => say(commands::kill(&which), json),
        Command::Balloon(options) => say(commands::balloon(&options), json),
        Command::Rpc(options) => match commands::rpc(&options) {
            Ok(answer) if options.raw => write(&answer.0),
            answer => say(answer, json),
        },
        Command::Console(which) => match commands::console(&which) {
            Ok(code) => ExitCode::from(code),
            Err(error) => fail(&error, json),
        },
        Command::Run(options) if options.manage.dry_run => say(Ok(config::resolved(&matches)), json),
        Command::Run(options) => run(&options, json),
        Command::Sign(options) => say(sign::sign(&options), json),
        Command::Completions(options) => say(Ok(cli::completions(&options)), json),
        Command::Man(options) => say(cli::man(&options), json),
        Command::PublicKey(options) => say(sign::public_key(&options), json),
    }
}

fn run(options: &RunOptions, json: bool) -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(options.manage.log_level)
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .with_target(false)
        .without_time()
        .init();
    restore_terminal_on_panic();
    let reason = vm::run(options);
    if json {
        complain(&as_json(&reason.report()));
    } else if reason != EndReason::PowerOff {
        complain(&format!("gz: {reason}"));
    }
    ExitCode::from(reason.code())
}

/// The end of a command that does not run a guest.
fn say<T: Serialize + Display>(answer: anyhow::Result<T>, json: bool) -> ExitCode {
    match answer {
        Ok(answer) => {
            let text = if json { as_json(&answer) } else { answer.to_string() };
            match writeln!(io::stdout(), "{}", text.trim_end()) {
                Ok(()) => ExitCode::SUCCESS,
                // Who reads no further (`head`) knows.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::from(CODE_VMM_ERROR),
                Err(error) => {
                    complain(&format!("gz: standard output: {error}"));
                    ExitCode::from(CODE_VMM_ERROR)
                }
            }
        }
        Err(error) => fail(&error, json),
    }
}

/// Bytes as they are.
fn write(bytes: &[u8]) -> ExitCode {
    match io::stdout().write_all(bytes).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(CODE_VMM_ERROR),
    }
}

fn fail(error: &anyhow::Error, json: bool) -> ExitCode {
    let text = format!("{error:#}");
    complain(&if json { as_json(&serde_json::json!({ "error": text })) } else { format!("gz: {text}") });
    ExitCode::from(CODE_VMM_ERROR)
}

/// A line on standard error. If that is closed, the exit code has to do.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn as_json(value: &impl Serialize) -> String {
    // Fails for maps with keys that are no strings only, which ours are.
    serde_json::to_string(value).unwrap_or_default()
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
