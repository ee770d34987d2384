// SPDX-License-Identifier: GPL-2.0-only
//! MEASUREMENT.

use gzvm_abi::hypercall::Function;
use gzvm_abi::ioctl::{CHECK_EXTENSION, MEASUREMENT, Measurement, extension};

use super::*;

const EAGAIN: i64 = -11;

#[test]
fn both_halves_are_told_in_order() {
    let k = Session::new();
    let vm = k.vm();
    k.put(ARG, &extension::MEASUREMENT);
    assert_eq!((k.ioctl(vm, CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, 1));
    assert_eq!(k.ioctl(vm, MEASUREMENT, ARG), EOPNOTSUPP, "a plain VM");
    k.with(|k| k.vms.values_mut().for_each(|vm| (vm.protected, vm.extends) = (true, 2)));
    assert_eq!(k.ioctl(vm, MEASUREMENT, ARG), 0);
    let value = core::array::from_fn(|n| n as u8);
    assert_eq!(k.get::<Measurement>(ARG), Measurement { value, state: 2 << 32 | 1 });
    assert_eq!(k.ioctl(vm, MEASUREMENT, 8), EFAULT);
}

#[test]
fn halves_of_two_values_are_not_mixed() {
    let k = Session::new();
    let vm = k.vm();
    k.with(|k| k.vms.values_mut().for_each(|vm| (vm.protected, vm.extending) = (true, true)));
    assert_eq!(k.ioctl(vm, MEASUREMENT, ARG), EAGAIN);
}

#[test]
fn an_older_hypervisor_keeps_none() {
    let k = Session::new();
    k.with(|k| k.extensions = 0);
    assert_eq!(entry::gzr_init(), 0);
    let vm = k.vm();
    k.put(ARG, &extension::MEASUREMENT);
    assert_eq!(k.ioctl(vm, CHECK_EXTENSION, ARG), EOPNOTSUPP);
    assert_eq!(k.ioctl(vm, MEASUREMENT, ARG), ENOTTY);
    assert_eq!(k.count(Function::Measurement), 0);
}
