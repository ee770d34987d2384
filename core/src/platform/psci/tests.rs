// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI against the specification's tables: directed cases, and every state of three vCPUs with every
//! function.

use super::*;

const ON: u64 = 0xC400_0003;
const ENTRY: u64 = 0x8000_0000;
const BITS: u8 = 40;

fn two() -> PowerStates<64> {
    let mut p = PowerStates::default();
    p.add(VcpuId(0));
    p.add(VcpuId(1));
    p
}

/// Eight vCPUs: as many as the vGIC is sure to know.
fn eight() -> PowerStates<64> {
    let mut p = PowerStates::default();
    (0..8).for_each(|n| p.add(VcpuId(n)));
    p
}

fn call<const N: usize>(p: &mut PowerStates<N>, fid: u64, args: [u64; 3]) -> Outcome {
    p.call(VcpuId(0), fid, args, BITS)
}

fn answer<const N: usize>(p: &mut PowerStates<N>, fid: u64, args: [u64; 3]) -> i64 {
    match call(p, fid, args) {
        Outcome::Return(x0) => x0 as i64,
        other => panic!("{fid:#x}: {other:?}"),
    }
}

#[test]
fn a_secondary_goes_through_its_life() {
    let mut p = two();
    assert_eq!(p.take_start(VcpuId(1)), None);
    assert_eq!(call(&mut p, ON, [1, ENTRY, 7]), Outcome::Started(VcpuId(1)));
    assert_eq!(call(&mut p, ON, [1, ENTRY, 8]), Outcome::Return(ON_PENDING));
    assert_eq!(call(&mut p, 0xC400_0004, [1, 0, 0]), Outcome::Return(2));
    assert_eq!(p.take_start(VcpuId(1)), Some((ENTRY, 7)));
    assert_eq!(p.take_start(VcpuId(1)), None);
    assert_eq!(call(&mut p, ON, [1, ENTRY, 8]), Outcome::Return(ALREADY_ON));
    assert_eq!(p.call(VcpuId(1), 0x8400_0002, [0; 3], BITS), Outcome::Off);
    assert_eq!(call(&mut p, 0xC400_0004, [1, 0, 0]), Outcome::Return(1));
    assert_eq!(call(&mut p, ON, [1, 0x9000_0000, 9]), Outcome::Started(VcpuId(1)));
}

#[test]
fn bad_targets_and_addresses_are_refused() {
    let mut p = two();
    for mpidr in [2u64, 0x10, 0x100, 0x1_0001, 1 << 32 | 1, 1 << 24 | 1, u64::MAX, 0x8000_0001] {
        assert_eq!(call(&mut p, ON, [mpidr, ENTRY, 0]), Outcome::Return(INVALID_PARAMETERS), "{mpidr:#x}");
    }
    for entry in [1u64, 2, 1 << 40, u64::MAX] {
        assert_eq!(call(&mut p, ON, [1, entry, 0]), Outcome::Return(INVALID_ADDRESS), "{entry:#x}");
        assert_eq!(answer(&mut p, 0xC400_0001, [1 << 16, entry, 0]), -9, "CPU_SUSPEND {entry:#x}");
        assert_eq!(answer(&mut p, 0xC400_000E, [entry, 0, 0]), -9, "SYSTEM_SUSPEND {entry:#x}");
    }
    assert_eq!(call(&mut p, ON, [0, 0, 0]), Outcome::Return(ALREADY_ON));
}

#[test]
fn narrow_calls_ignore_upper_halves() {
    let mut p = two();
    let out = call(&mut p, 0x8400_0003, [0xF_0000_0001, 0xF_8000_0000, 0xF_0000_0007]);
    assert_eq!(out, Outcome::Started(VcpuId(1)));
    assert_eq!(p.take_start(VcpuId(1)), Some((ENTRY, 7)));
}

#[test]
fn a_vcpu_is_found_by_the_affinity_that_it_reads() {
    let mut p = eight();
    for n in 1..8u16 {
        let mpidr = u64::from(affinity(VcpuId(n)));
        assert_eq!(call(&mut p, ON, [mpidr, ENTRY, 0]), Outcome::Started(VcpuId(n)));
    }
    // Sixteen vCPUs per Aff1: what is past that is Aff1's, whoever exists.
    assert_eq!(affinity(VcpuId(17)), 0x101);
    let mut p = PowerStates::<64>::default();
    (0..64).for_each(|n| p.add(VcpuId(n)));
    for n in 0..64u16 {
        let mpidr = u64::from(affinity(VcpuId(n)));
        let expected = if n == 0 { 0 } else { 1 };
        if vcpu_of(affinity(VcpuId(n))).is_some() {
            assert_eq!(answer(&mut p, 0xC400_0004, [mpidr, 0, 0]), expected, "vCPU {n}");
        }
    }
    assert_eq!(answer(&mut p, 0xC400_0004, [0x10, 0, 0]), -2, "Aff0 = 16 is nobody's");
}

#[test]
fn affinities_past_the_sixteenth() {
    let mut p = PowerStates::<64>::default();
    [0, 15, 16, 63].into_iter().for_each(|n| p.add(VcpuId(n)));
    assert_eq!(call(&mut p, ON, [0x100, 0, 0]), Outcome::Started(VcpuId(16)));
    assert_eq!(call(&mut p, ON, [0x30F, 0, 0]), Outcome::Started(VcpuId(63)));
    for wrong in [16u64, 0x10F, 0x400, 0x1_0000, 1 << 32] {
        assert_eq!(call(&mut p, ON, [wrong, 0, 0]), Outcome::Return(INVALID_PARAMETERS), "{wrong:#x}");
    }
}

#[test]
fn affinity_levels_take_the_best_of_their_vcpus() {
    let mut p = PowerStates::<64>::default();
    (0..40).for_each(|n| p.add(VcpuId(n)));
    let info = |p: &mut PowerStates<64>, target, level| answer(p, 0xC400_0004, [target, level, 0]);
    // Aff1 = 0 holds vCPU 0, which is on; 1 and 2 are off; 3 has nobody.
    assert_eq!(info(&mut p, 0x0FF, 1), 0, "Aff0 is ignored");
    assert_eq!(info(&mut p, 0x100, 1), 1);
    assert_eq!(info(&mut p, 0x200, 1), 1);
    assert_eq!(info(&mut p, 0x300, 1), -2);
    assert_eq!(info(&mut p, 0xFFFF, 2), 0);
    assert_eq!(info(&mut p, 0x1_0000, 2), -2);
    assert_eq!(info(&mut p, 0xFF_FFFF, 3), 0);
    assert_eq!(info(&mut p, 1 << 32, 3), -2);
    assert_eq!(info(&mut p, 0, 4), -2);
    assert_eq!(info(&mut p, 1 << 24, 1), -2, "a bit that is no affinity");
    p.states[20] = Power::OnPending { entry: ENTRY, context: 0 };
    assert_eq!(info(&mut p, 0x100, 1), 2);
    p.states[21] = Power::On;
    assert_eq!(info(&mut p, 0x100, 1), 0);
}

#[test]
fn suspend_looks_at_the_state_that_is_asked_for() {
    let mut p = two();
    let suspend = |p: &mut _, state| call(p, 0xC400_0001, [state, ENTRY, 7]);
    for state in [0, 1, 0xFFFF, 1 << 24, 3 << 24] {
        assert_eq!(suspend(&mut p, state), Outcome::Standby, "{state:#x}");
        let down = Outcome::PowerDown { entry: ENTRY, context: 7, may_return: true };
        assert_eq!(suspend(&mut p, state | 1 << 16), down, "{state:#x}");
    }
    for bit in (17..24).chain(26..32) {
        assert_eq!(suspend(&mut p, 1 << bit), Outcome::Return(INVALID_PARAMETERS), "bit {bit}");
    }
    assert_eq!(suspend(&mut p, 1 << 32), Outcome::Standby, "power_state has 32 bits");
    // Standby has no entry point.
    assert_eq!(call(&mut p, 0xC400_0001, [0, 3, 0]), Outcome::Standby);
}

#[test]
fn mem_protect_tells_what_it_was() {
    let mut p = two();
    assert_eq!(answer(&mut p, 0x8400_0013, [2, 0, 0]), -2);
    assert_eq!(answer(&mut p, 0x8400_0013, [1, 0, 0]), 0);
    assert_eq!(answer(&mut p, 0x8400_0013, [1, 0, 0]), 1);
    assert_eq!(answer(&mut p, 0x8400_0013, [0, 0, 0]), 1);
    assert_eq!(answer(&mut p, 0x8400_0013, [0, 0, 0]), 0);
    let range = Outcome::CheckRange { base: 1 << 40, length: 5 };
    assert_eq!(call(&mut p, 0xC400_0014, [1 << 40, 5, 0]), range);
}

#[test]
fn reset2_has_one_architectural_type() {
    let mut p = two();
    let reset = |kind, cookie| Outcome::SystemReset { reset2: Some((kind, cookie)) };
    assert_eq!(call(&mut p, 0xC400_0012, [0, 5, 0]), reset(0, 5));
    assert_eq!(call(&mut p, 0xC400_0012, [0x8000_0001, 5, 0]), reset(0x8000_0001, 5));
    assert_eq!(answer(&mut p, 0xC400_0012, [1, 0, 0]), -2);
}

/// Every state of three vCPUs, every function of the first: what the specification's tables say.
#[test]
fn every_state_and_function() {
    let states = [Power::Absent, Power::Off, Power::OnPending { entry: ENTRY, context: 3 }, Power::On];
    for (second, third) in states.iter().flat_map(|s| states.iter().map(move |t| (*s, *t))) {
        let start = PowerStates::<3> { states: [Power::On, second, third], ..Default::default() };
        for fid in (0..0x20u64).flat_map(|n| [0x8400_0000 | n, 0xC400_0000 | n]) {
            let mut p = start.clone();
            let args = match fid & 0xFF {
                1 => [1 << 16, ENTRY, 9],
                3 => [1, ENTRY, 9],
                0xA => [0x8400_0000, 0, 0],
                0xC | 0xE => [ENTRY, 9, 0],
                _ => [1, 0, 0],
            };
            let outcome = call(&mut p, fid, args);
            let what = format!("{fid:#x} with {second:?}, {third:?}");
            // FEATURES and the call agree on what there is.
            let there = answer(&mut start.clone(), 0x8400_000A, [fid, 0, 0]) != -1;
            assert_eq!(outcome != Outcome::Return(NOT_SUPPORTED), there, "{what}");
            // Nobody but the target of CPU_ON and the caller of CPU_OFF changes.
            let mut expected = start.states;
            match (fid & 0xFF, there) {
                (2, true) => expected[0] = Power::Off,
                (3, true) => {
                    let result = match second {
                        Power::Absent => Outcome::Return(INVALID_PARAMETERS),
                        Power::Off => {
                            expected[1] = Power::OnPending { entry: ENTRY, context: 9 };
                            Outcome::Started(VcpuId(1))
                        }
                        Power::OnPending { .. } => Outcome::Return(ON_PENDING),
                        Power::On => Outcome::Return(ALREADY_ON),
                    };
                    assert_eq!(outcome, result, "{what}");
                }
                (0xE, true) => {
                    let alone = [second, third].iter().all(|s| matches!(s, Power::Off | Power::Absent));
                    let result = match alone {
                        true => Outcome::PowerDown { entry: ENTRY, context: 9, may_return: false },
                        false => Outcome::Return(DENIED),
                    };
                    assert_eq!(outcome, result, "{what}");
                }
                _ => {}
            }
            assert_eq!(p.states, expected, "{what}");
        }
    }
}

#[test]
fn every_id_has_an_answer() {
    for n in 0..=0xFFFFu64 {
        for base in [0x8400_0000u64, 0xC400_0000] {
            let _ = two().call(VcpuId(1), base | n, [u64::MAX; 3], BITS);
        }
    }
}
