// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The call sequences of section 4 of the ABI, as drivers and crosvm make them, around one small guest.

use gzvm_abi::hypercall::{Function, Status, cap};
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::{cases, check, check_eq};

use super::play::{Paging, Play};
use super::{answers, leaves_nothing, programs};
use crate::pages;
use crate::programs::RAM;

pub const CASES: &[Case] = cases!["sequence":
    driver_load, crosvm_unprotected, single_page_paging, eager, generation_c, protected,
];

const SMC64: u64 = 0xFB00_1000;
const SMC32: u64 = 0xBB00_1000;
/// Pages of the guest's RAM: two blocks of 2 MiB and a part of a third.
const PAGES: u64 = 2 * 512 + 37;
const FDT: u64 = RAM + (4 << 20);

/// 4.1: what a generation F driver does when it is loaded; it fails to load on any other answer.
fn driver_load() -> Outcome {
    let probe = call(Function::Probe, &[16, 0, 0]);
    check_eq!(probe.x0 as u32, 0, "PROBE");
    let maps = call(Function::EnableCap, &[0, cap::QUERY_HYP_BATCH_PAGES]);
    let usual = maps.x0 as u32 as i32 == 0 && maps.values[0] != 0 && 512 % maps.values[0] == 0;
    check!(usual || maps.x0 as u32 as i32 == -8, "0x9204: {maps:x?}");
    let destroys = call(Function::EnableCap, &[0, cap::QUERY_DESTROY_BATCH_PAGES]);
    check!(destroys.x0 as u32 == 0 && destroys.values[0].is_power_of_two(), "0x9205: {destroys:x?}");
    Ok(())
}

/// RAM with the guest's program at its start and a word in each page; their sum.
fn memory() -> (u64, u64) {
    let memory = pages::take(PAGES, 2 << 20);
    let program = programs::kernel();
    for (i, byte) in program.iter().enumerate() {
        pages::put(memory + i as u64, *byte);
    }
    gzvm_guest_kit::arch::sync_code(memory as usize, program.len());
    let mut sum = 0u64;
    for n in 0..PAGES {
        pages::write(memory + n * 4096 + 0xFF8, 13 * n + 1);
        sum += 13 * n + 1;
    }
    crate::vm::clean(memory, PAGES * 4096);
    (memory, sum)
}

/// Regions, GIC, vCPUs, device tree, registers: steps 3, 5, 7, 9, 10 of 4.2.
fn set_up(play: &mut Play, memory: u64) -> Outcome {
    play.add_region(RAM, PAGES, 1, memory)?;
    play.add_gic()?;
    play.add_vcpus()?;
    play.vm_call(Function::SetDtbConfig, &[FDT, 0x20_0000])?;
    // X0, PC, PSTATE of vCPU 0; the others get PSTATE alone.
    play.set(0, 0, FDT)?;
    play.set(0, 2, PAGES)?;
    play.set(0, 0x40, RAM)?;
    play.set(0, 0x42, 0x3C5)?;
    play.set(1, 0x42, 0x3C5)
}

/// The guest from its first instruction to its power-off, all vCPUs in RUN from the start.
fn live(play: &mut Play, sum: u64) -> Outcome {
    check_eq!(play.device(0x10, true, "device tree")?, FDT, "x0 at entry");
    check_eq!(play.device(0x18, true, "sum of memory")?, sum, "sum of memory");
    check_eq!(play.device(0x20, true, "CPU_ON")?, 0, "CPU_ON's answer");
    check_eq!(play.device(0x28, true, "vCPU 1")?, 0x177, "MPIDR and context of vCPU 1");
    play.device(0, false, "load")?;
    pages::write(play.shared[0] + 16, 0x8765_4321);
    // An irqfd fires, and a signal comes, while the exit is with user space.
    let line = play.call(Function::IrqLine, &[play.id << 16, 5, 1]);
    answers(line, Status::Success, format_args!("IRQ_LINE"))?;
    play.inform_exit()?;
    check_eq!(play.device(0x30, true, "interrupt")?, 37, "INTID");
    check_eq!(play.device(0x38, true, "loaded value")?, 0x8765_4321, "loaded value");
    check_eq!(play.run()?, 0x9292_0008, "last exit");
    check_eq!(pages::get::<u32>(play.shared[0] + 8), 1, "system event");
    check!(play.sleeps > 0, "vCPU 1 never parked");
    Ok(())
}

/// 4.2 under a generation F driver: demand paging by block.
fn crosvm_unprotected() -> Outcome {
    leaves_nothing(|| {
        let (memory, sum) = memory();
        let mut play = Play::load_and_create(SMC64, Paging::Block { counts: true }, true)?;
        play.vm_call(Function::EnableCap, &[0x9202])?;
        play.enable_blocks()?;
        play.vm_call(Function::EnableCap, &[0x9203])?;
        set_up(&mut play, memory)?;
        live(&mut play, sum)?;
        check_eq!(play.faults, PAGES.div_ceil(512), "page faults: one a block");
        play.close()
    })
}

/// The same where block paging was refused: MAP_GUEST of one page a fault.
fn single_page_paging() -> Outcome {
    leaves_nothing(|| {
        let (memory, sum) = memory();
        let mut play = Play::load_and_create(SMC64, Paging::Single, true)?;
        play.vm_call(Function::EnableCap, &[0x9202])?;
        play.vm_call(Function::EnableCap, &[0x9203])?;
        set_up(&mut play, memory)?;
        live(&mut play, sum)?;
        check_eq!(play.faults, PAGES, "page faults: one a page");
        play.close()
    })
}

/// The same where demand paging was refused: every region is filled at once, nothing faults.
fn eager() -> Outcome {
    leaves_nothing(|| {
        let (memory, sum) = memory();
        let mut play = Play::load_and_create(SMC64, Paging::Eager, true)?;
        play.vm_call(Function::EnableCap, &[0x9203])?;
        set_up(&mut play, memory)?;
        live(&mut play, sum)?;
        check_eq!(play.faults, 0, "page faults");
        play.close()
    })
}

/// Generation C: SMC32 identifiers, a PROBE that says nothing, 0x9201 right after CREATE_VM, blocks without
/// a count, no batches.
fn generation_c() -> Outcome {
    leaves_nothing(|| {
        // A whole number of blocks: there is no way to ask for less.
        let (memory, _) = memory();
        let mut play = Play::load_and_create(SMC32, Paging::Block { counts: false }, false)?;
        play.enable_blocks()?;
        play.add_region(RAM, 1024, 1, memory)?;
        play.add_gic()?;
        play.add_vcpus()?;
        play.vm_call(Function::SetDtbConfig, &[FDT, 0x20_0000])?;
        play.set(0, 0, FDT)?;
        play.set(0, 2, 1024)?;
        play.set(0, 0x40, RAM)?;
        play.set(0, 0x42, 0x3C5)?;
        live(&mut play, (0..1024).map(|n| 13 * n + 1).sum())?;
        check_eq!(play.faults, 2, "page faults: one a block");
        play.close()
    })
}

/// 4.3: where there is a firmware, it runs, and finds nothing to start; where there is none, crosvm ends at the question for its
/// size. Without firmware the VM runs, protected.
fn protected() -> Outcome {
    leaves_nothing(|| {
        let firmware = pages::take(1024, 4096);
        let swiotlb = pages::take(16, 4096);
        let prepare = |memory| {
            let mut play = Play::load_and_create(SMC64, Paging::Block { counts: true }, true)?;
            play.vm_call(Function::EnableCap, &[0x9202])?;
            play.enable_blocks()?;
            play.vm_call(Function::EnableCap, &[0x9203])?;
            play.add_region(RAM, PAGES, 1, memory)?;
            play.add_region(0x7FC0_0000, 1024, 2, firmware)?;
            play.add_region(RAM + (64 << 20), 16, 4, swiotlb)?;
            play.add_gic()?;
            Ok::<_, Verdict>(play)
        };
        let (mut ram, mut sum) = memory();
        let mut play = prepare(ram)?;
        let size = play.call(Function::EnableCap, &[play.id, 0xFFBA_DAB1, 1]);
        if size.ok() {
            play.vm_call(Function::EnableCap, &[0xFFBA_DAB1, 0, 0x7FC0_0000])?;
            play.add_vcpus()?;
            for (register, value) in [(0, FDT), (2, RAM), (4, PAGES << 12), (0x42, 0x3C5)] {
                play.set(0, register, value)?;
            }
            check_eq!(play.run()?, 0x9292_0008, "the firmware's last exit");
            check_eq!(pages::get::<u32>(play.shared[0] + 8), 1, "system event");
            play.close()?;
            // What it had is scrubbed.
            (ram, sum) = memory();
            play = prepare(ram)?;
        } else {
            answers(size, Status::NotSupported, format_args!("GET_PVMFW_SIZE"))?;
        }
        play.vm_call(Function::EnableCap, &[0xFFBA_DAB1, 2])?;
        play.add_vcpus()?;
        play.set(0, 0, FDT)?;
        play.set(0, 2, PAGES)?;
        play.set(0, 0x40, RAM)?;
        live(&mut play, sum)?;
        play.close()
    })
}
