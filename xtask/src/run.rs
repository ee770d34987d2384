// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask run`: the whole system at this terminal, or driven without a person (`--check`).

use std::{path::PathBuf, process::Command, time::Instant};

use anyhow::{Context, Result, bail};
use gzvm_tests::{
    cases::{Host, debian, walkthrough},
    layout::Layout,
    machine::{Boot, Machine},
};
use rustix::termios::{self, OptionalActions};

use crate::{
    build::{self, Part},
    setup,
};

/// What `run` may be told.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Drive the console without a person: guest's shell, its disk, both power-offs; fail at any deviation
    #[arg(long)]
    pub check: bool,
    /// CPU model, as QEMU names it
    #[arg(long, default_value = "max")]
    pub cpu: String,
    /// Number of CPUs
    #[arg(long, default_value_t = 4)]
    pub smp: u32,
    /// RAM of the machine
    #[arg(long, default_value = "2G")]
    pub memory: String,
    /// Give the host's shell at once, start no guest
    #[arg(long)]
    pub no_guest: bool,
    /// Only the EL2 image, without a host VM
    #[arg(long, conflicts_with_all = ["kvm", "check", "no_guest"])]
    pub bare: bool,
    /// A whole Debian as the guest, with systemd and a way to the network (the first time it is made, in minutes). Its changes are
    /// forgotten; in the host, `debian` starts it again
    #[arg(long, conflicts_with_all = ["kvm", "check", "bare", "no_guest"])]
    pub debian: bool,
    /// The peer: the host's Linux itself at EL2 with KVM, the same VMM and guest
    #[arg(long)]
    pub kvm: bool,
    /// Stop before the first instruction and wait for gdb (TCP port 1234)
    #[arg(long)]
    pub gdb: bool,
    /// More arguments for the host's kernel
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub append: String,
    /// A bare-metal guest in the host's place (target/gz/guest-NAME.Image)
    #[arg(long, value_name = "NAME", conflicts_with_all = ["kvm", "check", "bare"])]
    pub host_image: Option<String>,
    /// Start what is in target/gz, build nothing
    #[arg(long)]
    pub no_build: bool,
    /// More arguments for QEMU
    #[arg(last = true)]
    pub qemu: Vec<String>,
}

/// Builds, then runs.
///
/// # Errors
/// If a part is missing, or, with `--check`, at the first deviation.
pub fn run(layout: &Layout, options: &Options) -> Result<()> {
    let machine = prepare(layout, options)?;
    if options.check { check(layout, options, &machine) } else { interactive(&machine, options) }
}

/// Builds, and returns the command that starts the machine without QEMU's own keys.
///
/// # Errors
/// If a part is missing.
pub fn command(layout: &Layout, options: &Options) -> Result<Command> {
    Ok(prepare(layout, options)?.command(false))
}

fn prepare(layout: &Layout, options: &Options) -> Result<Machine> {
    if !options.no_build {
        let (tests, debian) = (options.debian, options.debian);
        setup::ensure(layout, &setup::Options { tests, debian, ..setup::Options::default() })?;
        // The peer needs neither hypervisor nor driver.
        let peer = [Part::Guests, Part::Gz, Part::Rootfs];
        build::build(layout, if options.kvm { &peer } else { &build::ALL })?;
    }
    machine(layout, options)
}

fn machine(layout: &Layout, options: &Options) -> Result<Machine> {
    let need = |part: &str| -> Result<PathBuf> {
        layout
            .built(part)
            .with_context(|| format!("{} is missing: run `cargo xtask build`", layout.part(part).display()))
    };
    let boot = if options.bare {
        Boot::Hypervisor { image: need("hypervisor.Image")?, firmware: None, host: None }
    } else if let Some(name) = &options.host_image {
        let image = need(&format!("guest-{name}.Image"))?;
        let host = gzvm_tests::machine::Kernel { image, initrd: None, arguments: options.append.clone() };
        Boot::Hypervisor {
            image: need("hypervisor.Image")?,
            firmware: Some(need("firmware.Image")?),
            host: Some(host),
        }
    } else {
        let host = if options.kvm { Host::Kvm } else { Host::Gzvm };
        if host == Host::Gzvm {
            need("hypervisor.Image")?;
        }
        let mode = if options.debian {
            "debian"
        } else if options.no_guest || layout.built("gz").is_none() {
            "shell"
        } else {
            "guest"
        };
        host.boot(layout, need("host-initrd.cpio")?, &format!("gz.mode={mode} {}", options.append))
    };
    let mut machine = Machine::new(boot);
    machine.cpu.clone_from(&options.cpu);
    machine.smp = options.smp;
    machine.memory.clone_from(&options.memory);
    machine.gdb = options.gdb;
    machine.extra = options.qemu.iter().map(Into::into).collect();
    if options.debian {
        debian::add(layout, &mut machine, layout.part("debian-host-initrd.cpio"))?;
    }
    Ok(machine)
}

fn interactive(machine: &Machine, options: &Options) -> Result<()> {
    eprintln!("Starting QEMU. Its own keys: Ctrl-A X ends it, Ctrl-A C is its monitor.");
    if options.gdb {
        eprintln!("It waits for gdb: `cargo xtask gdb --attach` in another terminal.");
    }
    let saved = termios::tcgetattr(rustix::stdio::stdin()).ok();
    let status = machine.command(true).status().with_context(|| "can't start QEMU: run `cargo xtask setup`");
    if let Some(saved) = saved {
        // QEMU restores the terminal unless it is killed.
        termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &saved)
            .context("can't restore the terminal")?;
    }
    let status = status?;
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}

fn check(layout: &Layout, options: &Options, machine: &Machine) -> Result<()> {
    let begin = Instant::now();
    let host = if options.kvm { Host::Kvm } else { Host::Gzvm };
    let log = layout.logs().join("run-check.log");
    let mut console = machine.start(&log)?;
    let mut step = |text: &str| eprintln!("  {:5.1} s  {text}", begin.elapsed().as_secs_f64());
    if options.no_guest {
        bail!("--check drives a guest; leave out --no-guest");
    }
    walkthrough::walk(&mut console, options.smp, host, &mut step).map_err(|error| {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        error.context(format!(
            "the whole console:\n{text}\n--- end of {} ---\nthe check failed",
            log.display()
        ))
    })?;
    eprintln!("The check passed in {:.1} s.", begin.elapsed().as_secs_f64());
    Ok(())
}
