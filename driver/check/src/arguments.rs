// SPDX-License-Identifier: GPL-2.0-only
//! Arguments and errnos of the ioctl table.

use gzvm_abi::hypercall::cap;
use gzvm_abi::ioctl::{self, IrqLevel, OneReg, extension};
use gzvm_abi::reg;
use libc::{EEXIST, EFAULT, EINTR, EINVAL, EIO, ENOTTY, EOPNOTSUPP};

use crate::machine::{BUSY, Machine, RAM, Run, SIZE, device, get_register, region, set_register, vm};
use crate::sys::{self, Mapping, errno};
use crate::{Check, ensure};

pub fn check_extension() -> Check {
    let device = device()?;
    let ask = |mut cap: u64| (errno(&sys::ioctl_with(&device, ioctl::CHECK_EXTENSION, &mut cap)), cap);
    ensure!(ask(cap::PROTECTED_VM) == (0, 1), "protected VM");
    let (error, bits) = ask(cap::VM_GPA_SIZE);
    ensure!(error == 0 && (32..=52).contains(&bits), "address bits: {bits}, errno {error}");
    ensure!(ask(0) == (EOPNOTSUPP, 0), "MTE");
    // The capability itself as a pointer, as crosvm passes it.
    let direct = errno(&sys::ioctl(&device, ioctl::CHECK_EXTENSION, cap::VM_GPA_SIZE));
    ensure!(direct == EFAULT, "number as pointer: errno {direct}");
    Ok(())
}

pub fn vcpu_ids() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    for (id, expected) in [(0, EEXIST), (8, EINVAL), (1 << 16, EINVAL), (1 << 32, EINVAL), (u64::MAX, EINVAL)]
    {
        let error = errno(&sys::ioctl(&machine.vm, ioctl::CREATE_VCPU, id));
        ensure!(error == expected, "id {id:#x}: errno {error}");
    }
    for id in 1..8 {
        let fd = sys::ioctl(&machine.vm, ioctl::CREATE_VCPU, id).map_err(|e| format!("vCPU {id}: {e}"))?;
        drop(sys::owned(fd));
    }
    // Ours: the VM that is asked for its limit has it.
    let mut limit = ioctl::extension::MAX_VCPUS;
    sys::ioctl_with(&machine.vm, ioctl::CHECK_EXTENSION, &mut limit)
        .map_err(|e| format!("MAX_VCPUS: {e}"))?;
    ensure!(limit == 64, "{limit} vCPUs");
    for (id, expected) in [(7, EEXIST), (64, EINVAL), (255, EINVAL)] {
        let error = errno(&sys::ioctl(&machine.vm, ioctl::CREATE_VCPU, id));
        ensure!(error == expected, "id {id:#x} of 64: errno {error}");
    }
    for id in 8..64 {
        let fd = sys::ioctl(&machine.vm, ioctl::CREATE_VCPU, id).map_err(|e| format!("vCPU {id}: {e}"))?;
        drop(sys::owned(fd));
    }
    Ok(())
}

pub fn unknown_ioctls() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let on_device = errno(&sys::ioctl(&device()?, ioctl::RUN, 0));
    // CREATE_IRQCHIP and SET_MEMORY_REGION have numbers, and that's all.
    let on_vm = [0x9260, 0x4018_9240, ioctl::RUN].map(|cmd| errno(&sys::ioctl(&machine.vm, cmd, 0)));
    let on_vcpu = errno(&sys::ioctl(&machine.vcpu, ioctl::CREATE_VCPU, 1));
    ensure!(
        [on_device, on_vcpu] == [ENOTTY; 2] && on_vm == [ENOTTY; 3],
        "errno {on_device}, {on_vm:?}, {on_vcpu}"
    );
    Ok(())
}

pub fn run_arguments() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let error = errno(&sys::ioctl(&machine.vcpu, ioctl::RUN, 8));
    ensure!(error == EFAULT, "bad pointer: errno {error}");
    for byte in 0..3 {
        let mut run = Run::new();
        run.0.padding1[byte] = 1;
        let error = errno(&run.run(&machine.vcpu));
        ensure!(error == EINVAL, "padding {byte}: errno {error}");
    }
    let mut run = Run::new();
    run.0.immediate_exit = 1;
    let error = errno(&run.run(&machine.vcpu));
    ensure!(error == EINTR, "immediate exit: errno {error}");
    Ok(())
}

pub fn registers() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    for n in 0..31 {
        let id = reg::x(n).unwrap_or_default();
        set_register(&machine.vcpu, id, u64::from(n) * 3).map_err(|e| format!("X{n}: {e}"))?;
    }
    let mut wide = OneReg { id: 0x6050_0000_0010_0054, addr: 0 };
    let error = errno(&sys::ioctl_with(&machine.vcpu, ioctl::SET_ONE_REG, &mut wide));
    ensure!(error == EINVAL, "256 bits: errno {error}");
    let mut nowhere = OneReg { id: reg::PC, addr: 8 };
    let error = errno(&sys::ioctl_with(&machine.vcpu, ioctl::SET_ONE_REG, &mut nowhere));
    ensure!(error == EFAULT, "bad pointer: errno {error}");
    let mut known = extension::GET_ONE_REG;
    let asked = errno(&sys::ioctl_with(&machine.vm, ioctl::CHECK_EXTENSION, &mut known));
    ensure!((asked, known) == (0, 1), "CHECK_EXTENSION of GET_ONE_REG: errno {asked}, {known}");
    let value = get_register(&machine.vcpu, reg::X0 + 10).map_err(|e| format!("read X5: {e}"))?;
    ensure!(value == 15, "X5 reads as {value}");
    let settable = [(reg::FPSR, 0x0800_009F), (reg::FPCR, 0x0370_0000)].into_iter();
    let read_only = [reg::MPIDR_EL1, reg::MDSCR_EL1];
    let system = reg::SYSTEM.iter().filter(|id| !read_only.contains(id)).zip(1..).map(|(id, n)| (*id, n % 4));
    for (id, value) in settable.chain(system) {
        set_register(&machine.vcpu, id, value).map_err(|e| format!("{id:#x}: {e}"))?;
        let got = get_register(&machine.vcpu, id).map_err(|e| format!("{id:#x}: {e}"))?;
        ensure!(got == value, "{id:#x} reads as {got:#x}, not {value:#x}");
    }
    for id in read_only {
        let error = errno(&set_register(&machine.vcpu, id, 0));
        ensure!(error == EINVAL, "{id:#x} can be set: errno {error}");
    }
    let mpidr = get_register(&machine.vcpu, reg::MPIDR_EL1).map_err(|e| e.to_string())?;
    ensure!(mpidr == 1 << 31, "MPIDR_EL1 reads as {mpidr:#x}");
    for (id, value) in
        [(reg::PSTATE, 0x3C9), (reg::PSTATE, 1 << 32), (reg::CNTV_CTL_EL0, 4), (reg::X30 + 2 * 15, 0)]
    {
        let error = errno(&set_register(&machine.vcpu, id, value));
        ensure!(error == EINVAL, "{id:#x} can be {value:#x}: errno {error}");
    }
    let halves = [0x1122_3344_5566_7788_u64, 0x99AA_BBCC_DDEE_FF00];
    for id in [reg::V0, reg::V31] {
        let addr = std::ptr::from_ref(&halves).expose_provenance() as u64;
        sys::ioctl_with(&machine.vcpu, ioctl::SET_ONE_REG, &mut OneReg { id, addr })
            .map_err(|e| e.to_string())?;
        let mut got = [0_u64; 2];
        let addr = std::ptr::from_mut(&mut got).expose_provenance() as u64;
        sys::ioctl_with(&machine.vcpu, ioctl::GET_ONE_REG, &mut OneReg { id, addr })
            .map_err(|e| e.to_string())?;
        ensure!(got == halves, "{id:#x} reads as {got:x?}");
    }
    Ok(())
}

pub fn irq_line() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let line =
        |irq, level| errno(&sys::ioctl_with(&machine.vm, ioctl::IRQ_LINE, &mut IrqLevel { irq, level }));
    ensure!(line(4, 1) == 0 && line(4, 0) == 0, "SPI 4");
    let error = line(0xFFFF, 1);
    ensure!(error == EFAULT, "SPI 65535: errno {error}");
    Ok(())
}

pub fn slots() -> Check {
    let vm = vm().map_err(|e| e.to_string())?;
    let memory = Mapping::new(SIZE, true);
    let (at, size) = (memory.address(), 1 << 20);
    let cases = [
        ("slot 64", errno(&region(&vm, 64, RAM, size, at)), EINVAL),
        ("unaligned address", errno(&region(&vm, 0, RAM + 1, size, at)), EINVAL),
        ("unaligned size", errno(&region(&vm, 0, RAM, size + 1, at)), EINVAL),
        ("wrap", errno(&region(&vm, 0, u64::MAX - 0xFFF, 0x2000, at)), EINVAL),
        ("nothing mapped", errno(&region(&vm, 0, RAM, size, 0x1000)), EFAULT),
        ("removal of nothing", errno(&region(&vm, 0, RAM, 0, 0)), EINVAL),
        ("a good one", errno(&region(&vm, 0, RAM, size, at)), 0),
        ("slot in use", errno(&region(&vm, 0, RAM + (4 << 20), size, at)), EEXIST),
        ("overlap", errno(&region(&vm, 1, RAM + size - 4096, size, at)), EEXIST),
        ("neighbour", errno(&region(&vm, 1, RAM + size, size, at + size)), 0),
        ("removal", errno(&region(&vm, 1, RAM + size, 0, 0)), 0),
        ("second removal", errno(&region(&vm, 1, RAM + size, 0, 0)), EINVAL),
        ("the last slot", errno(&region(&vm, 63, RAM + size, size, at + size)), 0),
    ];
    for (what, error, expected) in cases {
        ensure!(error == expected, "{what}: errno {error}, not {expected}");
    }
    Ok(())
}

pub fn other_process() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let refused = sys::in_child(|| {
        let run = errno(&Run::new().run(&machine.vcpu));
        let create = errno(&sys::ioctl(&machine.vm, ioctl::CREATE_VCPU, 1));
        [run, create] == [EIO; 2]
    });
    ensure!(refused, "a forked process can use the VM");
    Ok(())
}
