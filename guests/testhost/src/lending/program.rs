// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guest: does what the test host says, one thing at a time.

use core::arch::global_asm;

use crate::programs::programs;

programs! {
    /// Loads an operation and x0..x4 from DEVICE + 0x40 on, does it, and stores x0, x1, x2 and the syndrome of an exception
    /// that it took, if any, to DEVICE + 0x10 on; for ever. Operations: see [`Operation`].
    obeys = (prog_obeys, prog_obeys_end);
}

/// What the guest can do.
#[derive(Clone, Copy)]
#[repr(u64)]
pub enum Operation {
    /// HVC.
    Call = 0,
    /// Loads from x1.
    Load = 1,
    /// Stores x2 to x1.
    Store = 2,
    /// Calls x1 as a function.
    Run = 3,
    /// x2 times: shares its page 4 with VM x1, tells the handle at x3, takes the page back. Tells the failures.
    Lends = 4,
    /// Retrieves the handle at x1, if it is a new one, at x3, tells it at x1 + 8, uses the page, gives it back, and tells at
    /// x1 + 16 how often it got one; until the handle is -1.
    Borrows = 5,
    /// Loads from x1 until that takes an exception.
    Watches = 6,
    /// HVC with x5 from its page 3, at 56; there x3 to x9 are then, from 0 on, and x10 to x12 from 64 on.
    CallFully = 7,
    /// x2 times: a call of x3 bytes at endpoint x1, whose first word counts down; the reply has one more there. Sleeps meanwhile. Tells
    /// the failures.
    Calls = 8,
    /// Answers calls at endpoint x1, with one more in the first word, until there is a notice or the peer is gone. Sleeps
    /// meanwhile. Tells the calls, and the status at the end.
    Serves = 9,
}

global_asm!(
    r#"
    .section .text.programs, "ax"
    .global prog_obeys, prog_obeys_end

    .macro  prog_lending number
    movz    w0, #(0xF000 + \number)
    movk    w0, #0xC600, lsl #16
    hvc     #0
    .endm

    .macro  prog_rpc number
    movz    w0, #(0xF010 + \number)
    movk    w0, #0xC600, lsl #16
    hvc     #0
    .endm

    .balign 16
prog_obeys:
    mov     x20, #0x80000000
    mov     x19, #0x90000
    add     x6, x20, #0x800
    msr     vbar_el1, x6
    isb
1:  ldr     x9, [x19, #0x40]
    ldr     x0, [x19, #0x48]
    ldr     x1, [x19, #0x50]
    ldr     x2, [x19, #0x58]
    ldr     x3, [x19, #0x60]
    ldr     x4, [x19, #0x68]
    mov     x22, #0
    cmp     x9, #1
    b.eq    3f
    cmp     x9, #2
    b.eq    4f
    cmp     x9, #3
    b.eq    5f
    cmp     x9, #4
    b.eq    6f
    cmp     x9, #5
    b.eq    7f
    cmp     x9, #6
    b.eq    8f
    cmp     x9, #7
    b.eq    9f
    cmp     x9, #8
    b.eq    10f
    cmp     x9, #9
    b.eq    11f
    hvc     #0
2:  str     x0, [x19, #0x10]
    str     x1, [x19, #0x18]
    str     x2, [x19, #0x20]
    str     x22, [x19, #0x28]
    b       1b

3:  ldr     x0, [x1]
    b       2b
4:  str     x2, [x1]
    b       2b
5:  blr     x1
    b       2b

6:  mov     x24, x1
    mov     x25, x2
    mov     x26, x3
    mov     x27, #0
    add     x21, x20, #4, lsl #12
61: mov     x1, x21
    mov     x2, #1
    mov     x3, x24
    mov     x4, #3
    prog_lending 1
    cmp     x0, #0
    cinc    x27, x27, ne
    mov     x28, x1
    str     x28, [x26]
    mov     x5, #5000               // for a while, or until the other has got it
62: ldr     x6, [x26, #8]
    cmp     x6, x28
    b.eq    63f
    subs    x5, x5, #1
    b.ne    62b
63: mov     x1, x28
    prog_lending 4
    cmp     x0, #0
    cinc    x27, x27, ne
    str     x28, [x21]              // nobody else writes there now
    mov     x5, #20
64: ldr     x6, [x21]
    cmp     x6, x28
    cinc    x27, x27, ne
    subs    x5, x5, #1
    b.ne    64b
    subs    x25, x25, #1
    b.ne    61b
    mov     x0, x27
    b       2b

7:  mov     x24, x1
    mov     x26, x3
    mov     x27, #0
    mov     x28, #0
71: ldr     x6, [x24]
    cmn     x6, #1
    b.eq    72f
    cmp     x6, x28
    b.eq    71b
    mov     x28, x6
    mov     x1, x6
    mov     x2, x26
    mov     x3, #1
    prog_lending 2
    cbnz    x0, 71b
    add     x27, x27, #1
    str     x28, [x24, #8]
    str     x27, [x26]              // may be gone by now
    ldr     x7, [x26]
    mov     x1, x28
    prog_lending 3
    str     x27, [x24, #16]
    b       71b
72: mov     x0, x27
    b       2b

8:  ldr     x0, [x1]
    cbz     x22, 8b
    b       2b

9:  add     x21, x20, #3, lsl #12
    ldr     x5, [x21, #56]
    hvc     #0
    stp     x3, x4, [x21]
    stp     x5, x6, [x21, #16]
    stp     x7, x8, [x21, #32]
    str     x9, [x21, #48]
    stp     x10, x11, [x21, #64]
    str     x12, [x21, #80]
    b       2b

10: mov     x24, x1
    mov     x25, x2
    mov     x26, x3
    mov     x27, #0
    add     x21, x20, #8, lsl #12
    add     x28, x20, #9, lsl #12
101:
    str     x25, [x21]
    mov     x1, x24
    mov     x2, x21
    mov     x3, x26
    mov     x4, #0
    prog_rpc 3
    cbnz    x0, 104f
    mov     x23, x1
102:
    mov     x1, x24
    mov     x2, x28
    mov     x3, #0x1000
    prog_rpc 6
    cmn     x0, #5
    b.ne    103f
    wfi
    b       102b
103:
    cbnz    x0, 104f
    and     x6, x1, #0xFF
    cmp     x6, #2
    cinc    x27, x27, ne
    cmp     x2, x23
    cinc    x27, x27, ne
    ldr     x6, [x28]
    sub     x6, x6, #1
    cmp     x6, x25
    cinc    x27, x27, ne
    subs    x25, x25, #1
    b.ne    101b
104:
    add     x1, x0, #0
    add     x0, x27, x25
    b       2b

11: mov     x24, x1
    mov     x27, #0
    add     x21, x20, #8, lsl #12
111:
    mov     x1, x24
    mov     x2, x21
    mov     x3, #0x1000
    prog_rpc 6
    cmn     x0, #5
    b.ne    112f
    wfi
    b       111b
112:
    cbnz    x0, 113f
    and     x6, x1, #0xFF
    cmp     x6, #1
    b.ne    113f
    ldr     x6, [x21]
    add     x6, x6, #1
    str     x6, [x21]
    lsr     x3, x1, #32
    mov     x4, x2
    mov     x1, x24
    mov     x2, x21
    prog_rpc 5
    cbnz    x0, 113f
    add     x27, x27, #1
    b       111b
113:
    mov     x1, x0
    mov     x0, x27
    b       2b

    .skip   0xA00 - (. - prog_obeys)
    mrs     x22, esr_el1
    lsr     x23, x22, #26
    cmp     x23, #0x21              // fetched what is no code: back to the caller
    mrs     x23, elr_el1
    add     x23, x23, #4
    csel    x23, x30, x23, eq
    msr     elr_el1, x23
    eret
prog_obeys_end:
"#
);
