// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SMCCC: version, unknown calls, the vendor hypervisor services, and no way to the host's calls.

use gzvm_abi::guest;
use gzvm_abi::hypercall::{FID_BASE_SMC32, FID_BASE_SMC64};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::smccc::{ARCH_FEATURES, Conduit, NOT_SUPPORTED, VERSION};
use gzvm_guest_kit::{cases, check, check_eq, exception, fail, machine, println, skip};

use crate::util::{Below, below, known_of_kvm, vendor_uid};

pub const CASES: &[Case] = cases!["firmware":
    smccc_version, arch_features, workarounds_match_the_id_register, unknown_functions_are_not_supported, unknown_functions_keep_registers,
    smc_is_answered_or_undefined, host_functions_are_not_supported, hvc_with_a_number, vendor_uid_is_known,
    vendor_features_match_calls, random_numbers,
];

/// A call by the conduit of the device tree that must be answered.
fn call(function: u64, args: &[u64]) -> [u64; 4] {
    machine::get().conduit.call(function, args)
}

fn smccc_version() -> Outcome {
    if below() == Below::Nothing {
        skip!("QEMU's own PSCI knows no SMCCC");
    }
    let version = call(VERSION.into(), &[])[0] as u32 as i32;
    check!(version >= 0x1_0001, "SMCCC_VERSION {version:#x} is older than 1.1");
    Ok(())
}

fn arch_features() -> Outcome {
    if below() == Below::Nothing {
        skip!("QEMU's own PSCI knows no SMCCC");
    }
    known_of_kvm("its ARCH_FEATURES does not know SMCCC_VERSION")?;
    check_eq!(call(ARCH_FEATURES.into(), &[VERSION.into()])[0] as i32, 0, "of SMCCC_VERSION");
    check_eq!(call(ARCH_FEATURES.into(), &[0x8000_7FF0])[0] as i32, -1, "of an unknown function");
    // SMC32: the upper half of x1 is not there.
    let dirty = 0xDEAD_BEEF_0000_0000 | u64::from(VERSION);
    check_eq!(call(ARCH_FEATURES.into(), &[dirty])[0] as i32, 0, "of SMCCC_VERSION with upper bits");
    Ok(())
}

/// ARCH_WORKAROUND_1 is for CPUs without CSV2; where it is said to be there, it can be called.
fn workarounds_match_the_id_register() -> Outcome {
    if below() != Below::Gzvm {
        skip!("our own policy");
    }
    let csv2 = gzvm_guest_kit::read_sysreg!("id_aa64pfr0_el1") >> 56 & 0xF;
    for (function, there) in [(0x8000_8000u64, csv2 >= 1), (0x8000_7FFF, false)] {
        let feature = call(ARCH_FEATURES.into(), &[function])[0] as i32;
        check_eq!(feature, if there { 1 } else { -1 }, "feature {function:#x} with CSV2 = {csv2}");
        let answer = call(function, &[])[0] as i32;
        check_eq!(answer >= 0, there, "answer of {function:#x}");
    }
    check_eq!(call(ARCH_FEATURES.into(), &[0xC500_0020])[0] as i32, -1, "stolen time");
    check_eq!(call(ARCH_FEATURES.into(), &[0x8000_0002])[0] as i32, -1, "SoC ID");
    Ok(())
}

/// Function IDs that nothing defines: each owner, fast and yielding, 32 and 64 bits.
fn unknown_functions() -> impl Iterator<Item = u64> {
    (0..64u64)
        .flat_map(|owner| [0x8000_FFE1, 0xC000_FFE1, 0x0000_FFE1, 0x4000_FFE1].map(|base| base | owner << 24))
}

fn unknown_functions_are_not_supported() -> Outcome {
    for function in unknown_functions().chain([0, u64::from(u32::MAX), 0x8400_001F, 0xC400_1234]) {
        let x0 = call(function, &[1, 2, 3])[0];
        // A 32-bit function may leave zeros above.
        check!(x0 as i64 == NOT_SUPPORTED || x0 == 0xFFFF_FFFF, "{function:#x} gives {x0:#x}");
    }
    Ok(())
}

fn unknown_functions_keep_registers() -> Outcome {
    let mut x = [0u64; 18];
    for (n, register) in x.iter_mut().enumerate() {
        *register = 0x1111 * n as u64;
    }
    x[0] = 0x8600_FFE1;
    let after = machine::get().conduit.call18(x);
    check_eq!(&after[4..], &x[4..], "x4..x17");
    Ok(())
}

fn smc_is_answered_or_undefined() -> Outcome {
    for function in unknown_functions() {
        if let Ok(x) = exception::expect(|| Conduit::Smc.call(function, &[])) {
            let x0 = x[0];
            check!(x0 as i64 == NOT_SUPPORTED || x0 == 0xFFFF_FFFF, "SMC {function:#x} gives {x0:#x}");
        }
    }
    Ok(())
}

fn host_functions_are_not_supported() -> Outcome {
    if machine::get().conduit != Conduit::Hvc {
        skip!("HVC is not the conduit");
    }
    for base in [FID_BASE_SMC32, FID_BASE_SMC64] {
        for n in 0..0x50 {
            let x0 = call((base + n).into(), &[0x1_0000, 0, 0, 0])[0];
            check!(x0 as i64 == NOT_SUPPORTED || x0 == 0xFFFF_FFFF, "function {n:#x} gives {x0:#x}");
        }
    }
    Ok(())
}

fn hvc_with_a_number() -> Outcome {
    if below() == Below::Nothing {
        skip!("nothing below");
    }
    // Not SMCCC: undefined, or answered as if it were.
    let result = exception::expect(|| {
        let mut x0 = 0x8600_FFE1_u64;
        // SAFETY: an unknown function, whatever the number means.
        unsafe { core::arch::asm!("hvc #0x1234", inout("x0") x0, clobber_abi("C")) };
        x0
    });
    match result {
        Ok(x0) => check_eq!(x0 as i32, -1, "x0"),
        Err(e) => check_eq!(e.class(), exception::ec::UNDEFINED, "class"),
    }
    Ok(())
}

fn vendor_uid_is_known() -> Outcome {
    if below() == Below::Nothing {
        skip!("nothing below");
    }
    match vendor_uid() {
        Some(guest::KVM_UID) => println!("note: vendor UID is KVM's"),
        Some(guest::GENIEZONE_UID) => println!("note: vendor UID is GenieZone's"),
        other => fail!("UID {other:#x?}"),
    }
    Ok(())
}

fn vendor_features_match_calls() -> Outcome {
    if below() == Below::Nothing {
        skip!("nothing below");
    }
    let features = call(guest::VENDOR_HYP_FEATURES.into(), &[])[0];
    check!(features & 1 == 1, "feature bit of the bitmap itself in {features:#x}");
    for (bit, function) in [(2, guest::HYP_MEMINFO), (5, guest::MMIO_GUARD_INFO)] {
        let answer = call(function.into(), &[])[0] as i64;
        if features >> bit & 1 == 1 {
            check_eq!(answer, 4096, "granule of {function:#x}, which the bitmap has");
        } else {
            check!(answer < 0, "{function:#x} gives {answer:#x}, but the bitmap lacks it");
        }
    }
    Ok(())
}

/// TRNG 1.0. On gzvm it is there where the CPU has a source.
fn random_numbers() -> Outcome {
    const VERSION: u64 = 0x8400_0050;
    const FEATURES: u64 = 0x8400_0051;
    const UUID: u64 = 0x8400_0052;
    const RND32: u64 = 0x8400_0053;
    const RND64: u64 = 0xC400_0053;
    if below() == Below::Nothing {
        skip!("QEMU's own PSCI knows no TRNG");
    }
    let version = call(VERSION, &[])[0] as i32;
    if below() == Below::Gzvm {
        let rng = gzvm_guest_kit::read_sysreg!("id_aa64isar0_el1") >> 60 != 0;
        check_eq!(version == 0x1_0000, rng, "version {version:#x}, FEAT_RNG");
    }
    if version < 0x1_0000 {
        for (function, argument) in [(FEATURES, RND64), (UUID, 0), (RND32, 32), (RND64, 64)] {
            check_eq!(call(function, &[argument])[0] as i32, -1, "{function:#x} without a source");
        }
        return Ok(());
    }
    for (function, there) in
        [(VERSION, 0), (FEATURES, 0), (UUID, 0), (RND32, 0), (RND64, 0), (0x8400_0054, -1)]
    {
        check_eq!(call(FEATURES, &[function])[0] as i32, there, "feature {function:#x}");
    }
    let uuid = call(UUID, &[]);
    check!(uuid[0] as i32 != -1 && uuid != [0; 4] && uuid == call(UUID, &[]), "UUID {uuid:x?}");
    for (function, most, width) in [(RND32, 96, 32), (RND64, 192, 64)] {
        for count in [most + 1, 255, 1 << 20] {
            check_eq!(call(function, &[count])[0] as i32, -2, "{count} bits");
        }
        if below() == Below::Gzvm {
            check_eq!(call(function, &[0])[0] as i32, -2, "no bits");
        }
        let (mut ones, mut zeroes) = ([0u64; 3], [0u64; 3]);
        for count in [1, 7, width - 1, width, width + 1, 2 * width, most - 1].into_iter().chain([most; 40]) {
            let [status, words @ ..] = call(function, &[count]);
            check_eq!(status, 0, "{count} bits");
            for (n, word) in words.into_iter().rev().enumerate() {
                let here = count.saturating_sub(n as u64 * width).min(width);
                check!(here == 64 || word >> here == 0, "{count} bits: {words:x?}");
                if count == most {
                    ones[n] |= word;
                    zeroes[n] |= !word;
                }
            }
        }
        let all = u64::MAX >> (64 - width);
        for n in 0..3 {
            check_eq!(
                (ones[n], zeroes[n] & all),
                (all, all),
                "bits that are never 1 or never 0, register {n}"
            );
        }
    }
    Ok(())
}
