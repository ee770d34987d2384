// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Runs the tests of a tier: names, filter, parallelism, counts; keeps the console logs of those that fail.

use std::{
    fs,
    panic::{self, AssertUnwindSafe},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{console::Console, layout::Layout, machine::Machine};

/// How many machines run at once: each of them keeps one or two CPUs of the PC busy.
const MACHINES: usize = 2;

/// By what a test may assume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// The EL2 image, with bare-metal guests as its host.
    Boot,
    /// Linux host, driver, VMM and guest.
    System,
    /// A hostile host or guest.
    Abuse,
    /// Long runs; only on demand.
    Soak,
}

impl Tier {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::System => "system",
            Self::Abuse => "abuse",
            Self::Soak => "soak",
        }
    }
}

/// What a test gets.
#[derive(Debug)]
pub struct Context {
    /// The folders.
    pub layout: Arc<Layout>,
    /// The test's name, as a file name.
    pub name: String,
}

impl Context {
    /// Starts a machine with this test's log. A second machine of the same test gets a log of its own by `part`.
    ///
    /// # Errors
    /// As [`Machine::start`].
    pub fn start(&self, machine: &Machine, part: &str) -> Result<Console> {
        machine.start(&self.file(&format!("{part}.log")))
    }

    /// Writes a file for this test's machines, such as an initial RAM disk.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn write(&self, part: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.file(part);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(&path, content)?;
        Ok(path)
    }

    /// Path of a file that belongs to this test, in the folder of logs; all go away when the test passes.
    #[must_use]
    pub fn file(&self, part: &str) -> PathBuf {
        self.layout.logs().join(&self.name).join(part)
    }
}

/// The body of a test.
pub type Body = Box<dyn Fn(&Context) -> Result<()> + Send>;

/// A named test.
pub struct Case {
    /// Unique name.
    pub name: String,
    /// Its tier.
    pub tier: Tier,
    /// Parts in `target/gz` without which it is skipped.
    pub needs: &'static [&'static str],
    /// What it does.
    pub body: Body,
    /// It reads what the machine of another one has said, and would wait for it.
    pub shares: bool,
}

impl Case {
    /// The tests of one machine, which the first of them starts: the others come when all else has begun.
    pub fn of_one_machine(mut cases: Vec<Self>) -> Vec<Self> {
        for case in cases.iter_mut().skip(1) {
            case.shares = true;
        }
        cases
    }

    /// A test from its parts.
    pub fn new(
        tier: Tier,
        name: impl Into<String>,
        needs: &'static [&'static str],
        body: impl Fn(&Context) -> Result<()> + Send + 'static,
    ) -> Self {
        Self { name: name.into(), tier, needs, body: Box::new(body), shares: false }
    }

    /// Is it of this tier, and does its name contain one of `filters` (if there is one)?
    #[must_use]
    pub fn is_chosen(&self, tier: Tier, filters: &[String]) -> bool {
        let is_named = || filters.iter().any(|filter| self.name.contains(filter.as_str()));
        self.tier == tier && (filters.is_empty() || is_named())
    }
}

/// Counts of a run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were not run because a part is missing.
    pub skipped: u64,
}

/// Runs the cases of `tier` whose names contain one of `filters` (all, if there is none).
pub fn run(
    layout: &Layout,
    tier: Tier,
    mut cases: Vec<Case>,
    filters: &[String],
    jobs: Option<usize>,
) -> Summary {
    let layout = Arc::new(layout.clone());
    let times = Times::default();
    cases.sort_by_key(|case| case.shares);
    let trials: Vec<_> = cases
        .into_iter()
        .filter(|case| case.is_chosen(tier, filters))
        .map(|case| trial(&layout, case, &times))
        .collect();
    let total = trials.len() as u64;
    let arguments = Arguments { test_threads: Some(jobs.unwrap_or(MACHINES)), ..Arguments::default() };
    let conclusion = libtest_mimic::run(&arguments, trials);
    print_slowest(&times);
    Summary {
        passed: conclusion.num_passed,
        failed: conclusion.num_failed,
        skipped: total - conclusion.num_passed - conclusion.num_failed,
    }
}

/// How long each case took.
type Times = Arc<Mutex<Vec<(Duration, String)>>>;

/// Where a long run of a tier spends its time.
fn print_slowest(times: &Times) {
    const MOST: usize = 10;
    let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
    if times.len() > MOST {
        times.sort_by(|a, b| b.cmp(a));
        let slowest =
            times.iter().take(MOST).map(|(time, name)| format!("{name} {:.0} s", time.as_secs_f64()));
        println!("slowest: {}\n", slowest.collect::<Vec<_>>().join(", "));
    }
}

fn trial(layout: &Arc<Layout>, case: Case, times: &Times) -> Trial {
    let missing = case.needs.iter().find(|part| layout.built(part).is_none());
    let kind = missing.map_or_else(|| case.tier.name().to_owned(), |part| format!("no {part}"));
    let context = Context {
        layout: layout.clone(),
        name: case.name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
    };
    let name = case.name.clone();
    let times = Arc::clone(times);
    Trial::test(name, move || {
        let begin = Instant::now();
        drop(fs::remove_dir_all(context.file("")));
        let result = panic::catch_unwind(AssertUnwindSafe(|| (case.body)(&context)))
            .unwrap_or_else(|_| Err(anyhow!("the test itself panicked")));
        let time = (begin.elapsed(), case.name.clone());
        times.lock().unwrap_or_else(PoisonError::into_inner).push(time);
        match result {
            Ok(()) => {
                drop(fs::remove_dir_all(context.file("")));
                Ok(())
            }
            Err(error) => Err(Failed::from(format!(
                "{error:#}\nafter {:.1} s; consoles are kept in {}",
                begin.elapsed().as_secs_f64(),
                context.file("").display()
            ))),
        }
    })
    .with_kind(kind)
    .with_ignored_flag(missing.is_some())
}
