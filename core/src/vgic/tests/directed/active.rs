// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Disabled, enabled, changed and pending again while active.

use super::{ICENABLER, ISACTIVER, ISENABLER, ISPENDR, LRS, edge, split};
use crate::vgic::tests::machine::Machine;

#[test]
fn a_disabled_active_interrupt_is_not_lost() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        m.set_line(40, 0, true);
        assert_eq!(m.acknowledge(0), Some(40));
        m.write_bit(0, ICENABLER, 40);
        m.set_line(40, 0, true);
        assert!(m.read_bit(0, ISACTIVER, 40));
        m.end(0, 40);
        assert!(!m.read_bit(0, ISACTIVER, 40));
        assert!(m.read_bit(0, ISPENDR, 40));
        assert_eq!(m.acknowledge(0), None);
        m.write_bit(0, ISENABLER, 40);
        assert_eq!(m.drain(0), [40]);
    }
}

#[test]
fn permutations_of_disable_enable_end_on_an_active_interrupt() {
    for order in 0..27u32 {
        let mut m = split(1, 1);
        m.set_line(40, 0, true);
        assert_eq!(m.acknowledge(0), Some(40));
        m.set_line(40, 0, true);
        let (mut ended, mut deactivated) = (false, false);
        for step in [order % 3, order / 3 % 3, order / 9] {
            match step {
                0 => m.write_bit(0, ICENABLER, 40),
                1 => m.write_bit(0, ISENABLER, 40),
                _ if !ended => {
                    m.end(0, 40);
                    ended = true;
                }
                _ if !deactivated => {
                    m.dir(0, 40);
                    deactivated = true;
                }
                _ => {}
            }
        }
        if !ended {
            m.end(0, 40);
        }
        if !deactivated {
            m.dir(0, 40);
        }
        m.write_bit(0, ISENABLER, 40);
        assert_eq!(m.drain(0), [40], "order {order}");
    }
}

/// Machine in which 40 is active, ended, and pending again.
fn active_and_pending(nr_lrs: usize) -> Machine {
    let mut m = split(1, nr_lrs);
    m.write_priority(0, 40, 0xC0);
    m.set_line(40, 0, true);
    assert_eq!(m.acknowledge(0), Some(40));
    m.end(0, 40);
    m.set_line(40, 0, true);
    m
}

#[test]
fn one_that_came_again_while_active_is_not_taken_while_disabled() {
    for nr_lrs in LRS {
        let mut m = active_and_pending(nr_lrs);
        m.write_bit(0, ICENABLER, 40);
        m.dir(0, 40);
        assert_eq!(m.cpus[0].acknowledge(), None);
        m.write_bit(0, ISENABLER, 40);
        assert_eq!(m.drain(0), [40]);
    }
}

#[test]
fn one_that_came_again_while_active_has_its_new_priority() {
    for nr_lrs in LRS {
        let mut m = active_and_pending(nr_lrs);
        m.write_priority(0, 40, 0xF0);
        m.write_priority(0, 41, 0xE0);
        m.set_line(41, 0, true);
        m.dir(0, 40);
        assert_eq!(m.drain(0), [41, 40], "{nr_lrs} list registers");
    }
}

#[test]
fn one_that_came_again_while_active_waits_its_turn() {
    for nr_lrs in LRS {
        let mut m = active_and_pending(nr_lrs);
        (42..62).for_each(|id| m.set_line(id, 0, true));
        m.dir(0, 40);
        let expected: Vec<u32> = (42..62).chain([40]).collect();
        assert_eq!(m.drain(0), expected, "{nr_lrs} list registers");
    }
}

#[test]
fn an_edge_while_active_is_delivered_without_an_exit() {
    let mut m = Machine::ready(1, 4);
    edge(&mut m, 40);
    m.set_line(40, 0, true);
    assert_eq!(m.acknowledge(0), Some(40));
    m.set_line(40, 0, true);
    m.set_line(40, 0, true);
    let exits = m.exits;
    m.end(0, 40);
    assert_eq!(m.cpus[0].acknowledge(), Some(40));
    assert_eq!(m.exits, exits);
    m.end(0, 40);
    assert_eq!(m.drain(0), []);
}
