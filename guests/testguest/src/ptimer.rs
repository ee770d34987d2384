// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The physical counter and timer, and what EL0 may read of both timers.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::gic::gicd;
use gzvm_guest_kit::{
    arch, cases, check, check_eq, exception, gic, read_sysreg, skip, timer, user, write_sysreg,
};

use crate::util::{Below, below, everywhere, known_of_kvm};

pub const CASES: &[Case] = cases!["ptimer":
    counts_as_the_virtual_one, self_synchronized_counters, registers_read_back, tval_is_signed,
    status_and_interrupt, masked_is_silent, line_is_a_level, line_follows_the_registers,
    wfi_wakes_with_masked_interrupts, both_timers, on_all_cpus, el0_access,
];

/// INTID of the EL1 physical timer: PPI 14.
pub const INTID: u32 = 30;
/// Seconds, as in `timer`.
const LONGEST_SLEEP: u64 = 15;
static TAKEN: AtomicU32 = AtomicU32::new(0);

fn arm_at(deadline: u64) {
    write_sysreg!("cntp_ctl_el0", 2);
    write_sysreg!("cntp_cval_el0", deadline);
    write_sysreg!("cntp_ctl_el0", 1);
    arch::isb();
}

fn disarm() {
    write_sysreg!("cntp_ctl_el0", 2);
    arch::isb();
}

fn count() -> u64 {
    arch::isb();
    read_sysreg!("cntpct_el0")
}

fn control() -> u64 {
    arch::isb();
    read_sysreg!("cntp_ctl_el0")
}

/// With its interrupt enabled and counted; the handler turns it off.
fn with_timer(f: impl FnOnce() -> Outcome) -> Outcome {
    gic::set_handler(|n| {
        if n == INTID {
            disarm();
            TAKEN.fetch_add(1, SeqCst);
        }
    });
    TAKEN.store(0, SeqCst);
    disarm();
    gic::enable(INTID);
    arch::irq_enable();
    let outcome = f();
    arch::irq_disable();
    disarm();
    gic::disable(INTID);
    outcome
}

fn one_interrupt(what: &str) -> Outcome {
    check!(timer::wait_ms(5000, || TAKEN.load(SeqCst) > 0), "no interrupt by {what}");
    timer::wait_ms(2, || false);
    check_eq!(TAKEN.swap(0, SeqCst), 1, "interrupts by {what}");
    Ok(())
}

/// One count: a guest sees nothing of the machine's.
fn counts_as_the_virtual_one() -> Outcome {
    known_of_kvm("without FEAT_ECV its CNTPCT shows the host's count")?;
    for round in 0..200 {
        let first = timer::now();
        let between = count();
        let last = timer::now();
        check!(first <= between && between <= last, "{first} {between} {last}, round {round}");
    }
    Ok(())
}

fn self_synchronized_counters() -> Outcome {
    if read_sysreg!("id_aa64mmfr0_el1") >> 60 == 0 {
        skip!("no FEAT_ECV");
    }
    for round in 0..200 {
        let first = timer::now();
        let virt = read_sysreg!("s3_3_c14_c0_6");
        let phys = read_sysreg!("s3_3_c14_c0_5");
        let last = timer::now();
        check!(first <= virt && virt <= last, "CNTVCTSS {first} {virt} {last}, round {round}");
        if below() != Below::Kvm {
            check!(virt <= phys && phys <= last, "CNTPCTSS {virt} {phys} {last}, round {round}");
        }
    }
    Ok(())
}

fn registers_read_back() -> Outcome {
    for (value, expected) in [(u64::MAX, 3), (0, 0), (2, 2), (!3, 0), (!1, 2)] {
        write_sysreg!("cntp_cval_el0", u64::MAX);
        write_sysreg!("cntp_ctl_el0", value);
        check_eq!(control() & 3, expected, "CNTP_CTL after {value:#x}");
    }
    disarm();
    for value in [0, 1, u64::MAX, 0x1234_5678_9ABC_DEF0] {
        write_sysreg!("cntp_cval_el0", value);
        check_eq!(read_sysreg!("cntp_cval_el0"), value, "CNTP_CVAL");
    }
    // The virtual one is another timer.
    timer::disarm();
    write_sysreg!("cntv_cval_el0", 77);
    write_sysreg!("cntp_cval_el0", 88);
    check_eq!(read_sysreg!("cntv_cval_el0"), 77, "CNTV_CVAL");
    let written = exception::expect(|| write_sysreg!("s3_3_c14_c0_1", 1));
    check!(written.is_err(), "CNTPCT_EL0 can be written");
    Ok(())
}

fn tval_is_signed() -> Outcome {
    for value in [0u32, 1, 0x7FFF_FFFF, 0x8000_0000, u32::MAX] {
        let before = count();
        write_sysreg!("cntp_tval_el0", 0xABCD_0000_0000_0000 | u64::from(value));
        let after = count();
        let cval = read_sysreg!("cntp_cval_el0");
        let set = cval.wrapping_sub(i64::from(value as i32) as u64);
        check!(before <= set && set <= after, "TVAL {value:#x} at {before}..{after} gives CVAL {cval:#x}");
    }
    write_sysreg!("cntp_cval_el0", count() + 1000 * timer::frequency());
    let cval = read_sysreg!("cntp_cval_el0");
    let before = count();
    let tval = read_sysreg!("cntp_tval_el0");
    let after = count();
    let elapsed = (cval as u32).wrapping_sub(tval as u32);
    check_eq!(tval >> 32, 0, "upper half of CNTP_TVAL");
    check!(
        elapsed.wrapping_sub(before as u32) <= (after - before) as u32,
        "TVAL {tval:#x} with CVAL {cval:#x} between {before:#x} and {after:#x}"
    );
    Ok(())
}

fn status_and_interrupt() -> Outcome {
    with_timer(|| {
        for _ in 0..20 {
            let deadline = count() + timer::frequency() / 2000;
            arm_at(deadline);
            check!(timer::wait_ms(5000, || TAKEN.load(SeqCst) > 0), "no interrupt");
            check!(count() >= deadline, "too early");
            check_eq!(TAKEN.swap(0, SeqCst), 1, "interrupts");
        }
        arm_at(0);
        one_interrupt("a deadline of 0")?;
        for tval in [0, -1i64 as u64, timer::frequency() / 2000] {
            write_sysreg!("cntp_tval_el0", tval);
            write_sysreg!("cntp_ctl_el0", 1);
            one_interrupt("CNTP_TVAL")?;
        }
        // Far, then near.
        arm_at(count() + 1000 * timer::frequency());
        timer::wait_ms(1, || false);
        check_eq!(control(), 1, "CNTP_CTL before the deadline");
        check_eq!(TAKEN.load(SeqCst), 0, "interrupts before the deadline");
        write_sysreg!("cntp_cval_el0", count() + timer::frequency() / 2000);
        one_interrupt("the nearer deadline")
    })
}

fn masked_is_silent() -> Outcome {
    with_timer(|| {
        write_sysreg!("cntp_cval_el0", 0);
        write_sysreg!("cntp_ctl_el0", 3);
        timer::wait_ms(5, || false);
        check_eq!(control(), 7, "CNTP_CTL, masked and due");
        check_eq!(TAKEN.load(SeqCst), 0, "interrupts");
        write_sysreg!("cntp_ctl_el0", 1);
        arch::isb();
        one_interrupt("unmasking")
    })
}

fn line_is_a_level() -> Outcome {
    gic::enable(INTID);
    arm_at(0);
    for round in 0..10 {
        let mut taken = gic::SPURIOUS;
        timer::wait_ms(1000, || {
            taken = gic::acknowledge();
            taken != gic::SPURIOUS
        });
        check_eq!(taken, INTID, "interrupt of the asserted line, round {round}");
        gic::end(taken);
    }
    disarm();
    timer::wait_ms(1, || false);
    let mut left = gic::acknowledge();
    if left != gic::SPURIOUS && below() != Below::Gzvm {
        // What a race leaves, once. Ours sees the write.
        gic::end(left);
        timer::wait_ms(1, || false);
        left = gic::acknowledge();
    }
    check_eq!(left, gic::SPURIOUS, "interrupt with the line low");
    gic::disable(INTID);
    Ok(())
}

fn line_follows_the_registers() -> Outcome {
    gic::disable(INTID);
    disarm();
    let pending = || gic::bit(gicd::ISPENDR, INTID);
    let turns = |on: bool| timer::wait_ms(1000, || pending() == on);
    check!(turns(false), "pending with the timer off");
    arm_at(count() + timer::frequency() / 1000);
    check!(turns(true), "not pending with the timer expired");
    write_sysreg!("cntp_ctl_el0", 3);
    check!(turns(false), "pending with the timer masked");
    write_sysreg!("cntp_ctl_el0", 1);
    check!(turns(true), "not pending with the timer unmasked");
    write_sysreg!("cntp_cval_el0", u64::MAX);
    check!(turns(false), "pending with the deadline moved away");
    write_sysreg!("cntp_tval_el0", 0);
    check!(turns(true), "not pending with the deadline moved back");
    disarm();
    check!(turns(false), "pending with the timer off again");
    Ok(())
}

fn sleep(ticks: u64, rounds: u32) -> Outcome {
    for round in 0..rounds {
        let start = count();
        arm_at(start + ticks);
        while control() & 4 == 0 {
            arch::wfi();
        }
        let slept = count() - start;
        disarm();
        check!(slept < timer::frequency() * LONGEST_SLEEP, "slept {slept} instead of {ticks}, round {round}");
    }
    Ok(())
}

fn wfi_wakes_with_masked_interrupts() -> Outcome {
    gic::enable(INTID);
    let outcome = sleep(timer::frequency() / 1000, 50);
    gic::disable(INTID);
    outcome
}

/// Whichever comes first: neither may hide the other.
fn both_timers() -> Outcome {
    static VIRTUAL: AtomicU32 = AtomicU32::new(0);
    let virt = gzvm_guest_kit::machine::get().timer_intid;
    gic::set_handler(|n| {
        if n == INTID {
            disarm();
            TAKEN.fetch_add(1, SeqCst);
        } else if n == gzvm_guest_kit::machine::get().timer_intid {
            timer::disarm();
            VIRTUAL.fetch_add(1, SeqCst);
        }
    });
    gic::enable(INTID);
    gic::enable(virt);
    let mut outcome = Ok(());
    for round in 0..100u64 {
        TAKEN.store(0, SeqCst);
        VIRTUAL.store(0, SeqCst);
        let step = timer::frequency() / 10_000;
        arm_at(count() + step * (1 + round % 7));
        timer::arm_at(timer::now() + step * (1 + round % 5));
        let both = || TAKEN.load(SeqCst) == 1 && VIRTUAL.load(SeqCst) == 1;
        let start = timer::now();
        while !both() && timer::now() - start < 5 * timer::frequency() {
            arch::irq_disable();
            if !both() && round % 2 == 0 {
                arch::wfi();
            }
            arch::irq_enable();
        }
        if !both() {
            outcome = Err(gzvm_guest_kit::case::Verdict::fail(format_args!(
                "round {round}: {} physical, {} virtual",
                TAKEN.load(SeqCst),
                VIRTUAL.load(SeqCst)
            )));
            break;
        }
    }
    arch::irq_disable();
    disarm();
    timer::disarm();
    gic::disable(INTID);
    gic::disable(virt);
    outcome
}

fn on_all_cpus() -> Outcome {
    everywhere(|| {
        gic::enable(INTID);
        let outcome = sleep(timer::frequency() / 2000 * (1 + arch::cpu_index() as u64), 50);
        gic::disable(INTID);
        disarm();
        outcome
    })
}

/// MRS x0, S3_3_C14_C`crm`_`op2`; MSR is 1 << 21 less.
const fn mrs(crm: u32, op2: u32) -> u32 {
    0xD53B_E000 | crm << 8 | op2 << 5
}
const MSR: u32 = 1 << 21;
const SVC: u64 = 0x15;
const SYSREG: u64 = 0x18;

/// CNTKCTL_EL1 lets EL0 at each counter and timer, one by one.
fn el0_access() -> Outcome {
    let saved = read_sysreg!("cntkctl_el1");
    let outcome = (|| {
        for bits in 0..16u64 {
            // EL0PCTEN, EL0VCTEN, EL0VTEN, EL0PTEN.
            let kctl = bits & 3 | (bits >> 2) << 8;
            write_sysreg!("cntkctl_el1", kctl);
            arch::isb();
            for (name, word, bit) in [
                ("CNTPCT", mrs(0, 1), 0),
                ("CNTVCT", mrs(0, 2), 1),
                ("CNTV_CTL", mrs(3, 1), 8),
                ("CNTV_CVAL", mrs(3, 2), 8),
                ("CNTP_TVAL", mrs(2, 0), 9),
                ("CNTP_CTL", mrs(2, 1), 9),
                ("CNTP_CVAL", mrs(2, 2), 9),
                ("CNTP_CVAL, written", mrs(2, 2) - MSR, 9),
            ] {
                let class = user::run(&[word], 0).0 >> 26;
                let expected = if kctl >> bit & 1 != 0 { SVC } else { SYSREG };
                check_eq!(class, expected, "class of {name} at EL0 with CNTKCTL_EL1 = {kctl:#x}");
            }
        }
        write_sysreg!("cntkctl_el1", 0x301);
        arch::isb();
        write_sysreg!("cntp_cval_el0", 0x1234);
        check_eq!(user::run(&[mrs(2, 2)], 0).1, 0x1234, "CNTP_CVAL read at EL0");
        user::run(&[mrs(2, 2) - MSR], 0x5678);
        check_eq!(read_sysreg!("cntp_cval_el0"), 0x5678, "CNTP_CVAL written at EL0");
        let before = count();
        let at_el0 = user::run(&[mrs(0, 1)], 0).1;
        check!(before <= at_el0 && at_el0 <= count(), "CNTPCT at EL0");
        Ok(())
    })();
    write_sysreg!("cntkctl_el1", saved);
    arch::isb();
    outcome
}
