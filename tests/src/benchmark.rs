// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the benchmark guest (`guests/bench`) reports.

use anyhow::{Context, Result};

/// One operation, in instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation<'a> {
    /// Its name.
    pub name: &'a str,
    /// The mean of the iterations.
    pub mean: u64,
    /// The least.
    pub least: u64,
    /// The most.
    pub most: u64,
}

/// A line of the console, if it reports an operation.
///
/// # Errors
/// If a number is missing.
pub fn operation(line: &str) -> Option<Result<Operation<'_>>> {
    let (_, report) = line.split_once("[BENCH] ")?;
    let field =
        |key: &str| report.split_whitespace().find_map(|w| w.split_once('=').filter(|(k, _)| *k == key));
    let number = |key: &str| {
        let value = field(key).and_then(|(_, value)| value.parse().ok());
        value.with_context(|| format!("no {key} in \"{line}\""))
    };
    let (_, name) = field("operation")?;
    Some((|| {
        Ok(Operation { name, mean: number("instructions")?, least: number("min")?, most: number("max")? })
    })())
}

#[cfg(test)]
mod tests {
    use super::operation;

    #[test]
    fn a_line_has_four_fields() {
        let line = "[    1.0] gz: [BENCH] operation=ipi instructions=902 min=900 max=1000 iterations=5";
        let read = operation(line).unwrap().unwrap();
        assert_eq!((read.name, read.mean, read.least, read.most), ("ipi", 902, 900, 1000));
        assert!(operation("[BENCH] operation=ipi instructions=902").unwrap().is_err());
        assert!(operation("[SKIP] ipi: one CPU only").is_none());
    }
}
