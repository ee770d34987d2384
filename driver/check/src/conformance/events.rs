// SPDX-License-Identifier: GPL-2.0-only
//! IRQ_LINE, IRQFD, IOEVENTFD, VGIC_SPIS.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use libc::{EBADF, EBUSY, EEXIST, EFAULT, EINTR, EINVAL, ENOENT};

use super::{Args, gives, needs_memory, nr, programs};
use crate::machine::{BUSY, DEVICE, Machine, Run, TAKES_LAST_SPI, vm};
use crate::sys::{self, Kicker, errno, eventfd, signal, take};
use crate::{Check, ensure};

/// irq @0: number [15:0], vCPU [23:16], type [27:24], vCPU high [31:28]; level @4.
fn line(vm: &OwnedFd, irq: u32, level: u32) -> i32 {
    Args::<1>::new().w(0, irq).w(4, level).call(vm, nr::IRQ_LINE)
}

/// A guest that tells each interrupt it gets, up to its first sleep.
fn listener() -> Result<(Machine, Run), String> {
    let machine = Machine::new(programs::LINES, &[(19, DEVICE)])?;
    let mut run = Run::new();
    let ready = run.mmio(&machine.vcpu)?;
    ensure!(ready.phys_addr == DEVICE, "{ready:?}");
    Ok((machine, run))
}

/// The INTID of the next interrupt.
fn next(machine: &Machine, run: &mut Run) -> Result<u64, String> {
    let write = run.mmio(&machine.vcpu)?;
    ensure!(write.phys_addr == DEVICE + 8, "{write:?}");
    Ok(u64::from_le_bytes(write.data))
}

/// Nothing more comes: RUN ends by a signal.
fn silent(machine: &Machine, run: &mut Run, what: &str) -> Check {
    sys::handle_signal(false);
    let kicker = Kicker::start(Duration::from_millis(300), Duration::from_millis(100));
    let error = errno(&run.run(&machine.vcpu));
    drop(kicker);
    ensure!(error == EINTR, "{what}: errno {error}, exit {:#x}", run.0.exit_reason);
    Ok(())
}

/// Any error of the hypervisor is EFAULT. All types but PPI mean an SPI; crosvm sends type 0.
pub fn irq_line() -> Check {
    let (machine, mut run) = listener()?;
    let vm = &machine.vm;
    needs_memory(vm, nr::IRQ_LINE)?;
    for level in [2, 0x8000_0000, u32::MAX] {
        gives(line(vm, 5, level), EFAULT, format_args!("level {level:#x}"))?;
    }
    for irq in [988, 1020, 0xFFFF] {
        gives(line(vm, irq, 1), EFAULT, format_args!("irq {irq}"))?;
    }
    for irq in [0, 15, 32] {
        gives(line(vm, 2 << 24 | irq, 1), EFAULT, format_args!("PPI {irq}"))?;
    }
    gives(line(vm, 2 << 24 | 1 << 16 | 23, 1), EFAULT, "PPI of vCPU 1, which is not there")?;
    gives(line(vm, 1 << 28 | 2 << 24 | 23, 1), EFAULT, "PPI of vCPU 256")?;
    for (irq, intid) in [(5, 37), (1 << 24 | 5, 37), (3 << 24 | 5, 37), (2 << 24 | 23, 23)] {
        gives(line(vm, irq, 1), 0, format_args!("irq {irq:#x}"))?;
        let got = next(&machine, &mut run)?;
        ensure!(got == intid, "irq {irq:#x} is INTID {got}");
    }
    // Level 1 is pending once, though nobody lowers it; level 0 takes back what nobody has seen.
    silent(&machine, &mut run, "lines that stay high")?;
    gives(line(vm, 5, 1), 0, "up")?;
    gives(line(vm, 5, 0), 0, "down")?;
    silent(&machine, &mut run, "a line that fell")
}

/// Ours. SPIs @0, 12 bytes of zero @4. 32 to 988, while there is no vCPU.
pub fn vgic_spis() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    let set = |vm: &OwnedFd, spis| Args::<2>::new().w(0, spis).call(vm, nr::VGIC_SPIS);
    needs_memory(&vm, nr::VGIC_SPIS)?;
    for spis in [0, 1, 31, 33, 987, 989, 992, 0x8000_0000, u32::MAX] {
        gives(set(&vm, spis), EINVAL, format_args!("{spis} SPIs"))?;
    }
    for byte in 4..16 {
        let args = Args::<2>::new().w(0, 64).w(byte & !3, 1 << (8 * (byte & 3)));
        gives(args.call(&vm, nr::VGIC_SPIS), EINVAL, format_args!("byte {byte} of the padding"))?;
    }
    gives(line(&vm, 255, 1), 0, "SPI 255 of 256")?;
    gives(line(&vm, 256, 1), EFAULT, "SPI 256 of 256")?;
    for spis in [32, 288, 988, 64] {
        gives(set(&vm, spis), 0, format_args!("{spis} SPIs"))?;
        gives(line(&vm, spis - 1, 1), 0, format_args!("the last of {spis}"))?;
        gives(line(&vm, spis, 1), EFAULT, format_args!("past {spis}"))?;
    }
    let machine = Machine::with_spis(TAKES_LAST_SPI, &[(0, DEVICE)], 988)?;
    gives(set(&machine.vm, 64), EINVAL, "with a vCPU")?;
    let mut run = Run::new();
    let mut next = |how: &str| -> Check {
        let write = run.mmio(&machine.vcpu)?;
        let intid = u64::from_le_bytes(write.data);
        ensure!((write.phys_addr, intid) == (DEVICE, 1019), "by {how}: {write:?}");
        Ok(())
    };
    gives(line(&machine.vm, 987, 1), 0, "SPI 987")?;
    next("IRQ_LINE")?;
    let fd = eventfd();
    gives(tie(&machine.vm, &fd, 987, 0), 0, "irqfd of SPI 987")?;
    signal(&fd);
    next("irqfd")
}

/// fd @0, gsi @4, flags @8 (1 deassign, 2 resample), resamplefd @12, 16 bytes of zero @16.
fn irqfd_args(fd: i32, gsi: u32, flags: u32) -> Args<4> {
    Args::<4>::new().w(0, fd as u32).w(4, gsi).w(8, flags)
}

fn tie(vm: &OwnedFd, fd: &File, gsi: u32, flags: u32) -> i32 {
    irqfd_args(fd.as_raw_fd(), gsi, flags).call(vm, nr::IRQFD)
}

/// Arguments and errnos.
pub fn irqfd() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let vm = &machine.vm;
    let (a, b) = (eventfd(), eventfd());
    needs_memory(vm, nr::IRQFD)?;
    for flags in [4, 8, 0x8000_0000, 5] {
        gives(tie(vm, &a, 1, flags), EINVAL, format_args!("flags {flags:#x}"))?;
    }
    for byte in 16..32 {
        let args = irqfd_args(a.as_raw_fd(), 1, 0).w(byte & !3, 1 << (8 * (byte & 3)));
        gives(args.call(vm, nr::IRQFD), EINVAL, format_args!("byte {byte} of the padding"))?;
    }
    for fd in [-1, 9999] {
        gives(irqfd_args(fd, 1, 0).call(vm, nr::IRQFD), EBADF, format_args!("descriptor {fd}"))?;
        gives(irqfd_args(fd, 1, 1).call(vm, nr::IRQFD), EBADF, format_args!("descriptor {fd}, deassign"))?;
    }
    gives(irqfd_args(vm.as_raw_fd(), 1, 0).call(vm, nr::IRQFD), EINVAL, "a VM as an eventfd")?;
    gives(tie(vm, &a, 1, 0), 0, "assign")?;
    gives(tie(vm, &a, 1, 0), EBUSY, "the same again")?;
    gives(tie(vm, &a, 2, 0), EBUSY, "the same eventfd, another line")?;
    gives(tie(vm, &b, 1, 0), 0, "another eventfd, the same line")?;
    // Both must match; what is not there is no error.
    gives(tie(vm, &a, 2, 1), 0, "deassign of another line")?;
    gives(tie(vm, &a, 1, 0), EBUSY, "which took nothing away")?;
    gives(tie(vm, &a, 1, 1), 0, "deassign")?;
    gives(tie(vm, &a, 1, 1), 0, "deassign again")?;
    gives(tie(vm, &a, 2, 0), 0, "assign to another line")
}

/// Each signal is one interrupt (level 1, never lowered), also one from before the assignment.
pub fn irqfd_signals() -> Check {
    let (machine, mut run) = listener()?;
    let (a, b) = (eventfd(), eventfd());
    signal(&a);
    gives(tie(&machine.vm, &a, 5, 0), 0, "assign of a signalled eventfd")?;
    ensure!(next(&machine, &mut run)? == 37, "signalled before");
    for n in 0..20 {
        signal(&a);
        let intid = next(&machine, &mut run)?;
        ensure!(intid == 37, "signal {n} is INTID {intid}");
    }
    // The vCPU's thread sleeps in the driver, for 20 s if nothing wakes it.
    let later = a.try_clone().map_err(|e| e.to_string())?;
    let signaller = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        signal(&later);
        Instant::now()
    });
    ensure!(next(&machine, &mut run)? == 37, "signalled while it slept");
    let sent = signaller.join().map_err(|_| "panicked")?;
    ensure!(sent.elapsed() < Duration::from_secs(12), "woken after {:?}", sent.elapsed());
    gives(tie(&machine.vm, &b, 5, 0), 0, "a second eventfd of the line")?;
    signal(&b);
    ensure!(next(&machine, &mut run)? == 37, "the second eventfd");
    gives(tie(&machine.vm, &a, 5, 1), 0, "deassign")?;
    signal(&a);
    silent(&machine, &mut run, "signals of an eventfd that was taken away")
}

/// datamatch @0, addr @8, len @16, fd @20, flags @24 (1 datamatch, 2 pio, 4 deassign).
fn io_args(addr: u64, len: u32, fd: i32, flags: u32, datamatch: u64) -> Args<8> {
    Args::<8>::new().q(0, datamatch).q(8, addr).w(16, len).w(20, fd as u32).w(24, flags)
}

fn watch(vm: &OwnedFd, addr: u64, len: u32, fd: &File, flags: u32, datamatch: u64) -> i32 {
    io_args(addr, len, fd.as_raw_fd(), flags, datamatch).call(vm, nr::IOEVENTFD)
}

/// Arguments, collisions, errnos.
pub fn ioeventfd() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let vm = &machine.vm;
    let (a, b) = (eventfd(), eventfd());
    needs_memory(vm, nr::IOEVENTFD)?;
    for flags in [2, 3, 6, 8, 0x10, 0x8000_0000] {
        gives(watch(vm, DEVICE, 4, &a, flags, 0), EINVAL, format_args!("flags {flags:#x}"))?;
    }
    for len in [3, 5, 6, 7, 9, 16, 0x8000_0000] {
        gives(watch(vm, DEVICE, len, &a, 0, 0), EINVAL, format_args!("length {len}"))?;
    }
    gives(watch(vm, DEVICE, 0, &a, 1, 0), EINVAL, "any length with a value")?;
    for (addr, len) in [(u64::MAX, 1), (u64::MAX - 2, 4), (u64::MAX - 6, 8)] {
        gives(watch(vm, addr, len, &a, 0, 0), EINVAL, format_args!("{len} bytes at {addr:#x}"))?;
    }
    for fd in [-1, 9999] {
        gives(io_args(DEVICE, 4, fd, 0, 0).call(vm, nr::IOEVENTFD), EBADF, format_args!("descriptor {fd}"))?;
    }
    gives(io_args(DEVICE, 4, vm.as_raw_fd(), 0, 0).call(vm, nr::IOEVENTFD), EINVAL, "a VM as an eventfd")?;
    gives(watch(vm, DEVICE, 4, &a, 4, 0), ENOENT, "deassign of nothing")?;

    gives(watch(vm, DEVICE, 8, &a, 1, 7), 0, "8 bytes with a value")?;
    for (addr, len) in
        [(DEVICE, 8), (DEVICE, 4), (DEVICE, 0), (DEVICE + 1, 1), (DEVICE + 7, 1), (DEVICE + 4, 0)]
    {
        gives(watch(vm, addr, len, &b, 0, 0), EEXIST, format_args!("collision: {len} bytes at {addr:#x}"))?;
    }
    gives(watch(vm, DEVICE + 8, 4, &b, 0, 0), 0, "behind")?;
    gives(watch(vm, DEVICE + 0x100, 0, &b, 0, 0), 0, "any length")?;
    gives(watch(vm, DEVICE + 0x100, 4, &b, 0, 0), EEXIST, "a length where any is watched")?;
    gives(watch(vm, DEVICE + 0x104, 0, &b, 0, 0), 0, "virtio-pci's next queue")?;

    // All must be the same.
    gives(watch(vm, DEVICE, 8, &b, 5, 7), ENOENT, "deassign by another eventfd")?;
    gives(watch(vm, DEVICE, 8, &a, 5, 8), ENOENT, "deassign by another value")?;
    gives(watch(vm, DEVICE, 8, &a, 4, 7), ENOENT, "deassign without a value")?;
    gives(watch(vm, DEVICE, 4, &a, 5, 7), ENOENT, "deassign by another length")?;
    gives(watch(vm, DEVICE + 8, 8, &a, 5, 7), ENOENT, "deassign by another address")?;
    gives(watch(vm, DEVICE, 8, &a, 5, 7), 0, "deassign")?;
    gives(watch(vm, DEVICE, 8, &a, 5, 7), ENOENT, "deassign again")?;
    gives(watch(vm, DEVICE, 4, &b, 0, 0), 0, "its place is free")
}

/// Writes alone, at the exact address, of the length (0: of any) and with the value, if there is one. What
/// matches is not seen by user space.
pub fn ioeventfd_matches() -> Check {
    const DATA: u64 = 0x8877_6655_4433_2211;
    let machine = Machine::new(programs::ACCESS, &[(19, DEVICE), (2, DATA)])?;
    let vm = &machine.vm;
    let [byte, half, word, double, load] = [eventfd(), eventfd(), eventfd(), eventfd(), eventfd()];
    let mut run = Run::new();
    // The guest's stores: 1 at 0x11, 2 at 0x12, 4 at 0x14, 8 at 0x18; loads at 0x21, 0x22, 0x24, 0x28.
    gives(watch(vm, DEVICE + 0x11, 1, &byte, 1, 0x11), 0, "a byte with its value")?;
    gives(watch(vm, DEVICE + 0x12, 2, &half, 1, 0x2212), 0, "a half word with another value")?;
    gives(watch(vm, DEVICE + 0x14, 0, &word, 0, 0), 0, "any length")?;
    gives(watch(vm, DEVICE + 0x18, 4, &double, 0, 0), 0, "another length")?;
    gives(watch(vm, DEVICE + 0x21, 0, &load, 0, 0), 0, "where it loads")?;
    gives(watch(vm, DEVICE + 0x10, 1, &load, 0, 0), 0, "before what it stores")?;
    let seen = |run: &mut Run, offset: u64| -> Check {
        let access = run.mmio(&machine.vcpu)?;
        ensure!(access.phys_addr == DEVICE + offset, "{offset:#x} is to be seen, not {access:x?}");
        Ok(())
    };
    for round in 0..3 {
        for offset in [0x12, 0x18, 0x21, 0x40, 0x22, 0x40, 0x24, 0x40, 0x28, 0x40] {
            seen(&mut run, offset)?;
        }
        let counts = [&byte, &half, &word, &double, &load].map(take);
        ensure!(counts == [1, 0, 1, 0, 0], "round {round}: signals {counts:?}");
    }
    gives(watch(vm, DEVICE + 0x18, 4, &double, 4, 0), 0, "deassign")?;
    gives(watch(vm, DEVICE + 0x18, 8, &double, 1, DATA), 0, "8 bytes with their value")?;
    gives(watch(vm, DEVICE + 0x11, 1, &byte, 5, 0x11), 0, "deassign")?;
    for offset in [0x11, 0x12, 0x21] {
        seen(&mut run, offset)?;
    }
    ensure!(take(&double) == 1, "8 bytes with their value are no signal");
    Ok(())
}
