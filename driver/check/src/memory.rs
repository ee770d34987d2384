// SPDX-License-Identifier: GPL-2.0-only
//! Memory behind slots: there, not there, read-only, shared.

use crate::machine::{DEVICE, ECHO, Machine, RAM, Run, SIZE, WALK};
use crate::sys::Mapping;
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
