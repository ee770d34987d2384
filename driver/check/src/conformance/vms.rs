// SPDX-License-Identifier: GPL-2.0-only
//! Device and VM: numbers, descriptors, memory, devices.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use gzvm_abi::run::exit;
use gzvm_abi::{MAX_MEMSLOTS, MAX_VCPUS, ioctl};
use libc::{EEXIST, EFAULT, EINVAL, ENOTTY, EOPNOTSUPP};

use super::{Args, counter, descriptor, gives, needs_memory, nr, programs};
use crate::machine::{BUSY, Machine, RAM, Run, SIZE, device, vm};
use crate::sys::{self, Mapping, errno};
use crate::{Check, ensure};

/// Table 3.1, the column of encoded numbers, against the types that all parts share.
pub fn numbers() -> Check {
    for (name, ours, number) in [
        ("CREATE_VM", ioctl::CREATE_VM, nr::CREATE_VM),
        ("CHECK_EXTENSION", ioctl::CHECK_EXTENSION, nr::CHECK_EXTENSION),
        ("CREATE_VCPU", ioctl::CREATE_VCPU, nr::CREATE_VCPU),
        ("SET_USER_MEMORY_REGION", ioctl::SET_USER_MEMORY_REGION, nr::SET_USER_MEMORY_REGION),
        ("IRQ_LINE", ioctl::IRQ_LINE, nr::IRQ_LINE),
        ("IRQFD", ioctl::IRQFD, nr::IRQFD),
        ("IOEVENTFD", ioctl::IOEVENTFD, nr::IOEVENTFD),
        ("RUN", ioctl::RUN, nr::RUN),
        ("ENABLE_CAP", ioctl::ENABLE_CAP, nr::ENABLE_CAP),
        ("GET_ONE_REG", ioctl::GET_ONE_REG, nr::GET_ONE_REG),
        ("SET_ONE_REG", ioctl::SET_ONE_REG, nr::SET_ONE_REG),
        ("CONTROL", ioctl::CONTROL, nr::CONTROL),
        ("SET_WATCH", ioctl::SET_WATCH, nr::SET_WATCH),
        ("VGIC_SPIS", ioctl::VGIC_SPIS, nr::VGIC_SPIS),
        ("CREATE_DEVICE", ioctl::CREATE_DEVICE, nr::CREATE_DEVICE),
        ("SET_DTB_CONFIG", ioctl::SET_DTB_CONFIG, nr::SET_DTB_CONFIG),
        ("MEASUREMENT", ioctl::MEASUREMENT, nr::MEASUREMENT),
        ("VM_FEATURES", ioctl::VM_FEATURES, nr::VM_FEATURES),
    ] {
        ensure!(ours == number, "{name} is {ours:#x}, not {number:#x}");
    }
    Ok(())
}

/// What the kernel says of a descriptor: its name, and whether exec closes it.
fn about(fd: &OwnedFd) -> Result<(String, bool), String> {
    let number = fd.as_raw_fd();
    let link = fs::read_link(format!("/proc/self/fd/{number}")).map_err(|e| e.to_string())?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).map_err(|e| e.to_string())?;
    let flags =
        info.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("flags:")?.trim(), 8).ok());
    Ok((link.to_string_lossy().into_owned(), flags.unwrap_or(0) & libc::O_CLOEXEC as u32 != 0))
}

/// Device: the argument is the type, a number; back comes the VM's descriptor.
pub fn create_vm() -> Check {
    let device = device()?;
    let before = counter("driver_vms")?;
    for kind in [1, 2, 1 << 31, 1 << 32, u64::MAX] {
        let error = errno(&descriptor(&device, nr::CREATE_VM, kind));
        gives(error, EINVAL, format_args!("type {kind:#x}"))?;
    }
    ensure!(counter("driver_vms")? == before, "refused VMs are kept");
    let vm = descriptor(&device, nr::CREATE_VM, 0).map_err(|e| format!("type 0: {e}"))?;
    let (name, cloexec) = about(&vm)?;
    ensure!(name == "anon_inode:gzvm-vm" && cloexec, "{name}, closed by exec: {cloexec}");
    ensure!(counter("driver_vms")? == before + 1, "the VM is not counted");
    gives(errno(&sys::ioctl(&vm, nr::CREATE_VM, 0)), ENOTTY, "on a VM")?;
    // VMs of one process are apart.
    let other = descriptor(&device, nr::CREATE_VM, 0).map_err(|e| format!("a second VM: {e}"))?;
    drop(vm);
    gives(errno(&descriptor(&other, nr::CREATE_VCPU, 0)), 0, "a vCPU after the other VM went")
}

/// Defined and not implemented.
pub fn set_memory_region() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    gives(Args::<3>::new().call(&vm, nr::SET_MEMORY_REGION), ENOTTY, "SET_MEMORY_REGION")
}

/// In crosvm's bindings only.
pub fn create_irqchip() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    gives(errno(&sys::ioctl(&vm, nr::CREATE_IRQCHIP, 0)), ENOTTY, "CREATE_IRQCHIP")
}

/// The argument is the id, a number. Differs: EEXIST for an id in use, where the public driver forgets the first.
pub fn create_vcpu() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    let before = counter("driver_vcpus")?;
    let last = MAX_VCPUS as u64 - 1;
    for id in [last + 1, last + 2, 0xFFFF, 0x1_0000, 1 << 32, u64::MAX] {
        gives(errno(&descriptor(&vm, nr::CREATE_VCPU, id)), EINVAL, format_args!("id {id:#x}"))?;
    }
    let mut vcpus = Vec::new();
    for id in [last, 0] {
        let vcpu = descriptor(&vm, nr::CREATE_VCPU, id).map_err(|e| format!("id {id}: {e}"))?;
        let (name, cloexec) = about(&vcpu)?;
        let expected = format!("anon_inode:gzvm-vcpu:{id}");
        ensure!(name == expected && cloexec, "{name}, closed by exec: {cloexec}");
        gives(errno(&descriptor(&vm, nr::CREATE_VCPU, id)), EEXIST, format_args!("id {id} again"))?;
        vcpus.push(vcpu);
    }
    ensure!(counter("driver_vcpus")? == before + 2, "vCPUs are not counted");
    gives(errno(&sys::ioctl(&vcpus[0], nr::CREATE_VCPU, 1)), ENOTTY, "on a vCPU")?;
    gives(errno(&sys::ioctl(&device()?, nr::CREATE_VCPU, 1)), ENOTTY, "on the device")?;
    // The VM goes with its last descriptor.
    drop(vm);
    ensure!(counter("driver_vcpus")? == before + 2, "the vCPUs went with the VM's descriptor");
    drop(vcpus);
    ensure!(counter("driver_vcpus")? == before, "vCPUs are left");
    Ok(())
}

/// slot @0, flags @4, guest_phys_addr @8, memory_size @16, userspace_addr @24. Differs: a part of a mapping
/// is fine, a slot in use and an overlap are EEXIST.
pub fn set_user_memory_region() -> Check {
    const SIZE: u64 = 64 << 10;
    let vm = vm().map_err(|e| e.to_string())?;
    let memory = Mapping::new(1 << 20, true);
    let at = memory.address();
    let set = |slot: usize, flags: u32, gpa: u64, size: u64, address: u64| {
        let args = Args::<4>::new().w(0, slot as u32).w(4, flags).q(8, gpa).q(16, size).q(24, address);
        args.call(&vm, nr::SET_USER_MEMORY_REGION)
    };
    needs_memory(&vm, nr::SET_USER_MEMORY_REGION)?;
    for slot in [MAX_MEMSLOTS, MAX_MEMSLOTS + 1, 0xFFFF, 0xFFFF_FFFF] {
        gives(set(slot, 1, RAM, SIZE, at), EINVAL, format_args!("slot {slot:#x}"))?;
    }
    for gpa in [RAM + 1, RAM + 0x800, u64::MAX] {
        gives(set(0, 1, gpa, SIZE, at), EINVAL, format_args!("address {gpa:#x}"))?;
    }
    gives(set(0, 1, !0xFFFF + 0x1000, SIZE, at), EINVAL, "addresses that wrap")?;
    for size in [1, 4095, SIZE + 1, 1 << 43, u64::MAX] {
        gives(set(0, 1, RAM, size, at), EINVAL, format_args!("size {size:#x}"))?;
    }
    gives(set(0, 1, RAM, SIZE, at + 1), EINVAL, "an unaligned mapping")?;
    gives(set(0, 1, RAM, SIZE, 0x1000), EFAULT, "nothing mapped")?;
    memory.replace(0x8_0000, 0x1000, false);
    gives(set(0, 1, RAM, SIZE, at + 0x7_8000), EINVAL, "a hole in the mapping")?;
    gives(set(0, 1, RAM, SIZE, at + 0x8_0000), EFAULT, "a hole at its start")?;
    // Flags are passed to the hypervisor as the region's purpose; its refusal is EFAULT.
    for flags in [8, 0x8000_0000] {
        gives(set(0, flags, RAM, SIZE, at), EFAULT, format_args!("flags {flags:#x}"))?;
    }
    gives(set(0, 1, 1 << 40, SIZE, at), EFAULT, "past 40 bits")?;
    // Nothing above took a slot.
    for (slot, flags) in [(0, 0), (1, 1), (2, 2), (MAX_MEMSLOTS - 1, 4)] {
        let gpa = RAM + slot as u64 * SIZE;
        gives(set(slot, flags, gpa, SIZE, at), 0, format_args!("slot {slot} with flags {flags}"))?;
    }
    gives(set(1, 1, RAM + (1 << 30), SIZE, at), EEXIST, "a slot in use")?;
    gives(set(3, 1, RAM + SIZE - 4096, 4096, at), EEXIST, "an overlap")?;
    gives(set(3, 1, RAM - 4096, 8192, at), EEXIST, "an overlap at the start")
}

/// dev_type @0, id @4, flags @8, dev_addr @16, dev_reg_size @24, attr_addr @32, attr_size @40.
pub fn create_device() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    needs_memory(&vm, nr::CREATE_DEVICE)?;
    let describe = |kind: u32, address: u64| Args::<6>::new().w(0, kind).q(16, address).q(24, 0x2_0000);
    let create = |args: Args<6>| args.call(&vm, nr::CREATE_DEVICE);
    for kind in [2, 3, u32::MAX] {
        gives(create(describe(kind, 0x3FFF_0000)), EOPNOTSUPP, format_args!("device {kind:#x}"))?;
    }
    for address in [0x3FFF_1000, 0x3FFF_0001, 1 << 40, u64::MAX] {
        gives(create(describe(0, address)), EINVAL, format_args!("address {address:#x}"))?;
    }
    let attributes = Mapping::new(8192, true);
    let with = |size: u64, address: u64| describe(0, 0x3FFF_0000).q(32, address).q(40, size);
    for size in [4097, 8192, 1 << 32, u64::MAX] {
        gives(create(with(size, attributes.address())), EINVAL, format_args!("attributes of {size:#x}"))?;
    }
    gives(create(with(8, 8)), EFAULT, "attributes nowhere")?;
    gives(
        create(with(4096, attributes.address()).w(4, 7).q(8, u64::MAX)),
        0,
        "distributor with a page of them",
    )?;
    gives(create(describe(0, 0x3FFF_0000)), EINVAL, "a second distributor")?;
    gives(create(describe(1, 0x3FFB_0000)), 0, "redistributors")?;
    gives(create(describe(1, 0x3FFB_0000)), EINVAL, "again")
}

/// dtb_addr @0, dtb_size @8.
pub fn set_dtb_config() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    needs_memory(&vm, nr::SET_DTB_CONFIG)?;
    for _ in 0..2 {
        let args = Args::<2>::new().q(0, RAM).q(8, 0x20_0000);
        gives(args.call(&vm, nr::SET_DTB_CONFIG), 0, "as crosvm")?;
    }
    Ok(())
}

/// Ours: a mask @0, for a VM that has had no vCPU yet.
pub fn vm_features() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    needs_memory(&vm, nr::VM_FEATURES)?;
    let give = |vm: &OwnedFd, mask| Args::<1>::new().q(0, mask).call(vm, nr::VM_FEATURES);
    // SAFETY: asks the kernel about the CPU.
    let sve = unsafe { libc::getauxval(libc::AT_HWCAP) } >> 22 & 1 != 0;
    gives(give(&vm, 1), if sve { 0 } else { EOPNOTSUPP }, "SVE")?;
    gives(give(&vm, 0), 0, "nothing")?;
    for mask in [2, 3, 1 << 32, u64::MAX] {
        gives(give(&vm, mask), EINVAL, format_args!("mask {mask:#x}"))?;
    }
    let machine = Machine::new(BUSY, &[])?;
    gives(give(&machine.vm, 0), EINVAL, "with a vCPU")?;
    for (fd, what) in [(&machine.vcpu, "vCPU"), (&device()?.into(), "device")] {
        gives(give(fd, 0), ENOTTY, format_args!("on the {what}"))?;
    }
    Ok(())
}

/// Ours: 32 bytes @0, their state @32; of a protected VM that has run.
pub fn measurement() -> Check {
    let read = |fd: &OwnedFd, words: &mut [u64; 6]| errno(&sys::ioctl_with(fd, nr::MEASUREMENT, words));
    let mut words = [7; 6];
    let vm = vm().map_err(|e| e.to_string())?;
    gives(read(&vm, &mut words), EOPNOTSUPP, "a plain VM")?;
    let machine = Machine::protected(Mapping::new(SIZE, true), programs::OFF, &[])?;
    gives(read(&machine.vm, &mut words), EOPNOTSUPP, "a VM that has not run")?;
    ensure!(words == [7; 6], "something was written: {words:x?}");
    let mut run = Run::new();
    run.run(&machine.vcpu).map_err(|e| format!("RUN: {e}"))?;
    ensure!(run.0.exit_reason == exit::SYSTEM_EVENT, "exit {:#x}", run.0.exit_reason);
    needs_memory(&machine.vm, nr::MEASUREMENT)?;
    gives(read(&machine.vm, &mut words), 0, "a protected VM")?;
    ensure!(words[..4] != [7; 4] && words[4..] == [0, 7], "{words:x?}");
    for (fd, what) in [(&machine.vcpu, "vCPU"), (&device()?.into(), "device")] {
        gives(read(fd, &mut words), ENOTTY, format_args!("on the {what}"))?;
    }
    Ok(())
}

/// All else is ENOTTY: other numbers, other sizes and directions, the right number on the wrong descriptor.
pub fn unknown() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let device = device()?;
    // By _IO; 0x04 and 0xC0 to 0xD3 are for extensions.
    let known = |n: u32| [1, 3, 4, 0x41, 0x80].contains(&n) || (0xC0..0xD4).contains(&n);
    for number in (0..0x100).filter(|n| !known(*n)).map(|n| 0x9200 | n) {
        for (name, error) in [
            ("device", errno(&sys::ioctl(&device, number, 0))),
            ("VM", errno(&sys::ioctl(&machine.vm, number, 0))),
            ("vCPU", errno(&sys::ioctl(&machine.vcpu, number, 0))),
        ] {
            gives(error, ENOTTY, format_args!("{number:#x} on the {name}"))?;
        }
    }
    for number in [
        nr::SET_USER_MEMORY_REGION - 0x8_0000,
        nr::IRQFD | 0x8000_0000,
        nr::CREATE_DEVICE & !0x8000_0000,
        nr::IRQ_LINE + 0x8_0000,
        nr::ENABLE_CAP | 0x8000_0000,
        // KVM's.
        0xAE01,
        0xAE80,
    ] {
        gives(errno(&sys::ioctl(&machine.vm, number, 0)), ENOTTY, format_args!("{number:#x} on the VM"))?;
    }
    for number in [nr::RUN, nr::SET_ONE_REG, nr::GET_ONE_REG] {
        gives(errno(&sys::ioctl(&machine.vm, number, 0)), ENOTTY, format_args!("{number:#x} on the VM"))?;
        gives(errno(&sys::ioctl(&device, number, 0)), ENOTTY, format_args!("{number:#x} on the device"))?;
    }
    for number in
        [nr::IRQ_LINE, nr::IRQFD, nr::IOEVENTFD, nr::ENABLE_CAP, nr::CREATE_DEVICE, nr::SET_DTB_CONFIG]
    {
        gives(errno(&sys::ioctl(&machine.vcpu, number, 0)), ENOTTY, format_args!("{number:#x} on the vCPU"))?;
        gives(errno(&sys::ioctl(&device, number, 0)), ENOTTY, format_args!("{number:#x} on the device"))?;
    }
    Ok(())
}
