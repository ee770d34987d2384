// SPDX-License-Identifier: GPL-2.0-only
//! Extensions of ours: a VM's power (CONTROL), and the exceptions of a guest (SET_WATCH).

use libc::{EINVAL, ENOTTY, EOPNOTSUPP};

use super::extensions::ask;
use super::{Args, gives, needs_memory, nr};
use crate::machine::{BUSY, Machine, RAM, Run, device, vm};
use crate::sys;
use crate::{Check, ensure};

/// Those of programs need hardware breakpoints, which may be too few.
const KINDS: [u64; 2] = [0x73F, 0x43F];
const STALL: u32 = 1 << 4;

/// what @0, state @4, events @8, reserved @16: 0 tells, 1 pauses, 2 resumes.
pub fn control() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    needs_memory(&machine.vm, nr::CONTROL)?;
    for what in [3, 1 << 31, u32::MAX] {
        gives(Args::<4>::new().w(0, what).call(&machine.vm, nr::CONTROL), EINVAL, format_args!("{what:#x}"))?;
    }
    for offset in [16, 24] {
        let reserved = Args::<4>::new().q(offset, 1);
        gives(reserved.call(&machine.vm, nr::CONTROL), EINVAL, format_args!("reserved @{offset}"))?;
    }
    gives(Args::<4>::new().call(&device()?, nr::CONTROL), ENOTTY, "on the device")?;
    gives(Args::<4>::new().call(&machine.vcpu, nr::CONTROL), ENOTTY, "on a vCPU")?;
    for (what, state) in [(0_u64, 0_u64), (1, 2), (0, 2), (1, 2), (2, 0), (0, 0), (2, 0)] {
        let mut args = [what, 0, 0, 0];
        let error = sys::errno(&sys::ioctl_with(&machine.vm, nr::CONTROL, &mut args));
        gives(error, 0, format_args!("{what}"))?;
        ensure!(args == [state << 32 | what, 0, 0, 0], "{what}: {args:x?}");
    }
    Ok(())
}

/// The kinds that this CPU can watch, of the device and of a VM.
pub fn extension() -> Check {
    let (device, vm) = (device()?, vm().map_err(|e| e.to_string())?);
    let (of_device, of_vm) = (ask(&device, 0x475A_0010), ask(&vm, 0x475A_0010));
    ensure!(of_device == of_vm, "{of_device:?} of the device, {of_vm:?} of a VM");
    ensure!(of_device.0 == 0 && KINDS.contains(&of_device.1), "{of_device:x?}");
    Ok(())
}

/// kinds @0, action @4, stall_ms @8, reserved @16. Before the first RUN only.
pub fn set_watch() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    needs_memory(&machine.vm, nr::SET_WATCH)?;
    let watch = |kinds: u32, action: u32, ms: u64| Args::<4>::new().w(0, kinds).w(4, action).q(8, ms);
    let set = |kinds, action, ms| watch(kinds, action, ms).call(&machine.vm, nr::SET_WATCH);
    let (_, kinds) = ask(&machine.vm, 0x475A_0010);
    for kind in (0..32).map(|bit| 1 << bit).filter(|kind| kinds as u32 & kind == 0) {
        gives(set(kind, 0, 0), EOPNOTSUPP, format_args!("kind {kind:#x}"))?;
    }
    for action in [4, 1 << 31, u32::MAX] {
        gives(set(1, action, 0), EINVAL, format_args!("action {action:#x}"))?;
    }
    for (kinds, ms) in [(STALL, 0), (STALL, 3_600_001), (STALL, u64::MAX), (1, 1), (0, 1)] {
        gives(set(kinds, 0, ms), EINVAL, format_args!("kinds {kinds:#x}, {ms} ms"))?;
    }
    for offset in [16, 24] {
        let reserved = watch(1, 0, 0).q(offset, 1);
        gives(reserved.call(&machine.vm, nr::SET_WATCH), EINVAL, format_args!("reserved @{offset}"))?;
    }
    gives(watch(1, 0, 0).call(&device()?, nr::SET_WATCH), ENOTTY, "on the device")?;
    gives(watch(1, 0, 0).call(&machine.vcpu, nr::SET_WATCH), ENOTTY, "on a vCPU")?;
    gives(set(kinds as u32, 1, 3_600_000), 0, "all kinds")?;
    gives(set(STALL, 0, 50), 0, "others")?;
    let mut run = Run::new();
    run.run(&machine.vcpu).map_err(|e| format!("RUN: {e}"))?;
    ensure!(run.0.exit_reason == 0x9292_0041, "RUN of a guest that gets nowhere: {:#x}", run.0.exit_reason);
    gives(set(1, 0, 0), EINVAL, "after the first RUN")
}

/// kind @8, action @12, count @16, pc @24, esr @40; then the VM is over by a crash.
pub fn exit() -> Check {
    // BRK 9.
    let machine = Machine::new(&[0xD420_0120], &[(29, 0x2929), (30, 0x3030)])?;
    let set = Args::<4>::new().w(0, 1 << 3).w(4, 3).call(&machine.vm, nr::SET_WATCH);
    gives(set, 0, "SET_WATCH")?;
    let mut run = Run::new();
    run.run(&machine.vcpu).map_err(|e| format!("RUN: {e}"))?;
    ensure!(run.0.exit_reason == 0x9292_0041, "exit {:#x}", run.0.exit_reason);
    let [what, count, pc, _, esr, far, _, x29, x30, rest @ ..] = run.0.payload;
    ensure!((what, count) == (3 << 32 | 1 << 3, 1), "kind and action {what:#x}, count {count}");
    ensure!((pc, esr, far) == (RAM, 0xF200_0009, 0), "pc {pc:#x}, esr {esr:#x}, far {far:#x}");
    ensure!((x29, x30) == (0x2929, 0x3030), "x29 {x29:#x}, x30 {x30:#x}");
    ensure!(rest.iter().all(|word| *word == 0), "behind it: {rest:x?}");
    for _ in 0..2 {
        run.run(&machine.vcpu).map_err(|e| format!("RUN: {e}"))?;
        ensure!(run.0.exit_reason == 0x9292_0008, "then exit {:#x}", run.0.exit_reason);
        ensure!(run.0.payload[0] as u32 == 3, "type {:#x}", run.0.payload[0]);
    }
    Ok(())
}
