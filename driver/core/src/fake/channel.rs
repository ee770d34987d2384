// SPDX-License-Identifier: GPL-2.0-only
//! Files that are polled, and the hypervisor's channels: a message that is sent comes back as it is.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::c_void;

use gzvm_abi::hypercall::{Function, Status};
use gzvm_abi::rpc::{BODY, Header, MOST_BYTES, act, status};

use super::{EBADF, EINVAL, EMFILE, Fake, File, Shared, fake};

/// The hypervisor's channels by their handles.
#[derive(Default)]
pub struct Channels {
    pub open: BTreeMap<u64, Messages>,
    made: u64,
    /// Whom connecting, sending and closing say to wake.
    pub wakes: u64,
}

/// What is under way to the host, and how much it may send.
#[derive(Default)]
pub struct Messages {
    pub queue: VecDeque<(Header, Vec<u8>)>,
    pub full: bool,
}

impl Fake {
    pub(super) fn rpc(&mut self, function: Function, [a1, a2, a3, ..]: [u64; 7]) -> (Status, [u64; 3]) {
        let wakes = self.channels.wakes;
        match function {
            Function::RpcPolicy if a1 == 0 => (Status::Success, [16, 0, 0]),
            Function::RpcPolicy if a3 != 0 => (Status::Success, [16, 0, 0]),
            Function::RpcConnect => {
                assert!([a1, a3].iter().all(|id| *id == 0 || self.vms.contains_key(&(*id as u16))));
                self.channels.made += 1;
                let handle = self.channels.made << 16;
                self.channels.open.insert(handle, Messages::default());
                (Status::Success, [handle, wakes, wakes])
            }
            Function::RpcClose if self.channels.open.remove(&a1).is_some() => {
                (Status::Success, [wakes, wakes, 0])
            }
            Function::RpcMessage => match self.channels.open.get_mut(&a1) {
                Some(messages) => (Status::Success, [7, wakes, messages.act(a2, a3) as u64]),
                None => (Status::InvalidArgs, [0; 3]),
            },
            _ => (Status::InvalidArgs, [0; 3]),
        }
    }
}

impl Messages {
    fn act(&mut self, what: u64, area: u64) -> i64 {
        let mut area = Shared::at(area as *mut c_void);
        match what {
            act::SEND if self.full => status::AGAIN,
            act::SEND => {
                let head = area.get::<Header>(0);
                let body = area.get::<[u8; MOST_BYTES]>(BODY as usize);
                self.queue.push_back((head, body[..head.bytes as usize].to_vec()));
                0
            }
            act::RECEIVE => {
                let Some((mut head, body)) = self.queue.pop_front() else { return status::AGAIN };
                head.more = u32::from(!self.queue.is_empty());
                area.put(0, head);
                for (n, byte) in body.iter().enumerate() {
                    area.put(BODY as usize + n, *byte);
                }
                0
            }
            _ => status::NO_CALL,
        }
    }
}

pub unsafe fn gzk_poll_new() -> *mut c_void {
    fake(|k| {
        if k.fails() {
            return std::ptr::null_mut();
        }
        let handle = k.handle();
        k.polls.insert(handle, 0);
        std::ptr::without_provenance_mut(handle)
    })
}

pub unsafe fn gzk_poll_free(p: *mut c_void) {
    fake(|k| k.polls.remove(&p.addr()).expect("no place to poll"));
}

pub unsafe fn gzk_poll_set(p: *mut c_void, what: u32) {
    fake(|k| *k.polls.get_mut(&p.addr()).expect("no place to poll") |= what);
}

pub unsafe fn gzk_poll_clear(p: *mut c_void, what: u32) {
    fake(|k| *k.polls.get_mut(&p.addr()).expect("no place to poll") &= !what);
}

pub unsafe fn gzk_channel_fd(channel: *mut c_void) -> i32 {
    fake(|k| if k.fails() { EMFILE } else { k.new_fd(File::Channel(channel.expose_provenance())) })
}

pub unsafe fn gzk_vm_get(fd: i32, file: *mut *mut c_void, vm: *mut *mut c_void) -> i32 {
    let found = fake(|k| k.files.get(&fd).copied());
    match found {
        Some(File::Vm(p)) => {
            // SAFETY: as promised by the caller.
            unsafe {
                *file = std::ptr::without_provenance_mut(fd as usize);
                *vm = p as *mut c_void;
            }
            0
        }
        Some(_) => EINVAL,
        None => EBADF,
    }
}

pub unsafe fn gzk_vm_put(_file: *mut c_void) {}
