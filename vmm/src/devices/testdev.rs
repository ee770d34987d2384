// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A device for bare-metal guests: benchmarks and tests.
//!
//! | offset | access | meaning |
//! |---|---|---|
//! | 0x00 | read, any size | 0x47 (`G`): the cheapest load that the VMM answers, for measuring an exit |
//! | 0x08 | write, any size | ends the VM; `gz` exits with code 64 + (low byte & 0x3F) |
//!
//! It holds no state and takes no lock.

use crate::bus::MmioDevice;
use crate::exit::EndReason;

const REG_READ: u64 = 0x00;
const REG_EXIT: u64 = 0x08;
/// What [`REG_READ`] reads as.
pub const READ_VALUE: u8 = 0x47;

/// The device.
pub struct TestDevice;

impl MmioDevice for TestDevice {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (REG_READ, Some(first)) = (offset, data.first_mut()) {
            *first = READ_VALUE;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        match (offset, data.first()) {
            (REG_EXIT, Some(&code)) => Some(EndReason::TestDevice(code)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers() {
        let mut data = [0; 4];
        TestDevice.read(0, &mut data);
        assert_eq!(u32::from_le_bytes(data), 0x47);
        let mut data = [0; 4];
        TestDevice.read(8, &mut data);
        assert_eq!(data, [0; 4]);
        assert_eq!(TestDevice.write(8, &[3, 0, 0, 0]), Some(EndReason::TestDevice(3)));
        assert_eq!(TestDevice.write(0, &[3]), None);
    }
}
