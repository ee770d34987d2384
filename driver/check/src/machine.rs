// SPDX-License-Identifier: GPL-2.0-only
//! VMs with a guest of a few instructions.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use gzvm_abi::hypercall::cap;
use gzvm_abi::ioctl::{self, CreateDevice, EnableCap, OneReg, UserspaceMemoryRegion, VgicSpis};
use gzvm_abi::reg;
use gzvm_abi::run::{Exception, Mmio, VcpuRun, exit};
use zerocopy::FromZeros;

use crate::sys::{self, Mapping};

/// Guest address of RAM and of the first instruction.
pub const RAM: u64 = 0x8000_0000;
/// Bytes of RAM.
pub const SIZE: usize = 8 << 20;
/// A guest address with nothing behind it.
pub const DEVICE: u64 = 0x1000_0000;

/// `1: wfi; b 1b`
pub const IDLE: &[u32] = &[0xD503_207F, 0x17FF_FFFF];
/// `1: b 1b`
pub const BUSY: &[u32] = &[0x1400_0000];
/// `1: str w1, [x0]; b 1b`
pub const STORE: &[u32] = &[0xB900_0001, 0x17FF_FFFF];
/// `1: ldr w1, [x0]; str w1, [x2]; b 1b`
pub const ECHO: &[u32] = &[0xB940_0001, 0xB900_0041, 0x17FF_FFFE];
/// `1: ldr x1, [x0]; b 1b`
pub const POLL: &[u32] = &[0xF940_0001, 0x17FF_FFFF];
/// `1: ldr x1, [x0]; add x0, x0, x2; b 1b`
pub const WALK: &[u32] = &[0xF940_0001, 0x8B02_0000, 0x17FF_FFFE];

/// Enables SPI 5 (level-triggered, as reset leaves it), then for ever: acknowledges it, stores its INTID at x0, ends it.
pub const TAKES_SPI: &[u32] = &takes([0x5280_040B, 0xB901_054B], 37); // ISENABLER1 = SPI 5

/// As [`TAKES_SPI`], of the highest there can be: INTID 1019.
pub const TAKES_LAST_SPI: &[u32] = &takes([0x52A1_000B, 0xB901_7D4B], 1019); // ISENABLER31 = 1 << 27

#[rustfmt::skip]
const fn takes(enable: [u32; 2], intid: u32) -> [u32; 24] {
    [
        0xD2A7_FFEA, // mov x10, #0x3FFF0000: GICD
        0x5280_024B, 0xB900_014B, // CTLR = ARE, group 1
        0x1280_000B, 0xB900_854B, // IGROUPR1 = all
        enable[0], enable[1],
        0xD2A7_FF6C, 0xB900_159F, // mov x12, #0x3FFB0000: GICR; WAKER = 0
        0xD280_002B, 0xD518_CCAB, 0xD503_3FDF, // ICC_SRE_EL1 = 1
        0xD280_1FEB, 0xD518_460B, // ICC_PMR_EL1 = 0xFF
        0xD280_002B, 0xD518_CCEB, 0xD503_3FDF, // ICC_IGRPEN1_EL1 = 1
        0xD538_CC04, // 1: mrs x4, icc_iar1_el1
        0x7100_009F | intid << 10, 0x54FF_FFC1, // cmp w4, #intid; b.ne 1b
        0xB900_0004, // str w4, [x0]
        0xD518_CC24, 0xD503_3FDF, // msr icc_eoir1_el1, x4; isb
        0x17FF_FFFA, // b 1b
    ]
}

/// A VM with RAM, a GIC and a vCPU.
pub struct Machine {
    pub vcpu: OwnedFd,
    pub vm: OwnedFd,
    pub ram: Mapping,
}

/// A VM and nothing else.
pub fn vm() -> io::Result<OwnedFd> {
    Ok(sys::owned(sys::ioctl(&sys::device()?, ioctl::CREATE_VM, 0)?))
}

/// Registers memory.
pub fn region(vm: &OwnedFd, slot: u32, gpa: u64, size: u64, address: u64) -> io::Result<i32> {
    let mut region = UserspaceMemoryRegion {
        slot,
        flags: 1,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: address,
    };
    sys::ioctl_with(vm, ioctl::SET_USER_MEMORY_REGION, &mut region)
}

/// Gives a VM its GIC.
pub fn gic(vm: &OwnedFd) -> io::Result<()> {
    gic_of(vm, 2)
}

/// Gives a VM its GIC, with room for so many vCPUs.
pub fn gic_of(vm: &OwnedFd, vcpus: u64) -> io::Result<()> {
    let frames = [
        (ioctl::DEVICE_VGIC_V3_DIST, 0x3FFF_0000, 0x1_0000),
        (ioctl::DEVICE_VGIC_V3_REDIST, 0x3FFF_0000 - 0x2_0000 * vcpus, 0x2_0000),
    ];
    for (dev_type, dev_addr, dev_reg_size) in frames {
        let mut device =
            CreateDevice { dev_type, id: 0, flags: 0, dev_addr, dev_reg_size, attr_addr: 0, attr_size: 0 };
        sys::ioctl_with(vm, ioctl::CREATE_DEVICE, &mut device)?;
    }
    Ok(())
}

impl Machine {
    /// A machine whose vCPU runs `code`, with these registers.
    pub fn new(code: &[u32], registers: &[(u8, u64)]) -> Result<Self, String> {
        Self::with_ram(Mapping::new(SIZE, true), code, registers)
    }

    /// A machine with this memory.
    pub fn with_ram(ram: Mapping, code: &[u32], registers: &[(u8, u64)]) -> Result<Self, String> {
        Self::make(ram, code, registers, |_| Ok(()))
    }

    /// A machine with so many SPIs.
    pub fn with_spis(code: &[u32], registers: &[(u8, u64)], spis: u32) -> Result<Self, String> {
        Self::make(Mapping::new(SIZE, true), code, registers, |vm| {
            sys::ioctl_with(vm, ioctl::VGIC_SPIS, &mut VgicSpis { spis, reserved: [0; 3] }).map(drop)
        })
    }

    /// A protected machine with this memory.
    pub fn protected(ram: Mapping, code: &[u32], registers: &[(u8, u64)]) -> Result<Self, String> {
        Self::make(ram, code, registers, |vm| {
            let args = [cap::protected::SET_PROTECTED_VM, 0, 0, 0, 0];
            sys::ioctl_with(vm, ioctl::ENABLE_CAP, &mut EnableCap { cap: cap::PROTECTED_VM, args }).map(drop)
        })
    }

    /// `prepare` sees the VM before there is a vCPU.
    fn make(
        ram: Mapping,
        code: &[u32],
        registers: &[(u8, u64)],
        prepare: impl Fn(&OwnedFd) -> io::Result<()>,
    ) -> Result<Self, String> {
        let make = || {
            for (n, word) in code.iter().enumerate() {
                ram.put(4 * n, *word);
            }
            let vm = vm()?;
            region(&vm, 0, RAM, SIZE as u64, ram.address())?;
            gic(&vm)?;
            prepare(&vm)?;
            let vcpu = sys::owned(sys::ioctl(&vm, ioctl::CREATE_VCPU, 0)?);
            set_register(&vcpu, reg::PC, RAM)?;
            for (n, value) in registers {
                set_register(&vcpu, reg::x(*n).unwrap_or(reg::X0), *value)?;
            }
            Ok((vm, vcpu))
        };
        let (vm, vcpu) = make().map_err(|e: io::Error| format!("can't make a machine: {e}"))?;
        Ok(Self { vcpu, vm, ram })
    }
}

/// Sets a register of 64 bits.
pub fn set_register(vcpu: &OwnedFd, id: u64, value: u64) -> io::Result<i32> {
    let address = std::ptr::from_ref(&value).expose_provenance() as u64;
    sys::ioctl_with(vcpu, ioctl::SET_ONE_REG, &mut OneReg { id, addr: address })
}

/// Reads a register of up to 64 bits.
pub fn get_register(vcpu: &OwnedFd, id: u64) -> io::Result<u64> {
    let mut value = 0_u64;
    let address = std::ptr::from_mut(&mut value).expose_provenance() as u64;
    sys::ioctl_with(vcpu, ioctl::GET_ONE_REG, &mut OneReg { id, addr: address })?;
    Ok(value)
}

/// The run structure of one vCPU.
pub struct Run(pub VcpuRun);

impl Run {
    /// All zero.
    pub fn new() -> Self {
        Self(VcpuRun::new_zeroed())
    }

    /// RUN.
    pub fn run(&mut self, vcpu: &OwnedFd) -> io::Result<i32> {
        sys::ioctl_with(vcpu, ioctl::RUN, &mut self.0)
    }

    /// RUN that has to end with MMIO.
    pub fn mmio(&mut self, vcpu: &OwnedFd) -> Result<Mmio, String> {
        self.run(vcpu).map_err(|e| format!("RUN: {e}"))?;
        if self.0.exit_reason == exit::MMIO {
            Ok(Mmio::read(&self.0))
        } else {
            Err(format!("exit {:#x} instead of MMIO: {:?}", self.0.exit_reason, Exception::read(&self.0)))
        }
    }

    /// RUN that has to end with an exception: its address.
    pub fn exception(&mut self, vcpu: &OwnedFd) -> Result<u64, String> {
        self.run(vcpu).map_err(|e| format!("RUN: {e}"))?;
        if self.0.exit_reason == exit::EXCEPTION {
            Ok(Exception::read(&self.0).fault_gpa)
        } else {
            Err(format!("exit {:#x} instead of an exception", self.0.exit_reason))
        }
    }
}

/// The device, for ioctls of its own.
pub fn device() -> Result<File, String> {
    sys::device().map_err(|e| format!("/dev/gzvm: {e}"))
}
