// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A host that fires random calls from all its CPUs while two protected guests run and check themselves (`threats.md` 1 to 5).
//!
//! - [`guard`]: the guests that are watched;
//! - [`arguments`]: what a call is given;
//! - [`attack`]: what one CPU does.
//!
//! Nothing is spared but what would end the run by luck: DESTROY_VM and DESTROY_VCPU of a watched guest go to another VM, its
//! slots begin at 1 GiB (below is what it reports to), and no address in a call names the test's own image.
//! Boot arguments: `seed=N` repeats a run as far as one CPU goes, `calls=N` says how many calls there are, `timed=1` (with
//! `-icount`, one CPU) times each.

mod arguments;
mod attack;
mod guard;

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use gzvm_abi::hypercall::{Function, Status};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::hypercall::call;
use gzvm_guest_kit::machine::{self, Range};
use gzvm_guest_kit::spin::Mutex;
use gzvm_guest_kit::{boot, cases, check, check_eq, exception, fail, gic, println, smp, timer};

use crate::host::hypervisor_memory;
use crate::longest::MOST_INSTRUCTIONS;
use crate::{abuse, pages};
use guard::Guard;

pub const CASES: &[Case] = cases!["hostile": random_calls];

/// CPUs that take part at the most.
const MOST_CPUS: usize = 4;
/// Memory that the calls name.
const REGION_PAGES: u64 = 8 * 512;
/// The largest run of pages that a call can name, before the image.
const MOST_BYTES: u64 = 128 << 20;

/// What all CPUs know.
#[derive(Clone, Copy)]
struct Plan {
    seed: u64,
    /// Calls of each CPU.
    calls: u64,
    /// Memory that the calls name.
    region: Range,
    guards: [guard::Place; 2],
    hypervisor: Range,
    /// Not to be named: the test's own image.
    image: Range,
    timed: bool,
}

static PLAN: Mutex<Option<Plan>> = Mutex::new(None);
static NEXT_CPU: AtomicU64 = AtomicU64::new(0);
static WORKING: AtomicU32 = AtomicU32::new(0);
static VIOLATION: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn argument(name: &str, default: u64) -> u64 {
    machine::get().arg(name).and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn work() {
    gic::init_cpu();
    gic::enable(machine::get().timer_intid);
    let plan = *PLAN.lock();
    if let Some(plan) = plan {
        attack::Attacker::new(plan, NEXT_CPU.fetch_add(1, SeqCst)).run();
    }
    WORKING.fetch_sub(1, SeqCst);
}

fn random_calls() -> Outcome {
    let before = abuse::counters()?;
    let cpus = smp::count().min(MOST_CPUS);
    let calls = argument("calls", 20_000);
    let seed = argument("seed", timer::now());
    let region = Range { start: pages::take(REGION_PAGES, 2 << 20), size: REGION_PAGES * 4096 };
    let (start, end) = boot::image_range();
    let mut guards = [Guard::new(0x1357_9BDF_0246_8ACE)?, Guard::new(0xFEDC_BA98_7654_3210)?];
    let begun = [guards[0].report()?, guards[1].report()?];
    let plan = Plan {
        seed,
        calls: calls / cpus as u64,
        region,
        guards: [guards[0].place(), guards[1].place()],
        hypervisor: hypervisor_memory()?,
        image: Range { start: start - MOST_BYTES, size: end - start + MOST_BYTES + (2 << 20) },
        timed: argument("timed", 0) != 0,
    };
    println!("note: {calls} calls from {cpus} CPUs, seed={seed}");
    *PLAN.lock() = Some(plan);
    for cell in [&NEXT_CPU, &VIOLATION] {
        cell.store(0, SeqCst);
    }
    STOP.store(false, SeqCst);
    attack::reset();
    gic::set_handler(|intid| {
        if intid == machine::get().timer_intid {
            timer::disarm();
        }
    });
    WORKING.store(cpus as u32, SeqCst);
    for cpu in 1..cpus {
        if let Err(code) = smp::start(cpu, work) {
            STOP.store(true, SeqCst);
            fail!("CPU {cpu} does not start: {code}");
        }
    }
    work();
    // The others are as far as this one, but for luck.
    let all_done = timer::wait_ms(60_000 + calls / 10, || WORKING.load(SeqCst) == 0);
    check!(all_done, "{} CPUs don't end", WORKING.load(SeqCst));
    for cpu in 1..cpus {
        check!(smp::join(cpu).is_ok(), "CPU {cpu} does not go off");
    }
    attack::print();
    let violation = VIOLATION.load(SeqCst);
    check_eq!(violation, 0, "an address that must be out of reach was reached");
    for (guard, begun) in guards.iter_mut().zip(begun) {
        let told = guard.report()?;
        println!("note: a guest that is watched: {} passes, {} errors", told.passes, told.errors);
        check_eq!(told.errors, 0, "errors that a watched guest found in its memory or registers");
        check!(told.passes >= begun.passes + calls / 2000, "a watched guest does not get on");
    }
    let places = plan.guards;
    for guard in guards {
        guard.vm.destroy()?;
    }
    destroy_all()?;
    check_eq!(abuse::counters()?, before, "counters afterwards");
    check!(attack::longest() <= MOST_INSTRUCTIONS, "a call took {} instructions", attack::longest());
    // All memory is the host's again, and holds nothing of the guests'.
    for place in places {
        for word in (place.memory..place.memory + guard::PRIVATE_BYTES).step_by(8) {
            match exception::expect(|| pages::read(word)) {
                Ok(0) => {}
                Ok(value) => fail!("{value:#x} at {word:#x}, where a watched guest was"),
                Err(_) => fail!("{word:#x} has not come back"),
            }
        }
    }
    for word in (region.start..region.end()).step_by(4096) {
        check!(exception::expect(|| pages::read(word)).is_ok(), "{word:#x} has not come back");
    }
    pages::reset();
    Ok(())
}

/// Every VM there may be.
fn destroy_all() -> Outcome {
    for id in 1..=0xFFu64 {
        let mut last = None;
        let done = timer::wait_ms(20_000, || {
            last = call(Function::DestroyVm, &[id, 4096]).status();
            last != Some(Status::Busy)
        });
        check!(done, "VM {id} does not go");
    }
    Ok(())
}
