// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The GenieZone ABI as types: one crate for hypervisor, driver, VMM and tests, so that the four
//! can't disagree.
//!
//! - [`hypercall`]: what the host's driver asks of the hypervisor (HVC, SMCCC owner 59).
//! - [`run`]: the two pages a vCPU shares with the driver, and the exits reported in them.
//! - [`guest`]: what guests may call (vendor hypervisor services, as KVM numbers them).
//! - [`ioctl`]: what user space asks of `/dev/gzvm`.
//! - [`reg`]: register identifiers of GET/SET_ONE_REG.
//! - [`rpc`]: calls between VMs and the host, our own extension.
//! - [`digest`]: digests in registers.
//! - [`counter`]: our own extension: event counters of the hypervisor.
//!
//! Generation F of the public ABI (driver 16.0), little-endian, 4 KiB pages. `docs/abi.md` tells
//! the tables in prose. Nothing here decides anything; there is no code but conversions.

#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod counter;
pub mod digest;
pub mod guest;
pub mod hypercall;
pub mod ioctl;
pub mod reg;
pub mod rpc;
pub mod run;
pub mod watch;

/// Bytes in a page of host and guest alike. Hosts with larger pages are not self-consistent in
/// the public ABI and are refused by the driver.
pub const PAGE_SIZE: u64 = 4096;
/// Most vCPUs in a VM of a client of the public ABI.
pub const MAX_VCPUS: usize = 8;
/// Most vCPUs in a VM of a client that asked, see
/// [`extension::MAX_VCPUS`](ioctl::extension::MAX_VCPUS). Our hypervisor takes ids below this from any
/// driver: the public one refuses those past [`MAX_VCPUS`] itself.
pub const MAX_VCPUS_EXTENDED: usize = 64;
/// SPIs of a VM that was not asked for another number.
pub const DEFAULT_SPIS: usize = 256;
/// Most SPIs of a VM: INTIDs 32 to 1019.
pub const MAX_SPIS: usize = 988;
/// Most memory slots in a VM. Public drivers use 10.
pub const MAX_MEMSLOTS: usize = 64;
