// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the cases share.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::mmio::Region;
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::spin::Mutex;
use gzvm_guest_kit::{arch, exception, gic, machine, psci, smp, timer};

/// What runs below the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Below {
    /// Our hypervisor.
    Gzvm,
    /// Linux KVM.
    Kvm,
    /// Some hypervisor that answers the vendor UID call.
    Unknown,
    /// Nothing.
    Nothing,
}

/// What runs below the guest.
pub fn below() -> Below {
    match machine::get().arg("hyp") {
        Some("gzvm") => Below::Gzvm,
        Some("kvm") => Below::Kvm,
        Some("none") => Below::Nothing,
        _ if vendor_uid().is_some() => Below::Unknown,
        _ => Below::Nothing,
    }
}

/// Skips a case in which KVM (seen with 6.12) is known to differ from the architecture.
pub fn known_of_kvm(what: &str) -> Outcome {
    if below() == Below::Kvm {
        gzvm_guest_kit::skip!("KVM: {what}");
    }
    Ok(())
}

/// The vendor hypervisor's UID, if the call is answered.
pub fn vendor_uid() -> Option<[u32; 4]> {
    let uid = exception::expect(|| Conduit::Hvc.call(gzvm_abi::guest::VENDOR_HYP_UID.into(), &[])).ok()?;
    let uid = uid.map(|w| w as u32);
    (uid[0] != u32::MAX).then_some(uid)
}

/// The VMM's test device, if it answers.
pub fn test_device() -> Option<Region> {
    // SAFETY: the lowest GiB is device memory.
    let device = unsafe { Region::new(0x0009_0000, 0x1000) };
    let found = exception::expect(|| device.read32(0)) == Ok(0x47);
    found.then_some(device)
}

/// Something that leaves the guest for a moment, another one for each `i`.
pub fn exit_of_kind(i: usize) {
    match i % 5 {
        0 => drop(psci::call(psci::function::VERSION, &[])),
        1 => drop(gic::distributor().read32(gic::gicd::IIDR)),
        2 => gic::send_sgi_raw(15 << 24), // to nobody: empty target list
        3 => drop(psci::affinity_info(arch::mpidr())),
        _ => arch::cpu_relax(),
    }
}

static FAILURE: Mutex<Option<Verdict>> = Mutex::new(None);
static FUNCTION: Mutex<Option<fn() -> Outcome>> = Mutex::new(None);
static ARRIVED: AtomicU32 = AtomicU32::new(0);

fn run_here() {
    let Some(f) = *FUNCTION.lock() else { return };
    gic::init_cpu();
    ARRIVED.fetch_add(1, SeqCst);
    timer::wait_ms(10_000, || ARRIVED.load(SeqCst) as usize == smp::count());
    if let Err(verdict) = f() {
        *FAILURE.lock() = Some(verdict);
    }
    arch::irq_disable();
    timer::disarm();
}

/// Runs `f` on all CPUs at once; the last failure, if any, is the outcome.
pub fn everywhere(f: fn() -> Outcome) -> Outcome {
    *FUNCTION.lock() = Some(f);
    *FAILURE.lock() = None;
    ARRIVED.store(0, SeqCst);
    for cpu in 1..smp::count() {
        if let Err(code) = smp::start(cpu, run_here) {
            gzvm_guest_kit::fail!("CPU {cpu} does not start: {code}");
        }
    }
    run_here();
    for cpu in 1..smp::count() {
        if let Err(code) = smp::join(cpu) {
            gzvm_guest_kit::fail!("CPU {cpu} does not end: {code}");
        }
    }
    FAILURE.lock().take().map_or(Ok(()), Err)
}

/// Runs `f` on CPU 1 until it has set up its interrupts; skips the case with one CPU only.
pub fn start_second(f: fn()) -> Outcome {
    if smp::count() < 2 {
        gzvm_guest_kit::skip!("one CPU only");
    }
    if let Err(code) = smp::start(1, f) {
        gzvm_guest_kit::fail!("CPU 1 does not start: {code}");
    }
    Ok(())
}

/// Waits for CPU 1 to end.
pub fn join_second() -> Outcome {
    if let Err(code) = smp::join(1) {
        gzvm_guest_kit::fail!("CPU 1 does not end: {code}");
    }
    Ok(())
}
