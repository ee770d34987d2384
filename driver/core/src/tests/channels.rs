// SPDX-License-Identifier: GPL-2.0-only
//! RPC_POLICY, RPC_CONNECT, and the files of channels.

use gzvm_abi::ioctl::{
    CHECK_EXTENSION, RPC_CALL, RPC_CANCEL, RPC_CONNECT, RPC_POLICY, RpcConnect, RpcPolicy, extension,
};
use gzvm_abi::rpc::{Header, MOST_BYTES, bell, received};
use gzvm_abi::run::{Bell, PAYLOAD_OFFSET, SystemEvent, exit, system_event};

use super::*;
use crate::sys::close;

const HEAD: u64 = size_of::<Header>() as u64;
const EPIPE: i64 = -32;
const EAGAIN: i64 = -11;

const fn connect(peer: i32) -> RpcConnect {
    RpcConnect { port: 1, peer, peer_port: 2, reserved: 0 }
}

impl Session {
    fn channel(&self, vm: i32, peer: i32) -> i32 {
        let fd = self.ioctl_with(vm, RPC_CONNECT, &connect(peer));
        assert!(fd > 0, "RPC_CONNECT: {fd}");
        fd as i32
    }

    fn of(&self, fd: i32) -> *mut c_void {
        match self.with(|k| k.files[&fd]) {
            File::Channel(p) => p as *mut c_void,
            other => panic!("{other:?} is no channel"),
        }
    }

    #[expect(unsafe_code, reason = "plays the kernel")]
    fn read(&self, fd: i32, len: u64) -> i64 {
        // SAFETY: the private data of an open file.
        unsafe { entry::gzr_channel_read(self.of(fd), ARG, len) }
    }

    /// Writes a head with so many bytes behind it.
    #[expect(unsafe_code, reason = "plays the kernel")]
    fn write(&self, fd: i32, kind: u32, bytes: u32) -> i64 {
        self.put(ARG, &Header { kind, bytes, ..Header::default() });
        // SAFETY: the private data of an open file.
        unsafe { entry::gzr_channel_write(self.of(fd), ARG, HEAD + u64::from(bytes)) }
    }

    #[expect(unsafe_code, reason = "plays the kernel")]
    fn polled(&self, fd: i32) -> u32 {
        // SAFETY: the private data of an open file.
        let place = unsafe { entry::gzr_channel_poll(self.of(fd)) };
        self.with(|k| k.polls[&place.addr()])
    }

    fn handle(&self) -> u64 {
        self.with(|k| *k.channels.open.keys().next().unwrap())
    }
}

const ALL: u64 = HEAD + MOST_BYTES as u64;

#[test]
fn what_is_written_and_read() {
    let k = Session::new();
    let vm = k.vm();
    k.put(ARG, &extension::RPC);
    assert_eq!((k.ioctl(vm, CHECK_EXTENSION, ARG), k.get::<u64>(ARG)), (0, 16));
    let policy = RpcPolicy { with: 1, channels: 4, spi: 9, reserved: 0 };
    assert_eq!(k.ioctl_with(vm, RPC_POLICY, &policy), 0);
    assert_eq!(k.ioctl_with(vm, RPC_POLICY, &RpcPolicy { with: 0, ..policy }), EINVAL);
    assert_eq!(k.ioctl_with(vm, RPC_POLICY, &RpcPolicy { reserved: 1, ..policy }), EINVAL);
    assert_eq!(k.ioctl_with(vm, RPC_CONNECT, &RpcConnect { reserved: 1, ..connect(-1) }), EINVAL);
    assert_eq!(k.ioctl_with(vm, RPC_CONNECT, &connect(99)), EBADF);
    let fd = k.channel(vm, -1);
    assert_eq!(k.polled(fd), bell::ROOM);
    assert_eq!(k.read(fd, ALL), EAGAIN);
    assert_eq!(k.read(fd, ALL - 1), EINVAL);
    for bytes in [0, 5, MOST_BYTES as u32] {
        assert_eq!(k.write(fd, received::NOTICE, bytes), i64::from(bytes) + HEAD as i64);
    }
    for (kind, bytes) in [(received::CALL, 0), (received::LAPSED, 0), (received::NOTICE, 4097), (0, 0)] {
        assert_eq!(k.write(fd, kind, bytes), EINVAL, "kind {kind}, {bytes} bytes");
    }
    for (bytes, more) in [(0, 1), (5, 1), (MOST_BYTES as i64, 0)] {
        assert_eq!(k.read(fd, ALL), HEAD as i64 + bytes);
        assert_eq!(k.get::<Header>(ARG).more, more);
        assert_eq!(k.polled(fd) & bell::MESSAGE, more, "whether there is more");
    }
    k.put(ARG, &Header { kind: received::CALL, bytes: 3, ..Header::default() });
    assert_eq!((k.ioctl(fd, RPC_CALL, ARG), k.get::<Header>(ARG).token), (0, 7));
    k.put(ARG, &Header { kind: received::NOTICE, ..Header::default() });
    assert_eq!(k.ioctl(fd, RPC_CALL, ARG), EINVAL);
    assert_eq!(k.ioctl_with(fd, RPC_CANCEL, &5_u64), ENOENT);
    assert_eq!(k.ioctl(fd, RPC_CONNECT, ARG), ENOTTY);
}

#[test]
fn doorbells_wake_who_polls() {
    let k = Session::new();
    let vm = k.vm();
    let (vcpu, fd) = (k.vcpu(vm, 0), k.channel(vm, -1));
    let handle = k.handle();
    k.with(|k| k.channels.open.get_mut(&handle).unwrap().full = true);
    assert_eq!(k.write(fd, received::NOTICE, 0), EAGAIN);
    assert_eq!(k.polled(fd), 0, "without room");
    k.exit(move |shared| {
        shared.put(PAYLOAD_OFFSET, Bell { handle, vcpus: 0, vm: 0, what: bell::MESSAGE | bell::ROOM });
        exit::BELL
    });
    k.exit(|shared| {
        shared.put(PAYLOAD_OFFSET, SystemEvent { type_: system_event::SHUTDOWN, ..SystemEvent::default() });
        exit::SYSTEM_EVENT
    });
    assert_eq!(k.run(vcpu), 0);
    // The end of the guest is the end of its channels.
    assert_eq!(k.polled(fd), bell::MESSAGE | bell::ROOM | bell::GONE);
    assert_eq!((k.read(fd, ALL), k.write(fd, received::NOTICE, 0)), (0, EPIPE));
}

#[test]
fn vms_are_told_by_each_others_exits() {
    let k = Session::new();
    let (a, b) = (k.vm(), k.vm());
    let (first, second) = (k.vcpu(a, 0), k.vcpu(b, 0));
    let fd = k.channel(a, b);
    assert_eq!((k.read(fd, ALL), k.write(fd, received::NOTICE, 0)), (EOPNOTSUPP, EOPNOTSUPP));
    // The second sleeps unless it is woken.
    let wakes = |shared: &mut crate::sys::Shared| {
        shared.put(PAYLOAD_OFFSET, Bell { handle: 0, vcpus: 1, vm: 2, what: 0 });
        exit::BELL
    };
    let before = crate::counters::WAKE_UPS.get();
    k.exit(wakes);
    k.exit(|_| exit::SHUTDOWN);
    assert_eq!(k.run(first), 0);
    assert_eq!(crate::counters::WAKE_UPS.get(), before + 1);
    close(b);
    assert_eq!(k.polled(fd) & bell::GONE, bell::GONE);
    close(second);
    close(fd);
}

#[test]
fn files_go_in_any_order_and_every_step_may_fail() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let k = Session::new();
        let vms = [k.vm(), k.vm()];
        let fds = [vms[0], vms[1], k.channel(vms[0], vms[1])];
        order.iter().for_each(|n| close(fds[*n]));
        assert_eq!(k.held(), "", "{order:?}");
    }
    for n in 1.. {
        let k = Session::new();
        let vms = [k.vm(), k.vm()];
        k.with(|k| (k.fail_at, k.fallible_calls) = (Some(n), 0));
        let fd = k.ioctl_with(vms[0], RPC_CONNECT, &connect(vms[1]));
        let all = k.with(|k| core::mem::take(&mut k.fail_at).is_some() && k.fallible_calls < n);
        vms.iter().for_each(|fd| close(*fd));
        if all {
            assert!(fd > 0);
            close(fd as i32);
            return;
        }
        assert!(fd < 0, "call {n} failed");
        assert_eq!(k.held(), "", "after call {n} failed");
    }
}
