// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Registers one by one, and every offset, width and direction.

use super::Vgic;
use super::machine::Machine;
use super::machine::v;
use crate::vgic::{Kicks, MAX_SPIS, MAX_VCPUS, REDIST_SIZE, affinity, vcpu_of};

fn vgic(vcpus: usize) -> Box<Vgic> {
    let mut vgic = Box::new(Vgic::new(64, Some(Box::default())));
    (0..vcpus).for_each(|n| drop(vgic.add_vcpu(v(n), 4, Box::default())));
    vgic
}

#[test]
fn distributor_identifies_itself() {
    let mut g = vgic(1);
    assert_eq!(g.dist_read(v(0), 0x0000, 4), 0x50, "ARE, DS");
    assert_eq!(g.dist_read(v(0), 0x0004, 4), 9 << 19 | 1 << 16 | 2, "ten INTID bits, 96 INTIDs");
    assert_eq!(g.dist_read(v(0), 0xFFE8, 4) >> 4 & 0xF, 3, "GICv3");
    assert_eq!(g.dist_read(v(0), 0xFFF0, 4), 0x0D);
    assert_eq!(g.dist_read(v(0), 0xFFFC, 4), 0xB1);
    for (spis, lines) in [(0, 1), (1, 1), (32, 1), (33, 2), (960, 30), (961, 31), (988, 31), (9999, 31)] {
        let mut g = Vgic::new(spis, Some(Box::default()));
        assert_eq!(g.dist_read(v(0), 4, 4) & 0x1F, lines, "{spis} SPIs");
    }
}

#[test]
fn distributor_control() {
    let mut g = vgic(2);
    assert_eq!(g.dist_write(v(0), 0, 4, u64::MAX), Kicks(2));
    assert_eq!(g.dist_read(v(1), 0, 4), 0x53);
    assert_eq!(g.dist_write(v(0), 0, 4, 3), Kicks::NONE, "no change");
    assert_eq!(g.dist_write(v(0), 0, 4, 2), Kicks(2));
    assert_eq!(g.dist_read(v(1), 0, 4), 0x52);
    // Read-only.
    let _ = g.dist_write(v(0), 4, 4, u64::MAX) | g.dist_write(v(0), 8, 4, u64::MAX);
    assert_eq!(g.dist_read(v(0), 4, 4), 9 << 19 | 1 << 16 | 2);
}

#[test]
fn redistributor_identifies_itself() {
    let mut g = vgic(3);
    for n in 0..3 {
        let typer = (n as u64) << 32 | (n as u64) << 8 | if n == 2 { 1 << 4 } else { 0 };
        assert_eq!(g.redist_read(v(1), v(n), 8, 8), typer);
        assert_eq!(g.redist_read(v(1), v(n), 8, 4), typer & 0xFFFF_FFFF);
        assert_eq!(g.redist_read(v(1), v(n), 12, 4), typer >> 32);
        assert_eq!(g.redist_read(v(1), v(n), 0xFFE8, 4), 0x3B);
    }
    assert_eq!(g.redist_read(v(0), v(3), 8, 8), 0);
    // No LPIs: these stay zero.
    for (offset, size) in [(0x00, 4), (0x70, 8), (0x78, 8), (0xA0, 8)] {
        let _ = g.redist_write(v(0), v(0), offset, size, u64::MAX);
        assert_eq!(g.redist_read(v(0), v(0), offset, size), 0, "{offset:#x}");
    }
}

#[test]
fn waker() {
    let mut g = vgic(1);
    assert_eq!(g.redist_read(v(0), v(0), 0x14, 4), 6);
    let _ = g.redist_write(v(0), v(0), 0x14, 4, 0);
    assert_eq!(g.redist_read(v(0), v(0), 0x14, 4), 0);
    let _ = g.redist_write(v(0), v(0), 0x14, 4, u64::MAX);
    assert_eq!(g.redist_read(v(0), v(0), 0x14, 4), 6);
}

#[test]
fn set_and_clear_registers_are_two_views() {
    for (set, clear) in [(0x100, 0x180), (0x200, 0x280), (0x300, 0x380)] {
        let mut g = vgic(2);
        let _ = g.dist_write(v(0), set + 4, 4, 0xFFFF_FFFF_F0F0_0F0F);
        assert_eq!(g.dist_read(v(0), set + 4, 4), 0xF0F0_0F0F);
        assert_eq!(g.dist_read(v(1), clear + 4, 4), 0xF0F0_0F0F);
        let _ = g.dist_write(v(1), clear + 4, 4, 0x8000_0001);
        assert_eq!(g.dist_read(v(0), set + 4, 4), 0x70F0_0F0E);
        // With affinity routing the first word is the redistributors'.
        let _ = g.dist_write(v(0), set, 4, u64::MAX);
        assert_eq!(g.dist_read(v(0), set, 4), 0);
        let _ = g.redist_write(v(0), v(1), 0x1_0000 + set, 4, 0x8001_8001);
        assert_eq!(g.redist_read(v(1), v(1), 0x1_0000 + clear, 4), 0x8001_8001);
        assert_eq!(g.redist_read(v(1), v(0), 0x1_0000 + set, 4), 0, "another vCPU's");
        // And the redistributors have no other.
        let _ = g.redist_write(v(0), v(1), 0x1_0004 + set, 4, u64::MAX);
        assert_eq!(g.redist_read(v(0), v(1), 0x1_0004 + set, 4), 0);
        assert_eq!(g.dist_read(v(0), set + 4, 4), 0x70F0_0F0E);
    }
}

#[test]
fn priorities_by_byte_and_word() {
    let mut g = vgic(1);
    let _ = g.dist_write(v(0), 0x420, 4, 0xFFFF_FFFF_A0FF_0708);
    assert_eq!(g.dist_read(v(0), 0x420, 4), 0xA0F8_0008, "five bits");
    let _ = g.dist_write(v(0), 0x421, 1, 0xFFFF_FF51);
    assert_eq!(g.dist_read(v(0), 0x420, 4), 0xA0F8_5008);
    assert_eq!(g.dist_read(v(0), 0x423, 1), 0xA0);
    assert_eq!(g.dist_read(v(0), 0x420, 2), 0, "no halfwords");
    assert_eq!(g.dist_read(v(0), 0x420, 8), 0, "no doublewords");
    let _ = g.dist_write(v(0), 0x422, 2, 0);
    assert_eq!(g.dist_read(v(0), 0x420, 4), 0xA0F8_5008);
    let _ = g.redist_write(v(0), v(0), 0x1_041F, 1, 0xF8);
    assert_eq!(g.redist_read(v(0), v(0), 0x1_041C, 4), 0xF800_0000);
}

#[test]
fn configuration() {
    let mut g = vgic(1);
    assert_eq!(g.redist_read(v(0), v(0), 0x1_0C00, 4), 0xAAAA_AAAA, "SGIs are edge-triggered");
    let _ = g.redist_write(v(0), v(0), 0x1_0C00, 4, 0);
    assert_eq!(g.redist_read(v(0), v(0), 0x1_0C00, 4), 0xAAAA_AAAA);
    let _ = g.redist_write(v(0), v(0), 0x1_0C04, 4, 0xFFFF_FFFF);
    assert_eq!(g.redist_read(v(0), v(0), 0x1_0C04, 4), 0xAAAA_AAAA, "the lower bit is reserved");
    let _ = g.dist_write(v(0), 0xC08, 4, 0x8000_0003);
    assert_eq!(g.dist_read(v(0), 0xC08, 4), 0x8000_0002);
    let _ = g.dist_write(v(0), 0xC00, 4, u64::MAX);
    assert_eq!(g.dist_read(v(0), 0xC00, 4), 0);
}

#[test]
fn groups() {
    let mut g = vgic(1);
    assert_eq!(g.dist_read(v(0), 0x84, 4), 0xFFFF_FFFF);
    let _ = g.dist_write(v(0), 0x84, 4, 0x1234_5678);
    assert_eq!(g.dist_read(v(0), 0x84, 4), 0x1234_5678);
    // With one Security state there are no group modifiers and no non-secure access control.
    for offset in [0xD04, 0xE08] {
        let _ = g.dist_write(v(0), offset, 4, u64::MAX);
        assert_eq!(g.dist_read(v(0), offset, 4), 0);
    }
}

#[test]
fn routes_whole_and_in_halves() {
    let mut g = vgic(2);
    let at = 0x6000 + 8 * 40;
    let _ = g.dist_write(v(0), at, 8, 0xFFFF_FFFF_FFFF_FFFF);
    assert_eq!(g.dist_read(v(0), at, 8), 0x80FF_FFFF, "no Aff3");
    let _ = g.dist_write(v(0), at, 8, 0x0000_0012_0001_0201);
    assert_eq!(g.dist_read(v(0), at, 8), 0x0001_0201);
    let _ = g.dist_write(v(0), at + 4, 4, u64::MAX);
    assert_eq!(g.dist_read(v(0), at, 8), 0x0001_0201, "the upper half does not hit the lower");
    let _ = g.dist_write(v(0), at, 4, 1);
    assert_eq!(g.dist_read(v(0), at, 8), 1);
    assert_eq!(g.dist_read(v(0), at, 4), 1);
    assert_eq!(g.dist_read(v(0), at + 4, 4), 0);
    assert_eq!(g.dist_read(v(0), at, 1), 0, "no bytes");
    for private in [0x6000, 0x6000 + 8 * 31] {
        let _ = g.dist_write(v(0), private, 8, u64::MAX);
        assert_eq!(g.dist_read(v(0), private, 8), 0);
    }
}

#[test]
fn the_last_spi_is_the_last() {
    for (spis, last_word_enable) in [(64usize, 0xFFFF_FFFFu64), (MAX_SPIS, 0x0FFF_FFFF)] {
        let mut g = Box::new(Vgic::new(spis, Some(Box::default())));
        g.add_vcpu(v(0), 4, Box::default());
        let words = (spis as u64 + 32).div_ceil(32);
        let _ = g.dist_write(v(0), 0x100 + 4 * (words - 1), 4, u64::MAX);
        assert_eq!(g.dist_read(v(0), 0x100 + 4 * (words - 1), 4), last_word_enable);
        let end = 32 + spis as u64;
        for (offset, size) in [(0x400 + end, 1), (0x6000 + 8 * end, 8)] {
            let _ = g.dist_write(v(0), offset, size, u64::MAX);
            assert_eq!(g.dist_read(v(0), offset, size), 0, "past the end");
            let _ = g.dist_write(v(0), offset - u64::from(size), size, u64::MAX);
            assert_ne!(g.dist_read(v(0), offset - u64::from(size), size), 0, "the last");
        }
    }
}

/// Which (offset, size) of the distributor the architecture defines, beyond plain words.
fn wide_or_narrow(offset: u64, size: u8) -> bool {
    match size {
        1 => (0x400..0x800).contains(&offset),
        2 => matches!(offset, 0x40 | 0x48),
        8 => (0x6000..0x8000).contains(&offset),
        _ => false,
    }
}

/// Writes and reads at every byte, of every size and more; two full passes, so that what was
/// written is read.
#[test]
fn every_offset_width_and_direction() {
    let mut g = vgic(2);
    for round in 0..2 {
        for offset in (0..0x1_0000u64).chain([0x1_0000, u64::MAX - 7, u64::MAX]) {
            for size in [0, 1, 2, 3, 4, 5, 8, 16, 255] {
                for value in [u64::MAX, 0x5555_5555_5555_5555] {
                    // RWP, DS and ARE apart, whoever asks is told the same.
                    let before = g.dist_read(v(0), offset, size);
                    assert_eq!(before, g.dist_read(v(9), offset, size));
                    let odd = !matches!(size, 1 | 2 | 4 | 8) || offset % u64::from(size) != 0;
                    if odd || size != 4 && !wide_or_narrow(offset, size) {
                        assert_eq!(before, 0, "{offset:#x} size {size} reads as zero");
                        assert_eq!(g.dist_write(v(0), offset, size, value), Kicks::NONE);
                    } else {
                        let _ = g.dist_write(v(0), offset, size, value);
                    }
                    let limit = if size == 8 { u64::MAX } else { (1 << (8 * size.min(4))) - 1 };
                    assert!(before <= limit, "{offset:#x} size {size} round {round}");
                }
            }
        }
    }
    for target in [0, 1, 2, 64, 65535] {
        for offset in (0..REDIST_SIZE).chain([REDIST_SIZE, u64::MAX - 7, u64::MAX]) {
            for size in [0, 1, 2, 3, 4, 8, 16, 255] {
                let before = g.redist_read(v(0), v(target), offset, size);
                let _ = g.redist_write(v(1), v(target), offset, size, u64::MAX);
                let priority = (0x1_0400..0x1_0420).contains(&offset);
                let typer = offset == 8 && size == 8;
                let odd = !matches!(size, 1 | 2 | 4 | 8) || offset % u64::from(size) != 0;
                if target > 1 || odd || size != 4 && !(priority && size == 1) && !typer {
                    assert_eq!(before, 0, "{offset:#x} size {size} of {target}");
                }
            }
        }
    }
}

/// An access that is not allowed changes nothing, wherever it is.
#[test]
fn refused_accesses_change_nothing() {
    let image = |g: &mut Vgic| -> Vec<u64> {
        let dist: Vec<u64> = (0..0x1_0000).step_by(4).map(|o| g.dist_read(v(0), o, 4)).collect();
        let redist = (0..REDIST_SIZE).step_by(4).map(|o| g.redist_read(v(0), v(0), o, 4));
        dist.into_iter().chain(redist).collect()
    };
    let mut g = vgic(1);
    let before = image(&mut g);
    for offset in 0..0x1_0000u64 {
        for size in [1, 2, 4, 8] {
            if offset % u64::from(size) != 0 || size != 4 && !wide_or_narrow(offset, size) {
                let _ = g.dist_write(v(0), offset, size, u64::MAX);
            }
        }
    }
    for offset in 0..REDIST_SIZE {
        for size in [1, 2, 4, 8] {
            let priority = (0x1_0400..0x1_0420).contains(&offset) && size == 1;
            if offset % u64::from(size) != 0 || size != 4 && !priority {
                let _ = g.redist_write(v(0), v(0), offset, size, u64::MAX);
            }
        }
    }
    assert!(before == image(&mut g));
}

#[test]
fn affinities_name_each_vcpu_once() {
    let mut named = Vec::new();
    for aff in (0..0x1_0000).chain([0x1_0000, 0x100_0000, 0x8000_0000, u32::MAX]) {
        if let Some(vcpu) = vcpu_of(aff) {
            assert_eq!(affinity(vcpu), aff);
            named.push(vcpu);
        }
    }
    named.sort_unstable();
    assert_eq!(named, (0..MAX_VCPUS).map(v).collect::<Vec<_>>());
}

/// GICD_TYPER promises nothing that is not there.
#[test]
fn distributor_type_field_by_field() {
    let mut g = vgic(1);
    let typer = g.dist_read(v(0), 4, 4);
    let field = |low: u32, bits: u32| typer >> low & ((1 << bits) - 1);
    assert_eq!(field(0, 5), 2, "ITLinesNumber: 96 INTIDs");
    assert_eq!(field(5, 3), 0, "CPUNumber, without a legacy mode");
    assert_eq!(field(8, 2), 0, "ESPI, NMI");
    assert_eq!(field(10, 1), 0, "SecurityExtn");
    assert_eq!(field(16, 1), 1, "MBIS");
    assert_eq!(field(17, 2), 0, "LPIS, DVIS");
    assert_eq!(field(19, 5), 9, "IDbits");
    assert_eq!(field(24, 1), 0, "A3V");
    assert_eq!(field(25, 1), 0, "No1N: 1 of N is there");
    assert_eq!(field(26, 1), 0, "RSS: affinity 0 is below 16");
    // What it says of 1 of N and Aff3 holds.
    let _ = g.dist_write(v(0), 0x6000 + 8 * 40, 8, 0xFF << 32 | 1 << 31);
    assert_eq!(g.dist_read(v(0), 0x6000 + 8 * 40, 8), 1 << 31);
}

/// GICR_TYPER: affinity, number, Last; no LPIs, no DPG bits, no more PPIs. Last follows the vCPUs that there are.
#[test]
fn redistributor_type_field_by_field() {
    let mut g = vgic(0);
    for n in [0, 1, 15, 16, 17, 63] {
        g.add_vcpu(v(n), 4, Box::default());
        for m in g.present.iter().map(|v| usize::from(v.0)) {
            let typer = g.redist_read(v(0), v(m), 8, 8);
            let [aff0, aff1] = [m as u64 & 0xF, m as u64 >> 4];
            assert_eq!(typer >> 32, aff1 << 8 | aff0, "affinity of {m}");
            assert_eq!(typer >> 8 & 0xFFFF, m as u64, "Processor_Number of {m}");
            assert_eq!(typer >> 4 & 1 == 1, m == n, "Last of {m} while {n} is the last");
            assert_eq!(typer & 0xFF00_002F, 0, "PLPIS, VLPIS, Dirty, DirectLPI, DPGS, CommonLPIAff, PPInum");
        }
    }
    drop(g.remove_vcpu(v(63)));
    assert_eq!(g.redist_read(v(0), v(17), 8, 4) >> 4 & 1, 1, "the last has gone");
    assert_eq!(g.redist_read(v(0), v(63), 8, 8), 0);
}

/// What the architecture defines, of words: everything else reads as zero and ignores writes. With affinity
/// routing and one Security state so do the legacy registers, IGRPMODR, NSACR and the SGI registers.
#[test]
fn words_that_are_not_defined() {
    let dist = |offset: u64| match offset {
        0x0000..0x000C => true,
        // From IGROUPR to IPRIORITYR; the first word or eight are the redistributors'.
        0x0080..0x0400 => !offset.is_multiple_of(0x80) && offset % 0x80 / 4 < 3,
        0x0420..0x0460 => true,
        0x0C08..0x0C18 => true,
        0x6100..0x6300 => offset & 4 == 0,
        0xFFE8 | 0xFFF0..=0xFFFC => true,
        _ => false,
    };
    let redist = |offset: u64| match offset {
        0x0000..0x0010 | 0x0014 | 0xFFE8 | 0xFFF0..=0xFFFC => true,
        0x1_0080..0x1_0400 => offset.is_multiple_of(0x80),
        0x1_0400..0x1_0420 | 0x1_0C00..0x1_0C08 => true,
        _ => false,
    };
    let mut g = vgic(1);
    for value in [u64::MAX, 0x5555_5555, 0xAAAA_AAAA] {
        for offset in (0..0x1_0000).step_by(4).filter(|&offset| !dist(offset)) {
            assert_eq!(g.dist_write(v(0), offset, 4, value), Kicks::NONE);
            assert_eq!(g.dist_read(v(0), offset, 4), 0, "GICD + {offset:#x}");
        }
        for offset in (0..REDIST_SIZE).step_by(4).filter(|&offset| !redist(offset)) {
            assert_eq!(g.redist_write(v(0), v(0), offset, 4, value), Kicks::NONE);
            assert_eq!(g.redist_read(v(0), v(0), offset, 4), 0, "GICR + {offset:#x}");
        }
    }
    // None of those writes had an effect elsewhere.
    let mut fresh = vgic(1);
    for offset in (0..0x1_0000).step_by(4) {
        assert_eq!(g.dist_read(v(0), offset, 4), fresh.dist_read(v(0), offset, 4), "GICD + {offset:#x}");
    }
    for offset in (0..REDIST_SIZE).step_by(4) {
        let [a, b] = [&mut g, &mut fresh].map(|g| g.redist_read(v(0), v(0), offset, 4));
        assert_eq!(a, b, "GICR + {offset:#x}");
    }
}

/// Each byte of GICD_IPRIORITYR and GICR_IPRIORITYR alone, and none of its neighbours.
#[test]
fn priority_bytes() {
    let mut g = vgic(2);
    let redist = |g: &mut Vgic, n| -> Vec<u64> {
        (0..32).map(|id| g.redist_read(v(0), v(n), 0x1_0400 + id, 1)).collect()
    };
    for id in 0..32u64 {
        let (before, other) = (redist(&mut g, 1), redist(&mut g, 0));
        let _ = g.redist_write(v(0), v(1), 0x1_0400 + id, 1, id << 3 | 0xFF00);
        let expected: Vec<u64> =
            (0..32).map(|n| if n == id { id << 3 } else { before[n as usize] }).collect();
        assert_eq!((redist(&mut g, 1), redist(&mut g, 0)), (expected, other));
    }
    for id in 32..96u64 {
        let _ = g.dist_write(v(1), 0x400 + id, 1, (id & 0x1F) << 3 | 7);
    }
    for id in 32..96u64 {
        assert_eq!(g.dist_read(v(0), 0x400 + id, 1), (id & 0x1F) << 3, "{id}");
        let word = g.dist_read(v(0), 0x400 + (id & !3), 4);
        assert_eq!(word >> (id % 4 * 8) & 0xFF, (id & 0x1F) << 3, "{id} in its word");
    }
}

/// GICD_SETSPI_NSR and GICD_CLRSPI_NSR, and their Secure twins, which do nothing.
#[test]
fn message_based_spis() {
    let mut g = vgic(1);
    let pending = |g: &mut Vgic| g.dist_read(v(0), 0x204, 4) | g.dist_read(v(0), 0x208, 4) << 32;
    let _ = g.dist_write(v(0), 0xC08, 4, 2 << 16); // 40 is edge-triggered, 41 a level
    for size in [2, 4] {
        for (intid, bit) in [(40, 8), (41, 9), (95, 63)] {
            let _ = g.dist_write(v(0), 0x40, size, intid);
            assert_eq!(pending(&mut g), 1 << bit, "{intid}");
            // A level stays until the other register is written.
            let _ = g.dist_write(v(0), 0x280 + intid / 32 * 4, 4, 1 << (intid % 32));
            assert_eq!(pending(&mut g), if intid == 40 { 0 } else { 1 << bit }, "{intid}");
            let _ = g.dist_write(v(0), 0x40, size, intid);
            let _ = g.dist_write(v(0), 0x48, size, intid);
            assert_eq!(pending(&mut g), 0, "{intid}");
        }
    }
    // Of a word the upper bits are reserved, and of a halfword there are none.
    let _ = g.dist_write(v(0), 0x40, 4, 0xFFFF_E000 | 40);
    let _ = g.dist_write(v(0), 0x40, 2, 0xFFFF_FFFF_FFFF_E000 | 95);
    assert_eq!(pending(&mut g), 1 << 63 | 1 << 8);
    let all = pending(&mut g);
    // Not SPIs, registers that are Secure, accesses that are not allowed.
    for intid in [0, 15, 16, 31, 96, 1019, 1020, 1023, 0x1FFF] {
        for offset in [0x40, 0x48] {
            assert_eq!(g.dist_write(v(0), offset, 4, intid), Kicks::NONE, "{intid}");
        }
    }
    for (offset, size) in
        [(0x50, 4), (0x58, 4), (0x42, 2), (0x4A, 2), (0x44, 4), (0x40, 1), (0x40, 8), (0x41, 2)]
    {
        assert_eq!(g.dist_write(v(0), offset, size, 41), Kicks::NONE);
        assert_eq!(g.dist_read(v(0), offset, size), 0);
    }
    assert_eq!(pending(&mut g), all);
    assert_eq!([g.dist_read(v(0), 0x40, 4), g.dist_read(v(0), 0x48, 4)], [0, 0], "write-only");
    assert_eq!(g.redist_read(v(0), v(0), 0x1_0200, 4), 0);
}

/// More is active than fits. What another vCPU deactivates of it may be this one's timer, which is due: the physical interrupt
/// behind it is still active, and nothing but an exit changes that.
#[test]
fn a_timer_that_another_vcpu_deactivates_interrupts_again() {
    for first in [32, 28] {
        let mut machine = Machine::ready(2, 1);
        // Of equal priority the lower INTID has the list register.
        machine.write_priority(0, 27, 0xB0);
        machine.write_bit(0, 0x300, first);
        machine.write_bit(0, 0x300, 27);
        machine.set_timer(0, true);
        machine.enter(0);
        machine.write_redist(1, 0, 0x1_0380, 4, 1 << 27);
        assert_eq!(machine.acknowledge(0), Some(27));
    }
}
