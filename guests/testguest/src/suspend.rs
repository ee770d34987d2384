// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI's power-down states: CPU_SUSPEND, CPU_DEFAULT_SUSPEND, SYSTEM_SUSPEND.
//!
//! A CPU comes back at its entry point with the MMU off and nothing in its registers. [`suspend`] saves
//! what this guest needs, and finds it again by the context id.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::gic::gicd;
use gzvm_guest_kit::psci::{self, error};
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{arch, cases, check, check_eq, gic, machine, skip, smp, timer, write_sysreg};

use crate::util::{Below, below, join_second, start_second};

pub const CASES: &[Case] = cases!["suspend":
    power_state_is_checked, entry_point_is_checked, power_down_until_the_timer,
    power_down_with_a_wake_up_pending, default_suspend_until_the_timer,
    system_suspend_denied_with_another_cpu_on, system_suspend_until_the_timer,
    system_suspend_until_the_physical_timer, system_suspend_with_an_spi_pending,
    disabled_interrupts_wake_nobody, power_down_of_two_cpus,
];

const CPU_SUSPEND: u64 = psci::function::CPU_SUSPEND;
const CPU_DEFAULT_SUSPEND: u64 = 0xC400_000C;
const SYSTEM_SUSPEND: u64 = 0xC400_000E;
/// `power_state`: power-down of this CPU.
const DOWN: u64 = 1 << 16;
/// An SPI that nothing drives.
const SPI: u32 = 40;

/// Words that [`suspend`] leaves: SP, x18..x30, seven system registers; then what the CPU found.
#[repr(C, align(64))]
struct Saved(UnsafeCell<[u64; 32]>);
// SAFETY: each CPU has its own.
unsafe impl Sync for Saved {}
static SAVED: [Saved; 2] = [const { Saved(UnsafeCell::new([0; 32])) }; 2];

const FOUND: usize = 24;

unsafe extern "C" {
    fn testguest_suspend_hvc(save: *mut u64, function: u64, state: u64) -> u64;
    fn testguest_suspend_smc(save: *mut u64, function: u64, state: u64) -> u64;
}

global_asm!(
    r#"
    .macro  suspend name, conduit
    .global \name
\name:
    mov     x3, sp
    str     x3, [x0]
    stp     x18, x19, [x0, #8]
    stp     x20, x21, [x0, #24]
    stp     x22, x23, [x0, #40]
    stp     x24, x25, [x0, #56]
    stp     x26, x27, [x0, #72]
    stp     x28, x29, [x0, #88]
    str     x30, [x0, #104]
    mrs     x3, ttbr0_el1
    mrs     x4, tcr_el1
    stp     x3, x4, [x0, #112]
    mrs     x3, mair_el1
    mrs     x4, vbar_el1
    stp     x3, x4, [x0, #128]
    mrs     x3, cpacr_el1
    mrs     x4, tpidr_el1
    stp     x3, x4, [x0, #144]
    mrs     x3, sctlr_el1
    str     x3, [x0, #160]
    // The CPU reads it past the caches.
    mov     x4, x0
    add     x5, x0, #256
1:  dc      civac, x4
    add     x4, x4, #16
    cmp     x4, x5
    b.lo    1b
    dsb     sy
    mov     x6, x1
    adr     x5, testguest_resumed
    mov     x7, x0
    // CPU_SUSPEND has the state before entry point and context.
    and     x3, x6, #0xF
    cmp     x3, #1
    b.ne    2f
    mov     x1, x2
    mov     x2, x5
    mov     x3, x7
    b       3f
2:  mov     x1, x5
    mov     x2, x7
    mov     x3, #0
3:  mov     x0, x6
    \conduit #0
    mov     w0, w0
    ret
    .endm
    .section .text.suspend, "ax"
    suspend testguest_suspend_hvc, hvc
    suspend testguest_suspend_smc, smc

testguest_resumed:
    str     x0, [x0, #192]
    mrs     x1, CurrentEL
    mrs     x2, sctlr_el1
    stp     x1, x2, [x0, #200]
    mrs     x1, daif
    mrs     x2, SPSel
    stp     x1, x2, [x0, #216]
    ldp     x1, x2, [x0, #112]
    msr     ttbr0_el1, x1
    msr     tcr_el1, x2
    ldp     x1, x2, [x0, #128]
    msr     mair_el1, x1
    msr     vbar_el1, x2
    ldp     x1, x2, [x0, #144]
    msr     cpacr_el1, x1
    msr     tpidr_el1, x2
    ic      iallu
    tlbi    vmalle1
    dsb     nsh
    isb
    ldr     x1, [x0, #160]
    msr     sctlr_el1, x1
    isb
    ldr     x1, [x0]
    mov     sp, x1
    ldp     x18, x19, [x0, #8]
    ldp     x20, x21, [x0, #24]
    ldp     x22, x23, [x0, #40]
    ldp     x24, x25, [x0, #56]
    ldp     x26, x27, [x0, #72]
    ldp     x28, x29, [x0, #88]
    ldr     x30, [x0, #104]
    // What was stored past the caches may be older in them.
    add     x1, x0, #192
    dc      civac, x1
    dsb     sy
    mov     x0, #1
    lsl     x0, x0, #32
    ret
    "#
);

/// How a call that may lose the registers came back.
#[derive(PartialEq, Eq, Debug)]
enum Back {
    /// It returned this.
    Returned(i32),
    /// At its entry point, in reset state.
    Resumed,
}

/// Calls `function`; a CPU that comes back at its entry point has its interrupt controller set up again,
/// with the PPIs in `ppis` enabled.
fn suspend(function: u64, state: u64, ppis: &[u32]) -> Result<Back, gzvm_guest_kit::case::Verdict> {
    let cpu = arch::cpu_index().min(1);
    let saved = SAVED[cpu].0.get().cast::<u64>();
    // SAFETY: this CPU's own area; the assembly comes back exactly once.
    let result = unsafe {
        match machine::get().conduit {
            Conduit::Hvc => testguest_suspend_hvc(saved, function, state),
            Conduit::Smc => testguest_suspend_smc(saved, function, state),
        }
    };
    if result >> 32 == 0 {
        return Ok(Back::Returned(result as i32));
    }
    // SAFETY: as above.
    let found = unsafe { saved.cast::<[u64; 32]>().read_volatile() };
    // Not init_cpu: what is pending and active in the redistributor is to be found as it is.
    write_sysreg!("S3_0_C4_C6_0", 0xFF); // ICC_PMR_EL1
    write_sysreg!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
    arch::isb();
    check_eq!(found[FOUND], saved as u64, "x0, the context");
    check_eq!(found[FOUND + 1], 4, "CurrentEL");
    check_eq!(found[FOUND + 2] & 0x1005, 0, "SCTLR_EL1.{{M,C,I}}");
    check_eq!(found[FOUND + 3], 0x3C0, "DAIF");
    check_eq!(found[FOUND + 4], 1, "SPSel");
    for &ppi in ppis {
        check!(gic::bit(gicd::ISENABLER, ppi), "PPI {ppi} is not enabled any more");
    }
    Ok(Back::Resumed)
}

fn ours() -> Outcome {
    if below() != Below::Gzvm {
        skip!("KVM takes power-down as WFI, QEMU as nothing");
    }
    Ok(())
}

fn power_state_is_checked() -> Outcome {
    ours()?;
    gic::send_sgi(arch::mpidr(), 3);
    for bit in (17..24).chain(26..32) {
        let answer = psci::call(CPU_SUSPEND, &[1 << bit, 0, 0]);
        check_eq!(answer, error::INVALID_PARAMETERS, "power_state with bit {bit}");
    }
    let answer = psci::call(CPU_SUSPEND, &[0xDEAD_BEEF_0000_0000, 0, 0]);
    check_eq!(answer, error::SUCCESS, "power_state with bits above 31");
    check_eq!(gic::acknowledge(), 3, "interrupt");
    gic::end(3);
    Ok(())
}

fn entry_point_is_checked() -> Outcome {
    ours()?;
    for entry in [2, 1 << 40, u64::MAX] {
        check_eq!(psci::call(CPU_SUSPEND, &[DOWN, entry, 0]), error::INVALID_ADDRESS, "entry {entry:#x}");
        let answer = psci::call(CPU_DEFAULT_SUSPEND, &[entry, 0]);
        check_eq!(answer, error::INVALID_ADDRESS, "default, entry {entry:#x}");
        let answer = psci::call(SYSTEM_SUSPEND, &[entry, 0]);
        check_eq!(answer, error::INVALID_ADDRESS, "system, entry {entry:#x}");
    }
    Ok(())
}

/// Sleeps in `function` until the virtual timer, some times.
fn until_the_timer(function: u64, state: u64) -> Outcome {
    let intid = machine::get().timer_intid;
    gic::enable(intid);
    for round in 0..20 {
        let deadline = timer::now() + timer::frequency() / 200;
        timer::arm_at(deadline);
        let back = suspend(function, state, &[intid])?;
        let now = timer::now();
        // A slow machine may pass the deadline on the way in.
        if back == Back::Resumed || now < deadline {
            check_eq!(back, Back::Resumed, "way back, round {round}");
        }
        check!(now >= deadline, "{} ticks too early, round {round}", deadline - now);
        check_eq!(gic::acknowledge(), intid, "interrupt, round {round}");
        timer::disarm();
        gic::end(intid);
    }
    gic::disable(intid);
    Ok(())
}

fn power_down_until_the_timer() -> Outcome {
    ours()?;
    until_the_timer(CPU_SUSPEND, DOWN)
}

fn default_suspend_until_the_timer() -> Outcome {
    ours()?;
    until_the_timer(CPU_DEFAULT_SUSPEND, 0)
}

fn system_suspend_until_the_timer() -> Outcome {
    ours()?;
    until_the_timer(SYSTEM_SUSPEND, 0)
}

fn system_suspend_until_the_physical_timer() -> Outcome {
    ours()?;
    let intid = crate::ptimer::INTID;
    gic::enable(intid);
    for round in 0..20 {
        let deadline = timer::now() + timer::frequency() / 200;
        write_sysreg!("cntp_cval_el0", deadline);
        write_sysreg!("cntp_ctl_el0", 1);
        let back = suspend(SYSTEM_SUSPEND, 0, &[intid])?;
        check_eq!(back, Back::Resumed, "way back, round {round}");
        check!(timer::now() >= deadline, "too early, round {round}");
        check_eq!(gic::acknowledge(), intid, "interrupt, round {round}");
        write_sysreg!("cntp_ctl_el0", 0);
        gic::end(intid);
    }
    gic::disable(intid);
    Ok(())
}

fn power_down_with_a_wake_up_pending() -> Outcome {
    ours()?;
    gic::send_sgi(arch::mpidr(), 4);
    check_eq!(suspend(CPU_SUSPEND, DOWN, &[])?, Back::Returned(error::SUCCESS), "way back");
    check_eq!(gic::acknowledge(), 4, "interrupt");
    gic::end(4);
    Ok(())
}

fn system_suspend_with_an_spi_pending() -> Outcome {
    ours()?;
    gic::route(SPI, arch::mpidr());
    gic::enable(SPI);
    gic::set_bit(gicd::ISPENDR, SPI);
    check_eq!(suspend(SYSTEM_SUSPEND, 0, &[])?, Back::Resumed, "way back");
    check_eq!(gic::acknowledge(), SPI, "interrupt");
    gic::end(SPI);
    gic::disable(SPI);
    Ok(())
}

static STOP: AtomicBool = AtomicBool::new(false);

fn system_suspend_denied_with_another_cpu_on() -> Outcome {
    ours()?;
    STOP.store(false, SeqCst);
    start_second(|| {
        while !STOP.load(SeqCst) {
            arch::cpu_relax();
        }
    })?;
    let answer = psci::call(SYSTEM_SUSPEND, &[gzvm_guest_kit::boot::secondary_entry(), 0]);
    STOP.store(true, SeqCst);
    join_second()?;
    check_eq!(answer, error::DENIED, "SYSTEM_SUSPEND");
    Ok(())
}

/// Masked in ICC_PMR_EL1 and by group still wakes (the CPU interface is off); disabled does not.
fn disabled_interrupts_wake_nobody() -> Outcome {
    ours()?;
    let intid = machine::get().timer_intid;
    gic::disable(SPI);
    gic::set_bit(gicd::ISPENDR, SPI);
    gic::enable(intid);
    let deadline = timer::now() + timer::frequency() / 100;
    timer::arm_at(deadline);
    write_sysreg!("S3_0_C4_C6_0", 0); // ICC_PMR_EL1
    write_sysreg!("S3_0_C12_C12_7", 0); // ICC_IGRPEN1_EL1
    arch::isb();
    let back = suspend(SYSTEM_SUSPEND, 0, &[intid])?;
    check_eq!(back, Back::Resumed, "way back");
    check!(timer::now() >= deadline, "woken before the timer");
    check_eq!(gic::acknowledge(), intid, "interrupt");
    timer::disarm();
    gic::end(intid);
    gic::disable(intid);
    gic::set_bit(gicd::ICPENDR, SPI);
    Ok(())
}

/// Two CPUs down at once, each until the other's SGI or its own timer.
fn power_down_of_two_cpus() -> Outcome {
    ours()?;
    static FAILED: AtomicBool = AtomicBool::new(false);
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    FAILED.store(false, SeqCst);
    STOP.store(false, SeqCst);
    start_second(|| {
        gic::init_cpu();
        let intid = machine::get().timer_intid;
        gic::enable(intid);
        while !STOP.load(SeqCst) {
            timer::arm_at(timer::now() + timer::frequency() / 1000);
            if suspend(CPU_SUSPEND, DOWN, &[intid]).is_err() {
                FAILED.store(true, SeqCst);
                break;
            }
            timer::disarm();
            gic::send_sgi(machine::get().cpus[0], 7);
            let taken = gic::acknowledge();
            if taken < 1020 {
                gic::end(taken);
            }
        }
        gic::disable(intid);
    })?;
    let mut taken = 0;
    let outcome = (|| {
        for _ in 0..50 {
            suspend(CPU_SUSPEND, DOWN, &[])?;
            let intid = gic::acknowledge();
            if intid < 1020 {
                gic::end(intid);
                taken += 1;
            }
        }
        Ok(())
    })();
    STOP.store(true, SeqCst);
    join_second()?;
    while let intid @ ..1020 = gic::acknowledge() {
        gic::end(intid);
    }
    outcome?;
    check!(!FAILED.load(SeqCst), "the other CPU came back in a wrong state");
    check!(taken > 0, "no interrupt of the other CPU");
    Ok(())
}
