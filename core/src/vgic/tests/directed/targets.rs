// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who gets it: SGIs, routes, any of N.

use super::{ANY, ICPENDR, ISPENDR};
use crate::vgic::Kicks;
use crate::vgic::tests::Vgic;
use crate::vgic::tests::cpu::ENABLE_BOTH;
use crate::vgic::tests::machine::{Machine, v};

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

/// Affinity 1 names sixteen vCPUs; the mode "all but self" looks at no affinity at all; the three registers have one layout.
#[test]
fn sgis_by_affinity() {
    let mut vgic = Vgic::new(32, None);
    for n in [0, 1, 15, 16, 17, 33, 63] {
        vgic.add_vcpu(v(n), 4, Box::default());
        let _ = vgic.redist_write(v(0), v(n), 0x1_0080, 4, 0); // group 0, which all three reach
        let _ = vgic.redist_write(v(0), v(n), 0x1_0100, 4, 0xFFFF);
    }
    let _ = vgic.dist_write(v(9), 0, 4, 3);
    let kicked = |kicks: Kicks| kicks.iter().map(|v| v.0).collect::<Vec<_>>();
    let aff1 = |n: u64| n << 16;
    for (value, expected) in [
        (0xFFFF, vec![0, 1, 15]),
        (0x8002 | aff1(1), vec![17]),
        (0x0003 | aff1(1), vec![16, 17]),
        (0x0002 | aff1(2), vec![33]),
        (0x8000 | aff1(3), vec![63]),
        (0xFFFF | aff1(4), vec![]),
        (0xFFFF | aff1(0xFF), vec![]),
        (0xFFFF | aff1(1) | 1 << 32, vec![]),
        (0xFFFF | aff1(1) | 1 << 48, vec![]),
        (0xFFFF | aff1(1) | 1 << 44, vec![]),
        // All but self, whatever else is there: Aff3, Aff2, Aff1, range and list.
        (1 << 40, vec![0, 1, 15, 16, 17, 33, 63]),
        (1 << 40 | 1 << 48, vec![0, 1, 15, 16, 17, 33, 63]),
        (1 << 40 | 0xFF << 48 | 0xF << 44 | 0xFF << 32 | 0xFF << 16 | 0xFFFF, vec![0, 1, 15, 16, 17, 33, 63]),
    ] {
        for from in [0, 17] {
            let expected: Vec<u16> = expected.iter().copied().filter(|&n| n != from).collect();
            let id = 3 << 24;
            assert_eq!(kicked(vgic.sgi1r_write(v(from.into()), value | id)), expected, "SGI1R {value:#x}");
            assert_eq!(kicked(vgic.sgi0r_write(v(from.into()), value | id)), expected, "SGI0R {value:#x}");
            assert_eq!(kicked(vgic.asgi1r_write(v(from.into()), value | id)), expected, "ASGI1R {value:#x}");
            for n in [0, 1, 15, 16, 17, 33, 63] {
                let pending = vgic.redist_read(v(0), v(n), 0x1_0200, 4);
                let meant = expected.contains(&(n as u16)) || n == usize::from(from) && value >> 40 & 1 == 0;
                assert!(meant || pending == 0, "{value:#x} from {from} reaches {n}: {pending:#x}");
                let _ = vgic.redist_write(v(0), v(n), 0x1_0280, 4, u64::MAX);
            }
        }
    }
}
