// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pages of 16 and 64 KiB (boot argument `granule`): that all else runs on them, and what a page is.

use core::cell::UnsafeCell;

use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::exception::{self, ec};
use gzvm_guest_kit::machine::Range;
use gzvm_guest_kit::stage1::{self, Granule};
use gzvm_guest_kit::{boot, cases, check, check_eq, fail, machine, println, read_sysreg, skip};

use crate::util::everywhere;

pub const CASES: &[Case] = cases!["granules":
    in_use_on_all_cpus, pages_are_where_the_table_says, faults_name_level_and_address, table_in_fresh_memory,
];

/// AP[2]: read-only.
const READ_ONLY: u64 = 1 << 7;
/// Fault status codes of level 3.
const TRANSLATION: u32 = 0b00_0111;
const PERMISSION: u32 = 0b00_1111;

/// A table, and two pages.
#[repr(C, align(65536))]
struct Memory(UnsafeCell<[[u64; 8192]; 3]>);
// SAFETY: used by the boot CPU only.
unsafe impl Sync for Memory {}
static MEMORY: Memory = Memory(UnsafeCell::new([[0; 8192]; 3]));

fn granule() -> Result<Granule, Verdict> {
    match (stage1::wanted(), stage1::granule()) {
        (None, _) => Err(Verdict::skip(format_args!("boot argument `granule` asks for it"))),
        (Some(wanted), None) if !wanted.is_there() => {
            Err(Verdict::skip(format_args!("this CPU has no {wanted:?}")))
        }
        (Some(wanted), got) if got != Some(wanted) => {
            Err(Verdict::fail(format_args!("{got:?}, not {wanted:?}")))
        }
        (Some(wanted), _) => Ok(wanted),
    }
}

fn in_use_on_all_cpus() -> Outcome {
    let granule = granule()?;
    println!("pages of {} KiB", granule.size() >> 10);
    everywhere(|| {
        let Some(granule) = stage1::granule() else { fail!("4 KiB") };
        check_eq!(read_sysreg!("tcr_el1") >> 14 & 3, granule.tg0(), "TCR_EL1.TG0");
        check_eq!(read_sysreg!("sctlr_el1") & 1, 1, "SCTLR_EL1.M");
        Ok(())
    })
}

fn word(address: u64) -> u64 {
    // SAFETY: the callers mapped it, or expect the exception.
    unsafe { (address as *const u64).read_volatile() }
}

fn store(address: u64, value: u64) {
    // SAFETY: as above.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// The window's address; the addresses of its table, and of the two pages.
fn window(granule: Granule) -> (u64, u64, [u64; 2]) {
    let table = MEMORY.0.get() as u64;
    for i in 0..granule.size() / 8 {
        store(table + i * 8, 0);
    }
    (stage1::window(granule, table), table, [table + (1 << 16), table + (2 << 16)])
}

fn pages_are_where_the_table_says() -> Outcome {
    let granule = granule()?;
    let (at, table, pages) = window(granule);
    let last = granule.size() - 8;
    for page in pages {
        store(page, page ^ 0x1111);
        store(page + last, page ^ 0x2222);
    }
    // The other way round, at the table's ends; in between a second view of the first.
    let end = granule.size() / 8 - 1;
    for (index, page) in [(0, pages[1]), (end, pages[0]), (77, pages[0])] {
        store(table + index * 8, stage1::page(page, 0));
    }
    stage1::flush();
    for (index, page) in [(0, pages[1]), (end, pages[0]), (77, pages[0])] {
        let here = at + index * granule.size();
        check_eq!(word(here), page ^ 0x1111, "first word of page {index}");
        check_eq!(word(here + last), page ^ 0x2222, "last word of page {index}");
        // SAFETY: writes PAR_EL1 only.
        unsafe { core::arch::asm!("at s1e1r, {}", "isb", in(reg) here + last, options(nostack)) };
        check_eq!(
            read_sysreg!("par_el1") & 0xFFFF_FFFF_F001,
            (page + last) & !0xFFF,
            "AT S1E1R of page {index}"
        );
    }
    store(at + 77 * granule.size() + 8, 0x77);
    check_eq!(word(at + end * granule.size() + 8), 0x77, "the same page seen twice");
    Ok(())
}

/// The exception that `f` takes, which must be a data abort with this status and address.
fn aborts(status: u32, address: u64, f: impl FnOnce()) -> Outcome {
    let Err(e) = exception::expect(f) else { fail!("no exception at {address:#x}") };
    check_eq!(e.class(), ec::DATA_ABORT, "class");
    check_eq!(e.fault_status(), status, "status at {address:#x}");
    check_eq!(e.far, address, "FAR");
    Ok(())
}

fn faults_name_level_and_address() -> Outcome {
    let granule = granule()?;
    let (at, table, pages) = window(granule);
    store(pages[0] + 8, 0x55);
    store(table + 8, stage1::page(pages[0], READ_ONLY));
    stage1::flush();
    let page = at + granule.size();
    check_eq!(word(page + 8), 0x55, "a load from a read-only page");
    aborts(PERMISSION, page + 8, || store(page + 8, 1))?;
    check_eq!(word(pages[0] + 8), 0x55, "the word after the refused store");
    for address in [page - 8, page + granule.size()] {
        aborts(TRANSLATION, address, || _ = word(address))?;
    }
    Ok(())
}

/// A table walk is the first to touch a page: stage 2 faults on it, and fills it with zeroes, which map nothing.
fn table_in_fresh_memory() -> Outcome {
    let granule = granule()?;
    let Some(memory) = machine::get().memory.last() else { skip!("no memory") };
    let taken = |page: &Range| {
        let (start, end) = boot::image_range();
        page.overlaps(&Range { start, size: end - start })
            || page.overlaps(&machine::get().fdt_range)
            || machine::get().reserved.iter().any(|r| r.overlaps(page))
    };
    // In the middle, where neither image nor device tree nor a boot loader's things are.
    let start = (memory.start + memory.size / 2).next_multiple_of(2 << 20) + (1 << 20);
    let page = Range { start, size: granule.size() };
    check!(page.end() <= memory.end() && !taken(&page), "{start:#x} is in use");
    let at = stage1::window(granule, start);
    aborts(TRANSLATION, at + 0x10, || _ = word(at + 0x10))?;
    let (_, _, pages) = window(granule);
    stage1::window(granule, start);
    store(pages[0], 0x99);
    store(start, stage1::page(pages[0], 0));
    stage1::flush();
    check_eq!(word(at), 0x99, "through the table");
    Ok(())
}
