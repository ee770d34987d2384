// SPDX-License-Identifier: Apache-2.0 OR MIT
//! virtio-pci (virtio 1.2, section 4.1): devices as functions of one PCI bus, behind a host bridge without registers of its own
//! (`pci-host-ecam-generic`: configuration space as memory, PCI Express base specification, section 7.2.2).
//!
//! ```text
//!  ECAM     1 MiB   slot << 15 | function << 12 | register      config.rs
//!  window   1 MiB   BARs of 16 KiB, where the guest puts them    function.rs
//! ```
//!
//! A function's interrupt is its pin A, which the device tree leads to an SPI of its own, edge-triggered as all of ours are: there is
//! nobody who would lower a line, and nothing shares one. There are no MSIs: the guests' GIC has no frame or ITS to send them to.

mod config;
mod function;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use self::function::Function;
use crate::bus::MmioDevice;
use crate::exit::EndReason;
use crate::layout::DeviceRange;

/// Bytes of the configuration space of one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
const FUNCTION_SHIFT: u32 = 12;
const SLOT_SHIFT: u32 = 15;

/// Slot of virtio device `index`. Slot 0 is left to a host bridge, as everywhere.
pub const fn slot(index: u32) -> u32 {
    index + 1
}

/// Functions by slot, from [`slot`]`(0)` on.
pub type Functions = Vec<Arc<Function>>;

/// Configuration space.
pub struct Ecam(Functions);

impl Ecam {
    /// Of these functions.
    pub fn new(functions: &[Arc<Function>]) -> Self {
        Self(functions.to_vec())
    }

    /// The function at `offset`, and the register.
    fn find(&self, offset: u64) -> Option<(&Function, usize)> {
        let index = (offset >> SLOT_SHIFT).checked_sub(slot(0).into())?;
        let number = offset >> FUNCTION_SHIFT & 7;
        let function = self.0.get(usize::try_from(index).ok()?).filter(|_| number == 0)?;
        Some((function, (offset & ((1 << FUNCTION_SHIFT) - 1)) as usize))
    }
}

impl MmioDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((function, register)) => function.read_config(register, data),
            // Nobody answers.
            None => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        if let Some((function, register)) = self.find(offset) {
            function.write_config(register, data);
        }
        None
    }
}

/// The memory that the bridge passes on to BARs.
pub struct Window {
    range: DeviceRange,
    functions: Functions,
}

impl Window {
    /// Of these functions.
    pub fn new(range: DeviceRange, functions: &[Arc<Function>]) -> Self {
        Self { range, functions: functions.to_vec() }
    }

    /// The function that has `offset` in its BAR, and the offset there.
    fn find(&self, offset: u64) -> Option<(&Function, u64)> {
        let address = self.range.base + offset;
        self.functions.iter().find_map(|function| Some((function.as_ref(), function.offset(address)?)))
    }
}

impl MmioDevice for Window {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((function, offset)) => function.read(offset, data),
            None => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        if let Some((function, offset)) = self.find(offset) {
            function.write(offset, data);
        }
        None
    }
}
