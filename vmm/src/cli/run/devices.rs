// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtio devices.

use clap::Args;

use crate::cli::MemSize;
use crate::devices::virtio::blk::options::DiskOption;
use crate::devices::virtio::console::options::PortOption;
use crate::devices::virtio::fs::options::FsOption;
use crate::devices::virtio::net::options::NetOption;
use crate::devices::virtio::vhost_user::options::VhostUserOption;
use crate::devices::virtio::vsock::options::VsockOption;

/// The virtio devices.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(next_help_heading = "Devices")]
pub struct DeviceOptions {
    /// Disk image or block device, as /dev/vda, /dev/vdb, ...: raw, or `format=qcow2`; `ro`: read-only; `serial=TEXT`: its serial
    /// number, instead of the file's name; `queues=N`: several, for guests with several vCPUs
    #[arg(long = "disk", value_name = "FILE[,ro][,...]")]
    pub disks: Vec<DiskOption>,

    /// How the guest finds the virtio devices: `mmio`, each in its device tree; or `pci`, on a bus
    #[arg(long, value_enum, value_name = "TRANSPORT", default_value_t = VirtioTransport::Mmio)]
    pub virtio_transport: VirtioTransport,

    /// A network interface, at the other end of its cable a tap interface of the host (`tap=NAME`), or passt (Debian's
    /// package), which needs no privileges. `vhost`: the host kernel's module vhost_net moves a tap's frames. `queues=N`: a tap with N pairs of queues, so that
    /// as many vCPUs send and receive at once. `mac=ADDRESS` is the guest's; `tcp=PORTS` and `udp=PORTS` are what passt
    /// forwards from the host, as its options -t and -u
    #[arg(long = "net", value_name = "tap=NAME|passt[,...]")]
    pub nets: Vec<NetOption>,

    /// A virtio device with the host's random numbers
    #[arg(long)]
    pub rng: bool,

    /// Which device has standard input and output: the UART (ttyS0 or ttyAMA0), or a virtio console (hvc0), which follows the
    /// terminal's size
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = ConsoleKind::Serial)]
    pub console: ConsoleKind,

    /// A virtio port, /dev/vportNpM with that name in a Linux guest; on the host a Unix socket, for one program at a time
    #[arg(long = "port", value_name = "NAME=SOCKET")]
    pub ports: Vec<PortOption>,

    /// AF_VSOCK sockets between guest and host, by the host kernel's module vhost_vsock; the guest's address is CID (3 or more,
    /// no two guests the same), the host's is 2. `peer=CID`: and between the guest and that one, if that one has this one as its peer, too,
    /// and the same user runs it
    #[arg(long, value_name = "CID[,peer=CID...]")]
    pub vsock: Option<VsockOption>,

    /// A folder of the host, served by virtiofsd (Debian's package) or another vhost-user program that listens at SOCKET; a Linux
    /// guest mounts it with `mount -t virtiofs TAG ...`. When the program ends, all that the guest asks of the folder fails. Not
    /// for protected guests, nor with a balloon
    #[arg(long = "fs", value_name = "TAG=SOCKET")]
    pub folders: Vec<FsOption>,

    /// A virtio device in another program, which listens at SOCKET and speaks vhost-user: a disk (`block`), such as
    /// qemu-storage-daemon's, or random numbers (`rng`). When a disk's program ends, the guest's requests wait for another
    /// one there. Not with a balloon
    #[arg(long, value_name = "KIND,socket=SOCKET")]
    pub vhost_user: Vec<VhostUserOption>,

    /// A virtio balloon through which the guest gives this much of its RAM back to the host; with 0, only what it
    /// reports as free. `gz balloon` changes it
    #[arg(long, value_name = "SIZE")]
    pub balloon: Option<MemSize>,
}

/// What virtio devices are behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum VirtioTransport {
    /// Registers in the device tree, one node a device.
    Mmio,
    /// Functions of a PCI bus.
    Pci,
}

impl DeviceOptions {
    /// Do other programs serve queues, in memory that they map?
    pub fn in_other_programs(&self) -> bool {
        !self.folders.is_empty() || !self.vhost_user.is_empty()
    }

    /// Why these do not go together.
    pub fn conflict(&self) -> Option<&'static str> {
        (self.in_other_programs() && self.balloon.is_some()).then_some(
            "--fs and --vhost-user cannot be used with --balloon: such a program has mapped the pages that gz would take, \
             so the host would not get them back",
        )
    }
}

/// A device for standard input and output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum ConsoleKind {
    /// The UART.
    Serial,
    /// A virtio console; what the UART sends is shown as well.
    Virtio,
}
