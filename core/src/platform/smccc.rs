// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls that guests make by HVC, besides PSCI (SMCCC 1.2, Arm DEN0028).

use gzvm_abi::guest;
use gzvm_abi::hypercall::strip_sve_hint;

/// SMCCC's "not supported".
pub const NOT_SUPPORTED: u64 = -1i64 as u64;
/// SMCCC's "not required".
pub const NOT_REQUIRED: u64 = -2i64 as u64;
/// SMCCC's "invalid parameter".
pub const INVALID_PARAMETER: u64 = -3i64 as u64;

/// SMCCC_VERSION.
pub const VERSION: u32 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
pub const ARCH_FEATURES: u32 = 0x8000_0001;
/// SMCCC_ARCH_SOC_ID.
pub const ARCH_SOC_ID: u32 = 0x8000_0002;
/// SMCCC_ARCH_WORKAROUND_1.
pub const ARCH_WORKAROUND_1: u32 = 0x8000_8000;
/// SMCCC_ARCH_WORKAROUND_2.
pub const ARCH_WORKAROUND_2: u32 = 0x8000_7FFF;
/// SMCCC_ARCH_WORKAROUND_3.
pub const ARCH_WORKAROUND_3: u32 = 0x8000_3FFF;

/// What EL2 does with a guest's call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// x0..x3, at once.
    Values([u64; 4]),
    /// A PSCI call: see [`psci`](super::psci).
    Psci,
    /// Wall clock: the driver answers.
    Ptp,
    /// The guest gives the page at this IPA back.
    Relinquish(u64),
}

const fn one(x0: u64) -> Answer {
    Answer::Values([x0, 0, 0, 0])
}

/// Whether `fid` is PSCI's (owner 4, functions 0..=0x1F).
pub const fn is_psci(fid: u32) -> bool {
    matches!(fid & !0x4000_0000, 0x8400_0000..=0x8400_001F)
}

/// Decides on the call with x0 = `fid` (low 32 bits count) and x1 = `arg`.
pub fn decide(fid: u64, arg: u64) -> Answer {
    let fid = strip_sve_hint(fid as u32);
    match fid {
        _ if is_psci(fid) => Answer::Psci,
        VERSION => one(0x0001_0002),
        ARCH_FEATURES => one(arch_feature(arg as u32)),
        guest::VENDOR_HYP_UID => Answer::Values(guest::KVM_UID.map(u64::from)),
        // Bit n: function n. The features call itself, the wall clock, relinquish.
        guest::VENDOR_HYP_FEATURES => one(1 << 9 | 0b11),
        guest::MEM_RELINQUISH => Answer::Relinquish(arg),
        guest::PTP if arg <= 1 => Answer::Ptp,
        guest::PTP => one(NOT_SUPPORTED),
        _ => one(NOT_SUPPORTED),
    }
}

/// SMCCC_ARCH_FEATURES: 0 = implemented. The workaround calls are not offered: EL2 does not mitigate
/// branch predictor training by guests yet (docs/threat-model.md).
fn arch_feature(fid: u32) -> u64 {
    match fid {
        VERSION | ARCH_FEATURES => 0,
        _ => NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_calls_are_not_supported() {
        for fid in [0u64, 0x8400_0050, 0xC600_0003, 0xFB00_1000, u64::MAX, 0xC400_00FF] {
            assert_eq!(decide(fid, 0), one(NOT_SUPPORTED), "{fid:#x}");
        }
    }

    #[test]
    fn the_upper_half_of_x0_is_ignored() {
        assert_eq!(decide(0xDEAD_0000_8000_0000, 0), one(0x10002));
    }

    #[test]
    fn psci_is_recognised_in_both_widths() {
        assert!(is_psci(0x8400_0003) && is_psci(0xC400_0003) && !is_psci(0x8400_0020));
        assert!(!is_psci(0x0400_0003));
    }
}
