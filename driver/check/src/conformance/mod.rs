// SPDX-License-Identifier: GPL-2.0-only
//! The conformance suite at ioctl level: a check for each row of the ABI's tables, named after it
//! (`ioctl::irqfd`, `extension::vm_gpa_size_0xa5`, `register::x0_to_x30`, `user_exit::mmio`).
//!
//! Numbers and offsets are written out here and not taken from `gzvm_abi`, which is under test too. Where our
//! driver differs from the public one by intent (driver/README.md, "Where it differs"), ours is checked, and the
//! check says "differs". `tests/src/cases/conformance.rs` has the list of names that must be there.

mod events;
mod extensions;
mod programs;
mod registers;
mod runs;
mod user_exits;
mod vms;
mod watch;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::sys::{self, errno};
use crate::{Check, Named, ensure};

/// All checks.
pub const CHECKS: &[Named] = &[
    ("ioctl::numbers", vms::numbers),
    ("ioctl::create_vm", vms::create_vm),
    ("ioctl::check_extension", extensions::check_extension),
    ("ioctl::set_memory_region", vms::set_memory_region),
    ("ioctl::create_vcpu", vms::create_vcpu),
    ("ioctl::set_user_memory_region", vms::set_user_memory_region),
    ("ioctl::create_irqchip", vms::create_irqchip),
    ("ioctl::irq_line", events::irq_line),
    ("ioctl::irqfd", events::irqfd),
    ("ioctl::irqfd_signals", events::irqfd_signals),
    ("ioctl::ioeventfd", events::ioeventfd),
    ("ioctl::ioeventfd_matches", events::ioeventfd_matches),
    ("ioctl::run", runs::run),
    ("ioctl::run_buffer", runs::run_buffer),
    ("ioctl::run_signals", runs::run_signals),
    ("ioctl::enable_cap", extensions::enable_cap),
    ("ioctl::get_one_reg", registers::get_one_reg),
    ("ioctl::set_one_reg", registers::set_one_reg),
    ("ioctl::create_device", vms::create_device),
    ("ioctl::set_dtb_config", vms::set_dtb_config),
    ("ioctl::control", watch::control),
    ("ioctl::set_watch", watch::set_watch),
    ("ioctl::vm_features", vms::vm_features),
    ("ioctl::measurement", vms::measurement),
    ("ioctl::vgic_spis", events::vgic_spis),
    ("ioctl::unknown", vms::unknown),
    ("extension::protected_vm_0xffbadab1", extensions::protected_vm),
    ("extension::vm_gpa_size_0xa5", extensions::vm_gpa_size),
    ("extension::mte_0", extensions::mte),
    ("extension::watch_0x475a0010", watch::extension),
    ("extension::measurement_0x475a000a", extensions::measurement),
    ("extension::vm_features_0x475a0018", extensions::vm_features),
    ("extension::table_memory_0x475a000d", extensions::table_memory),
    ("extension::vgic_spis_0x475a0020", extensions::vgic_spis),
    ("extension::unknown", extensions::unknown),
    ("extension::number_as_pointer", extensions::number_as_pointer),
    ("register::x0_to_x30", registers::x0_to_x30),
    ("register::sp_pc_pstate_elr_spsr", registers::others),
    ("register::sizes", registers::sizes),
    ("register::vectors", registers::vectors),
    ("register::start_of_crosvm", registers::start_of_crosvm),
    ("user_exit::mmio", user_exits::mmio),
    ("user_exit::exception", user_exits::exception),
    ("user_exit::system_event_shutdown", user_exits::system_event_shutdown),
    ("user_exit::system_event_reset", user_exits::system_event_reset),
    ("user_exit::watch", watch::exit),
    ("driver_exit::hypercall_relinquish", user_exits::hypercall_relinquish),
    ("driver_exit::hypercall_ptp", user_exits::hypercall_ptp),
    ("driver_exit::irq_and_idle", user_exits::irq_and_idle),
    ("driver_exit::ipi", user_exits::ipi),
];

/// The ioctls' encoded numbers.
mod nr {
    pub const CREATE_VM: u32 = 0x0000_9201;
    pub const CHECK_EXTENSION: u32 = 0x0000_9203;
    pub const SET_MEMORY_REGION: u32 = 0x4018_9240;
    pub const CREATE_VCPU: u32 = 0x0000_9241;
    pub const SET_USER_MEMORY_REGION: u32 = 0x4020_9246;
    pub const CREATE_IRQCHIP: u32 = 0x0000_9260;
    pub const IRQ_LINE: u32 = 0x4008_9261;
    pub const IRQFD: u32 = 0x4020_9276;
    pub const IOEVENTFD: u32 = 0x4040_9279;
    pub const RUN: u32 = 0x0000_9280;
    pub const ENABLE_CAP: u32 = 0x4030_92A3;
    pub const GET_ONE_REG: u32 = 0x4010_92AB;
    pub const SET_ONE_REG: u32 = 0x4010_92AC;
    pub const CONTROL: u32 = 0xC020_92C8;
    pub const SET_WATCH: u32 = 0x4020_92C9;
    pub const MEASUREMENT: u32 = 0x8028_92CA;
    pub const VM_FEATURES: u32 = 0x4008_92D0;
    pub const VGIC_SPIS: u32 = 0x4010_92D4;
    pub const CREATE_DEVICE: u32 = 0xC030_92E0;
    pub const SET_DTB_CONFIG: u32 = 0x4010_92FF;
}

/// A structure by offsets.
struct Args<const N: usize>([u64; N]);

impl<const N: usize> Args<N> {
    const fn new() -> Self {
        Self([0; N])
    }

    /// Puts 64 bits.
    fn q(mut self, offset: usize, value: u64) -> Self {
        self.0[offset / 8] = value;
        self
    }

    /// Puts 32 bits.
    fn w(mut self, offset: usize, value: u32) -> Self {
        let shift = offset % 8 * 8;
        let word = &mut self.0[offset / 8];
        *word = *word & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
        self
    }

    /// The call's errno.
    fn call(mut self, fd: &impl AsRawFd, number: u32) -> i32 {
        errno(&sys::ioctl_with(fd, number, &mut self.0))
    }
}

/// The errno is this one.
fn gives(error: i32, expected: i32, what: impl std::fmt::Display) -> Check {
    ensure!(error == expected, "{what}: errno {error}, not {expected}");
    Ok(())
}

/// Addresses that no ioctl can read: the number 165, nothing, a kernel's.
const NOWHERE: [u64; 3] = [165, 0, 0xFFFF_8000_0000_0000];

/// The call of `number` fails with EFAULT for each of them.
fn needs_memory(fd: &impl AsRawFd, number: u32) -> Check {
    for address in NOWHERE {
        let error = errno(&sys::ioctl(fd, number, address));
        gives(error, libc::EFAULT, format_args!("{number:#x} with the pointer {address:#x}"))?;
    }
    Ok(())
}

/// A descriptor from an ioctl that makes one.
fn descriptor(fd: &impl AsRawFd, number: u32, arg: u64) -> io::Result<OwnedFd> {
    sys::ioctl(fd, number, arg).map(sys::owned)
}

/// A value of the driver's counters.
fn counter(name: &str) -> Result<u64, String> {
    let path = "/sys/kernel/debug/gzvm/counters";
    let text = std::fs::read_to_string(path).map_err(|e| format!("{path}: {e}"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.ok_or_else(|| format!("no counter {name}"))
}
