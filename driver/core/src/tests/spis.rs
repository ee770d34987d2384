// SPDX-License-Identifier: GPL-2.0-only
//! VGIC_SPIS.

use gzvm_abi::hypercall::Function;
use gzvm_abi::ioctl::{CHECK_EXTENSION, CREATE_VCPU, VGIC_SPIS, VgicSpis, extension};

use super::*;
use crate::sys::close;

const fn spis(spis: u32) -> VgicSpis {
    VgicSpis { spis, reserved: [0; 3] }
}

#[test]
fn a_vm_has_as_many_spis_as_it_asks_for() {
    let k = Session::new();
    let vm = k.vm();
    k.put(ARG, &extension::VGIC_SPIS);
    assert_eq!((k.ioctl(vm, CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, 988));
    assert_eq!(k.ioctl_with(vm, VGIC_SPIS, &spis(988)), 0);
    assert_eq!(k.ioctl_with(vm, VGIC_SPIS, &spis(31)), EINVAL);
    assert_eq!(k.with(|k| k.vms.values().next().unwrap().spis), 988);
    let vcpu = k.ioctl(vm, CREATE_VCPU, 0) as i32;
    assert_eq!(k.ioctl_with(vm, VGIC_SPIS, &spis(64)), EINVAL, "with a vCPU");
    close(vcpu);
}

#[test]
fn a_request_for_spis_is_looked_at() {
    let k = Session::new();
    let vm = k.vm();
    for reserved in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
        assert_eq!(k.ioctl_with(vm, VGIC_SPIS, &VgicSpis { reserved, ..spis(64) }), EINVAL);
    }
    assert_eq!(k.ioctl(vm, VGIC_SPIS, 8), EFAULT);
    assert_eq!(k.count(Function::VgicSpis), 0);
}

#[test]
fn a_hypervisor_without_it() {
    let k = Session::new();
    k.with(|k| k.extensions = 1);
    assert_eq!(crate::entry::gzr_init(), 0);
    let vm = k.vm();
    k.put(ARG, &extension::VGIC_SPIS);
    assert_eq!(k.ioctl(vm, CHECK_EXTENSION, ARG), EOPNOTSUPP);
    assert_eq!(k.ioctl_with(vm, VGIC_SPIS, &spis(64)), ENOTTY);
    assert_eq!(k.count(Function::VgicSpis), 0);
}
