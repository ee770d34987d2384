// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `gz run`: its options, by subject.

mod boot;
mod devices;
mod life;
mod machine;
mod manage;
mod rpc;

use clap::Args;

pub use boot::BootOptions;
pub use devices::{ConsoleKind, DeviceOptions, VirtioTransport};
pub use life::{LifeOptions, OnReset};
pub use machine::{Feature, MachineOptions};
pub use manage::ManageOptions;
pub use rpc::RpcOptions;

const EXIT_CODES: &str = "\
Console:
  Ctrl-A x ends the VM, Ctrl-A Ctrl-A sends one Ctrl-A, Ctrl-A h tells these keys.

Exit codes:
  0        the guest powered off
  1        gz or the host's hypervisor failed
  2        wrong command line
  3        the guest asked for a reset (a Linux guest that panics does, with panic=-1), and --on-reset is exit
  4        the guest crashed: it can't go on, or (--strict-mmio) used an unmapped address
  5        ended from the console (Ctrl-A x) or by `gz stop`
  6        killed after an exception that --watch names (--on-exception kill)
  64..127  a bare-metal guest wrote 0..63 to the test device
  128+N    ended by signal N (SIGINT 130, SIGTERM 143, SIGHUP 129; `gz kill` 137)

Guest devices: 16550 UART at 0x3f8, PL031 clock at 0x2000, watchdogs at 0x3000, GICv3 at 0x3fff0000, virtio-mmio from
0x2000000 (or PCI from 0x10000000), RAM from 0x80000000, test device at 0x90000 (reading +0 gives 0x47, writing +8 ends the
run). The guest finds all of them in its device tree.

With --firmware, as QEMU's virt has them: firmware at 0, its variables at 0x4000000, GICv3 at 0x8000000, PL011 at 0x9000000, PL031 at 0x9010000, virtio-mmio from
0xa000000, RAM from 0x40000000 with the device tree at its start; no test device.

Examples:
  gz run --kernel Image --initrd initrd.cpio --disk root.img --cpus 2 --mem 1G
  gz run --kernel Image --disk root.img --net passt,tcp=2222:22 --rng
  gz run --firmware u-boot.bin --disk root.img
  gz run --firmware QEMU_EFI.fd --variables vars.fd --disk root.img
  gz run --name store --protected --kernel signed --rpc keys
  gz run --hypervisor kvm --kernel Image --disk root.img,ro --cmdline 'console=ttyS0 root=/dev/vda'";

/// Options of `gz run`.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(after_help = EXIT_CODES)]
pub struct RunOptions {
    /// What the guest starts with.
    #[command(flatten)]
    pub boot: BootOptions,
    /// The virtual machine itself.
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Its virtio devices.
    #[command(flatten)]
    pub devices: DeviceOptions,
    /// Channels that the hypervisor carries.
    #[command(flatten)]
    pub rpc: RpcOptions,
    /// What its deeds come to.
    #[command(flatten)]
    pub life: LifeOptions,
    /// How `gz` is spoken to, and speaks.
    #[command(flatten)]
    pub manage: ManageOptions,
}
