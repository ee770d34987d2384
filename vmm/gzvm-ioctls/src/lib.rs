// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Safe wrappers over the ioctls of `/dev/gzvm`, shaped like the crate kvm-ioctls.
//!
//! - [`Gzvm`] is the device: it makes VMs and answers capability queries.
//! - [`VmFd`] is a VM: memory slots, interrupts, eventfds, devices, vCPUs.
//! - [`VcpuFd`] is a vCPU: registers and [`run`](VcpuFd::run), which returns a [`VcpuExit`].
//! - [`ChannelFd`] is a channel: calls between the host and a VM.
//!
//! Structures and numbers come from the crate `gzvm-abi`. Every failing call returns an [`Error`]
//! that keeps the kernel's errno; nothing is retried and nothing is logged here.
//!
//! RUN takes a 264-byte buffer, which the driver copies in and out; a driver that says so
//! ([`extension::RUN_MMAP`](gzvm_abi::ioctl::extension::RUN_MMAP)) lets us map one instead, as KVM does.
//! [`VcpuFd`] owns that buffer, and takes the mapping where it can.

mod channel;
mod vcpu;
mod vm;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use gzvm_abi::ioctl::{self, GuestMemory};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

pub use channel::ChannelFd;
pub use vcpu::{ImmediateExit, VcpuExit, VcpuFd};
pub use vm::{IrqChipDevice, VmFd};
/// An errno.
pub use vmm_sys_util::errno::Error;
/// Result with an errno.
pub type Result<T> = std::result::Result<T, Error>;

/// Where the driver puts its device.
pub const DEVICE_PATH: &str = "/dev/gzvm";
/// Capability of [`Gzvm::check_extension`]: bits of guest physical address space.
pub const CAP_ARM_VM_IPA_SIZE: u64 = 0xA5;
/// Capability of [`Gzvm::check_extension`]: protected VMs.
pub const CAP_ARM_PROTECTED_VM: u64 = 0xFFBA_DAB1;

/// The device `/dev/gzvm`.
#[derive(Debug)]
pub struct Gzvm {
    device: File,
}

impl Gzvm {
    /// Opens [`DEVICE_PATH`].
    ///
    /// # Errors
    /// ENOENT: no driver, or the driver found no hypervisor. EACCES: no permission.
    pub fn new() -> Result<Self> {
        Self::with_path(DEVICE_PATH)
    }

    /// Opens the device at another path.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn with_path(path: impl AsRef<Path>) -> Result<Self> {
        let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
        Ok(Self { device })
    }

    /// Makes a VM. `vm_type` is 0 in all known drivers.
    ///
    /// # Errors
    /// ENOMEM, or what the hypervisor's refusal maps to.
    pub fn create_vm(&self, vm_type: u64) -> Result<VmFd> {
        // SAFETY: CREATE_VM takes a plain value and touches no memory of ours.
        let fd = check(unsafe { ioctl_with_val(&self.device, ioctl::CREATE_VM.into(), vm_type) })?;
        // SAFETY: the driver has just returned this descriptor to us, so nobody else owns it.
        Ok(VmFd::new(unsafe { File::from_raw_fd(fd) }))
    }

    /// Makes guest memory that is a file, to be mapped with `MAP_SHARED`: its pages leave every mapping when a protected VM gets
    /// them, so that an access is SIGBUS, or EFAULT of a system call. Ask for [`GUEST_MEMORY`](ioctl::extension::GUEST_MEMORY) first.
    ///
    /// # Errors
    /// EINVAL: not whole pages, or too many. ENOTTY: driver or hypervisor have no such memory.
    pub fn create_guest_memory(&self, size: u64) -> Result<OwnedFd> {
        let request = GuestMemory { size, flags: 0 };
        // SAFETY: CREATE_GUEST_MEMORY reads exactly this structure.
        let fd = check(unsafe { ioctl_with_ref(&self.device, ioctl::CREATE_GUEST_MEMORY.into(), &request) })?;
        // SAFETY: the driver has just returned this descriptor to us, so nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Asks for a capability: `None` where the driver does not know it.
    ///
    /// # Errors
    /// Any errno but EOPNOTSUPP and EINVAL.
    pub fn check_extension(&self, capability: u64) -> Result<Option<u64>> {
        check_extension(&self.device, capability)
    }
}

impl AsRawFd for Gzvm {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

/// The driver overwrites the capability with the answer.
fn check_extension(file: &File, capability: u64) -> Result<Option<u64>> {
    let mut value = capability;
    // SAFETY: CHECK_EXTENSION reads and writes exactly one u64 at the pointer.
    let result = check(unsafe { ioctl_with_mut_ref(file, ioctl::CHECK_EXTENSION.into(), &mut value) });
    known(result.map(|_| value))
}

/// What is unknown: EOPNOTSUPP by our driver, EINVAL by MediaTek's.
fn known(answer: Result<u64>) -> Result<Option<u64>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.errno(), libc::EOPNOTSUPP | libc::EINVAL) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Negative results of ioctl(2) become the calling thread's errno.
fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(Error::last()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_is_kept() {
        let error = Gzvm::with_path("/nonexistent/gzvm").unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT);
        // A file that is no such device refuses the ioctl, with the kernel's own errno.
        let null = Gzvm::with_path("/dev/null").unwrap();
        assert_eq!(null.create_vm(0).unwrap_err().errno(), libc::ENOTTY);
        assert_eq!(null.create_guest_memory(4096).unwrap_err().errno(), libc::ENOTTY);
        assert_eq!(null.check_extension(CAP_ARM_VM_IPA_SIZE).unwrap_err().errno(), libc::ENOTTY);
    }

    #[test]
    fn either_driver_may_not_know() {
        assert_eq!(known(Ok(1)).unwrap(), Some(1));
        for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
            assert_eq!(known(Err(Error::new(errno))).unwrap(), None);
        }
        assert_eq!(known(Err(Error::new(libc::EFAULT))).unwrap_err().errno(), libc::EFAULT);
    }
}
