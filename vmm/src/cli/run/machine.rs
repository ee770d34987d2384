// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual machine itself.

use clap::Args;
use gzvm_abi::{MAX_SPIS, MAX_VCPUS_EXTENDED};

use crate::cli::MemSize;
use crate::hypervisor::Kind;

/// The virtual machine itself.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(next_help_heading = "Machine")]
pub struct MachineOptions {
    /// The host's hypervisor
    #[arg(long, value_enum, value_name = "NAME", default_value_t = Kind::Gzvm)]
    pub hypervisor: Kind,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=MAX_VCPUS_EXTENDED as i64))]
    pub cpus: u8,

    /// RAM: in MiB, or with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub mem: MemSize,

    /// CPU features that guests don't have unless they are given: sve
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',')]
    pub features: Vec<Feature>,

    /// SPIs of the guest's GIC: 32 to 960 in steps of 32, or 988; otherwise what the hypervisor gives
    #[arg(long, value_name = "N", value_parser = spis)]
    pub spis: Option<u16>,

    /// An access to an unmapped address is a crash; otherwise it is logged, reads as all ones and
    /// writes nowhere
    #[arg(long)]
    pub strict_mmio: bool,

    /// RAM as protected VMs have it, a file of gzvm's, also for others
    #[arg(long, hide = true)]
    pub private_memory: bool,

    /// The guest's random seed, for runs that repeat; otherwise it comes from the host
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,
}

/// A CPU feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Feature {
    /// Scalable vectors.
    Sve,
}

/// A number of SPIs that a GIC can have.
fn spis(text: &str) -> Result<u16, String> {
    let spis: u16 = text.parse().map_err(|e| format!("{e}"))?;
    if (32..=960).contains(&spis) && spis.is_multiple_of(32) || usize::from(spis) == MAX_SPIS {
        Ok(spis)
    } else {
        Err(format!("32 to 960 in steps of 32, or {MAX_SPIS}"))
    }
}
