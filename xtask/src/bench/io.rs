// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask bench --io`: disk and console of a Linux guest, the same VMM and guest under each host.
//!
//! A program in the guest (`io.c`) does a fixed amount of each kind, [`ROUNDS`] times in one boot, and reads the counter before
//! and after; the disk is a raw image on a tmpfs of the host, so that no other device's work is in the figures.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context, Result, bail, ensure};
use gzvm_tests::{
    initrd::{self, Extra},
    layout::Layout,
};

use super::{
    Host, machines,
    report::{aligned, grouped, table},
    results::median,
};
use crate::process;

const PROGRAM: &str = include_str!("io.c");
/// As in `io.c`.
const ROUNDS: usize = 5;
/// What the program does, in the order of the table, and what an operation is.
const OPERATIONS: [(&str, &str); 8] = [
    ("seq-read", "64 KiB"),
    ("seq-write", "64 KiB"),
    ("rand-read", "4 KiB"),
    ("rand-write", "4 KiB"),
    ("rand-read-16", "4 KiB"),
    ("rand-write-16", "4 KiB"),
    ("console-virtio", "4 KiB"),
    ("console-serial", "4 KiB"),
];
/// Hosts that are compared if none is named.
pub const HOSTS: [Host; 3] = [Host::Gzvm, Host::KvmVhe, Host::KvmNvhe];
const END: &str = "[END] all measured";

/// A kind of I/O on one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Figure {
    instructions: u64,
    operations: u64,
    bytes: u64,
}

type Figures = BTreeMap<String, Figure>;

/// Measures; the table.
///
/// # Errors
/// If a host did not do all of it.
pub fn bench(layout: &Layout, hosts: &[Host]) -> Result<Vec<Vec<String>>> {
    let folder = layout.out.join("bench");
    fs::create_dir_all(&folder)?;
    let (source, program) = (folder.join("io.c"), folder.join("io"));
    fs::write(&source, PROGRAM)?;
    let mut compiler = Command::new("aarch64-linux-gnu-gcc");
    process::run(compiler.args(["-static", "-O2", "-s", "-o"]).arg(&program).arg(&source))?;
    let program = Extra::file("/bin/io", 0o755, &program)?;
    let guest = initrd::guest(layout, &[program, Extra::script("io")])?;
    let guest = Extra { path: "/guest/io.cpio".to_owned(), mode: 0o644, content: guest };
    let script = script();
    let mut all = Vec::new();
    for host in hosts {
        let step = process::Step::new(format!("disk and console under {}", host.name()));
        ensure!(!host.protected_vm(), "--io has no protected guests");
        let initrd = machines::initrd(layout, &folder, &[Extra::script(&script), guest.clone()])?;
        let mut machine = machines::machine(layout, *host, initrd, "");
        let text = machines::run(layout, &mut machine, &format!("io-{}", host.name()))?;
        machines::check_mode(*host, &text)?;
        ensure!(text.contains(END), "the host did not come to the end of its script");
        all.push((*host, figures(&text)?));
        step.done();
    }
    let table = rows(&all)?;
    println!("Instructions of disk and console\n\n{}", aligned(&table));
    Ok(table)
}

/// The generated part of the page.
pub fn markdown(rows: &[Vec<String>]) -> String {
    table(rows)
}

fn script() -> String {
    format!(
        r#". /etc/profile
hypervisor=$(argument gz.hypervisor)
dmesg | grep -i 'kvm.*initialized'
sleep 20
truncate -s 16M /tmp/disk.img
gz run --hypervisor ${{hypervisor:-gzvm}} --kernel /guest/Image --initrd /guest/io.cpio --cmdline "console=ttyS0 {arguments}" \
    --cpus 1 --mem 512M --disk /tmp/disk.img --console virtio </dev/null >/tmp/gz.out 2>&1
echo "[STATUS] gz $?"
grep -a '\[IO\]' /tmp/gz.out || tail -n 20 /tmp/gz.out
echo "{END}""#,
        arguments = machines::GUEST_ARGUMENTS
    )
}

/// The medians of all rounds.
fn figures(text: &str) -> Result<Figures> {
    let mut rounds: BTreeMap<String, Vec<Figure>> = BTreeMap::new();
    for line in text.lines() {
        let Some((_, report)) = line.split_once("[IO] ") else { continue };
        let field = |key: &str| {
            let words = report.split_whitespace();
            words.filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key)
        };
        let number = |key: &str| -> Result<u64> {
            let (_, value) = field(key).with_context(|| format!("no {key} in \"{line}\""))?;
            value.parse().with_context(|| format!("{key} in \"{line}\""))
        };
        let (_, name) = field("operation").with_context(|| format!("no operation in \"{line}\""))?;
        let figure = Figure {
            instructions: number("instructions")?,
            operations: number("operations")?,
            bytes: number("bytes")?,
        };
        rounds.entry(name.to_owned()).or_default().push(figure);
    }
    let mut figures = Figures::new();
    for (name, _) in OPERATIONS {
        let all = rounds.remove(name).unwrap_or_default();
        if all.len() != ROUNDS {
            bail!("{name}: {} of {ROUNDS} rounds gave a figure", all.len());
        }
        let counts: Vec<_> = all.iter().map(|figure| figure.instructions).collect();
        let instructions = median(&counts).context("no round")?;
        figures.insert(name.to_owned(), Figure { instructions, ..all[0] });
    }
    Ok(figures)
}

/// A row an operation and unit, a column a host.
fn rows(all: &[(Host, Figures)]) -> Result<Vec<Vec<String>>> {
    let mut head = vec!["operation".to_owned(), "instructions per".to_owned()];
    head.extend(all.iter().map(|(host, _)| host.name().to_owned()));
    let mut rows = vec![head];
    for (name, size) in OPERATIONS {
        for unit in [size, "MiB"] {
            let mut row = vec![name.to_owned(), unit.to_owned()];
            for (host, figures) in all {
                let figure = figures.get(name).with_context(|| format!("{}: no {name}", host.name()))?;
                let each = match unit {
                    "MiB" => (figure.instructions << 20) / figure.bytes,
                    _ => figure.instructions / figure.operations,
                };
                row.push(grouped(each));
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(rounds: usize) -> String {
        let mut text = String::new();
        for round in 1..=rounds {
            for (name, _) in OPERATIONS {
                text += &format!(
                    "[IO] operation={name} instructions={round}000000 operations=256 bytes=524288\n"
                );
            }
        }
        text
    }

    #[test]
    fn a_figure_is_the_median_of_all_rounds() {
        let figures = figures(&console(ROUNDS)).unwrap();
        let rows = rows(&[(Host::Gzvm, figures)]).unwrap();
        assert_eq!(rows.len(), 1 + 2 * OPERATIONS.len());
        assert_eq!(rows[1], ["seq-read", "64 KiB", "11,718"]);
        assert_eq!(rows[2], ["seq-read", "MiB", "6,000,000"]);
    }

    #[test]
    fn a_round_that_is_missing_is_an_error() {
        assert!(figures(&console(ROUNDS - 1)).unwrap_err().to_string().contains("4 of 5"));
        let broken = console(ROUNDS).replacen("bytes=", "byte=", 1);
        assert!(figures(&broken).unwrap_err().to_string().contains("no bytes"));
    }
}
