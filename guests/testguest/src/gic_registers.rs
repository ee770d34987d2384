// SPDX-License-Identifier: Apache-2.0 OR MIT
//! GIC frames: identification, and registers that hold what is written. `gic_sweep` has every offset.

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::gic::{self, gicd, gicr};
use gzvm_guest_kit::{cases, check, check_eq, fail, machine, smp};

pub const CASES: &[Case] = cases!["gic":
    identification, redistributors_match_the_cpus, enable_bits_hold, priorities_and_config_hold,
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
