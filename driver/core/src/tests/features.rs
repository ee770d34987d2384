// SPDX-License-Identifier: GPL-2.0-only
//! VM_FEATURES.

use gzvm_abi::hypercall::{Function, cap, vm_feature::SVE};
use gzvm_abi::ioctl::{CHECK_EXTENSION, VM_FEATURES};

use super::*;

#[test]
fn features_are_asked_for_and_given() {
    let k = Session::new();
    let vm = k.vm();
    k.put(ARG, &cap::VM_FEATURES);
    assert_eq!((k.ioctl(vm, CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, SVE));
    assert_eq!(k.ioctl_with(vm, VM_FEATURES, &SVE), 0);
    assert_eq!(k.ioctl_with(vm, VM_FEATURES, &2_u64), EINVAL);
    assert_eq!(k.ioctl(vm, VM_FEATURES, 8), EFAULT);
    assert_eq!(k.count(Function::VmFeatures), 3);
}

#[test]
fn an_older_hypervisor_has_none() {
    let k = Session::new();
    k.with(|k| k.extensions = 0);
    assert_eq!(entry::gzr_init(), 0);
    let vm = k.vm();
    k.put(ARG, &cap::VM_FEATURES);
    assert_eq!(k.ioctl(vm, CHECK_EXTENSION, ARG), EOPNOTSUPP);
    assert_eq!(k.ioctl_with(vm, VM_FEATURES, &SVE), ENOTTY);
    assert_eq!(k.count(Function::VmFeatures), 0);
}
