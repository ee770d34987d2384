// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Channels that the hypervisor carries.

use clap::Args;

use crate::rpc::options::{PeerOption, ServiceOption, With};

/// Channels that the hypervisor carries.
#[derive(Args, Clone, PartialEq, Eq, Debug)]
#[command(next_help_heading = "Calls (RPC)")]
pub struct RpcOptions {
    /// A service of the guest, for `gz rpc`, other programs, and guests with --rpc-to. So many clients at a time (`clients=N`,
    /// default 4) each get a channel of their own, at the guest's ports from N on (`port=N`)
    #[arg(long = "rpc", value_name = "NAME[,clients=N][,port=N]")]
    pub services: Vec<ServiceOption>,

    /// A service of another VM that runs, which this guest calls; in this one's device tree by the service's name, or `name=NAME`
    #[arg(long = "rpc-to", value_name = "SERVICE@VM[,name=NAME][,port=N]")]
    pub peers: Vec<PeerOption>,

    /// With whom the guest may have channels; the hypervisor allows no others
    #[arg(long = "rpc-with", value_enum, value_name = "KIND", value_delimiter = ',', default_value = "host")]
    pub with: Vec<With>,
}
