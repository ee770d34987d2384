// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Linux guests of several series, page sizes and vCPU counts under load (soak tier, and some of them in the system tier); memory sizes.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{BOOT_LIMIT, Host, WHOLE, scripted};
use crate::{
    harness::{Case, Context, Tier},
    initrd::{self, Extra},
    results::Results,
};

/// Kernels by the name that set-up gives them; the host's own is `linux-6.12`.
const KERNELS: [&str; 5] = ["linux-5.10", "linux-6.1", "linux-6.12", "linux-7.x", "linux-16k"];
const VCPUS: [u32; 4] = [1, 2, 8, 32];
/// Those of the system tier; the others are of the soak tier.
const QUICK: [(&str, u32); 4] = [("linux-6.1", 2), ("linux-6.12", 2), ("linux-6.12", 8), ("linux-7.x", 2)];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kernel in KERNELS {
        for vcpus in VCPUS {
            let series = kernel.trim_start_matches("linux-");
            cases.push(Case::new(
                if QUICK.contains(&(kernel, vcpus)) { Tier::System } else { Tier::Soak },
                format!("guests::linux::{series}::{vcpus}_vcpus"),
                WHOLE,
                move |context| under_load(context, kernel, vcpus),
            ));
        }
    }
    cases.push(Case::new(Tier::System, "guests::memory::32M", WHOLE, smallest));
    cases.push(Case::new(Tier::System, "guests::memory::128M", WHOLE, |context| {
        linux_with(context, "128M", "2G", 70)
    }));
    // The host has more; this PC gives what is touched.
    cases.push(Case::new(Tier::System, "guests::memory::8G", WHOLE, |context| {
        linux_with(context, "8G", "10G", 7900)
    }));
    cases
}

/// The bare-metal test guest looks at all of its memory.
fn smallest(context: &Context) -> Result<()> {
    let script = "run_gz --kernel /guest/testguest.Image --cpus 2 --mem 32M </dev/null
echo \"gz ended with $?\"";
    let mut console = context.start(&scripted(context, Host::Gzvm, script, &[])?.parallel(), "console")?;
    console.wait_for("gzvm test guest:", BOOT_LIMIT)?;
    console.wait_for("gz ended with 0", Duration::from_secs(240))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()
}

/// Linux with `memory` finds at least `least` MiB of it, on a host with `host`; and can use what the host can give.
fn linux_with(context: &Context, memory: &str, host: &str, least: u32) -> Result<()> {
    let work = format!(
        "megabytes=$(($(sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) / 1024))
echo \"$megabytes MiB\"
dd if=/dev/zero of=/tmp/file bs=1M count=32 2>/dev/null
[ $megabytes -ge {least} ] && [ $(md5sum </tmp/file | cut -c 1-8) = 58f06dd5 ] && echo MEMORY-IS-GOOD"
    );
    let guest = initrd::guest(&context.layout, &[Extra::script(&work)])?;
    let extra = Extra { path: "/guest/work.cpio".to_owned(), mode: 0o644, content: guest };
    let script = format!(
        "run_gz --kernel /guest/Image --initrd /guest/work.cpio --cpus 2 --mem {memory} \
    --cmdline 'console=ttyS0 panic=-1 quiet cryptomgr.notests' </dev/null
echo \"gz ended with $?\""
    );
    let mut machine = scripted(context, Host::Gzvm, &script, &[extra])?;
    host.clone_into(&mut machine.memory);
    let mut console = context.start(&machine, "console")?;
    console.wait_for("MEMORY-IS-GOOD", BOOT_LIMIT + BOOT_LIMIT)?;
    console.wait_for("gz ended with 0", Duration::from_secs(60))?;
    console.wait_power_off(Duration::from_secs(30))
}

/// Load, vCPUs off and on, suspend and resume, power-off; and no complaint of the guest's kernel.
fn under_load(context: &Context, kernel: &str, vcpus: u32) -> Result<()> {
    // Four CPUs of the host run them all, and QEMU runs those on fewer and has no trap for WFE: a vCPU that waits for a lock
    // burns the time that the lock's holder needs. By a clock that counts instructions that goes well, of 32 with few of them
    // busy at once; by this PC's one Linux sees interrupts that take half a second, and complains. Two are quicker by the PC's:
    // some of the load is for so many seconds.
    let by_instructions = vcpus > 2;
    let (at_once, seconds, workers, pairs) = match vcpus {
        ..=2 => (8, 4, vcpus, 20),
        3..=8 => (8, 2, vcpus, 4),
        _ => (2, 4, 2, 2),
    };
    let pages = if kernel.ends_with("16k") { 16 } else { 4 };
    let work = format!(
        "expected={vcpus} at_once={at_once} seconds={seconds} workers={workers} pairs={pairs} pages={pages}\n{}",
        include_str!("../../rootfs/guest-work")
    );
    let mut inside = vec![
        Extra::script(&work),
        Extra::text("/etc/test-library", include_str!("../../rootfs/test-library")),
    ];
    inside.extend(load(context)?);
    let guest = initrd::plain_guest(&context.layout, &inside)?;
    let extras =
        [Extra { path: "/guest/work.cpio".to_owned(), mode: 0o644, content: guest }, image(context, kernel)?];
    let mut machine = scripted(
        context,
        Host::Gzvm,
        &format!(
            ". /etc/test-library
run_gz --kernel /guest/other.Image --initrd /guest/work.cpio --cpus {vcpus} --mem 512M \
    --cmdline 'console=ttyS0 panic=-1 loglevel=5 no_console_suspend cryptomgr.notests' </dev/null
echo \"gz ended with $?\"
echo \"SYSTEM_SUSPEND was called $(counter guest_system_suspend) times\""
        ),
        &extras,
    )?;
    if !by_instructions {
        machine = machine.parallel();
    }
    let mut console = context.start(&machine, "console")?;
    console.wait_for("[GUEST] Linux ", BOOT_LIMIT + BOOT_LIMIT)?;
    console.wait_for("[DONE]", Duration::from_secs(1800))?;
    console.wait_for("gz ended with 0", Duration::from_secs(60))?;
    console.wait_for("SYSTEM_SUSPEND was called 1 times", Duration::from_secs(60))?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())?.check()?;
    ensure!(!console.text().contains("Call trace:"), "a kernel complained");
    Ok(())
}

/// The kernel as `/guest/other.Image`.
fn image(context: &Context, kernel: &str) -> Result<Extra> {
    let path = match kernel {
        "linux-6.12" => context.layout.kernel(),
        other => context.layout.guests_folder().join(format!("{other}.Image")),
    };
    Extra::file("/guest/other.Image", 0o644, &path)
        .context("set-up found no such kernel; `cargo xtask setup --tests --refresh` looks again")
}

/// The programs of the load and their libraries, below `/load`; the loader that they name, in `/lib`.
fn load(context: &Context) -> Result<Vec<Extra>> {
    const LOADER: &str = "ld-linux-aarch64.so.1";
    let folder = context.layout.guests_folder().join("load");
    let mut extras = vec![Extra::file(&format!("/lib/{LOADER}"), 0o755, &folder.join("lib").join(LOADER))?];
    for sub in ["bin", "lib"] {
        let from = folder.join(sub);
        let entries = fs::read_dir(&from)
            .with_context(|| format!("{}: run `cargo xtask setup --tests`", from.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = format!("/load/{sub}/{}", entry.file_name().to_string_lossy());
            extras.push(Extra::file(&path, 0o755, &entry.path())?);
        }
    }
    Ok(extras)
}
