// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests of the conformance suite, as those of [`crate::programs`]: position independent, MMU off,
//! one page. x19 is the device all along.

use core::arch::global_asm;

use crate::programs::programs;

programs! {
    /// Stores of 1, 2, 4, 8 bytes; then loads of 1, 2, 4, 8 bytes, each told by a store; turns off.
    accesses = (conf_access, conf_access_end);
    /// `wfi` for ever.
    waits = (conf_wait, conf_wait_end);
    /// Turns vCPU 1 on, which sleeps until SGI 3 and tells it; after a store of its own, sends that SGI.
    sends_sgi = (conf_sgi, conf_sgi_end);
    /// Asks for the time by virtual, physical and no counter; tells x0 to x3 of the first two, x0 of the last.
    asks_times = (conf_ptp, conf_ptp_end);
    /// SYSTEM_RESET2 of a vendor type with a cookie.
    resets_with_cookie = (conf_reset2, conf_reset2_end);
    /// BRK, an undefined instruction, HVC #1, SMC: tells how many exceptions its own vectors saw (3).
    own_exceptions = (conf_own, conf_own_end);
    /// Sets x29, x30 and SP to 0x2929, 0x3030 and 0x5000; BRK 9.
    breaks = (conf_brk, conf_brk_end);
    /// Gives back an address that is no page's, and one that is no memory: tells both answers.
    relinquishes_wrongly = (conf_bad, conf_bad_end);
    /// Interrupt lines by polling, see the listing; no WFI, no exception.
    polls_lines = (conf_lines, conf_lines_end);
    /// Polls for SPI 5 without an exit, tells the INTID, turns off.
    polls_spi = (conf_poll, conf_poll_end);
    /// Polls for the highest SPI, INTID 1019, tells GICD_TYPER and the INTID, turns off.
    polls_last_spi = (conf_last, conf_last_end);
    /// What a small kernel does: see the listing.
    kernel = (conf_kernel, conf_kernel_end);
}

global_asm!(
    r#"
    .section .text.conformance, "ax"
    .global conf_access, conf_access_end
    .global conf_wait, conf_wait_end
    .global conf_sgi, conf_sgi_end
    .global conf_ptp, conf_ptp_end
    .global conf_reset2, conf_reset2_end
    .global conf_own, conf_own_end
    .global conf_brk, conf_brk_end
    .global conf_bad, conf_bad_end
    .global conf_lines, conf_lines_end
    .global conf_poll, conf_poll_end
    .global conf_last, conf_last_end
    .global conf_kernel, conf_kernel_end

    .balign 16
conf_brk:
    mov     x29, #0x2929
    mov     x30, #0x3030
    mov     x9, #0x5000
    mov     sp, x9
    brk     #9
conf_brk_end:

    .macro  conf_off
    movz    w0, #0x0008
    movk    w0, #0x8400, lsl #16
    hvc     #0
    b       .
    .endm

    // Distributor, the redistributor at this address, CPU interface; all group 1, nothing enabled.
    .macro  conf_gic redistributor
    mov     x10, #0x3FFF0000
    mov     w11, #0x12
    str     w11, [x10]
    mov     w11, #-1
    str     w11, [x10, #0x84]
    mov     x12, #\redistributor
    ldr     w11, [x12, #0x14]
    bic     w11, w11, #2
    str     w11, [x12, #0x14]
    add     x12, x12, #0x10000
    mov     w11, #-1
    str     w11, [x12, #0x80]
    mov     x11, #1
    msr     S3_0_C12_C12_5, x11
    isb
    mov     x11, #0xFF
    msr     S3_0_C4_C6_0, x11
    mov     x11, #1
    msr     S3_0_C12_C12_7, x11
    isb
    .endm

    .balign 16
conf_access:
    mov     x19, #0x90000
    movz    x2, #0x2211
    movk    x2, #0x4433, lsl #16
    movk    x2, #0x6655, lsl #32
    movk    x2, #0x8877, lsl #48
    strb    w2, [x19, #0x11]
    strh    w2, [x19, #0x12]
    str     w2, [x19, #0x14]
    str     x2, [x19, #0x18]
    ldrb    w3, [x19, #0x21]
    str     x3, [x19, #0x40]
    ldrsh   x3, [x19, #0x22]
    str     x3, [x19, #0x40]
    ldrsw   x3, [x19, #0x24]
    str     x3, [x19, #0x40]
    ldr     x3, [x19, #0x28]
    str     x3, [x19, #0x40]
    conf_off
conf_access_end:

conf_wait:
1:  wfi
    b       1b
conf_wait_end:

    .balign 16
conf_sgi:
    mov     x19, #0x90000
    movz    w0, #0x0003
    movk    w0, #0xC400, lsl #16
    mov     x1, #1
    adr     x2, 2f
    mov     x3, #0
    hvc     #0
    str     x0, [x19, #0x10]        // CPU_ON's answer; vCPU 1 goes to sleep meanwhile
    mov     x11, #1
    msr     S3_0_C12_C12_5, x11
    isb
    movz    x4, #2                  // target list: Aff0 = 1
    movk    x4, #0x0300, lsl #16    // SGI 3
    msr     S3_0_C12_C11_5, x4
    isb
    str     xzr, [x19, #0x18]
    b       .
2:  mov     x19, #0x90000
    conf_gic 0x3FFD0000
    mov     w11, #(1 << 3)
    str     w11, [x12, #0x100]
3:  mrs     x4, S3_0_C12_C12_2
    cmp     w4, #3
    b.eq    4f
    wfi
    b       3b
4:  mrs     x4, S3_0_C12_C12_0
    str     x4, [x19, #0x20]
    b       .
conf_sgi_end:

    .balign 16
conf_ptp:
    mov     x19, #0x90000
    mov     x20, #0
1:  movz    w0, #0x0001
    movk    w0, #0x8600, lsl #16
    mov     x1, x20
    hvc     #0
    str     x0, [x19, #0x10]
    str     x1, [x19, #0x18]
    str     x2, [x19, #0x20]
    str     x3, [x19, #0x28]
    add     x20, x20, #1
    cmp     x20, #2
    b.ne    1b
    movz    w0, #0x0001
    movk    w0, #0x8600, lsl #16
    mov     x1, #2
    hvc     #0
    str     x0, [x19, #0x30]
    conf_off
conf_ptp_end:

    .balign 16
conf_reset2:
    movz    w0, #0x0012
    movk    w0, #0xC400, lsl #16
    movz    w1, #5
    movk    w1, #0x8000, lsl #16
    movz    x2, #0x7788
    movk    x2, #0x1122, lsl #48
    hvc     #0
    b       .
conf_reset2_end:

    .balign 2048
conf_own:
    mov     x19, #0x90000
    mov     x22, #0
    adr     x1, 9f
    msr     vbar_el1, x1
    isb
    brk     #1
    .inst   0
    hvc     #1
    movz    w0, #0x0000
    movk    w0, #0x8400, lsl #16
    smc     #0
    str     x22, [x19, #0x10]
    str     x0, [x19, #0x18]
    conf_off
    .balign 2048
9:  .space  0x200
    add     x22, x22, #1
    mrs     x1, elr_el1
    add     x1, x1, #4
    msr     elr_el1, x1
    eret
conf_own_end:

    .balign 16
conf_bad:
    mov     x19, #0x90000
    movz    w0, #0x0009
    movk    w0, #0xC600, lsl #16
    movz    x1, #0x0008
    movk    x1, #0x8000, lsl #16
    hvc     #0
    str     x0, [x19, #0x10]
    movz    w0, #0x0009
    movk    w0, #0xC600, lsl #16
    mov     x1, x19
    hvc     #0
    str     x0, [x19, #0x18]
    conf_off
conf_bad_end:

    .balign 16
conf_lines:
    mov     x19, #0x90000
    conf_gic 0x3FFD0000
    mov     w11, #(1 << 5)
    str     w11, [x10, #0x104]      // SPI 5
    mov     w11, #(1 << 23)
    str     w11, [x12, #0x100]      // PPI 23
    str     xzr, [x19, #0x10]       // the host raises SPI 5 and lowers it
    mrs     x4, S3_0_C12_C12_2
    str     x4, [x19, #0x18]        // nothing
    str     xzr, [x19, #0x20]       // the host raises it
    mrs     x4, S3_0_C12_C12_0
    str     x4, [x19, #0x28]        // 37, active now; the host raises it again
    msr     S3_0_C12_C12_1, x4
    isb
    mrs     x4, S3_0_C12_C12_0
    str     x4, [x19, #0x30]        // 37 once more
    msr     S3_0_C12_C12_1, x4
    isb
    mrs     x4, S3_0_C12_C12_2
    str     x4, [x19, #0x38]        // nothing, though nobody lowered the line; the host raises PPI 23
    mrs     x4, S3_0_C12_C12_0
    str     x4, [x19, #0x40]        // 23
    msr     S3_0_C12_C12_1, x4
    isb
    conf_off
conf_lines_end:

    .balign 16
conf_poll:
    mov     x19, #0x90000
    conf_gic 0x3FFD0000
    mov     w11, #(1 << 5)
    str     w11, [x10, #0x104]
1:  mrs     x4, S3_0_C12_C12_2
    cmp     w4, #37
    b.ne    1b
    mrs     x4, S3_0_C12_C12_0
    str     x4, [x19, #0x10]
    conf_off
conf_poll_end:

    .balign 16
conf_last:
    mov     x19, #0x90000
    conf_gic 0x3FFD0000
    ldr     w4, [x10, #4]           // TYPER
    str     x4, [x19, #0x10]
    mov     w11, #(1 << 27)
    str     w11, [x10, #0x17C]      // ISENABLER31: INTID 1019
1:  mrs     x4, S3_0_C12_C12_2
    cmp     w4, #1019
    b.ne    1b
    mrs     x4, S3_0_C12_C12_0
    str     x4, [x19, #0x18]
    msr     S3_0_C12_C12_1, x4
    mrs     x4, S3_0_C12_C12_0
    str     x4, [x19, #0x20]
    conf_off
conf_last_end:

    // x0 tells the device tree, x1 how many pages of RAM there are.
    .balign 16
conf_kernel:
    mov     x19, #0x90000
    mov     x20, x1
    str     x0, [x19, #0x10]        // device tree
    mov     x3, #0x80000000
    mov     x2, #0
1:  ldr     x5, [x3, #0xFF8]
    add     x2, x2, x5
    add     x3, x3, #0x1000
    subs    x20, x20, #1
    b.ne    1b
    str     x2, [x19, #0x18]        // sum of a word of each page
    movz    w0, #0x0003
    movk    w0, #0xC400, lsl #16
    mov     x1, #1
    adr     x2, 5f
    mov     x3, #0x77
    hvc     #0
    str     x0, [x19, #0x20]        // CPU_ON's answer
    adr     x4, 9f
2:  ldr     x5, [x4]
    cbz     x5, 2b
    str     x5, [x19, #0x28]        // what vCPU 1 wrote
    conf_gic 0x3FFB0000
    mov     w11, #(1 << 5)
    str     w11, [x10, #0x104]
    ldr     w6, [x19]               // the host raises SPI 5 while it answers
3:  mrs     x4, S3_0_C12_C12_2
    cmp     w4, #37
    b.eq    4f
    wfi
    b       3b
4:  mrs     x4, S3_0_C12_C12_0
    msr     S3_0_C12_C12_1, x4
    isb
    str     x4, [x19, #0x30]        // INTID
    str     x6, [x19, #0x38]        // what it loaded
    conf_off
5:  mrs     x5, mpidr_el1
    and     x5, x5, #0xFF
    lsl     x5, x5, #8
    orr     x5, x5, x0
    adr     x4, 9f
    str     x5, [x4]
    movz    w0, #0x0002
    movk    w0, #0x8400, lsl #16
    hvc     #0
    b       .
    .balign 8
9:  .quad   0
conf_kernel_end:
    "#
);
