// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CREATE_DEVICE (the virtual GIC's frames), VGIC_SPIS, IRQ_LINE and IRQ_LEVEL.

use core::sync::atomic::{AtomicU64, Ordering};

use gzvm_abi::hypercall::{IRQ_LEVEL_RESAMPLE, Tuple};
use gzvm_abi::ioctl::{CreateDevice, DEVICE_VGIC_V3_DIST, DEVICE_VGIC_V3_REDIST};
use gzvm_core::addr::{IntId, Pa, VcpuId};
use gzvm_core::vgic::{self, Kicks};
use zerocopy::{FromZeros, IntoBytes};

use super::{Args, Error, Results, tuple};
use crate::guest::registry;
use crate::guest::vm::IPA_BITS;
use crate::mem::host;
use crate::platform;

/// The frames' alignment.
const FRAME: u64 = 0x1_0000;
/// `irq` argument of IRQ_LINE: number, type.
const IRQ_NUMBER: u64 = 0xFFFF;
const IRQ_TYPE_SHIFT: u32 = 24;
const IRQ_TYPE_PPI: u64 = 2;

/// CREATE_DEVICE: x1 = VM, x2 = PA of a page with the description.
pub fn create([id, pa, ..]: Args) -> Result<Results, Error> {
    let mut device = CreateDevice::new_zeroed();
    host::read(&platform::ownership().lock(), Pa(pa), device.as_mut_bytes()).map_err(|_| Error::Fault)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let frame = match device.dev_type {
        DEVICE_VGIC_V3_DIST => &vm.gicd,
        DEVICE_VGIC_V3_REDIST => &vm.gicr,
        _ => return Err(Error::NotSupported),
    };
    set_frame(frame, device.dev_addr)?;
    Ok([0; 3])
}

/// Each frame is given once.
fn set_frame(frame: &AtomicU64, address: u64) -> Result<(), Error> {
    if !address.is_multiple_of(FRAME) || address >> IPA_BITS != 0 {
        return Err(Error::Invalid);
    }
    frame
        .compare_exchange(u64::MAX, address, Ordering::SeqCst, Ordering::SeqCst)
        .map(|_| ())
        .map_err(|_| Error::Invalid)
}

/// VGIC_SPIS: x1 = VM, x2 = SPIs. Invalid where there is a vCPU already. Result x1 = SPIs.
pub fn set_spis([id, spis, ..]: Args) -> Result<Results, Error> {
    let count = vgic::valid_spis(spis).ok_or(Error::Invalid)?;
    let vm = registry::get(id)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    if !vm.life.state().can_grow() {
        return Err(Error::Invalid);
    }
    vm.set_spis(count)?;
    Ok([spis, 0, 0])
}

/// IRQ_LINE: x1 = tuple, x2 = irq, x3 = level. SPIs by index (INTID - 32); PPIs by INTID with type 2.
/// May come from atomic context on any CPU: it never waits for a vCPU. Result x1 = the vCPUs that sleep and have
/// to be woken (bit n: vCPU n), for drivers that know of it.
pub fn irq_line([x1, irq, level, ..]: Args) -> Result<Results, Error> {
    let (vm, _) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let (intid, target, level) = line(x1, irq, level)?;
    let kicks = vm.vgic.lock().set_line(intid, target, level).map_err(|_| Error::Invalid)?;
    Ok([vm.kick(kicks), 0, 0])
}

/// IRQ_LEVEL: as IRQ_LINE, but drives the line until the next call; x4 = [`IRQ_LEVEL_RESAMPLE`] or 0.
pub fn irq_level([x1, irq, level, flags, ..]: Args) -> Result<Results, Error> {
    if flags & !IRQ_LEVEL_RESAMPLE != 0 {
        return Err(Error::Invalid);
    }
    let (vm, _) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let (intid, target, level) = line(x1, irq, level)?;
    let mut vgic = vm.vgic.lock();
    let mut kicks = match target {
        // Only SPIs have devices outside EL2 behind them.
        Some(_) if flags != 0 => return Err(Error::Invalid),
        Some(_) => Kicks::NONE,
        None => vgic.set_resample(intid, flags != 0).map_err(|_| Error::Invalid)?,
    };
    kicks |= vgic.set_level(intid, target, level).map_err(|_| Error::Invalid)?;
    drop(vgic);
    Ok([vm.kick(kicks), 0, 0])
}

/// The line and level that a call names: for a PPI with its vCPU.
fn line(x1: u64, irq: u64, level: u64) -> Result<(IntId, Option<VcpuId>, bool), Error> {
    if level > 1 || irq >> 32 != 0 {
        return Err(Error::Invalid);
    }
    let number = (irq & IRQ_NUMBER) as u32;
    if irq >> IRQ_TYPE_SHIFT & 0xF != IRQ_TYPE_PPI {
        return Ok((IntId(number.saturating_add(32)), None, level == 1));
    }
    let vcpu = Tuple::from_reg(x1).ok_or(Error::Invalid)?.vcpu;
    if (16..32).contains(&number) {
        Ok((IntId(number), Some(VcpuId(vcpu)), level == 1))
    } else {
        Err(Error::Invalid)
    }
}
