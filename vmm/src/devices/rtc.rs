// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PL031 real-time clock (Arm DDI 0224): the host's wall clock in seconds, and one alarm.
//!
//! The alarm is due when the counter equals the match register; a thread waits for that moment. As
//! the interrupt line is an irqfd that only says "now", it is signalled whenever the masked status
//! goes from 0 to 1.
//!
//! A written counter is an offset to the host's clock. The counter can't be stopped: RTCCR's bit
//! reads as one.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::MmioDevice;
use crate::exit::EndReason;
use crate::sandbox::{self, Role};

const RTCDR: u64 = 0x00;
const RTCMR: u64 = 0x04;
const RTCLR: u64 = 0x08;
const RTCCR: u64 = 0x0C;
const RTCIMSC: u64 = 0x10;
const RTCRIS: u64 = 0x14;
const RTCMIS: u64 = 0x18;
const RTCICR: u64 = 0x1C;
/// Peripheral and PrimeCell identification: one byte in each word.
const ID_REGISTERS: u64 = 0xFE0;
const IDS: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0D, 0xF0, 0x05, 0xB1];

/// The host's clock may be set: an alarm that is far away is looked at anew this often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct Registers {
    /// Counter minus the host's seconds.
    offset: u32,
    /// RTCLR: what the counter was set to.
    load: u32,
    /// RTCMR.
    alarm: u32,
    /// RTCMR has been written, and the counter has not equalled it since.
    armed: bool,
    /// RTCIMSC.
    unmasked: bool,
    /// RTCRIS.
    raised: bool,
    /// The clock goes away.
    closing: bool,
}

impl Registers {
    fn counter(&self) -> u32 {
        // Wraps in 2106, as the hardware does.
        (now().as_secs() as u32).wrapping_add(self.offset)
    }

    /// How long until the counter equals the match register; `None`: not before it has wrapped.
    fn until_alarm(&self) -> Option<Duration> {
        if !self.armed {
            return None;
        }
        let seconds = self.alarm.wrapping_sub(self.counter());
        if seconds == 0 {
            return Some(Duration::ZERO);
        }
        // The host's second has begun already.
        let begun = Duration::from_nanos(now().subsec_nanos().into());
        (seconds <= u32::MAX / 2).then(|| Duration::from_secs(seconds.into()).saturating_sub(begun))
    }

    const fn masked(&self) -> bool {
        self.unmasked && self.raised
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

struct Shared {
    registers: Mutex<Registers>,
    /// The alarm has been set anew.
    changed: Condvar,
    line: EventFd,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` change the registers, and signals the line if that raised it.
    fn update(&self, registers: &mut Registers, change: impl FnOnce(&mut Registers)) {
        let before = registers.masked();
        change(registers);
        if !before
            && registers.masked()
            && let Err(error) = self.line.write(1)
        {
            tracing::warn!("clock interrupt lost: {error}");
        }
    }
}

/// The clock. Its thread ends soon after it.
pub struct Pl031(Arc<Shared>);

impl Pl031 {
    /// A clock that shows the host's time and signals `line`.
    ///
    /// # Errors
    /// No thread left.
    pub fn new(line: EventFd) -> io::Result<Self> {
        let shared = Arc::new(Shared { registers: Mutex::default(), changed: Condvar::new(), line });
        let weak = Arc::downgrade(&shared);
        thread::Builder::new().name("gz-clock".into()).spawn(move || {
            sandbox::narrow(Role::Helper);
            ring(&weak);
        })?;
        Ok(Self(shared))
    }
}

impl Drop for Pl031 {
    fn drop(&mut self) {
        self.0.lock().closing = true;
        self.0.changed.notify_all();
    }
}

/// The thread: waits for alarms.
fn ring(clock: &Weak<Shared>) {
    while let Some(shared) = clock.upgrade() {
        let mut registers = shared.lock();
        if registers.closing {
            return;
        }
        let wait = match registers.until_alarm() {
            Some(Duration::ZERO) => {
                shared.update(&mut registers, |registers| {
                    registers.armed = false;
                    registers.raised = true;
                });
                continue;
            }
            Some(time) => time.min(LOOK_AGAIN),
            None => LOOK_AGAIN,
        };
        // Returns for any reason: the loop looks again.
        drop(shared.changed.wait_timeout(registers, wait));
    }
}

impl MmioDevice for Pl031 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The registers are words. Linux's AMBA bus reads those of the ID so, too; EDK2 only their low bytes.
        let (offset, byte) = (offset & !3, (offset & 3) as usize);
        let registers = self.0.lock();
        let id = offset.checked_sub(ID_REGISTERS).and_then(|offset| usize::try_from(offset / 4).ok());
        let value = match offset {
            RTCDR => registers.counter(),
            RTCMR => registers.alarm,
            RTCLR => registers.load,
            RTCCR => 1,
            RTCIMSC => registers.unmasked.into(),
            RTCRIS => registers.raised.into(),
            RTCMIS => registers.masked().into(),
            _ => id.and_then(|index| IDS.get(index)).map_or(0, |&id| id.into()),
        };
        if let Some(part) = value.to_le_bytes().get(byte..byte.saturating_add(data.len())) {
            data.copy_from_slice(part);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        let value = u32::from_le_bytes(*<&[u8; 4]>::try_from(data).ok()?);
        let mut registers = self.0.lock();
        self.0.update(&mut registers, |registers| match offset {
            RTCMR => {
                registers.alarm = value;
                registers.armed = true;
            }
            RTCLR => {
                registers.load = value;
                registers.offset = registers.offset.wrapping_add(value.wrapping_sub(registers.counter()));
            }
            RTCIMSC => registers.unmasked = value & 1 != 0,
            RTCICR if value & 1 != 0 => registers.raised = false,
            _ => {}
        });
        if matches!(offset, RTCMR | RTCLR) {
            self.0.changed.notify_all();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> (Pl031, EventFd) {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (Pl031::new(line.try_clone().unwrap()).unwrap(), line)
    }

    fn read(rtc: &Pl031, offset: u64) -> u32 {
        let mut data = [0; 4];
        rtc.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(rtc: &Pl031, offset: u64, value: u32) {
        assert_eq!(rtc.write(offset, &value.to_le_bytes()), None);
    }

    /// Waits for the raw status.
    fn wait_raised(rtc: &Pl031) {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while read(rtc, RTCRIS) == 0 {
            assert!(std::time::Instant::now() < end, "no alarm");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn shows_the_time_and_its_kind() {
        let (rtc, _) = clock();
        let now = now().as_secs();
        assert!(now.abs_diff(read(&rtc, RTCDR).into()) <= 2);
        let ids: Vec<_> = (0..8).map(|index| read(&rtc, ID_REGISTERS + 4 * index)).collect();
        assert_eq!(ids, [0x31, 0x10, 4, 0, 0xD, 0xF0, 5, 0xB1]);
        let mut parts = [[0; 1]; 4];
        for (offset, part) in (0x10..).zip(&mut parts) {
            rtc.read(ID_REGISTERS + offset, part);
        }
        assert_eq!(parts, [[0xD], [0], [0], [0]], "a register's bytes");
        let mut more = [7; 8];
        rtc.read(ID_REGISTERS, &mut more);
        assert_eq!(more, [7; 8], "no more than a register");
        assert_eq!(read(&rtc, RTCCR), 1);
    }

    #[test]
    fn is_set() {
        let (rtc, _) = clock();
        write(&rtc, RTCLR, 1000);
        assert!((1000..1010).contains(&read(&rtc, RTCDR)));
        assert_eq!(read(&rtc, RTCLR), 1000);
    }

    #[test]
    fn an_alarm_interrupts_once_until_it_is_cleared() {
        let (rtc, line) = clock();
        write(&rtc, RTCIMSC, 1);
        let due = read(&rtc, RTCDR) + 2;
        write(&rtc, RTCMR, due);
        assert_eq!(read(&rtc, RTCMR), due);
        wait_raised(&rtc);
        assert!(read(&rtc, RTCDR) >= due);
        assert_eq!((read(&rtc, RTCMIS), line.read().unwrap()), (1, 1));
        write(&rtc, RTCICR, 1);
        assert_eq!((read(&rtc, RTCRIS), read(&rtc, RTCMIS)), (0, 0));
        assert!(line.read().is_err());
    }

    #[test]
    fn a_masked_alarm_interrupts_when_it_is_unmasked() {
        let (rtc, line) = clock();
        write(&rtc, RTCMR, read(&rtc, RTCDR));
        wait_raised(&rtc);
        assert_eq!(read(&rtc, RTCMIS), 0);
        assert!(line.read().is_err());
        write(&rtc, RTCIMSC, 1);
        write(&rtc, RTCIMSC, 1);
        assert_eq!(line.read().unwrap(), 1);
    }

    #[test]
    fn the_thread_ends_with_the_clock() {
        let (rtc, _) = clock();
        let weak = Arc::downgrade(&rtc.0);
        drop(rtc);
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while weak.strong_count() > 0 {
            assert!(std::time::Instant::now() < end, "the thread holds the clock");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
