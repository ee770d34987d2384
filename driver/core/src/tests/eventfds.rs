// SPDX-License-Identifier: GPL-2.0-only
//! ioeventfds and irqfds.

use gzvm_abi::ioctl::{
    self, IOEVENTFD_DATAMATCH, IOEVENTFD_DEASSIGN, IOEVENTFD_PIO, IRQFD_DEASSIGN, IRQFD_RESAMPLE, Ioeventfd,
    Irqfd, extension,
};
use gzvm_abi::run::{Mmio, Resampled, exit};

use super::*;
use crate::sys::{close, eventfd, eventfd_count, eventfd_write};

fn io(addr: u64, len: u32, fd: i32, flags: u32, datamatch: u64) -> Ioeventfd {
    Ioeventfd { datamatch, addr, len, fd, flags, pad: [0; 36] }
}

fn irq(fd: i32, gsi: u32, flags: u32) -> Irqfd {
    Irqfd { fd: fd as u32, gsi, flags, resamplefd: 0, pad: [0; 16] }
}

/// The guest writes. Did user space see it?
fn write(k: &Session, vcpu: i32, addr: u64, size: u64, value: u64) -> bool {
    k.exit(move |shared| {
        let data = value.to_le_bytes();
        shared.put(8, Mmio { phys_addr: addr, data, size, is_write: 1, ..Mmio::default() });
        exit::MMIO
    });
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    k.with(|k| k.exits.clear());
    k.get::<u32>(RUN) == exit::MMIO
}

#[test]
fn ioeventfd_arguments() {
    let k = Session::new();
    let vm = k.vm();
    let fd = eventfd();
    let set = |args: Ioeventfd| k.ioctl_with(vm, ioctl::IOEVENTFD, &args);
    assert_eq!(set(io(0, 4, fd, IOEVENTFD_PIO, 0)), EINVAL);
    assert_eq!(set(io(0, 4, fd, 8, 0)), EINVAL);
    assert_eq!(set(io(0, 3, fd, 0, 0)), EINVAL);
    assert_eq!(set(io(0, 16, fd, 0, 0)), EINVAL);
    assert_eq!(set(io(0, 0, fd, IOEVENTFD_DATAMATCH, 0)), EINVAL);
    assert_eq!(set(io(u64::MAX, 4, fd, 0, 0)), EINVAL);
    assert_eq!(set(io(0, 4, 99, 0, 0)), EBADF);
    assert_eq!(set(io(0, 4, vm, 0, 0)), EINVAL, "no eventfd");
    assert_eq!(set(io(0, 4, fd, IOEVENTFD_DEASSIGN, 0)), ENOENT);
}

#[test]
fn ioeventfd_collisions() {
    let k = Session::new();
    let vm = k.vm();
    let fd = eventfd();
    let set = |addr, len, flags, data| k.ioctl_with(vm, ioctl::IOEVENTFD, &io(addr, len, fd, flags, data));
    assert_eq!(set(0x1000, 4, IOEVENTFD_DATAMATCH, 1), 0);
    assert_eq!(set(0x1000, 4, IOEVENTFD_DATAMATCH, 1), EEXIST);
    assert_eq!(set(0x1000, 4, IOEVENTFD_DATAMATCH, 2), 0, "another value");
    assert_eq!(set(0x1000, 2, IOEVENTFD_DATAMATCH, 3), EEXIST, "another length");
    assert_eq!(set(0x1000, 4, 0, 0), EEXIST);
    assert_eq!(set(0x1000, 0, 0, 0), EEXIST);
    assert_eq!(set(0x1002, 1, 0, 0), EEXIST, "inside");
    assert_eq!(set(0x1004, 4, 0, 0), 0, "behind");
    assert_eq!(set(0x0FFE, 4, 0, 0), 0, "before, as in the reference");
    assert_eq!(set(0x2000, 0, 0, 0), 0);
    assert_eq!(set(0x2000, 2, 0, 0), EEXIST);
    assert_eq!(set(0x2001, 2, 0, 0), 0, "length 0 covers its address alone");
}

#[test]
fn ioeventfd_matches_exactly() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    let (any, four, matching) = (eventfd(), eventfd(), eventfd());
    assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &io(0x1000, 0, any, 0, 0)), 0);
    assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &io(0x2000, 4, four, 0, 0)), 0);
    let args = io(0x3000, 2, matching, IOEVENTFD_DATAMATCH, 0xBEEF);
    assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &args), 0);

    for size in [1, 2, 4, 8] {
        assert!(!write(&k, vcpu, 0x1000, size, 7));
        assert_eq!(write(&k, vcpu, 0x2000, size, 7), size != 4);
    }
    assert!(write(&k, vcpu, 0x1001, 1, 7));
    assert!(write(&k, vcpu, 0x2002, 2, 7));
    assert!(!write(&k, vcpu, 0x3000, 2, 0xBEEF));
    assert!(!write(&k, vcpu, 0x3000, 2, 0xDEAD_BEEF), "only as many bytes as were written");
    assert!(write(&k, vcpu, 0x3000, 2, 0xBEE0));
    assert!(write(&k, vcpu, 0x3000, 4, 0xBEEF));
    assert_eq!([any, four, matching].map(eventfd_count), [4, 1, 2]);

    // Entries at one address, each with a value of its own.
    let (one, two) = (eventfd(), eventfd());
    for (fd, value) in [(one, 1), (two, 2)] {
        assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &io(0x5000, 4, fd, IOEVENTFD_DATAMATCH, value)), 0);
    }
    assert!(!write(&k, vcpu, 0x5000, 4, 2));
    assert_eq!([one, two].map(eventfd_count), [0, 1]);
    assert!(!write(&k, vcpu, 0x5000, 4, 1));
    assert_eq!([one, two].map(eventfd_count), [1, 1]);
    assert!(write(&k, vcpu, 0x5000, 4, 3));

    // Whatever lies behind the bytes that were written does not count.
    for (len, value) in [(1, 0xEF), (2, 0xBEEF), (4, 0xDEAD_BEEF), (8, 0x0123_4567_DEAD_BEEF)] {
        let addr = 0x4000 + 16 * u64::from(len);
        let args = io(addr, len, matching, IOEVENTFD_DATAMATCH, value);
        assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &args), 0);
        assert!(!write(&k, vcpu, addr, len.into(), 0x0123_4567_DEAD_BEEF), "{len} bytes");
    }

    // Deassignment needs all of it.
    for wrong in [
        io(0x3000, 2, any, IOEVENTFD_DATAMATCH, 0xBEEF),
        io(0x3000, 2, matching, IOEVENTFD_DATAMATCH, 0xBEE0),
        io(0x3000, 2, matching, 0, 0),
        io(0x3000, 4, matching, IOEVENTFD_DATAMATCH, 0xBEEF),
    ] {
        let args = Ioeventfd { flags: wrong.flags | IOEVENTFD_DEASSIGN, ..wrong };
        assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &args), ENOENT);
    }
    let right = Ioeventfd { flags: args.flags | IOEVENTFD_DEASSIGN, ..args };
    assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &right), 0);
    assert!(write(&k, vcpu, 0x3000, 2, 0xBEEF));
}

#[test]
fn reads_are_not_matched() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    let fd = eventfd();
    assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &io(0x1000, 0, fd, 0, 0)), 0);
    k.exit(|shared| {
        shared.put(8, Mmio { phys_addr: 0x1000, size: 4, ..Mmio::default() });
        exit::MMIO
    });
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::MMIO);
    assert_eq!(eventfd_count(fd), 0);
}

#[test]
fn many_ioeventfds() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    let fds: Vec<i32> = (0..100).map(|_| eventfd()).collect();
    // In an order that is not that of the addresses.
    for i in 0..100_u64 {
        let at = i * 37 % 100;
        assert_eq!(k.ioctl_with(vm, ioctl::IOEVENTFD, &io(at * 16, 4, fds[at as usize], 0, 0)), 0);
    }
    for at in 0..100_u64 {
        assert!(!write(&k, vcpu, at * 16, 4, 0));
        assert_eq!(eventfd_count(fds[at as usize]), 1);
    }
}

#[test]
fn irqfd_arguments() {
    let k = Session::new();
    let vm = k.vm();
    let fd = eventfd();
    let set = |args: Irqfd| k.ioctl_with(vm, ioctl::IRQFD, &args);
    assert_eq!(set(irq(fd, 1, 4)), EINVAL);
    let mut padded = irq(fd, 1, 0);
    padded.pad[15] = 1;
    assert_eq!(set(padded), EINVAL);
    assert_eq!(set(irq(99, 1, 0)), EBADF);
    assert_eq!(set(irq(-1, 1, 0)), EBADF);
    assert_eq!(set(irq(vm, 1, 0)), EINVAL);
    assert_eq!(set(irq(fd, 1, 0)), 0);
    assert_eq!(set(irq(fd, 2, 0)), EBUSY);
    assert_eq!(set(irq(99, 1, IRQFD_DEASSIGN)), EBADF);
    assert_eq!(set(irq(fd, 2, IRQFD_DEASSIGN)), 0, "nothing to do is fine");
    assert_eq!(set(irq(fd, 1, IRQFD_DEASSIGN)), 0);
    assert_eq!(set(irq(fd, 2, 0)), 0);
}

#[test]
fn each_signal_is_an_edge() {
    let k = Session::new();
    let vm = k.vm();
    let fd = eventfd();
    eventfd_write(fd);
    assert_eq!(k.ioctl_with(vm, ioctl::IRQFD, &irq(fd, 5, 0)), 0);
    assert_eq!(k.with(|k| k.vms[&1].lines.clone()), [(0, 5, 1)], "what came before counts once");
    eventfd_write(fd);
    eventfd_write(fd);
    assert_eq!(k.with(|k| k.vms[&1].lines.len()), 3);
    assert_eq!(k.ioctl_with(vm, ioctl::IRQFD, &irq(fd, 5, IRQFD_DEASSIGN)), 0);
    eventfd_write(fd);
    assert_eq!(k.with(|k| k.vms[&1].lines.len()), 3);
}

#[test]
fn closed_eventfd_ends_its_irqfd() {
    let k = Session::new();
    let vm = k.vm();
    let fd = eventfd();
    assert_eq!(k.ioctl_with(vm, ioctl::IRQFD, &irq(fd, 5, 0)), 0);
    close(fd);
    assert_eq!(crate::counters::IRQFDS.get(), 0);
    close(vm);
    assert_eq!(k.held(), "");
}

#[test]
fn irqfds_end_with_the_vm_file() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    let fd = eventfd();
    assert_eq!(k.ioctl_with(vm, ioctl::IRQFD, &irq(fd, 5, 0)), 0);
    close(vm);
    eventfd_write(fd);
    assert!(k.with(|k| k.vms[&1].lines.is_empty()));
    close(vcpu);
    assert_eq!(k.held(), "");
}

fn resampled(k: &Session, vcpu: i32, intids: &[u32]) {
    let mut ended = Resampled { count: intids.len() as u32, ..Resampled::default() };
    ended.intids[..intids.len()].copy_from_slice(intids);
    k.exit(move |shared| {
        shared.put(8, ended);
        exit::RESAMPLED
    });
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);
    assert_eq!(k.get::<u32>(RUN), exit::SHUTDOWN);
}

fn levels(k: &Session) -> Vec<(u16, u64, u64, u64)> {
    k.with(|k| std::mem::take(&mut k.vms.get_mut(&1).unwrap().levels))
}

#[test]
fn resample_arguments() {
    let k = Session::new();
    let vm = k.vm();
    let fd = eventfd();
    let set = |args: Irqfd| k.ioctl_with(vm, ioctl::IRQFD, &args);
    let with = |resamplefd: i32| Irqfd { resamplefd: resamplefd as u32, ..irq(fd, 1, IRQFD_RESAMPLE) };
    assert_eq!(set(with(99)), EBADF);
    assert_eq!(set(with(-1)), EBADF);
    assert_eq!(set(with(vm)), EINVAL);
    assert_eq!(set(with(eventfd())), 0);
    // By the public ABI it is accepted, and is one edge.
    k.with(|k| k.extensions = 0);
    assert_eq!(entry::gzr_init(), 0);
    let edge = eventfd();
    assert_eq!(set(irq(edge, 2, IRQFD_RESAMPLE)), 0);
    eventfd_write(edge);
    assert_eq!(k.with(|k| k.vms[&1].lines.clone()), [(0, 2, 1)]);
}

#[test]
fn a_resampled_line_falls_at_the_eoi_and_whoever_raises_it_hears() {
    let k = Session::new();
    let vm = k.vm();
    let vcpu = k.vcpu(vm, 0);
    let (a, b, other, plain) = (eventfd(), eventfd(), eventfd(), eventfd());
    let (told_a, told_b, told_other) = (eventfd(), eventfd(), eventfd());
    let tie = |fd, gsi, resamplefd: i32| {
        let args = Irqfd { resamplefd: resamplefd as u32, ..irq(fd, gsi, IRQFD_RESAMPLE) };
        assert_eq!(k.ioctl_with(vm, ioctl::IRQFD, &args), 0);
    };
    tie(a, 4, told_a);
    tie(b, 4, told_b);
    tie(other, 5, told_other);
    assert_eq!(k.ioctl_with(vm, ioctl::IRQFD, &irq(plain, 4, 0)), 0);
    eventfd_write(a);
    assert_eq!(levels(&k), [(0, 4, 1, 1)]);
    eventfd_write(plain);
    assert_eq!((levels(&k).len(), k.with(|k| k.vms[&1].lines.len())), (0, 1));

    resampled(&k, vcpu, &[36]);
    let counts = || [told_a, told_b, told_other].map(eventfd_count);
    assert_eq!(counts(), [1, 1, 0]);
    resampled(&k, vcpu, &[37, 36, 99]);
    assert_eq!(counts(), [2, 2, 1]);
    // A count from nowhere does no harm.
    k.exit(|shared| {
        shared.put(8, Resampled { count: u32::MAX, intids: [0; 16], pad: 0 });
        exit::RESAMPLED
    });
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(vcpu), 0);

    // IRQ_LINE finds a line there.
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &ioctl::IrqLevel { irq: 4, level: 0 }), 0);
    assert_eq!(levels(&k), [(0, 4, 0, 1)]);
    // The last one to go lowers it: by DEASSIGN, by the eventfd's end, by the VM's.
    assert_eq!(k.ioctl_with(vm, ioctl::IRQFD, &irq(a, 4, IRQFD_DEASSIGN)), 0);
    assert_eq!(levels(&k), []);
    close(b);
    assert_eq!(levels(&k), [(0, 4, 0, 0)]);
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &ioctl::IrqLevel { irq: 4, level: 0 }), 0);
    assert_eq!(levels(&k), [], "a pulse again");
    resampled(&k, vcpu, &[36]);
    assert_eq!(counts(), [2, 2, 1]);
    close(vm);
    assert_eq!(levels(&k), [(0, 5, 0, 0)]);
}

#[test]
fn who_asks_for_levels_gets_them() {
    let k = Session::new();
    let vm = k.vm();
    let ask = |on_vm: bool| {
        k.put(ARG, &extension::IRQ_LEVEL);
        let cmd = ioctl::CHECK_EXTENSION;
        assert_eq!(if on_vm { k.ioctl(vm, cmd, ARG) } else { k.dev_ioctl(cmd, ARG) }, 0);
        assert_eq!(k.get::<u64>(ARG), 1);
    };
    let raise = || assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &ioctl::IrqLevel { irq: 3, level: 1 }), 0);
    ask(false);
    raise();
    assert_eq!(levels(&k), [], "asked of the device, not of the VM");
    ask(true);
    raise();
    assert_eq!(levels(&k), [(0, 3, 1, 0)]);
    let ppi = ioctl::IrqLevel { irq: 2 << 24 | 5 << 16 | 20, level: 1 };
    assert_eq!(k.ioctl_with(vm, ioctl::IRQ_LINE, &ppi), 0);
    assert_eq!(levels(&k), [(5, 2 << 24 | 20, 1, 0)]);
}
