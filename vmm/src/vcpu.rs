// SPDX-License-Identifier: Apache-2.0 OR MIT
//! vCPU threads: one loop that turns exits into device accesses, and the way to stop them all.
//!
//! The hot path (guest access, exit, device, next run) takes no lock but the device's own.

use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use gzvm_abi::reg;

use crate::bus::Bus;
use crate::devices::watchdog::{Watchdog, cpu_time_of_this_thread};
use crate::exit::EndReason;
use crate::hypervisor::{Exit, Kick, Vcpu};
use crate::sandbox::{self, Role};
use crate::signals;

/// How often a thread that does not stop is kicked again.
const KICK_AGAIN: Duration = Duration::from_millis(20);
/// How long to wait for all of them. A thread that is still in the hypervisor then is left to the
/// kernel, which ends it with the process.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A thread that hands its vCPU back.
type VcpuThread = JoinHandle<Box<dyn Vcpu>>;

/// The running vCPUs.
pub struct Threads {
    stop: Arc<AtomicBool>,
    threads: Vec<(VcpuThread, Arc<dyn Kick>)>,
}

impl Threads {
    /// Runs each vCPU in a thread. Why the VM ends goes to `end`, maybe from several threads.
    ///
    /// # Errors
    /// No thread left. Those that have been started are stopped.
    pub fn start(
        vcpus: Vec<Box<dyn Vcpu>>,
        bus: &Arc<Bus>,
        end: &Sender<EndReason>,
        watchdog: Option<&Arc<Watchdog>>,
    ) -> std::io::Result<Self> {
        let mut all = Self { stop: Arc::new(AtomicBool::new(false)), threads: Vec::new() };
        // Secondary vCPUs wait in the hypervisor for the guest to turn them on: all must be there.
        let barrier = Arc::new(Barrier::new(vcpus.len()));
        for (id, mut vcpu) in vcpus.into_iter().enumerate() {
            let kick = vcpu.kick();
            let (stop, barrier, bus, end) = (all.stop.clone(), barrier.clone(), bus.clone(), end.clone());
            let watchdog = watchdog.cloned();
            let thread = thread::Builder::new().name(format!("gz-vcpu{id}")).spawn(move || {
                sandbox::narrow(Role::Vcpu);
                if let (Some(watchdog), Some(time)) = (watchdog, cpu_time_of_this_thread()) {
                    watchdog.runs(id, time);
                }
                barrier.wait();
                if let Some(reason) = run(vcpu.as_mut(), &bus, &stop) {
                    // The receiver is gone when the VM ends for another reason.
                    let _ = end.send(reason);
                }
                // Lives until it is joined: a kick may be on its way.
                vcpu
            })?;
            all.threads.push((thread, kick));
        }
        Ok(all)
    }

    /// Gets every vCPU out of the guest and ends its thread.
    pub fn stop(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + STOP_DEADLINE;
        while !self.threads.is_empty() {
            for (thread, kick) in &self.threads {
                kick.kick();
                // SAFETY: the thread has not been joined, so its handle is valid; the signal has a
                // handler.
                unsafe { libc::pthread_kill(thread.as_pthread_t(), signals::kick_signal()) };
            }
            let pause = Instant::now() + KICK_AGAIN;
            while Instant::now() < pause && self.threads.iter().any(|(thread, _)| !thread.is_finished()) {
                thread::sleep(Duration::from_millis(1));
            }
            for (thread, _) in self.threads.extract_if(.., |(thread, _)| thread.is_finished()) {
                if thread.join().is_err() {
                    tracing::error!("a vCPU thread panicked");
                }
            }
            if Instant::now() > deadline {
                tracing::error!("{} vCPUs do not leave the hypervisor", self.threads.len());
                return;
            }
        }
    }
}

/// Runs `vcpu` until the VM ends. `None`: it has been stopped from outside.
fn run(vcpu: &mut dyn Vcpu, bus: &Bus, stop: &AtomicBool) -> Option<EndReason> {
    loop {
        let end = match vcpu.run() {
            Exit::MmioRead { address, data } => bus.read(address, data),
            Exit::MmioWrite { address, data } => bus.write(address, data),
            Exit::Again => None,
            Exit::End(reason) => Some(reason),
        };
        match end {
            None => {}
            Some(EndReason::Crash(report)) => return Some(EndReason::Crash(report + &place(vcpu))),
            other => return other,
        }
        // Checked after each run, and before the next: see `hypervisor` on how a kick gets through.
        if stop.load(Ordering::Acquire) {
            return None;
        }
    }
}

/// Where a crashed guest is; nothing where the hypervisor does not tell.
fn place(vcpu: &dyn Vcpu) -> String {
    let [pc, lr, pstate] = [Some(reg::PC), reg::x(30), Some(reg::PSTATE)].map(|id| vcpu.register(id?));
    match (pc, lr, pstate) {
        (Some(pc), Some(lr), Some(pstate)) => format!("; pc {pc:#x}, lr {lr:#x}, pstate {pstate:#x}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::testdev::{TestDevice, tests::FakeVm};
    use crate::hypervisor::BootState;
    use crate::layout;
    use std::sync::Condvar;
    use std::sync::Mutex;
    use std::sync::mpsc;

    #[derive(Default)]
    struct Flag(Mutex<bool>, Condvar);

    impl Kick for Flag {
        fn kick(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }
    }

    /// Reads the test device, then writes `exit` to it, or sleeps until kicked.
    struct Fake {
        step: u32,
        ran_on: Arc<AtomicBool>,
        buffer: [u8; 4],
        exit: Option<u8>,
        flag: Arc<Flag>,
    }

    impl Vcpu for Fake {
        fn set_boot_state(&mut self, _: Option<BootState>) -> anyhow::Result<()> {
            Ok(())
        }

        fn run(&mut self) -> Exit<'_> {
            self.step += 1;
            let base = layout::TEST_DEVICE.base;
            match (self.step, self.exit) {
                (1, _) => Exit::MmioRead { address: base, data: &mut self.buffer },
                (2, Some(code)) => {
                    assert_eq!(self.buffer, [0x47, 0, 0, 0]);
                    self.buffer[0] = code;
                    Exit::MmioWrite { address: base + 8, data: &self.buffer }
                }
                (2, None) => {
                    let mut kicked = self.flag.0.lock().unwrap();
                    while !*kicked {
                        kicked = self.flag.1.wait(kicked).unwrap();
                    }
                    Exit::Again
                }
                _ => {
                    self.ran_on.store(true, Ordering::SeqCst);
                    Exit::End(EndReason::Reset)
                }
            }
        }

        fn register(&self, id: u64) -> Option<u64> {
            Some(id & 0xFFFF)
        }

        fn kick(&self) -> Arc<dyn Kick> {
            self.flag.clone()
        }
    }

    fn fake(exit: Option<u8>, ran_on: &Arc<AtomicBool>) -> Box<dyn Vcpu> {
        let ran_on = ran_on.clone();
        Box::new(Fake { step: 0, ran_on, buffer: [0; 4], exit, flag: Arc::default() })
    }

    #[test]
    fn one_vcpu_ends_the_vm_and_the_others_are_stopped() {
        // The kick needs its handler, or the signal would end the test.
        signals::install().unwrap();
        let mut bus = Bus::new(true);
        bus.insert(layout::TEST_DEVICE, Arc::new(TestDevice::new(Arc::new(FakeVm::default())))).unwrap();
        let (end, reasons) = mpsc::channel();
        let ran_on = Arc::default();
        let vcpus = vec![fake(None, &ran_on), fake(Some(9), &ran_on), fake(None, &ran_on)];
        let threads = Threads::start(vcpus, &Arc::new(bus), &end, None).unwrap();
        assert_eq!(reasons.recv_timeout(Duration::from_secs(10)), Ok(EndReason::TestDevice(9)));
        threads.stop();
        assert!(!ran_on.load(Ordering::SeqCst), "a vCPU ran after the end");
        assert!(reasons.try_recv().is_err(), "stopped vCPUs report nothing");
    }

    #[test]
    fn a_crash_tells_where() {
        // No device at all: the first access is a crash.
        let mut vcpu = fake(None, &Arc::default());
        let Some(EndReason::Crash(report)) = run(vcpu.as_mut(), &Bus::new(true), &AtomicBool::new(false))
        else {
            panic!("no crash");
        };
        assert!(report.contains("0x90000; pc 0x40, lr 0x3c, pstate 0x42"), "{report}");
    }
}
