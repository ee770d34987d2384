// SPDX-License-Identifier: GPL-2.0-only
//! CONTROL: a VM's power.

use gzvm_abi::control::{PAUSE, RESUME};
use gzvm_abi::hypercall::{Function, cap};
use gzvm_abi::ioctl::{CHECK_EXTENSION, CONTROL, Control};

use super::*;

fn control(what: u32) -> Control {
    Control { what, state: 0, events: 0, reserved: [0; 2] }
}

#[test]
fn control_passes_state_and_events() {
    let k = Session::new();
    let vm = k.vm();
    k.put(ARG, &cap::CONTROL);
    assert_eq!((k.ioctl(vm, CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, 1));
    k.with(|k| k.control_busy = 100);
    assert_eq!(k.ioctl_with(vm, CONTROL, &control(PAUSE)), 0);
    let answer = k.get::<Control>(ARG);
    assert_eq!((answer.what, answer.state, answer.events), (PAUSE, 2, 5));
    assert_eq!(k.count(Function::Control), 101);
}

#[test]
fn a_signal_ends_the_wait_for_a_pause() {
    let k = Session::new();
    let vm = k.vm();
    k.with(|k| (k.control_busy, k.signal) = (1000, true));
    assert_eq!(k.ioctl_with(vm, CONTROL, &control(PAUSE)), EINTR);
    assert_eq!(k.count(Function::Control), 1);
    k.with(|k| (k.control_busy, k.signal) = (0, false));
}

#[test]
fn control_refuses_what_it_does_not_know() {
    let k = Session::new();
    let vm = k.vm();
    assert_eq!(k.ioctl_with(vm, CONTROL, &control(99)), EINVAL);
    assert_eq!(k.ioctl_with(vm, CONTROL, &Control { reserved: [0, 1], ..control(RESUME) }), EINVAL);
    assert_eq!(k.count(Function::Control), 1);
    assert_eq!(k.ioctl(vm, CONTROL, 8), EFAULT);
}
