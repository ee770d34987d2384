// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The MMIO bus: which device answers an address.
//!
//! Built once, before the vCPUs start, and never changed: looking a device up takes no lock, and a
//! device takes its own only where it has state that several vCPUs change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use thiserror::Error;

use crate::exit::EndReason;
use crate::layout::DeviceRange;

/// A device with registers. `offset` counts from the start of its range; accesses lie wholly
/// inside it, and are 1, 2, 4 or 8 bytes long. What a device does not know reads as it was given
/// (zero), and is ignored when written.
pub trait MmioDevice: Send + Sync {
    /// Answers a load.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes a store. A device that ends the VM says so.
    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason>;
}

/// Two devices claim an address.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("devices overlap: {0:x?} and {1:x?}")]
pub struct Overlap(DeviceRange, DeviceRange);

/// The devices, sorted by address.
#[derive(Default)]
pub struct Bus {
    devices: Vec<(DeviceRange, Arc<dyn MmioDevice>)>,
    /// Accesses that met no device.
    unclaimed: AtomicU32,
    strict: bool,
}

/// Accesses to nothing are reported one by one up to this count, then every so many.
const REPORT_ALL: u32 = 8;
const REPORT_EACH: u32 = 1 << 16;

impl Bus {
    /// A bus without devices. `strict`: an access that meets no device is a guest crash; otherwise it
    /// reads as ones, is ignored when written, and is reported in the log.
    pub fn new(strict: bool) -> Self {
        Self { strict, ..Self::default() }
    }

    /// Adds a device.
    ///
    /// # Errors
    /// Another one is there.
    pub fn insert(&mut self, range: DeviceRange, device: Arc<dyn MmioDevice>) -> Result<(), Overlap> {
        let position = self.devices.partition_point(|(other, _)| other.base < range.base);
        let before = position.checked_sub(1).and_then(|index| self.devices.get(index));
        let after = self.devices.get(position);
        for (other, _) in before.into_iter().chain(after) {
            if range.base < other.range().end && other.base < range.range().end {
                return Err(Overlap(*other, range));
            }
        }
        self.devices.insert(position, (range, device));
        Ok(())
    }

    /// The device that holds all of `len` bytes at `address`, and the offset in it.
    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn MmioDevice)> {
        let index = self.devices.partition_point(|(range, _)| range.base <= address).checked_sub(1)?;
        let (range, device) = self.devices.get(index)?;
        let offset = address - range.base;
        (offset.checked_add(len as u64)? <= range.size).then_some((offset, device.as_ref()))
    }

    /// A guest's load. `data` is all ones where there is no device.
    pub fn read(&self, address: u64, data: &mut [u8]) -> Option<EndReason> {
        match self.find(address, data.len()) {
            Some((offset, device)) => {
                data.fill(0);
                device.read(offset, data);
                None
            }
            None => {
                data.fill(0xFF);
                self.report("load", address, data.len())
            }
        }
    }

    /// A guest's store.
    pub fn write(&self, address: u64, data: &[u8]) -> Option<EndReason> {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.write(offset, data),
            None => self.report("store", address, data.len()),
        }
    }

    #[cold]
    fn report(&self, what: &str, address: u64, len: usize) -> Option<EndReason> {
        if self.strict {
            let report = format!("{what} of {len} bytes at unmapped guest address {address:#x}");
            return Some(EndReason::Crash(report));
        }
        let count = self.unclaimed.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count <= REPORT_ALL || count.is_multiple_of(REPORT_EACH) {
            tracing::warn!(
                "guest {what} of {len} bytes at unmapped address {address:#x} (access {count} of that kind); --strict-mmio stops the guest at the first"
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl MmioDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset.to_le_bytes()[0]);
        }

        fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            None
        }
    }

    fn range(base: u64, size: u64) -> DeviceRange {
        DeviceRange { base, size }
    }

    #[test]
    fn the_right_device_answers() {
        let (low, high) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let mut bus = Bus::new(true);
        bus.insert(range(0x2000, 0x1000), high.clone()).unwrap();
        bus.insert(range(0x1000, 0x10), low.clone()).unwrap();
        assert_eq!(bus.write(0x100C, &[1, 2, 3, 4]), None);
        assert_eq!(bus.write(0x2FFF, &[5]), None);
        assert_eq!(*low.0.lock().unwrap(), [(0xC, vec![1, 2, 3, 4])]);
        assert_eq!(*high.0.lock().unwrap(), [(0xFFF, vec![5])]);
        let mut data = [0; 4];
        assert_eq!(bus.read(0x2010, &mut data), None);
        assert_eq!(data, [0x10; 4]);
    }

    #[test]
    fn accesses_across_an_end_or_to_nothing() {
        let mut strict = Bus::new(true);
        strict.insert(range(0x1000, 0x10), Arc::new(Recorder::default())).unwrap();
        let mut data = [0; 8];
        for address in [0xFFF, 0x100D, 0x1010, 0, u64::MAX] {
            assert!(matches!(strict.read(address, &mut data), Some(EndReason::Crash(_))), "{address:#x}");
            assert!(matches!(strict.write(address, &data), Some(EndReason::Crash(_))), "{address:#x}");
        }
        let lax = Bus::new(false);
        let mut data = [0; 2];
        assert_eq!(lax.read(0x1234, &mut data), None);
        assert_eq!(data, [0xFF; 2]);
        assert_eq!(lax.write(0x1234, &data), None);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::new(false);
        let device = Arc::new(Recorder::default());
        bus.insert(range(0x1000, 0x1000), device.clone()).unwrap();
        for (base, size) in [(0x1000, 1), (0xFFF, 2), (0x1FFF, 1), (0, 0x10000)] {
            assert!(bus.insert(range(base, size), device.clone()).is_err(), "{base:#x}");
        }
        bus.insert(range(0x2000, 1), device.clone()).unwrap();
        bus.insert(range(0xFFF, 1), device).unwrap();
    }
}
