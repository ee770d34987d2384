// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Which SMCs of the host reach the firmware. Default deny: what is not named here is answered
//! with NOT_SUPPORTED and never leaves EL2.

use crate::broken::{Mistake, broken};
use gzvm_abi::hypercall::strip_sve_hint;

use super::psci;
use super::smccc;

/// What EL2 does with an SMC of the host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostCall {
    /// The firmware answers it as it stands.
    Forward,
    /// A PSCI call that EL2 has a part in.
    Psci(psci::Function),
    /// Refused.
    Deny,
}

/// Decides by x0; only its low 32 bits count (SMCCC 2.7).
pub fn decide(fid: u64) -> HostCall {
    let fid = strip_sve_hint(fid as u32);
    if smccc::is_psci(fid) {
        return match psci::Function::from_fid(fid) {
            Some(f) => HostCall::Psci(f),
            None => HostCall::Deny,
        };
    }
    match fid {
        smccc::VERSION
        | smccc::ARCH_FEATURES
        | smccc::ARCH_SOC_ID
        | 0xC000_0002
        | smccc::ARCH_WORKAROUND_1
        | smccc::ARCH_WORKAROUND_2
        | smccc::ARCH_WORKAROUND_3 => HostCall::Forward,
        // TRNG 1.0: VERSION, FEATURES, GET_UUID, RND.
        0x8400_0050..=0x8400_0053 | 0xC400_0053 => HostCall::Forward,
        _ if broken(Mistake::AnySmc) => HostCall::Forward,
        _ => HostCall::Deny,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_deny() {
        // FF-A, SDEI, vendor, OEM, trusted OS, standard hypervisor.
        for fid in [0x8400_0060u64, 0xC400_0020, 0x8200_0000, 0x8300_0000, 0xB200_0000, 0x8600_0000, 0, 1] {
            assert_eq!(decide(fid), HostCall::Deny, "{fid:#x}");
        }
        assert_eq!(decide(0xFFFF_FFFF_8000_0000), HostCall::Forward);
        assert_eq!(decide(0xC401_0003), HostCall::Psci(psci::Function::CpuOn), "with the SVE hint");
        assert_eq!(decide(0xC400_0003), HostCall::Psci(psci::Function::CpuOn));
    }

    /// Its memory sharing most of all: what is not the host's must not be handed to the secure world.
    #[test]
    fn ff_a_is_refused() {
        for n in 0x60..=0xEFu64 {
            for base in [0x8400_0000u64, 0xC400_0000, 0x8401_0000, 0xC401_0000, 0xFFFF_FFFF_8400_0000] {
                assert_eq!(decide(base | n), HostCall::Deny, "{:#x}", base | n);
            }
        }
    }

    #[test]
    fn the_allow_list_is_short() {
        let allowed = (0..=u16::MAX)
            .flat_map(|n| [0x8000_0000u32, 0xC000_0000, 0x8400_0000, 0xC400_0000].map(|b| b | u32::from(n)))
            .filter(|fid| decide(u64::from(*fid)) == HostCall::Forward)
            .count();
        assert_eq!(allowed, 12);
    }
}
