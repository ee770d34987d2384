// SPDX-License-Identifier: Apache-2.0 OR MIT
//! GIC frames: identification, and every offset in every width and direction.

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::exception::{self, ec};
use gzvm_guest_kit::gic::{self, gicd, gicr};
use gzvm_guest_kit::mmio::Region;
use gzvm_guest_kit::{arch, cases, check, check_eq, fail, machine, skip, smp};

use crate::util::{Below, below};

pub const CASES: &[Case] = cases!["gic":
    identification, redistributors_match_the_cpus, enable_bits_hold, priorities_and_config_hold,
    every_distributor_read, every_redistributor_read, every_distributor_write, every_redistributor_write,
    works_after_all_that,
];

fn identification() -> Outcome {
    let d = gic::distributor();
    check_eq!(d.read32(gicd::PIDR2) >> 4 & 0xF, 3, "GICD_PIDR2.ArchRev");
    check!(d.read32(gicd::IIDR) != 0, "GICD_IIDR is 0");
    check!(gic::spi_limit() >= 64, "{} INTIDs", gic::spi_limit());
    check_eq!(d.read32(gicd::CTLR) & 0x12, 0x12, "GICD_CTLR.{{ARE_NS, EnableGrp1}}");
    check_eq!(gic::this_redistributor().read32(gicd::PIDR2) >> 4 & 0xF, 3, "GICR_PIDR2.ArchRev");
    Ok(())
}

fn redistributors_match_the_cpus() -> Outcome {
    let mut last = 0;
    for cpu in 0..smp::count() {
        let Some(r) = gic::redistributor(machine::get().cpus[cpu]) else {
            fail!("CPU {cpu} has no redistributor")
        };
        last += (r.read64(gicr::TYPER) >> 4 & 1) as usize;
    }
    check_eq!(last, 1, "redistributors that say they are the last");
    Ok(())
}

fn enable_bits_hold() -> Outcome {
    let d = gic::distributor();
    for register in [gicd::ISENABLER + 4, gicd::ISPENDR + 4, gicd::ISACTIVER + 4] {
        let clear = register + 0x80;
        d.write32(clear, !0);
        for pattern in [0x00FF_FF00, 0x0055_5500, 0x0010_0000] {
            d.write32(register, pattern);
            check_eq!(d.read32(register), pattern, "GICD+{register:#x}");
            check_eq!(d.read32(clear), pattern, "GICD+{clear:#x}");
            d.write32(clear, !0);
            check_eq!(d.read32(register), 0, "GICD+{register:#x} after clearing");
        }
    }
    Ok(())
}

fn priorities_and_config_hold() -> Outcome {
    let d = gic::distributor();
    for intid in (40..60).step_by(4) {
        let value = 0x5048_4038 + intid as u32 * 0x0800_0000;
        d.write32(gicd::IPRIORITYR + intid, value);
        check_eq!(d.read32(gicd::IPRIORITYR + intid), value, "priorities of INTID {intid}");
    }
    d.write32(gicd::ICFGR + 8, 0xAAAA_AAAA);
    check_eq!(d.read32(gicd::ICFGR + 8) & 0xAAAA_AAAA, 0xAAAA_AAAA, "edge");
    d.write32(gicd::ICFGR + 8, 0);
    check_eq!(d.read32(gicd::ICFGR + 8) & 0xAAAA_AAAA, 0, "level");
    gic::init_distributor();
    Ok(())
}

/// One access; an abort of it is fine, anything else is not.
fn access(f: impl FnOnce(), what: &str, offset: usize) -> Outcome {
    match exception::expect(f) {
        Ok(()) => Ok(()),
        Err(e) if e.class() == ec::DATA_ABORT || e.class() == ec::SERROR => Ok(()),
        Err(e) => fail!("{what} at {offset:#x}: {e}"),
    }
}

/// Offsets of words worth an access: all where there are registers (twice, in a redistributor),
/// some of the rest of each 64 KiB frame.
fn words(region: Region) -> impl Iterator<Item = usize> {
    (0..region.size()).step_by(4).filter(|offset| {
        let in_frame = offset % 0x1_0000;
        in_frame < 0x1000
            || (0x6000..0x6400).contains(&in_frame)
            || in_frame >= 0xFF00
            || in_frame % 0x80 == 0x44
    })
}

fn read_all(region: Region) -> Outcome {
    for word in words(region) {
        for offset in word..word + 4 {
            access(|| _ = region.read8(offset), "byte", offset)?;
        }
        access(|| _ = region.read16(word), "half-word", word)?;
        access(|| _ = region.read16(word + 2), "half-word", word + 2)?;
        access(|| _ = region.read32(word), "word", word)?;
        if word % 8 == 0 {
            access(|| _ = region.read64(word), "double word", word)?;
        }
    }
    // Unaligned: the guest's own alignment fault, device memory being what it is.
    for offset in [1, 2, 3, 0x101, 0x6001, 0x6004] {
        access(|| _ = region.read32(offset), "unaligned word", offset)?;
        access(|| _ = region.read64(offset), "unaligned double word", offset)?;
    }
    Ok(())
}

fn write_all(region: Region) -> Outcome {
    for value in [0u64, u64::MAX, 0x5555_5555_5555_5555] {
        for word in words(region) {
            access(|| region.write32(word, value as u32), "word", word)?;
            access(|| region.write8(word, value as u8), "byte", word)?;
            access(|| region.write8(word + 3, value as u8), "byte", word + 3)?;
            access(|| region.write16(word, value as u16), "half-word", word)?;
            if word % 8 == 0 {
                access(|| region.write64(word, value), "double word", word)?;
            }
        }
    }
    Ok(())
}

fn restore() {
    gic::init_distributor();
    gic::init_cpu();
    arch::isb();
}

fn every_distributor_read() -> Outcome {
    read_all(gic::distributor())
}

fn every_redistributor_read() -> Outcome {
    read_all(gic::this_redistributor())
}

fn every_distributor_write() -> Outcome {
    let outcome = write_all(gic::distributor());
    restore();
    outcome
}

fn every_redistributor_write() -> Outcome {
    if below() == Below::Nothing {
        // LPI tables at random addresses.
        skip!("a real GIC would write to memory");
    }
    for cpu in 0..smp::count() {
        if let Some(r) = gic::redistributor(machine::get().cpus[cpu]) {
            write_all(r)?;
        }
    }
    restore();
    Ok(())
}

fn works_after_all_that() -> Outcome {
    restore();
    gic::send_sgi(arch::mpidr(), 7);
    let mut taken = gic::SPURIOUS;
    gzvm_guest_kit::timer::wait_ms(1000, || {
        taken = gic::acknowledge();
        taken != gic::SPURIOUS
    });
    check_eq!(taken, 7, "interrupt");
    gic::end(taken);
    Ok(())
}
