// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Words as an assembler makes them (GNU as 2.40), and what they say.

use super::Base::General as X;
use super::Base::{ProgramCounter as PC, StackPointer as SP};
use super::Extension::{Sign32, Sign64, Zero};
use super::Hint::{NonTemporal, Ordered, Unprivileged};
use super::IndexExtend::{Double, SignedWord, Word};
use super::Refusal::*;
use super::{Access, Addressing, Bank, Base, Extension, Hint, IndexExtend, decode};

const fn access(load: bool, bank: Bank, size: u8, first: u8) -> Access {
    let addressing = Addressing::Offset(0);
    Access { load, bank, size, first, second: None, base: SP, addressing, hint: Hint::None }
}

const fn ld(size: u8, first: u8) -> Access {
    access(true, Bank::General(Zero), size, first)
}

const fn lds(size: u8, first: u8, extension: Extension) -> Access {
    access(true, Bank::General(extension), size, first)
}

const fn st(size: u8, first: u8) -> Access {
    access(false, Bank::General(Zero), size, first)
}

const fn ldv(size: u8, first: u8) -> Access {
    access(true, Bank::Vector, size, first)
}

const fn stv(size: u8, first: u8) -> Access {
    access(false, Bank::Vector, size, first)
}

impl Access {
    const fn and(self, second: u8) -> Self {
        Self { second: Some(second), ..self }
    }

    const fn at(self, base: Base, bytes: i64) -> Self {
        Self { base, addressing: Addressing::Offset(bytes), ..self }
    }

    const fn pre(self, base: Base, bytes: i64) -> Self {
        Self { base, addressing: Addressing::Pre(bytes), ..self }
    }

    const fn post(self, base: Base, bytes: i64) -> Self {
        Self { base, addressing: Addressing::Post(bytes), ..self }
    }

    const fn index(self, base: Base, register: u8, extend: IndexExtend, shift: u8) -> Self {
        Self { base, addressing: Addressing::Index { register, extend, shift }, ..self }
    }

    const fn hint(self, hint: Hint) -> Self {
        Self { hint, ..self }
    }
}

#[test]
#[rustfmt::skip]
fn accepted() {
    let golden = [
        // pairs
        (0x2940_0440, "ldp w0, w1, [x2]", ld(4, 0).and(1).at(X(2), 0)),
        (0xA960_0440, "ldp x0, x1, [x2, #-512]", ld(8, 0).and(1).at(X(2), -512)),
        (0xA8C1_7BFD, "ldp x29, x30, [sp], #16", ld(8, 29).and(30).post(SP, 16)),
        (0xA9DF_FC83, "ldp x3, xzr, [x4, #504]!", ld(8, 3).and(31).pre(X(4), 504)),
        (0x291F_98E5, "stp w5, w6, [x7, #252]", st(4, 5).and(6).at(X(7), 252)),
        (0xA9BF_7BFD, "stp x29, x30, [sp, #-16]!", st(8, 29).and(30).pre(SP, -16)),
        (0xA900_7D1F, "stp xzr, xzr, [x8]", st(8, 31).and(31).at(X(8), 0)),
        (0x28A0_2549, "stp w9, w9, [x10], #-256", st(4, 9).and(9).post(X(10), -256)),
        (0x6940_8440, "ldpsw x0, x1, [x2, #4]", lds(4, 0, Sign64).and(1).at(X(2), 4)),
        (0x68C1_0440, "ldpsw x0, x1, [x2], #8", lds(4, 0, Sign64).and(1).post(X(2), 8)),
        (0x69FF_0440, "ldpsw x0, x1, [x2, #-8]!", lds(4, 0, Sign64).and(1).pre(X(2), -8)),
        (0x2841_0440, "ldnp w0, w1, [x2, #8]", ld(4, 0).and(1).at(X(2), 8).hint(NonTemporal)),
        (0xA841_0440, "ldnp x0, x1, [x2, #16]", ld(8, 0).and(1).at(X(2), 16).hint(NonTemporal)),
        (0x2800_07E0, "stnp w0, w1, [sp]", st(4, 0).and(1).at(SP, 0).hint(NonTemporal)),
        (0xA83F_0440, "stnp x0, x1, [x2, #-16]", st(8, 0).and(1).at(X(2), -16).hint(NonTemporal)),
        (0x2D7F_8440, "ldp s0, s1, [x2, #-4]", ldv(4, 0).and(1).at(X(2), -4)),
        (0x6CC1_0C82, "ldp d2, d3, [x4], #16", ldv(8, 2).and(3).post(X(4), 16)),
        (0xADFF_7CC4, "ldp q4, q31, [x6, #-32]!", ldv(16, 4).and(31).pre(X(6), -32)),
        (0x2D80_8400, "stp s0, s1, [x0, #4]!", stv(4, 0).and(1).pre(X(0), 4)),
        (0x6CBF_0842, "stp d2, d2, [x2], #-16", stv(8, 2).and(2).post(X(2), -16)),
        (0xAD1F_FFFE, "stp q30, q31, [sp, #1008]", stv(16, 30).and(31).at(SP, 1008)),
        (0x2C40_0440, "ldnp s0, s1, [x2]", ldv(4, 0).and(1).at(X(2), 0).hint(NonTemporal)),
        (0x6C40_8440, "ldnp d0, d1, [x2, #8]", ldv(8, 0).and(1).at(X(2), 8).hint(NonTemporal)),
        (0xAC40_8440, "ldnp q0, q1, [x2, #16]", ldv(16, 0).and(1).at(X(2), 16).hint(NonTemporal)),
        (0xAC20_0440, "stnp q0, q1, [x2, #-1024]", stv(16, 0).and(1).at(X(2), -1024).hint(NonTemporal)),
        // unsigned offset
        (0x393F_FC20, "strb w0, [x1, #4095]", st(1, 0).at(X(1), 4095)),
        (0x3940_0020, "ldrb w0, [x1]", ld(1, 0).at(X(1), 0)),
        (0x3980_0420, "ldrsb x0, [x1, #1]", lds(1, 0, Sign64).at(X(1), 1)),
        (0x39C0_0420, "ldrsb w0, [x1, #1]", lds(1, 0, Sign32).at(X(1), 1)),
        (0x793F_FC20, "strh w0, [x1, #8190]", st(2, 0).at(X(1), 8190)),
        (0x7940_0420, "ldrh w0, [x1, #2]", ld(2, 0).at(X(1), 2)),
        (0x7980_0420, "ldrsh x0, [x1, #2]", lds(2, 0, Sign64).at(X(1), 2)),
        (0x79C0_0420, "ldrsh w0, [x1, #2]", lds(2, 0, Sign32).at(X(1), 2)),
        (0xB900_043F, "str wzr, [x1, #4]", st(4, 31).at(X(1), 4)),
        (0xB97F_FFE0, "ldr w0, [sp, #16380]", ld(4, 0).at(SP, 16380)),
        (0xB980_0420, "ldrsw x0, [x1, #4]", lds(4, 0, Sign64).at(X(1), 4)),
        (0xF900_0420, "str x0, [x1, #8]", st(8, 0).at(X(1), 8)),
        (0xF97F_FC00, "ldr x0, [x0, #32760]", ld(8, 0).at(X(0), 32760)),
        (0x3D00_0420, "str b0, [x1, #1]", stv(1, 0).at(X(1), 1)),
        (0x3D40_0420, "ldr b0, [x1, #1]", ldv(1, 0).at(X(1), 1)),
        (0x7D00_0420, "str h0, [x1, #2]", stv(2, 0).at(X(1), 2)),
        (0x7D40_0420, "ldr h0, [x1, #2]", ldv(2, 0).at(X(1), 2)),
        (0xBD00_0420, "str s0, [x1, #4]", stv(4, 0).at(X(1), 4)),
        (0xBD40_0420, "ldr s0, [x1, #4]", ldv(4, 0).at(X(1), 4)),
        (0xFD00_0420, "str d0, [x1, #8]", stv(8, 0).at(X(1), 8)),
        (0xFD40_0420, "ldr d0, [x1, #8]", ldv(8, 0).at(X(1), 8)),
        (0x3DBF_FC20, "str q0, [x1, #65520]", stv(16, 0).at(X(1), 65520)),
        (0x3DC0_07FF, "ldr q31, [sp, #16]", ldv(16, 31).at(SP, 16)),
        // unscaled
        (0x3810_0020, "sturb w0, [x1, #-256]", st(1, 0).at(X(1), -256)),
        (0x784F_F020, "ldurh w0, [x1, #255]", ld(2, 0).at(X(1), 255)),
        (0x38DF_F020, "ldursb w0, [x1, #-1]", lds(1, 0, Sign32).at(X(1), -1)),
        (0xB880_3020, "ldursw x0, [x1, #3]", lds(4, 0, Sign64).at(X(1), 3)),
        (0xF81F_8020, "stur x0, [x1, #-8]", st(8, 0).at(X(1), -8)),
        (0x3CDF_F020, "ldur q0, [x1, #-1]", ldv(16, 0).at(X(1), -1)),
        (0x3C1F_F020, "stur b0, [x1, #-1]", stv(1, 0).at(X(1), -1)),
        // write-back
        (0x3800_1420, "strb w0, [x1], #1", st(1, 0).post(X(1), 1)),
        (0x385F_FC20, "ldrb w0, [x1, #-1]!", ld(1, 0).pre(X(1), -1)),
        (0x78C0_2420, "ldrsh w0, [x1], #2", lds(2, 0, Sign32).post(X(1), 2)),
        (0xB880_4C20, "ldrsw x0, [x1, #4]!", lds(4, 0, Sign64).pre(X(1), 4)),
        (0xB800_4420, "str w0, [x1], #4", st(4, 0).post(X(1), 4)),
        (0xF81F_0FFF, "str xzr, [sp, #-16]!", st(8, 31).pre(SP, -16)),
        (0xF841_07E0, "ldr x0, [sp], #16", ld(8, 0).post(SP, 16)),
        (0xF850_0C20, "ldr x0, [x1, #-256]!", ld(8, 0).pre(X(1), -256)),
        (0x3C81_0400, "str q0, [x0], #16", stv(16, 0).post(X(0), 16)),
        (0x3CDF_0C21, "ldr q1, [x1, #-16]!", ldv(16, 1).pre(X(1), -16)),
        (0x7C40_2440, "ldr h0, [x2], #2", ldv(2, 0).post(X(2), 2)),
        (0xFC0F_FCE7, "str d7, [x7, #255]!", stv(8, 7).pre(X(7), 255)),
        // register offset
        (0xF862_6820, "ldr x0, [x1, x2]", ld(8, 0).index(X(1), 2, Double, 0)),
        (0xF862_7820, "ldr x0, [x1, x2, lsl #3]", ld(8, 0).index(X(1), 2, Double, 3)),
        (0xB862_4820, "ldr w0, [x1, w2, uxtw]", ld(4, 0).index(X(1), 2, Word, 0)),
        (0xB822_D820, "str w0, [x1, w2, sxtw #2]", st(4, 0).index(X(1), 2, SignedWord, 2)),
        (0x78A2_FBE0, "ldrsh x0, [sp, x2, sxtx #1]", lds(2, 0, Sign64).index(SP, 2, Double, 1)),
        (0x383E_5820, "strb w0, [x1, w30, uxtw #0]", st(1, 0).index(X(1), 30, Word, 0)),
        (0x387F_6820, "ldrb w0, [x1, xzr]", ld(1, 0).index(X(1), 31, Double, 0)),
        (0x3CE2_7820, "ldr q0, [x1, x2, lsl #4]", ldv(16, 0).index(X(1), 2, Double, 4)),
        (0x7C22_C820, "str h0, [x1, w2, sxtw]", stv(2, 0).index(X(1), 2, SignedWord, 0)),
        // unprivileged
        (0xF800_8820, "sttr x0, [x1, #8]", st(8, 0).at(X(1), 8).hint(Unprivileged)),
        (0xB85F_C820, "ldtr w0, [x1, #-4]", ld(4, 0).at(X(1), -4).hint(Unprivileged)),
        (0x3880_0820, "ldtrsb x0, [x1]", lds(1, 0, Sign64).at(X(1), 0).hint(Unprivileged)),
        (0x78C0_0BE0, "ldtrsh w0, [sp]", lds(2, 0, Sign32).at(SP, 0).hint(Unprivileged)),
        (0xB88F_F820, "ldtrsw x0, [x1, #255]", lds(4, 0, Sign64).at(X(1), 255).hint(Unprivileged)),
        (0x3800_0820, "sttrb w0, [x1]", st(1, 0).at(X(1), 0).hint(Unprivileged)),
        // literals
        (0x1800_0020, "ldr w0, .+4", ld(4, 0).at(PC, 4)),
        (0x5880_0001, "ldr x1, .-1048576", ld(8, 1).at(PC, -1_048_576)),
        (0x987F_FFE2, "ldrsw x2, .+1048572", lds(4, 2, Sign64).at(PC, 1_048_572)),
        (0x1C00_0043, "ldr s3, .+8", ldv(4, 3).at(PC, 8)),
        (0x5CFF_FFC4, "ldr d4, .-8", ldv(8, 4).at(PC, -8)),
        (0x9C00_0085, "ldr q5, .+16", ldv(16, 5).at(PC, 16)),
        // ordered
        (0xC8DF_FC20, "ldar x0, [x1]", ld(8, 0).at(X(1), 0).hint(Ordered)),
        (0x08DF_FFE0, "ldarb w0, [sp]", ld(1, 0).at(SP, 0).hint(Ordered)),
        (0x889F_FC20, "stlr w0, [x1]", st(4, 0).at(X(1), 0).hint(Ordered)),
        (0x489F_FC3F, "stlrh wzr, [x1]", st(2, 31).at(X(1), 0).hint(Ordered)),
        (0x88DF_7C20, "ldlar w0, [x1]", ld(4, 0).at(X(1), 0).hint(Ordered)),
        (0xC89F_7C20, "stllr x0, [x1]", st(8, 0).at(X(1), 0).hint(Ordered)),
        (0xF8BF_C020, "ldapr x0, [x1]", ld(8, 0).at(X(1), 0).hint(Ordered)),
        (0x38BF_C020, "ldaprb w0, [x1]", ld(1, 0).at(X(1), 0).hint(Ordered)),
        (0xD95F_8020, "ldapur x0, [x1, #-8]", ld(8, 0).at(X(1), -8).hint(Ordered)),
        (0x19C0_7020, "ldapursb w0, [x1, #7]", lds(1, 0, Sign32).at(X(1), 7).hint(Ordered)),
        (0x9980_0020, "ldapursw x0, [x1]", lds(4, 0, Sign64).at(X(1), 0).hint(Ordered)),
        (0x5900_2020, "stlurh w0, [x1, #2]", st(2, 0).at(X(1), 2).hint(Ordered)),
    ];
    for (word, text, expected) in golden {
        assert_eq!(decode(word), Ok(expected), "{word:#010x} {text}");
    }
}

#[test]
#[rustfmt::skip]
fn refused() {
    let golden = [
        (0xD503_201F, "nop", NotLoadStore),
        (0x8B02_0020, "add x0, x1, x2", NotLoadStore),
        (0x1400_0002, "b .+8", NotLoadStore),
        (0x1E62_2820, "fadd d0, d1, d2", NotLoadStore),
        (0xD538_0000, "mrs x0, midr_el1", NotLoadStore),
        (0x8580_4000, "ldr z0, [x0]", Scalable),
        (0xE400_E000, "st1b {z0.b}, p0, [x0]", Scalable),
        (0x8580_0000, "ldr p0, [x0]", Scalable),
        (0xE100_0000, "ldr za[w12, 0], [x0]", Scalable),
        (0xD50B_7420, "dc zva, x0", System),
        (0xD50B_7E20, "dc civac, x0", System),
        (0xD50B_7520, "ic ivau, x0", System),
        (0xD508_7800, "at s1e1r, x0", System),
        (0xC85F_7C20, "ldxr x0, [x1]", Exclusive),
        (0x085F_FC20, "ldaxrb w0, [x1]", Exclusive),
        (0xC800_7C41, "stxr w0, x1, [x2]", Exclusive),
        (0x8800_FC41, "stlxr w0, w1, [x2]", Exclusive),
        (0xC87F_0440, "ldxp x0, x1, [x2]", Exclusive),
        (0x8820_8861, "stlxp w0, w1, w2, [x3]", Exclusive),
        (0x4820_7C82, "casp x0, x1, x2, x3, [x4]", Exclusive),
        (0xC8A0_7C41, "cas x0, x1, [x2]", Atomic),
        (0x08E0_FC41, "casalb w0, w1, [x2]", Atomic),
        (0xF820_0041, "ldadd x0, x1, [x2]", Atomic),
        (0xB820_303F, "stset w0, [x1]", Atomic),
        (0xF8E0_8041, "swpal x0, x1, [x2]", Atomic),
        (0x7820_6041, "ldumaxh w0, w1, [x2]", Atomic),
        (0xF83F_D100, "ld64b x0, [x8]", Atomic),
        (0xF83F_9100, "st64b x0, [x8]", Atomic),
        (0xF821_A100, "st64bv0 x1, x0, [x8]", Atomic),
        (0x4C40_7000, "ld1 {v0.16b}, [x0]", Structure),
        (0x4C9F_2800, "st1 {v0.4s-v3.4s}, [x0], #64", Structure),
        (0x4CC1_0400, "ld4 {v0.8h-v3.8h}, [x0], x1", Structure),
        (0x0D40_0C00, "ld1 {v0.b}[3], [x0]", Structure),
        (0x4DBF_8400, "st2 {v0.d, v1.d}[1], [x0], #16", Structure),
        (0x4D40_CC00, "ld1r {v0.2d}, [x0]", Structure),
        (0xF820_1420, "ldraa x0, [x1, #8]", Authenticated),
        (0xF8FF_FC20, "ldrab x0, [x1, #-8]!", Authenticated),
        (0xD960_0020, "ldg x0, [x1]", TagOrCopy),
        (0xD920_143F, "stg sp, [x1], #16", TagOrCopy),
        (0x6900_0440, "stgp x0, x1, [x2]", TagOrCopy),
        (0x1901_0440, "cpyfp [x0]!, [x1]!, x2!", TagOrCopy),
        (0x19C2_0420, "setp [x0]!, x1!, x2", TagOrCopy),
        (0xF980_0000, "prfm pldl1keep, [x0]", Prefetch),
        (0xF8A1_7811, "prfm pstl1strm, [x0, x1, lsl #3]", Prefetch),
        (0xF89F_F004, "prfum pldl3keep, [x0, #-1]", Prefetch),
        (0xD800_002A, "prfm plil2keep, .+4", Prefetch),
        (0xF840_8421, "ldr x1, [x1], #8", Unpredictable),
        (0xF81F_8C21, "str x1, [x1, #-8]!", Unpredictable),
        (0x3840_1C42, "ldrb w2, [x2, #1]!", Unpredictable),
        (0xA8C1_0400, "ldp x0, x1, [x0], #16", Unpredictable),
        (0xA9C1_0420, "ldp x0, x1, [x1, #16]!", Unpredictable),
        (0xA981_0420, "stp x0, x1, [x1, #16]!", Unpredictable),
        (0x2881_0442, "stp w2, w1, [x2], #8", Unpredictable),
        (0x68C1_0420, "ldpsw x0, x1, [x1], #8", Unpredictable),
        (0xA940_0020, "ldp x0, x0, [x1]", Unpredictable),
        (0xA940_7C3F, "ldp xzr, xzr, [x1]", Unpredictable),
        (0x2840_0C23, "ldnp w3, w3, [x1]", Unpredictable),
        (0xAD40_0020, "ldp q0, q0, [x1]", Unpredictable),
        (0x6CC1_03E0, "ldp d0, d0, [sp], #16", Unpredictable),
        // No assembler has a name for these.
        (0xE940_0440, "pair, opc 11", Unallocated),
        (0xED40_0440, "pair, V, opc 11", Unallocated),
        (0x6840_0440, "no-allocate pair, opc 01", Unallocated),
        (0x6800_0440, "no-allocate pair, opc 01, store", Unallocated),
        (0xDC00_0000, "literal, V, opc 11", Unallocated),
        (0xF862_0820, "register offset, option 000", Unallocated),
        (0xF862_2820, "register offset, option 001", Unallocated),
        (0xF862_8820, "register offset, option 100", Unallocated),
        (0xF862_A820, "register offset, option 101", Unallocated),
        (0x3C40_0820, "unprivileged, V", Unallocated),
        (0xB9C0_0020, "unsigned offset, size 10, opc 11", Unallocated),
        (0xF9C0_0020, "unsigned offset, size 11, opc 11", Unallocated),
        (0x7D80_0020, "unsigned offset, V, size 01, opc 10", Unallocated),
        (0xFDC0_0020, "unsigned offset, V, size 11, opc 11", Unallocated),
        (0xF880_0420, "post-index, size 11, opc 10", Unallocated),
        (0xF880_0C20, "pre-index, size 11, opc 10", Unallocated),
        (0xF880_0820, "unprivileged, size 11, opc 10", Unallocated),
        (0xD980_0020, "unscaled ordered, size 11, opc 10", Unallocated),
        (0xC9DF_FC20, "bits 29:24 001001", Unallocated),
        (0x8C40_0000, "SIMD structure, bit 31", Unallocated),
        (0xB820_0420, "authenticated, size 10", Unallocated),
        (0xFC20_0420, "authenticated, V", Unallocated),
        (0xC8C0_FC20, "ldar, Rs 00000", Unpredictable),
        (0xC8DF_8020, "ldar, Rt2 00000", Unpredictable),
        (0xF8A0_C020, "ldapr, Rs 00000", Unpredictable),
        (0x0000_0000, "udf #0", NotLoadStore),
        (0xFFFF_FFFF, "all ones", NotLoadStore),
    ];
    for (word, text, expected) in golden {
        assert_eq!(decode(word), Err(expected), "{word:#010x} {text}");
    }
}
