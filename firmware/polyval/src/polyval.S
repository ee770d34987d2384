// SPDX-License-Identifier: Apache-2.0 OR MIT
// POLYVAL (RFC 8452, section 3) by the carry-less multiplication of FEAT_PMULL, eight blocks for one reduction.
.arch armv8-a+aes

    // x0 = the sum so far (16 bytes), x1 = the key's eighth power to its first (128 bytes), x2 = data,
    // x3 = chunks of 128 bytes, not 0. Leaves the vector registers zero: they held what is made of the key.
    //
    // A product of 256 bits comes in three parts: v8 from bit 0 on, v10 from bit 64 on, v9 from bit 128 on.
.global polyval_chunks
polyval_chunks:
    ld1     {{v16.16b-v19.16b}}, [x1], #64
    ld1     {{v20.16b-v23.16b}}, [x1]
    // The powers with their halves the other way round, for the middle part.
    ext     v24.16b, v16.16b, v16.16b, #8
    ext     v25.16b, v17.16b, v17.16b, #8
    ext     v26.16b, v18.16b, v18.16b, #8
    ext     v27.16b, v19.16b, v19.16b, #8
    ext     v28.16b, v20.16b, v20.16b, #8
    ext     v29.16b, v21.16b, v21.16b, #8
    ext     v30.16b, v22.16b, v22.16b, #8
    ext     v31.16b, v23.16b, v23.16b, #8
    ld1     {{v15.16b}}, [x0]
    movi    v14.16b, #0
    mov     x4, #0xC200000000000000         // x^127 + x^126 + x^121, over x^64
    dup     v13.2d, x4

1:  ld1     {{v0.16b-v3.16b}}, [x2], #64
    ld1     {{v4.16b-v7.16b}}, [x2], #64
    eor     v0.16b, v0.16b, v15.16b
    pmull   v8.1q, v0.1d, v16.1d
    pmull2  v9.1q, v0.2d, v16.2d
    pmull   v10.1q, v0.1d, v24.1d
    pmull2  v11.1q, v0.2d, v24.2d
    eor     v10.16b, v10.16b, v11.16b
.macro term block, power, turned
    pmull   v11.1q, \block\().1d, \power\().1d
    pmull2  v12.1q, \block\().2d, \power\().2d
    eor     v8.16b, v8.16b, v11.16b
    eor     v9.16b, v9.16b, v12.16b
    pmull   v11.1q, \block\().1d, \turned\().1d
    pmull2  v12.1q, \block\().2d, \turned\().2d
    eor     v10.16b, v10.16b, v11.16b
    eor     v10.16b, v10.16b, v12.16b
.endm
    term    v1, v17, v25
    term    v2, v18, v26
    term    v3, v19, v27
    term    v4, v20, v28
    term    v5, v21, v29
    term    v6, v22, v30
    term    v7, v23, v31
    ext     v11.16b, v14.16b, v10.16b, #8
    ext     v12.16b, v10.16b, v14.16b, #8
    eor     v8.16b, v8.16b, v11.16b
    eor     v9.16b, v9.16b, v12.16b
    // Times x^-128: the low half goes, 64 bits a step.
.rept 2
    pmull   v11.1q, v8.1d, v13.1d
    ext     v8.16b, v8.16b, v8.16b, #8
    eor     v8.16b, v8.16b, v11.16b
.endr
    eor     v15.16b, v8.16b, v9.16b
    subs    x3, x3, #1
    b.ne    1b

    st1     {{v15.16b}}, [x0]
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    movi    v\n\().16b, #0
.endr
    ret
