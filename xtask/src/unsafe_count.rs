// SPDX-License-Identifier: Apache-2.0 OR MIT
//! How many unsafe blocks each crate has, for the log of continuous integration.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use gzvm_tests::layout::Layout;

use crate::build::cargo;

/// Prints a line for each crate: blocks, and functions and implementations that are unsafe to use.
///
/// # Errors
/// If a source can't be read.
pub fn print(layout: &Layout) -> Result<()> {
    let mut counts = BTreeMap::new();
    for package in cargo::packages(layout)? {
        let mut count = Count::default();
        folder(&package.folder, &mut count)?;
        counts.insert(package.name, count);
    }
    let total: usize = counts.values().map(|c| c.blocks).sum();
    println!("unsafe blocks: {total}");
    for (name, Count { blocks, items }) in counts {
        println!("  {name:20} {blocks:4} blocks, {items:3} functions and implementations");
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Count {
    blocks: usize,
    items: usize,
}

fn folder(path: &Path, count: &mut Count) -> Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        // A crate in a crate's folder counts for itself.
        if path.is_dir() && !path.join("Cargo.toml").exists() {
            folder(&path, count)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            add(&fs::read_to_string(path)?, count);
        }
    }
    Ok(())
}

/// By line, comments aside: our sources have no `unsafe` in texts.
fn add(source: &str, count: &mut Count) {
    for line in source.lines().filter(|line| !line.trim_start().starts_with("//")) {
        count.blocks += line.matches("unsafe {").count();
        for item in ["unsafe fn ", "unsafe impl ", "unsafe trait "] {
            count.items += line.matches(item).count();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_items_are_told_apart() {
        let mut count = Count::default();
        add("// unsafe {\nunsafe fn f() { let x = unsafe { g() }; }\nunsafe impl S for T {}", &mut count);
        assert_eq!(count, Count { blocks: 1, items: 2 });
    }
}
