// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The invariants that the modules' texts state, looked at from inside.

use super::Vgic;
use crate::addr::VcpuId;
use crate::vgic::FIRST_SPI;
use crate::vgic::irq::{Flags, Irq};

const WHILE_IN_LR: Flags = Flags::LR_LATCH
    .union(Flags::LR_PULSE)
    .union(Flags::DROP_PENDING)
    .union(Flags::DROP_ACTIVE)
    .union(Flags::SET_ACTIVE);

/// Panics where one does not hold.
pub fn check(vgic: &Vgic) {
    let present: Vec<_> = (0..64).map(VcpuId).filter(|&v| vgic.present(v).is_some()).collect();
    assert_eq!(vgic.present.iter().collect::<Vec<_>>(), present);
    let ended: u32 = vgic.ended.iter().map(|word| word.count_ones()).sum();
    assert_eq!(ended, u32::from(vgic.due));
    assert!(vgic.ended.iter().zip(&vgic.resample).all(|(ended, marks)| ended & !marks == 0));
    let mut loaded = Vec::new();
    for v in vgic.present.iter() {
        let vcpu = vgic.present(v).unwrap();
        let used = if vcpu.inside { usize::from(vcpu.used) } else { 0 };
        loaded.extend(vcpu.slots[..used].iter().map(|slot| (v, u32::from(slot.intid))));
    }
    for v in vgic.present.iter() {
        for intid in 0..FIRST_SPI {
            check_one(vgic, v, intid, &loaded);
        }
    }
    for intid in FIRST_SPI..vgic.end() {
        check_one(vgic, VcpuId(0), intid, &loaded);
    }
}

fn check_one(vgic: &Vgic, v: VcpuId, intid: u32, loaded: &[(VcpuId, u32)]) {
    let irq: &Irq = vgic.irq(v, intid).expect("exists");
    let busy = match intid.checked_sub(FIRST_SPI) {
        None => vgic.present(v).unwrap().busy >> intid & 1 == 1,
        Some(spi) => vgic.spi_busy[spi as usize / 64] >> (spi % 64) & 1 == 1,
    };
    assert_eq!(busy, irq.busy(), "busy bit of {intid}");
    assert!(irq.in_lr() || !irq.has_any(WHILE_IN_LR), "{intid} remembers a list register");
    assert!(irq.latched() || !irq.has(Flags::PULSE), "{intid} pulse without latch");
    assert!(irq.active() || irq.in_lr() || irq.holder().is_none(), "{intid} held without cause");
    assert_eq!(irq.priority & 7, 0);
    let is_this = |&&(owner, id): &&(VcpuId, u32)| id == intid && (id >= FIRST_SPI || owner == v);
    let mut owners = loaded.iter().filter(is_this);
    if irq.in_lr() {
        let owner = owners.next().map(|&(owner, _)| owner);
        assert!(owner.is_some() && owner == irq.holder(), "{intid} is in no list register");
    }
    assert!(owners.next().is_none(), "{intid} is in a list register and doesn't know");
}
