// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What another vCPU has in a list register or has acknowledged.

use super::{ICACTIVER, ICENABLER, ICPENDR, ISACTIVER, ISENABLER, ISPENDR, LRS, RWP, split};
use crate::vgic::Kicks;
use crate::vgic::tests::machine::{Machine, v};

#[test]
fn disabling_what_another_vcpu_has_in_a_list_register() {
    let mut m = Machine::ready(2, 4);
    m.prompt = false;
    m.route(0, 40, 1);
    m.kicked = Kicks::NONE;
    m.set_line(40, 0, true);
    assert!(m.kicked.contains(v(1)));
    m.enter(1);
    m.write_bit(0, ICENABLER, 40);
    assert!(m.kicked.contains(v(1)), "has to give it back");
    assert_eq!(m.read(0, 0, 4) & RWP, RWP, "not disabled yet");
    m.prompt = true;
    m.settle();
    assert_eq!(m.read(0, 0, 4) & RWP, 0);
    assert_eq!(m.acknowledge(1), None);
    assert!(m.read_bit(0, ISPENDR, 40), "still pending");
    m.write_bit(0, ISENABLER, 40);
    assert_eq!(m.drain(1), [40]);
}

#[test]
fn disabling_what_another_vcpu_acknowledges_meanwhile() {
    let mut m = Machine::ready(2, 4);
    m.prompt = false;
    m.route(0, 40, 1);
    m.set_line(40, 0, true);
    m.enter(1);
    m.write_bit(0, ICENABLER, 40);
    assert_eq!(m.cpus[1].acknowledge(), Some(40), "before the kick arrives");
    m.prompt = true;
    m.settle();
    assert!(m.read_bit(0, ISACTIVER, 40));
    assert!(!m.read_bit(0, ISPENDR, 40), "neither lost nor doubled");
    m.end(1, 40);
    assert_eq!(m.vgic.held_elsewhere(ISACTIVER + 4, 4), Kicks(2), "vCPU 1 knows better");
    m.exit(1);
    assert!(!m.read_bit(0, ISACTIVER, 40));
    m.write_bit(0, ISENABLER, 40);
    assert_eq!(m.drain(1), []);
}

#[test]
fn clearing_and_setting_pending_of_what_another_vcpu_has_in_a_list_register() {
    for again in [false, true] {
        let mut m = Machine::ready(2, 4);
        m.prompt = false;
        m.route(0, 40, 1);
        m.set_line(40, 0, true);
        m.enter(1);
        m.write_bit(0, ICPENDR, 40);
        assert!(!m.read_bit(0, ISPENDR, 40));
        if again {
            m.write_bit(0, ISPENDR, 40);
            assert!(m.read_bit(0, ISPENDR, 40));
        }
        m.prompt = true;
        m.settle();
        assert_eq!(m.drain(1).len(), usize::from(again));
        assert_eq!(m.drain(1), []);
    }
}

#[test]
fn changing_active_of_what_another_vcpu_has_in_a_list_register() {
    let mut m = split(2, 4);
    m.prompt = false;
    m.route(0, 40, 1);
    m.set_line(40, 0, true);
    m.enter(1);
    m.write_bit(0, ISACTIVER, 40);
    assert!(m.kicked.contains(v(1)));
    m.prompt = true;
    m.settle();
    assert_eq!(m.acknowledge(1), None, "active and pending");
    m.write_bit(0, ICACTIVER, 40);
    assert_eq!(m.acknowledge(1), Some(40));
    // And clearing what it has acknowledged.
    m.prompt = false;
    m.write_bit(0, ICACTIVER, 40);
    assert!(m.kicked.contains(v(1)));
    m.prompt = true;
    m.settle();
    assert!(!m.read_bit(0, ISACTIVER, 40));
}

#[test]
fn registers_tell_who_knows_better() {
    let mut m = Machine::ready(2, 4);
    m.route(0, 40, 1);
    m.set_line(40, 0, true);
    m.enter(1);
    assert_eq!(m.vgic.held_elsewhere(ISACTIVER + 4, 4), Kicks(2));
    assert_eq!(m.vgic.held_elsewhere(ISACTIVER + 8, 4), Kicks::NONE);
    assert_eq!(m.vgic.held_elsewhere(ISENABLER + 4, 4), Kicks::NONE);
    m.exit(1);
    assert_eq!(m.vgic.held_elsewhere(ISACTIVER + 4, 4), Kicks::NONE);
    m.sgi1(0, 2 | 3 << 24);
    m.enter(1);
    assert_eq!(m.vgic.held_elsewhere_redist(v(1), 0x1_0000 + ISPENDR, 4), Kicks(2));
    assert_eq!(m.vgic.held_elsewhere_redist(v(0), 0x1_0000 + ISPENDR, 4), Kicks::NONE);
}

#[test]
fn an_spi_stays_while_active_and_then_follows_its_route() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(2, nr_lrs);
        m.enter(1);
        m.set_line(40, 0, true);
        assert_eq!(m.acknowledge(0), Some(40));
        m.route(0, 40, 1);
        m.set_line(40, 0, true);
        assert_eq!(m.acknowledge(1), None, "active on vCPU 0");
        m.end(0, 40);
        assert_eq!(m.acknowledge(0), None);
        assert_eq!(m.drain(1), [40], "{nr_lrs} list registers");
    }
}

#[test]
fn another_vcpu_deactivates() {
    for nr_lrs in LRS {
        let mut m = split(2, nr_lrs);
        (0..2).for_each(|n| m.enter(n));
        m.set_line(40, 0, true);
        assert_eq!(m.acknowledge(0), Some(40));
        m.end(0, 40);
        m.set_line(40, 0, true);
        m.set_line(41, 0, true);
        assert_eq!(m.take(0), Some(41));
        // vCPU 1 has EOImode 1 as well, and has been flushed since.
        m.exit(1);
        m.route(0, 50, 1);
        m.set_line(50, 0, true);
        assert_eq!(m.take(1), Some(50));
        m.dir(1, 40);
        assert_eq!(m.drain(0), [40]);
    }
}
