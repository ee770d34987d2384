// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pages to hand to the hypervisor: a run of free memory, given out one after the other and taken
//! back all at once when a case ends.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use gzvm_guest_kit::machine::{self, Range};
use gzvm_guest_kit::{boot, spin::Once};

/// Bytes of the arena.
const SIZE: u64 = 64 << 20;
const BLOCK: u64 = 2 << 20;
/// Room that the host image's loader may have used around it.
const MARGIN: u64 = 16 << 20;

static ARENA: Once<u64> = Once::new();
static NEXT: AtomicU64 = AtomicU64::new(0);

fn arena() -> u64 {
    *ARENA.call_once(|| {
        let machine = machine::get();
        let (start, end) = boot::image_range();
        let image = Range { start: start & !(BLOCK - 1), size: end - start + MARGIN };
        let free = |base: &u64| {
            let candidate = Range { start: *base, size: SIZE };
            !candidate.overlaps(&image)
                && !candidate.overlaps(&machine.fdt_range)
                && !machine.reserved.iter().any(|r| r.overlaps(&candidate))
        };
        machine
            .memory
            .iter()
            .flat_map(|m| (m.start..m.end().saturating_sub(SIZE)).step_by(BLOCK as usize))
            .find(free)
            .expect("64 MiB of free memory")
    })
}

/// `count` zeroed pages in a row, aligned to `align` bytes.
pub fn take(count: u64, align: u64) -> u64 {
    let base = arena();
    let at = (base + NEXT.load(SeqCst)).next_multiple_of(align.max(4096));
    let end = at + count * 4096;
    assert!(end <= base + SIZE, "the arena is used up");
    NEXT.store(end - base, SeqCst);
    for word in (at..end).step_by(8) {
        write(word, 0);
    }
    at
}

/// Takes all pages back. No VM may be alive.
pub fn reset() {
    NEXT.store(0, SeqCst);
}

/// How far the arena is used, for [`back_to`].
pub fn mark() -> u64 {
    NEXT.load(SeqCst)
}

/// Takes the pages back that were given out after `mark`.
pub fn back_to(mark: u64) {
    NEXT.store(mark, SeqCst);
}

/// Reads a word of the arena.
pub fn read(address: u64) -> u64 {
    // SAFETY: memory that only the tests use.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes a word of the arena.
pub fn write(address: u64, value: u64) {
    // SAFETY: memory that only the tests use.
    unsafe { (address as *mut u64).write_volatile(value) };
}

/// Writes a structure to the arena.
pub fn put<T: Copy>(address: u64, value: T) {
    // SAFETY: memory that only the tests use; any alignment.
    unsafe { (address as *mut T).write_unaligned(value) };
}

/// Reads a structure from the arena.
pub fn get<T: Copy>(address: u64) -> T {
    // SAFETY: memory that only the tests use; T is plain data.
    unsafe { (address as *const T).read_unaligned() }
}
