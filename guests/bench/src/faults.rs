// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What memory costs that nobody has touched: a store into each page, or each block, of it in turn (`faults=4k`, `faults=2m`). The host
//! decides by its huge pages what a touch brings in; the whole of the host's work for new memory is in the figure: allocation, zeroing,
//! and the guest's tables.

use gzvm_guest_kit::{arch, gic, machine, println, timer};

use super::operations::{Bench, Cost};

const BLOCK: u64 = 2 << 20;
/// Blocks to touch page by page.
const BLOCKS_OF_PAGES: u64 = 4;
/// Blocks to touch as such: so many that a tick of the host's more or less is no thousandth of the mean.
const BLOCKS: u64 = 48;
/// The host first gets done what the start of its VMM left to do: tables and inodes that RCU frees at the next ticks.
/// A grace period that is still under way makes three of each tick of the host's.
const SETTLE_MS: u64 = 300;

/// Touches.
pub fn main(size: &str, bench: &Bench) {
    let (name, step, blocks) = match size {
        "4k" => ("fault-4k", 4096, BLOCKS_OF_PAGES),
        "2m" => ("fault-2m", BLOCK, BLOCKS),
        other => return println!("[FAIL] faults: {other} is no size"),
    };
    let Some(start) = untouched(blocks * BLOCK) else {
        return println!("[SKIP] {name}: no memory that is free");
    };
    settle();
    let mut cost = Cost::NONE;
    for address in (start..start + blocks * BLOCK).step_by(step as usize) {
        let before = timer::now();
        // SAFETY: free memory, mapped as such, which nothing else refers to.
        unsafe { core::ptr::with_exposed_provenance_mut::<u64>(address as usize).write_volatile(1) };
        let after = timer::now();
        cost.add(after - before);
    }
    bench.report(name, cost, bench.empty());
}

/// Sleeps meanwhile: time that nobody works in costs the emulator nothing.
fn settle() {
    // It stays pending, interrupts are masked: that ends WFI.
    gic::enable(machine::get().timer_intid);
    timer::arm_at(timer::now() + timer::frequency() / 1000 * SETTLE_MS);
    while !timer::fired() {
        arch::wfi();
    }
    timer::disarm();
}

/// Aligned memory of this size in the upper half of RAM, where neither image nor anything reserved is.
fn untouched(size: u64) -> Option<u64> {
    let machine = machine::get();
    let ram = machine.memory.first()?;
    let start = (ram.start + ram.size / 2).next_multiple_of(BLOCK);
    let place = machine::Range { start, size };
    let free = !machine.reserved.iter().chain([&machine.fdt_range]).any(|range| range.overlaps(&place));
    (place.end() <= ram.end() && free).then_some(start)
}
