// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A whole Debian for arm64, as tests have it for a guest: systemd, an ssh server, fio, iperf3.
//!
//! ```text
//!  packages ─ dpkg-deb ─► one tar file, with dpkg's database: all is "unpacked"
//!     ─ a machine without hypervisor ─► file system: unpacked, configured by dpkg there
//!     ─ imago ─► debian.qcow2 ─ mke2fs ─► host.img, a disk for the host VM with that file
//! ```
//! Neither root nor the kernel's help with foreign programs is needed: packages' own scripts run in the emulated machine only. That is
//! what multistrap does, and mmdebstrap can't (foreign packages can be configured by it with binfmt only).
//!
//! Only the soak tier needs it, so only `cargo xtask setup --debian` and `cargo xtask test soak` make it.

use std::{
    fmt::Write,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gzvm_tests::{
    initrd::{self, Extra},
    layout::Layout,
    machine::{Boot, Kernel, Machine},
    qcow2,
};

use super::apt::{self, Source, State};
use crate::process::{self, Step};

/// Counts up when what is made here changes, so that older results are made again.
const RECIPE: &str = "2";

/// What is asked for; what these need comes by itself.
const PACKAGES: [&str; 17] = [
    "?essential",
    "apt",
    "debian-archive-keyring",
    "systemd",
    "systemd-sysv",
    "login",
    "systemd-resolved",
    "libpam-systemd",
    "udev",
    "dbus",
    "kmod",
    "procps",
    "iproute2",
    "iputils-ping",
    "openssh-server",
    "fio",
    "iperf3",
];
/// The first that has all of them wins.
const SUITES: [&str; 3] = ["trixie", "stable", "testing"];

/// The guest's disk, and the host's, which holds it.
const GUEST_BYTES: u64 = 4 << 30;
const HOST_BYTES: u64 = 8 << 30;
/// Configuring takes a minute or two on an idle PC.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Inside: unpacks and configures. The first argument of the kernel's command line that is ours says where.
const SECOND_STAGE: &str = include_str!("../../../tests/rootfs/debian-second-stage");

fn stamp(layout: &Layout) -> Result<String> {
    Ok(format!("{RECIPE} {}\n", layout.release()?))
}

/// Is it there?
pub fn complete(layout: &Layout) -> bool {
    let there = fs::read_to_string(layout.debian_folder().join("stamp")).unwrap_or_default();
    stamp(layout).is_ok_and(|stamp| stamp == there)
}

/// Makes it.
///
/// # Errors
/// If Debian lacks something, the network fails, or a package can't be configured.
pub fn install(layout: &Layout, codename: &str) -> Result<()> {
    let folder = layout.debian_folder();
    let new = folder.with_extension("new");
    drop(fs::remove_dir_all(&new));
    fs::create_dir_all(&new)?;
    let step = Step::new("Packages of a whole Debian for arm64 (some 80 MB)");
    let (source, packages) = fetch(layout, codename)?;
    step.done();
    let step = Step::new(format!("Unpacking {} packages", packages.len()));
    let tar = new.join("root.tar");
    pack(layout, &packages, &new.join("db"), &tar)?;
    step.done();
    let step = Step::new("Configuring them in an emulated machine (minutes)");
    let raw = new.join("root.img");
    make_fs(&raw, GUEST_BYTES, None)?;
    configure(layout, &source, &tar, &raw, &new)?;
    step.done();
    let step = Step::new("Images of disks");
    let key = new.join("key");
    process::run(e2fs("debugfs").args(["-R", &format!("dump /root/.ssh/key {}", key.display())]).arg(&raw))?;
    if !fs::read_to_string(&key).is_ok_and(|key| key.contains("PRIVATE KEY")) {
        bail!("no key in {}", raw.display());
    }
    let content = new.join("content");
    fs::create_dir(&content)?;
    qcow2::convert(&raw, &content.join("debian.qcow2"))?;
    make_fs(&new.join("host.img"), HOST_BYTES, Some(&content))?;
    fs::remove_dir_all(&content)?;
    fs::remove_dir_all(new.join("db"))?;
    for file in [tar, raw] {
        fs::remove_file(file)?;
    }
    fs::write(new.join("stamp"), stamp(layout)?)?;
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::rename(&new, &folder)?;
    step.done();
    Ok(())
}

/// The suite, and the packages' files.
fn fetch(layout: &Layout, codename: &str) -> Result<(Source, Vec<PathBuf>)> {
    let sources = apt::machine_sources()?;
    for suite in SUITES {
        let source = apt::mirror(&sources, codename, &[suite])?;
        let folder = layout.cache.join("apt").join(format!("debian-{suite}"));
        let Ok(state) = State::update(&folder, "arm64", std::slice::from_ref(&source)) else { continue };
        if let Ok(packages) = state.closure(&PACKAGES) {
            return Ok((source, packages));
        }
    }
    bail!("no suite has all of {}; looked in {}", PACKAGES.join(", "), SUITES.join(", "));
}

/// Puts all `packages`, dpkg's database, and the kernel's modules into one tar file, with the owners that the packages say.
fn pack(layout: &Layout, packages: &[PathBuf], db: &Path, tar: &Path) -> Result<()> {
    let dpkg = db.join("var/lib/dpkg");
    for sub in ["info", "updates", "triggers"] {
        fs::create_dir_all(dpkg.join(sub))?;
    }
    let (control, one) = (db.with_extension("control"), db.with_extension("tar"));
    let mut status = String::new();
    for package in packages {
        drop(fs::remove_dir_all(&control));
        process::run(Command::new("dpkg-deb").arg("-e").arg(package).arg(&control))?;
        process::run(
            Command::new("sh")
                .args(["-c", r#"dpkg-deb --fsys-tarfile "$1" >"$2""#, "sh"])
                .arg(package)
                .arg(&one),
        )?;
        describe(&control, &one, &dpkg.join("info"), &mut status)?;
        if tar.exists() {
            process::run(Command::new("tar").arg("-Af").arg(tar).arg(&one))?;
        } else {
            fs::rename(&one, tar)?;
        }
    }
    fs::remove_dir_all(&control)?;
    drop(fs::remove_file(&one));
    fs::write(dpkg.join("status"), status)?;
    fs::write(dpkg.join("info/format"), "1\n")?;
    let append = |folder: &Path, what: &str, place: &str| {
        let mut command = Command::new("tar");
        command.args(["--owner=0", "--group=0", "--mode=go=u-w", &format!("--transform=s,^{what},{place},")]);
        process::run(command.arg("-rf").arg(tar).arg("-C").arg(folder).arg(what))
    };
    append(db, "var", "./var")?;
    append(&layout.cache.join("host"), "modules", &format!("./usr/lib/modules/{}", layout.release()?))
}

/// What dpkg knows of a package that is unpacked: its scripts, its files, its stanza in the status.
fn describe(control: &Path, tar: &Path, info: &Path, status: &mut String) -> Result<()> {
    let text = fs::read_to_string(control.join("control"))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let mut name = field("Package:").to_owned();
    if field("Multi-Arch:") == "same" {
        name = format!("{name}:{}", field("Architecture:"));
    }
    for entry in fs::read_dir(control)? {
        let entry = entry?;
        let part = entry.file_name().to_string_lossy().into_owned();
        if part != "control" {
            fs::copy(entry.path(), info.join(format!("{name}.{part}")))?;
        }
    }
    let files = process::output(Command::new("tar").arg("-tf").arg(tar))?;
    let mut list = String::new();
    for file in files.lines() {
        let file = file.trim_start_matches('.').trim_end_matches('/');
        writeln!(list, "{}", if file.is_empty() { "/." } else { file })?;
    }
    fs::write(info.join(format!("{name}.list")), list)?;
    let (first, rest) = text.split_once('\n').context("a control file of one line")?;
    writeln!(status, "{first}\nStatus: install ok unpacked\n{}", rest.trim_end())?;
    if let Ok(conffiles) = fs::read_to_string(control.join("conffiles")) {
        writeln!(status, "Conffiles:")?;
        // Such as come without a flag before the name.
        for file in conffiles.lines().filter(|line| line.starts_with('/')) {
            writeln!(status, " {file} newconffile")?;
        }
    }
    writeln!(status)?;
    Ok(())
}

/// Runs the second stage on the disk `raw`.
fn configure(layout: &Layout, source: &Source, tar: &Path, raw: &Path, folder: &Path) -> Result<()> {
    // The system has its own keys.
    let sources =
        Source { signed_by: "/usr/share/keyrings/debian-archive-keyring.gpg".to_owned(), ..source.clone() };
    let extras = [
        Extra::script(SECOND_STAGE),
        Extra::text("/debian.sources", &sources.render()),
        Extra::text("/release", &layout.release()?),
    ];
    let initrd = folder.join("initrd.cpio");
    fs::write(&initrd, initrd::guest(layout, &extras)?)?;
    let mut machine = Machine::new(Boot::Direct(Kernel {
        image: layout.kernel(),
        initrd: Some(initrd.clone()),
        arguments: "console=ttyAMA0 panic=-1 quiet".to_owned(),
    }));
    machine.smp = 2;
    for (serial, file) in [("root", raw), ("tar", tar)] {
        let drive = format!("if=none,id={serial},format=raw,cache=unsafe,file={}", file.display());
        machine.extra.extend(["-drive".into(), drive.into(), "-device".into()]);
        machine.extra.push(format!("virtio-blk-device,drive={serial},serial={serial}").into());
    }
    let log = layout.cache.join("debian.log");
    let mut console = machine.start(&log)?;
    let end = console.wait_for("[SECOND-STAGE]", PATIENCE);
    let done = end.is_ok() && console.wait_power_off(Duration::from_secs(60)).is_ok();
    if !done || !console.text().contains("[SECOND-STAGE] done") {
        bail!("packages could not be configured; the machine's console is in {}", log.display());
    }
    fs::remove_file(log)?;
    fs::remove_file(initrd)?;
    Ok(())
}

/// An ext4 file system in a sparse file, with what is in `content`.
fn make_fs(path: &Path, bytes: u64, content: Option<&Path>) -> Result<()> {
    File::create(path)?.set_len(bytes)?;
    let mut command = e2fs("mke2fs");
    command.args(["-q", "-t", "ext4", "-E", "root_owner=0:0"]);
    if let Some(content) = content {
        command.arg("-d").arg(content);
    }
    process::run(command.arg(path))
}

/// These lie in sbin, which a user's PATH may lack.
fn e2fs(program: &str) -> Command {
    Command::new(process::find(program).unwrap_or_else(|| Path::new("/usr/sbin").join(program)))
}
