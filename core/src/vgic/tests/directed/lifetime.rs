// SPDX-License-Identifier: Apache-2.0 OR MIT
//! vCPUs that come, go, are entered and don't exist; reset.

use super::{ICACTIVER, ISACTIVER, ISENABLER, LRS, edge};
use crate::addr::IntId;
use crate::vgic::tests::Vgic;
use crate::vgic::tests::machine::{Machine, v};
use crate::vgic::{CpuInterface, Kicks, MAX_VCPUS, valid_spis};

#[test]
fn an_interrupt_without_a_change_costs_no_flush() {
    let mut m = Machine::ready(1, 4);
    m.enter(0);
    m.exit(0);
    assert!(!m.vgic.needs_flush(v(0)));
    m.set_line(90, 0, true); // not enabled
    assert!(!m.vgic.needs_flush(v(0)));
    m.set_line(40, 0, true);
    assert!(m.vgic.needs_flush(v(0)));
    assert_eq!(m.drain(0), [40]);
    m.exit(0);
    assert!(m.vgic.needs_flush(v(0)), "its list register has to be emptied");
    m.enter(0);
    m.exit(0);
    assert!(!m.vgic.needs_flush(v(0)));
}

#[test]
fn flushed_twice_without_entry() {
    let mut m = Machine::ready(2, 1);
    m.set_line(40, 0, true);
    let mut cpu = m.cpus[0].regs.clone();
    m.vgic.flush(v(0), &mut cpu);
    m.set_line(41, 0, true);
    m.write_priority(1, 41, 0x20);
    m.vgic.flush(v(0), &mut cpu);
    assert_eq!(cpu.lr[0] as u32, 41);
    // A kick that the fold inside finds is not lost.
    m.route(1, 41, 1);
    m.kicked = Kicks::NONE;
    m.vgic.flush(v(0), &mut cpu);
    assert_eq!(cpu.lr[0] as u32, 40);
    assert!(m.vgic.sync(v(0), &cpu).contains(v(1)));
    assert_eq!(m.drain(1), [41]);
    assert_eq!(m.drain(0), [40]);
}

#[test]
fn a_vcpu_that_goes_leaves_nothing_behind() {
    let mut m = Machine::ready(2, 4);
    m.route(0, 40, 1);
    m.route(0, 41, 1);
    m.set_line(40, 0, true);
    assert_eq!(m.acknowledge(1), Some(40));
    m.set_line(41, 0, true);
    m.enter(1);
    m.route(0, 41, 0);
    m.inside[1] = false;
    let kicks = m.vgic.remove_vcpu(v(1)).0;
    assert!(kicks.contains(v(0)), "its SPI goes on");
    assert_eq!(m.drain(0), [41]);
    m.vgic.add_vcpu(v(1), 4, Box::default());
    assert_eq!(m.read_redist(0, 1, 0x1_0000 + ISENABLER, 4), 0);
    assert!(!m.read_bit(0, ISACTIVER, 40));
    assert_eq!(m.vgic.remove_vcpu(v(7)).0, Kicks::NONE);
    assert_eq!(m.vgic.remove_vcpu(v(65535)).0, Kicks::NONE);
}

#[test]
fn reset_is_fresh() {
    let image = |vgic: &mut Vgic| {
        let mut all = Vec::new();
        all.extend((0..0x1_0000u64).step_by(4).map(|o| vgic.dist_read(v(0), o, 4)));
        for n in 0..2 {
            let read = |o| vgic.redist_read(v(0), v(n), o, 4);
            all.extend((0..0x2_0000u64).step_by(4).map(read));
        }
        all
    };
    let mut fresh = Machine::new(2, 4);
    let mut m = Machine::ready(2, 4);
    for id in 32..64 {
        m.set_line(id, 0, true);
        m.route(0, id, u64::from(id & 1));
        edge(&mut m, id);
    }
    m.set_timer(1, true);
    m.acknowledge(0);
    m.sgi1(0, 3);
    (0..2).for_each(|n| m.exit(n));
    assert_ne!(image(&mut m.vgic), image(&mut fresh.vgic));
    m.vgic.reset();
    assert_eq!(image(&mut m.vgic), image(&mut fresh.vgic));
    for n in 0..2 {
        let mut cpu = CpuInterface { vmcr: m.cpus[n].regs.vmcr, ..CpuInterface::default() };
        assert!(!m.vgic.has_deliverable(v(n), cpu.vmcr));
        m.vgic.flush(v(n), &mut cpu);
        assert_eq!(cpu.used, 0);
    }
}

#[test]
fn a_vcpu_that_does_not_exist() {
    let mut vgic = Vgic::new(64, Some(Box::default()));
    for n in [0, 1, 7, 8, 63, 64, 65535] {
        let nobody = v(n);
        let mut cpu = CpuInterface { lr: [u64::MAX; 16], hcr: u32::MAX, ..CpuInterface::default() };
        assert_eq!(vgic.sync(nobody, &cpu), Kicks::NONE);
        vgic.flush(nobody, &mut cpu);
        assert_eq!((cpu.used, cpu.lr), (0, [0; 16]));
        assert!(!vgic.has_deliverable(nobody, u32::MAX));
        assert!(!vgic.needs_flush(nobody));
        assert_eq!(vgic.deactivate(nobody, IntId(27)), Kicks::NONE);
        assert_eq!(vgic.deactivate(nobody, IntId(u32::MAX)), Kicks::NONE);
        vgic.set_hw_ppi(nobody, IntId(27), 27, true);
        vgic.set_hw_ppi(nobody, IntId(u32::MAX), u32::MAX, true);
        assert!(!vgic.hw_ppi_in_flight(nobody, IntId(27)));
        assert_eq!(vgic.redist_read(nobody, nobody, 8, 8), 0);
        assert_eq!(vgic.redist_write(nobody, nobody, 0x1_0200, 4, u64::MAX), Kicks::NONE);
        assert_eq!(vgic.sgi1r_write(nobody, u64::MAX), Kicks::NONE);
        assert_eq!(vgic.set_power(nobody, true), Kicks::NONE);
    }
    vgic.add_vcpu(v(MAX_VCPUS), 4, Box::default());
    vgic.add_vcpu(v(65535), 4, Box::default());
    assert!(!vgic.needs_flush(v(MAX_VCPUS)));
    vgic.add_vcpu(v(0), 0, Box::default());
    vgic.add_vcpu(v(1), 1000, Box::default());
}

#[test]
fn whatever_list_registers_say_when_they_come_back() {
    let mut m = Machine::ready(2, 4);
    (32..64).for_each(|id| m.set_line(id, 0, true));
    for lr in [0, u64::MAX, 1 << 63, 1 << 62, 3 << 62 | 1023] {
        let mut cpu = m.cpus[0].regs.clone();
        m.vgic.flush(v(0), &mut cpu);
        cpu.lr = [lr; 16];
        cpu.hcr = u32::MAX;
        let _ = m.vgic.sync(v(0), &cpu);
        // A second one has nothing to take back.
        assert_eq!(m.vgic.sync(v(0), &cpu), Kicks::NONE);
    }
}

#[test]
fn the_number_of_spis_is_set_before_there_are_vcpus() {
    let typer = |vgic: &mut Vgic| vgic.dist_read(v(0), 4, 4) & 0x1F;
    let mut vgic = Vgic::new(256, None);
    let _ = vgic.dist_write(v(0), 0x104, 4, u64::MAX);
    assert!(vgic.set_line(IntId(32 + 987), None, true).is_err());
    assert!(vgic.set_spis(988, Some(Box::default())).is_ok_and(|former| former.is_none()));
    assert!(vgic.has_more_spis());
    assert_eq!((typer(&mut vgic), vgic.dist_read(v(0), 0x104, 4)), (31, 0), "in reset state");
    assert!(vgic.set_line(IntId(32 + 987), None, true).is_ok());
    assert!(vgic.set_line(IntId(32 + 988), None, true).is_err());
    assert!(vgic.set_spis(64, None).is_ok_and(|former| former.is_some()), "the box comes back");
    assert_eq!((typer(&mut vgic), vgic.has_more_spis()), (2, false));
    vgic.add_vcpu(v(3), 4, Box::default());
    assert!(vgic.set_spis(988, Some(Box::default())).is_err_and(|fixed| fixed.0.is_some()));
    assert_eq!(typer(&mut vgic), 2);
    for (asked, expected) in
        [(0, None), (31, None), (32, Some(32)), (33, None), (960, Some(960)), (988, Some(988)), (992, None)]
    {
        assert_eq!(valid_spis(asked), expected);
    }
    assert_eq!(valid_spis(u64::MAX), None);
    assert_eq!(valid_spis(1 << 32 | 64), None);
}

/// What it had acknowledged stays active, and no later EOI is about it.
#[test]
fn a_vcpu_that_goes_off_in_a_handler() {
    for (nr_lrs, id) in LRS.into_iter().flat_map(|lrs| [(lrs, 20), (lrs, 40)]) {
        let mut m = Machine::ready(2, nr_lrs);
        m.write_priority(0, id, 0x20);
        m.set_line(id, 0, true);
        assert_eq!(m.acknowledge(0), Some(id));
        m.set_power(0, false);
        assert!(m.read_bit(0, ISACTIVER, id));
        m.set_power(0, true);
        (41..61).for_each(|id| m.set_line(id, 0, true));
        assert_eq!(m.drain(0), (41..61).collect::<Vec<_>>());
        assert!(m.read_bit(0, ISACTIVER, id), "{nr_lrs} list registers");
        (41..61).for_each(|id| assert!(!m.read_bit(0, ISACTIVER, id)));
        m.write_bit(0, ICACTIVER, id);
        assert!(!m.read_bit(0, ISACTIVER, id));
    }
}
