// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask test`: the tiers by what a test may assume, and one line at the end that counts them all.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use gzvm_tests::{
    cases,
    harness::{self, Summary},
    layout::Layout,
};

use crate::{
    build::{self, cargo},
    process,
    setup::{self, rust::BARE},
    unsafe_count,
};

/// A tier on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// Format, lints, native unit and property tests
    Unit,
    /// The EL2 image with bare-metal guests
    Boot,
    /// Linux host, driver, VMM, guest
    System,
    /// A hostile host or guest
    Abuse,
    /// Long runs; not part of the suite
    Soak,
}

impl Tier {
    /// It needs nothing of what set-up brings for tests alone.
    fn is_early(self) -> bool {
        matches!(self, Self::Unit | Self::Boot)
    }
}

/// What `test` may be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Only this tier; without it, all but soak
    #[arg(value_enum)]
    pub tier: Option<Tier>,
    /// Machines that run at once
    #[arg(long, short)]
    pub jobs: Option<usize>,
    /// List the system tests' names and run nothing
    #[arg(long)]
    pub list: bool,
    /// Only tests whose names contain one of these words
    #[arg(last = true)]
    pub filter: Vec<String>,
}

/// Runs them.
///
/// # Errors
/// If a test failed, or none ran.
pub fn test(layout: &Layout, options: &Options) -> Result<()> {
    if options.list {
        let mut output = io::stdout().lock();
        let listed = cases::all(layout)
            .iter()
            .try_for_each(|case| writeln!(output, "{:7} {}", case.tier.name(), case.name));
        // `| head` has seen enough.
        return listed
            .or_else(|error| if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) })
            .context("can't write the list");
    }
    let tiers = options
        .tier
        .map_or_else(|| vec![Tier::Unit, Tier::Boot, Tier::System, Tier::Abuse], |tier| vec![tier]);
    // Other kernels as guests.
    let tests = tiers.contains(&Tier::System) || tiers.contains(&Tier::Soak);
    // A whole Debian, which takes minutes to make, and a driver for another kernel: only for who runs them.
    let soaks = |cases: Vec<harness::Case>| {
        tiers.contains(&Tier::Soak)
            && cases.iter().any(|case| case.is_chosen(harness::Tier::Soak, &options.filter))
    };
    let (debian, newest) = (soaks(cases::debian::cases()), soaks(cases::driver::cases()));
    let needs = setup::Options { tests, debian, newest, ..setup::Options::default() };
    let mut total = Summary::default();
    // Of the first tier, set-up and build are a part.
    let mut begin = Instant::now();
    let mut more = tiers.first().map_or(Ok(None), |first| prepare(layout, *first, needs))?;
    for tier in tiers {
        if !tier.is_early()
            && let Some(more) = more.take()
        {
            more.join().unwrap_or_else(|_| bail!("set-up panicked"))?;
        }
        let summary = match tier {
            Tier::Unit => unit(layout, &options.filter)?,
            Tier::Boot => system(layout, harness::Tier::Boot, options),
            Tier::System => system(layout, harness::Tier::System, options),
            Tier::Abuse => system(layout, harness::Tier::Abuse, options),
            Tier::Soak => system(layout, harness::Tier::Soak, options),
        };
        let name = tier.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
        println!(
            "tier {name}: {} passed, {} failed, {} skipped in {:.0} s\n",
            summary.passed,
            summary.failed,
            summary.skipped,
            begin.elapsed().as_secs_f64()
        );
        total.passed += summary.passed;
        total.failed += summary.failed;
        total.skipped += summary.skipped;
        begin = Instant::now();
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed > 0 {
        bail!("{} tests failed; consoles of machines are kept in {}", total.failed, layout.logs().display());
    }
    if total.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Sets up and builds what `first` needs. The rest of the set-up, minutes of downloads, goes on in the thread that is returned.
fn prepare(layout: &Layout, first: Tier, needs: setup::Options) -> Result<Option<JoinHandle<Result<()>>>> {
    let mut more = None;
    let newest = needs.newest;
    if first.is_early() {
        setup::ensure(layout, &setup::Options::default())?;
        let layout = layout.clone();
        more = Some(thread::spawn(move || setup::ensure(&layout, &needs)));
    } else {
        setup::ensure(layout, &needs)?;
    }
    build::build(layout, &build::ALL)?;
    if newest {
        build::driver::build_newest(layout)?;
    }
    Ok(more)
}

fn system(layout: &Layout, tier: harness::Tier, options: &Options) -> Summary {
    println!("tier {}", tier.name());
    harness::run(layout, tier, cases::all(layout), &options.filter, options.jobs)
}

/// Format, lints and `cargo test`, each counted.
fn unit(layout: &Layout, filter: &[String]) -> Result<Summary> {
    println!("tier unit");
    let mut summary = Summary::default();
    if filter.is_empty() {
        unsafe_count::print(layout)?;
        lints(layout, &mut summary)?;
    }
    let mut command = process::cargo();
    command.args(["test", "--no-fail-fast", "--color", "never"]).current_dir(&layout.root);
    if !filter.is_empty() {
        command.arg("--").args(filter);
    }
    let (ok, text) = tee(&mut command)?;
    let counted = count(&text);
    summary.passed += counted.passed;
    summary.failed += counted.failed;
    summary.skipped += counted.skipped;
    if !ok && counted.failed == 0 {
        // It did not build, or a test program crashed before it could count.
        summary.failed += 1;
    }
    Ok(summary)
}

fn lints(layout: &Layout, summary: &mut Summary) -> Result<()> {
    let mut checks: BTreeMap<&str, Command> = BTreeMap::new();
    if process::find("cargo-fmt").is_some() {
        let mut command = process::cargo();
        command.args(["fmt", "--all", "--check"]);
        checks.insert("format", command);
    }
    if process::find("cargo-clippy").is_some() {
        let mut command = process::cargo();
        command.args(["clippy", "--quiet", "--all-targets"]);
        checks.insert("lints of native crates", command);
        let packages = cargo::packages(layout)?;
        let bare: Vec<_> = packages
            .iter()
            .filter(|package| {
                package.folder.starts_with(layout.root.join("guests"))
                    || package.folder.starts_with(layout.root.join("hypervisor"))
            })
            .collect();
        if !bare.is_empty() && setup::rust::wrapper(layout).is_none() {
            let mut command = cargo::arm(layout, "clippy", BARE);
            command.arg("--quiet");
            for package in bare {
                command.args(["-p", &package.name]);
            }
            checks.insert("lints of bare-metal crates", command);
        }
    }
    for (name, mut command) in checks {
        match process::run(command.current_dir(&layout.root)) {
            Ok(()) => {
                println!("{name} ... ok");
                summary.passed += 1;
            }
            Err(error) => {
                println!("{name} ... FAILED\n{error:#}");
                summary.failed += 1;
            }
        }
    }
    Ok(())
}

/// Runs it with its output both shown and returned.
fn tee(command: &mut Command) -> Result<(bool, String)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("can't start {}", process::line(command)))?;
    let output = child.stdout.take().context("a pipe")?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            println!("{line}");
            text.push_str(&line);
            text.push('\n');
        }
        text
    });
    let ok = child.wait()?.success();
    Ok((ok, reader.join().unwrap_or_default()))
}

/// Adds up the summary lines of `cargo test`:
/// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`.
fn count(text: &str) -> Summary {
    let mut summary = Summary::default();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once("test result: ") else { continue };
        let number = |what: &str| -> u64 {
            let before = rest.split(';').find_map(|part| part.trim().strip_suffix(what));
            before.and_then(|text| text.trim().rsplit(' ').next()).and_then(|n| n.parse().ok()).unwrap_or(0)
        };
        summary.passed += number("passed");
        summary.failed += number("failed");
        summary.skipped += number("ignored");
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_of_cargo_are_added() {
        let text = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
                    noise\ntest result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count(text), Summary { passed: 15, failed: 2, skipped: 1 });
        assert_eq!(count("nothing"), Summary::default());
    }
}
