// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Result lines: how anything that runs inside a machine reports.
//!
//! ```text
//! [PASS] name
//! [FAIL] name: reason
//! [SKIP] name: reason
//! [DONE] passed=N failed=N skipped=N
//! ```

use anyhow::{Context, Result, bail, ensure};

/// What a machine reported.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Results {
    /// Names that passed.
    pub passed: Vec<String>,
    /// Name and reason of those that failed.
    pub failed: Vec<(String, String)>,
    /// Name and reason of those that were skipped.
    pub skipped: Vec<(String, String)>,
}

impl Results {
    /// Reads the result lines of a console.
    ///
    /// # Errors
    /// If there is no `[DONE]` line, more than one, or its numbers differ from the lines before it: then output was lost.
    pub fn read(console: &str) -> Result<Self> {
        let mut results = Self::default();
        let mut done = None;
        for line in console.lines() {
            // A kernel message may precede the line without a line end.
            let Some(start) =
                ["[PASS] ", "[FAIL] ", "[SKIP] ", "[DONE] "].iter().find_map(|tag| line.find(tag))
            else {
                continue;
            };
            let (tag, rest) = line[start..].split_at("[PASS] ".len());
            let rest = rest.trim_end();
            let (name, reason) = rest.split_once(": ").unwrap_or((rest, ""));
            let pair = || (name.to_owned(), reason.to_owned());
            match tag {
                "[PASS] " => results.passed.push(rest.to_owned()),
                "[FAIL] " => results.failed.push(pair()),
                "[SKIP] " => results.skipped.push(pair()),
                _ if done.is_some() => bail!("a second [DONE] line: {line}"),
                _ => done = Some(rest.to_owned()),
            }
        }
        let done = done.context("no [DONE] line")?;
        let counted = format!(
            "passed={} failed={} skipped={}",
            results.passed.len(),
            results.failed.len(),
            results.skipped.len()
        );
        ensure!(done == counted, "the console shows {counted}, but its last line says {done}");
        Ok(results)
    }

    /// Turns failures, and a run without any test, into an error.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> Result<()> {
        ensure!(self.failed.is_empty(), "failed inside the machine: {}", describe(&self.failed));
        ensure!(!self.passed.is_empty(), "the machine ran no test");
        Ok(())
    }
}

fn describe(failed: &[(String, String)]) -> String {
    failed.iter().map(|(name, reason)| format!("{name} ({reason})")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_results() {
        let console = "boot\n[PASS] one\nnoise [FAIL] two: it broke: badly\n[SKIP] three: no SVE\n\
                       [DONE] passed=1 failed=1 skipped=1\n";
        let results = Results::read(console).unwrap();
        assert_eq!(results.passed, ["one"]);
        assert_eq!(results.failed, [("two".to_owned(), "it broke: badly".to_owned())]);
        assert!(results.check().is_err());
    }

    #[test]
    fn lost_output_is_an_error() {
        assert!(Results::read("[PASS] one\n").is_err());
        assert!(Results::read("[PASS] one\n[DONE] passed=2 failed=0 skipped=0\n").is_err());
    }

    #[test]
    fn nothing_run_is_an_error() {
        assert!(Results::read("[DONE] passed=0 failed=0 skipped=0").unwrap().check().is_err());
    }
}
