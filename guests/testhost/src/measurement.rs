// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Who a protected VM is: the same again for the same, another for all else, and nothing that the host can add to or take
//! away (`threats.md` 17).

use gzvm_abi::guest::{self, measurement};
use gzvm_abi::hypercall::vm_feature::SVE;
use gzvm_abi::hypercall::{Function, Status, cap};
use gzvm_abi::run::exit;
use gzvm_abi::watch::{action, kind};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{cases, check, check_eq};

use crate::lending::guest::{Guest, leaving_nothing};
use crate::programs;
use crate::vm::{self, Vm};

pub const CASES: &[Case] = cases!["measurement":
    begins_as_documented, same_is_same_and_other_is_other, extended_and_sealed_by_the_guest, host_cannot_extend,
    plain_vms_have_none, facts_are_fixed_when_it_runs, images_are_the_firmwares,
];

const OK: u64 = 0;
const NOT_SUPPORTED: u64 = -1i64 as u64;
const INVALID: u64 = -3i64 as u64;
const DIGEST: [u64; 4] = [0x0706_0504_0302_0100, 2, 3, u64::MAX];

type Value = [u64; 4];

/// As the host reads it, and its state.
fn of(vm: &Vm) -> Result<(Value, u64), Verdict> {
    let half = |n| vm::must(vm.call(Function::Measurement, &[n]), "MEASUREMENT").map(|reply| reply.values);
    let ([a, b, state], [c, d, again]) = (half(0)?, half(1)?);
    check_eq!(state, again, "state with either half");
    Ok(([a, b, c, d], state))
}

fn refused(vm: &Vm, half: u64) -> Option<Status> {
    vm.call(Function::Measurement, &[half]).status()
}

/// Makes the guest run.
fn begin(guest: &mut Guest) -> Outcome {
    check_eq!(guest.status(guest::HYP_MEMINFO, [0; 4])?, 4096, "HYP_MEMINFO");
    Ok(())
}

/// The host's firmware that does not run far: its VM's measurement.
fn with_firmware() -> Result<(Value, u64), Verdict> {
    let mut vm = Vm::with_firmware(&[0; 4096], 1)?;
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "exit of a firmware without a device tree");
    let value = of(&vm)?;
    vm.destroy()?;
    Ok(value)
}

/// No firmware, no features, not watched; in the image for users.
fn begins_as_documented() -> Outcome {
    const VALUE: [u8; 32] = [
        0x02, 0xCD, 0x7F, 0x0E, 0x8B, 0xE9, 0x68, 0x5D, 0xC8, 0xCD, 0x1C, 0xEA, 0x84, 0x1C, 0x33, 0x62, 0x20,
        0xBB, 0x8D, 0xFD, 0xDC, 0x69, 0xFD, 0xAC, 0xF5, 0x35, 0xC5, 0x64, 0xE9, 0xE1, 0xCD, 0xED,
    ];
    leaving_nothing(|| {
        let mut guest = Guest::new()?;
        begin(&mut guest)?;
        let words = core::array::from_fn(|n| {
            VALUE[8 * n..8 * n + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
        });
        check_eq!(of(&guest.0)?, (words, 0), "measurement and state");
        guest.destroy()
    })
}

fn same_is_same_and_other_is_other() -> Outcome {
    leaving_nothing(|| {
        let mut values = [Value::default(); 4];
        for (n, value) in values.iter_mut().enumerate() {
            let watch = [0, 0, kind::UNDEFINED, kind::UNDEFINED][n];
            let action = [0, 0, action::REPORT, action::KILL][n];
            let mut guest = Guest::new()?;
            if watch != 0 {
                let watched = guest.0.call(Function::SetWatch, &[watch.into(), action.into(), 0]);
                vm::must(watched, "SET_WATCH")?;
            }
            begin(&mut guest)?;
            *value = of(&guest.0)?.0;
            guest.destroy()?;
        }
        let [plain, again, watched, killed] = values;
        check_eq!(plain, again, "two VMs alike");
        check!(
            watched != plain && killed != plain && killed != watched,
            "a watch does not show: {values:x?}"
        );
        if call(Function::VmFeatures, &[0, 0]).values[0] & SVE != 0 {
            let mut guest = Guest::with_features(SVE)?;
            begin(&mut guest)?;
            check!(of(&guest.0)?.0 != plain, "SVE does not show");
            guest.destroy()?;
        }
        let (firmware, state) = with_firmware()?;
        check_eq!(state, measurement::FIRMWARE, "state: firmware that has told nothing");
        check_eq!(with_firmware()?, (firmware, state), "firmware, twice");
        check!(!values.contains(&firmware), "a VM without firmware is as one with it");
        Ok(())
    })
}

/// What the guest reads of itself is what the host reads.
fn agrees(guest: &mut Guest) -> Result<Value, Verdict> {
    let mut value = Value::default();
    for half in 0..2 {
        let [status, low, high, _] = guest.call(guest::MEASUREMENT_READ, [half as u64, 0, 0, 0])?;
        check_eq!(status, OK, "MEASUREMENT_READ");
        value[2 * half..2 * half + 2].copy_from_slice(&[low, high]);
    }
    check_eq!(value, of(&guest.0)?.0, "what the guest reads of itself");
    Ok(value)
}

fn extended_and_sealed_by_the_guest() -> Outcome {
    leaving_nothing(|| {
        let mut guest = Guest::new()?;
        begin(&mut guest)?;
        let first = agrees(&mut guest)?;
        check_eq!(guest.status(guest::MEASUREMENT_EXTEND, DIGEST)?, OK, "MEASUREMENT_EXTEND");
        let second = agrees(&mut guest)?;
        check!(second != first, "nothing was added");
        check_eq!(guest.status(guest::MEASUREMENT_EXTEND, DIGEST)?, OK, "MEASUREMENT_EXTEND again");
        let third = agrees(&mut guest)?;
        check!(third != second && third != first, "the same digest again was not added");
        check_eq!(of(&guest.0)?.1, 2 << measurement::EXTENDS_SHIFT, "state: extended twice, open");
        check_eq!(guest.status(guest::MEASUREMENT_READ, [2, 0, 0, 0])?, INVALID, "a third half");
        check_eq!(guest.status(guest::MEASUREMENT_SEAL, [0; 4])?, OK, "MEASUREMENT_SEAL");
        let sealed = (third, 2 << measurement::EXTENDS_SHIFT | measurement::SEALED);
        check_eq!(of(&guest.0)?, sealed, "sealed");
        for function in [guest::MEASUREMENT_EXTEND, guest::MEASUREMENT_SEAL] {
            check_eq!(
                guest.status(function, DIGEST)?,
                guest::MEASUREMENT_SEALED,
                "{function:#x} after the seal"
            );
        }
        check_eq!(of(&guest.0)?, sealed, "after attempts to add to what is sealed");
        let mut other = Guest::new()?;
        for digest in [[0; 4], DIGEST] {
            check_eq!(other.status(guest::MEASUREMENT_EXTEND, digest)?, OK, "MEASUREMENT_EXTEND");
            check!(
                ![first, second, third].contains(&of(&other.0)?.0),
                "another digest, the same measurement"
            );
        }
        check_eq!(of(&guest.0)?, sealed, "with another VM around");
        other.destroy()?;
        guest.destroy()
    })
}

/// The guest's calls are not the host's, and the host's own only tells.
fn host_cannot_extend() -> Outcome {
    leaving_nothing(|| {
        let mut guest = Guest::new()?;
        begin(&mut guest)?;
        let before = of(&guest.0)?;
        for function in guest::MEASUREMENT_EXTEND..=guest::MEASUREMENT_READ {
            for conduit in [Conduit::Hvc, Conduit::Smc] {
                let x0 = conduit.call(function.into(), &DIGEST)[0];
                check!(x0 == NOT_SUPPORTED || x0 == 0xFFFF_FFFF, "{function:#x} of the host gives {x0:#x}");
            }
        }
        for half in [2, 3, 1 << 32, 1 << 63, u64::MAX] {
            check_eq!(refused(&guest.0, half), Some(Status::InvalidArgs), "half {half:#x}");
        }
        let reply = guest.0.call(Function::Measurement, &[0, 0x1111, 0x2222, 0x3333, 0x4444]);
        check!(reply.ok(), "MEASUREMENT with more arguments");
        for id in [0u64, 0xFFFF, u64::MAX] {
            check_eq!(call(Function::Measurement, &[id]).status(), Some(Status::InvalidArgs), "VM {id:#x}");
        }
        check_eq!(of(&guest.0)?, before, "after what the host tried");
        check_eq!(guest.status(guest::MEASUREMENT_SEAL, [0; 4])?, OK, "MEASUREMENT_SEAL");
        check_eq!(of(&guest.0)?.0, before.0, "sealed");
        guest.destroy()
    })
}

fn plain_vms_have_none() -> Outcome {
    leaving_nothing(|| {
        let mut plain = Guest::plain()?;
        for function in guest::MEASUREMENT_EXTEND..=guest::MEASUREMENT_READ {
            check_eq!(plain.status(function, DIGEST)?, NOT_SUPPORTED, "{function:#x} in a plain VM");
        }
        check_eq!(refused(&plain.0, 0), Some(Status::NotSupported), "MEASUREMENT of a plain VM");
        plain.destroy()?;
        // Nor has a protected one, before it runs.
        let vm = Vm::protected(programs::spins(), 1)?;
        check_eq!(refused(&vm, 0), Some(Status::NotSupported), "MEASUREMENT of a VM that has not run");
        vm.destroy().map(drop)
    })
}

/// Only firmware names images as verified, and is told their keys, until it seals the measurement.
fn images_are_the_firmwares() -> Outcome {
    const CALLS: [u32; 3] = [guest::IMAGE_KEY, guest::IMAGE_CHECK, guest::IMAGE_REMEMBER];
    leaving_nothing(|| {
        for function in CALLS {
            for conduit in [Conduit::Hvc, Conduit::Smc] {
                let x0 = conduit.call(function.into(), &DIGEST)[0];
                check!(x0 == NOT_SUPPORTED || x0 == 0xFFFF_FFFF, "{function:#x} of the host gives {x0:#x}");
            }
        }
        let mut plain = Guest::plain()?;
        let mut guest = Guest::new()?;
        begin(&mut guest)?;
        for function in CALLS {
            check_eq!(plain.status(function, DIGEST)?, NOT_SUPPORTED, "{function:#x} in a plain VM");
            let without = guest.status(function, DIGEST)?;
            check_eq!(without, NOT_SUPPORTED, "{function:#x} in a VM without firmware");
        }
        check_eq!(guest.status(guest::MEASUREMENT_SEAL, [0; 4])?, OK, "MEASUREMENT_SEAL");
        for function in CALLS {
            let sealed = guest.status(function, DIGEST)?;
            check_eq!(sealed, guest::MEASUREMENT_SEALED, "{function:#x} after the seal");
        }
        plain.destroy()?;
        guest.destroy()
    })
}

fn facts_are_fixed_when_it_runs() -> Outcome {
    leaving_nothing(|| {
        let mut guest = Guest::new()?;
        begin(&mut guest)?;
        let before = of(&guest.0)?;
        let watch = guest.0.call(Function::SetWatch, &[kind::UNDEFINED.into(), action::REPORT.into(), 0]);
        check_eq!(watch.status(), Some(Status::InvalidArgs), "SET_WATCH of a VM that runs");
        check!(!guest.0.call(Function::VmFeatures, &[0]).ok(), "VM_FEATURES of a VM that runs");
        let firmware = [cap::PROTECTED_VM, cap::protected::SET_PVMFW_GPA, programs::RAM];
        check!(!guest.0.call(Function::EnableCap, &firmware).ok(), "SET_PVMFW_GPA of a VM that runs");
        check_eq!(of(&guest.0)?, before, "afterwards");
        guest.destroy()
    })
}
