// SPDX-License-Identifier: Apache-2.0 OR MIT
//! More pending or active than there are list registers.

use super::{ISACTIVER, LRS, split};
use crate::vgic::tests::machine::Machine;

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

/// Preemption goes by group priority, so with a coarse binary point in group 1 the last to be acknowledged is not
/// the one of the lowest priority value.
#[test]
fn binary_points_decide_which_is_ended() {
    for (nr_lrs, common) in LRS.into_iter().flat_map(|lrs| [(lrs, false), (lrs, true)]) {
        let mut m = Machine::ready(1, nr_lrs);
        m.cpus[0].set_binary_points(if common { [6, 3] } else { [2, 7] }, common);
        m.write(0, 0x84, 4, !1); // 32: group 0
        for (id, priority) in [(32, if common { 0x80 } else { 0x40 }), (33, 0x48), (34, 0x20)] {
            m.write_priority(0, id, priority);
        }
        m.set_line(32, 0, true);
        assert_eq!(m.acknowledge(0), Some(32));
        m.set_line(33, 0, true);
        assert_eq!(m.acknowledge(0), Some(33), "preempts");
        m.set_line(34, 0, true);
        assert_eq!(m.acknowledge(0), None, "same group priority");
        m.end(0, 33);
        assert!(m.read_bit(0, ISACTIVER, 32), "{nr_lrs} list registers");
        assert!(!m.read_bit(0, ISACTIVER, 33), "{nr_lrs} list registers");
        assert_eq!(m.take(0), Some(34));
        m.end(0, 32);
        assert!(!m.read_bit(0, ISACTIVER, 32));
    }
}

/// EL2 may learn of several EOIs at once: EOIcount says how many.
#[test]
fn several_end_outside_before_the_exit() {
    for nr_lrs in LRS {
        let mut m = Machine::ready(1, nr_lrs);
        let nested: Vec<u32> = (32..32 + nr_lrs as u32 + 4).collect();
        for (depth, &id) in nested.iter().enumerate() {
            m.write_priority(0, id, 0xF0 - 8 * depth as u8);
            m.set_line(id, 0, true);
            assert_eq!(m.acknowledge(0), Some(id));
        }
        // The list registers hold the last to begin; then come three that are outside, with the exit still to come.
        let ended: Vec<u32> = nested.iter().rev().copied().take(nr_lrs + 3).collect();
        ended.iter().for_each(|&id| m.cpus[0].end(id));
        m.exit(0);
        for &id in &nested {
            assert_eq!(
                m.read_bit(0, ISACTIVER, id),
                !ended.contains(&id),
                "{id} with {nr_lrs} list registers"
            );
        }
    }
}
