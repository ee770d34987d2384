// SPDX-License-Identifier: Apache-2.0 OR MIT
//! `--rpc`, `--rpc-to`, `--rpc-with`: which channels a guest may have, and where it finds them.

use std::str::FromStr;

use anyhow::ensure;
use gzvm_abi::rpc::{MOST_CHANNELS, with};

use crate::cli::run::RpcOptions;

/// Longest name of a service: what the firmware of protected VMs accepts.
pub const NAME_MAX: usize = 31;
const CLIENTS: u32 = 4;

/// A service that the guest offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceOption {
    /// Its name.
    pub name: String,
    /// How many clients at a time.
    pub clients: u32,
    /// The port of the first.
    pub port: Option<u32>,
}

/// A service of another VM that the guest calls.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerOption {
    /// Its name there.
    pub service: String,
    /// The VM: its name, or the path of its control socket.
    pub vm: String,
    /// Its name here.
    pub name: String,
    /// This guest's port.
    pub port: Option<u32>,
}

/// A kind of peers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum With {
    /// The host's programs.
    Host,
    /// VMs that are not protected.
    Plain,
    /// Protected VMs.
    Protected,
}

/// Checks a service's name.
///
/// # Errors
/// It is none, in words.
pub fn check(name: &str) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(good) && !name.starts_with('-') {
        Ok(())
    } else {
        Err(format!("{name:?}: a service's name is up to {NAME_MAX} small letters, digits and dashes"))
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is no number that fits"))
}

impl FromStr for ServiceOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        check(name)?;
        let mut service = Self { name: name.into(), clients: CLIENTS, port: None };
        for word in words {
            match word.split_once('=') {
                Some(("clients", count)) => {
                    let most = u32::try_from(MOST_CHANNELS).unwrap_or(0);
                    service.clients = number(count)?;
                    if !(1..=most).contains(&service.clients) {
                        return Err(format!("1 to {most} clients"));
                    }
                }
                Some(("port", port)) => service.port = Some(number(port)?),
                _ => return Err(format!("{word:?} is neither clients=N nor port=N")),
            }
        }
        Ok(service)
    }
}

impl FromStr for PeerOption {
    type Err = String;

    /// From behind, since a path may have commas.
    fn from_str(text: &str) -> Result<Self, String> {
        let (service, mut vm) = text.split_once('@').ok_or("must be SERVICE@VM")?;
        check(service)?;
        let (mut name, mut port) = (service, None);
        while let Some((before, word)) = vm.rsplit_once(',') {
            match word.split_once('=') {
                Some(("name", own)) => {
                    check(own)?;
                    name = own;
                }
                Some(("port", own)) => port = Some(number(own)?),
                _ => break,
            }
            vm = before;
        }
        if vm.is_empty() {
            return Err("no VM named".into());
        }
        Ok(Self { service: service.into(), vm: vm.into(), name: name.into(), port })
    }
}

/// What the hypervisor is told of a VM before it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// A mask of [`with`].
    pub with: u32,
    /// How many channels.
    pub channels: u32,
}

/// Where a guest finds a channel: the device tree tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The name of what it is for.
    pub name: String,
    /// The port.
    pub port: u32,
}

/// What the options come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// For the hypervisor.
    pub policy: Policy,
    /// For the guest: those of services first.
    pub places: Vec<Place>,
    /// How many of them are services'.
    pub offered: usize,
}

impl Plan {
    /// None, if the guest has no channels.
    ///
    /// # Errors
    /// Too many, or two with the same name or port.
    pub fn of(options: &RpcOptions) -> anyhow::Result<Option<Self>> {
        let mut places: Vec<Place> = Vec::new();
        let mut next: u32 = 1;
        let services = options.services.iter().map(|service| (&service.name, service.port, service.clients));
        let peers = options.peers.iter().map(|peer| (&peer.name, peer.port, 1));
        for (name, first, count) in services.chain(peers) {
            ensure!(places.iter().all(|place| place.name != *name), "--rpc: {name} is there twice");
            let first = first.unwrap_or(next);
            for n in 0..count {
                let port = first.checked_add(n).filter(|port| places.iter().all(|place| place.port != *port));
                let Some(port) = port else { anyhow::bail!("--rpc: a port of {name} is another's") };
                places.push(Place { name: name.clone(), port });
                next = next.max(port.saturating_add(1));
            }
        }
        let Ok(channels @ 1..) = u32::try_from(places.len()) else { return Ok(None) };
        ensure!(
            u64::from(channels) <= MOST_CHANNELS,
            "--rpc: {channels} channels, and a VM has {MOST_CHANNELS} at the most (clients=N)"
        );
        let mask = options.with.iter().fold(0, |mask, kind| {
            mask | match kind {
                With::Host => with::HOST,
                With::Plain => with::PLAIN,
                With::Protected => with::PROTECTED,
            }
        });
        let policy = Policy { with: u32::try_from(mask)?, channels };
        let offered = places.len().saturating_sub(options.peers.len());
        Ok(Some(Self { policy, places, offered }))
    }

    /// The ports of a service that the guest offers.
    pub fn ports(&self, service: &str) -> impl Iterator<Item = u32> {
        let offered = self.places.iter().take(self.offered);
        offered.filter(move |place| place.name == service).map(|place| place.port)
    }

    /// The ports of what the guest calls, in the options' order.
    pub fn callers(&self) -> impl Iterator<Item = u32> {
        self.places.iter().skip(self.offered).map(|place| place.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(services: &[&str], peers: &[&str], with: &[With]) -> anyhow::Result<Option<Plan>> {
        let service = |text: &&str| text.parse().map_err(anyhow::Error::msg);
        let peer = |text: &&str| text.parse().map_err(anyhow::Error::msg);
        Plan::of(&RpcOptions {
            services: services.iter().map(service).collect::<Result<_, _>>()?,
            peers: peers.iter().map(peer).collect::<Result<_, _>>()?,
            with: with.to_vec(),
        })
    }

    #[test]
    fn places_follow_the_options() {
        assert_eq!(plan(&[], &[], &[With::Host]).unwrap(), None);
        let both = [With::Host, With::Protected];
        let plan = plan(&["keys,clients=2", "log,port=7"], &["keys@/run/a,b.sock,name=other"], &both);
        let plan = plan.unwrap().unwrap();
        assert_eq!(plan.policy, Policy { with: 1 | 4, channels: 7 });
        assert_eq!(plan.ports("keys").collect::<Vec<_>>(), [1, 2]);
        assert_eq!(plan.ports("log").collect::<Vec<_>>(), [7, 8, 9, 10]);
        assert_eq!(plan.ports("other").count(), 0, "what it calls is no service");
        assert_eq!(plan.callers().collect::<Vec<_>>(), [11]);
        assert_eq!(plan.places.last(), Some(&Place { name: "other".into(), port: 11 }));
    }

    #[test]
    fn mistakes_are_named() {
        let cases: [(&[&str], &[&str], &str); 12] = [
            (&["Keys"], &[], "small letters"),
            (&["-k"], &[], "small letters"),
            (&[""], &[], "small letters"),
            (&["k,clients=0"], &[], "1 to 16"),
            (&["k,clients=17"], &[], "1 to 16"),
            (&["k,port=-1"], &[], "no number"),
            (&["k,ro"], &[], "neither"),
            (&["a,clients=16", "b,clients=1"], &[], "17 channels"),
            (&["a", "a"], &[], "there twice"),
            (&["a,port=3", "b,port=6"], &[], "another's"),
            (&[], &["keys"], "SERVICE@VM"),
            (&[], &["keys@,name=x"], "no VM"),
        ];
        for (services, peers, message) in cases {
            let error = plan(services, peers, &[With::Host]).unwrap_err().to_string();
            assert!(error.contains(message), "{services:?} {peers:?}: {error}");
        }
    }
}
