// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The emulated machine: QEMU's `virt` board with EL2 and GICv3, described as a value.
//!
//! ```text
//! 0x4000_0000  RAM starts
//! 0x4020_0000  what -kernel names (QEMU: 2 MiB into RAM plus the Image's offset)
//! 0x4800_0000  the device tree (QEMU: 128 MiB into RAM, or half of it if that is less)
//! 0x4C00_0000  firmware of protected VMs
//! 0x5000_0000  host kernel     \  guest-loader devices: a multiboot module each
//! 0x5800_0000  host's initrd   /  under /chosen, found there by the hypervisor
//! ```

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::console::Console;

const FIRMWARE_ADDRESS: u64 = 0x4C00_0000;
const HOST_KERNEL_ADDRESS: u64 = 0x5000_0000;
const HOST_INITRD_ADDRESS: u64 = 0x5800_0000;
/// The emulator.
pub const QEMU: &str = "qemu-system-aarch64";

/// What runs at EL2.
#[derive(Debug, Clone)]
pub enum Boot {
    /// The hypervisor, with a host VM or without one.
    Hypervisor {
        /// The flat image.
        image: PathBuf,
        /// The firmware of protected VMs.
        firmware: Option<PathBuf>,
        /// The host VM.
        host: Option<Kernel>,
    },
    /// A kernel of its own: Linux with KVM, the peer.
    Direct(Kernel),
}

impl Boot {
    /// Another hypervisor.
    pub fn set_image(&mut self, other: PathBuf) {
        if let Self::Hypervisor { image, .. } = self {
            *image = other;
        }
    }

    /// Another firmware.
    pub fn set_firmware(&mut self, other: PathBuf) {
        if let Self::Hypervisor { firmware, .. } = self {
            *firmware = Some(other);
        }
    }

    /// Further kernel arguments for the host.
    pub fn add_arguments(&mut self, more: &str) {
        if let Self::Hypervisor { host: Some(kernel), .. } | Self::Direct(kernel) = self {
            kernel.arguments = format!("{} {more}", kernel.arguments);
        }
    }

    /// Another initial RAM disk for the host.
    pub fn set_initrd(&mut self, other: PathBuf) {
        if let Self::Hypervisor { host: Some(kernel), .. } | Self::Direct(kernel) = self {
            kernel.initrd = Some(other);
        }
    }

    /// Another kernel for the host.
    pub fn set_kernel(&mut self, other: PathBuf) {
        if let Self::Hypervisor { host: Some(kernel), .. } | Self::Direct(kernel) = self {
            kernel.image = other;
        }
    }
}

/// A kernel with what belongs to it.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// An arm64 `Image`.
    pub image: PathBuf,
    /// Its initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Its command line.
    pub arguments: String,
}

/// The machine: defaults are those of `cargo xtask run`.
#[derive(Debug, Clone)]
pub struct Machine {
    /// QEMU's CPU model.
    pub cpu: String,
    /// Number of CPUs.
    pub smp: u32,
    /// RAM, with QEMU's suffixes.
    pub memory: String,
    /// A file that is the RAM, for a look from outside.
    pub ram: Option<PathBuf>,
    /// What runs at EL2.
    pub boot: Boot,
    /// An SMMUv3 for what is on PCI, below the hypervisor.
    pub smmu: bool,
    /// Count instructions instead of time: one tick of a 1 GHz counter is one instruction.
    pub icount: bool,
    /// Wait for gdb on TCP port 1234.
    pub gdb: bool,
    /// A reset ends QEMU instead of starting over.
    pub no_reboot: bool,
    /// More arguments for QEMU.
    pub extra: Vec<OsString>,
}

impl Machine {
    /// Four CPUs of model `max`, 2 GiB.
    #[must_use]
    pub fn new(boot: Boot) -> Self {
        Self {
            cpu: "max".to_owned(),
            smp: 4,
            memory: "2G".to_owned(),
            ram: None,
            boot,
            smmu: true,
            icount: false,
            gdb: false,
            no_reboot: true,
            extra: Vec::new(),
        }
    }

    /// The same with each CPU in a thread of QEMU's own, by the PC's clock: for tests of what happens on several CPUs at once, and of
    /// what an outsider does meanwhile. For each TLB invalidation QEMU waits until all these threads have been scheduled: on a PC with
    /// fewer cores that takes milliseconds.
    #[must_use]
    pub fn parallel(mut self) -> Self {
        self.icount = false;
        self
    }

    /// The command that starts it with the console on QEMU's standard input and output.
    ///
    /// `interactive` adds QEMU's own keys (Ctrl-A X ends it) and makes it set the terminal to raw mode.
    #[must_use]
    pub fn command(&self, interactive: bool) -> Command {
        let mut command = Command::new(QEMU);
        let mut board = "virt,virtualization=on,gic-version=3,memory-backend=ram".to_owned();
        if self.smmu && matches!(self.boot, Boot::Hypervisor { .. }) {
            board.push_str(",iommu=smmuv3");
        }
        if self.icount {
            board.push_str(",dtb-randomness=off");
        }
        command.args(["-M", &board, "-cpu", &self.cpu, "-smp", &self.smp.to_string(), "-m", &self.memory]);
        // Sparse: RAM takes this PC's memory only where it is touched, so it may be larger.
        match &self.ram {
            Some(file) => {
                let backend =
                    format!("memory-backend-file,id=ram,size={},reserve=off,share=on,mem-path=", self.memory);
                command.arg("-object").arg(join(&backend, file, ""));
            }
            None => {
                let backend = format!("memory-backend-ram,id=ram,size={},reserve=off", self.memory);
                command.args(["-object", &backend]);
            }
        }
        if self.icount {
            command.args(["-icount", "shift=0,sleep=off", "-seed", "1"]);
            command.args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
        } else {
            command.args(["-accel", "tcg,thread=multi"]);
        }
        command.args(["-nic", "none"]);
        if interactive {
            command.arg("-nographic");
        } else {
            command.args(["-display", "none", "-monitor", "none", "-serial", "stdio"]);
        }
        if self.no_reboot {
            command.arg("-no-reboot");
        }
        if self.gdb {
            command.args(["-s", "-S"]);
        }
        match &self.boot {
            Boot::Hypervisor { image, firmware, host } => {
                command.arg("-kernel").arg(image);
                if let Some(firmware) = firmware {
                    let address = format!("guest-loader,addr={FIRMWARE_ADDRESS:#x},kernel=");
                    command.arg("-device").arg(join(&address, firmware, ",bootargs=gzvm.pvmfw"));
                }
                if let Some(kernel) = host {
                    let address = format!("guest-loader,addr={HOST_KERNEL_ADDRESS:#x},kernel=");
                    let arguments = format!(",bootargs={}", escape(&kernel.arguments));
                    command.arg("-device").arg(join(&address, &kernel.image, &arguments));
                    if let Some(initrd) = &kernel.initrd {
                        let address = format!("guest-loader,addr={HOST_INITRD_ADDRESS:#x},initrd=");
                        command.arg("-device").arg(join(&address, initrd, ""));
                    }
                }
            }
            Boot::Direct(kernel) => {
                command.arg("-kernel").arg(&kernel.image).args(["-append", &kernel.arguments]);
                if let Some(initrd) = &kernel.initrd {
                    command.arg("-initrd").arg(initrd);
                }
            }
        }
        command.args(&self.extra);
        command
    }

    /// Starts it with its console in the hands of a test; all of it is written to `log` too.
    ///
    /// # Errors
    /// If QEMU is not installed or the log can't be written.
    pub fn start(&self, log: &Path) -> Result<Console> {
        let mut command = self.command(false);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child =
            command.spawn().with_context(|| format!("can't start {QEMU}: run `cargo xtask setup`"))?;
        Console::new(child, log)
    }
}

/// QEMU separates options by commas; a comma inside a value is doubled.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

fn join(before: &str, path: &Path, after: &str) -> OsString {
    let mut text = OsString::from(before);
    text.push(AsRef::<OsStr>::as_ref(&escape(&path.to_string_lossy())));
    text.push(after);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(machine: &Machine) -> String {
        let command = machine.command(false);
        command.get_args().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn commas_in_kernel_arguments_survive() {
        let host = Kernel {
            image: "/k".into(),
            initrd: Some("/i".into()),
            arguments: "console=ttyAMA0,115200".to_owned(),
        };
        let text = arguments(&Machine::new(Boot::Hypervisor {
            image: "/h".into(),
            firmware: None,
            host: Some(host),
        }));
        assert!(text.contains(
            "-kernel /h -device guest-loader,addr=0x50000000,kernel=/k,bootargs=console=ttyAMA0,,115200"
        ));
        assert!(text.contains("-device guest-loader,addr=0x58000000,initrd=/i"));
    }

    #[test]
    fn counting_instructions_excludes_threads() {
        let mut machine = Machine::new(Boot::Hypervisor { image: "/h".into(), firmware: None, host: None });
        machine.icount = true;
        let text = arguments(&machine);
        assert!(text.contains("shift=0,sleep=off") && !text.contains("thread=multi"));
    }
}
