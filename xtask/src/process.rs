// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Running other programs, and saying what is going on.
//!
//! A program's output is shown only when it fails; then with the command line, so that it can be repeated by hand.

use std::{
    env,
    io::{IsTerminal, Read},
    path::PathBuf,
    process::{Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// A step that a person watches: a spinner on a terminal, a line elsewhere.
pub struct Step {
    bar: Option<ProgressBar>,
    begin: Instant,
    title: String,
}

impl Step {
    /// Announces it.
    pub fn new(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(title.clone());
            if let Ok(style) = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("  {title} ...");
        }
        Self { bar, begin: Instant::now(), title }
    }

    /// It is done.
    pub fn done(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
            eprintln!("  {} ({:.1} s)", self.title, self.begin.elapsed().as_secs_f64());
        }
    }
}

/// Runs it to its end; its output counts only if it fails.
///
/// # Errors
/// If it can't start, or fails: with everything it said.
pub fn run(command: &mut Command) -> Result<()> {
    output(command).map(|_| ())
}

/// Runs it, and returns what it wrote to its standard output.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    let output = raw(command)?;
    check(command, output.status, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As [`run`], but ends it after `limit`.
///
/// # Errors
/// As [`run`]; and when the time is over.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {}", line(command)))?;
    let errors = child.stderr.take();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut errors) = errors {
            // What can't be read is not shown; the status decides.
            let _ = errors.read_to_string(&mut text);
        }
        text
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{} took more than {} s", line(command), limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    };
    if !status.success() {
        bail!("{} ended with {status}: {}", line(command), reader.join().unwrap_or_default().trim());
    }
    Ok(())
}

fn raw(command: &mut Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().with_context(|| format!("can't start {}", line(command)))
}

fn check(command: &Command, status: ExitStatus, output: &Output) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    bail!("{} ended with {status}\n{}{}", line(command), out, err)
}

/// The command as one types it.
pub fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| {
        let word = word.to_string_lossy();
        if word.contains([' ', ';', '*', '$']) { format!("'{word}'") } else { word.into_owned() }
    }));
    words.join(" ")
}

/// The path of a program that the shell would find.
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Cargo, as it started us.
pub fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}
