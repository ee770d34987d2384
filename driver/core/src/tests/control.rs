// SPDX-License-Identifier: GPL-2.0-only
//! CONTROL and SET_WATCH: a VM's power, and its exceptions.

use gzvm_abi::control::{PAUSE, RESUME};
use gzvm_abi::hypercall::{Function, cap};
use gzvm_abi::ioctl::{CHECK_EXTENSION, CONTROL, Control, SET_WATCH, Watch};
use gzvm_abi::run::exit;
use gzvm_abi::watch::{action, kind};

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

#[test]
fn watches_are_passed_on() {
    let k = Session::new();
    let vm = k.vm();
    k.put(ARG, &cap::WATCH);
    assert_eq!((k.ioctl(vm, CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, 0x73F));
    let watch = Watch { kinds: kind::STALL, action: action::KILL, stall_ms: 77, reserved: [0; 2] };
    assert_eq!(k.ioctl_with(vm, SET_WATCH, &watch), 0);
    let last = k.with(|k| k.calls.last().copied()).unwrap();
    assert_eq!((last.0, &last.1[1..4]), (Function::SetWatch, &[0x10, 3, 77][..]));
    assert_eq!(k.ioctl_with(vm, SET_WATCH, &Watch { kinds: 1 << 31, ..watch }), EOPNOTSUPP);
    assert_eq!(k.ioctl_with(vm, SET_WATCH, &Watch { action: 4, ..watch }), EINVAL);
    assert_eq!(k.ioctl_with(vm, SET_WATCH, &Watch { reserved: [1, 0], ..watch }), EINVAL);
    let vcpu = k.vcpu(vm, 0);
    k.exit(|_| exit::WATCH);
    assert_eq!((k.run(vcpu), k.get::<u32>(RUN)), (0, exit::WATCH));
}
