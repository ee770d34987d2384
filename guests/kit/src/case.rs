// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A list of cases, a result line each.
//!
//! ```text
//!   [PASS] name
//!   [FAIL] name: reason
//!   [SKIP] name: reason
//!   [DONE] passed=N failed=N skipped=N
//! ```
//! `filter=A,B` among the boot arguments runs only cases whose name contains A or B. A guest that
//! dies in a case still prints that case's failure and the last line.
//!
//! `break=N` runs them, has the hypervisor make mistake N (`gzvm_core::broken`) from then on, runs them again, and has it
//! make none. Only hypervisors of the feature `crash-test` know the call; of any other nothing is run.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use arrayvec::ArrayString;
use spin::Mutex;

use crate::smccc::Conduit;
use crate::{arch, machine, println};

/// A case.
pub struct Case {
    /// Its name: area, then what holds.
    pub name: &'static str,
    /// The test.
    pub run: fn() -> Outcome,
}

/// A list of cases named by their functions.
#[macro_export]
macro_rules! cases {
    ($area:literal: $($f:ident),* $(,)?) => {
        &[$($crate::case::Case { name: concat!($area, "::", stringify!($f)), run: $f }),*]
    };
}

/// What a case comes to.
pub type Outcome = Result<(), Verdict>;

/// Why a case did not pass.
pub enum Verdict {
    /// It failed.
    Fail(ArrayString<200>),
    /// It can't be run here.
    Skip(ArrayString<200>),
}

fn text(args: fmt::Arguments) -> ArrayString<200> {
    struct Clipped(ArrayString<200>);
    impl fmt::Write for Clipped {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            for c in s.chars() {
                let _ = self.0.try_push(c);
            }
            Ok(())
        }
    }
    let mut clipped = Clipped(ArrayString::new());
    let _ = fmt::write(&mut clipped, args);
    clipped.0
}

impl Verdict {
    /// A failure.
    pub fn fail(args: fmt::Arguments) -> Self {
        Self::Fail(text(args))
    }

    /// A case that can't be run.
    pub fn skip(args: fmt::Arguments) -> Self {
        Self::Skip(text(args))
    }
}

/// Ends the case: failed.
#[macro_export]
macro_rules! fail {
    ($($arg:tt)*) => { return Err($crate::case::Verdict::fail(format_args!($($arg)*))) };
}

/// Ends the case: skipped.
#[macro_export]
macro_rules! skip {
    ($($arg:tt)*) => { return Err($crate::case::Verdict::skip(format_args!($($arg)*))) };
}

/// Fails the case unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr, $($arg:tt)*) => { if !$cond { $crate::fail!($($arg)*) } };
}

/// Fails the case unless both are equal.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($arg:tt)*) => {{
        let (left, right) = ($left, $right);
        if left != right {
            $crate::fail!("{}: {left:#x?}, not {right:#x?}", format_args!($($arg)*))
        }
    }};
}

static CURRENT: Mutex<&'static str> = Mutex::new("before the first case");
static PASSED: AtomicU32 = AtomicU32::new(0);
static FAILED: AtomicU32 = AtomicU32::new(0);
static SKIPPED: AtomicU32 = AtomicU32::new(0);

/// Runs the lists in order and prints the last line.
pub fn run(lists: &[&[Case]]) {
    match machine::get().arg("break").map(|mistake| mistake.parse().unwrap_or(0)) {
        None => run_once(lists),
        Some(_) if !breaks(0) => println!("[BREAK] there is no such call"),
        Some(mistake) => {
            run_once(lists);
            println!("[BREAK] {mistake}");
            breaks(mistake);
            run_once(lists);
            breaks(0);
        }
    }
    done();
}

/// The hypervisor makes this mistake from now on. Whether it knows the call.
fn breaks(mistake: u64) -> bool {
    /// Not in `gzvm_abi`: it is no part of the ABI.
    const BREAK: u64 = 0xFB00_107F;
    Conduit::Hvc.call(BREAK, &[mistake])[0] == 0
}

fn run_once(lists: &[&[Case]]) {
    let filter = machine::get().arg("filter");
    for case in lists.iter().flat_map(|list| list.iter()) {
        if filter.is_some_and(|f| !f.split(',').any(|part| case.name.contains(part))) {
            continue;
        }
        *CURRENT.lock() = case.name;
        match (case.run)() {
            Ok(()) => {
                PASSED.fetch_add(1, SeqCst);
                println!("[PASS] {}", case.name);
            }
            Err(Verdict::Fail(reason)) => {
                FAILED.fetch_add(1, SeqCst);
                println!("[FAIL] {}: {reason}", case.name);
            }
            Err(Verdict::Skip(reason)) => {
                SKIPPED.fetch_add(1, SeqCst);
                println!("[SKIP] {}: {reason}", case.name);
            }
        }
        // Whatever the case left behind.
        arch::irq_disable();
        crate::timer::disarm();
    }
}

fn done() {
    let [passed, failed, skipped] = [&PASSED, &FAILED, &SKIPPED].map(|n| n.load(SeqCst));
    println!("[DONE] passed={passed} failed={failed} skipped={skipped}");
}

/// The guest dies in the current case.
pub(crate) fn abort(what: fmt::Arguments) {
    let name = CURRENT.try_lock().map_or("?", |name| *name);
    FAILED.fetch_add(1, SeqCst);
    println!("\n[FAIL] {name}: {what}");
    done();
}
