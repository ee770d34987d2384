// SPDX-License-Identifier: GPL-2.0-only
//! Memory behind slots: there, not there, read-only, shared.

use gzvm_abi::ioctl::{self, Discard};

use crate::machine::{DEVICE, ECHO, Machine, POLL, RAM, Run, SIZE, WALK, region};
use crate::sys::{self, Mapping, errno};
use crate::{Check, ensure};

const PAGE: u64 = 4096;
const MIB: usize = 1 << 20;

/// The guest walks through all its memory, and beyond.
pub fn pages_come_on_demand() -> Check {
    let machine = Machine::new(WALK, &[(0, RAM + PAGE), (2, PAGE)])?;
    let end = Run::new().mmio(&machine.vcpu)?.phys_addr;
    ensure!(end == RAM + SIZE as u64, "stopped at {end:#x}");
    Ok(())
}

/// Memory that the VMM unmapped is reported, at its very page, and served once it is there.
pub fn hole_in_the_memory() -> Check {
    let machine = Machine::new(WALK, &[(0, RAM + PAGE), (2, PAGE)])?;
    machine.ram.replace(5 * MIB, MIB, false);
    let mut run = Run::new();
    for _ in 0..2 {
        let at = run.exception(&machine.vcpu)?;
        ensure!(at == RAM + 5 * MIB as u64, "reported at {at:#x}");
    }
    machine.ram.replace(5 * MIB, MIB, true);
    let end = run.mmio(&machine.vcpu)?.phys_addr;
    ensure!(end == RAM + SIZE as u64, "stopped at {end:#x}");
    Ok(())
}

/// Pages are pinned for writing: what can't be written can't be RAM.
pub fn read_only_memory() -> Check {
    let machine = Machine::with_ram(Mapping::new(SIZE, false), &[], &[])?;
    let at = Run::new().exception(&machine.vcpu)?;
    ensure!(at == RAM, "reported at {at:#x}");
    Ok(())
}

/// What the VMM writes the guest reads, and the other way round.
pub fn content_is_shared() -> Check {
    // Echoes from a word of RAM to another, then to the device by the second round's registers.
    let machine = Machine::new(ECHO, &[(0, RAM + 3 * PAGE), (2, DEVICE)])?;
    machine.ram.put(3 * 4096, 0x1234_5678);
    let mut run = Run::new();
    let write = run.mmio(&machine.vcpu)?;
    ensure!(u64::from_le_bytes(write.data) == 0x1234_5678, "the guest read {:x?}", write.data);
    machine.ram.put(3 * 4096, 0x0BAD_CAFE);
    let write = run.mmio(&machine.vcpu)?;
    ensure!(u64::from_le_bytes(write.data) == 0x0BAD_CAFE, "then it read {:x?}", write.data);

    let machine = Machine::new(ECHO, &[(0, DEVICE), (2, RAM + 3 * PAGE)])?;
    let mut read = run.mmio(&machine.vcpu)?;
    read.data = 0x5566_7788_u64.to_le_bytes();
    read.write(&mut run.0);
    run.mmio(&machine.vcpu)?;
    let got = machine.ram.get(3 * 4096);
    ensure!(got == 0x5566_7788, "the VMM read {got:#x}");
    Ok(())
}

fn pinned() -> Result<u64, String> {
    let text = std::fs::read_to_string("/sys/kernel/debug/gzvm/counters").map_err(|e| e.to_string())?;
    let value = text.lines().find_map(|line| line.strip_prefix("driver_pinned_pages ")?.parse().ok());
    value.ok_or_else(|| "no driver_pinned_pages in debugfs".to_owned())
}

/// Pages that are discarded are unpinned, and come back with what is there by then.
pub fn discard_gives_pages_back() -> Check {
    let before = pinned()?;
    let machine = Machine::new(ECHO, &[(0, RAM + 3 * PAGE), (2, DEVICE)])?;
    machine.ram.put(3 * 4096, 0x1111);
    let mut run = Run::new();
    run.mmio(&machine.vcpu)?;
    let held = pinned()? - before;
    ensure!(held >= 2, "{held} pages pinned of a guest that runs");
    machine.ram.replace(0x3000, 0x1000, true);
    let mut range = Discard { guest_phys_addr: RAM + 3 * PAGE, size: PAGE };
    sys::ioctl_with(&machine.vm, ioctl::DISCARD, &mut range).map_err(|e| format!("DISCARD: {e}"))?;
    ensure!(pinned()? - before == held - 1, "{} pages pinned, not {}", pinned()? - before, held - 1);
    machine.ram.put(3 * 4096, 0x2222);
    let write = run.mmio(&machine.vcpu)?;
    ensure!(u64::from_le_bytes(write.data) == 0x2222, "the guest reads {:x?}", write.data);
    let mut all = Discard { guest_phys_addr: RAM, size: SIZE as u64 };
    sys::ioctl_with(&machine.vm, ioctl::DISCARD, &mut all).map_err(|e| format!("DISCARD of all: {e}"))?;
    ensure!(pinned()? == before, "{} pages pinned", pinned()? - before);
    run.mmio(&machine.vcpu)?;
    for (gpa, size) in
        [(RAM, 0), (RAM + 1, PAGE), (RAM - PAGE, PAGE), (RAM, SIZE as u64 + PAGE), (RAM, u64::MAX)]
    {
        let mut range = Discard { guest_phys_addr: gpa, size };
        let error = errno(&sys::ioctl_with(&machine.vm, ioctl::DISCARD, &mut range));
        ensure!(error == libc::EINVAL, "{gpa:#x}, {size:#x}: errno {error}");
    }
    Ok(())
}

/// A slot goes while a vCPU is in the guest; what was memory is a device then.
pub fn slot_goes_under_a_running_guest() -> Check {
    let before = pinned()?;
    // Reads a word of the second slot for ever.
    let machine = Machine::new(POLL, &[(0, RAM + SIZE as u64)])?;
    let more = Mapping::new(2 * MIB, true);
    region(&machine.vm, 1, RAM + SIZE as u64, 2 * MIB as u64, more.address()).map_err(|e| e.to_string())?;
    let access = std::thread::scope(|scope| {
        let guest = scope.spawn(|| Run::new().mmio(&machine.vcpu));
        std::thread::sleep(std::time::Duration::from_millis(300));
        let removed = region(&machine.vm, 1, RAM + SIZE as u64, 0, 0).map_err(|e| format!("removal: {e}"));
        let access = guest.join().map_err(|_| "the guest's thread panicked".to_owned())??;
        removed.map(|_| access)
    })?;
    ensure!(access.phys_addr == RAM + SIZE as u64, "MMIO at {:#x}", access.phys_addr);
    drop(machine);
    ensure!(pinned()? == before, "{} pages pinned", pinned()? - before);
    Ok(())
}
