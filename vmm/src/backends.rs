// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is behind a guest's virtio devices on the host, except for its disks: opened once, and kept when the guest starts again.

use std::sync::{Arc, Mutex};

use crate::cli::run::DeviceOptions;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::net::backend::{passt::Passt, tap::Tap};
use crate::devices::virtio::net::options::{End, Mac};
use crate::devices::virtio::net::{Cable, Net};
use crate::devices::virtio::rng::Rng;

/// All of it.
pub struct Backends {
    cables: Vec<(Cable, Mac)>,
    rng: bool,
}

impl Backends {
    /// Opens what `options` name.
    ///
    /// # Errors
    /// The first that is not there, or may not be used.
    pub fn open(options: &DeviceOptions) -> anyhow::Result<Self> {
        let mut cables = Vec::with_capacity(options.nets.len());
        for net in &options.nets {
            let cable: Cable = match &net.end {
                End::Tap(name) => Arc::new(Mutex::new(Tap::open(name)?)),
                End::Passt(forward) => Arc::new(Mutex::new(Passt::start(forward)?)),
            };
            cables.push((cable, net.mac.unwrap_or_else(Mac::random)));
        }
        Ok(Self { cables, rng: options.rng })
    }

    /// How many devices they are for.
    pub fn count(&self) -> usize {
        self.cables.len() + usize::from(self.rng)
    }

    /// Devices for one life of the guest.
    pub fn devices(&self) -> Vec<Box<dyn VirtioDevice>> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::with_capacity(self.count());
        for (cable, mac) in &self.cables {
            devices.push(Box::new(Net::new(cable.clone(), *mac)));
        }
        if self.rng {
            devices.push(Box::new(Rng::default()));
        }
        devices
    }
}
