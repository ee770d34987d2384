// SPDX-License-Identifier: GPL-2.0-only
//! Descriptors in other processes: inherited by fork, passed through a socket. They keep the VM, and can do nothing with it.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use gzvm_abi::ioctl::{self, Discard, Irqfd, OneReg, UserspaceMemoryRegion};
use gzvm_abi::reg;
use libc::EIO;

use crate::machine::{DEVICE, ECHO, Machine, RAM, Run};
use crate::sys::{self, Child, Mapping, errno, eventfd};
use crate::{Check, ensure};

/// A value of debugfs' `counters`.
pub fn counter(name: &str) -> Result<u64, String> {
    let text = std::fs::read_to_string("/sys/kernel/debug/gzvm/counters").map_err(|e| e.to_string())?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.ok_or_else(|| format!("no {name} in debugfs"))
}

/// Every ioctl of a VM and a vCPU, and the mapping: are they refused with EIO?
fn all_refused(vm: &OwnedFd, vcpu: &OwnedFd) -> bool {
    let event = eventfd();
    let mut region = UserspaceMemoryRegion {
        slot: 1,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: 4096,
        userspace_addr: 0x1000,
    };
    let mut value = 0_u64;
    let addr = std::ptr::from_mut(&mut value).expose_provenance() as u64;
    let mut irqfd = Irqfd { fd: event.as_raw_fd() as u32, gsi: 1, flags: 0, resamplefd: 0, pad: [0; 16] };
    [
        errno(&Run::new().run(vcpu)),
        errno(&sys::ioctl(vcpu, ioctl::RUN, 0)),
        errno(&sys::ioctl_with(vcpu, ioctl::GET_ONE_REG, &mut OneReg { id: reg::PC, addr })),
        errno(&sys::ioctl_with(vcpu, ioctl::SET_ONE_REG, &mut OneReg { id: reg::PC, addr })),
        errno(&Mapping::of(vcpu, 4096, true)),
        errno(&sys::ioctl(vm, ioctl::CREATE_VCPU, 1)),
        errno(&sys::ioctl_with(vm, ioctl::SET_USER_MEMORY_REGION, &mut region)),
        errno(&sys::ioctl_with(vm, ioctl::DISCARD, &mut Discard { guest_phys_addr: RAM, size: 4096 })),
        errno(&sys::ioctl_with(vm, ioctl::IRQFD, &mut irqfd)),
    ]
    .iter()
    .all(|error| *error == EIO)
}

/// A load and a store: does the guest still run?
fn alive(machine: &Machine, run: &mut Run) -> Check {
    for what in ["load", "store"] {
        let mmio = run.mmio(&machine.vcpu).map_err(|e| format!("{what}: {e}"))?;
        ensure!(mmio.phys_addr & !0xFF == DEVICE, "{what} at {:#x}", mmio.phys_addr);
    }
    Ok(())
}

/// A child inherits the files and the mapping of the run page; what it does and its end leave the VM alone.
pub fn fork() -> Check {
    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, DEVICE + 8)])?;
    let _page = Mapping::of(&machine.vcpu, 4096, true).map_err(|e| format!("mmap: {e}"))?;
    let mut run = Run::new();
    alive(&machine, &mut run)?;
    let held = [counter("driver_vms")?, counter("driver_pinned_pages")?];
    for _ in 0..3 {
        ensure!(sys::in_child(|| all_refused(&machine.vm, &machine.vcpu)), "the child can use the VM");
        alive(&machine, &mut run)?;
    }
    ensure!(
        [counter("driver_vms")?, counter("driver_pinned_pages")?] == held,
        "the children changed what is held"
    );
    Ok(())
}

/// Passed through a UNIX socket, the files keep the VM alive, and no more; their last close ends it.
pub fn passed_through_a_socket() -> Check {
    let before = counter("driver_vms")?;
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
    let child = Child::start(|| {
        let (Ok(vm), Ok(vcpu)) = (sys::receive_fd(&theirs), sys::receive_fd(&theirs)) else { return false };
        let refused = all_refused(&vm, &vcpu);
        let mut byte = [u8::from(refused)];
        let mut theirs = &theirs;
        theirs.write_all(&byte).is_ok() && theirs.read_exact(&mut byte).is_ok() && refused
    });
    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, DEVICE + 8)])?;
    alive(&machine, &mut Run::new())?;
    sys::send_fd(&ours, &machine.vm).map_err(|e| format!("send: {e}"))?;
    sys::send_fd(&ours, &machine.vcpu).map_err(|e| format!("send: {e}"))?;
    let mut byte = [0];
    ours.read_exact(&mut byte).map_err(|e| format!("the child says nothing: {e}"))?;
    ensure!(byte == [1], "another process can use the VM");
    alive(&machine, &mut Run::new())?;
    drop(machine);
    let kept = counter("driver_vms")?;
    ensure!(kept > before, "the VM is gone while another process holds it");
    ours.write_all(&[0]).map_err(|e| e.to_string())?;
    ensure!(child.wait(), "the child failed");
    let deadline = Instant::now() + Duration::from_secs(10);
    while counter("driver_vms")? > before {
        ensure!(Instant::now() < deadline, "the VM stays after its last file");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
