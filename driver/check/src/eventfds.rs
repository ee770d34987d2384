// SPDX-License-Identifier: GPL-2.0-only
//! ioeventfds and irqfds.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use gzvm_abi::ioctl::{
    self, IOEVENTFD_DATAMATCH, IOEVENTFD_DEASSIGN, IRQFD_DEASSIGN, IRQFD_RESAMPLE, Ioeventfd, IrqLevel,
    Irqfd, extension,
};
use libc::{EBADF, EBUSY, EEXIST, EINTR, EINVAL, ENOENT};

use crate::machine::{DEVICE, IDLE, Machine, Run, STORE, TAKES_SPI, vm};
use crate::processes::counter;
use crate::sys::{self, Kicker, errno, eventfd, signal, take};
use crate::{Check, ensure};

fn io(vm: &OwnedFd, addr: u64, len: u32, fd: &File, flags: u32, datamatch: u64) -> i32 {
    let mut args = Ioeventfd { datamatch, addr, len, fd: fd.as_raw_fd(), flags, pad: [0; 36] };
    errno(&sys::ioctl_with(vm, ioctl::IOEVENTFD, &mut args))
}

fn irq(vm: &OwnedFd, fd: &File, gsi: u32, flags: u32) -> i32 {
    let mut args = Irqfd { fd: fd.as_raw_fd() as u32, gsi, flags, resamplefd: 0, pad: [0; 16] };
    errno(&sys::ioctl_with(vm, ioctl::IRQFD, &mut args))
}

/// The guest's stores go to the eventfd and nowhere else, until it is taken away.
pub fn ioeventfd() -> Check {
    let machine = Machine::new(STORE, &[(0, DEVICE), (1, 5)])?;
    let (event, other) = (eventfd(), eventfd());
    let vm = &machine.vm;
    ensure!(io(vm, DEVICE, 4, &event, IOEVENTFD_DATAMATCH, 5) == 0, "assign");
    ensure!(io(vm, DEVICE, 4, &other, 0, 0) == EEXIST, "same address");
    ensure!(io(vm, DEVICE + 2, 1, &other, 0, 0) == EEXIST, "inside");
    ensure!(io(vm, DEVICE + 4, 4, &other, 0, 0) == 0, "behind");
    ensure!(io(vm, DEVICE, 0, &other, IOEVENTFD_DATAMATCH, 5) == EINVAL, "any length with a value");
    ensure!(io(vm, DEVICE, 3, &other, 0, 0) == EINVAL, "length 3");
    ensure!(
        io(vm, DEVICE, 4, &other, IOEVENTFD_DEASSIGN | IOEVENTFD_DATAMATCH, 5) == ENOENT,
        "not its eventfd"
    );

    sys::handle_signal(false);
    let kicker = Kicker::start(Duration::from_millis(300), Duration::from_millis(100));
    let mut run = Run::new();
    let error = errno(&run.run(&machine.vcpu));
    drop(kicker);
    ensure!(error == EINTR, "errno {error}, exit {:#x}", run.0.exit_reason);
    let (hits, strays) = (take(&event), take(&other));
    ensure!(hits > 10 && strays == 0, "{hits} signals, {strays} on the other");

    ensure!(io(vm, DEVICE, 4, &event, IOEVENTFD_DEASSIGN | IOEVENTFD_DATAMATCH, 5) == 0, "deassign");
    let write = run.mmio(&machine.vcpu)?;
    ensure!(write.phys_addr == DEVICE && write.is_write == 1, "{write:?}");
    Ok(())
}

pub fn irqfd_arguments() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    let (a, b) = (eventfd(), eventfd());
    ensure!(irq(&vm, &a, 1, 4) == EINVAL, "unknown flag");
    let mut padded = Irqfd { fd: a.as_raw_fd() as u32, gsi: 1, flags: 0, resamplefd: 0, pad: [1; 16] };
    ensure!(errno(&sys::ioctl_with(&vm, ioctl::IRQFD, &mut padded)) == EINVAL, "padding");
    padded = Irqfd { fd: 9999, pad: [0; 16], ..padded };
    ensure!(errno(&sys::ioctl_with(&vm, ioctl::IRQFD, &mut padded)) == EBADF, "no file");
    ensure!(irq(&vm, &a, 1, 0) == 0, "assign");
    ensure!(irq(&vm, &a, 2, 0) == EBUSY, "the same eventfd twice");
    let told = eventfd();
    let mut resample =
        Irqfd { fd: b.as_raw_fd() as u32, flags: IRQFD_RESAMPLE, resamplefd: 9999, pad: [0; 16], ..padded };
    ensure!(errno(&sys::ioctl_with(&vm, ioctl::IRQFD, &mut resample)) == EBADF, "no resample file");
    resample.resamplefd = vm.as_raw_fd() as u32;
    ensure!(errno(&sys::ioctl_with(&vm, ioctl::IRQFD, &mut resample)) == EINVAL, "no resample eventfd");
    resample.resamplefd = told.as_raw_fd() as u32;
    ensure!(errno(&sys::ioctl_with(&vm, ioctl::IRQFD, &mut resample)) == 0, "resample");
    signal(&b);
    ensure!(take(&told) == 0, "resampled without a guest");
    ensure!(irq(&vm, &a, 1, IRQFD_DEASSIGN) == 0, "deassign");
    ensure!(irq(&vm, &a, 2, 0) == 0, "assign again");
    Ok(())
}

/// VM and eventfds go in every order.
pub fn closed_while_armed() -> Check {
    let held = counter("driver_irqfds")?;
    let vm_stays = vm().map_err(|e| e.to_string())?;
    let event = eventfd();
    ensure!(irq(&vm_stays, &event, 1, 0) == 0, "assign");
    ensure!(counter("driver_irqfds")? == held + 1, "no irqfd is counted");
    drop(event);
    // On a workqueue.
    let gone = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(20));
        counter("driver_irqfds") == Ok(held)
    });
    ensure!(gone, "an irqfd outlives its eventfd");
    let event = eventfd();
    ensure!(irq(&vm_stays, &event, 1, 0) == 0, "assign");
    drop(vm_stays);
    ensure!(counter("driver_irqfds")? == held, "an irqfd outlives its VM's file");
    for round in 0..100 {
        let vm = vm().map_err(|e| e.to_string())?;
        let (a, b) = (eventfd(), eventfd());
        ensure!(irq(&vm, &a, 1, 0) == 0 && irq(&vm, &b, 2, 0) == 0, "assign");
        signal(&a);
        match round % 3 {
            0 => drop((a, vm, b)),
            1 => drop((vm, b, a)),
            _ => drop((b, a, vm)),
        }
    }
    Ok(())
}

/// Signals from three threads, assignments from two, and an idle guest that all of it wakes.
pub fn storm() -> Check {
    let machine = Arc::new(Machine::new(IDLE, &[])?);
    let events: Arc<Vec<File>> = Arc::new((0..8).map(|_| eventfd()).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for n in 0..3_usize {
        let (events, stop) = (Arc::clone(&events), Arc::clone(&stop));
        threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                events.iter().skip(n).for_each(signal);
            }
        }));
    }
    for n in 0..2_usize {
        let (events, stop, machine) = (Arc::clone(&events), Arc::clone(&stop), Arc::clone(&machine));
        threads.push(thread::spawn(move || {
            let mut round = n;
            while !stop.load(Ordering::Relaxed) {
                round = round.wrapping_mul(5).wrapping_add(3);
                let gsi = round % 8;
                irq(&machine.vm, &events[gsi], gsi as u32, (round >> 4 & 1) as u32 * IRQFD_DEASSIGN);
                if round.is_multiple_of(7) {
                    let short = eventfd();
                    irq(&machine.vm, &short, 9, 0);
                    signal(&short);
                }
            }
        }));
    }
    sys::handle_signal(false);
    let kicker = Kicker::start(Duration::from_secs(2), Duration::from_millis(100));
    let error = errno(&Run::new().run(&machine.vcpu));
    stop.store(true, Ordering::Relaxed);
    drop(kicker);
    threads.into_iter().for_each(|t| drop(t.join()));
    ensure!(error == EINTR, "errno {error}");
    Ok(())
}

/// Files close while the vCPU runs.
pub fn closed_in_any_order() -> Check {
    sys::handle_signal(false);
    for round in 0..40_u64 {
        let Machine { vcpu, vm, ram } = Machine::new(IDLE, &[])?;
        let event = eventfd();
        ensure!(irq(&vm, &event, 1, 0) == 0, "assign");
        let kicker = Kicker::start(Duration::from_millis(2), Duration::from_millis(2));
        let closers = [
            thread::spawn(move || {
                thread::sleep(Duration::from_micros(round * 61 % 1500));
                drop(vm);
            }),
            thread::spawn(move || {
                thread::sleep(Duration::from_micros(round * 97 % 1500));
                signal(&event);
                drop(event);
            }),
        ];
        let error = errno(&Run::new().run(&vcpu));
        drop(kicker);
        closers.into_iter().for_each(|t| drop(t.join()));
        ensure!(error == EINTR, "errno {error}");
        drop((vcpu, ram));
    }
    Ok(())
}

/// A level-triggered device whose VMM raises the line anew after each EOI: each interrupt comes, each end is told.
pub fn resampled_line() -> Check {
    let machine = Machine::new(TAKES_SPI, &[(0, DEVICE)])?;
    let (line, told) = (eventfd(), Arc::new(eventfd()));
    let mut args = Irqfd {
        fd: line.as_raw_fd() as u32,
        gsi: 5,
        flags: IRQFD_RESAMPLE,
        resamplefd: told.as_raw_fd() as u32,
        pad: [0; 16],
    };
    ensure!(errno(&sys::ioctl_with(&machine.vm, ioctl::IRQFD, &mut args)) == 0, "assign");
    let stop = Arc::new(AtomicBool::new(false));
    let ends = Arc::new(AtomicU64::new(0));
    let device = {
        let (told, stop, ends) = (Arc::clone(&told), Arc::clone(&stop), Arc::clone(&ends));
        let line = line.try_clone().map_err(|e| e.to_string())?;
        thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                match take(&told) {
                    0 => thread::sleep(Duration::from_millis(1)),
                    n => {
                        ends.fetch_add(n, Ordering::SeqCst);
                        signal(&line);
                    }
                }
            }
        })
    };
    signal(&line);
    let mut run = Run::new();
    let outcome = (0..50).try_for_each(|n| {
        let store = run.mmio(&machine.vcpu)?;
        let intid = u64::from_le_bytes(store.data);
        ensure!(store.phys_addr == DEVICE && intid == 37, "interrupt {n}: {store:x?}");
        Ok(())
    });
    stop.store(true, Ordering::SeqCst);
    let _ = device.join();
    outcome?;
    let ended = ends.load(Ordering::SeqCst);
    ensure!((49..=50).contains(&ended), "{ended} ends of 50 interrupts were told");

    // The last one has been stored and not ended. Without its irqfd the line is low, and stays so.
    args.flags = IRQFD_DEASSIGN;
    ensure!(errno(&sys::ioctl_with(&machine.vm, ioctl::IRQFD, &mut args)) == 0, "deassign");
    take(&told);
    sys::handle_signal(false);
    let kicker = Kicker::start(Duration::from_millis(300), Duration::from_millis(100));
    let error = errno(&run.run(&machine.vcpu));
    drop(kicker);
    ensure!(error == EINTR, "errno {error}, exit {:#x}", run.0.exit_reason);
    ensure!(take(&told) == 0, "told of an end after DEASSIGN");
    Ok(())
}

/// IRQ_LINE of a VM that asked for levels: pending again after each EOI while the line is high.
pub fn driven_level() -> Check {
    let machine = Machine::new(TAKES_SPI, &[(0, DEVICE)])?;
    let set = |level| errno(&sys::ioctl_with(&machine.vm, ioctl::IRQ_LINE, &mut IrqLevel { irq: 5, level }));
    let mut run = Run::new();
    let mut known = extension::IRQ_LEVEL;
    let asked = errno(&sys::ioctl_with(&machine.vm, ioctl::CHECK_EXTENSION, &mut known));
    ensure!((asked, known) == (0, 1), "CHECK_EXTENSION: errno {asked}, {known}");
    ensure!(set(1) == 0, "level 1");
    for n in 0..10 {
        let store = run.mmio(&machine.vcpu)?;
        ensure!(u64::from_le_bytes(store.data) == 37, "interrupt {n}: {store:x?}");
    }
    ensure!(set(0) == 0, "level 0");
    sys::handle_signal(false);
    let kicker = Kicker::start(Duration::from_millis(300), Duration::from_millis(100));
    let error = errno(&run.run(&machine.vcpu));
    drop(kicker);
    ensure!(error == EINTR, "errno {error}, exit {:#x}", run.0.exit_reason);
    Ok(())
}
