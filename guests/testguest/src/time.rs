// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual timer: interrupt, level, wake-ups of a guest that is otherwise silent.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{arch, cases, check, check_eq, gic, machine, skip, timer, write_sysreg};

use crate::util::everywhere;

pub const CASES: &[Case] = cases!["timer":
    interrupt_by_cval, interrupt_by_tval, deadline_in_the_past, masked_timer_is_silent,
    timer_is_level_sensitive, pending_state_follows_the_line,
    wfi_wakes_with_masked_interrupts, silent_guest_always_wakes, silent_on_all_cpus, moved_deadline,
];

/// Seconds: a wake-up that was lost shows after the twenty that a hypervisor lets a vCPU sleep; less may
/// be the machine's load.
const LONGEST_SLEEP: u64 = 15;
static TAKEN: AtomicU32 = AtomicU32::new(0);

fn intid() -> u32 {
    machine::get().timer_intid
}

fn count_and_disarm(n: u32) {
    if n == intid() {
        timer::disarm();
        TAKEN.fetch_add(1, SeqCst);
    }
}

/// Runs `f` with the timer's interrupt enabled and counted.
fn with_timer(f: impl FnOnce() -> Outcome) -> Outcome {
    gic::set_handler(count_and_disarm);
    TAKEN.store(0, SeqCst);
    timer::disarm();
    gic::enable(intid());
    arch::irq_enable();
    let outcome = f();
    arch::irq_disable();
    timer::disarm();
    gic::disable(intid());
    outcome
}

fn one_interrupt(what: &str) -> Outcome {
    check!(timer::wait_ms(5000, || TAKEN.load(SeqCst) > 0), "no interrupt by {what}");
    timer::wait_ms(2, || false);
    check_eq!(TAKEN.swap(0, SeqCst), 1, "interrupts by {what}");
    Ok(())
}

fn interrupt_by_cval() -> Outcome {
    with_timer(|| {
        for _ in 0..20 {
            let deadline = timer::now() + timer::frequency() / 2000;
            timer::arm_at(deadline);
            check!(timer::wait_ms(5000, || TAKEN.load(SeqCst) > 0), "no interrupt");
            check!(timer::now() >= deadline, "too early");
            check_eq!(TAKEN.swap(0, SeqCst), 1, "interrupts");
        }
        Ok(())
    })
}

fn interrupt_by_tval() -> Outcome {
    with_timer(|| {
        timer::arm_in((timer::frequency() / 2000) as u32);
        one_interrupt("CNTV_TVAL")
    })
}

fn deadline_in_the_past() -> Outcome {
    with_timer(|| {
        timer::arm_at(0);
        one_interrupt("a deadline of 0")?;
        timer::arm_in(0);
        one_interrupt("CNTV_TVAL = 0")?;
        timer::arm_in(-1i32 as u32);
        one_interrupt("CNTV_TVAL = -1")
    })
}

fn masked_timer_is_silent() -> Outcome {
    with_timer(|| {
        write_sysreg!("cntv_cval_el0", 0);
        write_sysreg!("cntv_ctl_el0", 3); // enabled and masked
        arch::isb();
        timer::wait_ms(5, || false);
        check!(timer::fired(), "no ISTATUS");
        check_eq!(TAKEN.load(SeqCst), 0, "interrupts");
        write_sysreg!("cntv_ctl_el0", 1);
        arch::isb();
        one_interrupt("unmasking")
    })
}

fn timer_is_level_sensitive() -> Outcome {
    gic::enable(intid());
    timer::arm_at(0);
    for round in 0..10 {
        let mut taken = gic::SPURIOUS;
        timer::wait_ms(1000, || {
            taken = gic::acknowledge();
            taken != gic::SPURIOUS
        });
        check_eq!(taken, intid(), "interrupt of the asserted line, round {round}");
        gic::end(taken);
    }
    timer::disarm();
    // The line is low: nothing may be left but what a race leaves, once.
    timer::wait_ms(1, || false);
    let left = gic::acknowledge();
    if left != gic::SPURIOUS {
        gic::end(left);
        timer::wait_ms(1, || false);
        let left = gic::acknowledge();
        check_eq!(left, gic::SPURIOUS, "interrupt with the line low");
    }
    gic::disable(intid());
    Ok(())
}

fn pending_state_follows_the_line() -> Outcome {
    gic::disable(intid());
    timer::disarm();
    let pending = || gic::bit(gic::gicd::ISPENDR, intid());
    check!(timer::wait_ms(1000, || !pending()), "pending with the timer off");
    timer::arm_at(0);
    check!(timer::wait_ms(1000, pending), "not pending with the timer expired");
    timer::disarm();
    check!(timer::wait_ms(1000, || !pending()), "still pending with the timer off again");
    Ok(())
}

fn sleep(ticks: u64, rounds: u32) -> Outcome {
    for round in 0..rounds {
        let start = timer::now();
        timer::arm_at(start + ticks);
        // Spurious wake-ups are allowed; oversleeping is not.
        while !timer::fired() {
            arch::wfi();
        }
        let slept = timer::now() - start;
        timer::disarm();
        check!(
            slept < timer::frequency() * LONGEST_SLEEP,
            "slept {slept} ticks instead of {ticks}, round {round}"
        );
    }
    Ok(())
}

fn wfi_wakes_with_masked_interrupts() -> Outcome {
    gic::enable(intid());
    let outcome = sleep(timer::frequency() / 1000, 50);
    gic::disable(intid());
    outcome
}

fn silent_guest_always_wakes() -> Outcome {
    with_timer(|| {
        // Near and far deadlines: some expire on the way to the host.
        let mut ticks = timer::frequency() / 1_000_000;
        for round in 0..300 {
            let before = TAKEN.load(SeqCst);
            let start = timer::now();
            timer::arm_at(start + ticks);
            while TAKEN.load(SeqCst) == before {
                // The interrupt may come before WFI: with IRQs masked it stays pending and WFI
                // falls through.
                arch::irq_disable();
                if TAKEN.load(SeqCst) == before {
                    arch::wfi();
                }
                arch::irq_enable();
            }
            let slept = timer::now() - start;
            check!(
                slept < timer::frequency() * LONGEST_SLEEP,
                "slept {slept} ticks instead of {ticks}, round {round}"
            );
            ticks = ticks * 21 / 20 + 1;
            if ticks > timer::frequency() / 50 {
                ticks = timer::frequency() / 1_000_000;
            }
        }
        Ok(())
    })
}

fn silent_on_all_cpus() -> Outcome {
    everywhere(|| {
        gic::enable(intid());
        let outcome = sleep(timer::frequency() / 2000 * (1 + arch::cpu_index() as u64), 100);
        gic::disable(intid());
        outcome
    })
}

/// A far deadline replaced by a near one, and the other way round.
fn moved_deadline() -> Outcome {
    with_timer(|| {
        timer::arm_at(timer::now() + 1000 * timer::frequency());
        timer::wait_ms(1, || false);
        check_eq!(TAKEN.load(SeqCst), 0, "interrupts before the deadline");
        timer::arm_in((timer::frequency() / 2000) as u32);
        one_interrupt("the nearer deadline")?;
        // Only where the deadline is moved in time: one that passes while the vCPU is off its CPU is in
        // a list register already, and a hypervisor is not told that the level drops again.
        for _ in 0..100 {
            arch::irq_disable();
            TAKEN.store(0, SeqCst);
            let deadline = timer::now() + timer::frequency() / 1000;
            timer::arm_at(deadline);
            timer::arm_at(timer::now() + 1000 * timer::frequency());
            let in_time = timer::now() < deadline;
            arch::irq_enable();
            if in_time {
                timer::wait_ms(5, || false);
                check_eq!(TAKEN.load(SeqCst), 0, "interrupts of the deadline that was moved away");
                return Ok(());
            }
        }
        skip!("never moved in time")
    })
}
