// SPDX-License-Identifier: GPL-2.0-only
//! The exit table (ABI 3.5): what comes to user space, served as crosvm does it, and what the driver keeps.

use std::thread;
use std::time::{Duration, Instant, SystemTime};

use libc::EINTR;

use super::{counter, descriptor, gives, nr, programs};
use crate::machine::{BUSY, DEVICE, IDLE, Machine, RAM, Run};
use crate::sys::{self, Kicker, errno};
use crate::{Check, ensure};

/// The structure's word at an offset.
fn word(run: &Run, offset: usize) -> u64 {
    run.0.payload[offset / 8 - 1]
}

fn exit(run: &mut Run, machine: &Machine, reason: u32, what: &str) -> Check {
    run.run(&machine.vcpu).map_err(|e| format!("{what}: RUN: {e}"))?;
    ensure!(run.0.exit_reason == reason, "{what}: exit {:#x}", run.0.exit_reason);
    Ok(())
}

/// What the guest tells at an offset of the device.
fn told(run: &mut Run, machine: &Machine, offset: u64) -> Result<u64, String> {
    let write = run.mmio(&machine.vcpu)?;
    ensure!(write.phys_addr == DEVICE + offset && write.is_write == 1, "{offset:#x}: {write:x?}");
    Ok(u64::from_le_bytes(write.data))
}

/// phys_addr @8, data @16, size @24, is_write @36. The bus's answer to a load goes to data.
pub fn mmio() -> Check {
    let machine = Machine::new(programs::ACCESS, &[(19, DEVICE), (2, 0x8877_6655_4433_2211)])?;
    let mut run = Run::new();
    let mut access = |offset: u64, size: u64, write: u64| -> Result<u64, String> {
        exit(&mut run, &machine, 0x9292_0001, "access")?;
        let what = (word(&run, 8), word(&run, 24), word(&run, 32) >> 32);
        ensure!(what == (DEVICE + offset, size, write), "address, size, write: {what:x?}");
        let data = word(&run, 16);
        run.0.payload[1] = 0xFFEE_DDCC_BBAA_9988;
        Ok(data)
    };
    for round in 0..2 {
        for (offset, size) in [(0x11, 1), (0x12, 2), (0x14, 4), (0x18, 8_u32)] {
            let data = access(offset, size.into(), 1)?;
            let expected = 0x8877_6655_4433_2211 & (u64::MAX >> (64 - 8 * size));
            ensure!(data == expected, "round {round}: data of {size} bytes: {data:#x}");
        }
        for (offset, size, value) in [
            (0x21, 1, 0x88),
            (0x22, 2, 0xFFFF_FFFF_FFFF_9988),
            (0x24, 4, 0xFFFF_FFFF_BBAA_9988),
            (0x28, 8, 0xFFEE_DDCC_BBAA_9988),
        ] {
            access(offset, size, 0)?;
            let got = access(0x40, 8, 1)?;
            ensure!(got == value, "round {round}: load of {size} bytes gave {got:#x}");
        }
    }
    Ok(())
}

/// A page fault that the driver can't serve: exception @8 = 1, fault_gpa @16. crosvm ends there.
pub fn exception() -> Check {
    let machine = Machine::new(programs::RELINQUISH, &[(19, DEVICE), (20, RAM + 0x40_0010)])?;
    machine.ram.replace(0x40_0000, 0x20_0000, false);
    let mut run = Run::new();
    for _ in 0..2 {
        exit(&mut run, &machine, 0x9292_0004, "a hole in the VMM's memory")?;
        ensure!(word(&run, 8) == 1, "exception and error_code: {:#x}", word(&run, 8));
        ensure!(word(&run, 16) == RAM + 0x40_0010, "fault_gpa {:#x}", word(&run, 16));
        ensure!(run.0.payload[2..].iter().all(|w| *w == 0), "reserved: {:x?}", &run.0.payload[2..]);
    }
    machine.ram.replace(0x40_0000, 0x20_0000, true);
    machine.ram.put(0x40_0010, 0x77);
    let value = told(&mut run, &machine, 0)?;
    ensure!(value == 0x77, "then the guest reads {value:#x}");
    Ok(())
}

/// type @8 = 1: crosvm stops.
pub fn system_event_shutdown() -> Check {
    let machine = Machine::new(programs::OFF, &[])?;
    let mut run = Run::new();
    exit(&mut run, &machine, 0x9292_0008, "SYSTEM_OFF")?;
    ensure!(word(&run, 8) as u32 == 1, "type {:#x}", word(&run, 8));
    Ok(())
}

/// type @8 = 2: crosvm builds the VM anew.
pub fn system_event_reset() -> Check {
    let machine = Machine::new(programs::RESET, &[])?;
    let mut run = Run::new();
    exit(&mut run, &machine, 0x9292_0008, "SYSTEM_RESET")?;
    ensure!(word(&run, 8) as u32 == 2, "type {:#x}", word(&run, 8));
    Ok(())
}

/// The driver unpins the page and goes on: user space sees nothing. A later touch brings in what is there then.
pub fn hypercall_relinquish() -> Check {
    let machine = Machine::new(programs::RELINQUISH, &[(19, DEVICE), (20, RAM + 0x40_0000)])?;
    let mut run = Run::new();
    for round in 1..10 {
        machine.ram.put(0x40_0000, round);
        let before = told(&mut run, &machine, 0)?;
        ensure!(before == u64::from(round), "round {round}: the guest reads {before}");
        let pinned = counter("driver_pinned_pages")?;
        let answer = told(&mut run, &machine, 8)?;
        ensure!(answer == 0, "round {round}: MEM_RELINQUISH answers {answer:#x}");
        let now = counter("driver_pinned_pages")?;
        ensure!(now == pinned - 1, "round {round}: {pinned} pages were pinned, now {now}");
        // What the balloon of crosvm does: the page is gone, a touch makes a fresh one.
        machine.ram.replace(0x40_0000, 4096, false);
        machine.ram.replace(0x40_0000, 4096, true);
        let after = told(&mut run, &machine, 16)?;
        ensure!(after == 0, "round {round}: the guest reads {after} in a fresh page");
    }
    Ok(())
}

/// x0, x1 = wall-clock ns, x2, x3 = counter: virtual (0), physical (1); -1 for any other.
pub fn hypercall_ptp() -> Check {
    let machine = Machine::new(programs::PTP, &[(19, DEVICE), (20, 0)])?;
    let mut run = Run::new();
    for kind in 0..2 {
        let mut told = |n: u64| told(&mut run, &machine, 8 * n);
        let [x0, x1, x2, x3] = [told(0)?, told(1)?, told(2)?, told(3)?];
        let [v0, v1, p0, p1] = [told(4)?, told(5)?, told(6)?, told(7)?];
        ensure!([x0, x1, x2, x3].iter().all(|x| x >> 32 == 0), "{x0:#x} {x1:#x} {x2:#x} {x3:#x}");
        let wall = Duration::from_nanos(x0 << 32 | x1);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let late = now.checked_sub(wall).unwrap_or(Duration::MAX);
        ensure!(late < Duration::from_secs(20), "wall clock {wall:?}, now {now:?}");
        let count = x2 << 32 | x3;
        let (from, to) = if kind == 0 { (v0, v1) } else { (p0, p1) };
        ensure!((from..=to).contains(&count), "counter {kind}: {count}, not in {from}..={to}");
    }
    let x0 = told(&mut run, &machine, 0)?;
    ensure!(x0 == u64::MAX, "counter 2: {x0:#x}");
    Ok(())
}

/// Never seen by user space, however often they come.
pub fn irq_and_idle() -> Check {
    for code in [BUSY, IDLE] {
        let machine = Machine::new(code, &[])?;
        sys::handle_signal(false);
        let kicker = Kicker::start(Duration::from_millis(400), Duration::from_millis(100));
        let mut run = Run::new();
        run.0.exit_reason = 0x1234;
        let error = errno(&run.run(&machine.vcpu));
        drop(kicker);
        gives(error, EINTR, "RUN")?;
    }
    Ok(())
}

/// An SGI to a vCPU whose thread sleeps in the driver wakes that thread, and no exit is seen. Without the wake-up it
/// would sleep for 20 s.
pub fn ipi() -> Check {
    let machine = Machine::new(programs::SGI, &[(19, DEVICE)])?;
    let second = descriptor(&machine.vm, nr::CREATE_VCPU, 1).map_err(|e| format!("vCPU 1: {e}"))?;
    let receiver = thread::spawn(move || Run::new().mmio(&second));
    let mut run = Run::new();
    let on = told(&mut run, &machine, 0)?;
    ensure!(on == 0, "CPU_ON answers {on:#x}");
    let load = run.mmio(&machine.vcpu)?;
    ensure!(load.phys_addr == DEVICE + 8 && load.is_write == 0, "{load:x?}");
    // Time for vCPU 1 to fall asleep.
    thread::sleep(Duration::from_millis(300));
    sys::handle_signal(false);
    let sent = Instant::now();
    let kicker = Kicker::start(Duration::from_millis(300), Duration::from_millis(100));
    let error = errno(&run.run(&machine.vcpu));
    drop(kicker);
    gives(error, EINTR, "the sender's RUN")?;
    let write = receiver.join().map_err(|_| "panicked")??;
    ensure!(sent.elapsed() < Duration::from_secs(12), "woken after {:?}", sent.elapsed());
    let intid = u64::from_le_bytes(write.data);
    ensure!(write.phys_addr == DEVICE + 16 && intid == 3, "the receiver: {write:x?}");
    Ok(())
}
