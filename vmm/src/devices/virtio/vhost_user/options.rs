// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--vhost-user`: a kind of device, and the socket of the program that is it.

use std::path::PathBuf;
use std::str::FromStr;

use virtio_bindings::virtio_ids::{VIRTIO_ID_BLOCK, VIRTIO_ID_RNG};

/// A device in another program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VhostUserOption {
    /// What it is.
    pub kind: Kind,
    /// Where the program listens.
    pub socket: PathBuf,
}

/// Kinds of devices.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A disk.
    Block,
    /// Random numbers.
    Rng,
}

impl Kind {
    /// What the command line calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Rng => "rng",
        }
    }

    /// Device ID.
    pub fn id(self) -> u32 {
        match self {
            Self::Block => VIRTIO_ID_BLOCK,
            Self::Rng => VIRTIO_ID_RNG,
        }
    }

    /// Bytes of its configuration, which the program has.
    pub fn config_size(self) -> u32 {
        match self {
            Self::Block => 60,
            Self::Rng => 0,
        }
    }
}

impl FromStr for VhostUserOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, socket) = text.split_once(",socket=").ok_or("must be KIND,socket=SOCKET")?;
        let kind = match kind {
            "block" | "blk" => Kind::Block,
            "rng" => Kind::Rng,
            _ => return Err(format!("{kind:?}: kinds are block and rng; for folders there is --fs")),
        };
        if socket.is_empty() {
            return Err("no socket named".into());
        }
        Ok(Self { kind, socket: socket.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_sockets() {
        let disk: VhostUserOption = "block,socket=/run/a,b=1".parse().unwrap();
        assert_eq!((disk.kind, disk.socket.to_str()), (Kind::Block, Some("/run/a,b=1")));
        assert_eq!("blk,socket=x".parse::<VhostUserOption>().unwrap().kind, Kind::Block);
        assert_eq!("rng,socket=x".parse::<VhostUserOption>().unwrap().kind, Kind::Rng);
        for wrong in ["", "block", "block,socket=", "block=x", "fs,socket=x", ",socket=x"] {
            assert!(wrong.parse::<VhostUserOption>().is_err(), "{wrong}");
        }
    }
}
