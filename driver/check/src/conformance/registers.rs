// SPDX-License-Identifier: GPL-2.0-only
//! SET_ONE_REG and GET_ONE_REG: identifiers of ABI 3.4.

use std::os::fd::OwnedFd;

use libc::{EFAULT, EINVAL};

use super::{Args, descriptor, gives, needs_memory, nr, programs};
use crate::machine::{BUSY, DEVICE, Machine, Run};
use crate::sys::{self, errno};
use crate::{Check, ensure};

const X0: u64 = 0x6030_0000_0010_0000;

/// id @0, address of the value @8.
fn access<T>(vcpu: &OwnedFd, number: u32, id: u64, value: &mut T) -> i32 {
    let address = std::ptr::from_mut(value).expose_provenance() as u64;
    Args::<2>::new().q(0, id).q(8, address).call(vcpu, number)
}

fn set(vcpu: &OwnedFd, id: u64, mut value: u64) -> i32 {
    access(vcpu, nr::SET_ONE_REG, id, &mut value)
}

fn get(vcpu: &OwnedFd, id: u64) -> (i32, u64) {
    let mut value = 0x5555_5555_5555_5555;
    let error = access(vcpu, nr::GET_ONE_REG, id, &mut value);
    (error, value)
}

/// Differs: the public driver says EOPNOTSUPP, ours gives the value of a plain VM's register.
pub fn get_one_reg() -> Check {
    let machine = Machine::new(BUSY, &[(5, 0x1234_5678_9ABC_DEF0)])?;
    needs_memory(&machine.vcpu, nr::GET_ONE_REG)?;
    let answer = get(&machine.vcpu, X0 + 10);
    ensure!(answer == (0, 0x1234_5678_9ABC_DEF0), "X5: {answer:x?}");
    for id in [0, X0 + 1, 0x6040_0000_0010_0000, u64::MAX] {
        let answer = get(&machine.vcpu, id);
        ensure!(answer == (EINVAL, 0x5555_5555_5555_5555), "{id:#x}: {answer:x?}");
    }
    gives(Args::<2>::new().q(0, X0).q(8, 165).call(&machine.vcpu, nr::GET_ONE_REG), EFAULT, "value nowhere")
}

/// Errors by identifier and pointers; every vCPU may be set.
pub fn set_one_reg() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    needs_memory(&machine.vcpu, nr::SET_ONE_REG)?;
    gives(Args::<2>::new().q(0, X0).q(8, 165).call(&machine.vcpu, nr::SET_ONE_REG), EFAULT, "value nowhere")?;
    let second = descriptor(&machine.vm, nr::CREATE_VCPU, 1).map_err(|e| e.to_string())?;
    gives(set(&second, 0x6030_0000_0010_0042, 0x3C5), 0, "PSTATE of vCPU 1, as crosvm")?;
    for id in [0, X0 + 1, X0 + 0x3F, X0 + 0x41, 1 << 63 | X0, 0x6030_0000_0014_0000, 0x6030_0000_0013_C000] {
        gives(set(&machine.vcpu, id, 0), EINVAL, format_args!("identifier {id:#x}"))?;
    }
    for pstate in [0x3C9, 0x3CD, 0x1D3, 1 << 40] {
        let error = set(&machine.vcpu, 0x6030_0000_0010_0042, pstate);
        gives(error, EINVAL, format_args!("PSTATE {pstate:#x}"))?;
    }
    Ok(())
}

/// Each on its own, all 64 bits.
pub fn x0_to_x30() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let value = |n: u64| (n + 1) << 56 | 0xFF_0000_0000 | n;
    for n in 0..31 {
        gives(set(&machine.vcpu, X0 + 2 * n, value(n)), 0, format_args!("X{n}"))?;
    }
    for n in 0..31 {
        let answer = get(&machine.vcpu, X0 + 2 * n);
        ensure!(answer == (0, value(n)), "X{n}: {answer:x?}");
    }
    Ok(())
}

/// SP_EL0, PC, PSTATE, SP_EL1, ELR_EL1, SPSR_EL1.
pub fn others() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let all =
        [(0x3E, 1 << 40), (0x40, 0x8000_1000), (0x42, 0x3C4), (0x44, 1 << 41), (0x46, 1 << 42), (0x48, 5)];
    for (index, value) in all {
        gives(set(&machine.vcpu, X0 + index, value), 0, format_args!("register {index:#x}"))?;
    }
    for (index, value) in all {
        let answer = get(&machine.vcpu, X0 + index);
        ensure!(answer == (0, value), "register {index:#x}: {answer:x?}");
    }
    Ok(())
}

/// The driver reads as many bytes as the identifier says: up to 8, and EINVAL for more. Differs: 16 for vectors.
pub fn sizes() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let id = |size: u64| 0x6000_0000_0010_0000 | size << 52;
    let from_nowhere = |id: u64| Args::<2>::new().q(0, id).q(8, 165).call(&machine.vcpu, nr::SET_ONE_REG);
    for size in 5..16 {
        let mut value = [0_u64; 4];
        for number in [nr::SET_ONE_REG, nr::GET_ONE_REG] {
            let error = access(&machine.vcpu, number, id(size), &mut value);
            gives(error, EINVAL, format_args!("{number:#x} of 2^{size} bytes"))?;
        }
        // Not even looked at.
        gives(from_nowhere(id(size)), EINVAL, format_args!("2^{size} bytes from nowhere"))?;
    }
    for size in 0..5 {
        gives(from_nowhere(id(size)), EFAULT, format_args!("2^{size} bytes from nowhere"))?;
        // X0 has 8.
        let mut value = [0_u64; 2];
        let error = access(&machine.vcpu, nr::SET_ONE_REG, id(size), &mut value);
        gives(error, if size == 3 { 0 } else { EINVAL }, format_args!("X0 of 2^{size} bytes"))?;
    }
    Ok(())
}

/// V0..V31 of 128 bits, FPSR and FPCR of 32: nothing is written behind them. Differs: the public driver has none.
pub fn vectors() -> Check {
    let machine = Machine::new(BUSY, &[])?;
    let value = |n: u64| [n << 8 | 1, 1 << 63 | n];
    for n in 0..32 {
        let id = 0x6040_0000_0010_0054 + 4 * n;
        gives(access(&machine.vcpu, nr::SET_ONE_REG, id, &mut value(n)), 0, format_args!("V{n}"))?;
    }
    for n in 0..32 {
        let mut got = [0, 0, 0x5555];
        let id = 0x6040_0000_0010_0054 + 4 * n;
        gives(access(&machine.vcpu, nr::GET_ONE_REG, id, &mut got), 0, format_args!("V{n}"))?;
        ensure!(got[..2] == value(n) && got[2] == 0x5555, "V{n}: {got:x?}");
    }
    for (id, value) in [(0x6020_0000_0010_00D4, 0x0800_0001_u32), (0x6020_0000_0010_00D5, 0x0300_0000)] {
        let mut set = [value, 0xFFFF_FFFF];
        gives(access(&machine.vcpu, nr::SET_ONE_REG, id, &mut set), 0, format_args!("{id:#x}"))?;
        let mut got = [0, 0x5555_5555];
        gives(access(&machine.vcpu, nr::GET_ONE_REG, id, &mut got), 0, format_args!("{id:#x}"))?;
        ensure!(got == [value, 0x5555_5555], "{id:#x}: {got:x?}");
    }
    Ok(())
}

/// X0, X1, X2, PC, PSTATE in this order; the guest has them when it starts.
pub fn start_of_crosvm() -> Check {
    let machine = Machine::new(programs::ACCESS, &[(19, DEVICE)])?;
    for (index, value) in
        [(0, 0x8020_0000), (2, 7), (4, 0xFEDC_BA98_7654_3210), (0x40, 0x8000_0000), (0x42, 0x3C5)]
    {
        gives(set(&machine.vcpu, X0 + index, value), 0, format_args!("register {index:#x}"))?;
    }
    let mut run = Run::new();
    for (size, value) in [(1, 0x10), (2, 0x3210), (4, 0x7654_3210), (8, 0xFEDC_BA98_7654_3210)] {
        let write = run.mmio(&machine.vcpu)?;
        let data = u64::from_le_bytes(write.data);
        ensure!(write.size == size && data == value, "{size} bytes of x2: {data:#x}");
    }
    let after = (get(&machine.vcpu, X0), get(&machine.vcpu, X0 + 2));
    ensure!(after == ((0, 0x8020_0000), (0, 7)), "X0 and X1 while it runs: {after:x?}");
    gives(errno(&sys::ioctl(&machine.vcpu, nr::RUN, 165)), EFAULT, "RUN nowhere")
}
