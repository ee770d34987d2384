// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI 1.x (Arm DEN 0022), through the conduit of the device tree.

use crate::{arch, machine};

/// Function IDs, SMC64 where there is one.
pub mod function {
    /// PSCI_VERSION.
    pub const VERSION: u64 = 0x8400_0000;
    /// CPU_SUSPEND.
    pub const CPU_SUSPEND: u64 = 0xC400_0001;
    /// CPU_OFF.
    pub const CPU_OFF: u64 = 0x8400_0002;
    /// CPU_ON.
    pub const CPU_ON: u64 = 0xC400_0003;
    /// CPU_ON, SMC32.
    pub const CPU_ON_32: u64 = 0x8400_0003;
    /// AFFINITY_INFO.
    pub const AFFINITY_INFO: u64 = 0xC400_0004;
    /// MIGRATE_INFO_TYPE.
    pub const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
    /// SYSTEM_OFF.
    pub const SYSTEM_OFF: u64 = 0x8400_0008;
    /// SYSTEM_RESET.
    pub const SYSTEM_RESET: u64 = 0x8400_0009;
    /// PSCI_FEATURES.
    pub const FEATURES: u64 = 0x8400_000A;
}

/// Return values.
pub mod error {
    /// Done.
    pub const SUCCESS: i32 = 0;
    /// The function is not there.
    pub const NOT_SUPPORTED: i32 = -1;
    /// An argument names nothing.
    pub const INVALID_PARAMETERS: i32 = -2;
    /// Not allowed.
    pub const DENIED: i32 = -3;
    /// The CPU is on.
    pub const ALREADY_ON: i32 = -4;
    /// The CPU is being turned on.
    pub const ON_PENDING: i32 = -5;
    /// The entry point is no memory.
    pub const INVALID_ADDRESS: i32 = -9;
}

/// AFFINITY_INFO: the CPU is off.
pub const AFFINITY_OFF: i32 = 1;

/// Calls `function`; returns x0 as the 32-bit value it is.
pub fn call(function: u64, args: &[u64]) -> i32 {
    machine::get().conduit.call(function, args)[0] as i32
}

/// Turns the machine off.
pub fn system_off() -> ! {
    call(function::SYSTEM_OFF, &[]);
    loop {
        arch::wfi();
    }
}

/// Turns this CPU off.
pub fn cpu_off() -> ! {
    call(function::CPU_OFF, &[]);
    panic!("CPU_OFF came back")
}

/// Turns CPU `mpidr` on at `entry` with x0 = `context`.
pub fn cpu_on(mpidr: u64, entry: u64, context: u64) -> i32 {
    call(function::CPU_ON, &[mpidr, entry, context])
}

/// State of CPU `mpidr`: 0 on, 1 off, 2 on its way.
pub fn affinity_info(mpidr: u64) -> i32 {
    call(function::AFFINITY_INFO, &[mpidr, 0])
}
