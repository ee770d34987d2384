// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Boot tier: what EL2 says when it can't start, and when it fails itself.
//!
//! Crashes are provoked in `hypervisor-crash.Image` by a call that only this image has
//! (hypervisor/src/hypercall/crash.rs), made by the test host (guests/testhost/src/crash.rs).

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::BOOT_LIMIT;
use crate::{
    console::Console,
    harness::{Case, Context, Tier},
    machine::{Boot, Kernel, Machine, QEMU},
};

const IMAGE: &str = "hypervisor.Image";
const CRASH_IMAGE: &str = "hypervisor-crash.Image";
const TESTHOST: &str = "guest-testhost.Image";

/// How long a CPU that has stopped is watched for more words.
const SILENCE: Duration = Duration::from_millis(700);
const HEADING: &str = "*** gzvm: ";
const HALTED: &str = "*** gzvm: halted\n";

/// A crash and what its report must say.
struct Crash {
    name: &'static str,
    /// Its number in hypervisor/src/hypercall/crash.rs.
    kind: u32,
    heading: &'static str,
    says: &'static [&'static str],
}

const CRASHES: [Crash; 8] = [
    Crash { name: "panic", kind: 0, heading: "hypervisor panic on CPU 0", says: &["crash test\n"] },
    Crash {
        name: "unmapped_read",
        kind: 1,
        heading: "exception at EL2 on CPU 0: data abort, read, translation fault at level 0\n",
        says: &["ESR 0x96000004 (EC 0x25, ISS 0x4)", "FAR 0xfffffffff000 ", "x0  0000000000000001 "],
    },
    Crash {
        name: "stack_overflow",
        kind: 2,
        heading: "exception at EL2 on CPU 0: data abort, write, translation fault at level 3\n",
        says: &["FAR is in the guard page of this CPU's stack: stack overflow\n"],
    },
    Crash {
        name: "text_write",
        kind: 3,
        heading: "exception at EL2 on CPU 0: data abort, write, permission fault at level 3\n",
        says: &["EC 0x25"],
    },
    Crash {
        name: "rodata_write",
        kind: 4,
        heading: "exception at EL2 on CPU 0: data abort, write, permission fault at level 3\n",
        says: &["EC 0x25"],
    },
    Crash {
        name: "data_execution",
        kind: 5,
        heading: "exception at EL2 on CPU 0: instruction abort, permission fault at level 3\n",
        says: &["EC 0x21"],
    },
    Crash {
        name: "undefined_instruction",
        kind: 6,
        heading: "exception at EL2 on CPU 0: unknown reason (undefined instruction)\n",
        says: &["EC 0x0,"],
    },
    Crash {
        name: "panic_with_console_locked",
        kind: 7,
        heading: "hypervisor panic on CPU 0",
        says: &["crash test with the console locked\n"],
    },
];

/// The tests of this file.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        boot("no_el2", |context| stops(context, &["-M", "virtualization=off"], "2G", "not started at EL2")),
        boot("no_gicv3", |context| {
            stops(context, &["-M", "gic-version=2"], "2G", "this machine has no GICv3")
        }),
        boot("little_memory", |context| stops(context, &[], "8M", "not enough memory: no free range")),
        boot("tree_without_memory", |context| {
            stops_with_tree(
                context,
                &[("memory@", "memorx@"), ("memory\0", "memorx\0")],
                "the device tree names no usable memory",
            )
        }),
        boot("tree_without_timer", |context| {
            let changes = [("arm,armv8-timer", "arm,armvX-timer"), ("arm,armv7-timer", "arm,armvX-timer")];
            stops_with_tree(context, &changes, "the device tree has no \"arm,armv8-timer\"")
        }),
        boot("broken_tree", broken_tree),
        boot("host_is_no_image", host_is_no_image),
        boot("log_ring", log_ring),
        Case::new(Tier::Boot, "el2::crash::not_in_the_normal_image", &[IMAGE, TESTHOST], |context| {
            let mut console = context.start(&with_testhost(context, IMAGE, "el2-crash=0"), "console")?;
            console.wait_for("el2-crash: there is no such call", BOOT_LIMIT)?;
            console.wait_power_off(Duration::from_secs(30))
        }),
        Case::new(Tier::Boot, "el2::crash::on_all_cpus", &[CRASH_IMAGE, TESTHOST], |context| {
            let machine = with_testhost(context, CRASH_IMAGE, "el2-crash=1 el2-crash-on=all");
            let report = report(context, &machine)?;
            ensure!(report.contains("exception at EL2 on CPU "), "no heading in:\n{report}");
            check_backtrace(context, &report)
        }),
    ];
    for crash in CRASHES {
        let name = format!("el2::crash::{}", crash.name);
        cases.push(Case::new(Tier::Boot, name, &[CRASH_IMAGE, TESTHOST], move |context| {
            crashes(context, &crash)
        }));
    }
    cases
}

fn boot(name: &str, body: fn(&Context) -> Result<()>) -> Case {
    Case::new(Tier::Boot, format!("el2::{name}"), &[IMAGE], body)
}

/// The hypervisor alone, with two CPUs.
fn alone(context: &Context) -> Machine {
    let mut machine =
        Machine::new(Boot::Hypervisor { image: context.layout.part(IMAGE), firmware: None, host: None });
    machine.smp = 2;
    machine
}

/// Nothing more may come.
fn stays_silent(console: &mut Console) -> Result<()> {
    let length = console.text().len();
    std::thread::sleep(SILENCE);
    let text = console.text();
    ensure!(text.len() == length, "it went on:\n{}", &text[length..]);
    Ok(())
}

/// The hypervisor says `why` in one line, and stops.
fn says_and_stops(console: &mut Console, why: &str) -> Result<()> {
    console.wait_for(why, BOOT_LIMIT)?;
    let rest = console.wait_for("Stopped.\n", BOOT_LIMIT)?;
    ensure!(!rest.contains('\n'), "more than a line: {rest}");
    stays_silent(console)
}

fn stops(context: &Context, options: &[&str], memory: &str, why: &str) -> Result<()> {
    let mut machine = alone(context);
    memory.clone_into(&mut machine.memory);
    machine.extra.extend(options.iter().map(Into::into));
    says_and_stops(&mut context.start(&machine, "console")?, why)
}

/// The device tree that QEMU makes for such a machine.
fn tree(context: &Context) -> Result<Vec<u8>> {
    let path = context.write("machine.dtb", b"")?;
    let board = format!("virt,virtualization=on,gic-version=3,dumpdtb={}", path.display());
    let arguments = ["-cpu", "max", "-m", "256M", "-nic", "none", "-display", "none", "-M", &board];
    let output = Command::new(QEMU).args(arguments).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(fs::read(path)?)
}

fn replace(tree: &mut [u8], from: &str, to: &str) -> Result<()> {
    let places: Vec<_> = tree
        .windows(from.len())
        .enumerate()
        .filter_map(|(at, window)| (window == from.as_bytes()).then_some(at))
        .collect();
    ensure!(!places.is_empty(), "QEMU's device tree has no {from}");
    for at in places {
        tree[at..at + from.len()].copy_from_slice(to.as_bytes());
    }
    Ok(())
}

/// A machine whose boot loader passes this device tree: two instructions that load x0 and go on to
/// the image. QEMU itself passes good trees only.
///
/// ```text
/// 0x4010_0000  movz x0, #0x4400, lsl #16; b 0x4020_0000    where the CPU starts
/// 0x4020_0000  the image, by -kernel
/// 0x4400_0000  the device tree
/// ```
fn with_tree(context: &Context, tree: &[u8]) -> Result<Machine> {
    const LOADER: u64 = 0x4010_0000;
    const BASE: u64 = 0x4020_0000;
    const TREE: u64 = 0x4400_0000;
    let path = context.write("passed.dtb", tree)?;
    let branch = 0x1400_0000 | (BASE - LOADER - 4) >> 2;
    let code = branch << 32 | 0xD280_0000 | 1 << 21 | (TREE >> 16) << 5;
    let mut machine = alone(context);
    machine.smp = 1;
    "256M".clone_into(&mut machine.memory);
    for device in [
        format!("loader,file={},addr={TREE:#x},force-raw=on", path.display()),
        format!("loader,addr={LOADER:#x},data={code:#x},data-len=8"),
        format!("loader,addr={LOADER:#x},cpu-num=0"),
    ] {
        machine.extra.extend(["-device".into(), device.into()]);
    }
    Ok(machine)
}

fn stops_with_tree(context: &Context, changes: &[(&str, &str)], why: &str) -> Result<()> {
    let mut tree = tree(context)?;
    for (from, to) in changes {
        replace(&mut tree, from, to)?;
    }
    says_and_stops(&mut context.start(&with_tree(context, &tree)?, "console")?, why)
}

/// Without a tree there is no console either: the log ring tells.
fn broken_tree(context: &Context) -> Result<()> {
    let good = tree(context)?;
    let mut no_magic = good.clone();
    no_magic[0] = 0;
    let mut no_structure = good.clone();
    let at = u32::from_be_bytes(good[8..12].try_into()?) as usize;
    no_structure[at..at + 4].fill(0xFF);
    for (name, tree) in [("no_magic", &no_magic), ("no_structure", &no_structure)] {
        let mut machine = with_tree(context, tree)?;
        let monitor = Monitor::of(&mut machine);
        let mut console = context.start(&machine, name)?;
        let mut ring = String::new();
        for _ in 0..100 {
            std::thread::sleep(Duration::from_millis(200));
            ring =
                monitor.memory(context, 0x4020_0000, 1 << 20).and_then(|m| ring_of(&m)).unwrap_or_default();
            if ring.contains("Stopped.") {
                break;
            }
        }
        ensure!(ring.contains("no valid device tree in x0. Stopped.\n"), "{name}: the ring says {ring:?}");
        stays_silent(&mut console)?;
        ensure!(console.text().is_empty(), "{name}: {}", console.text());
    }
    Ok(())
}

fn host_is_no_image(context: &Context) -> Result<()> {
    // What a compressed kernel starts with.
    let mut content = vec![0x1F, 0x8B, 8, 0];
    content.resize(1 << 16, 0xA5);
    let host =
        Kernel { image: context.write("kernel.gz", &content)?, initrd: None, arguments: String::new() };
    let mut machine = alone(context);
    machine.boot = Boot::Hypervisor { image: context.layout.part(IMAGE), firmware: None, host: Some(host) };
    let mut console = context.start(&machine, "console")?;
    says_and_stops(&mut console, "the host image can't be started: it is no arm64 Image")
}

/// Alone it reports what it found and idles; each line is in the RAM ring, too.
fn log_ring(context: &Context) -> Result<()> {
    let mut machine = alone(context);
    let monitor = Monitor::of(&mut machine);
    let mut console = context.start(&machine, "console")?;
    for line in ["GenieZone hypervisor ", "2 CPUs", "2048 MiB RAM", "GICv3: yes", "no host image", "idle"] {
        console.wait_for(line, BOOT_LIMIT)?;
    }
    console.wait_for("log ring at 0x", BOOT_LIMIT)?;
    let address = console.wait_for("\n", BOOT_LIMIT)?;
    let address = u64::from_str_radix(address.trim(), 16)?;
    stays_silent(&mut console)?;
    let memory = monitor.memory(context, address, 16 + (16 << 10))?;
    ensure!(memory.starts_with(b"GZVMLOG1"), "no magic number at {address:#x}");
    let (ring, text) = (ring_of(&memory)?, console.text());
    ensure!(ring == text, "the ring says\n{ring}\nthe console says\n{text}");
    Ok(())
}

/// What the log ring in a memory dump says: magic, bytes ever written, bytes.
fn ring_of(memory: &[u8]) -> Result<String> {
    let at = memory.windows(8).position(|window| window == b"GZVMLOG1").context("no log ring")?;
    let written = memory.get(at + 8..at + 16).context("the ring is cut off")?;
    let written = usize::try_from(u64::from_le_bytes(written.try_into()?))?;
    let bytes = memory.get(at + 16..at + 16 + written).context("the ring has wrapped")?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// QEMU's control socket.
struct Monitor {
    path: std::path::PathBuf,
}

impl Monitor {
    /// Gives the machine, which must not have started, one. Socket paths must be short: not among the logs.
    fn of(machine: &mut Machine) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("gzvm-{}-{number}.qmp", std::process::id()));
        machine.extra.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", path.display()).into()]);
        Self { path }
    }

    /// Physical memory.
    fn memory(&self, context: &Context, address: u64, size: u64) -> Result<Vec<u8>> {
        let file = context.file("memory");
        let mut stream = UnixStream::connect(&self.path).context("QEMU's control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let name = file.display();
        for command in [
            r#"{"execute":"qmp_capabilities"}"#.to_owned(),
            format!(
                r#"{{"execute":"pmemsave","arguments":{{"val":{address},"size":{size},"filename":"{name}"}}}}"#
            ),
        ] {
            stream.write_all(command.as_bytes())?;
            loop {
                let line = lines.next().context("QEMU closed its control socket")??;
                if line.contains("\"error\"") {
                    bail!("QEMU: {line}");
                }
                if line.contains("\"return\"") {
                    break;
                }
            }
        }
        fs::read(&file).with_context(|| format!("can't read {}", file.display()))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn with_testhost(context: &Context, image: &str, arguments: &str) -> Machine {
    let host = Kernel { image: context.layout.part(TESTHOST), initrd: None, arguments: arguments.to_owned() };
    Machine::new(Boot::Hypervisor { image: context.layout.part(image), firmware: None, host: Some(host) })
}

/// The crash report of a machine: one, whole, and nothing after it from the CPUs that crash.
fn report(context: &Context, machine: &Machine) -> Result<String> {
    let mut console = context.start(machine, "console")?;
    console.expect_panics();
    console.wait_for(HEADING, BOOT_LIMIT)?;
    let report = console.wait_for(HALTED, BOOT_LIMIT)?;
    ensure!(!report.contains(HEADING), "reports are mixed:\n{report}");
    stays_silent(&mut console)?;
    Ok(report)
}

fn crashes(context: &Context, crash: &Crash) -> Result<()> {
    let machine = with_testhost(context, CRASH_IMAGE, &format!("el2-crash={}", crash.kind));
    let report = report(context, &machine)?;
    ensure!(report.starts_with(crash.heading), "no \"{}\" in:\n{report}", crash.heading.trim());
    for text in crash.says {
        ensure!(report.contains(text), "no \"{}\" in:\n{report}", text.trim());
    }
    if report.starts_with("exception") {
        for register in (0..31).step_by(4) {
            ensure!(report.contains(&format!("\nx{register:<2} ")), "no x{register} in:\n{report}");
        }
    }
    check_backtrace(context, &report)
}

/// Each frame must be where a call returns to: behind a BL or BLR of the image.
fn check_backtrace(context: &Context, report: &str) -> Result<()> {
    let image = fs::read(context.layout.part(CRASH_IMAGE))?;
    let (_, frames) =
        report.split_once("backtrace (offsets in hypervisor.elf):\n").context("no backtrace")?;
    let mut count = 0;
    for line in frames.lines() {
        let offset = line.trim().strip_prefix("0x").context("an offset")?;
        let offset = usize::from_str_radix(offset, 16)?;
        ensure!(is_call(&image, offset.wrapping_sub(4)), "no call returns to {offset:#x}:\n{report}");
        count += 1;
    }
    ensure!(count >= 3, "{count} frames only:\n{report}");
    Ok(())
}

fn is_call(image: &[u8], offset: usize) -> bool {
    let Some(bytes) = image.get(offset..offset.wrapping_add(4)) else { return false };
    let word = bytes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    offset.is_multiple_of(4) && (word >> 26 == 0b10_0101 || word & 0xFFFF_FC1F == 0xD63F_0000)
}
