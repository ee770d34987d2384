// SPDX-License-Identifier: Apache-2.0 OR MIT
//! SGIs: to itself, to others, to nobody, many in flight, as wake-ups. CPU 1 is the other one.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::gic::{self, SPURIOUS};
use gzvm_guest_kit::{arch, cases, check, check_eq, fail, machine, read_sysreg, smp, timer};

use crate::interrupts::{check_nothing, nothing, take};
use gzvm_guest_kit::random::Random;

use crate::util::{everywhere, join_second, start_second};

pub const CASES: &[Case] = cases!["sgi":
    sgi_to_itself, sgi_to_the_other, sgi_broadcast, sgi_ping_pong, sgis_from_all_to_all, sgi_out_of_range,
    wfi_wakes_by_sgi,
];

fn sgi_to_itself() -> Outcome {
    for round in 0..10 {
        for intid in 0..16 {
            gic::send_sgi(arch::mpidr(), intid);
            let taken = take();
            if taken != SPURIOUS {
                gic::end(taken);
            }
            check_eq!(taken, intid, "round {round}");
        }
    }
    check_nothing("all SGIs were taken")
}

static COUNT: [AtomicU32; 16] = [const { AtomicU32::new(0) }; 16];
static READY: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

fn count(intid: u32) {
    if let Some(n) = COUNT.get(intid as usize) {
        n.fetch_add(1, SeqCst);
    }
}

pub fn reset_counts(handler: fn(u32)) {
    COUNT.iter().for_each(|n| n.store(0, SeqCst));
    READY.store(false, SeqCst);
    STOP.store(false, SeqCst);
    gic::set_handler(handler);
}

fn taking_interrupts() {
    gic::init_cpu();
    arch::irq_enable();
    READY.store(true, SeqCst);
    while !STOP.load(SeqCst) {
        arch::cpu_relax();
    }
}

pub fn second_takes_interrupts() -> Outcome {
    start_second(taking_interrupts)?;
    check!(timer::wait_ms(5000, || READY.load(SeqCst)), "CPU 1 is not ready");
    Ok(())
}

pub fn stop_second() -> Outcome {
    STOP.store(true, SeqCst);
    join_second()
}

fn sgi_to_the_other() -> Outcome {
    reset_counts(count);
    second_takes_interrupts()?;
    for round in 0..20 {
        for (intid, n) in COUNT.iter().enumerate() {
            let before = n.load(SeqCst);
            gic::send_sgi(machine::get().cpus[1], intid as u32);
            let came = timer::wait_ms(2000, || n.load(SeqCst) > before);
            if !came {
                stop_second()?;
                fail!("SGI {intid} did not come, round {round}");
            }
        }
    }
    stop_second()
}

fn sgi_broadcast() -> Outcome {
    reset_counts(count);
    second_takes_interrupts()?;
    for _ in 0..50 {
        let before = COUNT[9].load(SeqCst);
        gic::send_sgi_others(9);
        let came = timer::wait_ms(2000, || COUNT[9].load(SeqCst) > before);
        if !came {
            stop_second()?;
            fail!("the other CPU did not get it");
        }
    }
    let to_itself = nothing();
    stop_second()?;
    check_eq!(to_itself, SPURIOUS, "SGI to all but this CPU came here");
    Ok(())
}

fn sgi_ping_pong() -> Outcome {
    reset_counts(|intid| {
        count(intid);
        if arch::cpu_index() == 1 {
            gic::send_sgi(machine::get().cpus[0], 2);
        }
    });
    second_takes_interrupts()?;
    arch::irq_enable();
    let mut lost = None;
    for round in 0..1000 {
        gic::send_sgi(machine::get().cpus[1], 1);
        if !timer::wait_ms(3000, || COUNT[2].load(SeqCst) > round) {
            lost = Some(round);
            break;
        }
    }
    arch::irq_disable();
    stop_second()?;
    check_eq!(lost, None, "round without an answer");
    Ok(())
}

/// All CPUs send to all; the last SGI of each kind must arrive everywhere.
fn sgis_from_all_to_all() -> Outcome {
    static GOT: [AtomicU32; gzvm_guest_kit::MAX_CPUS] =
        [const { AtomicU32::new(0) }; gzvm_guest_kit::MAX_CPUS];
    static DONE: AtomicU32 = AtomicU32::new(0);
    GOT.iter().for_each(|g| g.store(0, SeqCst));
    DONE.store(0, SeqCst);
    gic::set_handler(|intid| {
        GOT[arch::cpu_index()].fetch_or(1 << intid, SeqCst);
    });
    everywhere(|| {
        arch::irq_enable();
        let me = arch::cpu_index();
        for i in 0..100 {
            for cpu in 0..smp::count() {
                gic::send_sgi(machine::get().cpus[cpu], (me + i) as u32 % 16);
            }
        }
        DONE.fetch_add(1, SeqCst);
        let all = timer::wait_ms(60_000, || {
            DONE.load(SeqCst) as usize == smp::count() && GOT[me].load(SeqCst) == 0xFFFF
        });
        check!(all, "CPU {me} got the SGIs {:#x} only", GOT[me].load(SeqCst));
        Ok(())
    })
}

/// Targets that do not exist: nothing happens.
fn sgi_out_of_range() -> Outcome {
    for value in [0x00FF_0001, 0xFF << 32 | 1, 0xFF << 48 | 1, 0x8000, 0, 0xFF << 56] {
        gic::send_sgi_raw(value | 4 << 24);
    }
    // The range selector counts only where the CPU interface has it (ICC_CTLR_EL1.RSS).
    if read_sysreg!("S3_0_C12_C12_4") & 1 << 18 != 0 {
        gic::send_sgi_raw(0xF << 44 | 4 << 24 | 1);
    }
    check_nothing("no SGI was for this CPU")
}

/// CPU 1 sleeps by WFI; each SGI must wake it.
fn wfi_wakes_by_sgi() -> Outcome {
    reset_counts(count);
    start_second(|| {
        gic::init_cpu();
        READY.store(true, SeqCst);
        while !STOP.load(SeqCst) {
            arch::irq_disable();
            if !STOP.load(SeqCst) {
                arch::wfi();
            }
            arch::irq_enable();
        }
    })?;
    check!(timer::wait_ms(5000, || READY.load(SeqCst)), "CPU 1 is not ready");
    let mut lost = None;
    let mut random = Random(7);
    for round in 0..300 {
        let before = COUNT[3].load(SeqCst);
        gic::send_sgi(machine::get().cpus[1], 3);
        if !timer::wait_ms(5000, || COUNT[3].load(SeqCst) > before) {
            lost = Some(round);
            break;
        }
        // Some SGIs hit the CPU on its way to sleep.
        for _ in 0..random.next() % 2000 {
            arch::cpu_relax();
        }
    }
    STOP.store(true, SeqCst);
    gic::send_sgi(machine::get().cpus[1], 4);
    join_second()?;
    check_eq!(lost, None, "round without a wake-up");
    Ok(())
}
