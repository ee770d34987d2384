// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `cargo xtask gdb`: the hypervisor under gdb, with its symbols.

use std::{
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use gzvm_tests::layout::Layout;

use crate::{process, run};

/// Where QEMU's `-kernel` puts an Image: 2 MiB into RAM.
pub const IMAGE_ADDRESS: u64 = 0x4020_0000;

/// What `gdb` may be told.
#[derive(Debug, clap::Args)]
#[group(id = "gdb-options")]
pub struct Options {
    /// Attach to a machine that `cargo xtask run --gdb` started in another terminal
    #[arg(long)]
    pub attach: bool,
    /// What to start, as for `run`
    #[command(flatten)]
    pub run: run::Options,
}

/// Starts the machine (its console goes to a file) and gdb on it.
///
/// # Errors
/// If a part is missing.
pub fn gdb(layout: &Layout, options: &Options) -> Result<()> {
    let mut machine = None;
    if !options.attach {
        let mut with_gdb = options.run.clone();
        with_gdb.gdb = true;
        let log = layout.logs().join("gdb.log");
        let mut command = run::command(layout, &with_gdb)?;
        std::fs::create_dir_all(layout.logs())?;
        let file = std::fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        machine = Some(command.spawn().context("can't start QEMU: run `cargo xtask setup`")?);
        eprintln!("The machine's console goes to {}", log.display());
        thread::sleep(Duration::from_millis(500));
    }
    let mut gdb = Command::new("gdb-multiarch");
    // The image runs where QEMU puts it; its ELF file is linked at 0.
    let symbols =
        format!("add-symbol-file {} -o {IMAGE_ADDRESS:#x}", layout.part("hypervisor.elf").display());
    for line in [
        "set architecture aarch64",
        "set confirm off",
        &symbols,
        "target remote :1234",
        "hbreak boot_primary",
    ] {
        gdb.args(["-ex", line]);
    }
    eprintln!("{}", process::line(&gdb));
    let status = gdb.status().context("can't start gdb-multiarch: run `cargo xtask setup`");
    if let Some(mut machine) = machine {
        // It may have ended already.
        let _ = machine.kill();
        let _ = machine.wait();
    }
    status?;
    Ok(())
}
