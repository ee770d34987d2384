// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Calls that guests make by HVC, besides PSCI (SMCCC 1.2, Arm DEN0028).

use super::{psci, trng};
use crate::addr::PAGE_SIZE;
use crate::rpc;
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
/// What it answers.
const SMCCC_1_2: u64 = 0x0001_0002;
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
    /// x0; x1..x3 stay as they are (SMCCC 1.1).
    One(u64),
    /// x0..x3.
    Four([u64; 4]),
    /// A PSCI call: see [`psci`](super::psci).
    Psci,
    /// What firmware does for this CPU: [`arch_feature`] and [`workaround`] know, with its ID register.
    Arch {
        /// The call.
        fid: u32,
        /// x1.
        arg: u32,
    },
    /// Wall clock: the driver answers.
    Ptp,
    /// A call of the [`trng`](super::trng).
    Trng {
        /// The call.
        fid: u32,
        /// x1.
        arg: u64,
    },
    /// The guest gives the page at this IPA back.
    Relinquish(u64),
    /// A protected guest lets the host see the page at this IPA.
    Share(u64),
    /// It lets the host see pages from this IPA on, as many as x2 says.
    ShareRun(u64),
    /// It takes that back.
    Unshare(u64),
    /// From now on, only MMIO pages that it names go to the VMM.
    GuardEnroll,
    /// It names the MMIO page at this IPA.
    GuardMap(u64),
    /// It takes that back.
    GuardUnmap(u64),
    /// One of the calls of [`lending`](super::lending).
    Lending(u32),
    /// One of the calls about the measurement ([`identity`](crate::vm::identity)).
    Measurement(u32),
    /// One of the calls about images that were verified before ([`images`](crate::vm::images)).
    Image(u32),
    /// One of the calls of [`rpc`](crate::rpc::call), where the VM may have channels.
    Rpc(u32),
}

/// Whether `fid` is PSCI's (owner 4, functions 0..=0x1F).
pub const fn is_psci(fid: u32) -> bool {
    matches!(fid & !0x4000_0000, 0x8400_0000..=0x8400_001F)
}

/// The answer to calls whose answer is the same for every guest at all times: what x0 gets.
#[inline(always)]
pub const fn constant(fid: u64) -> Option<u64> {
    match fid as u32 {
        psci::VERSION_CALL => Some(psci::PSCI_1_1),
        VERSION => Some(SMCCC_1_2),
        _ => None,
    }
}

/// Decides on the call with x0 = `fid` (low 32 bits count) and x1 = `arg`, of which a 32-bit call has
/// the low half. Default deny; yielding calls (bit 31 clear) and reserved owners are among the denied. `protected`: the
/// guest's VM is.
#[inline(always)]
pub fn decide(fid: u64, arg: u64, protected: bool) -> Answer {
    let fid = strip_sve_hint(fid as u32);
    let narrow = arg as u32;
    match fid {
        _ if is_psci(fid) => Answer::Psci,
        VERSION => Answer::One(SMCCC_1_2),
        ARCH_FEATURES | ARCH_WORKAROUND_1 | ARCH_WORKAROUND_3 => Answer::Arch { fid, arg: narrow },
        guest::VENDOR_HYP_UID => Answer::Four(guest::KVM_UID.map(u64::from)),
        // Bit n: function n. The features call itself, the wall clock, relinquish; sharing and MMIO guard
        // (2 to 8) as in KVM: not for a VM that is not protected.
        guest::VENDOR_HYP_FEATURES => Answer::One(1 << 9 | 0b11 | if protected { 0x7F << 2 } else { 0 }),
        guest::HYP_MEMINFO | guest::MMIO_GUARD_INFO if protected => Answer::One(PAGE_SIZE),
        guest::MEM_SHARE if protected => Answer::Share(arg),
        guest::MEM_SHARE_RUN if protected => Answer::ShareRun(arg),
        guest::MEM_UNSHARE if protected => Answer::Unshare(arg),
        guest::MMIO_GUARD_ENROLL if protected => Answer::GuardEnroll,
        guest::MMIO_GUARD_MAP if protected => Answer::GuardMap(arg),
        guest::MMIO_GUARD_UNMAP if protected => Answer::GuardUnmap(arg),
        guest::VM_ID..=guest::VM_MEM_RECLAIM if protected => Answer::Lending(fid),
        guest::MEASUREMENT_EXTEND..=guest::MEASUREMENT_READ if protected => Answer::Measurement(fid),
        guest::IMAGE_KEY..=guest::IMAGE_REMEMBER if protected => Answer::Image(fid),
        guest::MEM_RELINQUISH => Answer::Relinquish(arg),
        guest::PTP if narrow <= 1 => Answer::Ptp,
        _ if rpc::call::is_rpc(fid) => Answer::Rpc(fid),
        _ if trng::is_trng(fid) => Answer::Trng { fid, arg },
        _ => Answer::One(NOT_SUPPORTED),
    }
}

/// ID_AA64PFR0_EL1.CSV2: 1, branch prediction is not trained across contexts; 3, nor by branch history.
const CSV2_SHIFT: u32 = 56;

/// SMCCC_ARCH_FEATURES of `fid`, on a CPU with this ID_AA64PFR0_EL1: 0 = implemented, 1 = implemented,
/// and not needed on this CPU.
///
/// The workaround calls go along with what the ID registers say: a CPU that needs none (CSV2) says so,
/// any other is offered none, since EL2 does not mitigate branch predictor training by guests
/// (docs/threat-model.md). ARCH_WORKAROUND_2 is PSTATE.SSBS's where the CPU has it, and nobody's else.
/// There is no SoC to name (ARCH_SOC_ID), and no stolen time.
pub fn arch_feature(fid: u32, pfr0: u64) -> u64 {
    match fid {
        VERSION | ARCH_FEATURES => 0,
        ARCH_WORKAROUND_1 | ARCH_WORKAROUND_3 if not_needed(fid, pfr0) => 1,
        _ => NOT_SUPPORTED,
    }
}

/// One of the workaround calls: nothing to do where it is not needed, not there elsewhere.
pub fn workaround(fid: u32, pfr0: u64) -> u64 {
    if not_needed(fid, pfr0) { 0 } else { NOT_SUPPORTED }
}

fn not_needed(fid: u32, pfr0: u64) -> bool {
    let csv2 = pfr0 >> CSV2_SHIFT & 0xF;
    match fid {
        ARCH_WORKAROUND_1 => csv2 >= 1,
        ARCH_WORKAROUND_3 => csv2 >= 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::VcpuId;

    #[test]
    fn constants_are_what_the_call_answers() {
        let mut power = psci::PowerStates::<1>::default();
        power.add(VcpuId(0));
        for fid in (0x8000_0000..0x8000_0100).chain(0x8400_0000..0x8400_0100) {
            let Some(value) = constant(fid) else { continue };
            match decide(fid, 0, false) {
                Answer::Psci => assert_eq!(
                    power.call(VcpuId(0), fid, [0; 3], 40),
                    psci::Outcome::Return(value),
                    "{fid:#x}"
                ),
                answer => assert_eq!(answer, Answer::One(value), "{fid:#x}"),
            }
        }
        assert_eq!(constant(0x8400_0000), Some(0x0001_0001));
        assert_eq!(constant(0xC400_0000), None);
    }

    #[test]
    fn unknown_calls_are_not_supported() {
        let unknown = [
            0u64,
            0xFB00_1000,
            u64::MAX,
            0xC400_00FF,
            // SOC_ID, ARCH_WORKAROUND_2, PV_TIME, SDEI, FF-A.
            0x8000_0002,
            0x8000_7FFF,
            0xC500_0020,
            0xC400_0020,
            0x8400_0060,
        ];
        for fid in unknown {
            assert_eq!(decide(fid, 0, false), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
    }

    #[test]
    fn protected_vms_services_are_neither_answered_nor_promised() {
        let Answer::One(features) = decide(guest::VENDOR_HYP_FEATURES.into(), 0, false) else {
            panic!("features")
        };
        for n in 2..=8u32 {
            assert_eq!(features >> n & 1, 0, "bit {n}");
            for base in [0x8600_0000u32, 0xC600_0000] {
                assert_eq!(
                    decide((base | n).into(), 0, false),
                    Answer::One(NOT_SUPPORTED),
                    "{base:#x} + {n}"
                );
            }
        }
    }

    #[test]
    fn protected_vms_share_and_guard() {
        let Answer::One(features) = decide(guest::VENDOR_HYP_FEATURES.into(), 0, true) else {
            panic!("features")
        };
        assert_eq!(features, 0b11_1111_1111);
        for (fid, answer) in [
            (guest::HYP_MEMINFO, Answer::One(4096)),
            (guest::MMIO_GUARD_INFO, Answer::One(4096)),
            (guest::MEM_SHARE, Answer::Share(0x5000)),
            (guest::MEM_SHARE_RUN, Answer::ShareRun(0x5000)),
            (guest::MEM_UNSHARE, Answer::Unshare(0x5000)),
            (guest::MMIO_GUARD_ENROLL, Answer::GuardEnroll),
            (guest::MMIO_GUARD_MAP, Answer::GuardMap(0x5000)),
            (guest::MMIO_GUARD_UNMAP, Answer::GuardUnmap(0x5000)),
        ] {
            assert_eq!(decide(fid.into(), 0x5000, true), answer, "{fid:#x}");
            let plain = decide(fid.into(), 0x5000, false);
            assert_eq!(plain, Answer::One(NOT_SUPPORTED), "{fid:#x} of a plain VM");
        }
    }

    #[test]
    fn lending_is_for_protected_vms() {
        for fid in guest::VM_ID..=guest::VM_MEM_RECLAIM {
            assert_eq!(decide(fid.into(), 0, true), Answer::Lending(fid), "{fid:#x}");
            assert_eq!(decide(fid.into(), 0, false), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
        for fid in [guest::VM_ID - 1, guest::MEM_SHARE_RUN + 1, 0x8600_F000] {
            assert_eq!(decide(fid.into(), 0, true), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
    }

    #[test]
    fn measurements_are_protected_vms() {
        for fid in guest::MEASUREMENT_EXTEND..=guest::MEASUREMENT_READ {
            assert_eq!(decide(fid.into(), 0, true), Answer::Measurement(fid), "{fid:#x}");
            assert_eq!(decide(fid.into(), 0, false), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
        for fid in guest::IMAGE_KEY..=guest::IMAGE_REMEMBER {
            assert_eq!(decide(fid.into(), 0, true), Answer::Image(fid), "{fid:#x}");
            assert_eq!(decide(fid.into(), 0, false), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
        for fid in [guest::MEASUREMENT_EXTEND - 1, guest::IMAGE_REMEMBER + 1] {
            assert_eq!(decide(fid.into(), 0, true), Answer::One(NOT_SUPPORTED), "{fid:#x}");
        }
    }

    #[test]
    fn yielding_calls_and_reserved_bits_are_not_supported() {
        for owner in 0..64u64 {
            for n in [0u64, 1, 0x50, 0xFF01] {
                for yielding in [owner << 24 | n, 1 << 30 | owner << 24 | n] {
                    assert_eq!(decide(yielding, 0, false), Answer::One(NOT_SUPPORTED), "{yielding:#x}");
                }
            }
        }
        for bit in 17..24 {
            assert_eq!(decide(0x8000_0000 | 1 << bit, 0, false), Answer::One(NOT_SUPPORTED), "bit {bit}");
        }
    }

    #[test]
    fn upper_halves_are_ignored() {
        assert_eq!(decide(0xDEAD_0000_8000_0000, 0, false), Answer::One(0x10002));
        assert_eq!(decide(guest::PTP.into(), 0xDEAD_0000_0000_0001, false), Answer::Ptp);
        assert_eq!(decide(guest::PTP.into(), 2, false), Answer::One(NOT_SUPPORTED));
        let dirty = decide(ARCH_FEATURES.into(), 0xDEAD_0000_0000_0000 | u64::from(VERSION), false);
        assert_eq!(dirty, Answer::Arch { fid: ARCH_FEATURES, arg: VERSION });
    }

    #[test]
    fn workarounds_go_with_the_id_register() {
        let fields = |csv2: u64| csv2 << 56;
        for (csv2, first, third) in [(0, -1, -1), (1, 1, -1), (2, 1, -1), (3, 1, 1)] {
            for (fid, there) in [(ARCH_WORKAROUND_1, first), (ARCH_WORKAROUND_3, third)] {
                let feature = arch_feature(fid, fields(csv2)) as i64;
                assert_eq!(feature, there, "{fid:#x} with CSV2 = {csv2}");
                let call = workaround(fid, fields(csv2)) as i64;
                assert_eq!(call >= 0, feature >= 0, "the call, {fid:#x} with CSV2 = {csv2}");
            }
        }
        for fid in [ARCH_SOC_ID, ARCH_WORKAROUND_2, 0xC500_0020] {
            assert_eq!(arch_feature(fid, u64::MAX) as i64, -1, "{fid:#x}");
        }
    }

    #[test]
    fn psci_is_recognised_in_both_widths() {
        assert!(is_psci(0x8400_0003) && is_psci(0xC400_0003) && !is_psci(0x8400_0020));
        assert!(!is_psci(0x0400_0003));
    }
}
