// SPDX-License-Identifier: GPL-2.0-only
//! What many VMs, vCPUs and much memory cost: `scale vms N`, `scale vcpus N`, `scale memory MIB`. A line of figures each, in
//! nanoseconds, which are instructions where the machine counts those.

use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::time::Instant;

use gzvm_abi::ioctl;
use gzvm_abi::reg;

use crate::machine::{DEVICE, RAM, Run, STORE, gic_of, region, set_register, vm};
use crate::sys::{self, Mapping};

/// RAM of a small VM.
const SMALL: usize = 64 << 10;

/// A VM with RAM of which nothing has been touched but the first page.
struct Small {
    vcpus: Vec<OwnedFd>,
    _vm: OwnedFd,
    _ram: Mapping,
}

impl Small {
    fn new(size: usize, vcpus: u64) -> Result<Self, String> {
        let make = || {
            let ram = Mapping::new(size, true);
            for (n, word) in STORE.iter().enumerate() {
                ram.put(4 * n, *word);
            }
            let vm = vm()?;
            let mut ask = ioctl::extension::MAX_VCPUS;
            sys::ioctl_with(&vm, ioctl::CHECK_EXTENSION, &mut ask)?;
            region(&vm, 0, RAM, size as u64, ram.address())?;
            gic_of(&vm, vcpus)?;
            let mut all = Vec::new();
            for id in 0..vcpus {
                all.push(sys::owned(sys::ioctl(&vm, ioctl::CREATE_VCPU, id)?));
            }
            for (register, value) in [(reg::PC, RAM), (reg::X0, DEVICE)] {
                set_register(&all[0], register, value)?;
            }
            Ok(Self { vcpus: all, _vm: vm, _ram: ram })
        };
        make().map_err(|e: std::io::Error| format!("can't make a VM: {e}"))
    }

    /// Until its next store to a device.
    fn run(&self) -> Result<(), String> {
        Run::new().mmio(&self.vcpus[0]).map(drop)
    }
}

/// A line of `/proc/meminfo`, in KiB.
fn meminfo(name: &str) -> u64 {
    value("/proc/meminfo", name)
}

fn value(file: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Pages of the hypervisor's pool, and of those that it was given for tables.
fn hypervisor_pages() -> u64 {
    let counters = "/sys/kernel/debug/gzvm/counters";
    value(counters, "pool_used") + value(counters, "driver_table_pages")
}

/// Runs it.
pub fn main(arguments: &[String]) -> ExitCode {
    let [what, number] = arguments else { return usage() };
    let Ok(number) = number.parse() else { return usage() };
    let (count, size, vcpus) = match what.as_str() {
        "vms" => (number, SMALL, 1),
        "vcpus" => (1, SMALL, number as u64),
        "memory" => (1, number << 20, 1),
        _ => return usage(),
    };
    match measure(count, size, vcpus) {
        Ok(figures) => {
            println!("[SCALE] what={what} number={number} {figures}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("[FAIL] scale {what} {number}: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    println!("scale vms|vcpus|memory NUMBER");
    ExitCode::FAILURE
}

/// Makes `count` VMs, lets them all run, twice, and takes them away.
fn measure(count: usize, size: usize, vcpus: u64) -> Result<String, String> {
    let mut all = Vec::with_capacity(count);
    let (pages, free) = (hypervisor_pages(), meminfo("MemFree:"));
    let start = Instant::now();
    for _ in 0..count {
        all.push(Small::new(size, vcpus)?);
    }
    let create = start.elapsed();
    let created = hypervisor_pages();
    let start = Instant::now();
    all.iter().try_for_each(Small::run)?;
    let first = start.elapsed();
    let start = Instant::now();
    all.iter().try_for_each(Small::run)?;
    let again = start.elapsed();
    let (run, now) = (hypervisor_pages(), meminfo("MemFree:"));
    let start = Instant::now();
    drop(all);
    let destroy = start.elapsed();
    let left = hypervisor_pages().saturating_sub(pages);
    Ok(format!(
        "create={} first={} again={} destroy={} created_pages={} run_pages={} host_kib={} left_pages={left}",
        create.as_nanos(),
        first.as_nanos(),
        again.as_nanos(),
        destroy.as_nanos(),
        created.saturating_sub(pages),
        run.saturating_sub(pages),
        free.saturating_sub(now),
    ))
}
