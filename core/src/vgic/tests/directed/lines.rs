// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pulses, driven and resampled lines.

use super::{ICPENDR, ISPENDR, LRS, edge, split};
use crate::addr::IntId;
use crate::vgic::tests::Vgic;
use crate::vgic::tests::machine::{Machine, v};
use crate::vgic::{BadIntId, Kicks};

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
