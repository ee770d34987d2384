// SPDX-License-Identifier: Apache-2.0 OR MIT
// Exception vectors. Two tables: one while the host runs (or EL2 on its behalf), one while a guest
// runs. Both only save registers and say which exception it was; what it means is decided in Rust.
//
// A guest's exception goes to Rust twice, if it has to: first as a call from the vector (`Guest::answer`),
// which may answer it and go straight back; else `enter_guest` returns to who called it.

// Registers in a frame: xN at 8 * N. The layout of `HostFrame` and `GuestRegs`.
.macro store_x2_to_x29 base
    stp     x2, x3, [\base, #16]
    stp     x4, x5, [\base, #32]
    stp     x6, x7, [\base, #48]
    stp     x8, x9, [\base, #64]
    stp     x10, x11, [\base, #80]
    stp     x12, x13, [\base, #96]
    stp     x14, x15, [\base, #112]
    stp     x16, x17, [\base, #128]
    stp     x18, x19, [\base, #144]
    stp     x20, x21, [\base, #160]
    stp     x22, x23, [\base, #176]
    stp     x24, x25, [\base, #192]
    stp     x26, x27, [\base, #208]
    stp     x28, x29, [\base, #224]
.endm

.macro load_x2_to_x29 base
    ldp     x28, x29, [\base, #224]
    ldp     x26, x27, [\base, #208]
    ldp     x24, x25, [\base, #192]
    ldp     x22, x23, [\base, #176]
    ldp     x20, x21, [\base, #160]
    ldp     x18, x19, [\base, #144]
    ldp     x16, x17, [\base, #128]
    ldp     x14, x15, [\base, #112]
    ldp     x12, x13, [\base, #96]
    ldp     x10, x11, [\base, #80]
    ldp     x8, x9, [\base, #64]
    ldp     x6, x7, [\base, #48]
    ldp     x4, x5, [\base, #32]
    ldp     x2, x3, [\base, #16]
.endm

// Register frame of the host on the EL2 stack: x0..x30, ELR, SPSR, pad (`HostFrame`).
.macro save_frame
    sub     sp, sp, #272
    stp     x0, x1, [sp, #0]
    store_x2_to_x29 sp
    mrs     x1, elr_el2
    stp     x30, x1, [sp, #240]
    mrs     x1, spsr_el2
    str     x1, [sp, #256]
.endm

.macro vector target, reason
.balign 128
    save_frame
    mov     x0, sp
    mov     x1, #\reason
    b       \target
.endm

// With the stack suspect (it may be what overflowed), an exception of EL2's own goes to this CPU's
// spare one; early in boot, to the one spare stack that there is then.
.macro fatal_vector reason
.balign 128
    msr     tpidr_el0, x0
    mov     x0, sp
    msr     tpidrro_el0, x0
    mrs     x0, tpidr_el2
    cbz     x0, 1f
    ldr     x0, [x0, #40]                   // PerCpu::fatal_stack_top
    b       2f
1:  adrp    x0, fatal_stack_top
2:  mov     sp, x0
    mov     x0, #\reason
    b       el2_fatal
.endm

.macro guest_vector reason
.balign 128
    stp     x0, x1, [sp, #-16]!
    mov     x0, #\reason
    b       guest_exit
.endm

.section .text.vectors, "ax"
.balign 2048
.global host_vectors
host_vectors:
    fatal_vector 0
    fatal_vector 1
    fatal_vector 2
    fatal_vector 3
    fatal_vector 0
    fatal_vector 1
    fatal_vector 2
    fatal_vector 3
    vector  host_exception, 0
    vector  host_exception, 1
    vector  host_exception, 2
    vector  host_exception, 3
    vector  host_exception, 0
    vector  host_exception, 1
    vector  host_exception, 2
    vector  host_exception, 3

.balign 2048
.global guest_vectors
guest_vectors:
    fatal_vector 0
    fatal_vector 1
    fatal_vector 2
    fatal_vector 3
    fatal_vector 0
    fatal_vector 1
    fatal_vector 2
    fatal_vector 3
    guest_vector 1
    guest_vector 2
    guest_vector 3
    guest_vector 4
    guest_vector 1
    guest_vector 2
    guest_vector 3
    guest_vector 4

host_exception:
    mov     x29, xzr                        // the host's frame records are none of EL2's
    bl      handle_host_exception
    ldp     x30, x1, [sp, #240]
    msr     elr_el2, x1
    ldr     x1, [sp, #256]
    msr     spsr_el2, x1
    load_x2_to_x29 sp
    ldp     x0, x1, [sp, #0]
    add     sp, sp, #272
    eret
    dsb     nsh
    isb

// The two EL0 thread registers serve as scratch here: there is no way back from a fatal exception.
el2_fatal:
    str     x0, [sp, #-16]!
    mrs     x0, tpidr_el0
    save_frame
    mov     x0, sp
    mrs     x1, tpidrro_el0
    ldr     x2, [sp, #272]                  // the reason
    mov     x29, xzr
    bl      handle_fatal_exception
    b       .

// enter_guest(regs: *mut GuestRegs, guest, answer) -> why it comes back. Loads x0..x30, PC and PSTATE from `regs`, and runs
// the guest. Each exception stores x0..x30 there again and calls answer(guest, reason); the guest goes on if that returns 0, and
// else enter_guest returns what it returned, with PC and PSTATE stored too.
//
// The stack while the guest runs:   0: regs, guest   16: answer   32: what the caller wants preserved
.global enter_guest
enter_guest:
    sub     sp, sp, #128
    stp     x0, x1, [sp, #0]
    str     x2, [sp, #16]
    stp     x29, x30, [sp, #32]
    stp     x19, x20, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x23, x24, [sp, #80]
    stp     x25, x26, [sp, #96]
    stp     x27, x28, [sp, #112]
    ldp     x30, x2, [x0, #240]
    ldr     x3, [x0, #256]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    load_x2_to_x29 x0
    ldp     x0, x1, [x0, #0]
    eret
    dsb     nsh
    isb

guest_exit:
    ldr     x1, [sp, #16]                   // regs; the vector has put x0 and x1 on the stack
    store_x2_to_x29 x1
    str     x30, [x1, #240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x1, #0]
    mov     x29, xzr                        // the guest's frame records are none of EL2's
    mov     x1, x0
    ldr     x0, [sp, #8]
    ldr     x2, [sp, #16]
    blr     x2
    ldr     x1, [sp, #0]
    cbnz    x0, 1f
    // x20..x28 are the guest's still: Rust preserves them, and `answer` may not have changed them in `regs`.
    ldp     x29, x30, [x1, #232]
    ldp     x18, x19, [x1, #144]
    ldp     x16, x17, [x1, #128]
    ldp     x14, x15, [x1, #112]
    ldp     x12, x13, [x1, #96]
    ldp     x10, x11, [x1, #80]
    ldp     x8, x9, [x1, #64]
    ldp     x6, x7, [x1, #48]
    ldp     x4, x5, [x1, #32]
    ldp     x2, x3, [x1, #16]
    ldp     x0, x1, [x1, #0]
    eret
    dsb     nsh
    isb
1:  mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x1, #248]
    ldp     x27, x28, [sp, #112]
    ldp     x25, x26, [sp, #96]
    ldp     x23, x24, [sp, #80]
    ldp     x21, x22, [sp, #64]
    ldp     x19, x20, [sp, #48]
    ldp     x29, x30, [sp, #32]
    add     sp, sp, #128
    ret

// enter_el1(x0..x3, pc, spsr): leaves EL2 for the host for good; the stack starts anew.
.global enter_host
enter_host:
    msr     elr_el2, x4
    msr     spsr_el2, x5
    mrs     x6, tpidr_el2
    ldr     x6, [x6, #0]
    mov     sp, x6
    mov     x4, xzr
    mov     x5, xzr
    mov     x6, xzr
    mov     x7, xzr
    mov     x8, xzr
    mov     x9, xzr
    mov     x10, xzr
    mov     x11, xzr
    mov     x12, xzr
    mov     x13, xzr
    mov     x14, xzr
    mov     x15, xzr
    mov     x16, xzr
    mov     x17, xzr
    mov     x18, xzr
    mov     x19, xzr
    mov     x20, xzr
    mov     x21, xzr
    mov     x22, xzr
    mov     x23, xzr
    mov     x24, xzr
    mov     x25, xzr
    mov     x26, xzr
    mov     x27, xzr
    mov     x28, xzr
    mov     x29, xzr
    mov     x30, xzr
    eret
    dsb     nsh
    isb

.section .bss
.balign 4096
    .space 8192
fatal_stack_top:
