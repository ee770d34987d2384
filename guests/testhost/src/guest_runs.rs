// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Guests of a few instructions, run by hand: every exit and what comes back.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use gzvm_abi::hypercall::Function;
use gzvm_abi::reg;
use gzvm_abi::run::{Hypercall, Mmio, SystemEvent, exit, system_event};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::hypercall::{self, call};
use gzvm_guest_kit::{arch, cases, check, check_eq, fail, gic, machine, skip, smp, timer};

use crate::pages;
use crate::programs::{self, DEVICE, RAM, SPI};
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["guest":
    tour_of_exits, page_report_is_not_trusted, memory_is_the_hosts_pages, registers_of_the_host_survive,
    unknown_calls_of_a_guest, idle_and_timer, idle_and_spi, suspend_and_spi, own_timer_preempts_the_guest,
    who_probes_sleeps_shortly, busy_vcpu_of_the_public_driver_rests,
    second_vcpu_by_psci, guest_memory_is_coherent_with_two_cpus,
    two_vms_interleaved, vcpu_wanders_between_cpus, relinquished_page_comes_back_fresh, time_call_and_reset,
    blocks_from_the_mailbox, another_cpu_loses_a_relinquished_page,
];

/// The guest turns its machine off.
pub fn power_off(vm: &mut Vm) -> Outcome {
    let reason = vm.run(0)?;
    check_eq!(reason, exit::SYSTEM_EVENT, "last exit");
    let event = SystemEvent::read(&vm.report(0));
    check_eq!(event.type_, system_event::SHUTDOWN, "system event");
    Ok(())
}

/// The guest stores `value` to the device.
pub fn store(vm: &mut Vm, offset: u64, value: u64, what: &str) -> Outcome {
    check_eq!(vm.run_to_store(0)?, (offset, value), "{what} (offset, value)");
    Ok(())
}

pub fn load(vm: &mut Vm, offset: u64, size: u64, answer: u64) -> Outcome {
    let reason = vm.run(0)?;
    let mmio = Mmio::read(&vm.report(0));
    check_eq!(reason, exit::MMIO, "exit");
    check_eq!(
        (mmio.phys_addr, mmio.size, mmio.is_write),
        (DEVICE + offset, size, 0),
        "load (address, size, write)"
    );
    vm.answer(0, answer);
    Ok(())
}

/// The program `tour` from start to end; `in_load` may tamper with the first load's report.
fn tour(in_load: impl FnOnce(&Vm)) -> Outcome {
    tour_of(|_| {}, in_load)
}

fn tour_of(prepare: impl FnOnce(&mut Vm), in_load: impl FnOnce(&Vm)) -> Outcome {
    let mut vm = Vm::new(programs::tour(), 1)?;
    prepare(&mut vm);
    vm.set_reg(0, reg::X0, 0xFEED_0000_BEEF_1111)?;
    store(&mut vm, 0x10, 0xFEED_0000_BEEF_1111, "x0")?;
    load(&mut vm, 0, 4, 0x8765_4321)?;
    in_load(&vm);
    store(&mut vm, 0x20, 0x8765_4321, "4-byte load")?;
    store(&mut vm, 0x28, 0x2121, "another register after the load")?;
    load(&mut vm, 3, 1, 0x8F)?;
    store(&mut vm, 0x30, 0xFFFF_FFFF_FFFF_FF8F, "sign-extended load")?;
    store(&mut vm, 0x36, 0, "store of wzr")?;
    check_eq!(Mmio::read(&vm.report(0)).size, 2, "size of a half-word store");
    let (offset, version) = vm.run_to_store(0)?;
    check_eq!(offset, 0x38, "offset of PSCI_VERSION");
    check!((0x1_0000..0x2_0000).contains(&version), "PSCI_VERSION {version:#x}");
    let (_, mpidr) = vm.run_to_store(0)?;
    check_eq!(mpidr & 0xFF_00FF_FFFF, 0, "affinity of vCPU 0");
    store(&mut vm, 0x48, 4, "CurrentEL")?;
    store(&mut vm, 0x50, 0xFEED_0000_BEEF_1111, "word through memory")?;
    power_off(&mut vm)?;
    check!(vm.faults >= 1, "no page fault at all");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn tour_of_exits() -> Outcome {
    tour(|_| {})
}

/// Size and register of a pending load are the hypervisor's to remember, not the page's.
fn page_report_is_not_trusted() -> Outcome {
    tour(|vm| {
        let mut report = vm.report(0);
        let mut mmio = Mmio::read(&report);
        mmio.data = 0xFFFF_FFFF_8765_4321_u64.to_le_bytes();
        mmio.size = 0xFFFF_FFFF_FFFF_FFFF;
        mmio.reg_nr = 21;
        mmio.is_write = 1;
        mmio.phys_addr = RAM;
        mmio.write(&mut report);
        report.exit_reason = 0xFFFF_FFFF;
        report.padding1 = [0xFF; 3];
        pages::put(vm.shared[0], report);
    })
}

fn memory_is_the_hosts_pages() -> Outcome {
    let memory = pages::take(512, 2 << 20);
    let mut sum = 0u64;
    for i in 0..512 {
        let value = (i + 1) * 0x1_0001;
        pages::write(memory + i * 4096 + 0xFF8, value);
        sum += value;
    }
    let mut vm = Vm::with_memory(programs::reads_all(), 1, memory)?;
    store(&mut vm, 0x10, sum, "sum of 512 pages")?;
    power_off(&mut vm)?;
    check_eq!(vm.faults, 512, "page faults with single pages");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// What RUN may change in the host: x0..x3 (x0..x17 by the calling convention of 1.2).
fn registers_of_the_host_survive() -> Outcome {
    use gzvm_guest_kit::{read_sysreg, write_sysreg};
    let mut vm = Vm::new(programs::tour(), 1)?;
    macro_rules! values {
        ($($reg:literal),*) => { [$(read_sysreg!($reg)),*] };
    }
    macro_rules! registers {
        () => {
            values![
                "sctlr_el1",
                "ttbr0_el1",
                "ttbr1_el1",
                "tcr_el1",
                "mair_el1",
                "vbar_el1",
                "cpacr_el1",
                "tpidr_el0",
                "tpidr_el1",
                "tpidrro_el0",
                "contextidr_el1",
                "cntkctl_el1",
                "cntv_cval_el0",
                "cntv_ctl_el0",
                "sp_el0",
                "csselr_el1",
                "mdscr_el1",
                "S3_0_C4_C6_0",
                "S3_0_C12_C12_7",
                "mpidr_el1",
                "midr_el1"
            ]
        };
    }
    write_sysreg!("tpidr_el0", 0x1111_2222_3333_4444);
    write_sysreg!("tpidrro_el0", 0x5555_6666_7777_8888);
    write_sysreg!("contextidr_el1", 0x99);
    write_sysreg!("sp_el0", 0xAAAA_0000);
    write_sysreg!("cntv_cval_el0", 0x7FFF_0000_0000_0000);
    arch::isb();
    let before = registers!();
    vm.run_to_store(0)?;
    check_eq!(registers!(), before, "system registers after RUN with a store");
    load(&mut vm, 0, 4, 1)?;
    check_eq!(registers!(), before, "system registers after RUN with a load");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn unknown_calls_of_a_guest() -> Outcome {
    let mut vm = Vm::new(programs::calls_unknown(), 1)?;
    store(&mut vm, 0x10, u64::MAX, "an unknown call")?;
    store(&mut vm, 0x18, u64::MAX, "the host's CREATE_VM from a guest")?;
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// Runs through IDLE exits, waiting as they ask for, until another exit.
fn sleep_through(vm: &mut Vm, wake: impl Fn(u32)) -> Result<(u32, u32), gzvm_guest_kit::case::Verdict> {
    let mut idles = 0;
    loop {
        let reason = vm.run(0)?;
        if reason != exit::IDLE {
            return Ok((reason, idles));
        }
        idles += 1;
        let state = vm.hwstate(0);
        check!(state.vtimer_migrate != 0, "vtimer_migrate is 0: the driver would not sleep");
        check!(state.vtimer_delay > 0, "vtimer_delay is 0: the driver would not sleep");
        let limit = 30 * timer::frequency();
        check!(state.vtimer_delay <= limit, "vtimer_delay {:#x} is over 30 s", state.vtimer_delay);
        check!(idles < 1000, "the guest does not wake");
        wake(idles);
        let end = timer::now() + state.vtimer_delay.min(timer::frequency() / 100);
        while timer::now() < end {
            arch::cpu_relax();
        }
    }
}

fn idle_and_timer() -> Outcome {
    let mut vm = Vm::new(programs::sleeps(), 1)?;
    let (reason, idles) = sleep_through(&mut vm, |_| {})?;
    let mmio = Mmio::read(&vm.report(0));
    check_eq!(reason, exit::MMIO, "exit");
    check_eq!((mmio.phys_addr - DEVICE, u64::from_le_bytes(mmio.data)), (0x10, 27), "INTID");
    check!(idles > 0, "no IDLE exit");
    store(&mut vm, 0x18, 1, "not early")?;
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn idle_and_spi() -> Outcome {
    let mut vm = Vm::new(programs::waits_for_spi(), 1)?;
    let tuple = vm.tuple(0);
    let injected = AtomicBool::new(false);
    let (reason, idles) = sleep_through(&mut vm, |idles| {
        // Late enough that the guest sleeps, once.
        if idles == 2 {
            injected.store(call(Function::IrqLine, &[tuple, SPI, 1]).ok(), SeqCst);
        }
    })?;
    check!(injected.load(SeqCst) && idles >= 2, "IRQ_LINE failed or came too late ({idles} idle exits)");
    let mmio = Mmio::read(&vm.report(0));
    check_eq!(reason, exit::MMIO, "exit");
    check_eq!(u64::from_le_bytes(mmio.data), 32 + SPI, "INTID");
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// A driver that knows EXT_INFO is loaded, then one that does not: its sleeps are short, since it may miss a wake-up.
fn who_probes_sleeps_shortly() -> Outcome {
    let mut vm = Vm::new(programs::waits_for_spi(), 1)?;
    let mut delay = || {
        let reason = vm.run(0)?;
        check_eq!(reason, exit::IDLE, "exit");
        Ok(vm.hwstate(0).vtimer_delay)
    };
    check!(call(Function::ExtInfo, &[]).ok(), "EXT_INFO");
    let long = delay()?;
    check!(call(Function::Probe, &[16, 0, 0]).ok(), "PROBE");
    let short = delay()?;
    check!(call(Function::ExtInfo, &[]).ok(), "EXT_INFO again");
    check_eq!(delay()?, long, "delay after EXT_INFO again");
    let frequency = timer::frequency();
    check!(long > frequency && short <= frequency / 20, "sleeps of {long} and {short} ticks");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// The public driver goes back to RUN after IRQ whatever its kernel's scheduler wants: now and then it is told to sleep a moment.
/// A driver that says EXT_INFO looks for itself.
fn busy_vcpu_of_the_public_driver_rests() -> Outcome {
    let mut vm = Vm::new(programs::spins(), 1)?;
    gic::set_handler(|intid| {
        if intid == machine::get().timer_intid {
            timer::disarm();
        }
    });
    gic::enable(machine::get().timer_intid);
    let rests = |driver: Function| {
        check!(call(driver, &[16, 0, 0]).ok(), "{driver:?}");
        let (mut irqs, mut rests) = (0, 0);
        let end = timer::now() + timer::frequency() / 5;
        while timer::now() < end || irqs < 20 {
            timer::arm_at(timer::now() + timer::frequency() / 1000);
            match vm.run_once(0) {
                exit::EXCEPTION => drop(vm.map(RAM)),
                exit::IRQ => irqs += 1,
                exit::IDLE => {
                    let state = vm.hwstate(0);
                    let short = (1..=timer::frequency() / 1000).contains(&state.vtimer_delay);
                    check!(short && state.vtimer_migrate != 0, "a rest of {} ticks", state.vtimer_delay);
                    rests += 1;
                }
                other => fail!("exit {other:#x}"),
            }
            arch::irq_enable();
            arch::isb();
            arch::irq_disable();
        }
        Ok(rests)
    };
    let (public, ours) = (rests(Function::Probe)?, rests(Function::ExtInfo)?);
    check!(public >= 2 && ours == 0, "{public} rests of the public driver, {ours} of ours");
    vm.faults = 0;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// SYSTEM_SUSPEND shows the host IDLE and nothing else; an SPI that the host raises wakes the guest.
fn suspend_and_spi() -> Outcome {
    let mut vm = Vm::new(programs::suspends(), 1)?;
    let tuple = vm.tuple(0);
    let injected = AtomicBool::new(false);
    let (reason, idles) = sleep_through(&mut vm, |idles| {
        if idles == 5 {
            injected.store(call(Function::IrqLine, &[tuple, SPI, 1]).ok(), SeqCst);
        }
    })?;
    check_eq!((idles, injected.load(SeqCst)), (5, true), "idle exits, and IRQ_LINE at the last");
    let mmio = Mmio::read(&vm.report(0));
    let told = (reason, mmio.phys_addr - DEVICE, u64::from_le_bytes(mmio.data));
    check_eq!(told, (exit::MMIO, 0x10, 0x77), "context (exit, offset, value)");
    store(&mut vm, 0x18, 32 + SPI, "INTID")?;
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// The host's timer ends the run of a guest that never exits by itself, about in time.
fn own_timer_preempts_the_guest() -> Outcome {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    // Else it rests now and then.
    check!(call(Function::ExtInfo, &[]).ok(), "EXT_INFO");
    let mut vm = Vm::new(programs::spins(), 1)?;
    gic::set_handler(|intid| {
        if intid == machine::get().timer_intid {
            timer::disarm();
            TAKEN.fetch_add(1, SeqCst);
        }
    });
    gic::enable(machine::get().timer_intid);
    for round in 0..50 {
        TAKEN.store(0, SeqCst);
        let deadline = timer::now() + timer::frequency() / 1000;
        timer::arm_at(deadline);
        let mut reason = 0;
        let in_time = timer::wait_ms(5000, || {
            reason = vm.run_once(0);
            match reason {
                // The first page.
                exit::EXCEPTION => drop(vm.map(RAM)),
                exit::IRQ => {
                    arch::irq_enable();
                    arch::isb();
                    arch::irq_disable();
                }
                _ => {}
            }
            TAKEN.load(SeqCst) > 0
        });
        check!(in_time, "round {round}: no timer interrupt, last exit {reason:#x}");
        check_eq!(reason, exit::IRQ, "round {round}: exit");
        check!(timer::now() >= deadline, "round {round}: too early");
    }
    vm.faults = 0;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// The vCPU that [`runs_tuple`] runs.
pub static TUPLE: AtomicU64 = AtomicU64::new(0);
/// It is to stop.
pub static STOP: AtomicBool = AtomicBool::new(false);
/// Its last exit.
pub static LAST_EXIT: AtomicU32 = AtomicU32::new(0);

/// On another CPU: runs vCPU [`TUPLE`] until told to stop or until it does MMIO. Page faults stay for
/// the boot CPU.
pub fn runs_tuple() {
    gic::init_cpu();
    gic::set_handler(|_| {});
    while !STOP.load(SeqCst) {
        let reason = hypercall::call(Function::Run, &[TUPLE.load(SeqCst)]).values[0] as u32;
        LAST_EXIT.store(reason, SeqCst);
        if reason == exit::MMIO {
            break;
        }
        arch::irq_enable();
        arch::isb();
        arch::irq_disable();
    }
}

fn second_vcpu_by_psci() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let mut vm = Vm::new(programs::starts_second(), 2)?;
    check!(vm.map(RAM).ok(), "MAP_GUEST");
    // vCPU 1 is off: RUN parks it.
    let parked = vm.run_once(1);
    check!(parked == exit::IDLE || parked == exit::GZ, "exit {parked:#x} of a vCPU that is off");
    STOP.store(false, SeqCst);
    TUPLE.store(vm.tuple(1), SeqCst);
    if let Err(code) = smp::start(1, runs_tuple) {
        fail!("CPU 1 does not start: {code}");
    }
    let first = vm.run_to_store(0);
    let second = vm.run_to_store(0);
    let end = power_off(&mut vm);
    STOP.store(true, SeqCst);
    timer::wait_ms(2000, || {
        gic::send_sgi(machine::get().cpus[1], 1);
        timer::wait_ms(1, || false);
        smp::join_if_done(1)
    });
    check!(smp::is_off(1), "CPU 1 stays in RUN");
    check_eq!(first?, (0x10, 0), "CPU_ON's answer");
    check_eq!(second?, (0x18, 0x177), "MPIDR and context of vCPU 1");
    end?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// A guest that counts on CPU 1 is seen counting from CPU 0.
fn guest_memory_is_coherent_with_two_cpus() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let vm = Vm::new(programs::counts(), 1)?;
    check!(vm.map(RAM).ok(), "MAP_GUEST");
    STOP.store(false, SeqCst);
    TUPLE.store(vm.tuple(0), SeqCst);
    if let Err(code) = smp::start(1, runs_tuple) {
        fail!("CPU 1 does not start: {code}");
    }
    let counter = || {
        crate::vm::clean(vm.memory + 0x800, 8);
        pages::read(vm.memory + 0x800)
    };
    let first = counter();
    let counts = timer::wait_ms(5000, || counter() > first);
    STOP.store(true, SeqCst);
    let stopped = timer::wait_ms(5000, || {
        gic::send_sgi(machine::get().cpus[1], 1);
        timer::wait_ms(1, || false);
        smp::join_if_done(1)
    });
    check!(stopped, "an SGI does not end the guest's run on CPU 1");
    check_eq!(LAST_EXIT.load(SeqCst), exit::IRQ, "exit by the SGI");
    check!(counts, "the guest does not count");
    let rest = counter();
    timer::wait_ms(2, || false);
    check_eq!(counter(), rest, "counter of a guest that does not run");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// FP registers of the host across RUN.
/// Two VMs with different values, a step of each in turn.
fn two_vms_interleaved() -> Outcome {
    const VALUES: [u64; 2] = [0xAAAA_5555_0000_0001, 0x5555_AAAA_0000_0002];
    let mut vms = [Vm::new(programs::tour(), 1)?, Vm::new(programs::tour(), 1)?];
    for (vm, value) in vms.iter_mut().zip(VALUES) {
        vm.set_reg(0, reg::X0, value)?;
    }
    let mut each = |step: &dyn Fn(&mut Vm, u64) -> Outcome| {
        let [a, b] = &mut vms;
        step(a, VALUES[0])?;
        step(b, VALUES[1])
    };
    each(&|vm, value| store(vm, 0x10, value, "x0"))?;
    each(&|vm, value| load(vm, 0, 4, value & 0xFFFF_FFFF))?;
    each(&|vm, value| store(vm, 0x20, value & 0xFFFF_FFFF, "4-byte load"))?;
    each(&|vm, _| store(vm, 0x28, 0x2121, "another register"))?;
    each(&|vm, value| load(vm, 3, 1, value & 0x7F))?;
    each(&|vm, value| store(vm, 0x30, value & 0x7F, "1-byte load"))?;
    each(&|vm, _| store(vm, 0x36, 0, "store of wzr"))?;
    each(&|vm, _| vm.run_to_store(0).map(drop))?;
    each(&|vm, _| vm.run_to_store(0).map(drop))?;
    each(&|vm, _| store(vm, 0x48, 4, "CurrentEL"))?;
    each(&|vm, value| store(vm, 0x50, value, "word through memory"))?;
    each(&|vm, _| power_off(vm))?;
    let [a, b] = vms;
    a.destroy()?;
    b.destroy()?;
    pages::reset();
    Ok(())
}

/// Every RUN of the vCPU on another CPU than the one before.
fn vcpu_wanders_between_cpus() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    tour_of(|vm| vm.wanders = true, |_| {})?;
    let mut vm = Vm::new(programs::sleeps(), 1)?;
    vm.wanders = true;
    let (reason, _) = sleep_through(&mut vm, |_| {})?;
    check_eq!(reason, exit::MMIO, "exit");
    let mmio = Mmio::read(&vm.report(0));
    check_eq!(u64::from_le_bytes(mmio.data), 27, "INTID of the timer, armed on one CPU or the other");
    store(&mut vm, 0x18, 1, "not early")?;
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// MEM_RELINQUISH: the page leaves the VM, the driver hears of it, a later touch faults again and
/// finds what is there now.
fn relinquished_page_comes_back_fresh() -> Outcome {
    let memory = pages::take(512, 2 << 20);
    pages::write(memory + 0x1000, 0x1111);
    let mut vm = Vm::with_memory(programs::relinquishes(), 1, memory)?;
    store(&mut vm, 0x10, 0x1111, "word before")?;
    let before = vm.faults;
    let reason = vm.run(0)?;
    check_eq!(reason, exit::HYPERCALL, "exit of MEM_RELINQUISH");
    let call = Hypercall::read(&vm.report(0));
    check_eq!(call.args[0], u64::from(gzvm_abi::guest::MEM_RELINQUISH), "function");
    check_eq!(call.args[1], RAM + 0x1000, "address");
    pages::write(memory + 0x1000, 0x2222);
    crate::vm::clean(memory + 0x1000, 8);
    store(&mut vm, 0x18, 0, "answer")?;
    store(&mut vm, 0x20, 0x2222, "word afterwards")?;
    check_eq!(vm.faults, before + 1, "page faults by the second touch");
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn time_call_and_reset() -> Outcome {
    let mut vm = Vm::new(programs::asks_time(), 1)?;
    let reason = vm.run(0)?;
    check_eq!(reason, exit::HYPERCALL, "exit of PTP");
    let mut report = vm.report(0);
    let mut call = Hypercall::read(&report);
    check_eq!((call.args[0], call.args[1]), (u64::from(gzvm_abi::guest::PTP), 0), "function and counter");
    call.args = [1, 2, 3, 4, u64::MAX, u64::MAX, u64::MAX, u64::MAX];
    call.write(&mut report);
    pages::put(vm.shared[0], report);
    for (i, offset) in [0x10, 0x18, 0x20, 0x28].into_iter().enumerate() {
        store(&mut vm, offset, i as u64 + 1, "result of PTP")?;
    }
    let reason = vm.run(0)?;
    check_eq!(reason, exit::SYSTEM_EVENT, "last exit");
    check_eq!(SystemEvent::read(&vm.report(0)).type_, system_event::RESET, "system event");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// MAP_GUEST_BLOCK of the whole slot in steps of the batch size: no fault is left.
fn blocks_from_the_mailbox() -> Outcome {
    let memory = pages::take(512, 2 << 20);
    let mut sum = 0u64;
    for i in 0..512 {
        pages::write(memory + i * 4096 + 0xFF8, 3 * i + 7);
        sum += 3 * i + 7;
    }
    let mut vm = Vm::with_memory(programs::reads_all(), 1, memory)?;
    let batch = call(Function::EnableCap, &[0, gzvm_abi::hypercall::cap::QUERY_HYP_BATCH_PAGES]).values[0];
    check!((1..=512).contains(&batch), "batch of {batch} pages");
    for start in (0..512).step_by(batch as usize) {
        for i in 0..batch {
            pages::write(vm.mailbox + 8 * i, (memory >> 12) + start + i);
        }
        let reply = call(Function::MapGuestBlock, &[vm.id.into(), 0, (RAM >> 12) + start, batch]);
        check!(reply.ok(), "MAP_GUEST_BLOCK at page {start}: x0 = {:#x}", reply.x0);
    }
    store(&mut vm, 0x10, sum, "sum of 512 pages")?;
    check_eq!(vm.faults, 0, "page faults");
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// Translations of a page that leaves the VM go on all CPUs: a vCPU that never exits must not see
/// the old page any more. (QEMU drops a VMID's translations when VTTBR_EL2 changes, so only a vCPU
/// that stays in the guest can show this.)
fn another_cpu_loses_a_relinquished_page() -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let memory = pages::take(512, 2 << 20);
    let other_page = pages::take(1, 4096);
    pages::write(memory + 0x1000, 0x1111);
    pages::write(other_page, 0x2222);
    crate::vm::clean(other_page, 8);
    let mut vm = Vm::with_memory(programs::watches(), 2, memory)?;
    check!(vm.map(RAM).ok() && vm.map(RAM + 0x1000).ok(), "MAP_GUEST");
    STOP.store(false, SeqCst);
    TUPLE.store(vm.tuple(1), SeqCst);
    if let Err(code) = smp::start(1, runs_tuple) {
        fail!("CPU 1 does not start: {code}");
    }
    let outcome = (|| {
        check_eq!(vm.run(0)?, exit::HYPERCALL, "exit of MEM_RELINQUISH");
        let pfn = other_page >> 12;
        let reply = call(Function::MapGuest, &[vm.id.into(), 0, pfn, (RAM + 0x1000) >> 12, 1]);
        check!(reply.ok(), "MAP_GUEST of another page: x0 = {:#x}", reply.x0);
        check_eq!(vm.run_to_store(0)?, (0x10, 0), "answer");
        let seen = timer::wait_ms(3000, || smp::join_if_done(1));
        check!(seen, "vCPU 1 still sees the page that has left the VM");
        let mmio = Mmio::read(&vm.report(1));
        check_eq!(u64::from_le_bytes(mmio.data), 0x2222, "what vCPU 1 sees");
        Ok(())
    })();
    STOP.store(true, SeqCst);
    timer::wait_ms(5000, || {
        gic::send_sgi(machine::get().cpus[1], 1);
        timer::wait_ms(1, || false);
        smp::join_if_done(1)
    });
    vm.destroy()?;
    pages::reset();
    outcome
}
