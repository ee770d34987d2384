// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What holds for every word, and the emulation by example and at random.

use proptest::prelude::*;

use super::emulate::{Emulation, Fault, Mismatch, Next, Registers, Step, Update};
use super::{Access, Addressing, Bank, Base, Extension, Hint, Refusal, decode};
use crate::addr::Ipa;

/// The page that faults, as the guest sees it and as it is.
const VA: u64 = 0xFFFF_8000_1234_5000;
const PAGE: u64 = 0x0900_0000;

/// Every accepted encoding as (mask, value), written from the tables of Arm ARM C4.1.94 and not from
/// the decoder's structure.
fn accepted_encodings() -> Vec<(u32, u32)> {
    let mut rows = vec![
        // STP, LDP, STNP, LDNP: W and X; S and Q; D.
        (0x7E00_0000, 0x2800_0000),
        (0x7E00_0000, 0x2C00_0000),
        (0xFE00_0000, 0x6C00_0000),
        // LDPSW: post-index, offset, pre-index.
        (0xFFC0_0000, 0x68C0_0000),
        (0xFFC0_0000, 0x6940_0000),
        (0xFFC0_0000, 0x69C0_0000),
        // LDR (literal): W and X; LDRSW; S and D; Q.
        (0xBF00_0000, 0x1800_0000),
        (0xFF00_0000, 0x9800_0000),
        (0xBF00_0000, 0x1C00_0000),
        (0xFF00_0000, 0x9C00_0000),
        // LDAR, STLR, LDLAR, STLLR; LDAPR.
        (0x3FBF_7C00, 0x089F_7C00),
        (0x3FFF_FC00, 0x38BF_C000),
    ];
    // size, V, opc: STR and LDR; signed loads of bytes and halfwords; LDRSW; vectors; Q.
    let general = [(0x0480_0000, 0), (0x8480_0000, 0x0080_0000), (0xC4C0_0000, 0x8080_0000)];
    let vector = [(0x0480_0000, 0x0400_0000), (0xC480_0000, 0x0480_0000)];
    // Unsigned offset, unscaled, post-index, pre-index, register offset.
    let modes = [
        (0x3B00_0000, 0x3900_0000),
        (0x3B20_0C00, 0x3800_0000),
        (0x3B20_0C00, 0x3800_0400),
        (0x3B20_0C00, 0x3800_0C00),
        (0x3B20_4C00, 0x3820_4800),
    ];
    for mode in modes {
        rows.extend(general.iter().chain(&vector).map(|row| (mode.0 | row.0, mode.1 | row.1)));
    }
    // Unprivileged, LDAPUR and STLUR: general registers only.
    for mode in [(0x3B20_0C00, 0x3800_0800), (0x3B20_0C00, 0x1900_0000)] {
        rows.extend(general.iter().map(|row| (mode.0 | row.0, mode.1 | row.1)));
    }
    rows
}

/// xorshift64*: repeatable, and quick where proptest is not.
fn words(seed: u64) -> impl Iterator<Item = u32> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    })
}

#[test]
fn accepts_the_documented_encodings_and_no_other() {
    let rows = accepted_encodings();
    let (mut accepted, mut unpredictable) = (0, 0);
    let all = words(1).take(200_000).chain(words(2).take(1_000_000).map(|w| w & !(1 << 25) | 1 << 27));
    for word in all {
        let documented = rows.iter().any(|(mask, value)| word & mask == *value);
        match decode(word) {
            Ok(_) => {
                accepted += 1;
                assert!(documented, "{word:#010x}");
            }
            Err(Refusal::Unpredictable) => unpredictable += 1,
            Err(refusal) => assert!(!documented, "{word:#010x} {refusal:?}"),
        }
    }
    assert!(accepted > 300_000 && unpredictable > 1_000, "{accepted} {unpredictable}");
}

#[test]
fn what_is_accepted_makes_sense() {
    for word in words(3).take(1_000_000).map(|w| w & !(1 << 25) | 1 << 27) {
        let Ok(access) = decode(word) else { continue };
        let Access { load, bank, size, first, second, base, addressing, hint } = access;
        assert!(matches!(size, 1 | 2 | 4 | 8) || size == 16 && bank == Bank::Vector);
        assert!(first < 32 && second.is_none_or(|r| r < 32));
        assert!(access.bytes() <= 32);
        // Sign extension makes something longer, and loads only have it.
        match bank {
            Bank::General(Extension::Sign32) => assert!(load && size < 4),
            Bank::General(Extension::Sign64) => assert!(load && size < 8),
            _ => {}
        }
        if base == Base::ProgramCounter {
            assert!(load && second.is_none() && matches!(addressing, Addressing::Offset(_)));
        }
        if let Addressing::Index { shift, .. } = addressing {
            assert!(shift == 0 || 1 << shift == size);
            assert!(second.is_none() && hint == Hint::None);
        }
        assert!(second.is_none() || size >= 4);
    }
}

/// Registers that point nowhere but for those of a test.
struct Vcpu {
    x: [u64; 31],
    sp: u64,
    v: [[u64; 2]; 32],
    big_endian: bool,
}

impl Vcpu {
    fn new() -> Self {
        let x = std::array::from_fn(|n| 0x0101_0101_0101_0101 * (n as u64 + 1));
        let v = std::array::from_fn(|n| {
            let low = 0x0807_0605_0403_0201 + ((n as u64) << 4);
            [low, low ^ 0xF0F0_F0F0_F0F0_F0F0]
        });
        Self { x, sp: VA + 0x100, v, big_endian: false }
    }

    fn begin(&self, word: u32, fault: Fault) -> Result<Emulation, Mismatch> {
        let registers = Registers { x: &self.x, sp: self.sp, pc: VA - 0x100, big_endian: self.big_endian };
        Emulation::begin(decode(word).unwrap(), &registers, fault, |n| self.v[usize::from(n)])
    }

    /// Runs an emulation on a page of memory; the steps, the updates and the next PC.
    fn run(&self, word: u32, fault: Fault, memory: &mut [u8; 4096]) -> (Vec<Step>, Vec<Update>, u64) {
        let mut emulation = self.begin(word, fault).unwrap();
        let mut steps = vec![];
        loop {
            let next = emulation.next();
            assert_eq!(next, emulation.next());
            let step = match next {
                Next::Step(step) => step,
                Next::Done(done) => return (steps, done.updates.to_vec(), done.pc),
            };
            let start = usize::try_from(step.ipa.0.checked_sub(PAGE).unwrap()).unwrap();
            let bytes = &mut memory[start..start + usize::from(step.size)];
            // What is above the step's bytes must not matter.
            let mut data = [0xA5; 8];
            match step.write {
                Some(value) => {
                    bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
                    assert!(step.size == 8 || value >> (8 * step.size) == 0);
                }
                None => data[..bytes.len()].copy_from_slice(bytes),
            }
            steps.push(step);
            emulation.answer(u64::from_le_bytes(data));
            assert!(steps.len() <= 4);
        }
    }
}

fn read_at(offset: u64) -> Fault {
    Fault { ipa: Ipa(PAGE + offset), far: VA + offset, write: false, onward: false }
}

fn write_at(offset: u64) -> Fault {
    Fault { write: true, ..read_at(offset) }
}

/// 0, 1, 2, ... 0xFF, 0, ...
fn counting() -> Box<[u8; 4096]> {
    Box::new(std::array::from_fn(|n| n as u8))
}

fn write(offset: u64, size: u8, value: u64) -> Step {
    Step { ipa: Ipa(PAGE + offset), size, write: Some(value) }
}

fn read(offset: u64, size: u8) -> Step {
    Step { ipa: Ipa(PAGE + offset), size, write: None }
}

#[test]
fn a_pair_of_words_is_two_accesses() {
    let mut vcpu = Vcpu::new();
    vcpu.x[2] = VA;
    // ldp w0, w1, [x2], #8
    let (steps, updates, pc) = vcpu.run(0x28C1_0440, read_at(0), &mut counting());
    assert_eq!(steps, [read(0, 4), read(4, 4)]);
    assert_eq!(
        updates,
        [Update::General(0, 0x0302_0100), Update::General(1, 0x0706_0504), Update::General(2, VA + 8)]
    );
    assert_eq!(pc, VA - 0xFC);
    // stp x29, x30, [sp, #-16]!
    let (steps, updates, _) = vcpu.run(0xA9BF_7BFD, write_at(0xF0), &mut counting());
    assert_eq!(steps, [write(0xF0, 8, vcpu.x[29]), write(0xF8, 8, vcpu.x[30])]);
    assert_eq!(updates, [Update::StackPointer(VA + 0xF0)]);
}

#[test]
fn the_zero_register_gives_zero_and_takes_nothing() {
    let mut vcpu = Vcpu::new();
    vcpu.x[4] = VA;
    // stp xzr, xzr, [x4]; ldp x3, xzr, [x4]
    let (steps, updates, _) = vcpu.run(0xA900_7C9F, write_at(0), &mut counting());
    assert_eq!(steps, [write(0, 8, 0), write(8, 8, 0)]);
    assert_eq!(updates, []);
    let (_, updates, _) = vcpu.run(0xA940_7C83, read_at(0), &mut counting());
    assert_eq!(updates, [Update::General(3, 0x0706_0504_0302_0100)]);
}

#[test]
fn signed_pairs_and_bytes_extend() {
    let mut vcpu = Vcpu::new();
    vcpu.x[2] = VA + 0x80;
    vcpu.x[1] = VA + 0x90;
    // ldpsw x0, x1, [x2]
    let (_, updates, _) = vcpu.run(0x6940_0440, read_at(0x80), &mut counting());
    assert_eq!(
        updates,
        [Update::General(0, 0xFFFF_FFFF_8382_8180), Update::General(1, 0xFFFF_FFFF_8786_8584)]
    );
    // ldrsb w0, [x1], #1; ldrsb x0, [x1], #1
    let (_, updates, _) = vcpu.run(0x38C0_1420, read_at(0x90), &mut counting());
    assert_eq!(updates, [Update::General(0, 0xFFFF_FF90), Update::General(1, VA + 0x91)]);
    let (_, updates, _) = vcpu.run(0x3880_1420, read_at(0x90), &mut counting());
    assert_eq!(updates[0], Update::General(0, 0xFFFF_FFFF_FFFF_FF90));
    // ldrb w0, [x1], #1
    let (_, updates, _) = vcpu.run(0x3840_1420, read_at(0x90), &mut counting());
    assert_eq!(updates[0], Update::General(0, 0x90));
}

#[test]
fn vector_registers_go_in_halves() {
    let mut vcpu = Vcpu::new();
    vcpu.x[6] = VA + 0x40;
    // stp q4, q31, [x6, #-32]!
    let (steps, updates, _) = vcpu.run(0xADBF_7CC4, write_at(0x28), &mut counting());
    let [a, b] = vcpu.v[4];
    let [c, d] = vcpu.v[31];
    assert_eq!(steps, [write(0x20, 8, a), write(0x28, 8, b), write(0x30, 8, c), write(0x38, 8, d)]);
    assert_eq!(updates, [Update::General(6, VA + 0x20)]);
    // ldr q6, [x6], #16: a vector register is no base.
    let (steps, updates, _) = vcpu.run(0x3CC1_04C6, read_at(0x40), &mut counting());
    assert_eq!(steps, [read(0x40, 8), read(0x48, 8)]);
    let q = [0x4746_4544_4342_4140, 0x4F4E_4D4C_4B4A_4948];
    assert_eq!(updates, [Update::Vector(6, q), Update::General(6, VA + 0x50)]);
    // ldr h0, [x6], #2 clears the rest.
    let (_, updates, _) = vcpu.run(0x7C40_24C0, read_at(0x40), &mut counting());
    assert_eq!(updates[0], Update::Vector(0, [0x4140, 0]));
}

#[test]
fn index_registers_extend_then_shift() {
    let mut vcpu = Vcpu::new();
    vcpu.x[1] = VA + 0x100;
    vcpu.x[2] = 0x1234_5678_FFFF_FFF0;
    // ldr x0, [x1, w2, sxtw #3] : 0x100 - 16 * 8
    let (steps, ..) = vcpu.run(0xF862_D820, read_at(0x80), &mut counting());
    assert_eq!(steps, [read(0x80, 8)]);
    vcpu.x[1] = VA - 0xFFFF_FFF0 + 0x30;
    // ldr x0, [x1, w2, uxtw]
    let (steps, ..) = vcpu.run(0xF862_4820, read_at(0x30), &mut counting());
    assert_eq!(steps, [read(0x30, 8)]);
    vcpu.x[2] = 3;
    vcpu.x[1] = VA;
    // ldr q0, [x1, x2, lsl #4]
    let (steps, ..) = vcpu.run(0x3CE2_7820, read_at(0x30), &mut counting());
    assert_eq!(steps, [read(0x30, 8), read(0x38, 8)]);
}

#[test]
fn big_endian_turns_each_element() {
    let mut vcpu = Vcpu { big_endian: true, ..Vcpu::new() };
    vcpu.x[2] = VA;
    // ldp w0, w1, [x2]
    let (_, updates, _) = vcpu.run(0x2940_0440, read_at(0), &mut counting());
    assert_eq!(updates, [Update::General(0, 0x0001_0203), Update::General(1, 0x0405_0607)]);
    // ldr q0, [x2]: all sixteen bytes.
    let (_, updates, _) = vcpu.run(0x3DC0_0040, read_at(0), &mut counting());
    assert_eq!(updates, [Update::Vector(0, [0x0809_0A0B_0C0D_0E0F, 0x0001_0203_0405_0607])]);
    // strh w1, [x2], #2
    vcpu.x[1] = 0xAABB;
    let (steps, ..) = vcpu.run(0x7800_2441, write_at(0), &mut counting());
    assert_eq!(steps, [write(0, 2, 0xBBAA)]);
}

#[test]
fn only_the_access_that_faulted_is_made() {
    let mut vcpu = Vcpu::new();
    vcpu.x[2] = VA + 0x10;
    // ldp x0, x1, [x2]
    let word = 0xA940_0440;
    assert_eq!(vcpu.begin(word, write_at(0x10)), Err(Mismatch::Direction));
    assert_eq!(vcpu.begin(word, read_at(0x0F)), Err(Mismatch::Elsewhere));
    assert_eq!(vcpu.begin(word, read_at(0x20)), Err(Mismatch::Elsewhere));
    // Any byte of it may be the one that is named.
    for offset in 0x10..0x20 {
        let emulation = vcpu.begin(word, read_at(offset)).unwrap();
        assert_eq!(emulation.next(), Next::Step(read(0x10, 8)));
    }
    // Another page, with the same offset.
    let fault = Fault { far: VA + 0x1010, ..read_at(0x10) };
    assert_eq!(vcpu.begin(word, fault), Err(Mismatch::Elsewhere));
    // A tag in the top byte is no difference.
    let fault = Fault { far: (VA + 0x10) & u64::MAX >> 8 | 0x5A << 56, ..read_at(0x10) };
    assert!(vcpu.begin(word, fault).is_ok());
}

#[test]
fn nothing_crosses_the_page() {
    let mut vcpu = Vcpu::new();
    vcpu.x[2] = VA + 0xFF0;
    assert!(vcpu.begin(0xA940_0440, read_at(0xFF0)).is_ok());
    vcpu.x[2] = VA + 0xFF1;
    assert_eq!(vcpu.begin(0xA940_0440, read_at(0xFF1)), Err(Mismatch::CrossesPage));
    vcpu.x[2] = VA - 8;
    assert_eq!(vcpu.begin(0xA940_0440, read_at(0)), Err(Mismatch::CrossesPage));
    // ... nor the end of the address space.
    vcpu.x[2] = u64::MAX;
    let fault = Fault { far: u64::MAX, ipa: Ipa(PAGE + 0xFFF), write: false, onward: false };
    assert_eq!(vcpu.begin(0xA940_0440, fault), Err(Mismatch::CrossesPage));
    // post-index write-back may wrap: ldrb w0, [x2], #1
    let (_, updates, _) = vcpu.run(0x3840_1440, fault, &mut counting());
    assert_eq!(updates, [Update::General(0, 0xFF), Update::General(2, 0)]);
}

/// Where the hypervisor knows that the next page is the device's too: up to the end, then from the start.
#[test]
fn a_load_may_go_on_in_the_devices_next_page() {
    let mut vcpu = Vcpu::new();
    for (start, steps) in [
        (0xFF1, vec![(0xFF1, 8), (0xFF9, 4), (0xFFD, 2), (0xFFF, 1), (0x1000, 1)]),
        (0xFF4, vec![(0xFF4, 8), (0xFFC, 4), (0x1000, 4)]),
        (0xFF8, vec![(0xFF8, 8), (0x1000, 8)]),
        (0xFFC, vec![(0xFFC, 4), (0x1000, 4), (0x1004, 8)]),
        (0xFFF, vec![(0xFFF, 1), (0x1000, 4), (0x1004, 2), (0x1006, 1), (0x1007, 8)]),
    ] {
        vcpu.x[2] = VA + start;
        let fault = Fault { onward: true, ..read_at(start) };
        // ldp x0, x1, [x2]
        let mut emulation = vcpu.begin(0xA940_0440, fault).unwrap();
        let mut made = Vec::new();
        let done = loop {
            match emulation.next() {
                Next::Step(step) => {
                    made.push((step.ipa.0 - PAGE, step.size));
                    let from = step.ipa.0 - PAGE - start;
                    let bytes: [u8; 8] = std::array::from_fn(|i| (from as u8).wrapping_add(i as u8));
                    emulation.answer(u64::from_le_bytes(bytes));
                }
                Next::Done(done) => break done,
            }
        };
        assert_eq!(made, steps);
        let pair = [0x0706_0504_0302_0100, 0x0F0E_0D0C_0B0A_0908];
        assert_eq!(done.updates[..], [Update::General(0, pair[0]), Update::General(1, pair[1])]);
        // The page before is none that anyone has looked at.
        let fault = Fault { far: VA + 0x1000, ipa: Ipa(PAGE + 0x1000), write: false, onward: true };
        assert_eq!(vcpu.begin(0xA940_0440, fault), Err(Mismatch::CrossesPage));
    }
}

#[test]
fn answers_too_many_change_nothing() {
    let mut vcpu = Vcpu::new();
    vcpu.x[2] = VA;
    let mut emulation = vcpu.begin(0xA940_0440, read_at(0)).unwrap();
    emulation.answer(1);
    emulation.answer(2);
    let done = emulation.next();
    for n in 0..1000 {
        emulation.answer(n);
    }
    assert_eq!(emulation.next(), done);
    let Next::Done(done) = done else { panic!() };
    assert_eq!(done.updates[..], [Update::General(0, 1), Update::General(1, 2)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Any word, any registers, any fault: an error, or steps in the page and distinct registers.
    #[test]
    fn anything_goes_without_panic(
        word: u32,
        x: [u64; 31],
        sp: u64,
        pc: u64,
        big_endian: bool,
        ipa: u64,
        slack in 0u64..40,
        write: bool,
        onward: bool,
        data: u64,
    ) {
        for word in [word, word & !(1 << 25) | 1 << 27] {
            let Ok(access) = decode(word) else { continue };
            let registers = Registers { x: &x, sp, pc, big_endian };
            // Near the address in half the cases, so that some begin.
            let base = match access.base {
                Base::General(n) => x[usize::from(n)],
                Base::StackPointer => sp,
                Base::ProgramCounter => pc,
            };
            let offset = match access.addressing {
                Addressing::Offset(n) | Addressing::Pre(n) => n,
                _ => 0,
            };
            let far = base.wrapping_add_signed(offset).wrapping_add(slack);
            for (far, write) in [(far, write), (far, !access.load), (data, write)] {
                let fault = Fault { ipa: Ipa(ipa), far, write, onward };
                let Ok(mut emulation) = Emulation::begin(access, &registers, fault, |_| [data; 2]) else {
                    continue;
                };
                let mut moved = 0;
                let done = loop {
                    match emulation.next() {
                        Next::Step(step) => {
                            prop_assert_eq!(step.write.is_none(), access.load);
                            let page = step.ipa.0 & !0xFFF;
                            prop_assert!(page == ipa & !0xFFF || onward && page == (ipa & !0xFFF).wrapping_add(0x1000));
                            prop_assert!((step.ipa.0 & 0xFFF) + u64::from(step.size) <= 4096);
                            moved += step.size;
                            emulation.answer(data);
                        }
                        Next::Done(done) => break done,
                    }
                    prop_assert!(moved <= access.bytes());
                };
                prop_assert_eq!(moved, access.bytes());
                for (n, update) in done.updates.iter().enumerate() {
                    let same = |other: &Update| match (update, other) {
                        (Update::General(a, _), Update::General(b, _)) => a == b,
                        (Update::Vector(a, _), Update::Vector(b, _)) => a == b,
                        (Update::StackPointer(_), Update::StackPointer(_)) => true,
                        _ => false,
                    };
                    prop_assert!(!done.updates[n + 1..].iter().any(same));
                }
            }
        }
    }

    /// What a store wrote, the load with the same fields reads: bit 22 is all the difference.
    #[test]
    fn loads_undo_stores(word: u32, offset in 0u64..4064, big_endian: bool) {
        // Opcodes where L is bit 22 alone, without literals and index registers.
        let word = word & !(1 << 25 | 1 << 22) | 1 << 27 | 1 << 29;
        let (Ok(store), Ok(load)) = (decode(word), decode(word | 1 << 22)) else { return Ok(()) };
        prop_assume!(!store.load && load == (Access { load: true, ..store }));
        prop_assume!(!matches!(store.addressing, Addressing::Index { .. }));
        let mut vcpu = Vcpu { big_endian, ..Vcpu::new() };
        let step = match store.addressing {
            Addressing::Offset(n) | Addressing::Pre(n) => n,
            _ => 0,
        };
        let base = (VA + offset).wrapping_sub(step as u64);
        match store.base {
            Base::General(n) => vcpu.x[usize::from(n)] = base,
            _ => vcpu.sp = base,
        }
        let mut memory = counting();
        vcpu.run(word, write_at(offset), &mut memory);
        // Around it nothing has changed.
        let end = offset as usize + usize::from(store.bytes());
        prop_assert_eq!(&memory[..offset as usize], &counting()[..offset as usize]);
        prop_assert_eq!(&memory[end..], &counting()[end..]);
        let (_, updates, _) = vcpu.run(word | 1 << 22, read_at(offset), &mut memory);
        let mask = u128::MAX >> (128 - 8 * u32::from(store.size));
        for register in [Some(store.first), store.second].into_iter().flatten() {
            let expected = match store.bank {
                Bank::General(_) if register == 31 => continue,
                Bank::General(_) => Update::General(register, vcpu.x[usize::from(register)] & mask as u64),
                Bank::Vector => {
                    let [low, high] = vcpu.v[usize::from(register)];
                    let value = (u128::from(high) << 64 | u128::from(low)) & mask;
                    Update::Vector(register, [value as u64, (value >> 64) as u64])
                }
            };
            prop_assert!(updates.contains(&expected), "{:?} {:?}", updates, expected);
        }
    }
}
