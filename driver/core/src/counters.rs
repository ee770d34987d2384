// SPDX-License-Identifier: GPL-2.0-only
//! `debugfs/gzvm/counters`: what the driver holds, and the hypervisor's event counters.

use core::sync::atomic::{AtomicU64, Ordering};

use gzvm_abi::counter::NAMES;
use gzvm_abi::hypercall::Function;

use crate::device;
use crate::hypercall::call;
use crate::kernel::print::SeqFile;

/// How many of something exist.
pub struct Gauge(AtomicU64);

/// VMs of this driver.
pub static VMS: Gauge = Gauge(AtomicU64::new(0));
/// vCPUs of this driver.
pub static VCPUS: Gauge = Gauge(AtomicU64::new(0));
/// Pages pinned for VMs.
pub static PINNED_PAGES: Gauge = Gauge(AtomicU64::new(0));
/// Pages in files of guest memory.
pub static GUEST_MEMORY_PAGES: Gauge = Gauge(AtomicU64::new(0));
/// Of them, those that a protected VM was given.
pub static PRIVATE_PAGES: Gauge = Gauge(AtomicU64::new(0));
/// Accesses of user space, or of a system call for it, to pages that are a protected VM's.
pub static PRIVATE_FAULTS: Gauge = Gauge(AtomicU64::new(0));
/// Pages that the hypervisor was given for VMs' tables.
pub static TABLE_PAGES: Gauge = Gauge(AtomicU64::new(0));
/// irqfds.
pub static IRQFDS: Gauge = Gauge(AtomicU64::new(0));
/// Page faults of guests that brought pages in.
pub static FAULTS: Gauge = Gauge(AtomicU64::new(0));
/// Guest writes answered by an ioeventfd.
pub static IOEVENTS: Gauge = Gauge(AtomicU64::new(0));
/// Interrupts raised by irqfds.
pub static IRQFD_SIGNALS: Gauge = Gauge(AtomicU64::new(0));

/// vCPUs told to look for interrupts.
pub static WAKE_UPS: Gauge = Gauge(AtomicU64::new(0));

impl Gauge {
    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// `n` fewer.
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Ordering::Relaxed);
    }

    /// How many.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Writes `name value` lines; the driver's own names start with `driver_`.
pub fn show(out: &mut SeqFile) {
    for (name, gauge) in [
        ("driver_vms", &VMS),
        ("driver_vcpus", &VCPUS),
        ("driver_pinned_pages", &PINNED_PAGES),
        ("driver_guest_memory_pages", &GUEST_MEMORY_PAGES),
        ("driver_private_pages", &PRIVATE_PAGES),
        ("driver_table_pages", &TABLE_PAGES),
        ("driver_irqfds", &IRQFDS),
        ("driver_faults", &FAULTS),
        ("driver_private_faults", &PRIVATE_FAULTS),
        ("driver_ioevents", &IOEVENTS),
        ("driver_irqfd_signals", &IRQFD_SIGNALS),
        ("driver_wake_ups", &WAKE_UPS),
    ] {
        out.line(format_args!("{name} {}", gauge.get()));
    }
    if !device::has_function(Function::ExtCounter) {
        return;
    }
    for (index, name) in NAMES.iter().enumerate() {
        // A hypervisor may know fewer than this driver.
        let Ok(reply) = call(Function::ExtCounter, [index as u64]) else { break };
        out.line(format_args!("{name} {}", reply.x1));
    }
}
