// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Reads figures from the console of a measured machine.
//!
//! Invariant: a figure is there only if all of its measurements are; else the reason is.

use std::collections::BTreeMap;

use gzvm_tests::benchmark;

use super::measure::Figures;

/// Operations of the bare-metal guest, in the order of the table.
pub const OPERATIONS: [&str; 8] =
    ["hypercall", "gic-read", "mmio-user", "eoi", "ipi", "timer", "ioeventfd", "irqfd"];
/// First touches of memory by the same guest: the host without huge pages, and with them.
pub const FAULTS: [&str; 2] = ["fault-4k", "fault-2m"];
/// The host alone at work.
pub const HOST_WORK: &str = "host-work";
/// The boot of a Linux guest.
pub const LINUX_BOOT: &str = "linux-boot";
/// An iteration of an operation that takes more than this was held up, by a lost wake-up for instance. The host's tick
/// is 4 million instructions; what it and its work add is far less.
pub const STALL: u64 = 1_000_000;

/// One figure of the table, in instructions of the whole machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figure {
    /// Operations: the median of the batches' means. Boot: the median of the boots.
    pub instructions: u64,
    /// The least of all iterations or boots.
    pub min: u64,
    /// The most.
    pub max: u64,
    /// Boot: from the start of the VMM, by the host's counter.
    pub from_start: Option<u64>,
    /// Boot: how counters of hypervisor and driver grew; medians.
    pub counters: BTreeMap<String, u64>,
}

impl Figure {
    /// Of single counts; `None` without any.
    pub fn median(counts: &[u64]) -> Option<Self> {
        Some(Self {
            instructions: median(counts)?,
            min: *counts.iter().min()?,
            max: *counts.iter().max()?,
            ..Self::default()
        })
    }
}

/// The middle; between the two middles, the lower one, which was measured.
pub fn median(counts: &[u64]) -> Option<u64> {
    let mut sorted = counts.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// Figures of the bare-metal guest, which ran `batches` times.
pub fn operations(text: &str, batches: u32) -> Figures {
    OPERATIONS.into_iter().chain(FAULTS).map(|name| (name, operation(text, name, batches))).collect()
}

/// What the host's work took: the counter before it and behind.
pub fn host_work(text: &str) -> Option<u64> {
    let mut counters = text.lines().skip_while(|line| line.trim() != "[WORK]").filter_map(counter);
    let start = counters.next()?;
    counters.next()?.checked_sub(start)
}

fn operation(text: &str, name: &str, batches: u32) -> Result<Figure, String> {
    let (mut means, mut least, mut most) = (Vec::new(), u64::MAX, 0);
    for line in text.lines() {
        if let Some(operation) = benchmark::operation(line) {
            let operation = operation.map_err(|error| format!("{name}: {error}"))?;
            if operation.name != name {
                continue;
            }
            means.push(operation.mean);
            least = least.min(operation.least);
            most = most.max(operation.most);
        } else if let Some(reason) = ["[SKIP] ", "[FAIL] "].iter().find_map(|mark| line.split_once(mark))
            && reason.1.split(':').next() == Some(name)
        {
            return Err(format!("the guest says: {}", reason.1));
        }
    }
    if means.len() != batches as usize {
        return Err(format!("{name}: {} of {batches} batches gave a figure", means.len()));
    }
    let instructions = median(&means).ok_or("no batch")?;
    Ok(Figure { instructions, min: least, max: most, ..Figure::default() })
}

/// Whose counter says how long a guest has been there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The guest's, which began with its VM; it is held against the host's.
    Guest,
    /// The host's, from the start of the VMM: the guest sees the machine's counter.
    Host,
}

/// The figure of `boots` Linux boots.
pub fn boots(text: &str, boots: u32, clock: Clock) -> Result<Figure, String> {
    let (mut from_creation, mut from_start) = (Vec::new(), Vec::new());
    let (mut stopwatch, mut before) = (Vec::new(), BTreeMap::new());
    let mut growth: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for line in text.lines() {
        if let Some((_, counters)) = line.split_once("[BEFORE] ") {
            (stopwatch, before) = (Vec::new(), pairs(counters));
        } else if let Some((_, counters)) = line.split_once("[AFTER] ") {
            for (name, value) in pairs(counters) {
                let grown = value.saturating_sub(before.get(&name).copied().unwrap_or(0));
                growth.entry(name).or_default().push(grown);
            }
        } else if let Some((_, digits)) = line.split_once("[INIT] ") {
            let guest =
                u64::from_str_radix(digits.trim(), 16).map_err(|_| format!("no counter in \"{line}\""))?;
            let [start, end] = stopwatch[..] else {
                return Err("the host's stopwatch did not run before and after a boot".to_owned());
            };
            let whole = end - start;
            // The guest's counter is what a hypervisor shows it; the host's is the judge.
            if clock == Clock::Guest && (guest > whole || whole - guest > whole / 8) {
                return Err(format!(
                    "the guest counted {guest} instructions until its init, the host {whole}"
                ));
            }
            from_creation.push(if clock == Clock::Guest { guest } else { whole });
            from_start.push(whole);
        } else if let Some(value) = counter(line) {
            stopwatch.push(value);
        }
    }
    if from_creation.len() != boots as usize {
        return Err(format!("{} of {boots} guests came to their init", from_creation.len()));
    }
    let mut figure = Figure::median(&from_creation).ok_or("no boot")?;
    figure.from_start = median(&from_start);
    figure.counters = growth.into_iter().filter_map(|(name, all)| Some((name, median(&all)?))).collect();
    Ok(figure)
}

/// What the stopwatch printed first.
pub fn counter(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once("[COUNTER] ")?;
    u64::from_str_radix(rest.lines().next()?.trim(), 16).ok()
}

fn pairs(text: &str) -> BTreeMap<String, u64> {
    let words: Vec<_> = text.split_whitespace().collect();
    words.chunks_exact(2).filter_map(|pair| Some((pair[0].to_owned(), pair[1].parse().ok()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCHES: &str = "\
[    1.372332] gzvm: GenieZone hypervisor 16.0.0
gzvm benchmark guest: 2 CPUs, 1000 iterations
[BENCH] operation=hypercall instructions=185 min=180 max=190 iterations=1000
[BENCH] operation=eoi instructions=1 min=1 max=1 iterations=1000
[SKIP] mmio-user: no test device (abort)
[FAIL] ipi: no answer from CPU 1 (lost true, Ok(()))
[DONE] benchmark
[BENCH] operation=hypercall instructions=900 min=185 max=40000 iterations=1000
[BENCH] operation=hypercall instructions=190 min=185 max=195 iterations=1000
[BENCH] operation=eoi instructions=1 min=1 max=1 iterations=1000
";

    #[test]
    fn a_figure_is_the_median_of_the_batches() {
        let figures = operations(BATCHES, 3);
        let figure = figures["hypercall"].as_ref().unwrap();
        assert_eq!((figure.instructions, figure.min, figure.max), (190, 180, 40000));
    }

    #[test]
    fn what_is_missing_says_why() {
        let figures = operations(BATCHES, 3);
        let reason = |name: &str| figures[name].as_ref().unwrap_err().clone();
        assert!(reason("eoi").contains("2 of 3 batches"));
        assert!(reason("mmio-user").contains("no test device"));
        assert!(reason("ipi").contains("no answer"));
        assert!(reason("timer").contains("0 of 3"));
        assert_eq!(figures.len(), OPERATIONS.len() + FAULTS.len());
    }

    const BOOT: &str = "\
[BEFORE] driver_vms 0 guest_exit 1000
[COUNTER] 0000000000001000
[    1.830050] reboot: Power down
[COUNTER] 0000000000001850
[AFTER] driver_vms 1 guest_exit 1700
[INIT] 0000000000000800
";

    #[test]
    fn a_boot_counts_by_the_guest_and_is_checked_by_the_host() {
        let figure = boots(BOOT, 1, Clock::Guest).unwrap();
        assert_eq!((figure.instructions, figure.from_start), (0x800, Some(0x850)));
        assert_eq!(figure.counters["guest_exit"], 700);
        assert!(boots(BOOT, 2, Clock::Guest).unwrap_err().contains("1 of 2"));
        let slow = BOOT.replace("[INIT] 0000000000000800", "[INIT] 0000000000000400");
        assert!(boots(&slow, 1, Clock::Guest).unwrap_err().contains("the host"));
        assert_eq!(boots(&slow, 1, Clock::Host).unwrap().instructions, 0x850);
        let lost = BOOT.replacen("[COUNTER]", "[C", 1);
        assert!(boots(&lost, 1, Clock::Guest).is_err());
    }

    #[test]
    fn work_is_between_two_looks_at_the_counter() {
        let text =
            "[COUNTER] 0000000000000001\n[WORK]\n[COUNTER] 0000000000000010\n[COUNTER] 0000000000000020\n";
        assert_eq!(host_work(text), Some(16));
        assert_eq!(host_work("[WORK]\n[COUNTER] 0000000000000010\n"), None);
        assert_eq!(host_work(""), None);
    }

    #[test]
    fn the_median_was_measured() {
        assert_eq!(median(&[4, 1, 3, 2]), Some(2));
        assert_eq!(median(&[7]), Some(7));
        assert_eq!(median(&[]), None);
    }
}
