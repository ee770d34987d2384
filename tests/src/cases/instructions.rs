// SPDX-License-Identifier: Apache-2.0 OR MIT
//! System tier: what EL2 costs, in instructions and in memory, against the figures that the repository keeps (`tests/instructions.txt`).
//!
//! A figure is the least of an operation's iterations, which no tick of the host's has met: it is the same in each run of a
//! build. Whoever makes one rise by more than [`TOLERANCE`] changes the file in the same commit, so that the
//! change is seen. `cargo xtask bench --operation NAME --profile` says where the instructions go.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Host, WHOLE, scripted};
use crate::{
    benchmark,
    harness::{Case, Context, Tier},
};

const BASELINE: &str = include_str!("../../instructions.txt");
/// What a figure may rise by, in per cent.
const TOLERANCE: u64 = 2;
/// Counting excludes threads, and the PC may be busy.
const LIMIT: Duration = Duration::from_secs(600);
/// The host settles, and then runs the guest that measures. Virtual time in which all wait is skipped.
const SCRIPT: &str = ". /etc/profile
sleep 20
gz run --kernel /guest/bench.Image --cmdline 'console=ttyS0 filter=hypercall,gic-read,mmio-user,eoi,ipi,timer,ioeventfd' --cpus 2 --mem 64M </dev/null
gz run --kernel /guest/bench.Image --cmdline faults=2m --mem 256M </dev/null
";
const CALLS_BASELINE: &str = include_str!("../../instructions-calls.txt");
/// Two guests, of which one calls the other: on the same CPU, then on another one. The scheduler's choice would decide between the
/// two, and half as much again. Then a program of the host that calls a guest.
const CALLS: &str = ". /etc/profile
sleep 20
taskset 1 gz run --name echo --kernel /guest/bench.Image --cmdline calls=serve --mem 64M --rpc echo,clients=1 --rpc-with plain </dev/null >/dev/null &
until [ \"$(gz status echo)\" = running ]; do sleep 1; done
sleep 1
call=\"gz run --kernel /guest/bench.Image --cmdline calls=call --mem 64M --rpc-to echo@echo --rpc-with plain\"
taskset 1 $call </dev/null
taskset 2 $call </dev/null | sed s/=rpc-/=rpc-far-/
gz kill echo
for bytes in 0 4096; do taskset 1 gzvm-check calls 1000 $bytes; done
";
/// Rows of these are for the documentation, and not guarded: with two CPUs the host's timing counts, which differs between
/// builds of gz that do the same; and a program of the host has its own instructions in them.
const UNGUARDED: [&str; 2] = ["rpc-far-", "rpc-host-"];
/// What boot is called in the file: thousands of instructions until the host's kernel is entered.
const BOOT: &str = "boot-thousands";
/// KiB of RAM that the hypervisor takes of the machine's 2 GiB, besides its image.
const MEMORY: &str = "memory-kib";
/// KiB of the image's file.
const IMAGE: &str = "image-kib";

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::System, "instructions::plain_vm", WHOLE, plain_vm),
        Case::new(Tier::System, "instructions::calls", WHOLE, calls),
    ]
}

fn plain_vm(context: &Context) -> Result<()> {
    let text = console(context, SCRIPT)?;
    let mut figures = figures(&text)?;
    let image = context.layout.part("hypervisor.Image");
    let bytes = fs::metadata(&image).with_context(|| format!("no {}", image.display()))?.len();
    figures.insert(IMAGE.to_owned(), bytes.div_ceil(1024));
    compare(BASELINE, &figures)
}

fn calls(context: &Context) -> Result<()> {
    let text = console(context, CALLS)?;
    let mut figures = operations(&text)?;
    let all = figures.len();
    figures.retain(|name, _| UNGUARDED.iter().all(|rows| !name.starts_with(rows)));
    ensure!(all == figures.len() + 4, "not both calls were also made to another CPU, and by the host");
    compare(CALLS_BASELINE, &figures)
}

fn console(context: &Context, script: &str) -> Result<String> {
    let mut machine = scripted(context, Host::Gzvm, script, &[])?;
    machine.smp = 2;
    let mut console = context.start(&machine, "console")?;
    console.wait_power_off(LIMIT)?;
    Ok(console.text())
}

/// The operations that a console reports.
fn operations(text: &str) -> Result<BTreeMap<String, u64>> {
    let mut figures = BTreeMap::new();
    for operation in text.lines().filter_map(benchmark::operation) {
        let operation = operation?;
        figures.insert(operation.name.to_owned(), operation.least);
    }
    Ok(figures)
}

/// These, and what the boot took.
fn figures(text: &str) -> Result<BTreeMap<String, u64>> {
    let mut figures = operations(text)?;
    // A nanosecond is an instruction, so the microseconds in front of the line are thousands of them.
    let started = text.lines().find(|line| line.contains("host: kernel") && line.ends_with("starting"));
    let stamp = started.and_then(|line| line.split_once("gzvm [")?.1.split_once(']'));
    let seconds: f64 = stamp.context("EL2 does not say that it starts the host")?.0.trim().parse()?;
    figures.insert(BOOT.to_owned(), (seconds * 1e6).round() as u64);
    let memory = text.lines().find_map(|line| line.split_once("memory: ")?.1.split_once(" KiB of "));
    let (memory, _) = memory.context("EL2 does not say what memory it takes")?;
    figures.insert(MEMORY.to_owned(), memory.parse().context("memory that EL2 takes")?);
    Ok(figures)
}

/// Every line of the baseline against what was measured.
fn compare(baseline: &str, figures: &BTreeMap<String, u64>) -> Result<()> {
    let mut wrong = Vec::new();
    for line in baseline.lines().filter(|line| !line.starts_with('#')) {
        let (name, kept) = line.split_once(' ').context("the baseline's lines are \"name number\"")?;
        let kept: u64 = kept.trim().parse().with_context(|| format!("baseline of {name}"))?;
        match figures.get(name) {
            None => wrong.push(format!("{name} was not measured")),
            Some(now) if *now > kept + kept * TOLERANCE / 100 => {
                wrong.push(format!("{name}: {now}, was {kept}"))
            }
            Some(_) => {}
        }
    }
    if let Some(new) =
        figures.keys().find(|name| !baseline.lines().any(|l| l.split(' ').next() == Some(name)))
    {
        wrong.push(format!("{new} is not in the baseline"));
    }
    if !wrong.is_empty() {
        bail!("instructions: {} (if that is meant, change tests/instructions.txt)", wrong.join("; "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(pairs: &[(&str, u64)]) -> BTreeMap<String, u64> {
        pairs.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn a_rise_by_more_than_two_per_cent_is_found() {
        let baseline = "# comment\nipi 1000\neoi 1\n";
        compare(baseline, &measured(&[("ipi", 1020), ("eoi", 1)])).unwrap();
        compare(baseline, &measured(&[("ipi", 900), ("eoi", 1)])).unwrap();
        for (ipi, eoi, name) in [(1021, 1, "ipi"), (1000, 2, "eoi")] {
            let error = compare(baseline, &measured(&[("ipi", ipi), ("eoi", eoi)])).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(compare(baseline, &measured(&[("ipi", 1000)])).is_err(), "not measured");
        let more = measured(&[("ipi", 1000), ("eoi", 1), ("new", 1)]);
        assert!(compare(baseline, &more).is_err(), "not kept");
    }

    #[test]
    fn figures_are_read_from_the_console() {
        let text = "gzvm [   0.002470] INFO  memory: 7744 KiB of 2048 MiB for the hypervisor at 0xbf870000, image 344 KiB at 0x40200000
gzvm [   0.010501] INFO  host: kernel 0x50000000, 4168 bytes of device tree at 0xbf400000: starting
[BENCH] operation=ipi instructions=910 min=902 max=5000 iterations=1000";
        assert_eq!(figures(text).unwrap(), measured(&[("ipi", 902), (BOOT, 10_501), (MEMORY, 7744)]));
    }
}
