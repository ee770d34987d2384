// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask bench`: instructions per operation, under gzvm and under its peers.
//!
//! The same guests are run by the same VMM in QEMU that counts instructions instead of time; a table on the terminal,
//! and on request JSON and the generated part of `docs/benchmarks.md`, which also says what the figures mean.
//!
//! Invariants: one machine runs at a time; a figure that could not be measured is an error in the table and a status
//! other than zero, never a gap.
//!
//! [`machines`] are what is measured, [`measure`] runs them, [`results`] reads their consoles, [`profile`] says where EL2's instructions go, [`report`]
//! writes tables and JSON, [`plot`] the drawing. [`io`] and [`scale`] are tables of their own.

mod io;
mod machines;
mod measure;
mod plot;
mod profile;
mod report;
mod results;
mod scale;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use gzvm_tests::layout::Layout;

use self::{
    measure::Plan,
    report::{Column, Report},
};
use crate::{
    build::{self, Part},
    process, setup,
};

/// What runs at EL2 below the VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// Our hypervisor; Linux is its host VM at EL1
    Gzvm,
    /// Our hypervisor, with a protected VM: firmware, signature and bounce buffers included
    GzvmProtected,
    /// KVM, the host's kernel at EL2 (what Linux does on Armv8.1 and newer)
    KvmVhe,
    /// KVM, the host's kernel at EL1 (kvm-arm.mode=nvhe)
    KvmNvhe,
    /// KVM that does not trust the host's kernel (kvm-arm.mode=protected), with a VM that is not protected
    KvmProtected,
    /// As gzvm, the host's kernel the newest Linux that set-up finds (7.3 or newer)
    Gzvm7,
    /// As gzvm-protected, of that Linux
    Gzvm7Protected,
    /// As kvm-vhe, of that Linux
    Kvm7Vhe,
    /// KVM of that Linux, with a protected VM
    Kvm7ProtectedVm,
}

impl Host {
    /// Is our hypervisor at EL2?
    pub const fn is_gzvm(self) -> bool {
        matches!(self, Self::Gzvm | Self::GzvmProtected | Self::Gzvm7 | Self::Gzvm7Protected)
    }

    /// Is the VM a protected one?
    pub const fn protected_vm(self) -> bool {
        matches!(self, Self::GzvmProtected | Self::Gzvm7Protected | Self::Kvm7ProtectedVm)
    }

    /// Is the host's kernel not the stock one of all others?
    pub const fn is_newest_linux(self) -> bool {
        matches!(self, Self::Gzvm7 | Self::Gzvm7Protected | Self::Kvm7Vhe | Self::Kvm7ProtectedVm)
    }

    /// As in the table and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzvm => "gzvm",
            Self::GzvmProtected => "gzvm-protected",
            Self::KvmVhe => "kvm-vhe",
            Self::KvmNvhe => "kvm-nvhe",
            Self::KvmProtected => "kvm-protected",
            Self::Gzvm7 => "gzvm7",
            Self::Gzvm7Protected => "gzvm7-protected",
            Self::Kvm7Vhe => "kvm7-vhe",
            Self::Kvm7ProtectedVm => "kvm7-protected-vm",
        }
    }
}

/// What `bench` may be told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Write the figures as a list of objects {operation, host, vm, instructions, ...}
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Fewer batches of each operation, and two Linux boots: less exact
    #[arg(long)]
    pub quick: bool,
    /// Only this host; may be given several times
    #[arg(long, value_enum, value_name = "HOST")]
    pub host: Vec<Host>,
    /// Only this operation; may be given several times
    #[arg(long, value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(report::operations()))]
    pub operation: Vec<String>,
    /// Say where EL2's instructions go, by exception and by symbol (gzvm hosts; best with one operation)
    #[arg(long)]
    pub profile: bool,
    /// Write the figures and the plot into docs/ (docs/benchmarks.md, .svg and .json)
    #[arg(long, conflicts_with_all = ["quick", "host", "operation"])]
    pub docs: bool,
    /// Disk and console of a Linux guest instead, under gzvm and KVM
    #[arg(long, conflicts_with_all = ["quick", "operation", "profile", "json"])]
    pub io: bool,
    /// Many VMs, vCPUs and much memory instead, under gzvm
    #[arg(long, conflicts_with_all = ["quick", "host", "operation", "profile", "json", "io"])]
    pub scale: bool,
    /// Measure what is in target/gz, build nothing
    #[arg(long)]
    pub no_build: bool,
}

/// Measures.
///
/// # Errors
/// If a figure could not be measured; after what could be has been written.
pub fn bench(layout: &Layout, options: &Options) -> Result<()> {
    let all: &[Host] = match options {
        Options { io: true, .. } => &io::HOSTS,
        Options { scale: true, .. } => &[Host::Gzvm],
        _ => Host::value_variants(),
    };
    let mut hosts = if options.host.is_empty() { all.to_vec() } else { options.host.clone() };
    hosts.dedup();
    if !options.no_build {
        let newest = hosts.iter().any(|host| host.is_newest_linux());
        setup::ensure(layout, &setup::Options { newest, ..setup::Options::default() })?;
        let peers = [Part::Guests, Part::Gz, Part::Rootfs];
        build::build(layout, if hosts.iter().any(|host| host.is_gzvm()) { &build::ALL } else { &peers })?;
        if hosts.iter().any(|host| host.is_gzvm() && host.is_newest_linux()) {
            build::driver::build_newest(layout)?;
        }
    }
    if options.io {
        let rows = io::bench(layout, &hosts)?;
        return if options.docs { write_page(layout, IO, &io::markdown(&rows)) } else { Ok(()) };
    }
    if options.scale {
        let scale = scale::bench(layout)?;
        if options.docs {
            fs::write(layout.root.join("docs/benchmarks-scale.svg"), scale.svg()?)?;
            write_page(layout, SCALE, &scale.markdown()?)?;
        }
        return Ok(());
    }
    let plan = Plan::new(layout, options)?;
    let mut columns = Vec::new();
    for host in hosts {
        let step = process::Step::new(format!("counting instructions under {}", host.name()));
        let (figures, profile) = match plan.measure(host) {
            Ok((figures, profile)) => (Ok(figures), profile),
            Err(error) => (Err(format!("{error:#}")), None),
        };
        columns.push(Column { host, figures, profile });
        step.done();
    }
    let step = process::Step::new("the same Linux without a hypervisor");
    let bare_metal = plan.bare_metal();
    step.done();
    let report =
        Report { columns, operations: plan.operations().to_vec(), bare_metal, about: about(layout)? };
    print!("{}", report.terminal());
    if let Some(file) = &options.json {
        let text = report.json()?;
        fs::write(file, text).with_context(|| format!("can't write {}", file.display()))?;
        eprintln!("The figures are in {}", file.display());
    }
    let problems = report.problems();
    if options.docs && problems.is_empty() {
        write_docs(layout, &report)?;
    }
    if !problems.is_empty() {
        bail!(
            "{} of the measurements failed; consoles are in {}/bench-*.log",
            problems.len(),
            layout.logs().display()
        );
    }
    Ok(())
}

/// What was measured with which versions.
fn about(layout: &Layout) -> Result<String> {
    let qemu = process::output(std::process::Command::new(gzvm_tests::machine::QEMU).arg("--version"))?;
    let qemu = qemu.lines().next().unwrap_or_default().split_once(" (").map_or("", |(version, _)| version);
    let newest = setup::guests::newest_release(layout).unwrap_or_else(|_| "not there".to_owned());
    Ok(format!("{qemu}, Linux {} as host and guest (gzvm7, kvm7: host {newest})", layout.release()?))
}

fn write_docs(layout: &Layout, report: &Report) -> Result<()> {
    write_page(layout, report::BEGIN, &report.markdown())?;
    fs::write(layout.root.join("docs/benchmarks.json"), report.json()?)?;
    let svg = layout.root.join("docs/benchmarks.svg");
    fs::write(&svg, plot::svg(report))?;
    eprintln!("Written: {}", svg.display());
    Ok(())
}

/// Where `--io` and `--scale` write.
const IO: &str = "<!-- generated by `cargo xtask bench --io --docs`: begin -->";
const SCALE: &str = "<!-- generated by `cargo xtask bench --scale --docs`: begin -->";

fn write_page(layout: &Layout, begin: &str, new: &str) -> Result<()> {
    let page = layout.root.join("docs/benchmarks.md");
    let old = fs::read_to_string(&page).with_context(|| format!("can't read {}", page.display()))?;
    fs::write(&page, report::replace_generated(&old, begin, new)?)?;
    eprintln!("Written: {}", page.display());
    Ok(())
}
