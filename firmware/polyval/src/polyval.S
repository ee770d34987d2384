// SPDX-License-Identifier: Apache-2.0 OR MIT
// POLYVAL (RFC 8452, section 3) by the carry-less multiplication of FEAT_PMULL, sixteen blocks for one reduction.
.arch armv8-a+aes+sha3

    // NAME: x0 = the sum so far (16 bytes), x1 = the key's powers (`Table`), x2 = data, x3 = chunks of 256 bytes, not 0.
    // Leaves the vector registers zero: they held what is made of the key.
    //
    // Two blocks a step, a and b: v0 has their low halves, v1 their high ones, v2 the sums of the two. By Karatsuba's method a
    // product of 256 bits comes of three: v5 from bit 0 on, v7 from bit 128 on, and v6, which with those two is what stands from
    // bit 64 on.
.macro polyval_chunks name, eor3
.global \name
\name:
    ld1     {{v8.2d-v11.2d}}, [x1], #64
    ld1     {{v12.2d-v15.2d}}, [x1], #64
    ld1     {{v16.2d-v19.2d}}, [x1], #64
    ld1     {{v20.2d-v23.2d}}, [x1], #64
    ld1     {{v24.2d-v27.2d}}, [x1], #64
    ld1     {{v28.2d-v31.2d}}, [x1]
    ld1     {{v4.2d}}, [x0]
    mov     x4, #0xC200000000000000         // x^127 + x^126 + x^121, over x^64

1:  ld2     {{v0.2d, v1.2d}}, [x2], #32
    fmov    d2, d4
    mov     d3, v4.d[1]
    eor     v0.16b, v0.16b, v2.16b
    eor     v1.16b, v1.16b, v3.16b
    eor     v2.16b, v0.16b, v1.16b
    pmull   v5.1q, v0.1d, v8.1d
    pmull2  v3.1q, v0.2d, v8.2d
    eor     v5.16b, v5.16b, v3.16b
    pmull   v7.1q, v1.1d, v9.1d
    pmull2  v3.1q, v1.2d, v9.2d
    eor     v7.16b, v7.16b, v3.16b
    pmull   v6.1q, v2.1d, v10.1d
    pmull2  v3.1q, v2.2d, v10.2d
    eor     v6.16b, v6.16b, v3.16b
    polyval_step v11, v12, v13, \eor3
    polyval_step v14, v15, v16, \eor3
    polyval_step v17, v18, v19, \eor3
    polyval_step v20, v21, v22, \eor3
    polyval_step v23, v24, v25, \eor3
    polyval_step v26, v27, v28, \eor3
    polyval_step v29, v30, v31, \eor3
    polyval_add v6, v5, v7, \eor3
    // Times x^-128: the lowest 64 bits go, and those above them.
    dup     v2.2d, x4
    pmull   v3.1q, v5.1d, v2.1d
    ext     v4.16b, v5.16b, v5.16b, #8
    polyval_add v6, v3, v4, \eor3
    pmull   v3.1q, v6.1d, v2.1d
    ext     v4.16b, v6.16b, v6.16b, #8
    polyval_add v4, v3, v7, \eor3
    subs    x3, x3, #1
    b.ne    1b

    st1     {{v4.2d}}, [x0]
    b       polyval_wipe
.endm

.macro polyval_step low, high, both, eor3
    ld2     {{v0.2d, v1.2d}}, [x2], #32
    eor     v2.16b, v0.16b, v1.16b
    pmull   v3.1q, v0.1d, \low\().1d
    pmull2  v4.1q, v0.2d, \low\().2d
    polyval_add v5, v3, v4, \eor3
    pmull   v3.1q, v1.1d, \high\().1d
    pmull2  v4.1q, v1.2d, \high\().2d
    polyval_add v7, v3, v4, \eor3
    pmull   v3.1q, v2.1d, \both\().1d
    pmull2  v4.1q, v2.2d, \both\().2d
    polyval_add v6, v3, v4, \eor3
.endm

    // to += a + b
.macro polyval_add to, a, b, eor3
.if \eor3
    eor3    \to\().16b, \to\().16b, \a\().16b, \b\().16b
.else
    eor     \to\().16b, \to\().16b, \a\().16b
    eor     \to\().16b, \to\().16b, \b\().16b
.endif
.endm

polyval_wipe:
.irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    movi    v\n\().16b, #0
.endr
    ret

    polyval_chunks polyval_chunks_pmull, 0
    polyval_chunks polyval_chunks_sha3, 1
