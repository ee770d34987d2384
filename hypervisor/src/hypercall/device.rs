// SPDX-License-Identifier: Apache-2.0 OR MIT
//! CREATE_DEVICE (the virtual GIC's frames) and IRQ_LINE.

use core::sync::atomic::{AtomicU64, Ordering};

use gzvm_abi::ioctl::{CreateDevice, DEVICE_VGIC_V3_DIST, DEVICE_VGIC_V3_REDIST};
use gzvm_core::addr::{IntId, Pa, VcpuId};
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

/// IRQ_LINE: x1 = tuple, x2 = irq, x3 = level. SPIs by index (INTID - 32); PPIs by INTID with type 2.
/// May come from atomic context on any CPU: it never waits for a vCPU. Result x1 = the vCPUs that sleep and have
/// to be woken (bit n: vCPU n), for drivers that know of it.
pub fn irq_line([x1, irq, level, ..]: Args) -> Result<Results, Error> {
    if level > 1 || irq >> 32 != 0 {
        return Err(Error::Invalid);
    }
    let (vm, vcpu) = tuple(x1)?;
    let vm = vm.vm().ok_or(Error::Invalid)?;
    let number = (irq & IRQ_NUMBER) as u32;
    let (intid, target) = if irq >> IRQ_TYPE_SHIFT & 0xF == IRQ_TYPE_PPI {
        if !(16..32).contains(&number) {
            return Err(Error::Invalid);
        }
        (IntId(number), Some(VcpuId(vcpu)))
    } else {
        (IntId(number.saturating_add(32)), None)
    };
    let kicks = vm.vgic.lock().set_line(intid, target, level == 1).map_err(|_| Error::Invalid)?;
    Ok([vm.kick(kicks), 0, 0])
}
