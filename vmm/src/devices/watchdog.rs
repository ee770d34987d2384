// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A watchdog for each vCPU, as Linux' driver for "qemu,vcpu-stall-detector" and crosvm have it.
//!
//! One block of 16 bytes a vCPU, 32-bit registers:
//!
//! | offset | register | meaning |
//! |---|---|---|
//! | 0x0 | STATUS | bit 0: counts |
//! | 0x4 | LOAD_CNT | written: the counter starts from this value, which is also how the watchdog is petted |
//! | 0x8 | CURRENT_CNT | read: what is left |
//! | 0xC | CLOCK_FREQ_HZ | counts a second |
//!
//! At zero the vCPU has stalled and the guest is reset, if its thread has been computing for at least half of the time: a
//! vCPU that is paused, or that the host gives no time, can't pet anything. It then gets the whole time again.
//!
//! No interrupt: it would only warn, and the binding leaves it out where there is none.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::bus::MmioDevice;
use crate::exit::EndReason;
use crate::sandbox::{self, Role};

/// Counts a second, unless the guest says otherwise; in the device tree.
pub const CLOCK_HZ: u32 = 10;
/// Seconds until a stall; in the device tree.
pub const TIMEOUT_SECONDS: u32 = 8;
/// Fastest clock that is taken.
const MOST_HZ: u32 = 1000;

const BLOCK: u64 = 0x10;
const STATUS: u64 = 0x0;
const LOAD: u64 = 0x4;
const CURRENT: u64 = 0x8;
const CLOCK: u64 = 0xC;

/// CPU time that a vCPU's thread has used.
pub type CpuTime = Box<dyn Fn() -> Duration + Send>;

/// One vCPU's.
struct Block {
    enabled: bool,
    load: u32,
    hz: u32,
    /// Since when it counts.
    since: Instant,
    /// CPU time of the thread then.
    used: Duration,
    cpu_time: Option<CpuTime>,
}

impl Block {
    fn new(now: Instant) -> Self {
        Self { enabled: false, load: 0, hz: CLOCK_HZ, since: now, used: Duration::ZERO, cpu_time: None }
    }

    fn restart(&mut self, now: Instant) {
        self.since = now;
        self.used = self.cpu_time.as_ref().map_or(Duration::ZERO, |time| time());
    }

    fn period(&self) -> Duration {
        Duration::from_secs(1).saturating_mul(self.load) / self.hz.max(1)
    }

    fn left(&self, now: Instant) -> Duration {
        self.period().saturating_sub(now.saturating_duration_since(self.since))
    }

    /// True if the vCPU has stalled; starts again otherwise.
    fn expired(&mut self, now: Instant) -> bool {
        let used = self.cpu_time.as_ref().map(|time| time().saturating_sub(self.used));
        let stalled = used.is_none_or(|used| used >= self.period() / 2);
        self.restart(now);
        stalled
    }

    fn read(&self, register: u64, now: Instant) -> u32 {
        match register {
            STATUS => self.enabled.into(),
            LOAD => self.load,
            CURRENT if self.enabled => {
                let counts = self.left(now).as_nanos() * u128::from(self.hz) / 1_000_000_000;
                u32::try_from(counts).unwrap_or(u32::MAX)
            }
            CLOCK => self.hz,
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u32, now: Instant) {
        match register {
            STATUS => {
                self.enabled = value & 1 != 0;
                self.restart(now);
            }
            LOAD => {
                self.load = value;
                self.restart(now);
            }
            CLOCK if (1..=MOST_HZ).contains(&value) => self.hz = value,
            _ => {}
        }
    }
}

/// The device.
pub struct Watchdog {
    blocks: Mutex<Vec<Block>>,
    changed: Condvar,
}

impl Watchdog {
    /// One for `vcpus` vCPUs. Stalls go to `end`; its thread ends with the last reference to the device.
    ///
    /// # Errors
    /// No thread left.
    pub fn start(vcpus: u8, end: Sender<EndReason>) -> std::io::Result<Arc<Self>> {
        let now = Instant::now();
        let device = Arc::new(Self {
            blocks: Mutex::new((0..vcpus).map(|_| Block::new(now)).collect()),
            changed: Condvar::new(),
        });
        let weak = Arc::downgrade(&device);
        thread::Builder::new().name("gz-watchdog".into()).spawn(move || {
            sandbox::narrow(Role::Helper);
            // Without a guest that uses it, one look a second.
            while let Some(device) = weak.upgrade() {
                if let Some(vcpu) = device.wait() {
                    tracing::warn!("the watchdog of vCPU {vcpu} has run down: reset");
                    if end.send(EndReason::Reset).is_err() {
                        return;
                    }
                }
            }
        })?;
        Ok(device)
    }

    fn blocks(&self) -> MutexGuard<'_, Vec<Block>> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells how to learn a vCPU's CPU time. From its own thread.
    pub fn runs(&self, vcpu: usize, cpu_time: CpuTime) {
        if let Some(block) = self.blocks().get_mut(vcpu) {
            block.cpu_time = Some(cpu_time);
        }
    }

    /// The guest is gone: nothing runs down any more.
    pub fn shut_down(&self) {
        self.blocks().iter_mut().for_each(|block| block.enabled = false);
    }

    /// Waits a second, or until something runs down or changes. A vCPU that has stalled, which counts no more.
    fn wait(&self) -> Option<usize> {
        let blocks = self.blocks();
        let now = Instant::now();
        let armed = blocks.iter().filter(|b| b.enabled && b.load > 0);
        let next = armed.map(|b| b.left(now)).min().unwrap_or(Duration::MAX).min(Duration::from_secs(1));
        let (mut blocks, _) = self.changed.wait_timeout(blocks, next).unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        blocks.iter_mut().enumerate().find_map(|(vcpu, block)| {
            let down = block.enabled && block.load > 0 && block.left(now).is_zero();
            (down && block.expired(now)).then(|| {
                block.enabled = false;
                vcpu
            })
        })
    }
}

impl MmioDevice for Watchdog {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match (usize::try_from(offset / BLOCK), data.len()) {
            (Ok(vcpu), 4) => self.blocks().get(vcpu).map_or(0, |b| b.read(offset % BLOCK, Instant::now())),
            _ => 0,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Option<EndReason> {
        if let (Ok(vcpu), Ok(bytes)) = (usize::try_from(offset / BLOCK), <[u8; 4]>::try_from(data))
            && let Some(block) = self.blocks().get_mut(vcpu)
        {
            block.write(offset % BLOCK, u32::from_le_bytes(bytes), Instant::now());
            self.changed.notify_all();
        }
        None
    }
}

/// CPU time of the calling thread, to be asked for from any.
pub fn cpu_time_of_this_thread() -> Option<CpuTime> {
    let mut clock = 0;
    // SAFETY: the thread is the calling one; the result is written to `clock`.
    if unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &mut clock) } != 0 {
        return None;
    }
    Some(Box::new(move || {
        // SAFETY: an all-zero timespec is valid.
        let mut time: libc::timespec = unsafe { std::mem::zeroed() };
        // SAFETY: `time` is valid for the call; a thread that has ended only makes it fail.
        if unsafe { libc::clock_gettime(clock, &mut time) } != 0 {
            return Duration::ZERO;
        }
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0).min(999_999_999))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    use std::sync::mpsc;

    fn put(device: &Watchdog, offset: u64, value: u32) {
        assert_eq!(device.write(offset, &value.to_le_bytes()), None);
    }

    fn get(device: &Watchdog, offset: u64) -> u32 {
        let mut data = [0xFF; 4];
        device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn registers_of_each_vcpu() {
        let (end, _reasons) = mpsc::channel();
        let device = Watchdog::start(2, end).unwrap();
        assert_eq!(get(&device, CLOCK), 10);
        put(&device, BLOCK + CLOCK, 1);
        put(&device, BLOCK + LOAD, 1000);
        assert_eq!(get(&device, BLOCK + CURRENT), 0);
        put(&device, BLOCK + STATUS, 1);
        assert!((990..=1000).contains(&get(&device, BLOCK + CURRENT)));
        assert_eq!((get(&device, BLOCK), get(&device, 0)), (1, 0));
        for wrong in [0, MOST_HZ + 1, u32::MAX] {
            put(&device, CLOCK, wrong);
            assert_eq!(get(&device, CLOCK), 10);
        }
        // No such vCPU, other widths, any offset.
        put(&device, 2 * BLOCK, 1);
        assert_eq!(get(&device, 2 * BLOCK), 0);
        for offset in 0..0x1000 {
            device.write(offset, &[0xFF; 8]);
            let mut data = [1; 8];
            device.read(offset, &mut data);
        }
    }

    #[test]
    fn a_vcpu_that_computes_and_does_not_pet_is_reset() {
        let (end, reasons) = mpsc::channel();
        let device = Watchdog::start(1, end).unwrap();
        let start = Instant::now();
        device.runs(0, Box::new(move || start.elapsed()));
        put(&device, CLOCK, 1000);
        put(&device, LOAD, 50);
        put(&device, STATUS, 1);
        assert_eq!(reasons.recv_timeout(Duration::from_secs(20)), Ok(EndReason::Reset));
        assert!(start.elapsed() >= Duration::from_millis(50));
        assert_eq!(get(&device, STATUS), 0);
    }

    #[test]
    fn one_without_cpu_time_is_not() {
        let (end, reasons) = mpsc::channel();
        let device = Watchdog::start(1, end).unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        device.runs(
            0,
            Box::new(move || {
                count.fetch_add(1, SeqCst);
                Duration::from_secs(7)
            }),
        );
        put(&device, CLOCK, 1000);
        put(&device, LOAD, 5);
        put(&device, STATUS, 1);
        let limit = Instant::now() + Duration::from_secs(20);
        while asked.load(SeqCst) < 20 && Instant::now() < limit {
            thread::sleep(Duration::from_millis(5));
        }
        put(&device, STATUS, 0);
        assert!(asked.load(SeqCst) >= 20);
        assert!(reasons.try_recv().is_err());
    }

    #[test]
    fn time_of_a_thread_grows() {
        let time = cpu_time_of_this_thread().unwrap();
        let before = time();
        while time() == before {
            std::hint::spin_loop();
        }
    }
}
