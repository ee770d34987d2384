// SPDX-License-Identifier: GPL-2.0-only
//! Tests of the whole driver on the fake kernel: through the entry points, as user space comes in.

mod channels;
mod control;
mod eventfds;
mod features;
mod guest_memory;
mod lifecycle;
mod measurement;
mod memory;
mod run;
mod spis;
mod tables;

use std::ffi::c_void;

use gzvm_abi::ioctl;
use gzvm_abi::run::VcpuRun;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::entry;
use crate::sys::{File, Session, USER};

const EINTR: i64 = -4;
const EIO: i64 = -5;
const EBADF: i64 = -9;
const ENOENT: i64 = -2;
const ENOMEM: i64 = -12;
const EFAULT: i64 = -14;
const EBUSY: i64 = -16;
const EEXIST: i64 = -17;
const EINVAL: i64 = -22;
const ENOTTY: i64 = -25;
const EOPNOTSUPP: i64 = -95;
const ERESTARTSYS: i64 = -512;

/// Where arguments are put.
const ARG: u64 = USER;
/// Where the run structure is.
const RUN: u64 = USER + 0x1000;
/// Where the guest's memory is mapped in the VMM.
const GUEST_MEM: u64 = 0x7000_0000_0000;
/// RAM of the guest.
const RAM: u64 = 0x8000_0000;

impl Session {
    fn put<T: IntoBytes + Immutable>(&self, at: u64, value: &T) {
        self.with(|k| k.user(at, size_of::<T>()).unwrap().copy_from_slice(value.as_bytes()));
    }

    fn get<T: FromBytes>(&self, at: u64) -> T {
        self.with(|k| T::read_from_bytes(k.user(at, size_of::<T>()).unwrap()).unwrap())
    }

    fn dev_ioctl(&self, cmd: u32, arg: u64) -> i64 {
        entry::gzr_dev_ioctl(cmd, arg)
    }

    /// An ioctl of a VM or vCPU.
    fn ioctl(&self, fd: i32, cmd: u32, arg: u64) -> i64 {
        match self.with(|k| k.files[&fd]) {
            // SAFETY: the private data of an open file.
            #[expect(unsafe_code, reason = "plays the kernel")]
            File::Vm(p) => unsafe { entry::gzr_vm_ioctl(p as *mut c_void, cmd, arg) },
            // SAFETY: the private data of an open file.
            #[expect(unsafe_code, reason = "plays the kernel")]
            File::Vcpu(p) => unsafe { entry::gzr_vcpu_ioctl(p as *mut c_void, cmd, arg) },
            // SAFETY: the private data of an open file.
            #[expect(unsafe_code, reason = "plays the kernel")]
            File::Channel(p) => unsafe { entry::gzr_channel_ioctl(p as *mut c_void, cmd, arg) },
            File::EventFd(_) | File::Memory(_) => panic!("no ioctls"),
        }
    }

    /// An ioctl with a structure.
    fn ioctl_with<T: IntoBytes + Immutable>(&self, fd: i32, cmd: u32, value: &T) -> i64 {
        self.put(ARG, value);
        self.ioctl(fd, cmd, ARG)
    }

    fn vm(&self) -> i32 {
        let fd = self.dev_ioctl(ioctl::CREATE_VM, 0);
        assert!(fd > 0, "CREATE_VM: {fd}");
        fd as i32
    }

    fn vcpu(&self, vm: i32, id: u64) -> i32 {
        let fd = self.ioctl(vm, ioctl::CREATE_VCPU, id);
        assert!(fd > 0, "CREATE_VCPU: {fd}");
        fd as i32
    }

    fn map_user(&self, start: u64, size: u64) {
        self.with(|k| k.mapped.push((start, start + size)));
    }

    fn region(&self, vm: i32, slot: u32, gpa: u64, size: u64, user: u64) -> i64 {
        let region = ioctl::UserspaceMemoryRegion {
            slot,
            flags: 1,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: user,
        };
        self.ioctl_with(vm, ioctl::SET_USER_MEMORY_REGION, &region)
    }

    /// RUN with a fresh run structure.
    fn run(&self, vcpu: i32) -> i64 {
        self.with(|k| k.user(RUN, size_of::<VcpuRun>()).unwrap().fill(0));
        self.ioctl(vcpu, ioctl::RUN, RUN)
    }

    /// The hypervisor will exit so.
    fn exit(&self, exit: impl FnOnce(&mut crate::sys::Shared) -> u32 + Send + 'static) {
        self.with(|k| k.exits.push_back(Box::new(exit)));
    }

    /// How often a hypercall was made.
    fn count(&self, function: gzvm_abi::hypercall::Function) -> usize {
        self.with(|k| k.calls.iter().filter(|(f, _)| *f == function).count())
    }
}
