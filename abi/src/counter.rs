// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Event counters of the hypervisor, read one by one with
//! [`Function::ExtCounter`](crate::hypercall::Function::ExtCounter).

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// A counter.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $name,)* }

        /// The counters' names, in the order of their indices.
        pub const NAMES: &[&str] = &[$($text,)*];
    };
}

counters! {
    /// Interrupts (IRQ, FIQ, SError) that entered EL2 while the host was running.
    HostIrq = "host_irq",
    /// Hypercalls of the host.
    HostHvc = "host_hvc",
    /// SMCs of the host.
    HostSmc = "host_smc",
    /// SMCs of the host that were refused.
    HostSmcDenied = "host_smc_denied",
    /// Stage-2 faults of the host that were answered with a mapping, or where its own tables lead elsewhere by now.
    HostFault = "host_fault",
    /// Stage-2 faults of the host that were answered with an abort.
    HostAbort = "host_abort",
    /// Lazy FP switches back to the host.
    HostFp = "host_fp",
    /// System register traps of the host.
    HostSysreg = "host_sysreg",
    /// RUN calls that entered a guest.
    GuestEntry = "guest_entry",
    /// Exits of guests to EL2, of all kinds.
    GuestExit = "guest_exit",
    /// Exits to EL2 for a physical interrupt.
    GuestIrq = "guest_irq",
    /// Guests' virtual timer interrupts handled at EL2.
    GuestTimer = "guest_timer",
    /// Kicks (physical SGIs between CPUs in guests) taken.
    GuestKick = "guest_kick",
    /// Maintenance interrupts taken.
    GuestMaintenance = "guest_maintenance",
    /// Guests' HVCs.
    GuestHvc = "guest_hvc",
    /// Guests' SMCs.
    GuestSmc = "guest_smc",
    /// Guests' system register traps.
    GuestSysreg = "guest_sysreg",
    /// Guests' WFI traps.
    GuestWfi = "guest_wfi",
    /// Guests' accesses to the virtual GIC's frames.
    GuestGicMmio = "guest_gic_mmio",
    /// Guests' device accesses that the abort does not describe, decoded from the instruction.
    GuestEmulated = "guest_emulated",
    /// Guests' first use of FP after an entry.
    GuestFp = "guest_fp",
    /// Guests that suspended themselves as a whole (PSCI SYSTEM_SUSPEND).
    GuestSystemSuspend = "guest_system_suspend",
    /// Returns to the host with MMIO.
    ExitMmio = "exit_mmio",
    /// Returns to the host with a page fault.
    ExitPageFault = "exit_page_fault",
    /// Returns to the host with IRQ.
    ExitIrq = "exit_irq",
    /// Returns to the host with IDLE.
    ExitIdle = "exit_idle",
    /// Returns to the host with IPI.
    ExitIpi = "exit_ipi",
    /// Returns to the host with anything else.
    ExitOther = "exit_other",
    /// VMs that exist.
    Vms = "vms",
    /// vCPUs that exist.
    Vcpus = "vcpus",
    /// Pages of the hypervisor's pool in use.
    PoolUsed = "pool_used",
    /// Pages of the hypervisor's pool.
    PoolTotal = "pool_total",
    /// Host pages shared with VMs.
    PagesShared = "pages_shared",
    /// Pages owned by VMs.
    PagesPrivate = "pages_private",
    /// Accesses of devices that an SMMU aborted and told of.
    DmaFaults = "dma_faults",
    /// Pages of the hypervisor's own: those from the start, and what hosts gave it; and those that it takes from a VM just now.
    PagesHypervisor = "pages_hypervisor",
}

/// How many counters there are.
pub const COUNT: usize = NAMES.len();

impl Counter {
    /// Its index in [`NAMES`].
    pub const fn index(self) -> usize {
        self as usize
    }
}
