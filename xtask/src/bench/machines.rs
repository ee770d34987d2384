// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The machine that is measured: the same to the byte in each run, with a counter that counts instructions.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gzvm_tests::{
    cases,
    cpio::Archive,
    initrd::Extra,
    layout::Layout,
    machine::{Boot, Machine},
};

use super::Host;
use crate::process;

const STOPWATCH: &str = include_str!("stopwatch.S");
/// CPUs of the host. Virtual time is the sum of what all CPUs execute; two are what an IPI between vCPUs needs.
pub const CPUS: u32 = 2;
/// Wall time of one machine. Counting excludes threads, and the PC may be busy.
const LIMIT: Duration = Duration::from_secs(1800);
/// For a Linux that is measured. KVM 6.12 in its protected mode hides these two features of `-cpu max` without telling a
/// guest, which then dies; to be the same everywhere, no guest uses them.
pub const GUEST_ARGUMENTS: &str = "quiet panic=-1 nokaslr arm64.nopauth arm64.nomops";

/// The program that prints the counter.
///
/// # Errors
/// If it can't be assembled.
pub fn stopwatch(folder: &Path) -> Result<Extra> {
    let (source, program) = (folder.join("stopwatch.S"), folder.join("stopwatch"));
    fs::write(&source, STOPWATCH)?;
    let mut compiler = Command::new("aarch64-linux-gnu-gcc");
    process::run(compiler.args(["-nostdlib", "-static", "-s", "-o"]).arg(&program).arg(&source))?;
    Extra::file("/bin/stopwatch", 0o755, &program)
}

/// The host's root with these files; one of them is its script.
///
/// # Errors
/// If the host's root was not built.
pub fn initrd(layout: &Layout, folder: &Path, extras: &[Extra]) -> Result<PathBuf> {
    let base = layout.part("host-initrd.cpio");
    let mut initrd = fs::read(&base).with_context(|| format!("can't read {}", base.display()))?;
    let mut archive = Archive::new();
    for extra in extras {
        archive.file(extra.path.trim_start_matches('/'), extra.mode, &extra.content);
    }
    initrd.extend(archive.finish());
    let path = folder.join("host-initrd.cpio");
    fs::write(&path, initrd).with_context(|| format!("can't write {}", path.display()))?;
    Ok(path)
}

/// The machine of a host that runs the script in its root; `word` is on its command line too.
pub fn machine(layout: &Layout, host: Host, initrd: PathBuf, word: &str) -> Machine {
    let (kind, mode) = match host {
        Host::Gzvm | Host::Gzvm7 => (cases::Host::Gzvm, ""),
        Host::GzvmProtected | Host::Gzvm7Protected => (cases::Host::Gzvm, "gz.protected=1"),
        Host::KvmVhe => (cases::Host::Kvm, ""),
        Host::KvmNvhe => (cases::Host::Kvm, "kvm-arm.mode=nvhe"),
        Host::KvmProtected => (cases::Host::Kvm, "kvm-arm.mode=protected"),
        Host::Kvm7Vhe => (cases::Host::Kvm, ""),
        Host::Kvm7ProtectedVm => (cases::Host::Kvm, "kvm-arm.mode=protected gz.protected=1"),
    };
    let mut boot = kind.boot(layout, initrd, &format!("nokaslr gz.mode=script {mode} {word}"));
    if host.is_newest_linux() {
        boot.set_kernel(layout.newest_linux());
    }
    with_cpus(boot)
}

/// The machine without EL2, on which the same kernel runs the script.
pub fn without_el2(layout: &Layout, initrd: PathBuf, word: &str) -> Machine {
    let mut machine =
        with_cpus(cases::Host::Kvm.boot(layout, initrd, &format!("nokaslr gz.mode=script {word}")));
    machine.extra = vec!["-M".into(), "virtualization=off".into()];
    machine
}

fn with_cpus(boot: Boot) -> Machine {
    let mut machine = Machine::new(boot);
    machine.smp = CPUS;
    machine
}

/// Runs it to its end: its console.
///
/// # Errors
/// If it did not come to it.
pub fn run(layout: &Layout, machine: &mut Machine, name: &str) -> Result<String> {
    machine.icount = true;
    let mut console = machine.start(&layout.logs().join(format!("bench-{name}.log")))?;
    console.wait_power_off(LIMIT)?;
    Ok(console.text())
}

/// The host's kernel must say that it runs in the mode that was asked for: Linux falls back without an error.
///
/// # Errors
/// If it does not.
pub fn check_mode(host: Host, text: &str) -> Result<()> {
    let modes: &[&str] = match host {
        Host::Gzvm | Host::GzvmProtected | Host::Gzvm7 | Host::Gzvm7Protected => return Ok(()),
        Host::KvmVhe | Host::Kvm7Vhe => &["VHE"],
        Host::KvmNvhe => &["Hyp nVHE"],
        // The latter: at EL2 with HCR_EL2.E2H set, on CPUs that have it.
        Host::KvmProtected | Host::Kvm7ProtectedVm => &["Protected nVHE", "Protected hVHE"],
    };
    if !modes.iter().any(|mode| text.contains(&format!("kvm [1]: {mode} mode initialized"))) {
        bail!("the host's kernel does not run KVM as {}", host.name());
    }
    Ok(())
}
