// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The operations, and how they are timed.

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use gzvm_guest_kit::mmio::Region;
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{arch, exception, gic, machine, println, psci, smp, timer, write_sysreg};

/// Ticks before the timer fires. Long enough that the guest is back in its loop by then, short
/// enough that the host's own tick seldom falls between.
const TIMER_TICKS: u64 = 100_000;
const DEFAULT_ITERATIONS: u64 = 1000;
const WARM_UP: u64 = 16;
/// The VMM's test device: a 4-byte read answers [`DEVICE_VALUE`].
const DEVICE: u64 = 0x0009_0000;
const DEVICE_VALUE: u32 = 0x47;
/// Its registers for eventfds: asks for them and tells the SPI's number; signals one that nobody reads; pulses the SPI.
const DEVICE_EVENTS: usize = 0x10;
const DEVICE_NOTIFY: usize = 0x14;
const DEVICE_INTERRUPT: usize = 0x18;
const FIRST_SPI: u32 = 32;
const SGI: u32 = 1;

/// Handled interrupts of the kind the operation waits for.
static RECEIVED: AtomicU32 = AtomicU32::new(0);
static STOP: AtomicBool = AtomicBool::new(false);
static READY: AtomicBool = AtomicBool::new(false);

/// What iterations cost.
#[derive(Clone, Copy)]
pub struct Cost {
    sum: u64,
    min: u64,
    max: u64,
    count: u64,
}

impl Cost {
    /// Of no iteration.
    pub const NONE: Self = Self { sum: 0, min: u64::MAX, max: 0, count: 0 };

    pub fn add(&mut self, ticks: u64) {
        self.sum += ticks;
        self.min = self.min.min(ticks);
        self.max = self.max.max(ticks);
        self.count += 1;
    }

    fn mean(&self) -> u64 {
        (self.sum + self.count / 2) / self.count.max(1)
    }
}

/// Times `n` iterations of `f`, each by itself.
#[inline(always)]
fn time(n: u64, mut f: impl FnMut()) -> Cost {
    for _ in 0..WARM_UP {
        f();
    }
    let mut cost = Cost::NONE;
    for _ in 0..n {
        let start = timer::now();
        f();
        let end = timer::now();
        cost.add(end - start);
    }
    cost
}

/// Times `n` iterations of which each tells its cost.
fn told(n: u64, mut f: impl FnMut() -> u64) -> Cost {
    for _ in 0..WARM_UP {
        f();
    }
    let mut cost = Cost::NONE;
    for _ in 0..n {
        cost.add(f());
    }
    cost
}

/// How often, and less what.
pub struct Bench {
    n: u64,
    /// An empty iteration.
    empty: u64,
}

impl Bench {
    /// What an empty iteration takes.
    pub fn empty(&self) -> u64 {
        self.empty
    }

    fn wants(&self, name: &str) -> bool {
        machine::get().arg("filter").is_none_or(|f| f.split(',').any(|part| name.contains(part)))
    }

    /// Times an operation of two VMs, of which each iteration is long.
    pub fn time(&self, f: impl FnMut()) -> Cost {
        time(self.n, f)
    }

    /// Prints a line.
    pub fn report(&self, name: &str, cost: Cost, overhead: u64) {
        let less = |ticks: u64| ticks.saturating_sub(overhead);
        println!(
            "[BENCH] operation={name} instructions={} min={} max={} iterations={}",
            less(cost.mean()),
            less(cost.min),
            less(cost.max),
            cost.count
        );
    }

    fn skip(&self, name: &str, why: &str) {
        println!("[SKIP] {name}: {why}");
    }

    /// An HVC that the hypervisor answers by itself.
    fn hypercall(&self) {
        // With HVC as PSCI's conduit the call is PSCI_VERSION, as a guest makes it. Without (no
        // hypervisor), there is nothing to measure.
        if exception::expect(|| Conduit::Hvc.call(psci::function::VERSION, &[])).is_err() {
            return self.skip("hypercall", "HVC is undefined here");
        }
        let cost = time(self.n, || {
            // SAFETY: SMCCC 1.1: the call changes x0..x3, and x4..x17 are preserved or clobbered.
            unsafe {
                core::arch::asm!("hvc #0", inout("x0") psci::function::VERSION => _,
                    out("x1") _, out("x2") _, out("x3") _, clobber_abi("C"), options(nostack));
            }
        });
        self.report("hypercall", cost, self.empty);
    }

    /// A distributor register that changes nothing.
    fn gic_read(&self) {
        let distributor = gic::distributor();
        let cost = time(self.n, || {
            distributor.read32(gic::gicd::IIDR);
        });
        self.report("gic-read", cost, self.empty);
    }

    /// The VMM's test device.
    fn device(&self, name: &str) -> Option<Region> {
        let address = machine::get().arg("device").and_then(parse_hex).unwrap_or(DEVICE);
        // SAFETY: the lowest GiB is device memory, and holds nothing of Rust's.
        let device = unsafe { Region::new(address, 0x20) };
        match exception::expect(|| device.read32(0)) {
            Ok(DEVICE_VALUE) => return Some(device),
            Ok(_) => self.skip(name, "no test device (wrong value)"),
            Err(_) => self.skip(name, "no test device (abort)"),
        }
        None
    }

    /// The test device with its eventfds, and the interrupt of one of them.
    fn eventfds(&self, name: &str) -> Option<(Region, u32)> {
        let device = self.device(name)?;
        device.write32(DEVICE_EVENTS, 1);
        match device.read32(DEVICE_EVENTS) {
            0 => self.skip(name, "the test device has no eventfds"),
            spi => return Some((device, FIRST_SPI + spi)),
        }
        None
    }

    /// A load that the VMM answers.
    fn mmio_user(&self) {
        let Some(device) = self.device("mmio-user") else { return };
        let cost = time(self.n, || {
            device.read32(0);
        });
        self.report("mmio-user", cost, self.empty);
    }

    /// A store that signals an eventfd, which nobody waits for.
    fn ioeventfd(&self) {
        let Some((device, _)) = self.eventfds("ioeventfd") else { return };
        let cost = time(self.n, || device.write32(DEVICE_NOTIFY, 1));
        self.report("ioeventfd", cost, self.empty);
    }

    /// ICC_EOIR1_EL1 of an active SGI.
    fn eoi(&self) {
        let me = arch::mpidr();
        let mut lost = 0;
        let cost = told(self.n, || {
            gic::send_sgi(me, SGI);
            let mut tries = 1 << 20;
            while gic::highest_pending() != SGI && tries > 0 {
                tries -= 1;
            }
            let intid = gic::acknowledge();
            let start = timer::now();
            // As micro-bench has it: the write alone, what it triggers included.
            write_sysreg!("S3_0_C12_C12_1", u64::from(intid));
            let end = timer::now();
            lost += u64::from(intid != SGI);
            end - start
        });
        if lost > 0 {
            return self.skip("eoi", "SGIs to this CPU got lost");
        }
        self.report("eoi", cost, self.empty);
    }

    /// An SGI to another vCPU.
    fn ipi(&self) {
        self.round_trip("ipi", |other| gic::send_sgi(other, SGI));
    }

    /// A store that signals an eventfd, of which the hypervisor's driver makes an interrupt of another vCPU.
    fn irqfd(&self) {
        let Some((device, intid)) = self.eventfds("irqfd") else { return };
        let Some(other) = machine::get().cpus.get(1) else { return self.skip("irqfd", "one CPU only") };
        gic::set_edge(intid, true);
        gic::route(intid, *other);
        gic::enable(intid);
        self.round_trip("irqfd", |_| device.write32(DEVICE_INTERRUPT, 1));
        gic::disable(intid);
    }

    /// What interrupts another vCPU, until its handler has said so in memory. The other vCPU spins.
    fn round_trip(&self, name: &str, interrupt: impl Fn(u64)) {
        if smp::count() < 2 {
            return self.skip(name, "one CPU only");
        }
        STOP.store(false, Relaxed);
        READY.store(false, Relaxed);
        gic::set_handler(|_| {
            RECEIVED.fetch_add(1, Relaxed);
        });
        if let Err(code) = smp::start(1, receiver) {
            println!("[FAIL] {name}: CPU 1 does not start ({code})");
            return;
        }
        let ready = timer::wait_ms(5000, || READY.load(Relaxed));
        let other = machine::get().cpus[1];
        let mut lost = !ready;
        let cost = told(self.n, || {
            let before = RECEIVED.load(Relaxed);
            let start = timer::now();
            interrupt(other);
            let mut tries: u64 = if lost { 0 } else { 1 << 24 };
            while RECEIVED.load(Relaxed) == before && tries > 0 {
                tries -= 1;
                arch::cpu_relax();
            }
            let end = timer::now();
            lost |= tries == 0;
            end - start
        });
        STOP.store(true, Relaxed);
        let joined = smp::join(1);
        if lost || joined.is_err() {
            println!("[FAIL] {name}: no answer from CPU 1 (lost {lost}, {joined:?})");
            return;
        }
        self.report(name, cost, self.empty);
    }

    /// From the virtual timer's deadline until its handler has run.
    fn timer(&self) {
        let intid = machine::get().timer_intid;
        // As micro-bench's handler has it: end first, mask the timer then. The line is still high
        // in between, so a hypervisor may have to take its interrupt twice.
        gic::set_raw_handler(Some(|| {
            let intid = gic::acknowledge();
            if intid >= 1020 {
                return;
            }
            RECEIVED.fetch_add(1, Relaxed);
            gic::end(intid);
            if intid == machine::get().timer_intid {
                timer::disarm();
            }
        }));
        gic::enable(intid);
        arch::irq_enable();
        let mut lost = false;
        let ticks = machine::get().arg("timer-ticks").and_then(|s| s.parse().ok()).unwrap_or(TIMER_TICKS);
        let cost = told(self.n.min(300), || {
            let before = RECEIVED.load(Relaxed);
            let deadline = timer::now() + ticks;
            timer::arm_at(deadline);
            let mut tries: u64 = if lost { 0 } else { 1 << 24 };
            while RECEIVED.load(Relaxed) == before && tries > 0 {
                tries -= 1;
                arch::cpu_relax();
            }
            let end = timer::now();
            lost |= tries == 0;
            end.saturating_sub(deadline)
        });
        arch::irq_disable();
        gic::set_raw_handler(None);
        gic::disable(intid);
        if lost {
            println!("[FAIL] timer: no interrupt");
            return;
        }
        self.report("timer", cost, 0);
    }
}

/// CPU 1 during a round trip.
fn receiver() {
    gic::init_cpu();
    arch::irq_enable();
    READY.store(true, Relaxed);
    while !STOP.load(Relaxed) {
        arch::cpu_relax();
    }
}

fn parse_hex(s: &str) -> Option<u64> {
    u64::from_str_radix(s.trim_start_matches("0x"), 16).ok()
}

/// All operations in turn.
pub fn main() {
    let n = machine::get().arg("iterations").and_then(|s| s.parse().ok()).unwrap_or(DEFAULT_ITERATIONS);
    println!("gzvm benchmark guest: {} CPUs, {n} iterations", smp::count());
    let frequency = timer::frequency();
    if frequency != 1_000_000_000 {
        println!(
            "[NOTE] the counter runs at {frequency} Hz: its ticks are not instructions, not even under -icount"
        );
    }
    let bench = Bench { n, empty: time(n, || {}).mean() };
    if let Some(part) = machine::get().arg("calls") {
        super::calls::main(part, &bench);
        return println!("[DONE] benchmark");
    }
    if machine::get().arg("vcpus").is_some() {
        super::vcpus::main(&bench);
        return println!("[DONE] benchmark");
    }
    while machine::get().arg("sleep").is_some() {
        arch::wfi();
    }
    gic::init_distributor();
    gic::init_cpu();
    if let Some(size) = machine::get().arg("faults") {
        super::faults::main(size, &bench);
        return println!("[DONE] benchmark");
    }
    type Operation = (&'static str, fn(&Bench));
    let operations: [Operation; 8] = [
        ("hypercall", Bench::hypercall),
        ("gic-read", Bench::gic_read),
        ("mmio-user", Bench::mmio_user),
        ("eoi", Bench::eoi),
        ("ipi", Bench::ipi),
        ("ioeventfd", Bench::ioeventfd),
        ("irqfd", Bench::irqfd),
        ("timer", Bench::timer),
    ];
    for (name, run) in operations {
        if bench.wants(name) {
            run(&bench);
        }
    }
    println!("[DONE] benchmark");
}
