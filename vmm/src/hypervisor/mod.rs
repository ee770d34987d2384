// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The host's hypervisor behind one trait: [`gzvm`] through `/dev/gzvm`, [`kvm`] through
//! `/dev/kvm`. The rest of the VMM does not know which; guests get the same machine from both.
//!
//! ```text
//!  create ─► RAM slot, GIC, vCPUs ─► irqfd, ioeventfd ─► device tree ─► boot registers ─► run
//! ```
//!
//! A vCPU runs in a thread of its own. To get it out of the guest: raise the VM's stop flag, call
//! [`Kick::kick`], then send the thread [`KICK_SIGNAL`](crate::signals::kick_signal). Whatever
//! the interleaving, the thread meets one of the three before it enters the guest again.

pub mod gzvm;
#[cfg(target_arch = "aarch64")]
pub mod kvm;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use gzvm_abi::run::system_event;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::cli::run::Feature;
use crate::exit::EndReason;
use crate::layout::Map;
use crate::memory::GuestRam;
use crate::rpc::options::Policy;
use crate::watch::{OnException, Watch};

/// Which hypervisor.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// GenieZone, through /dev/gzvm.
    Gzvm,
    /// KVM, through /dev/kvm.
    Kvm,
}

impl Kind {
    /// Its device.
    pub fn device(self) -> &'static str {
        match self {
            Self::Gzvm => gzvm_ioctls::DEVICE_PATH,
            Self::Kvm => "/dev/kvm",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Gzvm => "gzvm",
            Self::Kvm => "kvm",
        })
    }
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug)]
pub enum Exit<'a> {
    /// A load that a device must answer, before the next run.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8 bytes for the answer.
        data: &'a mut [u8],
    },
    /// A store.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8 bytes.
        data: &'a [u8],
    },
    /// The VM ends.
    End(EndReason),
    /// Nothing to do: a signal, a kick, or the hypervisor's own affairs.
    Again,
}

/// Makes a vCPU leave [`Vcpu::run`], together with a signal to its thread; see the module.
pub trait Kick: Send + Sync {
    /// From any thread.
    fn kick(&self);
}

/// A vCPU.
pub trait Vcpu: Send {
    /// Sets the registers of a vCPU that has not run: EL1h with interrupts masked; vCPU 0 also gets
    /// the kernel's entry, and the device tree's address in x0.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn set_boot_state(&mut self, boot: Option<BootState>) -> anyhow::Result<()>;

    /// Runs the guest until something needs us.
    fn run(&mut self) -> Exit<'_>;

    /// Reads a register (see [`gzvm_abi::reg`]) of a stopped vCPU, where the hypervisor tells.
    fn register(&self, id: u64) -> Option<u64>;

    /// What makes it leave.
    fn kick(&self) -> Arc<dyn Kick>;
}

/// A guest's write that an eventfd is told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notification {
    /// 32 bits of this value to an address.
    Value32(u64, u32),
    /// 16 bits of any value to an address.
    Any16(u64),
}

/// Where vCPU 0 starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BootState {
    /// PC.
    pub entry: u64,
    /// X0.
    pub fdt: u64,
    /// Bytes of the kernel: X2 of a protected VM's firmware, which gets the entry in X1.
    pub size: u64,
}

/// PSTATE of every vCPU at its start: D, A, I, F masked, EL1h.
pub const BOOT_PSTATE: u64 = 0x3C5;

/// A VM with its RAM and interrupt controller.
pub trait Vm: Send + Sync {
    /// Each signal of `fd` makes SPI number `spi` pending once.
    ///
    /// # Errors
    /// The kernel refused.
    fn register_irqfd(&self, fd: &EventFd, spi: u32) -> anyhow::Result<()>;

    /// Guest writes that are `notification` signal `fd` and need no exit.
    ///
    /// # Errors
    /// The kernel refused. MediaTek's driver knows one value an address.
    fn register_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()>;

    /// Undoes [`register_ioeventfd`](Self::register_ioeventfd) with the same arguments.
    ///
    /// # Errors
    /// There is none such.
    fn unregister_ioeventfd(&self, fd: &EventFd, notification: Notification) -> anyhow::Result<()>;

    /// Takes pages back from the guest, after they were dropped from our memory. Nothing to do where the hypervisor
    /// follows our address space by itself.
    ///
    /// # Errors
    /// The hypervisor refused: the guest keeps the old pages, which we no longer see.
    fn discard(&self, address: u64, size: u64) -> anyhow::Result<()>;

    /// Can guest pages be taken back?
    fn can_discard(&self) -> bool;

    /// Tells where the device tree is, where the hypervisor cares.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn set_fdt(&self, address: u64, size: u64) -> anyhow::Result<()>;

    /// Watches the guest's exceptions; before any vCPU runs.
    ///
    /// # Errors
    /// The hypervisor can't watch these.
    fn set_watch(&self, _watch: Watch, _action: OnException) -> anyhow::Result<()> {
        anyhow::bail!("--watch: {NO_CONTROL}")
    }

    /// Stops every vCPU where it is; none runs when this returns. The guest's clock stands still.
    ///
    /// # Errors
    /// The VM is over, or the hypervisor can't.
    fn pause(&self) -> anyhow::Result<Status> {
        anyhow::bail!("{NO_CONTROL}")
    }

    /// Lets the vCPUs go on.
    ///
    /// # Errors
    /// See [`pause`](Self::pause).
    fn resume(&self) -> anyhow::Result<Status> {
        anyhow::bail!("{NO_CONTROL}")
    }

    /// How it is.
    ///
    /// # Errors
    /// See [`pause`](Self::pause).
    fn status(&self) -> anyhow::Result<Status> {
        anyhow::bail!("{NO_CONTROL}")
    }

    /// Makes a channel, which the guest finds at `port`: with the host, or with another VM, by its file and its port. None: a policy is against it,
    /// or the port is in use.
    ///
    /// # Errors
    /// The hypervisor can't.
    fn connect(&self, _port: u32, _other: Option<(BorrowedFd<'_>, u32)>) -> anyhow::Result<Option<OwnedFd>> {
        anyhow::bail!("{NO_RPC}")
    }

    /// Its file, where another VM's [`connect`](Self::connect) knows what to do with it.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Who it is: none of a plain VM, of one that has not run, and where nobody keeps it.
    fn measurement(&self) -> Option<Measurement> {
        None
    }
}

const NO_RPC: &str = "--rpc: this hypervisor (or its driver) has no channels";
const NO_CONTROL: &str = "this hypervisor (or its driver) has no such control";

/// Who a protected VM is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Measurement {
    /// SHA-256, see `docs/abi.md`.
    pub value: [u8; 32],
    /// The firmware has told all, and the payload runs.
    pub sealed: bool,
}

impl std::fmt::Display for Measurement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("measurement ")?;
        self.value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(if self.sealed { ", sealed" } else { ", open" })
    }
}

/// A VM's power, for [`Status`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Power {
    /// Nothing has run yet.
    Created,
    /// It runs.
    Running,
    /// It is paused.
    Paused,
    /// The guest has suspended itself.
    Suspended,
    /// It has ended, or is about to.
    Over,
}

/// How a VM is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its power.
    pub power: Power,
    /// Exceptions of the guest that `--watch` has seen.
    pub events: u64,
}

/// A VM and its vCPUs, in order.
pub struct Machine {
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// Its vCPUs.
    pub vcpus: Vec<Box<dyn Vcpu>>,
}

/// What a VM is made of.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// Where its GICv3 is.
    pub map: &'a Map,
    /// Its memory: RAM, and flash if there is one. Slot numbers follow this order.
    pub memory: &'a [GuestRam],
    /// Its number of vCPUs.
    pub vcpus: u8,
    /// What it is given of the CPU beyond what every VM has.
    pub features: &'a [Feature],
    /// How many SPIs its GIC has, if it matters.
    pub spis: Option<u16>,
    /// Which channels it may have.
    pub rpc: Option<Policy>,
    /// Its memory and registers are out of the host's reach.
    pub protected: bool,
    /// Room for the firmware of a protected VM, where the hypervisor has one.
    pub firmware: Option<&'a GuestRam>,
}

/// Makes a VM of these parts.
///
/// # Errors
/// No such hypervisor on this host, or it refused; the text says what to do.
pub fn create(kind: Kind, parts: Parts) -> anyhow::Result<Machine> {
    match kind {
        Kind::Gzvm => gzvm::create(parts),
        #[cfg(target_arch = "aarch64")]
        Kind::Kvm if !parts.features.is_empty() => anyhow::bail!("--features: for gzvm only"),
        #[cfg(target_arch = "aarch64")]
        Kind::Kvm if parts.rpc.is_some() => anyhow::bail!("--rpc: for gzvm only"),
        #[cfg(target_arch = "aarch64")]
        Kind::Kvm => kvm::create(parts),
        #[cfg(not(target_arch = "aarch64"))]
        Kind::Kvm => {
            anyhow::bail!("--hypervisor kvm: guests are arm64, and this gz was built for another host")
        }
    }
}

/// Memory that leaves us page by page as a protected guest gets it; none where that is not known.
///
/// # Errors
/// No such hypervisor on this host, or it refused.
pub fn guest_memory(kind: Kind, size: u64) -> anyhow::Result<Option<OwnedFd>> {
    match kind {
        Kind::Gzvm => gzvm::guest_memory(size),
        Kind::Kvm => Ok(None),
    }
}

/// A system event's meaning; gzvm and KVM number them alike.
fn system_event(vcpu: u8, kind: u32, data: &[u64]) -> Exit<'static> {
    Exit::End(match kind {
        system_event::SHUTDOWN => EndReason::PowerOff,
        system_event::RESET => EndReason::Reset,
        system_event::CRASH => EndReason::Crash(format!("vCPU {vcpu} reports a crash, data {data:x?}")),
        other => EndReason::Crash(format!("vCPU {vcpu}: system event {other}, data {data:x?}")),
    })
}

/// Adds the remedy to an error of opening the hypervisor's device.
fn open_error(path: &str, errno: i32, missing: &str) -> anyhow::Error {
    let error = std::io::Error::from_raw_os_error(errno);
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => anyhow::anyhow!("{path}: {error}; {missing}"),
        libc::EACCES | libc::EPERM => {
            anyhow::anyhow!("{path}: {error}; run as root, or give your user access to the device")
        }
        _ => anyhow::anyhow!("{path}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_events_end_the_vm() {
        assert!(matches!(system_event(0, 1, &[]), Exit::End(EndReason::PowerOff)));
        assert!(matches!(system_event(0, 2, &[]), Exit::End(EndReason::Reset)));
        for kind in [0, 3, 4, 5, 99] {
            assert!(matches!(system_event(0, kind, &[7]), Exit::End(EndReason::Crash(_))), "{kind}");
        }
    }

    #[test]
    fn a_missing_device_is_explained() {
        let error = open_error("/dev/gzvm", libc::ENOENT, "load it").to_string();
        assert!(error.starts_with("/dev/gzvm: ") && error.ends_with("load it"), "{error}");
        assert!(open_error("/dev/kvm", libc::EACCES, "x").to_string().contains("root"));
    }
}
