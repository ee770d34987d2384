// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The kernel: a list of checks, each with its result line.

use core::fmt::Write;
use core::hint::spin_loop;
use core::panic::PanicInfo;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use aarch64_rt::{
    ExceptionHandlers, InitialPagetable, RegisterStateRef, Stack, entry, exception_handlers,
    initial_pagetable, set_exception_vector, start_core,
};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicError, GicV3, SgiTarget, SgiTargetGroup};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer, irq_enable, wfi};
use arm_sysregs::el0::accessors::{
    read_cntfrq_el0, read_cntvct_el0, write_cntv_ctl_el0, write_cntv_cval_el0,
};
use arm_sysregs::el0::registers::{CntvCtlEl0, CntvCvalEl0};
use smccc::{Hvc, psci};
use uart_16550::MmioSerialPort;

const UART: usize = 0x3F8;
const GICD: usize = 0x3FFF_0000;
const CPUS: usize = 2;
const GICR: usize = GICD - CPUS * 0x2_0000;
/// The virtual timer's PPI, and the SGI between the CPUs.
const TIMER: IntId = IntId::ppi(11);
const HELLO: IntId = IntId::sgi(3);
const GROUP: InterruptGroup = InterruptGroup::Group1;
/// How long anything may take.
const PATIENCE_S: u64 = 60;

/// Level-1 blocks: valid, AF; device memory that EL0 does not execute, and normal memory, inner shareable, not global.
const DEVICE: usize = 1 | 1 << 10 | 1 << 54;
const MEMORY: usize = 1 | 1 << 2 | 3 << 8 | 1 << 10 | 1 << 11;

initial_pagetable!({
    let mut map = [0; 512];
    map[0] = DEVICE;
    map[2] = MEMORY | 2 << 30;
    InitialPagetable(map)
});

// arm64 Image: branch, text offset, size, flags (little-endian, 4 KiB pages), magic.
core::arch::global_asm!(
    r#"
    .section .header, "a"
    b       entry
    .long   0
    .quad   0, 0x400000, 0x2, 0, 0, 0
    .ascii  "ARM\x64"
    .long   0
    "#
);

/// Interrupts that came: of the timer; of the other CPU, on CPU 0 and on CPU 1; all others.
static TICKS: AtomicU32 = AtomicU32::new(0);
static HELLOS: [AtomicU32; CPUS] = [const { AtomicU32::new(0) }; CPUS];
static OTHERS: AtomicU32 = AtomicU32::new(0);
/// When the last timer interrupt came.
static TICKED_AT: AtomicU64 = AtomicU64::new(0);

exception_handlers!(Handlers);
struct Handlers;

impl ExceptionHandlers for Handlers {
    extern "C" fn irq_current(_: RegisterStateRef) {
        let Some(intid) = GicCpuInterface::get_and_acknowledge_interrupt(GROUP) else { return };
        if intid == TIMER {
            TICKED_AT.store(count(), SeqCst);
            write_cntv_ctl_el0(CntvCtlEl0::empty());
            TICKS.fetch_add(1, SeqCst);
        } else if intid == HELLO {
            HELLOS[cpu()].fetch_add(1, SeqCst);
        } else {
            OTHERS.fetch_add(1, SeqCst);
        }
        GicCpuInterface::end_interrupt(intid, GROUP);
    }
}

fn count() -> u64 {
    read_cntvct_el0().bits()
}

fn second() -> u64 {
    read_cntfrq_el0().bits()
}

fn cpu() -> usize {
    (arm_sysregs::el1::accessors::read_mpidr_el1().bits() & 0xFF) as usize
}

/// Waits until `done`, polling.
fn within_patience(mut done: impl FnMut() -> bool) -> bool {
    let end = count() + PATIENCE_S * second();
    while count() < end {
        if done() {
            return true;
        }
        spin_loop();
    }
    false
}

fn say_hello(target: u16) -> bool {
    let target = SgiTarget::List { affinity3: 0, affinity2: 0, affinity1: 0, target_list: target };
    GicCpuInterface::send_sgi(HELLO, target, SgiTargetGroup::CurrentGroup1).is_ok()
}

static mut SECOND_STACK: Stack<16> = Stack::new();

/// CPU 1: wakes by an SGI, answers with one, turns off.
fn second_cpu() {
    set_exception_vector();
    GicCpuInterface::enable_system_register_el1();
    GicCpuInterface::set_priority_mask(0xFF);
    GicCpuInterface::enable_group1(true);
    irq_enable();
    while HELLOS[1].load(SeqCst) == 0 {
        wfi();
    }
    say_hello(1 << 0);
    let _ = psci::cpu_off::<Hvc>();
}

fn affinity_is(state: psci::AffinityState) -> bool {
    psci::affinity_info::<Hvc>(1, psci::LowestAffinityLevel::All) == Ok(state)
}

/// All of it; each result is told to `tell`.
fn checks(tell: &mut dyn FnMut(&str, bool)) {
    let version = psci::version::<Hvc>();
    tell("psci_version", version.is_ok_and(|v| v.major >= 1));
    tell("psci_affinity_of_a_cpu_that_is_off", affinity_is(psci::AffinityState::Off));

    let (Some(gicd), Some(gicr)) = (NonNull::new(GICD as *mut Gicd), NonNull::new(GICR as *mut GicrSgi))
    else {
        return tell("gic", false);
    };
    // SAFETY: the distributor's registers, mapped as a device, and used here only.
    let gicd = unsafe { UniqueMmioPointer::new(gicd) };
    // SAFETY: likewise the redistributors'.
    let Ok(mut gic) = (unsafe { GicV3::new(gicd, gicr, CPUS) }) else { return tell("gic", false) };
    gic.setup(0);
    GicCpuInterface::set_priority_mask(0xFF);
    for cpu in 0..CPUS {
        for intid in [HELLO, TIMER] {
            let set = gic.set_interrupt_priority(intid, Some(cpu), 0x80);
            tell("gic_priority", set.is_ok());
            tell("gic_enable", gic.enable_interrupt(intid, Some(cpu), true).is_ok());
        }
    }
    tell("gic_trigger", gic.set_trigger(TIMER, Some(0), Trigger::Level).is_ok());
    irq_enable();
    tell("gic_sgi_to_itself", say_hello(1 << 0) && within_patience(|| HELLOS[0].load(SeqCst) == 1));

    for tick in 1..=10 {
        let deadline = count() + second() / 100;
        write_cntv_cval_el0(CntvCvalEl0::from_bits_retain(deadline));
        write_cntv_ctl_el0(CntvCtlEl0::ENABLE);
        while TICKS.load(SeqCst) < tick && count() < deadline + PATIENCE_S * second() {
            wfi();
        }
        if TICKS.load(SeqCst) != tick || TICKED_AT.load(SeqCst) < deadline {
            tell("timer_wakes_from_wfi", false);
        }
    }
    tell("timer_wakes_from_wfi", TICKS.load(SeqCst) == 10);

    // KVM's are always awake.
    let awake = gic.redistributor_mark_core_awake(1);
    tell("gic_wakes_the_second_cpu", matches!(awake, Ok(()) | Err(GicError::AlreadyAwake)));
    // SAFETY: nothing else uses the stack; the identity map is that of both CPUs.
    let started = unsafe { start_core::<Hvc, _, 16>(1, &raw mut SECOND_STACK, second_cpu) };
    tell("psci_cpu_on", started.is_ok());
    tell("psci_cpu_is_on", within_patience(|| affinity_is(psci::AffinityState::On)));
    tell("gic_sgi_there_and_back", say_hello(1 << 1) && within_patience(|| HELLOS[0].load(SeqCst) == 2));
    tell("psci_cpu_is_off", within_patience(|| affinity_is(psci::AffinityState::Off)));
    tell("no_other_interrupts", OTHERS.load(SeqCst) == 0);
}

entry!(main);
fn main(_fdt: u64, _: u64, _: u64, _: u64) -> ! {
    // SAFETY: the UART's registers, mapped as a device, and used here only.
    let mut uart = unsafe { MmioSerialPort::new(UART) };
    uart.init();
    let _ = writeln!(uart, "a kernel of other people's crates");
    let (mut passed, mut failed) = (0, 0);
    checks(&mut |name, good| {
        *if good { &mut passed } else { &mut failed } += 1;
        let _ = writeln!(uart, "[{}] {name}", if good { "PASS" } else { "FAIL" });
    });
    let _ = writeln!(uart, "[DONE] passed={passed} failed={failed} skipped=0");
    let _ = psci::system_off::<Hvc>();
    panic!("SYSTEM_OFF returned");
}

#[panic_handler]
fn panic(_: &PanicInfo) -> ! {
    let _ = psci::system_reset::<Hvc>();
    loop {
        spin_loop();
    }
}
