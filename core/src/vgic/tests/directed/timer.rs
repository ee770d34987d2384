// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The timer, a physical PPI.

use super::{ICENABLER, ISENABLER, ISPENDR, LRS};
use crate::addr::IntId;
use crate::vgic::Kicks;
use crate::vgic::tests::Vgic;
use crate::vgic::tests::cpu::Cpu;
use crate::vgic::tests::machine::{Machine, TIMER, v};

#[test]
fn the_timer_while_nothing_else_happens() {
    for nr_lrs in LRS {
        for split_eoi in [false, true] {
            let mut m = Machine::ready(1, nr_lrs);
            m.cpus[0].set_split_eoi(split_eoi);
            for _ in 0..3 {
                m.exit(0);
                m.timer[0] = true;
                m.vgic.set_hw_ppi(v(0), IntId(TIMER), TIMER, true);
                assert!(m.vgic.has_deliverable(v(0), m.cpus[0].regs.vmcr), "wakes from WFI");
                assert!(m.vgic.needs_flush(v(0)));
                assert_eq!(m.acknowledge(0), Some(TIMER));
                assert!(m.timer_active[0], "does not interrupt again");
                m.timer[0] = false; // the handler sets the next deadline
                let exits = m.exits;
                m.end(0, TIMER);
                if split_eoi {
                    m.dir(0, TIMER);
                }
                assert_eq!(m.exits, exits, "the hardware deactivates");
                m.exit(0);
                m.enter(0);
                assert!(!m.timer_active[0]);
                assert_eq!(m.acknowledge(0), None);
            }
            // Not dealt with by the handler: it comes again.
            m.set_timer(0, true);
            assert_eq!(m.take(0), Some(TIMER));
            let exits = m.exits;
            assert_eq!(m.take(0), Some(TIMER));
            assert_eq!(m.exits, exits + 1, "one exit a time");
        }
    }
}

#[test]
fn the_timer_is_known_only_from_its_interrupt() {
    // An EL2 that reports the level just when the physical interrupt fires.
    let mut vgic = Vgic::new(32, Some(Box::default()));
    vgic.add_vcpu(v(0), 4, Box::default());
    let _ = vgic.dist_write(v(0), 0, 4, 3);
    let _ = vgic.redist_write(v(0), v(0), 0x1_0100, 4, 1 << TIMER);
    let mut cpu = Cpu::new(4);
    vgic.set_hw_ppi(v(0), IntId(TIMER), 30, true);
    vgic.flush(v(0), &mut cpu.regs);
    assert_eq!(cpu.regs.lr[0] >> 32 & 0x1FFF, 30, "the physical INTID");
    assert_eq!(cpu.regs.lr[0] >> 61, 0b011, "pending, HW");
    assert!(vgic.hw_ppi_in_flight(v(0), IntId(TIMER)));
    assert_eq!(cpu.acknowledge(), Some(TIMER));
    cpu.end(TIMER);
    assert_eq!(cpu.deactivated, [30]);
    assert_eq!(vgic.sync(v(0), &cpu.regs), Kicks::NONE);
    assert!(!vgic.hw_ppi_in_flight(v(0), IntId(TIMER)));
    vgic.flush(v(0), &mut cpu.regs);
    assert_eq!(cpu.regs.used, 0, "no second interrupt of one expiry");
    assert!(!vgic.hw_ppi_in_flight(v(0), IntId(TIMER + 1)));
}

#[test]
fn the_timer_while_disabled_is_held_back() {
    let mut m = Machine::ready(1, 4);
    m.write_bit(0, ICENABLER, TIMER);
    m.set_timer(0, true);
    assert_eq!(m.acknowledge(0), None);
    assert!(m.timer_active[0], "or it would interrupt for ever");
    m.write_bit(0, ISENABLER, TIMER);
    assert_eq!(m.acknowledge(0), Some(TIMER));
}

#[test]
fn software_makes_the_timer_pending() {
    let mut m = Machine::ready(1, 4);
    m.enter(0);
    m.write_bit(0, ISPENDR, TIMER);
    m.set_timer(0, true);
    assert_eq!(m.acknowledge(0), Some(TIMER));
    m.write_bit(0, ISPENDR, TIMER);
    m.end(0, TIMER);
    assert_eq!(m.acknowledge(0), Some(TIMER));
    m.set_timer(0, false);
    m.end(0, TIMER);
    assert_eq!(m.drain(0), []);
    m.exit(0);
    assert!(!m.vgic.hw_ppi_in_flight(v(0), IntId(TIMER)));
}
