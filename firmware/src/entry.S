// SPDX-License-Identifier: Apache-2.0 OR MIT
// Entry of vCPU 0, MMU off: x0 = device tree, x1 = kernel, x2 = its bytes. None of that is looked at here.
//
//   VA = PA     0 .. 1 GiB      Device-nGnRE, never executed
//               1 .. 512 GiB    Normal write-back; executed only in the GiB of this image

.section .head.text, "ax"
.global _start
_start:
    b       1f
    .long   0
    .quad   0                       // text_offset
    .quad   image_size
    .quad   0xA                     // little-endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0
1:
    mov     x19, x0
    mov     x20, x1
    mov     x21, x2

    adrp    x22, image_start
    adrp    x1, rela_start
    add     x1, x1, :lo12:rela_start
    adrp    x2, rela_end
    add     x2, x2, :lo12:rela_end
2:  cmp     x1, x2
    b.hs    3f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027               // R_AARCH64_RELATIVE
    b.ne    off
    add     x5, x5, x22
    str     x5, [x22, x3]
    b       2b
3:
    adrp    x1, bss_start
    adrp    x2, bss_end
4:  cmp     x1, x2
    b.hs    5f
    stp     xzr, xzr, [x1], #16
    b       4b
5:
    adrp    x1, TABLE
    movz    x2, #0x0405             // device: AF, MAIR index 1, block
    movk    x2, #0x0060, lsl #48    // never executed
    str     x2, [x1], #8
    movz    x2, #0x0701             // normal: AF, inner shareable, MAIR index 0, block
    movz    x6, #0x0060, lsl #48
    lsr     x7, x22, #30
    movz    x3, #1
6:  orr     x4, x2, x3, lsl #30
    cmp     x3, x7
    b.eq    7f
    orr     x4, x4, x6
7:  str     x4, [x1], #8
    add     x3, x3, #1
    cmp     x3, #512
    b.ne    6b

    // What the caches hold of these pages is older than what was just written past them.
    dsb     sy
    adrp    x1, image_start
    adrp    x2, bss_end
8:  dc      ivac, x1
    add     x1, x1, #16
    cmp     x1, x2
    b.lo    8b
    dsb     sy

    adrp    x1, TABLE
    msr     ttbr0_el1, x1
    mov     x1, #0x04FF             // MAIR: 0 = normal write-back, 1 = Device-nGnRE
    msr     mair_el1, x1
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xF
    mov     x2, #5
    cmp     x1, x2
    csel    x1, x1, x2, lo          // IPS, 48 bits at most
    lsl     x1, x1, #32
    movz    x2, #0x3519             // T0SZ 25, write-back walks, inner shareable
    movk    x2, #0x0099, lsl #16    // T1SZ 25, EPD1
    orr     x1, x1, x2
    msr     tcr_el1, x1
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    ic      iallu
    tlbi    vmalle1
    dsb     nsh
    isb
    movz    x1, #0x1805             // EOS, I, C, M
    movk    x1, #0x30D0, lsl #16    // the other RES1 bits
    msr     sctlr_el1, x1
    isb

    msr     spsel, #1
    adrp    x1, STACK
    add     x1, x1, #{stack}
    mov     sp, x1
    mov     x29, #0
    mov     x30, #0
    mov     x0, x19
    mov     x1, x20
    mov     x2, x21
    bl      firmware_main

    // PSCI SYSTEM_OFF
off:
    movz    x0, #0x0008
    movk    x0, #0x8400, lsl #16
    hvc     #0
    b       off

    // x0 = device tree, x1 = kernel: to the kernel, MMU and caches off, as the arm64 boot protocol has it. Nothing of what this
    // firmware has computed is left on its stack, in memory either, or in registers: it knows keys that the payload must not know.
.global start_payload
start_payload:
    mov     x4, x1
    adrp    x2, STACK
    add     x3, x2, #{stack}
9:  stp     xzr, xzr, [x2]
    dc      civac, x2
    add     x2, x2, #16
    cmp     x2, x3
    b.lo    9b
    mrs     x2, sctlr_el1
    bic     x2, x2, #1
    bic     x2, x2, #4
    bic     x2, x2, #(1 << 12)
    dsb     sy
    msr     sctlr_el1, x2
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     ttbr0_el1, xzr
    msr     tcr_el1, xzr
    msr     mair_el1, xzr
    msr     vbar_el1, xzr
    mov     x1, xzr
    mov     sp, x1
    mov     x2, xzr
    mov     x3, xzr
.irp n, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    mov     x\n, xzr
.endr
    br      x4

    // An exception of the firmware is a bug, or a host that gave it nonsense: it ends the VM.
.balign 2048
vectors:
.rept 16
    .balign 128
    b       off
.endr
    .balign 2048
