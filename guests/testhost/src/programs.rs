// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests of a few instructions: position independent, MMU off, one page. They speak to the test
//! host by stores to [`DEVICE`].

use core::arch::global_asm;

/// Where the programs load and store to be heard: no memory, no GIC.
pub const DEVICE: u64 = 0x0009_0000;
/// The VM's distributor; its redistributors end here.
pub const GICD: u64 = 0x3FFF_0000;
/// Start of the VM's memory.
pub const RAM: u64 = 0x8000_0000;
/// SPI that `waits_for_spi` enables.
pub const SPI: u64 = 5;

/// A function for each program between two labels, with its bytes.
macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident = ($start:ident, $end:ident);)*) => {
        unsafe extern "C" { $(static $start: u8; static $end: u8;)* }
        $($(#[$doc])*
        pub fn $name() -> &'static [u8] {
            let (start, end) = (&raw const $start, &raw const $end);
            // SAFETY: both labels are in the image, the code between them is never written.
            unsafe { core::slice::from_raw_parts(start, end as usize - start as usize) }
        })*
    };
}
pub(crate) use programs;

programs! {
    /// Every kind of exit once; x0 as it started, see the listing.
    tour = (prog_tour, prog_tour_end);
    /// Spins.
    spins = (prog_spins, prog_spins_end);
    /// Counts in memory at RAM + 0x800, for ever.
    counts = (prog_counts, prog_counts_end);
    /// Sleeps by WFI until the virtual timer's interrupt, tells its INTID, turns off.
    sleeps = (prog_sleeps, prog_sleeps_end);
    /// Sleeps until SPI 5, tells the INTID, turns off.
    waits_for_spi = (prog_spi, prog_spi_end);
    /// Suspends the system with its CPU interface off until SPI 5, tells the context and the INTID, turns off.
    suspends = (prog_suspend, prog_suspend_end);
    /// Turns vCPU 1 on at `counts`-like code (the second half), waits for it, turns off.
    starts_second = (prog_smp, prog_smp_end);
    /// Reads the first word of each of 512 pages from RAM on, tells the sum, turns off.
    reads_all = (prog_reads, prog_reads_end);
    /// Loads from DEVICE for ever.
    loads = (prog_loads, prog_loads_end);
    /// Tells the word at RAM + 0x1000, turns off.
    reads_one = (prog_one, prog_one_end);
    /// Tells the word at RAM + 0x1000, gives the page back by MEM_RELINQUISH, tells the answer and
    /// the word again, turns off.
    relinquishes = (prog_relinquish, prog_relinquish_end);
    /// vCPU 1 loads from RAM + 0x1000 for ever until the word changes, and tells it; vCPU 0 starts
    /// vCPU 1, relinquishes the page meanwhile and tells the answer.
    watches = (prog_watch, prog_watch_end);
    /// Asks for the time (PTP), tells x0 to x3, resets.
    asks_time = (prog_ptp, prog_ptp_end);
    /// Calls a function nobody knows, by HVC and SMC, tells both answers, turns off.
    calls_unknown = (prog_unknown, prog_unknown_end);
    /// TRNG_RND of 192 bits, twice: tells x0 to x3 at 0x10, 0x18, 0x20, 0x28.
    random = (prog_random, prog_random_end);
    /// vCPU 1 counts at RAM + 0x800 for ever; vCPU 0 starts it, tells that it counts, and calls the function
    /// that was in its x0 with 0x8000_0000 and 0x1234; tells the answer, should there be one.
    ends = (prog_ends, prog_ends_end);
    /// Five exceptions: undefined, BRK 7, load from beyond the address space, undefined with new vectors, undefined at EL0. Notes the
    /// address of each at RAM + 0x800 + 8n before, and tells n + 1 behind it. Vectors at RAM + 0x2000 and 0x3000.
    faults = (prog_faults, prog_faults_end);
    /// A vector for it: tells ESR_EL1 at 0x40 and steps over the instruction.
    vector = (prog_vector, prog_vector_end);
    /// An undefined instruction, with no vectors set.
    crashes = (prog_crashes, prog_crashes_end);
    /// A protected guest's services, each answer told: see the listing.
    private = (prog_private, prog_private_end);
    /// Names the device's page, enrols, loads from a page that it has not named; tells the syndrome.
    guarded = (prog_guarded, prog_guarded_end);
    /// Writes 0x5EC2_E75E_C2E7 to each of 512 pages but the first, from RAM on, then turns off.
    keeps_secrets = (prog_secrets, prog_secrets_end);
    /// Writes the virtual count to RAM + 0x800, for ever.
    tells_time = (prog_time, prog_time_end);
    /// The same, and at RAM + 0x808 how often the count went back.
    time_goes_back = (prog_back, prog_back_end);
    /// Tells where it runs, and the word at its x0; writes x0 behind that word, tells it from there, turns off.
    reaches = (prog_reaches, prog_reaches_end);
}

global_asm!(
    r#"
    .section .text.programs, "ax"
    .global prog_tour, prog_tour_end
    .global prog_spins, prog_spins_end
    .global prog_counts, prog_counts_end
    .global prog_sleeps, prog_sleeps_end
    .global prog_spi, prog_spi_end
    .global prog_suspend, prog_suspend_end
    .global prog_smp, prog_smp_end
    .global prog_reads, prog_reads_end
    .global prog_loads, prog_loads_end
    .global prog_one, prog_one_end
    .global prog_relinquish, prog_relinquish_end
    .global prog_watch, prog_watch_end
    .global prog_ptp, prog_ptp_end
    .global prog_unknown, prog_unknown_end
    .global prog_random, prog_random_end
    .global prog_ends, prog_ends_end
    .global prog_time, prog_time_end
    .global prog_back, prog_back_end
    .global prog_faults, prog_faults_end
    .global prog_vector, prog_vector_end
    .global prog_crashes, prog_crashes_end
    .global prog_reaches, prog_reaches_end
    .global prog_private, prog_private_end
    .global prog_guarded, prog_guarded_end
    .global prog_secrets, prog_secrets_end

    .macro  prog_off
    movz    w0, #0x0008
    movk    w0, #0x8400, lsl #16
    hvc     #0
    b       .
    .endm

    // GIC of vCPU 0: group 1 on, priority mask open, all of the SGI frame's group 1
    .macro  prog_gic redistributor
    mov     x10, #0x3FFF0000        // GICD
    mov     w11, #0x12              // ARE, EnableGrp1
    str     w11, [x10]
    mov     w11, #-1
    str     w11, [x10, #0x84]       // IGROUPR1
    mov     x12, #\redistributor
    ldr     w11, [x12, #0x14]       // WAKER
    bic     w11, w11, #2
    str     w11, [x12, #0x14]
    add     x12, x12, #0x10000
    mov     w11, #-1
    str     w11, [x12, #0x80]       // IGROUPR0
    mov     x11, #1
    msr     S3_0_C12_C12_5, x11     // SRE
    isb
    mov     x11, #0xFF
    msr     S3_0_C4_C6_0, x11       // PMR
    mov     x11, #1
    msr     S3_0_C12_C12_7, x11     // IGRPEN1
    isb
    .endm

    .balign 16
prog_ends:
    mov     x19, x0
    movz    w0, #0x0003             // CPU_ON
    movk    w0, #0xC400, lsl #16
    mov     x1, #1
    adr     x2, 2f
    mov     x3, #0
    hvc     #0
    mov     x4, #0x80000000
1:  ldr     x5, [x4, #0x800]
    cbz     x5, 1b
    mov     x1, #0x90000
    str     x5, [x1, #0x10]         // vCPU 1 counts
    mov     x0, x19
    mov     x1, #0x80000000
    mov     x2, #0x1234
    hvc     #0
    mov     x1, #0x90000
    str     x0, [x1, #0x18]         // refused
    b       .
2:  mov     x4, #0x80000000
    mov     x5, #0
3:  add     x5, x5, #1
    str     x5, [x4, #0x800]
    b       3b
prog_ends_end:

    .macro  prog_service number
    movz    w0, #\number
    movk    w0, #0xC600, lsl #16
    mov     x2, #0
    mov     x3, #0
    hvc     #0
    .endm

    .macro  prog_secret
    movz    x5, #0xC2E7
    movk    x5, #0xE75E, lsl #16
    movk    x5, #0x5EC2, lsl #32
    .endm

    .balign 16
prog_private:
    mov     x20, #0x80000000
    mov     x19, #0x90000
    add     x21, x20, #0x1000
    prog_secret
    str     x5, [x21]
    str     xzr, [x19, #0x10]       // written
    mov     x1, x21
    prog_service 3
    str     x0, [x19, #0x18]        // MEM_SHARE
    mov     x1, x21
    prog_service 3
    str     x0, [x19, #0x20]        // again
    ldr     x6, [x21]
    str     x6, [x19, #0x28]        // what is there
    mov     x1, x21
    prog_service 4
    str     x0, [x19, #0x30]        // MEM_UNSHARE
    ldr     x6, [x21]
    str     x6, [x19, #0x38]        // what is there
    add     x1, x20, #0x5000
    prog_service 3
    str     x0, [x19, #0x40]        // MEM_SHARE of a page that is not there yet
    mov     x1, #0x1000
    prog_service 3
    str     x0, [x19, #0x48]        // of none
    add     x1, x21, #8
    prog_service 3
    str     x0, [x19, #0x50]        // of half a page
    mov     x1, #0
    prog_service 2
    str     x0, [x19, #0x58]        // HYP_MEMINFO
    mov     x1, x21
    prog_service 9
    str     x0, [x19, #0x60]        // MEM_RELINQUISH
    ldr     x6, [x21]
    str     x6, [x19, #0x68]        // what is there
    prog_off
prog_private_end:

    .balign 16
prog_guarded:
    mov     x20, #0x80000000
    mov     x19, #0x90000
    add     x6, x20, #0x800
    msr     vbar_el1, x6
    isb
    mov     x1, x19
    prog_service 7                  // MMIO_GUARD_MAP
    mov     x21, x0
    mov     x1, #0
    prog_service 6                  // MMIO_GUARD_ENROLL
    orr     x21, x21, x0
    str     x21, [x19, #0x10]
    mov     x1, x20
    prog_service 7
    str     x0, [x19, #0x18]        // of memory
    mov     x1, #0
    prog_service 5
    str     x0, [x19, #0x20]        // MMIO_GUARD_INFO
    mov     x1, #0xA0000
    ldr     x2, [x1]
    prog_off
    .skip   0xA00 - (. - prog_guarded)
    mrs     x2, esr_el1
    str     x2, [x19, #0x28]
    mov     x1, x19
    prog_service 8                  // MMIO_GUARD_UNMAP
    str     x0, [x20, #0x100]
    prog_off
prog_guarded_end:

    .balign 16
prog_secrets:
    mov     x20, #0x80000000
    prog_secret
    mov     x6, #511
1:  add     x20, x20, #0x1000
    str     x5, [x20]
    subs    x6, x6, #1
    b.ne    1b
    prog_off
prog_secrets_end:

    .balign 16
prog_faults:
    mov     x1, #0x90000
    mov     x4, #0x80000000
    mov     x29, #0x2929
    mov     x30, #0x3030
    add     x9, x4, #2, lsl #12
    msr     vbar_el1, x9
    isb
    // All notes first: the cache is off, and the host looks after each event.
    adr     x5, 1f
    str     x5, [x4, #0x800]
    adr     x5, 2f
    str     x5, [x4, #0x808]
    adr     x5, 3f
    str     x5, [x4, #0x810]
    adr     x5, 4f
    str     x5, [x4, #0x818]
    adr     x5, 5f
    str     x5, [x4, #0x820]
    movz    x2, #0x10, lsl #48      // no CPU has so many address bits
1:  udf     #0
    mov     x6, #1
    str     x6, [x1, #0x10]
2:  brk     #7
    mov     x6, #2
    str     x6, [x1, #0x10]
3:  ldr     x3, [x2]
    mov     x6, #3
    str     x6, [x1, #0x10]
    add     x9, x4, #3, lsl #12
    msr     vbar_el1, x9
    isb
4:  udf     #0
    mov     x6, #4
    str     x6, [x1, #0x10]
    mov     x6, #0x3C0              // EL0t
    msr     spsr_el1, x6
    adr     x6, 5f
    msr     elr_el1, x6
    eret
5:  udf     #0
    mov     x6, #5
    str     x6, [x1, #0x10]
    b       .
prog_faults_end:

prog_vector:
    mrs     x10, esr_el1
    str     x10, [x1, #0x40]
    mrs     x10, elr_el1
    add     x10, x10, #4
    msr     elr_el1, x10
    eret
prog_vector_end:

    .balign 16
prog_crashes:
    udf     #0
prog_crashes_end:

    .balign 16
prog_time:
    mov     x4, #0x80000000
1:  isb
    mrs     x5, cntvct_el0
    str     x5, [x4, #0x800]
    b       1b
prog_time_end:

    .balign 16
prog_back:
    mov     x4, #0x80000000
    mov     x6, #0
    mov     x7, #0
1:  isb
    mrs     x5, cntvct_el0
    cmp     x5, x6
    cinc    x7, x7, lo
    mov     x6, x5
    str     x5, [x4, #0x800]
    str     x7, [x4, #0x808]
    b       1b
prog_back_end:

    .balign 16
prog_tour:
    mov     x20, x0
    mov     x21, #0x2121
    mov     x1, #0x90000
    str     x20, [x1, #0x10]        // 1: x0 at entry, 8 bytes
    ldr     w2, [x1]                // 2: load, 4 bytes
    str     w2, [x1, #0x20]         // 3: what it gave
    str     x21, [x1, #0x28]        // 4: 0x2121, untouched
    ldrsb   x2, [x1, #3]            // 5: load, 1 byte, sign extended
    str     x2, [x1, #0x30]         // 6: what it gave
    strh    wzr, [x1, #0x36]        // 7: store of the zero register, 2 bytes
    mov     w0, #0x84000000
    hvc     #0                      // PSCI_VERSION: answered by the hypervisor
    str     x0, [x1, #0x38]         // 8: the version
    mrs     x2, mpidr_el1
    str     x2, [x1, #0x40]         // 9: MPIDR
    mrs     x2, CurrentEL
    str     x2, [x1, #0x48]         // 10: CurrentEL
    adr     x3, 1f
    str     x20, [x3]
    ldr     x2, [x3]
    str     x2, [x1, #0x50]         // 11: through memory
    prog_off
    .balign 8
1:  .quad   0
prog_tour_end:

prog_spins:
    b       .
prog_spins_end:

    .balign 16
prog_counts:
    adr     x1, prog_counts
    add     x1, x1, #0x800
1:  ldr     x2, [x1]
    add     x2, x2, #1
    str     x2, [x1]
    b       1b
prog_counts_end:

    .balign 16
prog_sleeps:
    prog_gic 0x3FFD0000
    mov     w11, #(1 << 27)
    str     w11, [x12, #0x100]      // ISENABLER0: virtual timer
    mrs     x2, cntfrq_el0
    mov     x3, #20
    udiv    x2, x2, x3              // 50 ms: longer than a busy machine needs to get to the WFI
    mrs     x3, cntvct_el0
    add     x3, x3, x2
    msr     cntv_cval_el0, x3
    mov     x2, #1
    msr     cntv_ctl_el0, x2
    isb
1:  mrs     x4, S3_0_C12_C12_2      // HPPIR1
    cmp     w4, #27
    b.eq    2f
    wfi
    b       1b
2:  mrs     x4, S3_0_C12_C12_0      // IAR1
    mov     x1, #0x90000
    mrs     x5, cntvct_el0
    subs    x5, x5, x3
    cset    x5, hs
    str     x4, [x1, #0x10]         // INTID
    str     x5, [x1, #0x18]         // 1: not early
    prog_off
prog_sleeps_end:

    .balign 16
prog_spi:
    prog_gic 0x3FFD0000
    mov     w11, #(1 << 5)
    str     w11, [x10, #0x104]      // ISENABLER1: SPI 5 = INTID 37
1:  mrs     x4, S3_0_C12_C12_2      // HPPIR1
    cmp     w4, #37
    b.eq    2f
    wfi
    b       1b
2:  mrs     x4, S3_0_C12_C12_0      // IAR1
    mov     x1, #0x90000
    str     x4, [x1, #0x10]
    msr     S3_0_C12_C12_1, x4      // EOIR1
    prog_off
prog_spi_end:

    .balign 16
prog_suspend:
    prog_gic 0x3FFD0000
    mov     w11, #(1 << 5)
    str     w11, [x10, #0x104]      // ISENABLER1: SPI 5 = INTID 37
    msr     S3_0_C12_C12_7, xzr     // IGRPEN1 off, and asleep to its redistributor, as Linux leaves it
    sub     x12, x12, #0x10000
    mov     w11, #2
    str     w11, [x12, #0x14]       // WAKER
    movz    w0, #0x000E             // SYSTEM_SUSPEND
    movk    w0, #0xC400, lsl #16
    adr     x1, 2f
    mov     x2, #0x77
    hvc     #0
    mov     x1, #0x90000
    str     x0, [x1, #0x20]         // it came back
    prog_off
2:  mov     x20, x0
    mov     x11, #1
    msr     S3_0_C12_C12_5, x11     // SRE
    isb
    mov     x11, #0xFF
    msr     S3_0_C4_C6_0, x11       // PMR
    mov     x11, #1
    msr     S3_0_C12_C12_7, x11     // IGRPEN1
    isb
    mrs     x4, S3_0_C12_C12_0      // IAR1
    mov     x1, #0x90000
    str     x20, [x1, #0x10]
    str     x4, [x1, #0x18]
    msr     S3_0_C12_C12_1, x4      // EOIR1
    prog_off
prog_suspend_end:

    .balign 16
prog_smp:
    movz    w0, #0x0003             // CPU_ON
    movk    w0, #0xC400, lsl #16
    mov     x1, #1
    adr     x2, 2f
    mov     x3, #0x77
    hvc     #0
    mov     x20, x0
    mov     x1, #0x90000
    str     x20, [x1, #0x10]        // what CPU_ON answered
    adr     x4, 3f
1:  ldr     x5, [x4]
    cbz     x5, 1b
    str     x5, [x1, #0x18]         // what vCPU 1 wrote: its context + its MPIDR.Aff0
    prog_off
2:  mrs     x5, mpidr_el1
    and     x5, x5, #0xFF
    lsl     x5, x5, #8
    orr     x5, x5, x0
    adr     x4, 3f
    str     x5, [x4]
    movz    w0, #0x0002             // CPU_OFF
    movk    w0, #0x8400, lsl #16
    hvc     #0
    b       .
    .balign 8
3:  .quad   0
prog_smp_end:

    .balign 16
prog_reads:
    mov     x3, #0x80000000
    mov     x4, #512
    mov     x2, #0
1:  ldr     x5, [x3, #0xFF8]
    add     x2, x2, x5
    add     x3, x3, #0x1000
    subs    x4, x4, #1
    b.ne    1b
    mov     x1, #0x90000
    str     x2, [x1, #0x10]
    prog_off
prog_reads_end:

    .balign 16
prog_one:
    mov     x3, #0x80000000
    mov     x1, #0x90000
    ldr     x2, [x3, #0x1000]
    str     x2, [x1, #0x10]
    prog_off
prog_one_end:

    .balign 16
prog_reaches:
    adr     x2, prog_reaches
    mov     x1, #0x90000
    str     x2, [x1, #0x10]
    ldr     x2, [x0]
    str     x2, [x1, #0x18]
    str     x0, [x0, #8]
    ldr     x2, [x0, #8]
    str     x2, [x1, #0x20]
    prog_off
prog_reaches_end:

    .balign 16
prog_relinquish:
    mov     x20, #0x80000000
    mov     x19, #0x90000
    ldr     x2, [x20, #0x1000]
    str     x2, [x19, #0x10]
    movz    w0, #0x0009
    movk    w0, #0xC600, lsl #16
    add     x1, x20, #0x1000
    hvc     #0
    str     x0, [x19, #0x18]
    ldr     x2, [x20, #0x1000]
    str     x2, [x19, #0x20]
    prog_off
prog_relinquish_end:

    .balign 16
prog_watch:
    movz    w0, #0x0003             // CPU_ON
    movk    w0, #0xC400, lsl #16
    mov     x1, #1
    adr     x2, 2f
    mov     x3, #0
    hvc     #0
    adr     x4, 3f
1:  ldr     x5, [x4]
    cbz     x5, 1b
    mov     x20, #0x80000000
    mov     x19, #0x90000
    movz    w0, #0x0009
    movk    w0, #0xC600, lsl #16
    add     x1, x20, #0x1000
    hvc     #0
    str     x0, [x19, #0x10]
    b       .
2:  mov     x20, #0x80000000
    ldr     x6, [x20, #0x1000]
    adr     x4, 3f
    mov     x5, #1
    str     x5, [x4]
4:  ldr     x7, [x20, #0x1000]
    cmp     x6, x7
    b.eq    4b
    mov     x1, #0x90000
    str     x7, [x1, #0x18]
    b       .
    .balign 8
3:  .quad   0
prog_watch_end:

    .balign 16
prog_ptp:
    mov     x19, #0x90000
    movz    w0, #0x0001
    movk    w0, #0x8600, lsl #16
    mov     x1, #0
    hvc     #0
    str     x0, [x19, #0x10]
    str     x1, [x19, #0x18]
    str     x2, [x19, #0x20]
    str     x3, [x19, #0x28]
    movz    w0, #0x0009
    movk    w0, #0x8400, lsl #16
    hvc     #0
    b       .
prog_ptp_end:

    .balign 16
prog_loads:
    mov     x1, #0x90000
1:  ldr     w2, [x1]
    b       1b
prog_loads_end:

    .balign 16
prog_unknown:
    mov     x1, #0x90000
    movz    w0, #0xFFE1
    movk    w0, #0xC600, lsl #16
    mov     x19, x1
    hvc     #0
    str     x0, [x19, #0x10]
    movz    w0, #0x1000             // the host's CREATE_VM
    movk    w0, #0xFB00, lsl #16
    hvc     #0
    str     x0, [x19, #0x18]
    prog_off
prog_unknown_end:

    .balign 16
prog_random:
    mov     x19, #0x90000
    mov     x20, #2
1:  movz    w0, #0x0053
    movk    w0, #0xC400, lsl #16
    mov     x1, #192
    mov     x2, #0x2222
    mov     x3, #0x3333
    hvc     #0
    str     x0, [x19, #0x10]
    str     x1, [x19, #0x18]
    str     x2, [x19, #0x20]
    str     x3, [x19, #0x28]
    subs    x20, x20, #1
    b.ne    1b
    prog_off
prog_random_end:
    "#
);
