// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What is behind a guest's virtio devices on the host, except for its disks: opened once, and kept when the guest starts again.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use vm_memory::GuestMemoryMmap;

use crate::cli::run::{ConsoleKind, DeviceOptions};
use crate::console::Output;
use crate::devices::serial::Terminal;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::console::backend::{Slot, Socket, Stdio};
use crate::devices::virtio::console::{Console, PORTS_MAX, Port};
use crate::devices::virtio::fs;
use crate::devices::virtio::net::backend::{passt::Passt, tap::Tap};
use crate::devices::virtio::net::kernel::KernelNet;
use crate::devices::virtio::net::options::{End, Mac, NetOption};
use crate::devices::virtio::net::{Cable, Net};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vhost_user::{Setup, VhostUser, link::Link};
use crate::devices::virtio::vsock::Vsock;
use crate::devices::virtio::vsock::backend::kernel::KernelUplink;
use crate::devices::virtio::vsock::backend::peers::Exchange;
use crate::devices::virtio::vsock::options::VsockOption;
use crate::devices::virtio::vsock::switch::{Slot as Peers, Switched};

/// All of it.
pub struct Backends {
    nets: Vec<Network>,
    rng: bool,
    /// The console, and where what is typed goes.
    console: Option<(Slot, Arc<dyn Terminal>)>,
    ports: Vec<Port>,
    /// The guest's address, and its peers if it has some.
    vsock: Option<(u64, Option<Peers>)>,
    /// Devices in other programs.
    programs: Vec<(Setup, Arc<Mutex<Link>>)>,
}

/// What is behind a network interface.
struct Network {
    /// One for each pair of queues.
    cables: Vec<Cable>,
    mac: Mac,
    /// The kernel serves it.
    vhost: bool,
}

impl Network {
    fn open(option: &NetOption) -> anyhow::Result<Self> {
        let cables = match &option.end {
            End::Tap(name) => {
                let queues = Tap::open(name, option.queues)?.into_iter();
                queues.map(|tap| Arc::new(Mutex::new(tap)) as Cable).collect()
            }
            End::Passt(forward) => vec![Arc::new(Mutex::new(Passt::start(forward)?)) as Cable],
        };
        Ok(Self { cables, mac: option.mac.unwrap_or_else(Mac::random), vhost: option.vhost })
    }

    fn device(&self, memory: &GuestMemoryMmap) -> anyhow::Result<Box<dyn VirtioDevice>> {
        for cable in &self.cables {
            cable.lock().unwrap_or_else(PoisonError::into_inner).check()?;
        }
        Ok(if self.vhost {
            Box::new(KernelNet::open(&self.cables, self.mac, memory)?)
        } else {
            Box::new(Net::new(self.cables.clone(), self.mac))
        })
    }
}

impl Backends {
    /// Opens what `options` name; `output` is standard output.
    ///
    /// # Errors
    /// The first that is not there, or may not be used.
    pub fn open(options: &DeviceOptions, output: &Output) -> anyhow::Result<Self> {
        let nets: anyhow::Result<_> = options.nets.iter().map(Network::open).collect();
        let nets = nets?;
        let console = match options.console {
            ConsoleKind::Serial => None,
            ConsoleKind::Virtio => {
                let stdio = Stdio::new(output.clone()).context("--console")?;
                let keys = stdio.keys();
                Some((Slot::new(Box::new(stdio)), keys as Arc<dyn Terminal>))
            }
        };
        anyhow::ensure!(options.ports.len() <= PORTS_MAX, "--port: more than {PORTS_MAX}");
        let mut ports = Vec::with_capacity(options.ports.len());
        for port in &options.ports {
            let end = Slot::new(Box::new(Socket::listen(&port.socket)?));
            ports.push(Port { name: port.name.clone(), end });
        }
        let mut programs = Vec::with_capacity(options.folders.len() + options.vhost_user.len());
        for folder in &options.folders {
            let setup = fs::setup(folder);
            let link = Link::open(&setup, folder.socket.clone(), 0)?;
            programs.push((setup, Arc::new(Mutex::new(link))));
        }
        for device in &options.vhost_user {
            let setup = Setup::of(device);
            let link = Link::open(&setup, device.socket.clone(), device.kind.config_size())?;
            programs.push((setup, Arc::new(Mutex::new(link))));
        }
        Ok(Self {
            nets,
            rng: options.rng,
            console,
            ports,
            vsock: options.vsock.as_ref().map(vsock).transpose()?,
            programs,
        })
    }

    /// How many devices they are for.
    pub fn count(&self) -> usize {
        let others = [self.vsock.is_some(), self.rng, self.console.is_some(), !self.ports.is_empty()];
        self.nets.len() + self.programs.len() + others.map(usize::from).iter().sum::<usize>()
    }

    /// Devices for one life of the guest, which has this memory.
    ///
    /// # Errors
    /// What each life has a new one of is not to be had.
    pub fn devices(&self, memory: &GuestMemoryMmap) -> anyhow::Result<Vec<Box<dyn VirtioDevice>>> {
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::with_capacity(self.count());
        for net in &self.nets {
            devices.push(net.device(memory)?);
        }
        if self.rng {
            devices.push(Box::new(Rng::default()));
        }
        if let Some((slot, _)) = &self.console {
            devices.push(Box::new(Console::terminal(slot.clone())));
        }
        if !self.ports.is_empty() {
            devices.push(Box::new(Console::ports(self.ports.clone())));
        }
        match &self.vsock {
            Some((cid, None)) => devices.push(Box::new(Vsock::open(*cid, memory)?)),
            Some((cid, Some(peers))) => {
                let uplink = Box::new(KernelUplink::open(*cid)?);
                devices.push(Box::new(Switched::new(*cid, uplink, peers.clone())));
            }
            None => {}
        }
        for (setup, link) in &self.programs {
            let device = VhostUser::new(setup.clone(), link.clone()).with_context(|| setup.name.clone())?;
            devices.push(Box::new(device));
        }
        Ok(devices)
    }

    /// Where what is typed goes, if not to the UART.
    pub fn keyboard(&self) -> Option<Arc<dyn Terminal>> {
        self.console.as_ref().map(|(_, keys)| keys.clone())
    }
}

/// Joins the guest's peers, if it has some.
fn vsock(option: &VsockOption) -> anyhow::Result<(u64, Option<Peers>)> {
    let peers = (!option.peers.is_empty()).then(|| Exchange::open(option).map(Peers::new));
    Ok((option.cid, peers.transpose()?))
}
