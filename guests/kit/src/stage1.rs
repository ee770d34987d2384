// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The identity map once more, in pages of 16 or 64 KiB (boot argument `granule=16` or `granule=64`).
//!
//! ```text
//!            VA bits 38..   level 1           level 2              level 3
//!   16 KiB                  8 entries         2048 of 32 MiB       2048 pages     MEMORY_TABLES tables from the image on
//!   64 KiB                  -                 1024 of 512 MiB      8192 pages     one table, the image's
//! ```
//! The entry code always starts with 4 KiB; the boot CPU builds these tables, and each CPU changes over to them before it does
//! anything else, with its MMU off in between. What is not mapped by pages is mapped by blocks. So the whole guest runs
//! on such pages, and all its cases are about them.
//!
//! Invariant: tables are written by the boot CPU only, and live entries go by break-before-make.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};

use crate::{arch, boot, machine, read_sysreg};

/// A page size that is not 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Granule {
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

/// Descriptors of normal memory and devices, as the entry code has them: AF, MAIR index, shareability; valid, block.
const NORMAL: u64 = 0x0701;
const DEVICE: u64 = 0x0405 | 0x60 << 48;
/// Makes a page of a block, or a table of nothing.
const PAGE: u64 = 2;
const TABLE: u64 = 3;

/// Level-3 tables for memory with 16 KiB pages: 32 MiB each.
const MEMORY_TABLES: u64 = 5;
/// GiB in the table in which [`window`] is.
const WINDOW: u64 = 508;

/// Most words that the tables take: with 16 KiB, of which level 2 takes eight and level 1 one.
const STORE_WORDS: usize = ((9 + MEMORY_TABLES as usize) << 14) / 8;
/// All tables: first those of level 2, which are contiguous also with 16 KiB, then level 1 if there is one, then level 3.
#[repr(C, align(65536))]
struct Store(UnsafeCell<[u64; STORE_WORDS]>);
// SAFETY: written by the boot CPU only, before the others use it or by break-before-make.
unsafe impl Sync for Store {}
static STORE: Store = Store(UnsafeCell::new([0; STORE_WORDS]));

/// What the CPUs change over to: [`Granule`] as KiB, TTBR0_EL1, TCR_EL1.
static KIB: AtomicU8 = AtomicU8::new(0);
static TTBR: AtomicU64 = AtomicU64::new(0);
static TCR: AtomicU64 = AtomicU64::new(0);

impl Granule {
    /// log2 of a page's bytes.
    pub fn shift(self) -> u32 {
        match self {
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// Bytes of a page.
    pub fn size(self) -> u64 {
        1 << self.shift()
    }

    /// Entries of a full table, each 8 bytes.
    fn entries(self) -> u64 {
        self.size() / 8
    }

    /// Bytes under a level-2 entry.
    pub fn block(self) -> u64 {
        self.size() * self.entries()
    }

    /// TCR_EL1.TG0.
    pub fn tg0(self) -> u64 {
        match self {
            Self::K16 => 2,
            Self::K64 => 1,
        }
    }

    /// Does this CPU have it (ID_AA64MMFR0_EL1)?
    pub fn is_there(self) -> bool {
        let mmfr0 = read_sysreg!("id_aa64mmfr0_el1");
        match self {
            Self::K16 => mmfr0 >> 20 & 0xF != 0,
            Self::K64 => mmfr0 >> 24 & 0xF != 0xF,
        }
    }
}

/// What the boot arguments ask for.
pub fn wanted() -> Option<Granule> {
    match machine::get().arg("granule")? {
        "16" => Some(Granule::K16),
        "64" => Some(Granule::K64),
        _ => None,
    }
}

/// What this guest runs on; `None` for 4 KiB.
pub fn granule() -> Option<Granule> {
    match KIB.load(SeqCst) {
        16 => Some(Granule::K16),
        64 => Some(Granule::K64),
        _ => None,
    }
}

fn entry(word: usize) -> *mut u64 {
    assert!(word < STORE_WORDS, "inside the tables");
    // SAFETY: inside the store.
    unsafe { STORE.0.get().cast::<u64>().add(word) }
}

fn put(word: usize, value: u64) {
    // SAFETY: inside the store; the boot CPU is the only one that writes.
    unsafe { entry(word).write_volatile(value) }
}

/// Boot CPU: makes what the boot arguments ask for, and changes over to it, if the CPU has it.
pub(crate) fn init() {
    let Some(granule) = wanted().filter(|granule| granule.is_there()) else { return };
    let (block, entries) = (granule.block(), granule.entries());
    for i in 0..(512 << 30) / block {
        let address = i * block;
        put(i as usize, address | if address < 1 << 30 { DEVICE } else { NORMAL });
    }
    // Memory from the image on by pages.
    let (image, _) = boot::image_range();
    let (mut table, tables) = match granule {
        Granule::K16 => (9 * entries, MEMORY_TABLES),
        Granule::K64 => (entries, 1),
    };
    for i in image / block..(image / block + tables).min((500 << 30) / block) {
        for page in 0..entries {
            put((table + page) as usize, (i * block + page * granule.size()) | NORMAL | PAGE);
        }
        put(i as usize, entry(table as usize) as u64 | TABLE);
        table += entries;
    }
    let root = match granule {
        Granule::K16 => {
            let root = 8 * entries as usize;
            for i in 0..8 {
                put(root + i, entry(i * entries as usize) as u64 | TABLE);
            }
            root
        }
        Granule::K64 => 0,
    };
    TTBR.store(entry(root) as u64, SeqCst);
    TCR.store(read_sysreg!("tcr_el1") & !(3 << 14) | granule.tg0() << 14, SeqCst);
    KIB.store((granule.size() >> 10) as u8, SeqCst);
    enter();
}

/// Each CPU first: changes over to what [`init`] made, if anything.
pub(crate) fn enter() {
    if granule().is_some() {
        // SAFETY: the tables map everything as the entry code's do.
        unsafe { gzvm_guest_change_stage1(TTBR.load(SeqCst), TCR.load(SeqCst)) }
    }
}

/// [`boot::alias`] in these tables.
pub(crate) fn alias(granule: Granule, gib: u64, block: u64) {
    for offset in (0..1 << 30).step_by(granule.block() as usize) {
        replace(granule, (gib << 30) + offset, block + offset);
    }
}

/// Puts `descriptor` under the level-2 entry of `address`.
fn replace(granule: Granule, address: u64, descriptor: u64) {
    let entry = entry((address / granule.block()) as usize);
    // SAFETY: inside the table, above every GiB of RAM (the callers see to that); the old translation is
    // invalidated before the new one is there.
    unsafe {
        if entry.read_volatile() != descriptor {
            entry.write_volatile(0);
            core::arch::asm!("dsb ish", "tlbi vmalle1is", "dsb ish", "isb", options(nostack));
            entry.write_volatile(descriptor);
            core::arch::asm!("dsb ish", "isb", options(nostack));
        }
    }
}

/// An address range as large as a level-2 entry, translated by the level-3 table at physical address `table`, which is
/// the caller's: the range's first address.
pub fn window(granule: Granule, table: u64) -> u64 {
    assert!(table.is_multiple_of(granule.size()), "a table fills a page");
    replace(granule, WINDOW << 30, table | TABLE);
    WINDOW << 30
}

/// Descriptor of a page of normal memory, with further bits.
pub fn page(address: u64, bits: u64) -> u64 {
    address | NORMAL | PAGE | bits
}

/// Makes changes of the caller's tables seen.
pub fn flush() {
    arch::dsb();
    // SAFETY: invalidating translations that are all in the tables.
    unsafe { core::arch::asm!("tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
}

unsafe extern "C" {
    fn gzvm_guest_change_stage1(ttbr: u64, tcr: u64);
}

// The identity map holds in both, so the code may go on between them; nothing is loaded or stored meanwhile.
global_asm!(
    r#"
    .section .text.stage1, "ax"
    .global gzvm_guest_change_stage1
gzvm_guest_change_stage1:
    mrs     x2, sctlr_el1
    bic     x3, x2, #1
    dsb     sy
    msr     sctlr_el1, x3
    isb
    msr     ttbr0_el1, x0
    msr     tcr_el1, x1
    isb
    tlbi    vmalle1
    dsb     nsh
    isb
    msr     sctlr_el1, x2
    isb
    ret
    "#
);
