// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PL031 real-time clock over vm-superio's model: the host's wall clock, in seconds. The alarm
//! never fires; stock Linux reads the time at boot and asks for no more.

use std::sync::{Mutex, PoisonError};

use vm_superio::Rtc;
use vm_superio::rtc_pl031::NoEvents;

use crate::bus::MmioDevice;
use crate::exit::EndReason;

/// The clock.
pub struct Pl031(Mutex<Rtc<NoEvents>>);

impl Pl031 {
    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self(Mutex::new(Rtc::new()))
    }
}

impl Default for Pl031 {
    fn default() -> Self {
        Self::new()
    }
}

impl MmioDevice for Pl031 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The registers are words; Linux's AMBA bus reads the ID registers so, too.
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), <&mut [u8; 4]>::try_from(data)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        if let (Ok(offset), Ok(data)) = (u16::try_from(offset), <&[u8; 4]>::try_from(data)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{SystemTime, UNIX_EPOCH};

    #[test]
    fn shows_the_time_and_its_kind() {
        let rtc = Pl031::new();
        let mut data = [0; 4];
        rtc.read(0, &mut data);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!(now.abs_diff(u32::from_le_bytes(data).into()) <= 2);
        // PrimeCell part number 0x031 in the first two ID registers.
        rtc.read(0xFE0, &mut data);
        assert_eq!(data[0], 0x31);
        let mut byte = [0; 1];
        rtc.read(0, &mut byte);
        assert_eq!(byte, [0], "only word accesses exist");
    }
}
