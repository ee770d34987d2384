// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a guest starts with.

use std::path::PathBuf;

use clap::Args;

use crate::cli::{MemSize, sign::DEFAULT_CMDLINE};

/// What a guest starts with.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(next_help_heading = "Start")]
pub struct BootOptions {
    /// Guest kernel: an uncompressed arm64 Image
    #[arg(long, value_name = "FILE", required_unless_present = "firmware")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// The whole kernel command line
    #[arg(long, value_name = "STRING", default_value = DEFAULT_CMDLINE)]
    pub cmdline: String,

    /// Firmware instead of a kernel, for QEMU's `virt` machine: U-Boot, EDK2. The guest gets a machine
    /// with that address map
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel", "initrd", "cmdline"])]
    pub firmware: Option<PathBuf>,

    /// Where the firmware's variables are kept, as CFI flash; made if it is not there. EDK2 needs it.
    /// Without it, the flash is memory that is forgotten
    #[arg(long, value_name = "FILE", requires = "firmware", conflicts_with = "kernel")]
    pub variables: Option<PathBuf>,

    /// A protected VM: its memory and registers are out of the host's reach. The hypervisor's firmware starts it, if kernel,
    /// initrd and command line were signed together (`gz sign`). KVM (Linux 7.3, kvm-arm.mode=protected) has no firmware, and looks at no signature
    #[arg(long, conflicts_with_all = ["firmware", "balloon"])]
    pub protected: bool,

    /// Memory that a protected guest shares with the host, for its devices' data (gzvm)
    #[arg(long, value_name = "SIZE", default_value = "8M", requires = "protected")]
    pub shared: MemSize,
}
