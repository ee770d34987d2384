// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Barriers, TLB and cache maintenance: all of them are here.

use core::arch::asm;

use gzvm_core::addr::{Ipa, PAGE_SIZE};

macro_rules! simple {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            // SAFETY: a barrier or maintenance instruction; it changes no memory content.
            unsafe { asm!($text, options(nostack, preserves_flags)) }
        })*
    };
}

simple! {
    /// Context synchronisation.
    isb = "isb";
    /// Completion of all earlier accesses.
    dsb_sy = "dsb sy";
    /// Completion of earlier stores, inner shareable.
    dsb_ishst = "dsb ishst";
    /// Sleeps until an interrupt is pending.
    wfi = "wfi";
    /// Drops every EL1&0 entry of this CPU.
    tlbi_alle1 = "dsb nshst\n tlbi alle1\n ic iallu\n dsb nsh\n isb";
    /// Drops EL2's own entries, on this CPU.
    tlbi_alle2 = "dsb sy\n tlbi alle2\n dsb nsh\n isb";
    /// Drops EL1&0's stage-1 entries of the VMID in VTTBR_EL2, on this CPU.
    tlbi_vmalle1 = "tlbi vmalle1\n ic iallu\n dsb nsh\n isb";
    /// Waits for profiling records in flight (PSB CSYNC).
    psb_csync = "hint #17\n dsb nsh";
    /// Waits for trace in flight (TSB CSYNC).
    tsb_csync = "hint #18\n dsb nsh";
    /// Makes instruction fetch see what was written (all CPUs).
    ic_ialluis = "ic ialluis\n dsb ish\n isb";
}

/// The CVE-2025-10263 remedy: on affected cores a TLBI and DSB may complete before another core's
/// stores through the old entry are visible; doing it twice closes the gap. It is done on every
/// core, since a permission is removed rarely.
#[inline(always)]
fn tlbi_settle() {
    // SAFETY: a TLB invalidation that drops nothing of use (one page of VMID in force), and barriers.
    unsafe { asm!("tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
}

/// Drops the stage-2 entries of `ipa .. ipa + size` of the VMID in VTTBR_EL2, and every stage-1
/// entry that was combined with them, on all CPUs.
pub fn tlbi_ipas2(ipa: Ipa, size: u64) {
    dsb_ishst();
    let pages = size.div_ceil(PAGE_SIZE);
    if pages > 512 {
        // SAFETY: TLB invalidation only.
        unsafe { asm!("tlbi vmalls12e1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
        tlbi_settle();
        return;
    }
    let mut page = ipa.frame();
    for _ in 0..pages {
        // SAFETY: TLB invalidation only.
        unsafe { asm!("tlbi ipas2e1is, {}", in(reg) page, options(nostack, preserves_flags)) }
        page = page.wrapping_add(1);
    }
    // SAFETY: TLB invalidation only.
    unsafe { asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
    tlbi_settle();
}

/// Translates by the EL1&0 regime in force, into PAR_EL1.
pub fn at_s1e1r(va: u64) {
    // SAFETY: writes PAR_EL1 only, which is the guest's.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) va, options(nostack, preserves_flags)) }
}

/// Drops every entry of the VMID in VTTBR_EL2 on all CPUs.
pub fn tlbi_vmid() {
    // SAFETY: TLB invalidation only.
    unsafe { asm!("dsb ishst", "tlbi vmalls12e1is", "dsb ish", "isb", options(nostack, preserves_flags)) }
    tlbi_settle();
}

/// Eight times the same instruction on a line each, `{1}` bytes apart from `{0}` on.
macro_rules! eight_lines {
    ($insn:literal, $at:ident, $line:ident) => {
        asm!(
            concat!($insn, ", {0}\n add {0}, {0}, {1}"), concat!($insn, ", {0}\n add {0}, {0}, {1}"),
            concat!($insn, ", {0}\n add {0}, {0}, {1}"), concat!($insn, ", {0}\n add {0}, {0}, {1}"),
            concat!($insn, ", {0}\n add {0}, {0}, {1}"), concat!($insn, ", {0}\n add {0}, {0}, {1}"),
            concat!($insn, ", {0}\n add {0}, {0}, {1}"), concat!($insn, ", {0}\n add {0}, {0}, {1}"),
            inout(reg) $at, in(reg) $line, options(nostack, preserves_flags)
        )
    };
}

/// Cleans and invalidates the data cache lines of `start .. start + size` (virtual = physical) to
/// the point of coherency.
pub fn clean_invalidate(start: usize, size: usize) {
    let line = 4usize << (super::sysreg::read!("ctr_el0") >> 16 & 0xF);
    let end = start.saturating_add(size);
    let mut at = start & !line.wrapping_sub(1);
    while end.saturating_sub(at) >= line.saturating_mul(8) {
        // SAFETY: cleaning and invalidating loses no data; the range is mapped by the caller.
        unsafe { eight_lines!("dc civac", at, line) };
    }
    while at < end {
        // SAFETY: as above.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack, preserves_flags)) }
        at = at.saturating_add(line);
    }
    dsb_sy();
}

/// Zeroes memory.
///
/// # Safety
/// `start .. start + size` is mapped as normal memory, whole pages, and nothing else refers to it.
pub unsafe fn zero(start: usize, size: usize) {
    let id = super::sysreg::read!("dczid_el0");
    let block = 4usize << (id & 0xF);
    // DZP: not permitted. A block is at most 2 KiB, so eight of them may be more than a page.
    if id & 0x10 != 0 || !size.is_multiple_of(block.saturating_mul(8)) {
        // SAFETY: the caller's promise.
        unsafe { core::ptr::write_bytes(start as *mut u8, 0, size) };
        return;
    }
    let end = start.saturating_add(size);
    let mut at = start;
    while at < end {
        // SAFETY: the caller's promise; the instruction zeroes one aligned block.
        unsafe { eight_lines!("dc zva", at, block) };
    }
}
