// SPDX-License-Identifier: GPL-2.0-only
//! RUN: exits, signals, threads.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use gzvm_abi::ioctl;
use gzvm_abi::run::exit;
use libc::EINTR;

use crate::machine::{BUSY, DEVICE, ECHO, IDLE, Machine, RAM, Run, device};
use crate::sys::{self, Kicker, Mapping, Thread, errno};
use crate::{Check, ensure};

/// What the guest loads, it stores elsewhere: what user space answers comes back.
pub fn mmio_read_and_write() -> Check {
    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, DEVICE + 0x100)])?;
    let mut run = Run::new();
    for n in 0..200_u32 {
        echo(&machine, &mut run, n.wrapping_mul(0x0101_0117))?;
    }
    Ok(())
}

fn echo(machine: &Machine, run: &mut Run, value: u32) -> Check {
    let mut read = run.mmio(&machine.vcpu)?;
    ensure!(read.phys_addr == DEVICE && read.size == 4 && read.is_write == 0, "{read:?}");
    read.data = u64::from(value).to_le_bytes();
    read.write(&mut run.0);
    let write = run.mmio(&machine.vcpu)?;
    ensure!(write.phys_addr == DEVICE + 0x100 && write.is_write == 1, "{write:?}");
    let got = u64::from_le_bytes(write.data) as u32;
    ensure!(got == value, "{got:#x} came back for {value:#x}");
    Ok(())
}

/// As crosvm does it: the handler sets `immediate_exit`, system calls are restarted.
fn kicked(code: &[u32]) -> Check {
    let machine = Machine::new(code, &[])?;
    let mut run = Run::new();
    sys::handle_signal(true);
    sys::flag_on_signal(&raw mut run.0.immediate_exit);
    let kicker = Kicker::start(Duration::from_millis(300), Duration::from_millis(100));
    let error = errno(&run.run(&machine.vcpu));
    drop(kicker);
    sys::flag_on_signal(std::ptr::null_mut());
    ensure!(error == EINTR, "errno {error}, exit {:#x}", run.0.exit_reason);
    ensure!(run.0.immediate_exit == 1, "the handler's write is lost");
    Ok(())
}

pub fn signal_ends_a_busy_guest() -> Check {
    kicked(BUSY)
}

pub fn signal_ends_an_idle_guest() -> Check {
    kicked(IDLE)
}

/// Signals at every moment of an MMIO dialogue: each access is served once, in order.
pub fn signals_cost_no_exit() -> Check {
    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, DEVICE + 0x100)])?;
    sys::handle_signal(true);
    let _kicker = Kicker::start(Duration::ZERO, Duration::from_micros(150));
    let mut run = Run::new();
    (0..3000_u32).try_for_each(|n| echo(&machine, &mut run, n))
}

/// Threads that all want to run one vCPU.
pub fn threads_share_a_vcpu() -> Check {
    const THREADS: usize = 3;
    let machine = Arc::new(Machine::new(BUSY, &[])?);
    sys::handle_signal(false);
    let stop = Arc::new(AtomicBool::new(false));
    let left = Arc::new(AtomicU32::new(THREADS as u32));
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..THREADS)
        .map(|_| {
            let (machine, stop, left, sender) =
                (Arc::clone(&machine), Arc::clone(&stop), Arc::clone(&left), sender.clone());
            thread::spawn(move || {
                let _ = sender.send(Thread::current());
                let mut wrong = None;
                while !stop.load(Ordering::SeqCst) {
                    let error = errno(&Run::new().run(&machine.vcpu));
                    if error != EINTR {
                        wrong = Some(error);
                        break;
                    }
                }
                left.fetch_sub(1, Ordering::SeqCst);
                // Signals may come until all are through.
                while left.load(Ordering::SeqCst) != 0 {
                    thread::sleep(Duration::from_millis(5));
                }
                wrong
            })
        })
        .collect();
    let ids: Vec<Thread> = receiver.iter().take(THREADS).collect();
    for n in 0..150 {
        ids[n % THREADS].interrupt();
        thread::sleep(Duration::from_millis(2));
    }
    stop.store(true, Ordering::SeqCst);
    while left.load(Ordering::SeqCst) != 0 {
        ids.iter().for_each(|id| id.interrupt());
        thread::sleep(Duration::from_millis(5));
    }
    for thread in threads {
        let wrong = thread.join().map_err(|_| "panicked")?;
        ensure!(wrong.is_none(), "RUN: errno {wrong:?}");
    }
    Ok(())
}

pub fn vcpu_outlives_vm_file() -> Check {
    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, DEVICE + 0x100)])?;
    let Machine { vcpu, vm, ram } = machine;
    drop(vm);
    let mut run = Run::new();
    let read = run.mmio(&vcpu)?;
    ensure!(read.phys_addr == DEVICE, "{read:?}");
    drop(ram);
    let write = run.mmio(&vcpu)?;
    ensure!(write.phys_addr == DEVICE + 0x100, "{write:?}");
    Ok(())
}

pub fn many_vms_at_once() -> Check {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| {
                for _ in 0..8 {
                    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, RAM + 0x1000)])?;
                    let second = sys::ioctl(&machine.vm, ioctl::CREATE_VCPU, 1).map_err(|e| e.to_string())?;
                    let second = sys::owned(second);
                    let mut run = Run::new();
                    run.mmio(&machine.vcpu)?;
                    ensure!(run.0.exit_reason == exit::MMIO, "exit");
                    drop(machine);
                    drop(second);
                }
                Ok(())
            })
        })
        .collect();
    threads.into_iter().try_for_each(|t| t.join().map_err(|_| "panicked".to_owned())?)
}

/// RUN through a mapped page: no argument, no copies.
pub fn mapped_run_page() -> Check {
    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, DEVICE + 8)])?;
    let size = sys::ioctl(&device()?, ioctl::GET_VCPU_MMAP_SIZE, 0).map_err(|e| e.to_string())?;
    ensure!(size == 4096, "{size} bytes to map");
    let run = || errno(&sys::ioctl(&machine.vcpu, ioctl::RUN, 0));
    let error = run();
    ensure!(error == libc::EFAULT, "RUN 0 without a mapping: errno {error}");
    for (len, shared) in [(8192, true), (4096, false)] {
        let error = errno(&Mapping::of(&machine.vcpu, len, shared));
        ensure!(error == libc::EINVAL, "a mapping of {len} bytes, shared: {shared}: errno {error}");
    }
    let page = Mapping::of(&machine.vcpu, 4096, true).map_err(|e| format!("mmap: {e}"))?;
    let same = Mapping::of(&machine.vcpu, 4096, true).map_err(|e| format!("second mmap: {e}"))?;
    for round in 1..4 {
        let error = run();
        ensure!((error, page.get(0), page.get(8)) == (0, exit::MMIO, DEVICE as u32), "load: errno {error}");
        page.put(16, 0x1234_0000 + round);
        // The rest of the page is not believed.
        page.put(8, 0x666);
        page.put(24, 8);
        let error = run();
        ensure!(
            (error, same.get(0), same.get(8)) == (0, exit::MMIO, DEVICE as u32 + 8),
            "store: errno {error}"
        );
        ensure!(same.get(16) == 0x1234_0000 + round, "stored {:#x}", same.get(16));
    }
    page.put(4, 1);
    let error = run();
    ensure!(error == libc::EINTR, "immediate exit: errno {error}");
    page.put(4, 0x100);
    let error = run();
    ensure!(error == libc::EINVAL, "padding: errno {error}");
    page.put(4, 0);
    drop(same);
    // The mapping holds the vCPU, and that the VM.
    let Machine { vcpu, vm, ram } = machine;
    drop((vcpu, vm));
    ensure!(page.get(0) == exit::MMIO, "the page is gone");
    drop((page, ram));
    Ok(())
}
