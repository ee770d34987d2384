// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask bench --scale`: many VMs alive at once, many vCPUs in one, and a guest that is larger than the host needs it to be.
//!
//! `gzvm-check scale` (`driver/check`) makes VMs of its own, so that hypervisor and driver are measured; `gz` is a process a VM, of
//! which the memory is told. The machine has 66 GiB by its device tree; what nobody touches this PC need not have.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, bail, ensure};
use gzvm_tests::{benchmark, initrd::Extra, layout::Layout};

use super::{
    Host, machines,
    plot::{Curves, Panel},
    report::{aligned, grouped, table},
};
use crate::process;

/// How many of each there are.
const VMS: [u64; 4] = [1, 10, 100, 1000];
const VCPUS: [u64; 6] = [1, 8, 16, 32, 48, 64];
const MIB: [u64; 4] = [64, 1 << 10, 16 << 10, 64 << 10];
/// `gz` processes whose memory is looked at together.
const PROCESSES: u64 = 10;
/// Of as many runs of the program the medians are taken.
const ROUNDS: usize = 5;
/// Seconds before each, for what the host's kernel puts off when a VM ends. Idle time takes none here.
const REST: u64 = 10;
const END: &str = "[END] all measured";

/// What a line of the program says.
type Fields = BTreeMap<String, u64>;

/// A table, and what it is of.
type Titled = (&'static str, Vec<Vec<String>>);

/// All that was measured.
pub struct Scale {
    /// By what, and how many.
    lines: BTreeMap<(String, u64), Vec<Fields>>,
    /// Starting a vCPU, in a guest with so many.
    starts: BTreeMap<u64, u64>,
    /// A life of `gz`, with so many MiB.
    lives: BTreeMap<u64, u64>,
    /// KiB of a `gz`, guest memory left out, with one and with [`PROCESSES`] alive.
    processes: Vec<u64>,
}

/// Measures; says what it found.
///
/// # Errors
/// If something could not be measured.
pub fn bench(layout: &Layout) -> Result<Scale> {
    let step = process::Step::new("1,000 VMs, 64 vCPUs, 64 GiB");
    let folder = layout.out.join("bench");
    fs::create_dir_all(&folder)?;
    let script = Extra::script(&script());
    let initrd = machines::initrd(layout, &folder, &[script, machines::stopwatch(&folder)?])?;
    let mut machine = machines::machine(layout, Host::Gzvm, initrd, "");
    "66G".clone_into(&mut machine.memory);
    let text = machines::run(layout, &mut machine, "scale")?;
    ensure!(text.contains(END), "the host did not come to the end of its script");
    let scale = Scale::read(&text)?;
    step.done();
    for (title, rows) in scale.tables()? {
        println!("\n{title}\n\n{}", aligned(&rows));
    }
    Ok(scale)
}

fn script() -> String {
    let list = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
    format!(
        r#". /etc/profile
sleep 20
ulimit -n 8192
# vCPUs first: with rounds of a thousand VMs and of 64 GiB between, some of their ends cost twice, rest or not.
scale() {{
    what=$1
    shift
    for round in {rounds}; do
        for number; do
            sleep {rest}
            gzvm-check scale $what $number
        done
    done
}}
scale vcpus {vcpus}
scale vms {vms}
scale memory {mib}
run() {{ gz run --kernel /guest/bench.Image "$@" </dev/null; }}
for number in {vcpus}; do
    echo "[VCPUS] $number"
    run --cmdline "console=ttyS0 vcpus=start" --cpus $number --mem 64M
done
for number in {mib}; do
    echo "[LIFE] $number"
    stopwatch
    run --cmdline "console=ttyS0 filter=hypercall iterations=1" --mem ${{number}}M >/dev/null
    stopwatch
done
# What of a process is not its guest's memory.
own() {{ awk '/^[0-9a-f]+-/ {{ ram = 0 }} /^Size:/ {{ ram = $2 >= 60000 }} /^Pss:/ {{ if (!ram) sum += $2 }} END {{ print sum }}' /proc/$1/smaps; }}
processes=
for number in 1 {processes}; do
    while [ $(echo $processes | wc -w) -lt $number ]; do
        gz run --kernel /guest/bench.Image --cmdline "console=ttyS0 sleep=1" --mem 64M </dev/null >/dev/null &
        processes="$processes $!"
    done
    sleep 5
    sum=0
    for process in $processes; do sum=$((sum + $(own $process))); done
    echo "[PROCESS] $((sum / number))"
done
kill $processes
wait
echo "{END}""#,
        rounds = list(&Vec::from_iter(1..=ROUNDS as u64)),
        vms = list(&VMS),
        vcpus = list(&VCPUS),
        mib = list(&MIB),
        processes = PROCESSES,
        rest = REST,
    )
}

impl Scale {
    fn read(text: &str) -> Result<Self> {
        let mut scale = Self {
            lines: BTreeMap::new(),
            starts: BTreeMap::new(),
            lives: BTreeMap::new(),
            processes: Vec::new(),
        };
        let (mut vcpus, mut life, mut start) = (0, None, None);
        for line in text.lines() {
            let after = |mark: &str| line.split_once(mark).map(|(_, rest)| rest.trim());
            if let Some(reason) = after("[FAIL] ") {
                bail!("the host says: {reason}");
            } else if let Some(report) = after("[SCALE] ") {
                let words: BTreeMap<_, _> =
                    report.split_whitespace().filter_map(|w| w.split_once('=')).collect();
                let what = words.get("what").context("a figure of nothing")?;
                let fields: Fields = words
                    .iter()
                    .filter_map(|(name, value)| Some(((*name).to_owned(), value.parse().ok()?)))
                    .collect();
                let number = fields.get("number").copied().context("a figure without a number")?;
                scale.lines.entry(((*what).to_owned(), number)).or_default().push(fields);
            } else if let Some(number) = after("[VCPUS] ") {
                vcpus = number.parse()?;
            } else if let Some(number) = after("[LIFE] ") {
                (life, start) = (Some(number.parse()?), None);
            } else if let Some(kib) = after("[PROCESS] ") {
                scale.processes.push(kib.parse()?);
            } else if let Some(operation) = benchmark::operation(line) {
                scale.starts.insert(vcpus, operation?.mean);
            } else if let (Some(value), Some(number)) = (super::results::counter(line), life) {
                match start {
                    None => start = Some(value),
                    Some(start) => {
                        scale.lives.insert(number, value - start);
                        life = None;
                    }
                }
            }
        }
        ensure!(scale.processes.len() == 2, "{} of 2 looks at processes", scale.processes.len());
        Ok(scale)
    }

    fn field(&self, what: &str, number: u64, field: &str) -> Result<u64> {
        let rounds = self.lines.get(&(what.to_owned(), number)).map_or(&[][..], Vec::as_slice);
        let values: Vec<_> = rounds.iter().filter_map(|fields| fields.get(field).copied()).collect();
        ensure!(
            values.len() == ROUNDS,
            "{} of {ROUNDS} rounds of {number} {what} have {field}",
            values.len()
        );
        super::results::median(&values).context("no round")
    }

    fn most(&self, what: &str, number: u64, field: &str) -> u64 {
        let rounds = self.lines.get(&(what.to_owned(), number)).into_iter().flatten();
        rounds.filter_map(|fields| fields.get(field).copied()).max().unwrap_or(0)
    }

    /// The tables, each with what it is of.
    fn tables(&self) -> Result<Vec<Titled>> {
        let head = |names: &[&str]| vec![names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()];
        let mut vms =
            head(&["VMs alive", "create", "first run", "next run", "destroy", "EL2, KiB", "host, KiB"]);
        for number in VMS {
            let each = |field| Ok::<_, anyhow::Error>(grouped(self.field("vms", number, field)? / number));
            ensure!(self.most("vms", number, "left_pages") == 0, "{number} VMs leave pages behind");
            vms.push(vec![
                grouped(number),
                each("create")?,
                each("first")?,
                each("again")?,
                each("destroy")?,
                grouped(self.field("vms", number, "run_pages")? * 4 / number),
                each("host_kib")?,
            ]);
        }
        let mut vcpus = head(&["vCPUs", "create", "destroy", "EL2, KiB", "start of a vCPU by the guest"]);
        for number in VCPUS {
            vcpus.push(vec![
                number.to_string(),
                grouped(self.field("vcpus", number, "create")?),
                grouped(self.field("vcpus", number, "destroy")?),
                grouped(self.field("vcpus", number, "created_pages")? * 4),
                self.starts.get(&number).map_or_else(|| "-".to_owned(), |count| grouped(*count)),
            ]);
        }
        let mut memory =
            head(&["RAM, MiB", "create", "first run", "destroy", "EL2, KiB", "whole life under gz"]);
        for number in MIB {
            let life = self.lives.get(&number).with_context(|| format!("no life with {number} MiB"))?;
            memory.push(vec![
                grouped(number),
                grouped(self.field("memory", number, "create")?),
                grouped(self.field("memory", number, "first")?),
                grouped(self.field("memory", number, "destroy")?),
                grouped(self.field("memory", number, "run_pages")? * 4),
                grouped(*life),
            ]);
        }
        let mut processes = head(&["gz processes alive", "each, KiB"]);
        for (number, kib) in [1, PROCESSES].into_iter().zip(&self.processes) {
            processes.push(vec![number.to_string(), grouped(*kib)]);
        }
        Ok(vec![
            ("Small VMs alive at once, for each of them:", vms),
            ("vCPUs in one VM, for all of them:", vcpus),
            ("RAM of one VM, of which the guest touches a page (64 MiB and more: sparse):", memory),
            ("Memory of a `gz` process besides its guest's RAM:", processes),
        ])
    }

    /// The generated part of the page.
    ///
    /// # Errors
    /// If a figure is missing.
    pub fn markdown(&self) -> Result<String> {
        let tables = self.tables()?;
        Ok(tables
            .iter()
            .map(|(title, rows)| format!("{title}\n\n{}", table(rows)))
            .collect::<Vec<_>>()
            .join("\n"))
    }

    /// The drawing.
    ///
    /// # Errors
    /// If a figure is missing.
    pub fn svg(&self) -> Result<String> {
        let curve = |what: &str, numbers: &[u64], field: &str, each: bool| -> Result<Vec<u64>> {
            let figure =
                |number: &u64| Ok(self.field(what, *number, field)? / if each { *number } else { 1 });
            numbers.iter().map(figure).collect()
        };
        let mut panels = Vec::new();
        for (title, what, numbers, each) in [
            ("for each VM, by the number of VMs alive", "vms", &VMS[..], true),
            ("for each vCPU, by their number in one VM", "vcpus", &VCPUS[..], true),
            ("for the VM, by its RAM in MiB", "memory", &MIB[..], false),
        ] {
            let fields =
                if what == "vcpus" { &["create", "destroy"][..] } else { &["create", "first", "destroy"] };
            let mut lines = Vec::new();
            for field in fields {
                lines.push(((*field).to_owned(), curve(what, numbers, field, each)?));
            }
            panels.push(Panel { title: format!("Instructions {title}"), numbers: numbers.to_vec(), lines });
        }
        Ok(Curves(panels).svg())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> String {
        let mut text = String::new();
        for (what, numbers) in
            (0..ROUNDS).flat_map(|_| [("vms", &VMS[..]), ("vcpus", &VCPUS), ("memory", &MIB)])
        {
            for number in numbers {
                text += &format!(
                    "[SCALE] what={what} number={number} create={0} first={0} again={0} destroy={0} created_pages={number} run_pages={0} host_kib={0} left_pages=0\n",
                    number * 100
                );
            }
        }
        for number in MIB {
            text += &format!("[LIFE] {number}\n[COUNTER] 0000000000000010\n[COUNTER] 0000000000000030\n");
        }
        text + "[VCPUS] 8\n[BENCH] operation=vcpu-start instructions=77 min=1 max=99 iterations=7\n[PROCESS] 5\n[PROCESS] 4\n"
    }

    #[test]
    fn costs_are_for_each() {
        let tables = Scale::read(&console()).unwrap().tables().unwrap();
        assert_eq!(tables[0].1[4], ["1,000", "100", "100", "100", "100", "400", "100"]);
        assert_eq!(tables[1].1[2], ["8", "800", "800", "32", "77"]);
        assert_eq!(tables[2].1[1][5], "32");
    }

    #[test]
    fn what_is_missing_or_left_is_an_error() {
        assert!(Scale::read(&console().replace("[PROCESS] 4", "")).is_err());
        let failed = console() + "[FAIL] scale vms 1000: can't make a VM: no memory\n";
        assert!(Scale::read(&failed).err().unwrap().to_string().contains("no memory"));
        let left = console().replacen("left_pages=0", "left_pages=3", 1);
        assert!(Scale::read(&left).unwrap().tables().unwrap_err().to_string().contains("leave"));
    }
}
