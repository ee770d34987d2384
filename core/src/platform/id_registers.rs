// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a guest reads from the ID registers: the CPU's values, cut to what EL2 switches or lets
//! through. Default deny: a field that is not named reads as zero (or, where zero means "present",
//! as "absent").
//!
//! SVE is shown to VMs that have been given it ([`Given`]).
//!
//! Hidden for now: EL2 and EL3, SME, MTE, RAS, MPAM, AMU, PMU, SPE, TRBE, trace, 52-bit
//! addresses, permission indirection and overlays, GCS, MOPS, nested virtualisation.

/// How a 4-bit field is shown.
#[derive(Clone, Copy)]
enum Show {
    /// At most this much.
    Max(u8),
    /// Exactly this, whatever the CPU has.
    Fixed(u8),
    /// 0xF, "absent", stays; anything else is cut to its lowest bit (FP16 of FP and AdvSIMD).
    Signed,
    /// 0xF, "absent", stays; anything else is 0, plainly present (translation granules).
    Granule,
}

use Show::{Fixed, Granule, Max, Signed};

/// (lowest bit of the field, how).
type Fields = &'static [(u32, Show)];

/// ID_AA64PFR0_EL1: EL0 and EL1 AArch64 only (trapped A32 and T32 instructions are not emulated), no EL2/EL3; FP, AdvSIMD (0xF = absent) as is; GICv3
/// system registers; DIT, CSV2 without SCXTNUM, CSV3.
const PFR0: Fields = &[
    (0, Fixed(1)),
    (4, Fixed(1)),
    (16, Signed),
    (20, Signed),
    (24, Fixed(1)),
    (48, Max(1)),
    (56, Max(1)),
    (60, Max(1)),
];
/// ID_AA64PFR1_EL1: BT, SSBS.
const PFR1: Fields = &[(0, Max(1)), (4, Max(2))];
/// ID_AA64DFR0_EL1: debug architecture v8.0, the CPU's breakpoints, watchpoints and context-aware
/// breakpoints. No PMU (0), no double lock (0xF).
const DFR0: Fields = &[(0, Fixed(6)), (12, Max(0xF)), (20, Max(0xF)), (28, Max(0xF)), (36, Fixed(0xF))];
/// ID_AA64ISAR0_EL1: all but TME.
const ISAR0: Fields = &[
    (4, Max(2)),
    (8, Max(1)),
    (12, Max(2)),
    (16, Max(1)),
    (20, Max(3)),
    (28, Max(1)),
    (32, Max(1)),
    (36, Max(1)),
    (40, Max(1)),
    (44, Max(1)),
    (48, Max(1)),
    (52, Max(2)),
    (56, Max(2)),
    (60, Max(1)),
];
/// ID_AA64ISAR1_EL1: DPB, APA, API, JSCVT, FCMA, LRCPC, GPA, GPI, FRINTTS, SB, SPECRES, BF16, DGH, I8MM.
const ISAR1: Fields = &[
    (0, Max(2)),
    (4, Max(5)),
    (8, Max(5)),
    (12, Max(1)),
    (16, Max(1)),
    (20, Max(3)),
    (24, Max(1)),
    (28, Max(1)),
    (32, Max(1)),
    (36, Max(1)),
    (40, Max(1)),
    (44, Max(1)),
    (48, Max(1)),
    (52, Max(1)),
];
/// ID_AA64ISAR2_EL1: RPRES, GPA3, APA3, BC, PAC_frac. Not WFxT, MOPS, CLRBHB's relatives.
const ISAR2: Fields = &[(4, Max(1)), (8, Max(1)), (12, Max(5)), (20, Max(1)), (24, Max(1))];
/// ID_AA64MMFR0_EL1: PA range at most 40 bits, ASID bits, mixed endian, granules without 52-bit
/// forms (TGran16 0 = absent, TGran64 and TGran4 0 = present, 0xF = absent), stage-2 granules as stage 1;
/// self-synchronized counters (ECV), not the offset that is EL2's.
const MMFR0: Fields = &[
    (0, Max(2)),
    (4, Max(2)),
    (8, Max(1)),
    (12, Fixed(0)),
    (16, Max(1)),
    (20, Max(1)),
    (24, Granule),
    (28, Granule),
    (60, Max(1)),
];
/// ID_AA64MMFR1_EL1: hardware access flag and dirty state, HPDS, PAN, ETS.
const MMFR1: Fields = &[(0, Max(2)), (12, Max(2)), (20, Max(3)), (36, Max(2))];
/// ID_AA64MMFR2_EL1: CnP, UAO, IESB hidden, VARange 48, TTL, BBM, E0PD, AT (unaligned atomics), ST.
const MMFR2: Fields =
    &[(0, Max(1)), (4, Max(1)), (28, Max(1)), (32, Max(1)), (48, Max(1)), (52, Max(2)), (60, Max(1))];

/// ID_AA64PFR0_EL1.SVE, for those that have been given it.
const PFR0_SVE: Fields = &[(32, Max(1))];
/// ID_AA64ZFR0_EL1, for them: SVEver (SVE2.1 at most), AES, BitPerm, BF16, B16B16, SHA3, SM4, I8MM, F32MM, F64MM.
const ZFR0_SVE: Fields = &[
    (0, Max(2)),
    (4, Max(2)),
    (16, Max(1)),
    (20, Max(1)),
    (24, Max(1)),
    (32, Max(1)),
    (40, Max(1)),
    (44, Max(1)),
    (52, Max(1)),
    (56, Max(1)),
];

/// What a VM has been given beyond what every VM has.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Given {
    /// SVE.
    pub sve: bool,
}

/// The value of ID register S3_0_C0_C`crm`_`op2` for a guest, `hardware` being the CPU's.
/// `crm` 1..=7; everything else, and AArch32's registers, reads as zero.
pub fn filter(given: Given, crm: u8, op2: u8, hardware: u64) -> u64 {
    let more = match (crm, op2) {
        (4, 0) if given.sve => PFR0_SVE,
        (4, 4) if given.sve => ZFR0_SVE,
        _ => &[],
    };
    let fields = match (crm, op2) {
        (4, 0) => PFR0,
        (4, 1) => PFR1,
        (5, 0) => DFR0,
        (6, 0) => ISAR0,
        (6, 1) => ISAR1,
        (6, 2) => ISAR2,
        (7, 0) => MMFR0,
        (7, 1) => MMFR1,
        (7, 2) => MMFR2,
        _ => &[],
    };
    fields.iter().chain(more).fold(0, |value, (shift, show)| value | apply(*shift, *show, hardware))
}

fn apply(shift: u32, show: Show, hardware: u64) -> u64 {
    let have = (hardware.wrapping_shr(shift) & 0xF) as u8;
    let shown = match show {
        Signed | Granule if have == 0xF => 0xF,
        Signed => have & 1,
        Granule => 0,
        Max(limit) => have.min(limit),
        Fixed(value) => value,
    };
    u64::from(shown).wrapping_shl(shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(crm: u8, op2: u8, hardware: u64) -> u64 {
        super::filter(Given::default(), crm, op2, hardware)
    }

    #[test]
    fn sve_is_for_those_that_have_been_given_it() {
        let shown = |hardware| super::filter(Given { sve: true }, 4, 0, hardware);
        assert_eq!(shown(u64::MAX) >> 32 & 0xF, 1);
        assert_eq!(shown(0) >> 32 & 0xF, 0, "a CPU without it");
        assert_eq!(shown(u64::MAX) & !(0xF << 32), filter(4, 0, u64::MAX), "nothing else changes");
        let details = super::filter(Given { sve: true }, 4, 4, u64::MAX);
        assert_eq!(details, 0x0110_1101_0111_0022);
    }

    #[test]
    fn what_is_shown_passes_the_filter_again() {
        for given in [Given { sve: false }, Given { sve: true }] {
            for (crm, op2) in (1..8).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
                for hardware in [0, u64::MAX, 0x1111_1111_1111_1111, 0x2222_2222_2222_2222] {
                    let shown = super::filter(given, crm, op2, hardware);
                    assert_eq!(super::filter(given, crm, op2, shown), shown, "C{crm}_{op2}");
                }
            }
        }
    }

    #[test]
    fn what_is_not_switched_is_hidden() {
        let pfr0 = filter(4, 0, u64::MAX);
        for (name, shift) in [
            ("EL2", 8),
            ("EL3", 12),
            ("RAS", 28),
            ("SVE", 32),
            ("SEL2", 36),
            ("MPAM", 40),
            ("AMU", 44),
            ("RME", 52),
        ] {
            assert_eq!(pfr0 >> shift & 0xF, 0, "{name}");
        }
        assert_eq!(pfr0 >> 16 & 0xFF, 0xFF, "absent FP stays absent");
        let pfr1 = filter(4, 1, u64::MAX);
        for (name, shift) in [("MTE", 8), ("SME", 24), ("GCS", 44), ("CSV2_frac", 32), ("NMI", 36)] {
            assert_eq!(pfr1 >> shift & 0xF, 0, "{name}");
        }
        let dfr0 = filter(5, 0, u64::MAX);
        for (name, shift) in [("PMU", 8), ("PMS", 32), ("TRF", 40), ("TRBE", 44), ("BRBE", 52), ("Trace", 4)]
        {
            assert_eq!(dfr0 >> shift & 0xF, 0, "{name}");
        }
        assert_eq!(filter(7, 3, u64::MAX), 0, "ID_AA64MMFR3_EL1");
        assert_eq!(filter(4, 4, u64::MAX) | filter(4, 5, u64::MAX), 0, "SVE and SME details");
        assert_eq!(filter(7, 0, u64::MAX) & 0xF, 2, "40 bits");
        assert_eq!(filter(7, 0, 1 << 28) >> 28, 0, "LPA2");
        assert_eq!(filter(7, 1, u64::MAX) >> 8 & 0xF, 0, "VHE");
    }

    #[test]
    fn nothing_is_promised_that_the_cpu_lacks() {
        for (crm, op2) in [(4, 1), (6, 0), (6, 1), (6, 2), (7, 1), (7, 2)] {
            assert_eq!(filter(crm, op2, 0), 0, "C{crm}_{op2}");
        }
    }
}
