// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the CPU can do, from its ID registers. Read once per CPU.

use gzvm_core::addr::pa_bits;

use super::sysreg::read;

/// Features that EL2 has something to do about.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Physical address bits, at most 48.
    pub pa_bits: u8,
    /// 16-bit VMIDs.
    pub vmid16: bool,
    /// FEAT_S2FWB.
    pub fwb: bool,
    /// FEAT_SVE.
    pub sve: bool,
    /// FEAT_SME.
    pub sme: bool,
    /// FEAT_SME_FA64.
    pub sme_fa64: bool,
    /// FEAT_SME2.
    pub sme2: bool,
    /// Any pointer authentication.
    pub pauth: bool,
    /// FEAT_HCX.
    pub hcx: bool,
    /// FEAT_FGT.
    pub fgt: bool,
    /// FEAT_FGT2.
    pub fgt2: bool,
    /// FEAT_AMUv1.
    pub amu: bool,
    /// FEAT_MPAM.
    pub mpam: bool,
    /// FEAT_PMUv3.
    pub pmu: bool,
    /// FEAT_SPE.
    pub spe: bool,
    /// FEAT_TRBE.
    pub trbe: bool,
    /// FEAT_TRF.
    pub trf: bool,
    /// FEAT_RAS.
    pub ras: bool,
    /// FEAT_RNG.
    pub rng: bool,
}

const fn field(register: u64, shift: u32) -> u64 {
    register >> shift & 0xF
}

impl Features {
    /// Reads this CPU's ID registers.
    pub fn detect() -> Self {
        let pfr0 = read!("id_aa64pfr0_el1");
        let pfr1 = read!("id_aa64pfr1_el1");
        let mmfr0 = read!("id_aa64mmfr0_el1");
        let mmfr1 = read!("id_aa64mmfr1_el1");
        let mmfr2 = read!("id_aa64mmfr2_el1");
        let isar0 = read!("id_aa64isar0_el1");
        let isar1 = read!("id_aa64isar1_el1");
        let isar2 = read!("s3_0_c0_c6_2");
        let dfr0 = read!("id_aa64dfr0_el1");
        let smfr0 = read!("s3_0_c0_c4_5");
        let sme = field(pfr1, 24) != 0;
        let pauth = isar1 & 0xFF00_0FF0 != 0 || isar2 & 0xFF00 != 0;
        Self {
            pa_bits: pa_bits(mmfr0 as u32 & 0xF),
            vmid16: field(mmfr1, 4) == 2,
            fwb: field(mmfr2, 40) != 0,
            sve: field(pfr0, 32) != 0,
            sme,
            sme_fa64: sme && smfr0 >> 63 != 0,
            sme2: sme && field(pfr1, 24) >= 2,
            pauth,
            hcx: field(mmfr1, 40) != 0,
            fgt: field(mmfr0, 56) != 0,
            fgt2: field(mmfr0, 56) >= 2,
            amu: field(pfr0, 44) != 0,
            mpam: field(pfr0, 40) != 0 || field(pfr1, 16) != 0,
            pmu: !matches!(field(dfr0, 8), 0 | 0xF),
            spe: field(dfr0, 32) != 0,
            trbe: field(dfr0, 44) != 0,
            trf: field(dfr0, 40) != 0,
            ras: field(pfr0, 28) != 0,
            rng: field(isar0, 60) != 0,
        }
    }
}
