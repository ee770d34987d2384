// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a hostile or clumsy host does: races of teardown and run, rewritten argument pages,
//! exhaustion, leaks.

use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, RegionHeader, Status};
use gzvm_abi::reg;
use gzvm_abi::run::exit;
use gzvm_guest_kit::case::{Case, Outcome, Verdict};
use gzvm_guest_kit::hypercall::{self, call};
use gzvm_guest_kit::{arch, cases, check, check_eq, fail, gic, machine, println, skip, smp, timer};

use crate::host::hypervisor_memory;
use crate::pages;
use crate::programs::{self, RAM};
use crate::protected::counter;
use crate::vm::{self, RAM_PAGES, Vm};

pub const CASES: &[Case] = cases!["abuse":
    same_vcpu_on_two_cpus, destroy_while_running, calls_while_destroying, argument_page_rewritten,
    as_many_vms_as_fit, nothing_leaks, vm_ids_are_fresh,
    no_stale_translations,
    new_vm_has_a_new_gic, survives_it_all,
];

/// What must be as before once a test is over.
pub fn counters() -> Result<[(Counter, u64); 6], Verdict> {
    let names = [
        Counter::Vms,
        Counter::Vcpus,
        Counter::PoolUsed,
        Counter::PagesShared,
        Counter::PagesPrivate,
        Counter::PagesHypervisor,
    ];
    let mut all = names.map(|c| (c, 0));
    for (counter, value) in &mut all {
        let Some(now) = hypercall::counter(*counter) else { fail!("no counter {counter:?}") };
        *value = now;
    }
    Ok(all)
}

static TUPLE: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
/// How often [`start_runner`]'s CPU has called RUN.
pub static RUNS: AtomicU32 = AtomicU32::new(0);

fn runs_tuple() {
    gic::init_cpu();
    gic::set_handler(|_| {});
    while !STOP.load(SeqCst) {
        RUNS.fetch_add(1, SeqCst);
        call(Function::Run, &[TUPLE.load(SeqCst)]);
        arch::irq_enable();
        arch::isb();
        arch::irq_disable();
    }
}

/// Runs `tuple` on CPU 1 in a loop.
pub fn start_runner(tuple: u64) -> Outcome {
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    STOP.store(false, SeqCst);
    RUNS.store(0, SeqCst);
    TUPLE.store(tuple, SeqCst);
    if let Err(code) = smp::start(1, runs_tuple) {
        fail!("CPU 1 does not start: {code}");
    }
    check!(timer::wait_ms(5000, || RUNS.load(SeqCst) > 0), "CPU 1 does not run");
    timer::wait_ms(2, || false);
    Ok(())
}

/// Takes CPU 1 out of it.
pub fn stop_runner() -> Outcome {
    STOP.store(true, SeqCst);
    let stopped = timer::wait_ms(10_000, || {
        gic::send_sgi(machine::get().cpus[1], 1);
        timer::wait_ms(1, || false);
        smp::join_if_done(1)
    });
    check!(stopped, "CPU 1 does not come back from RUN");
    Ok(())
}

fn same_vcpu_on_two_cpus() -> Outcome {
    let vm = Vm::new(programs::spins(), 1)?;
    check!(vm.map(RAM).ok(), "MAP_GUEST");
    start_runner(vm.tuple(0))?;
    // Every answer but a run is fine; and it must come.
    for round in 0..100 {
        let reason = vm.run_once(0);
        if reason != exit::FAIL_ENTRY && reason != exit::GZ && reason != exit::IRQ {
            stop_runner()?;
            fail!("round {round}: exit {reason:#x}");
        }
    }
    stop_runner()?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn destroy_while_running() -> Outcome {
    let before = counters()?;
    for round in 0..10 {
        let vm = Vm::new(if round % 2 == 0 { programs::spins() } else { programs::loads() }, 1)?;
        check!(vm.map(RAM).ok(), "MAP_GUEST");
        let tuple = vm.tuple(0);
        start_runner(tuple)?;
        let destroyed = vm.destroy();
        stop_runner()?;
        destroyed?;
        pages::reset();
        // The runner's own last RUN may have ended before the destruction began.
        let after = call(Function::Run, &[tuple]).values[0] as u32;
        check_eq!(after, exit::FAIL_ENTRY, "round {round}: exit of RUN after the destruction");
        check_eq!(counters()?, before, "round {round}: counters");
    }
    Ok(())
}

/// Everything else on CPU 1 while CPU 0 creates and destroys the VM those calls are about.
fn calls_while_destroying() -> Outcome {
    static SHARED: AtomicU64 = AtomicU64::new(0);
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let before = counters()?;
    STOP.store(false, SeqCst);
    TUPLE.store(0, SeqCst);
    let started = smp::start(1, || {
        while !STOP.load(SeqCst) {
            let tuple = TUPLE.load(SeqCst);
            let id = tuple >> 16;
            let page = SHARED.load(SeqCst);
            call(Function::IrqLine, &[tuple, 3, 1]);
            call(Function::SetOneReg, &[tuple, reg::X0, 1]);
            call(Function::MapGuest, &[id, 0, page >> 12, RAM >> 12, 1]);
            call(Function::GetStatistics, &[id]);
            call(Function::InformExit, &[id]);
            call(Function::SetDtbConfig, &[id, RAM, 4096]);
            call(Function::DestroyVcpu, &[tuple | 1]);
            call(Function::DestroyVm, &[id ^ 1, 1]);
        }
    });
    if let Err(code) = started {
        fail!("CPU 1 does not start: {code}");
    }
    let spare = pages::take(1, 4096);
    SHARED.store(spare, SeqCst);
    let outcome = (|| {
        for _ in 0..40 {
            let id = vm::create_bare()?;
            TUPLE.store(u64::from(id) << 16, SeqCst);
            let buffer = pages::take(2, 4096);
            pages::put(buffer, RegionHeader { slot: 0, constituent_cnt: 0, total_pages: 16, gpa: RAM });
            call(Function::SetMemregion, &[id.into(), 8192, buffer]);
            call(Function::CreateVcpu, &[u64::from(id) << 16, pages::take(2, 4096)]);
            timer::wait_ms(1, || false);
            // CPU 1 may have hit this one, too, which is a destruction all the same.
            vm::destroy(id)?;
        }
        Ok(())
    })();
    STOP.store(true, SeqCst);
    if let Err(code) = smp::join(1) {
        fail!("CPU 1 does not end: {code}");
    }
    pages::reset();
    outcome?;
    check_eq!(counters()?, before, "counters");
    Ok(())
}

/// A second CPU rewrites region buffer and mailbox while the hypervisor reads them: between a page of the host's in the slot, and
/// one of the hypervisor's, or a place outside. What a call maps is what it has judged, so all of it goes with UNMAP_GUEST of the slot.
fn argument_page_rewritten() -> Outcome {
    const GPA: u64 = offset_of!(RegionHeader, gpa) as u64;
    const PAGES: u64 = offset_of!(RegionHeader, total_pages) as u64;
    static BUFFER: AtomicU64 = AtomicU64::new(0);
    static MAILBOX: AtomicU64 = AtomicU64::new(0);
    static GOOD: AtomicU64 = AtomicU64::new(0);
    static BAD: AtomicU64 = AtomicU64::new(0);
    if smp::count() < 2 {
        skip!("one CPU only");
    }
    let before = counters()?;
    BAD.store(hypervisor_memory()?.start >> 12, SeqCst);
    let vm = Vm::new(programs::reads_all(), 1)?;
    GOOD.store(vm.memory >> 12, SeqCst);
    MAILBOX.store(vm.mailbox, SeqCst);
    let buffer = pages::take(2, 4096);
    BUFFER.store(buffer, SeqCst);
    // Its one constituent stays as it is.
    pages::write(buffer + 24, vm.memory + 4096);
    pages::write(buffer + 32, 1);
    STOP.store(false, SeqCst);
    let started = smp::start(1, || {
        let (buffer, mailbox) = (BUFFER.load(SeqCst), MAILBOX.load(SeqCst));
        let (good, bad) = (GOOD.load(SeqCst), BAD.load(SeqCst));
        let (inside, outside) = (RAM + 4096, RAM + (RAM_PAGES << 12));
        let mut wild = 0;
        while !STOP.load(SeqCst) {
            // Slot 0, one constituent; of one page.
            pages::write(buffer, 1 << 32);
            pages::write(buffer + PAGES, 1);
            // One state a round: QEMU stops a CPU between rounds rather than within one.
            for n in 0..1000 {
                let (frame, gpa) = if n & 1 == 0 { (good, inside) } else { (bad, outside) };
                pages::write(mailbox, frame);
                pages::write(buffer + GPA, gpa);
            }
            pages::write(buffer + GPA, wild);
            pages::write(buffer + PAGES, wild);
            pages::write(buffer, wild | 0xFFFF);
            pages::write(mailbox, wild);
            wild = (wild << 1) | 1;
        }
    });
    if let Err(code) = started {
        fail!("CPU 1 does not start: {code}");
    }
    let outcome = rounds_of_rewritten(&vm, buffer);
    STOP.store(true, SeqCst);
    if let Err(code) = smp::join(1) {
        fail!("CPU 1 does not end: {code}");
    }
    outcome?;
    vm.destroy()?;
    pages::reset();
    check_eq!(counters()?, before, "counters");
    Ok(())
}

/// Calls until each has been let through after it was refused, or the other way round, often enough: that is how often the other CPU
/// was at work just then.
fn rounds_of_rewritten(vm: &Vm, buffer: u64) -> Outcome {
    const ENOUGH: u32 = 1000;
    /// On a PC that has other things to do: most mistakes are found in the first few.
    const AT_LEAST: u32 = 20;
    let shared = counter(Counter::PagesShared)?;
    // Calls that read the mailbox, and the buffer.
    let (mut last, mut turns) = ([false; 2], [0u32; 2]);
    // The mailbox names one page, which comes to a place of its own each time.
    let mut gfn = (RAM >> 12) + 2;
    let mut outcome = Ok(());
    timer::wait_ms(10_000, || {
        for _ in 0..100 {
            let done = [
                vm.call(Function::MapGuestBlock, &[0, gfn, 1]).ok(),
                vm.call(Function::SetMemregion, &[REGION_BUFFER_SIZE, buffer]).ok(),
            ];
            gfn += u64::from(done[0]);
            for (n, done) in done.into_iter().enumerate() {
                turns[n] += u32::from(done != last[n]);
                last[n] = done;
            }
            if gfn == (RAM >> 12) + RAM_PAGES {
                break;
            }
        }
        gfn = (RAM >> 12) + 2;
        let back = unmap_all(vm);
        let left = hypercall::counter(Counter::PagesShared).unwrap_or(u64::MAX).wrapping_sub(shared);
        if !back || left != 0 {
            outcome = Err(Verdict::fail(format_args!(
                "after {turns:?} turns: UNMAP_GUEST {back}, {left} pages shared after it"
            )));
        }
        outcome.is_err() || turns.iter().all(|n| *n >= ENOUGH)
    });
    outcome?;
    check!(turns.iter().all(|n| *n >= AT_LEAST), "only {turns:?} turns");
    Ok(())
}

/// UNMAP_GUEST of a VM's slot.
fn unmap_all(vm: &Vm) -> bool {
    loop {
        let reply = vm.call(Function::UnmapGuest, &[RAM >> 12, RAM_PAGES]);
        if reply.status() != Some(Status::Busy) {
            return reply.ok();
        }
    }
}

fn as_many_vms_as_fit() -> Outcome {
    static IDS: gzvm_guest_kit::spin::Mutex<gzvm_guest_kit::ArrayVec<u16, 1024>> =
        gzvm_guest_kit::spin::Mutex::new(gzvm_guest_kit::ArrayVec::new_const());
    let before = counters()?;
    let mut ids = IDS.lock();
    ids.clear();
    let last = loop {
        let reply = call(Function::CreateVm, &[0]);
        if !reply.ok() || ids.is_full() {
            break reply;
        }
        ids.push(reply.values[0] as u16);
    };
    println!("note: {} VMs at once, then {:?}", ids.len(), last.status());
    for id in ids.iter() {
        check!((1..=0xFFFE).contains(id), "VM id {id:#x}");
        check!(ids.iter().filter(|i| *i == id).count() == 1, "VM id {id:#x} twice");
    }
    for id in ids.drain(..) {
        vm::destroy(id)?;
    }
    let known =
        [Some(Status::NoMemory), Some(Status::Success), Some(Status::Busy), Some(Status::InvalidArgs)];
    check!(known.contains(&last.status()), "status {:?} at the limit", last.status());
    if last.ok() {
        vm::destroy(last.values[0] as u16)?;
    }
    check_eq!(counters()?, before, "counters");
    Ok(())
}

/// Full lives, more of them than there are VMIDs of 8 bits.
fn nothing_leaks() -> Outcome {
    let before = counters()?;
    for round in 0..300 {
        let mut vm = Vm::new(programs::tour(), 1)?;
        vm.set_reg(0, reg::X0, round)?;
        // Ended at another place each time.
        for _ in 0..round % 3 {
            let reason = vm.run(0)?;
            check_eq!(reason, exit::MMIO, "round {round}: exit");
        }
        vm.destroy()?;
        pages::reset();
        if round == 99 || round == 299 {
            check_eq!(counters()?, before, "counters after {} lives", round + 1);
        }
    }
    Ok(())
}

/// A destroyed VM's id means nothing any more.
fn vm_ids_are_fresh() -> Outcome {
    let vm = Vm::new(programs::tour(), 1)?;
    let (id, tuple, memory) = (u64::from(vm.id), vm.tuple(0), vm.memory);
    vm.destroy()?;
    check!(!call(Function::MapGuest, &[id, 0, memory >> 12, RAM >> 12, 1]).ok(), "MAP_GUEST succeeds");
    check!(!call(Function::IrqLine, &[tuple, 1, 1]).ok(), "IRQ_LINE succeeds");
    check!(!call(Function::DestroyVm, &[id, 128]).ok(), "DESTROY_VM succeeds again");
    check_eq!(call(Function::Run, &[tuple]).values[0] as u32, exit::FAIL_ENTRY, "exit of RUN");
    pages::reset();
    Ok(())
}

fn survives_it_all() -> Outcome {
    let mut vm = Vm::new(programs::tour(), 1)?;
    vm.set_reg(0, reg::X0, 42)?;
    check_eq!(vm.run_to_store(0)?, (0x10, 42), "first store");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

/// More VMs than there are VMIDs of 8 bits, each with other memory at the same guest addresses.
fn no_stale_translations() -> Outcome {
    let memories = [pages::take(512, 2 << 20), pages::take(512, 2 << 20), pages::take(512, 2 << 20)];
    let kept = pages::mark();
    for round in 0..300u64 {
        let memory = memories[(round % 3) as usize];
        pages::write(memory + 0x1000, 0x7000 + round);
        let mut vm = Vm::with_memory(programs::reads_one(), 1, memory)?;
        check_eq!(vm.run_to_store(0)?, (0x10, 0x7000 + round), "word in life {round}");
        vm.destroy()?;
        pages::back_to(kept);
    }
    pages::reset();
    Ok(())
}

/// An interrupt that was pending in a VM's GIC is not in the next VM's.
fn new_vm_has_a_new_gic() -> Outcome {
    for _ in 0..3 {
        let mut vm = Vm::new(programs::waits_for_spi(), 1)?;
        // Pending nowhere: it must sleep.
        for _ in 0..5 {
            let reason = vm.run(0)?;
            check_eq!(reason, exit::IDLE, "exit before any interrupt");
        }
        check!(call(Function::IrqLine, &[vm.tuple(0), programs::SPI, 1]).ok(), "IRQ_LINE");
        check_eq!(vm.run_to_store(0)?, (0x10, 32 + programs::SPI), "INTID");
        check!(call(Function::IrqLine, &[vm.tuple(0), programs::SPI, 1]).ok(), "IRQ_LINE");
        vm.destroy()?;
        pages::reset();
    }
    Ok(())
}
