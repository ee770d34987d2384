// SPDX-License-Identifier: Apache-2.0 OR MIT
// Entry of the image: arm64 boot protocol (x0 = device tree, MMU and data cache off), EL2 or EL1.

.section .head, "ax"
.global image_head
image_head:
    b       primary_entry
    .long   0
    .quad   0                               // text_offset: any 2 MiB boundary
    .quad   image_end - image_head          // image_size, BSS included
    .quad   0xA                             // little-endian, 4 KiB pages, anywhere
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0

.section .text.entry, "ax"
primary_entry:
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #8
    b.ne    0f
    mov     x1, #1 << 31                    // HCR_EL2: RW, and E2H = 0 before anything depends on it
    msr     hcr_el2, x1
    msr     tpidr_el2, xzr                  // no per-CPU block yet: the vectors look
    isb
0:
    mov     x20, x0
    mrs     x21, CurrentEL
    lsr     x21, x21, #2
    adrp    x22, image_head                 // the image is linked at 0: this is the displacement

    // Relative relocations (ELF gABI, SHT_RELR): an even entry is the address of a word that gets the displacement; an odd
    // one is a bitmap of the 63 words behind the last one that was dealt with.
    adrp    x1, image_relr_start
    add     x1, x1, :lo12:image_relr_start
    adrp    x2, image_relr_end
    add     x2, x2, :lo12:image_relr_end
1:  cmp     x1, x2
    b.hs    2f
    ldr     x3, [x1], #8
    tbnz    x3, #0, 5f
    add     x4, x3, x22
    ldr     x5, [x4]
    add     x5, x5, x22
    str     x5, [x4], #8
    b       1b
5:  mov     x6, x4
    add     x4, x4, #63 * 8
6:  lsr     x3, x3, #1
    cbz     x3, 1b
    tbz     x3, #0, 7f
    ldr     x5, [x6]
    add     x5, x5, x22
    str     x5, [x6]
7:  add     x6, x6, #8
    b       6b
2:
    adrp    x1, image_bss_start
    adrp    x2, image_bss_end
3:  stp     xzr, xzr, [x1], #16
    cmp     x1, x2
    b.lo    3b

    adrp    x1, image_boot_stack_top
    mov     sp, x1
    mov     x29, xzr
    mov     x30, xzr
    cmp     x21, #2
    b.ne    4f

    // A first map for this CPU: 1 GiB blocks, all device memory but the GiB of the image and the
    // two of the device tree (which may straddle). It lives until the real one is made.
    bl      invalidate_image
    adrp    x0, boot_l0
    adrp    x1, boot_l1
    orr     x2, x1, #3
    str     x2, [x0]
    mov     x3, #0x0401                     // block, AttrIndx 0 (device), AF
    movk    x3, #0x0040, lsl #48            // XN
    mov     x4, xzr
5:  lsl     x5, x4, #30
    orr     x5, x5, x3
    str     x5, [x1, x4, lsl #3]
    add     x4, x4, #1
    cmp     x4, #512
    b.lo    5b
    mov     x3, #0x0705                     // block, AttrIndx 1 (normal), inner shareable, AF
    lsr     x4, x20, #30
    and     x4, x4, #511
    lsl     x5, x4, #30
    orr     x5, x5, x3
    str     x5, [x1, x4, lsl #3]
    add     x6, x20, #0x200000
    lsr     x4, x6, #30
    and     x4, x4, #511
    lsl     x5, x4, #30
    orr     x5, x5, x3
    str     x5, [x1, x4, lsl #3]
    lsr     x4, x22, #30
    and     x4, x4, #511
    lsl     x5, x4, #30
    orr     x5, x5, x3
    str     x5, [x1, x4, lsl #3]
    dsb     sy

    adrp    x1, host_vectors
    add     x1, x1, :lo12:host_vectors
    msr     vbar_el2, x1
    mrs     x3, id_aa64mmfr0_el1
    and     x3, x3, #7                      // PARange; what is above 48 bits counts as 48
    cmp     x3, #5
    mov     x4, #5
    csel    x3, x3, x4, lo
    mov     x2, #0x3510                     // T0SZ 16, IRGN0/ORGN0 WB, SH0 inner, 4 KiB
    movk    x2, #0x8080, lsl #16            // RES1
    orr     x2, x2, x3, lsl #16
    mov     x1, #0xFF04                     // 0: device-nGnRE, 1: normal WB
    mov     x3, #0x183d                     // M, C, SA, I and RES1
    movk    x3, #0x30c5, lsl #16
    bl      enable_mmu
    mov     x0, x20
    mov     x1, x22
    bl      boot_primary
    b       .

4:  mov     x0, x20
    mov     x1, x21
    bl      boot_without_el2
    b       .

// Drops stale cache lines over image and BSS: they were written with caches off.
invalidate_image:
    adrp    x1, image_head
    adrp    x2, image_end
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4
    mov     x4, #4
    lsl     x3, x4, x3
1:  dc      ivac, x1
    add     x1, x1, x3
    cmp     x1, x2
    b.lo    1b
    dsb     sy
    ret

// enable_mmu(ttbr0, mair, tcr, sctlr): turns stage 1 of EL2 on, from off. Leaf; keeps x19-x30.
.global enable_mmu
enable_mmu:
    msr     mair_el2, x1
    msr     tcr_el2, x2
    msr     ttbr0_el2, x0
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x3
    isb
    ret

// replace_map(ttbr0, mair, tcr, sctlr): the same from another map, with stage 1 off in between, so
// that no entry ever changes its size under a live translation. Both maps must be identity maps.
.global replace_map
replace_map:
    mrs     x4, sctlr_el2
    bic     x4, x4, #1
    dsb     sy
    msr     sctlr_el2, x4
    isb
    b       enable_mmu

// A secondary CPU, from firmware's CPU_ON: x0 = its per-CPU block (physical = virtual).
.global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mov     x1, #1 << 31
    msr     hcr_el2, x1
    mov     x20, x0
    msr     tpidr_el2, x20
    isb
    adrp    x1, host_vectors
    add     x1, x1, :lo12:host_vectors
    msr     vbar_el2, x1
    ldp     x4, x0, [x20, #0]               // stack_top, ttbr0
    mov     sp, x4
    ldp     x1, x2, [x20, #16]              // mair, tcr
    ldr     x3, [x20, #32]                  // sctlr
    mov     x29, xzr
    bl      enable_mmu
    mov     x0, x20
    bl      boot_secondary
    b       .

.section .bss
.balign 4096
.global boot_l1
boot_l0: .space 4096
boot_l1: .space 4096
