// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Waiting, with a sign of life on the terminal once it takes longer than a second. Elsewhere there is none.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// From when on a wait is shown.
const SHOWN: Duration = Duration::from_secs(1);

/// How far what is waited for has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// That was it.
    Done,
    /// Nobody knows.
    Waiting,
    /// So far.
    At {
        /// Of `of`.
        done: u64,
        /// What it has to come to.
        of: u64,
    },
}

/// Calls `step`, which takes its time, until it is done or `patience` is over: then false.
///
/// # Errors
/// Those of `step`.
pub fn wait(
    what: &str,
    patience: Duration,
    mut step: impl FnMut() -> anyhow::Result<Step>,
) -> anyhow::Result<bool> {
    let begin = Instant::now();
    let mut shown: Option<Shown> = None;
    loop {
        let step = step()?;
        if step == Step::Done {
            return Ok(true);
        }
        let elapsed = begin.elapsed();
        if elapsed >= patience {
            return Ok(false);
        }
        if elapsed >= SHOWN {
            shown.get_or_insert_with(|| Shown::new(what, step)).show(step);
        }
    }
}

/// A bar, or what turns; gone with this value.
struct Shown(ProgressBar);

impl Shown {
    fn new(what: &str, step: Step) -> Self {
        let template = match step {
            Step::At { .. } => "{msg} [{wide_bar}] {percent} %",
            _ => "{spinner} {msg} ({elapsed})",
        };
        let bar = ProgressBar::new(0).with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, step: Step) {
        if let Step::At { done, of } = step {
            self.0.set_length(of);
            self.0.set_position(done);
        } else {
            self.0.tick();
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_end() {
        let mut steps = vec![Step::Done, Step::Waiting, Step::At { done: 1, of: 2 }];
        let done =
            wait("x", Duration::from_secs(60), || steps.pop().ok_or_else(|| anyhow::anyhow!("no more")));
        assert!(done.unwrap());
        assert!(!wait("x", Duration::ZERO, || Ok(Step::Waiting)).unwrap());
        assert!(wait("x", Duration::MAX, || anyhow::bail!("broken")).is_err());
        // Long enough to be shown.
        let begin = Instant::now();
        let step = || {
            std::thread::sleep(Duration::from_millis(100));
            Ok(if begin.elapsed() > SHOWN * 2 { Step::Done } else { Step::At { done: 3, of: 4 } })
        };
        assert!(wait("x", Duration::MAX, step).unwrap());
    }
}
