// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Devices that the VMM answers for. Each is an [`MmioDevice`](crate::bus::MmioDevice) and knows
//! neither its address nor the back end: interrupts are eventfds that the back end has tied to the
//! virtual GIC.

pub mod flash;
pub mod pl011;
pub mod rtc;
pub mod serial;
pub mod testdev;
pub mod virtio;
pub mod watchdog;
