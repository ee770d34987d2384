// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Memory: every page, cache and TLB maintenance, atomics between CPUs.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::machine::Range;
use gzvm_guest_kit::{arch, boot, cases, check, check_eq, machine, read_sysreg, smp};

use crate::util::everywhere;

pub const CASES: &[Case] = cases!["memory":
    cache_maintenance_keeps_content, set_way_operations, tlb_maintenance, address_translation,
    atomics_between_cpus, every_page, every_page_from_all_cpus, wfe_and_sev,
];

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u64; 512]>);
// SAFETY: used by the boot CPU only.
unsafe impl Sync for Page {}
static PAGE: Page = Page(UnsafeCell::new([0; 512]));

fn filled() -> *mut u64 {
    let page = PAGE.0.get().cast::<u64>();
    for i in 0..512 {
        // SAFETY: inside the page.
        unsafe { page.add(i).write_volatile(0xC0DE_0000 + i as u64) };
    }
    page
}

fn check_filled(what: &str) -> Outcome {
    let page = PAGE.0.get().cast::<u64>();
    for i in 0..512 {
        // SAFETY: inside the page.
        let value = unsafe { page.add(i).read_volatile() };
        check_eq!(value, 0xC0DE_0000 + i as u64, "word {i} after {what}");
    }
    Ok(())
}

fn cache_maintenance_keeps_content() -> Outcome {
    let page = filled();
    macro_rules! each_line {
        ($($insn:literal),*) => {
            $(for line in (0..4096).step_by(16) {
                // SAFETY: maintenance of our own page by address.
                unsafe { asm!(concat!($insn, ", {}"), in(reg) page as usize + line, options(nostack)) };
            }
            arch::dsb();
            check_filled($insn)?;)*
        };
    }
    // IVAC last and after a clean: on its own it may lose what was written.
    each_line!["dc cvac", "dc cvau", "dc civac", "ic ivau", "dc ivac"];
    // SAFETY: instruction cache maintenance.
    unsafe { asm!("ic iallu", "ic ialluis", "dsb ish", "isb", options(nostack)) };
    if read_sysreg!("dczid_el0") & 1 << 4 == 0 {
        let size = 4 << (read_sysreg!("dczid_el0") & 0xF);
        for block in (0..4096).step_by(size) {
            // SAFETY: zeroes a block of our own page.
            unsafe { asm!("dc zva, {}", in(reg) page as usize + block, options(nostack)) };
        }
        arch::dsb();
        // SAFETY: inside the page.
        let sum: u64 = (0..512).map(|i| unsafe { page.add(i).read_volatile() }).sum();
        check_eq!(sum, 0, "page after DC ZVA");
    }
    Ok(())
}

fn set_way_operations() -> Outcome {
    filled();
    for set_way in [0u64, 1 << 6, 2 << 6, 1 << 30] {
        // SAFETY: clean, and clean and invalidate, keep the content.
        unsafe { asm!("dc csw, {0}", "dc cisw, {0}", in(reg) set_way, options(nostack)) };
    }
    arch::dsb();
    check_filled("DC CSW and DC CISW")
}

fn tlb_maintenance() -> Outcome {
    filled();
    // SAFETY: invalidating translations that are all in the table.
    unsafe {
        asm!(
            "dsb ishst",
            "tlbi vmalle1",
            "tlbi vmalle1is",
            "tlbi aside1, xzr",
            "tlbi aside1is, xzr",
            "tlbi vae1, xzr",
            "tlbi vae1is, xzr",
            "tlbi vaae1is, xzr",
            "tlbi vale1is, xzr",
            "tlbi vaale1is, xzr",
            "dsb ish",
            "isb",
            options(nostack)
        )
    };
    check_filled("TLBI")
}

fn address_translation() -> Outcome {
    let address = PAGE.0.get() as u64;
    // SAFETY: writes PAR_EL1 only.
    unsafe { asm!("at s1e1r, {}", "isb", in(reg) address, options(nostack)) };
    let par = read_sysreg!("par_el1");
    check_eq!(par & 1, 0, "AT S1E1R of a mapped address: PAR_EL1 {par:#x}");
    check_eq!(par & 0xF_FFFF_FFFF_F000, address, "AT S1E1R");
    // SAFETY: as above.
    unsafe { asm!("at s1e0r, {}", "isb", in(reg) address, options(nostack)) };
    check_eq!(read_sysreg!("par_el1") & 1, 1, "AT S1E0R of an address EL0 may not read");
    Ok(())
}

fn atomics_between_cpus() -> Outcome {
    static SUM: AtomicU64 = AtomicU64::new(0);
    const ROUNDS: u64 = 20_000;
    SUM.store(0, SeqCst);
    everywhere(|| {
        for _ in 0..ROUNDS {
            SUM.fetch_add(1, Relaxed);
        }
        Ok(())
    })?;
    check_eq!(SUM.load(SeqCst), ROUNDS * smp::count() as u64, "sum");
    Ok(())
}

/// Pages of memory that nothing uses.
fn free_pages() -> impl Iterator<Item = u64> {
    let machine = machine::get();
    let (start, end) = boot::image_range();
    let image = Range { start, size: end - start };
    machine.memory.iter().flat_map(|m| (m.start..m.end()).step_by(4096)).filter(move |page| {
        let page = Range { start: *page, size: 4096 };
        !page.overlaps(&image)
            && !page.overlaps(&machine.fdt_range)
            && !machine.reserved.iter().any(|r| r.overlaps(&page))
    })
}

fn touch(cpu: usize, cpus: usize) -> Outcome {
    let mine = |i: &(usize, u64)| i.0 % cpus == cpu;
    let mut pages = 0;
    for (_, page) in free_pages().enumerate().filter(mine) {
        // SAFETY: memory that nothing uses.
        unsafe {
            (page as *mut u64).write_volatile(page ^ 0x5A5A);
            ((page + 4088) as *mut u64).write_volatile(!page);
        }
        pages += 1;
    }
    for (_, page) in free_pages().enumerate().filter(mine) {
        // SAFETY: as above.
        let (first, last) =
            unsafe { ((page as *const u64).read_volatile(), ((page + 4088) as *const u64).read_volatile()) };
        check_eq!(first, page ^ 0x5A5A, "first word of page {page:#x}");
        check_eq!(last, !page, "last word of page {page:#x}");
    }
    check!(pages > 0, "no free page");
    Ok(())
}

fn every_page() -> Outcome {
    touch(0, 1)
}

fn every_page_from_all_cpus() -> Outcome {
    everywhere(|| touch(arch::cpu_index(), smp::count()))
}

/// WFE with an event pending returns; a trapped one must as well.
fn wfe_and_sev() -> Outcome {
    for _ in 0..100 {
        // SAFETY: hints.
        unsafe { asm!("sevl", "wfe", "sev", "wfe", options(nostack)) };
    }
    Ok(())
}
