// SPDX-License-Identifier: Apache-2.0 OR MIT
// FP/SIMD and SVE registers to and from memory. EL2 itself is soft-float.

.arch armv8-a+fp+simd+sve
.section .text.fp, "ax"

// fp_save(area), fp_restore(area): q0..q31, FPSR, FPCR (`FpRegs`, 528 bytes).
.global fp_save
fp_save:
    stp     q0, q1, [x0, #0]
    stp     q2, q3, [x0, #32]
    stp     q4, q5, [x0, #64]
    stp     q6, q7, [x0, #96]
    stp     q8, q9, [x0, #128]
    stp     q10, q11, [x0, #160]
    stp     q12, q13, [x0, #192]
    stp     q14, q15, [x0, #224]
    stp     q16, q17, [x0, #256]
    stp     q18, q19, [x0, #288]
    stp     q20, q21, [x0, #320]
    stp     q22, q23, [x0, #352]
    stp     q24, q25, [x0, #384]
    stp     q26, q27, [x0, #416]
    stp     q28, q29, [x0, #448]
    stp     q30, q31, [x0, #480]
    mrs     x1, fpsr
    mrs     x2, fpcr
    add     x0, x0, #512
    stp     w1, w2, [x0]
    ret

.global fp_restore
fp_restore:
    ldp     q0, q1, [x0, #0]
    ldp     q2, q3, [x0, #32]
    ldp     q4, q5, [x0, #64]
    ldp     q6, q7, [x0, #96]
    ldp     q8, q9, [x0, #128]
    ldp     q10, q11, [x0, #160]
    ldp     q12, q13, [x0, #192]
    ldp     q14, q15, [x0, #224]
    ldp     q16, q17, [x0, #256]
    ldp     q18, q19, [x0, #288]
    ldp     q20, q21, [x0, #320]
    ldp     q22, q23, [x0, #352]
    ldp     q24, q25, [x0, #384]
    ldp     q26, q27, [x0, #416]
    ldp     q28, q29, [x0, #448]
    ldp     q30, q31, [x0, #480]
    add     x0, x0, #512
    ldp     w1, w2, [x0]
    msr     fpsr, x1
    msr     fpcr, x2
    ret

// sve_save(area, ffr), sve_restore(area, ffr): z0..z31 and p0..p15, FFR at the vector length in force
// (`SveRegs`: 32 * 256 bytes, then 17 * 32, then FPSR, FPCR).
.macro z_all op
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \op     z\n, [x0, #\n, mul vl]
    .endr
.endm
.macro p_all op
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
    \op     p\n, [x3, #\n, mul vl]
    .endr
.endm

.global sve_save
sve_save:
    add     x3, x0, #8192
    z_all   str
    p_all   str
    cbz     x1, 1f
    rdffr   p0.b
    str     p0, [x3, #16, mul vl]
    ldr     p0, [x3, #0, mul vl]
1:  mrs     x1, fpsr
    mrs     x2, fpcr
    add     x3, x3, #544
    stp     w1, w2, [x3]
    ret

.global sve_restore
sve_restore:
    add     x3, x0, #8192
    cbz     x1, 1f
    ldr     p0, [x3, #16, mul vl]
    wrffr   p0.b
1:  z_all   ldr
    p_all   ldr
    add     x3, x3, #544
    ldp     w1, w2, [x3]
    msr     fpsr, x1
    msr     fpcr, x2
    ret

// sve_vector_bytes() -> bytes of a vector at the length in force.
.global sve_vector_bytes
sve_vector_bytes:
    rdvl    x0, #1
    ret
