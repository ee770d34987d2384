// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guest physical addresses have 40 bits: memory up to the last byte below 1 TiB, and none above.

use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, RegionHeader, purpose};
use gzvm_abi::reg;
use gzvm_abi::run::{Exception, exception, exit};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{arch, cases, check, check_eq};

use crate::guest_runs::{power_off, store};
use crate::pages;
use crate::programs;
use crate::vm::{RAM_PAGES, Vm, clean, must};

pub const CASES: &[Case] = cases!["addresses": memory_below_1_tib, no_memory_from_1_tib_on];

/// The byte behind the last one.
const END: u64 = 1 << 40;
const BYTES: u64 = RAM_PAGES * 4096;
const SLOT: u32 = 1;

/// SET_MEMREGION of a further slot, after its purpose.
fn add_slot(vm: &Vm, gpa: u64, bytes: u64) -> bool {
    let header = RegionHeader { slot: SLOT, constituent_cnt: 0, total_pages: bytes / 4096, gpa };
    let buffer = pages::take(2, 4096);
    pages::put(buffer, header);
    vm.call(Function::MemregionPurpose, &[gpa, bytes, purpose::GUEST_MEM.into()]).ok()
        && vm.call(Function::SetMemregion, &[REGION_BUFFER_SIZE, buffer]).ok()
}

/// Code and data in the last 2 MiB: a page by a page fault, then the rest, then all of it as one block.
fn memory_below_1_tib() -> Outcome {
    let start = END - BYTES;
    let memory = pages::take(RAM_PAGES, 2 << 20);
    let program = programs::reaches();
    for (i, byte) in program.iter().enumerate() {
        pages::put(memory + i as u64, *byte);
    }
    arch::sync_code(memory as usize, program.len());
    pages::write(memory + BYTES - 16, 0x4040);
    for by_page in [true, false] {
        pages::write(memory + BYTES - 8, 0);
        clean(memory, BYTES);
        let mut vm = Vm::new(programs::spins(), 1)?;
        check!(add_slot(&vm, start, BYTES), "a slot that ends at 1 TiB");
        vm.set_reg(0, reg::PC, start)?;
        vm.set_reg(0, reg::X0, END - 16)?;
        let map = |vm: &Vm, page: u64, count: u64| {
            vm.call(Function::MapGuest, &[SLOT.into(), (memory >> 12) + page, (start >> 12) + page, count])
        };
        if by_page {
            let reason = vm.run(0)?;
            let fault = Exception::read(&vm.report(0));
            check_eq!(
                (reason, fault.exception),
                (exit::EXCEPTION, exception::PAGE_FAULT),
                "exit of the first fetch"
            );
            check_eq!(fault.fault_gpa & !0xFFF, start, "address of the page fault");
            must(map(&vm, 0, 1), "MAP_GUEST of a page")?;
            must(map(&vm, 1, RAM_PAGES - 1), "MAP_GUEST of the others")?;
        } else {
            must(map(&vm, 0, RAM_PAGES), "MAP_GUEST of a block")?;
        }
        store(&mut vm, 0x10, start, "where the program runs")?;
        store(&mut vm, 0x18, 0x4040, "the last word but one")?;
        store(&mut vm, 0x20, END - 16, "the last word")?;
        power_off(&mut vm)?;
        clean(memory, BYTES);
        check_eq!(pages::get::<u64>(memory + BYTES - 8), END - 16, "the last word, in the host's page");
        vm.destroy()?;
    }
    pages::reset();
    Ok(())
}

fn no_memory_from_1_tib_on() -> Outcome {
    let vm = Vm::new(programs::spins(), 1)?;
    for gpa in [
        END - BYTES + 4096,
        END - 4096,
        END,
        END + BYTES,
        1 << 48,
        (1 << 52) - BYTES,
        0u64.wrapping_sub(BYTES),
    ] {
        check!(!add_slot(&vm, gpa, BYTES), "a slot at {gpa:#x}");
        let reply = vm.call(Function::MapGuest, &[SLOT.into(), vm.memory >> 12, gpa >> 12, 1]);
        check!(!reply.ok(), "MAP_GUEST at {gpa:#x}");
    }
    vm.destroy()?;
    pages::reset();
    Ok(())
}
