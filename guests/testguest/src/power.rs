// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI: what every function answers, the state a CPU starts in, and races.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering::SeqCst};

use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::psci::{self, AFFINITY_OFF, error, function};
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{arch, boot, cases, check, check_eq, gic, machine, skip, smp, timer};

use crate::util::{Below, below, join_second, start_second};

pub const CASES: &[Case] = cases!["psci":
    version_and_features, cpu_on_of_itself, cpu_on_of_a_running_cpu, cpu_on_of_nobody, cpu_on_checks_the_entry,
    cpu_on_ignores_upper_halves, affinity_info, state_of_a_new_cpu, off_and_on_again, race_for_a_cpu,
    features_match_calls, affinity_levels, migration_is_nobodys, memory_protection,
    suspend_with_a_pending_wake_up, suspend_until_the_timer, sgi_to_a_cpu_that_is_off,
];

fn version_and_features() -> Outcome {
    let version = psci::call(function::VERSION, &[]);
    check!(version >= 0x1_0000, "version {version:#x} is older than 1.0");
    for f in [
        function::VERSION,
        function::CPU_SUSPEND,
        function::CPU_OFF,
        function::CPU_ON,
        function::CPU_ON_32,
        function::AFFINITY_INFO,
        function::SYSTEM_OFF,
        function::SYSTEM_RESET,
        function::FEATURES,
    ] {
        let answer = psci::call(function::FEATURES, &[f]);
        check!(answer >= 0, "FEATURES of {f:#x}: {answer}");
    }
    check_eq!(psci::call(function::FEATURES, &[0x8400_0FFF]), error::NOT_SUPPORTED, "FEATURES of nothing");
    let migrate = psci::call(function::MIGRATE_INFO_TYPE, &[]);
    check!(migrate == 2 || migrate == error::NOT_SUPPORTED, "MIGRATE_INFO_TYPE {migrate}");
    Ok(())
}

fn cpu_on_of_itself() -> Outcome {
    check_eq!(psci::cpu_on(arch::mpidr(), boot::secondary_entry(), 0), error::ALREADY_ON, "CPU_ON");
    Ok(())
}

static STOP: AtomicBool = AtomicBool::new(false);

fn until_stopped() {
    while !STOP.load(SeqCst) {
        arch::cpu_relax();
    }
}

fn cpu_on_of_a_running_cpu() -> Outcome {
    STOP.store(false, SeqCst);
    start_second(until_stopped)?;
    let answer = psci::cpu_on(machine::get().cpus[1], boot::secondary_entry(), 1);
    STOP.store(true, SeqCst);
    join_second()?;
    check_eq!(answer, error::ALREADY_ON, "CPU_ON");
    Ok(())
}

fn cpu_on_of_nobody() -> Outcome {
    for mpidr in [0x7F, 0x0F00, 0xFF_0000, 0xFF_0000_0000, 1 << 24, 1 << 63, u64::MAX, 1 << 31 | 0x7E] {
        let answer = psci::cpu_on(mpidr, boot::secondary_entry(), 0);
        check_eq!(answer, error::INVALID_PARAMETERS, "CPU_ON of {mpidr:#x}");
    }
    Ok(())
}

fn cpu_on_checks_the_entry() -> Outcome {
    if below() != Below::Gzvm {
        skip!("others look later");
    }
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let second = machine::get().cpus[1];
    for entry in [2, 1 << 40, u64::MAX] {
        check_eq!(psci::cpu_on(second, entry, 0), error::INVALID_ADDRESS, "CPU_ON at {entry:#x}");
        check_eq!(psci::affinity_info(second), AFFINITY_OFF, "CPU 1 afterwards");
    }
    Ok(())
}

fn cpu_on_ignores_upper_halves() -> Outcome {
    if below() == Below::Nothing {
        skip!("QEMU's own PSCI looks at all of it");
    }
    let mpidr = 0xDEAD_0000_0000_0000 | arch::mpidr();
    let answer = psci::call(function::CPU_ON_32, &[mpidr, boot::secondary_entry(), 0]);
    check_eq!(answer, error::ALREADY_ON, "CPU_ON (SMC32)");
    Ok(())
}

fn affinity_info() -> Outcome {
    check_eq!(psci::affinity_info(arch::mpidr()), 0, "of this CPU");
    check_eq!(psci::affinity_info(0x7F), error::INVALID_PARAMETERS, "of nobody");
    for cpu in 1..smp::count() {
        check_eq!(psci::affinity_info(machine::get().cpus[cpu]), AFFINITY_OFF, "of CPU {cpu}");
    }
    if below() != Below::Nothing {
        let level = psci::call(function::AFFINITY_INFO, &[arch::mpidr(), 4]);
        check_eq!(level, error::INVALID_PARAMETERS, "of level 4");
    }
    Ok(())
}

/// PSCI_FEATURES says what a call with wrong arguments shows.
fn features_match_calls() -> Outcome {
    if below() == Below::Nothing {
        skip!("QEMU's own PSCI answers MIGRATE's features as 0");
    }
    // MIGRATE, MIGRATE_INFO_UP_CPU, CPU_FREEZE, NODE_HW_STATE, SET_SUSPEND_MODE, STAT_RESIDENCY, STAT_COUNT,
    // and numbers that have no function.
    for n in [5u64, 7, 0xB, 0xD, 0xF, 0x10, 0x11, 0x1A, 0x1F] {
        for function in [0x8400_0000 | n, 0xC400_0000 | n] {
            let features = psci::call(function::FEATURES, &[function]);
            let answer = psci::call(function, &[0x7F, 9, 0]);
            check_eq!(features < 0, answer == error::NOT_SUPPORTED, "{function:#x}: {features}, {answer}");
        }
    }
    // No SMC64 form of these.
    for n in [0u64, 2, 6, 8, 9, 0xA] {
        let features = psci::call(function::FEATURES, &[0xC400_0000 | n]);
        check!(features < 0 || below() != Below::Gzvm, "FEATURES of SMC64 {n:#x}: {features}");
    }
    Ok(())
}

fn affinity_levels() -> Outcome {
    if below() == Below::Nothing {
        skip!("QEMU's own PSCI has level 0 only");
    }
    let me = arch::mpidr();
    for level in 0..4 {
        let below_level = (1u64 << (8 * level)) - 1;
        check_eq!(psci::call(function::AFFINITY_INFO, &[me | below_level, level]), 0, "level {level}");
    }
    let answer = psci::call(function::AFFINITY_INFO, &[0xFF_0000, 2]);
    check_eq!(answer, error::INVALID_PARAMETERS, "level 2 of nobody");
    Ok(())
}

fn migration_is_nobodys() -> Outcome {
    if below() == Below::Nothing {
        skip!("QEMU's own PSCI answers otherwise");
    }
    for function in [0x8400_0005u64, 0xC400_0005, 0x8400_0007, 0xC400_0007] {
        check_eq!(psci::call(function, &[arch::mpidr()]), error::NOT_SUPPORTED, "{function:#x}");
    }
    Ok(())
}

/// MEM_PROTECT tells what it was; the range check knows what is memory.
fn memory_protection() -> Outcome {
    const MEM_PROTECT: u64 = 0x8400_0013;
    const CHECK_RANGE: u64 = 0xC400_0014;
    if psci::call(function::FEATURES, &[MEM_PROTECT]) < 0 {
        check!(below() != Below::Gzvm, "no MEM_PROTECT");
        skip!("no MEM_PROTECT");
    }
    check_eq!(psci::call(MEM_PROTECT, &[1]), 0, "MEM_PROTECT on, first");
    check_eq!(psci::call(MEM_PROTECT, &[1]), 1, "MEM_PROTECT on, again");
    check_eq!(psci::call(MEM_PROTECT, &[0]), 1, "MEM_PROTECT off");
    check_eq!(psci::call(MEM_PROTECT, &[0]), 0, "MEM_PROTECT off, again");
    check_eq!(psci::call(MEM_PROTECT, &[2]), error::INVALID_PARAMETERS, "MEM_PROTECT 2");
    for memory in &machine::get().memory {
        let (start, size) = (memory.start, memory.size);
        for (base, length) in [(start, size), (start, 1), (start + size - 1, 1), (start + 5, size - 5)] {
            check_eq!(psci::call(CHECK_RANGE, &[base, length]), 0, "{base:#x} + {length:#x}");
        }
        for (base, length) in [(start, 0), (start, u64::MAX), (start + size - 1, 1 << 40), (0x0900_0000, 1)] {
            check_eq!(psci::call(CHECK_RANGE, &[base, length]), error::DENIED, "{base:#x} + {length:#x}");
        }
    }
    Ok(())
}

/// What a CPU found when it started; written with the MMU off.
#[repr(C, align(64))]
struct Found(UnsafeCell<[u64; 8]>);
// SAFETY: one CPU writes, then the boot CPU reads after it has turned off.
unsafe impl Sync for Found {}
static FOUND: Found = Found(UnsafeCell::new([0; 8]));

unsafe extern "C" {
    safe fn power_probe_hvc() -> !;
    safe fn power_probe_smc() -> !;
}

global_asm!(
    r#"
    .macro  power_probe name, conduit
    .global \name
\name:
    str     x0, [x0]
    mrs     x1, CurrentEL
    str     x1, [x0, #8]
    mrs     x1, sctlr_el1
    str     x1, [x0, #16]
    mrs     x1, daif
    str     x1, [x0, #24]
    mrs     x1, SPSel
    str     x1, [x0, #32]
    mrs     x1, mpidr_el1
    str     x1, [x0, #40]
    mov     w0, #0x84000000
    add     w0, w0, #2
    \conduit #0
    b       .
    .endm
    .section .text.power, "ax"
    power_probe power_probe_hvc, hvc
    power_probe power_probe_smc, smc
    "#
);

fn state_of_a_new_cpu() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    // One that has run before, with its MMU on.
    start_second(|| {})?;
    join_second()?;
    let entry = match machine::get().conduit {
        Conduit::Hvc => power_probe_hvc as *const () as u64,
        Conduit::Smc => power_probe_smc as *const () as u64,
    };
    let found = FOUND.0.get().cast::<u64>();
    // SAFETY: our own memory; the CPU writes past the caches, so that none may hold it.
    unsafe {
        for i in 0..8 {
            found.add(i).write_volatile(0);
        }
        core::arch::asm!("dc civac, {}", "dsb sy", in(reg) found);
    }
    let mpidr = machine::get().cpus[1];
    check_eq!(psci::cpu_on(mpidr, entry, found as u64), error::SUCCESS, "CPU_ON");
    check!(
        timer::wait_ms(10_000, || psci::affinity_info(mpidr) == AFFINITY_OFF),
        "the CPU does not turn off"
    );
    // SAFETY: as above; the CPU is off.
    let found = unsafe {
        core::arch::asm!("dc ivac, {}", "dsb sy", in(reg) found);
        found.cast::<[u64; 8]>().read_volatile()
    };
    check_eq!(found[0], FOUND.0.get() as u64, "x0, the context");
    check_eq!(found[1], 4, "CurrentEL");
    check_eq!(found[2] & 0x1005, 0, "SCTLR_EL1.{{M,C,I}}");
    check_eq!(found[3], 0x3C0, "DAIF");
    check_eq!(found[4], 1, "SPSel");
    check_eq!(found[5] & 0xFF_00FF_FFFF, mpidr, "MPIDR");
    Ok(())
}

fn off_and_on_again() -> Outcome {
    static RUNS: AtomicU32 = AtomicU32::new(0);
    RUNS.store(0, SeqCst);
    for i in 0..100 {
        start_second(|| {
            RUNS.fetch_add(1, SeqCst);
        })?;
        join_second()?;
        check_eq!(RUNS.load(SeqCst), i + 1, "runs");
    }
    Ok(())
}

/// Two CPUs turn on a third: one of them wins.
fn race_for_a_cpu() -> Outcome {
    static GO: AtomicBool = AtomicBool::new(false);
    static OTHER: AtomicI32 = AtomicI32::new(0);
    if smp::count() < 3 {
        skip!("fewer than 3 CPUs");
    }
    let entry = match machine::get().conduit {
        Conduit::Hvc => power_probe_hvc as *const () as u64,
        Conduit::Smc => power_probe_smc as *const () as u64,
    };
    for round in 0..50 {
        GO.store(false, SeqCst);
        OTHER.store(-100, SeqCst);
        start_second(|| {
            let entry = match machine::get().conduit {
                Conduit::Hvc => power_probe_hvc as *const () as u64,
                Conduit::Smc => power_probe_smc as *const () as u64,
            };
            while !GO.load(SeqCst) {
                arch::cpu_relax();
            }
            OTHER.store(psci::cpu_on(machine::get().cpus[2], entry, FOUND.0.get() as u64), SeqCst);
        })?;
        GO.store(true, SeqCst);
        let mine = psci::cpu_on(machine::get().cpus[2], entry, FOUND.0.get() as u64);
        join_second()?;
        let other = OTHER.load(SeqCst);
        let off = timer::wait_ms(10_000, || psci::affinity_info(machine::get().cpus[2]) == AFFINITY_OFF);
        check!(off, "CPU 2 does not turn off");
        // The CPU turns itself off again at once, so both may win, one after the other.
        let fair = |answer| [error::SUCCESS, error::ALREADY_ON, error::ON_PENDING].contains(&answer);
        check!(fair(mine) && fair(other), "round {round}: {mine} and {other}");
        check!(mine == 0 || other == 0, "round {round}: nobody won ({mine}, {other})");
    }
    Ok(())
}

fn suspend_with_a_pending_wake_up() -> Outcome {
    gic::send_sgi(arch::mpidr(), 3);
    let answer = psci::call(function::CPU_SUSPEND, &[0, boot::secondary_entry(), 0]);
    let taken = gic::acknowledge();
    if taken < 1020 {
        gic::end(taken);
    }
    check_eq!(answer, error::SUCCESS, "CPU_SUSPEND (standby)");
    check_eq!(taken, 3, "interrupt");
    Ok(())
}

fn suspend_until_the_timer() -> Outcome {
    let intid = machine::get().timer_intid;
    gic::enable(intid);
    for round in 0..20 {
        let deadline = timer::now() + timer::frequency() / 1000;
        timer::arm_at(deadline);
        let mut answer = 0;
        // Spurious returns are allowed.
        let woke = timer::wait_ms(5000, || {
            answer = psci::call(function::CPU_SUSPEND, &[0, boot::secondary_entry(), 0]);
            timer::now() >= deadline
        });
        check_eq!(answer, error::SUCCESS, "CPU_SUSPEND, round {round}");
        check!(woke, "slept on, round {round}");
        timer::disarm();
    }
    gic::disable(intid);
    Ok(())
}

/// The SGI waits for the CPU, or is lost; nothing else happens.
fn sgi_to_a_cpu_that_is_off() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    for _ in 0..100 {
        gic::send_sgi(machine::get().cpus[1], 5);
        gic::send_sgi_others(6);
    }
    start_second(gic::init_cpu)?;
    join_second()
}
