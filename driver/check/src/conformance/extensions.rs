// SPDX-License-Identifier: GPL-2.0-only
//! CHECK_EXTENSION (ABI 3.2) and ENABLE_CAP.

use std::os::fd::AsRawFd;

use libc::{EFAULT, EINVAL, EOPNOTSUPP};

use super::{Args, gives, needs_memory, nr};
use crate::machine::{device, vm};
use crate::sys::{self, errno};
use crate::{Check, ensure};

/// Errno and what stands in the caller's variable afterwards.
pub fn ask(fd: &impl AsRawFd, mut capability: u64) -> (i32, u64) {
    (errno(&sys::ioctl_with(fd, nr::CHECK_EXTENSION, &mut capability)), capability)
}

/// The same answers of device and VM; pointers that can't be read, or not be written.
pub fn check_extension() -> Check {
    let (device, vm) = (device()?, vm().map_err(|e| e.to_string())?);
    needs_memory(&device, nr::CHECK_EXTENSION)?;
    needs_memory(&vm, nr::CHECK_EXTENSION)?;
    for capability in [0xFFBA_DAB1, 0xA5, 0, 1, u64::MAX] {
        let (of_device, of_vm) = (ask(&device, capability), ask(&vm, capability));
        ensure!(of_device == of_vm, "{capability:#x}: {of_device:?} of the device, {of_vm:?} of a VM");
    }
    static READ_ONLY: u64 = 0xA5;
    let address = std::ptr::from_ref(&READ_ONLY).expose_provenance() as u64;
    gives(errno(&sys::ioctl(&device, nr::CHECK_EXTENSION, address)), EFAULT, "memory that can't be written")
}

/// 1, always: it does not say that this VM is protected.
pub fn protected_vm() -> Check {
    let answer = ask(&device()?, 0xFFBA_DAB1);
    ensure!(answer == (0, 1), "{answer:?}");
    Ok(())
}

/// The kernel's physical address bits.
pub fn vm_gpa_size() -> Check {
    let (error, bits) = ask(&device()?, 0xA5);
    ensure!(error == 0 && (bits == 48 || bits == 52), "errno {error}, {bits} bits");
    Ok(())
}

/// crosvm asks for MTE by 0.
pub fn mte() -> Check {
    let answer = ask(&device()?, 0);
    ensure!(answer == (EOPNOTSUPP, 0), "{answer:?}");
    Ok(())
}

/// Ours: the features that a VM can be given. Bit 0 is SVE.
pub fn vm_features() -> Check {
    // SAFETY: asks the kernel about the CPU.
    let sve = unsafe { libc::getauxval(libc::AT_HWCAP) } >> 22 & 1;
    let answer = ask(&device()?, 0x475A_0018);
    ensure!(answer == (0, sve), "{answer:x?}, and the host has SVE: {sve}");
    Ok(())
}

/// Ours: protected VMs have a measurement.
pub fn measurement() -> Check {
    let answer = ask(&device()?, 0x475A_000A);
    ensure!(answer == (0, 1), "{answer:?}");
    Ok(())
}

/// Ours: blocks that the driver gives for a VM's tables.
pub fn table_memory() -> Check {
    let answer = ask(&device()?, 0x475A_000D);
    ensure!(answer == (0, 16), "{answer:?}");
    Ok(())
}

/// Ours: how many SPIs a VM may have.
pub fn vgic_spis() -> Check {
    let answer = ask(&device()?, 0x475A_0020);
    ensure!(answer == (0, 988), "{answer:?}");
    Ok(())
}

/// EOPNOTSUPP, and the variable is untouched.
pub fn unknown() -> Check {
    let device = device()?;
    for capability in [1, 0xA4, 0xA6, 0x9201, 0x9202, 0x9205, 0xFFBA_DAB0, 1 << 32 | 0xA5, u64::MAX] {
        let answer = ask(&device, capability);
        ensure!(answer == (EOPNOTSUPP, capability), "{capability:#x}: {answer:x?}");
    }
    Ok(())
}

/// crosvm passes 165 itself for the address bits. EFAULT makes it use 40, which is what guests have.
pub fn number_as_pointer() -> Check {
    for fd in [device()?.into(), vm().map_err(|e| e.to_string())?] {
        let fd: std::os::fd::OwnedFd = fd;
        gives(errno(&sys::ioctl(&fd, nr::CHECK_EXTENSION, 165)), EFAULT, "165 as a pointer")?;
    }
    Ok(())
}

/// cap @0, args @8. Only the protected VM is let through; its firmware's size is written to args[1].
pub fn enable_cap() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    needs_memory(&vm, nr::ENABLE_CAP)?;
    let enable = |capability: u64, command: u64| {
        let mut args = [capability, command, 0x7FC0_0000, 3, 4, 5];
        let error = errno(&sys::ioctl_with(&vm, nr::ENABLE_CAP, &mut args));
        (error, args == [capability, command, 0x7FC0_0000, 3, 4, 5])
    };
    for capability in [0, 0xA5, 0x9201, 0x9202, 0x9203, 0x9204, 0x9205, 1 << 32 | 0xFFBA_DAB1, u64::MAX] {
        let answer = enable(capability, 0);
        ensure!(answer == (EINVAL, true), "capability {capability:#x}: {answer:?}");
    }
    for command in [3, 1 << 32 | 1, u64::MAX] {
        let answer = enable(0xFFBA_DAB1, command);
        ensure!(answer == (EINVAL, true), "sub-command {command:#x}: {answer:?}");
    }
    let mut size = [0xFFBA_DAB1_u64, 1, 0x7FC0_0000, 3, 4, 5];
    let error = errno(&sys::ioctl_with(&vm, nr::ENABLE_CAP, &mut size));
    let [_, _, bytes, ..] = size;
    ensure!(error == 0 && (1..=4 << 20).contains(&bytes), "firmware's size: errno {error}, {bytes} bytes");
    ensure!(size == [0xFFBA_DAB1, 1, bytes, 3, 4, 5], "firmware's size: {size:x?}");
    // The VM has no slot for it. Without it a VM is protected once.
    for (command, error) in [(0, EINVAL), (2, 0), (2, EINVAL)] {
        let answer = enable(0xFFBA_DAB1, command);
        ensure!(answer == (error, true), "sub-command {command}: {answer:?}");
    }
    gives(Args::<6>::new().q(0, 0xFFBA_DAB1).q(8, 2).call(&vm, nr::ENABLE_CAP), EINVAL, "once more")
}
