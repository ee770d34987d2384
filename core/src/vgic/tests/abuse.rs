// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Any call with any argument: nothing panics, and the invariants hold.

use super::Vgic;
use super::{invariants, random};
use crate::addr::{IntId, VcpuId};
use crate::vgic::CpuInterface;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Call {
    Dist { from: u16, offset: u64, size: u8, value: Option<u64> },
    Redist { from: u16, target: u16, offset: u64, size: u8, value: Option<u64> },
    Sgi { from: u16, kind: u8, value: u64 },
    Line { intid: u32, target: Option<u16>, level: bool, driven: bool },
    Resample { intid: u32, on: Option<bool> },
    Timer { v: u16, intid: u32, pintid: u32, level: bool },
    Flush { v: u16, vmcr: u32 },
    Sync { v: u16, hcr: u32, vmcr: u32, lr: Vec<u64> },
    Deactivate { v: u16, intid: u32 },
    Ask { v: u16, vmcr: u32 },
    Power { v: u16, on: bool },
    Add { v: u16, nr_lrs: usize },
    Remove { v: u16 },
    Reset,
}

fn vcpu() -> impl Strategy<Value = u16> {
    prop_oneof![20 => 0..4u16, 2 => 60..66u16, 1 => any::<u16>()]
}

fn intid() -> impl Strategy<Value = u32> {
    prop_oneof![20 => 0..100u32, 1 => any::<u32>()]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), (0..64u32).prop_map(|n| 1 << n), Just(0), Just(u64::MAX)]
}

/// Mostly registers that exist.
fn offset(frame: u64) -> impl Strategy<Value = u64> {
    prop_oneof![
        10 => (0x20..0x400u64).prop_map(move |n| frame + n * 4),
        2 => (0x1804..0x1900u64).prop_map(move |n| frame + n * 4),
        2 => (0..8u64).prop_map(|n| n * 4),
        2 => 0..0x2_0000u64,
        1 => any::<u64>(),
    ]
}

fn size() -> impl Strategy<Value = u8> {
    prop_oneof![10 => Just(4u8), 2 => Just(1), 2 => Just(8), 1 => any::<u8>()]
}

fn call() -> impl Strategy<Value = Call> {
    let write = || prop::option::weighted(0.9, value());
    prop_oneof![
        8 => (vcpu(), offset(0), size(), write())
            .prop_map(|(from, offset, size, value)| Call::Dist { from, offset, size, value }),
        8 => (vcpu(), vcpu(), offset(0x1_0000), size(), write())
            .prop_map(|(from, target, offset, size, value)| Call::Redist { from, target, offset, size, value }),
        3 => (vcpu(), 0..3u8, value()).prop_map(|(from, kind, value)| Call::Sgi { from, kind, value }),
        6 => (intid(), prop::option::of(vcpu()), any::<bool>(), any::<bool>())
            .prop_map(|(intid, target, level, driven)| Call::Line { intid, target, level, driven }),
        2 => (intid(), any::<Option<bool>>()).prop_map(|(intid, on)| Call::Resample { intid, on }),
        3 => (vcpu(), intid(), any::<u32>(), any::<bool>())
            .prop_map(|(v, intid, pintid, level)| Call::Timer { v, intid, pintid, level }),
        8 => (vcpu(), any::<u32>()).prop_map(|(v, vmcr)| Call::Flush { v, vmcr }),
        6 => (vcpu(), any::<u32>(), any::<u32>(), prop::collection::vec(value(), 16))
            .prop_map(|(v, hcr, vmcr, lr)| Call::Sync { v, hcr, vmcr, lr }),
        3 => (vcpu(), intid()).prop_map(|(v, intid)| Call::Deactivate { v, intid }),
        1 => (vcpu(), any::<u32>()).prop_map(|(v, vmcr)| Call::Ask { v, vmcr }),
        1 => (vcpu(), any::<bool>()).prop_map(|(v, on)| Call::Power { v, on }),
        2 => (vcpu(), 0..20usize).prop_map(|(v, nr_lrs)| Call::Add { v, nr_lrs }),
        1 => vcpu().prop_map(|v| Call::Remove { v }),
        1 => Just(Call::Reset),
    ]
}

fn apply(g: &mut Vgic, cpus: &mut [CpuInterface], call: &Call) {
    let _ = match *call {
        Call::Dist { from, offset, size, value: Some(value) } => {
            let _ = g.held_elsewhere(offset, size);
            g.dist_write(VcpuId(from), offset, size, value)
        }
        Call::Dist { from, offset, size, value: None } => {
            g.dist_read(VcpuId(from), offset, size);
            return;
        }
        Call::Redist { from, target, offset, size, value: Some(value) } => {
            let _ = g.held_elsewhere_redist(VcpuId(target), offset, size);
            g.redist_write(VcpuId(from), VcpuId(target), offset, size, value)
        }
        Call::Redist { from, target, offset, size, value: None } => {
            g.redist_read(VcpuId(from), VcpuId(target), offset, size);
            return;
        }
        Call::Sgi { from, kind: 0, value } => g.sgi1r_write(VcpuId(from), value),
        Call::Sgi { from, kind: 1, value } => g.sgi0r_write(VcpuId(from), value),
        Call::Sgi { from, value, .. } => g.asgi1r_write(VcpuId(from), value),
        Call::Line { intid, target, level, driven: false } => {
            g.set_line(IntId(intid), target.map(VcpuId), level).unwrap_or_default()
        }
        Call::Line { intid, target, level, driven: true } => {
            g.set_level(IntId(intid), target.map(VcpuId), level).unwrap_or_default()
        }
        Call::Resample { intid, on: Some(on) } => g.set_resample(IntId(intid), on).unwrap_or_default(),
        Call::Resample { on: None, .. } => {
            let _ = g.take_resampled();
            return;
        }
        Call::Timer { v, intid, pintid, level } => {
            g.set_hw_ppi(VcpuId(v), IntId(intid), pintid, level);
            let _ = g.hw_ppi_in_flight(VcpuId(v), IntId(intid));
            return;
        }
        Call::Flush { v, vmcr } => {
            let cpu = &mut cpus[usize::from(v) % 4];
            cpu.vmcr = vmcr;
            g.flush(VcpuId(v), cpu);
            return;
        }
        Call::Sync { v, hcr, vmcr, ref lr } => {
            let mut cpu = CpuInterface { hcr, vmcr, ..CpuInterface::default() };
            cpu.lr.copy_from_slice(lr);
            g.sync(VcpuId(v), &cpu)
        }
        Call::Deactivate { v, intid } => g.deactivate(VcpuId(v), IntId(intid)),
        Call::Ask { v, vmcr } => {
            let _ = g.has_deliverable(VcpuId(v), vmcr) | g.needs_flush(VcpuId(v));
            return;
        }
        Call::Power { v, on } => g.set_power(VcpuId(v), on),
        Call::Add { v, nr_lrs } => {
            g.add_vcpu(VcpuId(v), nr_lrs, Box::default());
            return;
        }
        Call::Remove { v } => g.remove_vcpu(VcpuId(v)).0,
        Call::Reset => {
            g.reset();
            return;
        }
    };
}

#[test]
fn any_call_with_any_argument() {
    let spis = prop::sample::select(&[32usize, 64, 988][..]);
    let strategy = (spis, prop::collection::vec(call(), 1..300));
    random::check(random::seed("any_call_with_any_argument"), 100, &strategy, |(spis, calls)| {
        let mut vgic = Box::new(Vgic::new(spis, Some(Box::default())));
        let mut cpus = vec![CpuInterface::default(); 4];
        (0..3).for_each(|n| drop(vgic.add_vcpu(VcpuId(n), 4, Box::default())));
        let _ = vgic.dist_write(VcpuId(0), 0, 4, 3);
        let _ = vgic.dist_write(VcpuId(0), 0x104, 4, u64::MAX);
        for call in &calls {
            apply(&mut vgic, &mut cpus, call);
            invariants::check(&vgic);
        }
    });
}
