// SPDX-License-Identifier: Apache-2.0 OR MIT
//
// The stopwatch: a Linux program that prints the virtual counter, "[COUNTER] <16 hexadecimal digits>".
// As process 1 it then waits a second, in which the host can read the VM's counters, and switches the machine off:
// the same program is the shortest init.
//
// No library: it must not cost anything itself, and be the same in the host, in a guest and on bare metal.

    .equ    SYS_WRITE, 64
    .equ    SYS_EXIT, 93
    .equ    SYS_NANOSLEEP, 101
    .equ    SYS_REBOOT, 142
    .equ    SYS_GETPID, 172
    // reboot(2)
    .equ    MAGIC1, 0xfee1dead
    .equ    MAGIC2, 672274793
    .equ    POWER_OFF, 0x4321fedc

    .text
    .global _start
_start:
    isb
    mrs     x9, cntvct_el0

    adrp    x10, digits
    add     x10, x10, :lo12:digits
    mov     x11, #60
1:  lsr     x12, x9, x11
    and     x12, x12, #15
    cmp     x12, #10
    add     x13, x12, #'0'
    add     x14, x12, #('a' - 10)
    csel    x12, x13, x14, lo
    strb    w12, [x10], #1
    subs    x11, x11, #4
    b.pl    1b

    mov     x0, #1
    adrp    x1, line
    add     x1, x1, :lo12:line
    mov     x2, #(end - line)
    mov     x8, #SYS_WRITE
    svc     #0

    mov     x8, #SYS_GETPID
    svc     #0
    cmp     x0, #1
    b.ne    2f
    adrp    x0, second
    add     x0, x0, :lo12:second
    mov     x1, #0
    mov     x8, #SYS_NANOSLEEP
    svc     #0
    ldr     x0, =MAGIC1
    ldr     x1, =MAGIC2
    ldr     x2, =POWER_OFF
    mov     x8, #SYS_REBOOT
    svc     #0

2:  mov     x0, #0
    mov     x8, #SYS_EXIT
    svc     #0

    .data
line:   .ascii  "[COUNTER] "
digits: .ascii  "0000000000000000\n"
end:
    .balign 8
second: .quad   1, 0
