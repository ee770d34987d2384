// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cases in which other hypervisors lost, doubled or stalled interrupts.

use super::Vgic;
use super::cpu::ENABLE_BOTH;
use super::machine::{Machine, TIMER, v};
use crate::addr::IntId;
use crate::vgic::{BadIntId, CpuInterface, Kicks, MAX_VCPUS};

const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const RWP: u64 = 1 << 31;
const ANY: u64 = 1 << 31;
const LRS: [usize; 5] = [1, 2, 3, 4, 16];

/// Machine with EOImode 1 everywhere.
fn split(vcpus: usize, nr_lrs: usize) -> Machine {
    let mut m = Machine::ready(vcpus, nr_lrs);
    m.cpus.iter_mut().for_each(|cpu| cpu.set_split_eoi(true));
    m
}

fn edge(m: &mut Machine, id: u32) {
    let offset = 0xC00 + u64::from(id / 16 * 4);
    let now = m.read(0, offset, 4);
    m.write(0, offset, 4, now | 2 << (id % 16 * 2));
}

#[test]
fn more_pending_than_list_registers_come_by_priority_each_once() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        let mut expected = Vec::new();
        for id in 32..64u32 {
            let priority = (id * 7 % 13 * 8) as u8;
            m.write_priority(0, id, priority);
            m.set_line(id, 0, true);
            expected.push((priority, id));
        }
        expected.sort_unstable();
        let expected: Vec<u32> = expected.into_iter().map(|(_, id)| id).collect();
        assert_eq!(m.drain(0), expected, "{nr_lrs} list registers");
    }
}

#[test]
fn a_more_urgent_one_comes_first_though_all_list_registers_are_taken() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        m.enter(0);
        (32..60).for_each(|id| m.set_line(id, 0, true));
        m.write_priority(0, 60, 0x20);
        m.set_line(60, 0, true);
        assert_eq!(m.acknowledge(0), Some(60));
    }
}

#[test]
fn all_active_and_still_the_next_comes() {
    for nr_lrs in LRS {
        let mut m = split(1, nr_lrs);
        // Ended but not deactivated: the running priority is idle, everything stays active.
        for id in 32..56 {
            m.set_line(id, 0, true);
            assert_eq!(m.acknowledge(0), Some(id));
            m.end(0, id);
        }
        m.set_line(40, 0, true); // pending and active
        m.set_line(60, 0, true);
        assert_eq!(m.take(0), Some(60), "{nr_lrs} list registers");
        assert_eq!(m.acknowledge(0), None);
        m.dir(0, 40);
        assert_eq!(m.acknowledge(0), Some(40));
        m.end(0, 40);
        (32..56).rev().for_each(|id| m.dir(0, id));
        (32..56).for_each(|id| assert!(!m.read_bit(0, ISACTIVER, id)));
        (32..56).for_each(|id| m.set_line(id, 0, true));
        let mut all = Vec::new();
        while let Some(id) = m.acknowledge(0) {
            m.end(0, id);
            all.push(id);
        }
        assert_eq!(all, (32..56).collect::<Vec<_>>());
    }
}

#[test]
fn handlers_nest_deeper_than_there_are_list_registers() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        let nested: Vec<u32> = (32..56).collect();
        for (depth, &id) in nested.iter().enumerate() {
            m.write_priority(0, id, 0xF0 - 8 * depth as u8);
            m.set_line(id, 0, true);
            assert_eq!(m.acknowledge(0), Some(id));
        }
        nested.iter().for_each(|&id| assert!(m.read_bit(0, ISACTIVER, id)));
        for &id in nested.iter().rev() {
            m.end(0, id);
            assert!(!m.read_bit(0, ISACTIVER, id), "{id} with {nr_lrs} list registers");
            // And it can come again, at once.
            m.set_line(id, 0, true);
            assert_eq!(m.take(0), Some(id));
        }
        assert!(m.cpus[0].active_priorities.is_empty());
    }
}

#[test]
fn a_priority_changed_while_active_does_not_confuse_the_eoi() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        for (id, priority) in [(32, 0xE0), (33, 0xC0), (34, 0xA0)] {
            m.write_priority(0, id, priority);
            m.set_line(id, 0, true);
            assert_eq!(m.acknowledge(0), Some(id));
        }
        m.write_priority(0, 32, 0x20);
        m.write_priority(0, 34, 0xF0);
        for id in [34, 33, 32] {
            m.end(0, id);
            assert!(!m.read_bit(0, ISACTIVER, id), "{id} with {nr_lrs} list registers");
        }
    }
}

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
fn an_spi_follows_its_route_while_pending() {
    let mut m = Machine::ready(2, 4);
    m.prompt = false;
    m.set_line(40, 0, true);
    m.enter(0);
    m.enter(1);
    m.kicked = Kicks::NONE;
    m.route(1, 40, 1);
    assert!(m.kicked.contains(v(0)), "has it in a list register");
    m.exit(0);
    m.enter(0);
    assert_eq!(m.cpus[0].acknowledge(), None);
    assert!(m.kicked.contains(v(1)), "has to be told once it is there");
    m.prompt = true;
    m.settle();
    assert_eq!(m.drain(1), [40]);
    assert_eq!(m.drain(0), []);
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

#[test]
fn a_pulse_is_one_interrupt_though_the_line_is_level_triggered() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        m.set_line(40, 0, true);
        assert_eq!(m.drain(0), [40]);
        // While active: one more.
        m.set_line(40, 0, true);
        assert_eq!(m.acknowledge(0), Some(40));
        m.set_line(40, 0, true);
        m.end(0, 40);
        assert_eq!(m.drain(0), [40]);
        // Withdrawn before it is acknowledged, in a list register or not.
        m.set_line(40, 0, true);
        m.set_line(40, 0, false);
        assert_eq!(m.drain(0), []);
        m.exit(0);
        m.set_line(40, 0, true);
        m.set_line(40, 0, false);
        assert_eq!(m.drain(0), []);
        // What software made pending isn't withdrawn.
        m.write_bit(0, ISPENDR, 40);
        m.set_line(40, 0, false);
        assert_eq!(m.drain(0), [40]);
        // Nor is an edge.
        edge(&mut m, 41);
        m.set_line(41, 0, true);
        m.set_line(41, 0, false);
        assert_eq!(m.drain(0), [41]);
    }
}

#[test]
fn a_driven_level_comes_until_it_is_lowered() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        m.set_level(40, 0, true);
        for _ in 0..3 {
            assert_eq!(m.take(0), Some(40));
        }
        assert_eq!(m.acknowledge(0), Some(40));
        m.set_level(40, 0, false);
        m.end(0, 40);
        assert_eq!(m.drain(0), []);
        // Lowered while in a list register.
        m.set_level(40, 0, true);
        m.enter(0);
        m.set_level(40, 0, false);
        assert_eq!(m.drain(0), []);
        // Clearing the pending bit of a high level does nothing.
        m.set_level(40, 0, true);
        m.write_bit(0, ICPENDR, 40);
        assert!(m.read_bit(0, ISPENDR, 40));
        assert_eq!(m.take(0), Some(40));
    }
}

/// The VMM is told of each end once, and the line is low by then.
#[test]
fn a_resampled_line_falls_at_the_eoi() {
    for (nr_lrs, split_eoi) in [(1, false), (4, false), (1, true), (4, true)] {
        let mut m = if split_eoi { split(1, nr_lrs) } else { Machine::ready(1, nr_lrs) };
        m.set_resample(40, true);
        m.set_resample(41, true);
        m.set_level(40, 0, true);
        m.set_level(41, 0, true);
        m.set_level(42, 0, true);
        assert_eq!(m.resampled(), [], "nothing has been taken");
        assert_eq!(m.acknowledge(0), Some(40));
        m.set_level(40, 0, true);
        assert_eq!(m.resampled(), []);
        m.end(0, 40);
        if split_eoi {
            assert_eq!(m.resampled(), [], "not deactivated");
            m.dir(0, 40);
        }
        assert_eq!(m.resampled(), [40], "{nr_lrs} list registers");
        assert_eq!(m.resampled(), []);
        assert!(!m.read_bit(0, 0x200, 40), "the line is low");
        assert_eq!(m.take(0), Some(41));
        // Still asserted: comes again, and again.
        m.set_level(41, 0, true);
        assert_eq!(m.resampled(), [41]);
        assert_eq!(m.take(0), Some(41));
        m.set_level(40, 0, true);
        assert_eq!(m.take(0), Some(40));
        assert_eq!(m.resampled(), [40, 41], "two are due");
        assert_eq!(m.take(0), Some(42), "not resampled: stays high");
        assert_eq!(m.take(0), Some(42));
        assert_eq!(m.resampled(), []);
        m.set_level(42, 0, false);
        assert_eq!(m.drain(0), []);
        // No longer marked: nobody is told, and it stays high.
        m.set_level(40, 0, true);
        m.set_resample(40, false);
        assert_eq!(m.take(0), Some(40));
        assert_eq!(m.take(0), Some(40));
        assert_eq!(m.resampled(), []);
    }
}

#[test]
fn a_resampled_line_that_is_marked_or_ended_from_elsewhere() {
    let mut m = Machine::ready(2, 4);
    m.set_level(40, 0, true);
    assert_eq!(m.acknowledge(0), Some(40));
    // Marked while in a list register; ended by another vCPU.
    m.set_resample(40, true);
    m.write_bit(1, 0x380, 40);
    assert_eq!(m.resampled(), [40]);
    m.end(0, 40);
    assert_eq!(m.resampled(), []);
    // Its vCPU goes while it is active there.
    m.set_level(40, 0, true);
    assert_eq!(m.acknowledge(0), Some(40));
    m.exit(0);
    let _ = m.vgic.remove_vcpu(v(0));
    assert_eq!(m.resampled(), [40]);
    // Reset while high, and while one is untold.
    let mut m = Machine::ready(1, 4);
    m.set_resample(40, true);
    m.set_resample(50, true);
    m.set_level(50, 0, true);
    assert_eq!(m.take(0), Some(50));
    m.set_level(40, 0, true);
    m.exit(0);
    m.vgic.reset();
    assert_eq!(m.resampled(), [40, 50]);
    for wrong in [0, 15, 27, 31, 96, 1020, u32::MAX] {
        assert_eq!(m.vgic.set_resample(IntId(wrong), true), Err(BadIntId), "{wrong}");
    }
}

#[test]
fn sgi_targets() {
    let mut m = Machine::ready(8, 4);
    let id = 5u64 << 24;
    let pending = |m: &mut Machine| {
        let mut read = |n| m.read_redist(0, n, 0x1_0000 + ISPENDR, 4) >> 5 & 1 == 1;
        let set: Vec<usize> = (0..8).filter(|&n| read(n)).collect();
        (0..8).for_each(|n| m.write_redist(0, n, 0x1_0000 + ICPENDR, 4, 1 << 5));
        set
    };
    let mut m2 = Machine::ready(8, 4);
    for (value, expected) in [
        (0b0000_0010, vec![1]),
        (0b1000_0001, vec![0, 7]),
        (0xFFFF, (0..8).collect()),
        (0xFF00, vec![]),           // vCPUs that don't exist
        (0xFFFF | 1 << 16, vec![]), // Aff1
        (0xFFFF | 1 << 32, vec![]), // Aff2
        (0xFFFF | 1 << 48, vec![]), // Aff3
        (0xFFFF | 1 << 44, vec![]), // RangeSelector
        (1 << 40, vec![0, 1, 2, 4, 5, 6, 7]),
        (1 << 40 | 0xFFFF | 0xFF << 16, vec![0, 1, 2, 4, 5, 6, 7]),
        (!(0xF << 24 | 1 << 40), vec![]),
    ] {
        m2.sgi1(3, value | id);
        assert_eq!(pending(&mut m2), expected, "{value:#x}");
    }
    // The other two registers raise group 0 only.
    let _ = m.vgic.sgi0r_write(v(0), 2 | id);
    let _ = m.vgic.asgi1r_write(v(0), 2 | id);
    assert_eq!(pending(&mut m), []);
    m.write_redist(0, 1, 0x1_0080, 4, !(1 << 5));
    assert_eq!(m.vgic.sgi0r_write(v(0), 2 | id), Kicks(2));
    assert_eq!(pending(&mut m), [1]);
    assert_eq!(m.vgic.asgi1r_write(v(0), 2 | id), Kicks(2));
    assert_eq!(pending(&mut m), [1]);
    assert_eq!(m.vgic.sgi1r_write(v(0), 2 | id), Kicks(2));
    // To itself: no kick, but it is there.
    assert_eq!(m.vgic.sgi1r_write(v(1), 2 | id), Kicks::NONE);
    assert_eq!(m.drain(1), [5]);
    assert_eq!(m.vgic.sgi1r_write(v(200), u64::MAX), Kicks(0xFF), "from nobody, to all but that");
}

#[test]
fn an_sgi_to_an_idle_vcpu_wakes_it() {
    let mut m = Machine::ready(2, 4);
    let vmcr = m.cpus[1].regs.vmcr;
    assert!(!m.vgic.has_deliverable(v(1), vmcr));
    assert_eq!(m.vgic.sgi1r_write(v(0), 2), Kicks(2));
    assert!(m.vgic.has_deliverable(v(1), vmcr));
    assert!(m.vgic.needs_flush(v(1)));
    assert!(!m.vgic.has_deliverable(v(1), vmcr & !ENABLE_BOTH));
    assert!(!m.vgic.has_deliverable(v(1), vmcr & 0xFF_FFFF | 0xA0 << 24), "masked by priority");
    assert!(m.vgic.has_deliverable(v(1), vmcr & 0xFF_FFFF | 0xA8 << 24));
    m.write(0, 0, 4, 1);
    assert!(!m.vgic.has_deliverable(v(1), vmcr), "group 1 disabled in the distributor");
    assert_eq!(m.vgic.dist_write(v(0), 0, 4, 3), Kicks(2));
    assert!(m.vgic.has_deliverable(v(1), vmcr));
}

#[test]
fn groups_that_the_cpu_interface_disables_do_not_block_others() {
    for (nr_lrs, urgent) in LRS.into_iter().flat_map(|lrs| [(lrs, 0), (lrs, 1)]) {
        let mut m = Machine::ready(1, nr_lrs);
        // One group is more urgent, and alone more than there are list registers.
        let (urgent_on, other_on) = (1 << urgent, 2 >> urgent);
        m.write(0, 0x84, 4, if urgent == 0 { 0xFFFF_0000 } else { 0x0000_FFFF });
        for id in 32..64 {
            m.write_priority(0, id, if id < 48 { 0x20 } else { 0x80 });
            m.set_line(id, 0, true);
        }
        m.enter(0);
        for (enabled, expected) in [(other_on, 48), (3, 32), (other_on, 49), (urgent_on, 33)] {
            m.cpus[0].set_groups(enabled);
            assert_eq!(m.take(0), Some(expected), "{nr_lrs} list registers");
        }
        m.cpus[0].set_groups(0);
        assert_eq!(m.take(0), None);
        m.cpus[0].set_groups(urgent_on);
        assert_eq!(m.drain(0), (34..48).collect::<Vec<_>>());
        m.cpus[0].set_groups(3);
        assert_eq!(m.drain(0), (50..64).collect::<Vec<_>>());
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
            assert_eq!(m.take(0), Some(TIMER));
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
    let mut cpu = super::cpu::Cpu::new(4);
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

#[test]
fn any_vcpu_takes_it_once() {
    let mut m = Machine::ready(3, 4);
    m.route(0, 40, ANY);
    m.set_line(40, 0, true);
    let taken: Vec<_> = (0..3).flat_map(|n| m.drain(n)).collect();
    assert_eq!(taken, [40]);
    // Awake ones are preferred, and those that are off avoided.
    m.write_redist(0, 2, 0x14, 4, 0);
    m.set_line(40, 0, true);
    assert_eq!(m.drain(2), [40]);
    m.exit(2);
    m.set_line(40, 0, true);
    m.kicked |= m.vgic.set_power(v(2), false);
    assert_eq!(m.drain(2), []);
    assert_eq!(m.drain(0), [40]);
    m.exit(0);
    m.set_line(40, 0, true);
    m.kicked = m.vgic.set_power(v(0), false);
    assert_eq!(m.kicked, Kicks(2));
    assert_eq!(m.drain(1), [40]);
}

#[test]
fn an_spi_routed_to_nobody_waits() {
    let mut m = Machine::ready(2, 4);
    m.route(0, 40, 2);
    m.set_line(40, 0, true);
    m.route(0, 41, 1 << 16);
    m.set_line(41, 0, true);
    assert_eq!((m.drain(0), m.drain(1)), (vec![], vec![]));
    m.route(0, 40, 1);
    assert_eq!(m.drain(1), [40]);
    m.route(0, 41, 0);
    assert_eq!(m.drain(0), [41]);
}

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
fn lines_that_do_not_exist() {
    let mut vgic = Vgic::new(64, Some(Box::default()));
    vgic.add_vcpu(v(0), 4, Box::default());
    for id in [0, 15, 96, 1019, 1020, 1023, 8192, u32::MAX] {
        for level in [false, true] {
            assert_eq!(vgic.set_line(IntId(id), Some(v(0)), level), Err(BadIntId));
            assert_eq!(vgic.set_level(IntId(id), None, level), Err(BadIntId));
        }
    }
    for target in [None, Some(v(1)), Some(v(8)), Some(v(65535))] {
        assert_eq!(vgic.set_line(IntId(20), target, true), Err(BadIntId));
        assert_eq!(vgic.set_line(IntId(95), target, true), Ok(Kicks::NONE));
    }
    assert_eq!(vgic.set_line(IntId(20), Some(v(0)), true), Ok(Kicks::NONE));
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
