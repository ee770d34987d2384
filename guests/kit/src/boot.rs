// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Entry: arm64 Image header, relocation, identity map, stacks; boot and secondary CPUs.
//!
//! ```text
//!   VA = PA     0 .. 1 GiB      Device-nGnRE, never executed
//!               1 .. 512 GiB    Normal write-back, inner shareable, EL1 only
//! ```
//! [`stage1`] has it once more, in other page sizes. The blocks cover more than there is memory; nothing but the tests touches what is not there.

use core::arch::global_asm;

use crate::{MAX_CPUS, arch, console, exception, machine, psci, smp, stage1};

/// Bytes of a CPU's stack.
pub const STACK_SIZE: usize = 32 * 1024;

/// The CPUs' stacks; filled only by the CPUs themselves.
#[repr(C, align(4096))]
pub(crate) struct Stacks(core::cell::UnsafeCell<[[u8; STACK_SIZE]; MAX_CPUS]>);
// SAFETY: nothing in Rust refers to the content; each CPU uses its own stack.
unsafe impl Sync for Stacks {}

#[unsafe(no_mangle)]
static GZVM_GUEST_STACKS: Stacks = Stacks(core::cell::UnsafeCell::new([[0; STACK_SIZE]; MAX_CPUS]));

/// The level-1 table: 512 entries of 1 GiB.
#[repr(C, align(4096))]
pub(crate) struct Table(pub(crate) core::cell::UnsafeCell<[u64; 512]>);
// SAFETY: written by the entry code, then only by `user` on the boot CPU before it is used.
unsafe impl Sync for Table {}

#[unsafe(no_mangle)]
pub(crate) static GZVM_GUEST_TABLE: Table = Table(core::cell::UnsafeCell::new([0; 512]));

global_asm!(
    r#"
    .section .head.text, "ax"
    .global _start
_start:
    b       1f
    .long   0
    .quad   0                       // text_offset
    .quad   __image_size
    .quad   0xA                     // little-endian, 4 KiB pages, anywhere in memory
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .long   0
1:
    mov     x19, x0
    mrs     x0, CurrentEL
    cmp     x0, #4
    b.ne    gzvm_guest_park

    adrp    x20, __image_start
    adrp    x1, __rela_start
    add     x1, x1, :lo12:__rela_start
    adrp    x2, __rela_end
    add     x2, x2, :lo12:__rela_end
2:  cmp     x1, x2
    b.hs    3f
    ldp     x3, x4, [x1], #16
    ldr     x5, [x1], #8
    cmp     w4, #1027               // R_AARCH64_RELATIVE
    b.ne    gzvm_guest_park
    add     x5, x5, x20
    str     x5, [x20, x3]
    b       2b
3:
    adrp    x1, __bss_start
    adrp    x2, __bss_end
4:  cmp     x1, x2
    b.hs    5f
    stp     xzr, xzr, [x1], #16
    b       4b
5:
    adrp    x1, GZVM_GUEST_TABLE
    movz    x2, #0x0405             // device: AF, MAIR index 1, block
    movk    x2, #0x0060, lsl #48    // never executed
    str     x2, [x1], #8
    movz    x2, #0x0701             // normal: AF, inner shareable, MAIR index 0, block
    movz    x3, #1
6:  orr     x4, x2, x3, lsl #30
    str     x4, [x1], #8
    add     x3, x3, #1
    cmp     x3, #512
    b.ne    6b

    // What the caches hold of these pages is older than what was just written past them.
    dsb     sy
    adrp    x1, __image_start
    adrp    x2, __bss_end
7:  dc      ivac, x1
    add     x1, x1, #16
    cmp     x1, x2
    b.lo    7b
    dsb     sy

    mov     x21, #0
    mov     x0, x19
    adrp    x22, gzvm_guest_boot_main
    add     x22, x22, :lo12:gzvm_guest_boot_main
    b       gzvm_guest_enter

    // PSCI CPU_ON: x0 = context = CPU index
    .global gzvm_guest_secondary
gzvm_guest_secondary:
    mov     x21, x0
    adrp    x22, gzvm_guest_secondary_main
    add     x22, x22, :lo12:gzvm_guest_secondary_main

    // x0 = argument, x21 = CPU index, x22 = where to go
gzvm_guest_enter:
    adrp    x1, GZVM_GUEST_TABLE
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
    mov     x1, #(3 << 20)
    msr     cpacr_el1, x1           // FP and SIMD at EL1 and EL0
    adrp    x1, gzvm_guest_vectors
    add     x1, x1, :lo12:gzvm_guest_vectors
    msr     vbar_el1, x1
    msr     tpidr_el1, x21
    ic      iallu
    tlbi    vmalle1
    dsb     nsh
    isb
    movz    x1, #0x1805             // EOS, I, C, M
    movk    x1, #0x30D0, lsl #16    // the other RES1 bits
    msr     sctlr_el1, x1
    isb

    msr     spsel, #1
    adrp    x1, GZVM_GUEST_STACKS
    add     x2, x21, #1
    mov     x3, #{stack}
    madd    x1, x2, x3, x1
    mov     sp, x1
    mov     x29, #0
    mov     x30, #0
    br      x22

gzvm_guest_park:
    wfi
    b       gzvm_guest_park
    "#,
    stack = const STACK_SIZE,
);

unsafe extern "C" {
    safe fn gzvm_guest_secondary() -> !;
    static __image_start: u8;
    static __image_end: u8;
}

unsafe extern "Rust" {
    safe fn gzvm_guest_main();
}

/// Maps the 1 GiB at `index << 30` as the level-1 block descriptor `entry` says. For aliases: nobody may
/// be using what was there.
pub fn alias(index: usize, entry: u64) {
    assert!((500..512).contains(&index), "the lower part is the identity map");
    if let Some(granule) = stage1::granule() {
        return stage1::alias(granule, index as u64, entry);
    }
    let table = GZVM_GUEST_TABLE.0.get().cast::<u64>();
    // SAFETY: inside the table, above every GiB of RAM; the old translation is invalidated before the
    // new one is there.
    unsafe {
        if table.add(index).read_volatile() != entry {
            table.add(index).write_volatile(0);
            core::arch::asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack));
            table.add(index).write_volatile(entry);
            core::arch::asm!("dsb ish", "isb", options(nostack));
        }
    }
}

/// Where a secondary CPU starts.
pub fn secondary_entry() -> u64 {
    gzvm_guest_secondary as *const () as u64
}

/// The image in memory, BSS and stacks included: first byte and the byte behind it.
pub fn image_range() -> (u64, u64) {
    (&raw const __image_start as u64, &raw const __image_end as u64)
}

#[unsafe(no_mangle)]
extern "C" fn gzvm_guest_boot_main(fdt: usize) -> ! {
    machine::init(fdt);
    console::init(machine::get());
    stage1::init();
    gzvm_guest_main();
    psci::system_off()
}

#[unsafe(no_mangle)]
extern "C" fn gzvm_guest_secondary_main(_context: usize) -> ! {
    stage1::enter();
    smp::secondary(arch::cpu_index())
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    exception::fatal(format_args!("{info}"))
}
