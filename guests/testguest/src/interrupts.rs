// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Interrupt delivery (SGIs: `sgi`): more pending and active interrupts than list registers, priorities,
//! and every order of disable, end and deactivate.
//!
//! Most cases poll ICC_IAR1_EL1 with IRQs masked: that fixes the order of events. Between two
//! reads a hypervisor may have to refill list registers, so "nothing" is believed after a while.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::gic::{self, SPURIOUS, gicd};
use gzvm_guest_kit::{ArrayVec, arch, cases, check, check_eq, machine, skip, smp, timer, write_sysreg};

use crate::sgi::{reset_counts, second_takes_interrupts, stop_second};
use gzvm_guest_kit::random::Random;

use crate::util::{Below, below, exit_of_kind, known_of_kvm};

pub const CASES: &[Case] = cases!["interrupts":
    pending_spi, message_based_spi, pending_ppi_and_sgi, many_pending_in_priority_order, many_pending_of_one_priority,
    many_active_split_end, nested_priorities, priority_mask, pending_while_active,
    disabled_is_not_delivered, disabled_while_active, cleared_pending_is_gone, active_set_by_software,
    distributor_disabled, group_disabled_at_the_cpu, end_without_deactivate, split_end_in_other_order,
    routed_to_the_other, rerouted_while_pending, random_walk,
];

/// SPIs that nothing drives: gz's virtio lines without drivers, QEMU's without guests.
const FIRST_SPI: u32 = 36;
const SPI_COUNT: u32 = 20;

fn spis() -> core::ops::Range<u32> {
    FIRST_SPI..FIRST_SPI + SPI_COUNT
}

/// Acknowledges the next interrupt, waiting for it up to a second.
pub fn take() -> u32 {
    let mut intid = SPURIOUS;
    timer::wait_ms(1000, || {
        intid = gic::acknowledge();
        intid != SPURIOUS
    });
    intid
}

/// What can be acknowledged although nothing should be pending.
pub fn nothing() -> u32 {
    for i in 0..4 {
        let intid = gic::acknowledge();
        if intid != SPURIOUS {
            gic::end(intid);
            return intid;
        }
        exit_of_kind(i);
    }
    timer::wait_ms(1, || false);
    let intid = gic::acknowledge();
    if intid != SPURIOUS {
        gic::end(intid);
    }
    intid
}

pub fn check_nothing(what: &str) -> Outcome {
    check_eq!(nothing(), SPURIOUS, "interrupt although {what}");
    Ok(())
}

fn check_taken(expected: u32, what: &str) -> Outcome {
    check_eq!(take(), expected, "interrupt, {what}");
    Ok(())
}

/// Enables the test SPIs as edge-triggered and routes them here; afterwards everything is as new.
fn with_spis(f: impl FnOnce() -> Outcome) -> Outcome {
    for intid in spis() {
        gic::disable(intid);
        gic::set_edge(intid, true);
        gic::set_bit(gicd::ICPENDR, intid);
        gic::set_bit(gicd::ICACTIVER, intid);
        gic::set_priority(intid, gic::DEFAULT_PRIORITY);
        gic::route(intid, arch::mpidr());
        gic::enable(intid);
    }
    gic::set_eoi_mode(false);
    let outcome = f();
    arch::irq_disable();
    gic::init_distributor();
    gic::init_cpu();
    outcome
}

fn pend(intid: u32) {
    gic::set_bit(gicd::ISPENDR, intid);
}

fn is_active(intid: u32) -> bool {
    gic::bit(gicd::ISACTIVER, intid)
}

fn pending_spi() -> Outcome {
    with_spis(|| {
        for intid in spis() {
            pend(intid);
            check!(gic::bit(gicd::ISPENDR, intid), "INTID {intid} does not read as pending");
            check_taken(intid, "set pending")?;
            check!(is_active(intid), "INTID {intid} does not read as active");
            check!(!gic::bit(gicd::ISPENDR, intid), "INTID {intid} reads as pending and active");
            gic::end(intid);
            check!(!is_active(intid), "INTID {intid} reads as active after EOI");
        }
        check_nothing("all SPIs were taken")
    })
}

fn message_based_spi() -> Outcome {
    let d = gic::distributor();
    if d.read32(gicd::TYPER) >> 16 & 1 == 0 {
        skip!("no message-based SPIs");
    }
    with_spis(|| {
        for intid in spis() {
            d.write32(gicd::SETSPI_NSR, intid);
            check_taken(intid, "by a message")?;
            gic::end(intid);
            d.write16(gicd::SETSPI_NSR, intid as u16);
            check!(gic::bit(gicd::ISPENDR, intid), "INTID {intid} does not read as pending");
            d.write16(gicd::CLRSPI_NSR, intid as u16);
            check!(!gic::bit(gicd::ISPENDR, intid), "INTID {intid} reads as pending");
        }
        check_nothing("all messages were taken or taken back")?;
        if below() == Below::Nothing {
            return Ok(()); // QEMU's own GIC knows no levels of messages
        }
        gic::set_edge(FIRST_SPI, false);
        d.write32(gicd::SETSPI_NSR, FIRST_SPI);
        for _ in 0..3 {
            check_taken(FIRST_SPI, "by a message that stays")?;
            gic::end(FIRST_SPI);
        }
        d.write32(gicd::CLRSPI_NSR, FIRST_SPI);
        check_nothing("the message was taken back")
    })
}

fn pending_ppi_and_sgi() -> Outcome {
    let ppi = machine::get().timer_intid;
    // Edge by software: the timer's PPI is level-sensitive, its latch works nonetheless.
    gic::set_bit(gicd::ICENABLER, ppi);
    for intid in [3, 15] {
        pend(intid);
        check_taken(intid, "pended through GICR_ISPENDR0")?;
        gic::end(intid);
    }
    check_nothing("all were taken")
}

fn many_pending_in_priority_order() -> Outcome {
    with_spis(|| {
        let priority = |i: u32| (8 + 8 * (i * 7 % SPI_COUNT)) as u8;
        for round in 0..3 {
            for (i, intid) in spis().enumerate() {
                gic::set_priority(intid, priority(i as u32));
            }
            for intid in spis() {
                pend(intid);
            }
            let mut last = 0;
            for n in 0..SPI_COUNT {
                let intid = take();
                check!(spis().contains(&intid), "round {round}: interrupt number {n} is {intid}");
                let p = priority(intid - FIRST_SPI);
                check_eq!(gic::running_priority(), p, "running priority with {intid}");
                check!(p > last, "round {round}: priority {p:#x} after {last:#x}");
                last = p;
                gic::end(intid);
            }
            check_nothing("all were taken")?;
        }
        Ok(())
    })
}

fn many_pending_of_one_priority() -> Outcome {
    with_spis(|| {
        for round in 0..20 {
            for intid in spis() {
                pend(intid);
            }
            let mut seen = 0u32;
            for n in 0..SPI_COUNT {
                let intid = take();
                check!(spis().contains(&intid), "round {round}: interrupt number {n} is {intid}");
                check!(seen & 1 << (intid - FIRST_SPI) == 0, "{intid} twice");
                seen |= 1 << (intid - FIRST_SPI);
                gic::end(intid);
            }
            check_nothing("all were taken")?;
        }
        Ok(())
    })
}

/// More active interrupts than list registers: EOImode 1, all dropped, then all deactivated.
fn many_active_split_end() -> Outcome {
    known_of_kvm("no more active interrupts than list registers")?;
    with_spis(|| {
        gic::set_eoi_mode(true);
        for round in 0..4 {
            let mut taken: ArrayVec<u32, 32> = ArrayVec::new();
            for intid in spis() {
                pend(intid);
            }
            for n in 0..SPI_COUNT {
                let intid = take();
                check!(spis().contains(&intid), "round {round}: interrupt number {n} is {intid}");
                taken.push(intid);
                gic::end(intid);
            }
            for &intid in &taken {
                check!(is_active(intid), "round {round}: {intid} is not active");
            }
            check_nothing("all are active")?;
            if round % 2 == 1 {
                taken.reverse();
            }
            for &intid in &taken {
                gic::deactivate(intid);
                check!(!is_active(intid), "round {round}: {intid} is active after DIR");
            }
        }
        Ok(())
    })
}

fn nested_priorities() -> Outcome {
    known_of_kvm("no more active interrupts than list registers")?;
    with_spis(|| {
        // Binary point 0: every priority preempts a lower one.
        let mut stack: ArrayVec<u32, 32> = ArrayVec::new();
        for (i, intid) in spis().take(10).enumerate() {
            gic::set_priority(intid, (0xF0 - 0x10 * i) as u8);
            pend(intid);
            check_taken(intid, "preempting")?;
            stack.push(intid);
        }
        while let Some(intid) = stack.pop() {
            gic::end(intid);
            check!(!is_active(intid), "{intid} is active after EOI");
            let running = stack.last().map_or(0xFF, |_| (0xF0 - 0x10 * (stack.len() - 1)) as u8);
            check_eq!(gic::running_priority(), running, "running priority after EOI of {intid}");
        }
        check_nothing("all have ended")
    })
}

fn priority_mask() -> Outcome {
    with_spis(|| {
        gic::set_priority(FIRST_SPI, 0xB0);
        write_sysreg!("S3_0_C4_C6_0", 0xA0); // ICC_PMR_EL1
        arch::isb();
        pend(FIRST_SPI);
        check_nothing("the mask is above")?;
        write_sysreg!("S3_0_C4_C6_0", 0xFF);
        arch::isb();
        check_taken(FIRST_SPI, "with the mask raised")?;
        gic::end(FIRST_SPI);
        Ok(())
    })
}

fn pending_while_active() -> Outcome {
    with_spis(|| {
        for mode in [false, true] {
            gic::set_eoi_mode(mode);
            pend(FIRST_SPI);
            check_taken(FIRST_SPI, "the first time")?;
            pend(FIRST_SPI);
            check_nothing("it is active")?;
            gic::end(FIRST_SPI);
            if mode {
                check_nothing("it is not deactivated")?;
                gic::deactivate(FIRST_SPI);
            }
            check_taken(FIRST_SPI, "the second time")?;
            gic::end(FIRST_SPI);
            if mode {
                gic::deactivate(FIRST_SPI);
            }
            check_nothing("it came twice")?;
        }
        Ok(())
    })
}

fn disabled_is_not_delivered() -> Outcome {
    with_spis(|| {
        gic::disable(FIRST_SPI);
        pend(FIRST_SPI);
        check_nothing("it is disabled")?;
        check!(gic::bit(gicd::ISPENDR, FIRST_SPI), "not pending");
        gic::enable(FIRST_SPI);
        check_taken(FIRST_SPI, "enabled")?;
        gic::end(FIRST_SPI);
        // Disabled after it may have reached a list register.
        pend(FIRST_SPI);
        exit_of_kind(1);
        gic::disable(FIRST_SPI);
        check_nothing("it was disabled while pending")?;
        gic::enable(FIRST_SPI);
        check_taken(FIRST_SPI, "enabled again")?;
        gic::end(FIRST_SPI);
        Ok(())
    })
}

fn disabled_while_active() -> Outcome {
    with_spis(|| {
        for mode in [false, true] {
            gic::set_eoi_mode(mode);
            pend(FIRST_SPI);
            check_taken(FIRST_SPI, "the first time")?;
            gic::disable(FIRST_SPI);
            check!(is_active(FIRST_SPI), "disabling took the active state away");
            pend(FIRST_SPI);
            gic::end(FIRST_SPI);
            if mode {
                check!(is_active(FIRST_SPI), "priority drop took the active state away");
                gic::deactivate(FIRST_SPI);
            }
            check!(!is_active(FIRST_SPI), "still active, mode {mode}");
            check_nothing("it is disabled")?;
            gic::enable(FIRST_SPI);
            check_taken(FIRST_SPI, "enabled again")?;
            gic::end(FIRST_SPI);
            if mode {
                gic::deactivate(FIRST_SPI);
            }
        }
        Ok(())
    })
}

fn cleared_pending_is_gone() -> Outcome {
    with_spis(|| {
        for intid in spis() {
            pend(intid);
        }
        exit_of_kind(1);
        for intid in spis() {
            gic::set_bit(gicd::ICPENDR, intid);
        }
        check_nothing("pending was cleared")?;
        pend(FIRST_SPI);
        check_taken(FIRST_SPI, "afterwards")?;
        gic::set_bit(gicd::ICPENDR, FIRST_SPI);
        check!(is_active(FIRST_SPI), "clearing pending took the active state away");
        gic::end(FIRST_SPI);
        check_nothing("it has ended")
    })
}

fn active_set_by_software() -> Outcome {
    with_spis(|| {
        gic::set_bit(gicd::ISACTIVER, FIRST_SPI);
        check!(is_active(FIRST_SPI), "not active");
        pend(FIRST_SPI);
        check_nothing("it is active")?;
        gic::set_bit(gicd::ICACTIVER, FIRST_SPI);
        check!(!is_active(FIRST_SPI), "still active");
        check_taken(FIRST_SPI, "once inactive")?;
        // Taken back by software instead of EOI's deactivation.
        gic::set_bit(gicd::ICACTIVER, FIRST_SPI);
        gic::end(FIRST_SPI);
        check!(!is_active(FIRST_SPI), "active in the end");
        check_nothing("it has ended")
    })
}

fn distributor_disabled() -> Outcome {
    known_of_kvm("what is set pending with the distributor disabled stays so")?;
    with_spis(|| {
        let d = gic::distributor();
        let ctlr = d.read32(gicd::CTLR);
        d.write32(gicd::CTLR, ctlr & !3);
        pend(FIRST_SPI);
        check_nothing("the distributor is disabled")?;
        d.write32(gicd::CTLR, ctlr);
        check_taken(FIRST_SPI, "with the distributor enabled")?;
        gic::end(FIRST_SPI);
        Ok(())
    })
}

fn group_disabled_at_the_cpu() -> Outcome {
    with_spis(|| {
        write_sysreg!("S3_0_C12_C12_7", 0); // ICC_IGRPEN1_EL1
        arch::isb();
        pend(FIRST_SPI);
        check_nothing("the group is disabled")?;
        write_sysreg!("S3_0_C12_C12_7", 1);
        arch::isb();
        check_taken(FIRST_SPI, "with the group enabled")?;
        gic::end(FIRST_SPI);
        Ok(())
    })
}

/// EOImode 0 with DIR, EOImode 1 without: no harm, and everything can be mended.
fn end_without_deactivate() -> Outcome {
    with_spis(|| {
        gic::set_eoi_mode(true);
        pend(FIRST_SPI);
        check_taken(FIRST_SPI, "the first time")?;
        gic::end(FIRST_SPI);
        gic::set_eoi_mode(false);
        check!(is_active(FIRST_SPI), "not active");
        gic::set_bit(gicd::ICACTIVER, FIRST_SPI);
        check!(!is_active(FIRST_SPI), "still active");
        // What is not active is ended and deactivated.
        gic::set_eoi_mode(true);
        gic::deactivate(FIRST_SPI);
        gic::deactivate(FIRST_SPI + 1);
        gic::deactivate(1000);
        gic::set_eoi_mode(false);
        pend(FIRST_SPI);
        check_taken(FIRST_SPI, "afterwards")?;
        gic::end(FIRST_SPI);
        check_nothing("it has ended")
    })
}

/// Deactivation in every order of three interrupts.
fn split_end_in_other_order() -> Outcome {
    with_spis(|| {
        gic::set_eoi_mode(true);
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for i in 0..3 {
                gic::set_priority(FIRST_SPI + i, (0xC0 - 0x20 * i) as u8);
                pend(FIRST_SPI + i);
                check_taken(FIRST_SPI + i, "nested")?;
            }
            for i in [2, 1, 0] {
                gic::end(FIRST_SPI + i);
            }
            for i in order {
                gic::deactivate(FIRST_SPI + i);
                check!(!is_active(FIRST_SPI + i), "{order:?}: still active");
            }
            check_eq!(gic::running_priority(), 0xFF, "running priority");
            check_nothing("all have ended")?;
        }
        Ok(())
    })
}

static ROUTED: AtomicU32 = AtomicU32::new(0);

fn note_routed(intid: u32) {
    ROUTED.store(intid, SeqCst);
}

fn routed_to_the_other() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    with_spis(|| {
        reset_counts(note_routed);
        second_takes_interrupts()?;
        let mut lost = None;
        for intid in spis() {
            gic::route(intid, machine::get().cpus[1]);
            ROUTED.store(0, SeqCst);
            pend(intid);
            if !timer::wait_ms(2000, || ROUTED.load(SeqCst) == intid) {
                lost = Some(intid);
                break;
            }
        }
        let here = nothing();
        stop_second()?;
        check_eq!(lost, None, "SPI that did not come");
        check_eq!(here, SPURIOUS, "SPI that came to the wrong CPU");
        Ok(())
    })
}

fn rerouted_while_pending() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    with_spis(|| {
        reset_counts(note_routed);
        second_takes_interrupts()?;
        // Masked here, so that it stays pending.
        ROUTED.store(0, SeqCst);
        write_sysreg!("S3_0_C4_C6_0", 0x10);
        arch::isb();
        pend(FIRST_SPI);
        exit_of_kind(1);
        gic::route(FIRST_SPI, machine::get().cpus[1]);
        let came = timer::wait_ms(2000, || ROUTED.load(SeqCst) == FIRST_SPI);
        write_sysreg!("S3_0_C4_C6_0", 0xFF);
        arch::isb();
        let here = nothing();
        stop_second()?;
        check!(came, "it did not come to the other CPU");
        check_eq!(here, SPURIOUS, "it came here as well");
        Ok(())
    })
}

/// Random operations against a model of pending, active and enabled; EOImode 1.
fn random_walk() -> Outcome {
    known_of_kvm("no more active interrupts than list registers")?;
    #[derive(Clone, Copy, Default)]
    struct Model {
        enabled: bool,
        pending: bool,
        active: bool,
        running: bool,
    }
    with_spis(|| {
        gic::set_eoi_mode(true);
        let mut random = Random(0x1234_5678_9ABC);
        let mut model = [Model { enabled: true, ..Model::default() }; SPI_COUNT as usize];
        for step in 0..3000 {
            let i = (random.next() % u64::from(SPI_COUNT)) as usize;
            let intid = FIRST_SPI + i as u32;
            let m = &mut model[i];
            match random.next() % 8 {
                0 => {
                    gic::enable(intid);
                    m.enabled = true;
                }
                1 => {
                    gic::disable(intid);
                    m.enabled = false;
                }
                2 | 3 => {
                    pend(intid);
                    m.pending = true;
                }
                4 => {
                    gic::set_bit(gicd::ICPENDR, intid);
                    m.pending = false;
                }
                5 if m.active && !m.running => {
                    gic::deactivate(intid);
                    m.active = false;
                }
                _ => {
                    // All have one priority: one is taken, dropped, and stays active.
                    let deliverable = model.iter().any(|m| m.enabled && m.pending && !m.active);
                    let taken = if deliverable { take() } else { nothing() };
                    if !deliverable {
                        check_eq!(taken, SPURIOUS, "step {step}: interrupt");
                        continue;
                    }
                    check!(spis().contains(&taken), "step {step}: took {taken}");
                    let m = &mut model[(taken - FIRST_SPI) as usize];
                    check!(m.enabled && m.pending && !m.active, "step {step}: took {taken}");
                    m.pending = false;
                    m.active = true;
                    gic::end(taken);
                }
            }
            let m = model[i];
            check_eq!(gic::bit(gicd::ISPENDR, intid), m.pending, "step {step}: {intid} pending");
            check_eq!(is_active(intid), m.active, "step {step}: {intid} active");
            check_eq!(gic::bit(gicd::ISENABLER, intid), m.enabled, "step {step}: {intid} enabled");
        }
        Ok(())
    })
}
