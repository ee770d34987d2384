// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The list of system tests, and what they share.

pub mod abuse;
pub mod balloon;
pub mod boot;
pub mod broken;
pub mod conformance;
pub mod crosvm;
pub mod debian;
pub mod devices;
pub mod dma;
pub mod driver;
pub mod el2;
pub mod failures;
pub mod firmware;
pub mod guests;
pub mod guests_linux;
pub mod hostile;
mod instructions;
mod keystore;
pub mod linux;
pub mod manage;
pub mod power;
mod protected;
pub mod rpc;
mod rpc_linux;
pub mod sandbox;
pub mod stress;
mod tables;
pub mod walkthrough;
pub mod watch;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};

use crate::{
    cpio::Archive,
    harness::{Case, Context},
    initrd::Extra,
    layout::Layout,
    machine::{Boot, Kernel, Machine},
    results::Results,
};

/// Parts of the whole path from the hypervisor to a guest.
pub const WHOLE: &[&str] = &["hypervisor.Image", "gzvm.ko", "gz", "host-initrd.cpio"];
/// Parts of the peer's path: the same VMM and guest on KVM.
pub const PEER: &[&str] = &["gz", "host-initrd.cpio"];
/// For what takes no long computing: start of a kernel, an answer. Emulated, on a busy PC.
pub const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// Kernel arguments of every Linux host. A panic resets, which ends QEMU. More than the half of a kernel's boot is tests of its own
/// cryptographic functions (900 million instructions, at 160 million a second), which are not what is tested here; Linux guests
/// go without them as well.
pub const HOST_ARGUMENTS: &str = "console=ttyAMA0 panic=-1 quiet cryptomgr.notests";

/// All tests of all tiers.
#[must_use]
pub fn all(layout: &Layout) -> Vec<Case> {
    let mut cases = boot::cases(layout);
    cases.extend(el2::cases());
    cases.extend(broken::cases());
    cases.extend(hostile::cases());
    cases.extend(rpc::cases());
    cases.extend(conformance::cases());
    cases.extend(walkthrough::cases());
    cases.extend(linux::cases());
    cases.extend(guests::cases());
    cases.extend(guests_linux::cases());
    cases.extend(firmware::cases());
    cases.extend(dma::cases());
    cases.extend(driver::cases());
    cases.extend(crosvm::cases());
    cases.extend(balloon::cases());
    cases.extend(devices::cases());
    cases.extend(debian::cases());
    cases.extend(failures::cases());
    cases.extend(power::cases());
    cases.extend(manage::cases());
    cases.extend(sandbox::cases());
    cases.extend(protected::cases());
    cases.extend(keystore::cases());
    cases.extend(rpc_linux::cases());
    cases.extend(tables::cases());
    cases.extend(watch::cases());
    cases.extend(stress::cases());
    cases.extend(instructions::cases());
    cases.extend(abuse::cases());
    cases
}

/// What runs at EL2 below a Linux host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Our hypervisor.
    Gzvm,
    /// The host kernel itself, with KVM.
    Kvm,
}

impl Host {
    /// Its boot with this initial RAM disk and these further kernel arguments.
    #[must_use]
    pub fn boot(self, layout: &Layout, initrd: PathBuf, arguments: &str) -> Boot {
        let kvm = if self == Self::Kvm { " gz.hypervisor=kvm" } else { "" };
        let kernel = Kernel {
            image: layout.kernel(),
            initrd: Some(initrd),
            arguments: format!("{HOST_ARGUMENTS}{kvm} {arguments}").trim_end().to_owned(),
        };
        match self {
            Self::Gzvm => Boot::Hypervisor {
                image: layout.part("hypervisor.Image"),
                firmware: Some(layout.part("firmware.Image")),
                host: Some(kernel),
            },
            Self::Kvm => Boot::Direct(kernel),
        }
    }
}

/// Runs a [`scripted`] machine to its end, which the script has to reach within `limit`; what it found.
///
/// # Errors
/// It did not come to its end.
pub fn results(context: &Context, machine: &Machine, limit: Duration) -> Result<Results> {
    let mut console = context.start(machine, "console")?;
    console.wait_for("[HOST] Linux", BOOT_LIMIT)?;
    console.wait_for("[DONE]", limit)?;
    console.wait_power_off(Duration::from_secs(30))?;
    Results::read(&console.text())
}

/// A machine with a Linux host that runs `script` with `extras` at hand, then powers off.
///
/// Its time passes with its instructions ([`Machine::icount`]), so that no limit within it depends on how busy the PC is: see
/// [`Machine::parallel`] for a test of what happens on several CPUs at once.
///
/// # Errors
/// If the initial RAM disk can't be written.
pub fn scripted(context: &Context, host: Host, script: &str, extras: &[Extra]) -> Result<Machine> {
    let mut archive = Archive::new();
    for extra in extras.iter().chain([&Extra::script(script)]) {
        archive.file(&extra.path, extra.mode, &extra.content);
    }
    // Linux unpacks one archive after the other.
    let base = context.layout.part("host-initrd.cpio");
    let mut initrd = fs::read(&base).with_context(|| format!("can't read {}", base.display()))?;
    initrd.extend(archive.finish());
    let initrd = context.write("initrd.cpio", &initrd)?;
    let mut machine = Machine::new(host.boot(&context.layout, initrd, "gz.mode=script"));
    machine.icount = true;
    Ok(machine)
}
