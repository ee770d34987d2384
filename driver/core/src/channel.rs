// SPDX-License-Identifier: GPL-2.0-only
//! A channel (RPC_CONNECT): a VM's with the host, whose end the file is; or between two VMs, which the file only keeps open.
//!
//! References: the channel's file, and each VM at it, which gives its reference back as soon as its own file is closed or its guest is over; so
//! channels and VMs do not keep each other. Whatever ends it, the hypervisor is told once, and whoever polls sees a hang-up.
//!
//! What can be read or written is known by the hypervisor's doorbells alone. A bit is taken away before the hypervisor is asked, and
//! put back by its answer, or by a doorbell in between: so none is lost.

use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, Ordering};

use gzvm_abi::hypercall::Function;
use gzvm_abi::ioctl::RpcConnect;
use gzvm_abi::rpc::{BODY, Header, MOST_BYTES, act, bell, received, status};

use crate::hypercall::call;
use crate::kernel::page::Pages;
use crate::kernel::sync::{Class, Mutex, Poll};
use crate::kernel::{Arc, Result, code, file, uaccess};
use crate::vm::Vm;

/// Bytes of a message's head in user space.
const HEAD: usize = size_of::<Header>();
const BODY_AT: usize = BODY as usize;

/// A channel.
pub struct Channel {
    handle: u64,
    vm: Arc<Vm>,
    /// Else the host's.
    other: Option<Arc<Vm>>,
    area: Mutex<Pages<1>>,
    poll: Poll,
    closed: AtomicBool,
}

impl Channel {
    /// RPC_CONNECT of `vm`: the descriptor of a new channel.
    pub fn connect(vm: &Arc<Vm>, request: &RpcConnect) -> Result<i64> {
        if request.reserved != 0 {
            return Err(code::EINVAL);
        }
        let other = match request.peer {
            -1 => None,
            fd => Some(file::vm_of(fd)?),
        };
        let area = Mutex::new(Class::Channel, Pages::new()?)?;
        let poll = Poll::new()?;
        let peer = other.as_ref().map_or(0, |vm| vm.id().into());
        let args = [vm.id().into(), request.port.into(), peer, request.peer_port.into()];
        let reply = call(Function::RpcConnect, args)?;
        let handle = reply.x1;
        let vms = [Some(vm), other.as_ref()];
        vms.into_iter().flatten().zip([reply.x2, reply.x3]).for_each(|(vm, mask)| vm.wake(mask));
        let made = Arc::new(Self {
            handle,
            vm: Arc::clone(vm),
            other: other.clone(),
            area,
            poll,
            closed: AtomicBool::new(false),
        });
        let channel = made.inspect_err(|_| {
            let _ = call(Function::RpcClose, [handle]);
        })?;
        channel.poll.set(bell::ROOM);
        let kept = vms.into_iter().flatten().try_for_each(|vm| vm.join(Arc::clone(&channel)));
        let done = kept.and_then(|()| file::channel_fd(Arc::clone(&channel)));
        done.inspect_err(|_| channel.close())
    }

    /// The hypervisor's name for it.
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// The other VM, as seen from one of the two.
    pub fn peer_of(&self, id: u16) -> Option<&Arc<Vm>> {
        match &self.other {
            Some(other) if self.vm.id() == id => Some(other),
            Some(_) => Some(&self.vm),
            None => None,
        }
    }

    /// Where those who poll wait.
    pub fn poll(&self) -> *mut c_void {
        self.poll.as_ptr()
    }

    /// The doorbell of the host's end.
    pub fn rung(&self, what: u32) {
        self.poll.set(what);
    }

    /// It is over. Wakes all who have to know, and is forgotten by its VMs.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        // Fails where the guest was faster.
        if let Ok(reply) = call(Function::RpcClose, [self.handle]) {
            self.vm.wake(reply.x1);
            if let Some(other) = &self.other {
                other.wake(reply.x2);
            }
        }
        self.poll.set(bell::GONE);
        self.vm.leave(self.handle);
        if let Some(other) = &self.other {
            other.leave(self.handle);
        }
    }

    /// Reads a message: its head and what it says. EINVAL: less room than the longest needs. 0: the channel is over.
    pub fn read(&self, to: u64, room: u64) -> Result<i64> {
        if room < (HEAD + MOST_BYTES) as u64 {
            return Err(code::EINVAL);
        }
        let area = self.area.lock_interruptible()?;
        self.poll.clear(bell::MESSAGE);
        match self.act(act::RECEIVE, area.pa()) {
            Ok(_) => {}
            Err(code::EPIPE) => return Ok(0),
            Err(e) => return Err(e),
        }
        let head = area.load::<Header, 0>();
        if head.more != 0 {
            self.poll.set(bell::MESSAGE);
        }
        uaccess::write(to, &head)?;
        let bytes = (head.bytes as usize).min(MOST_BYTES);
        area.copy_out::<BODY_AT>(to.checked_add(HEAD as u64).ok_or(code::EFAULT)?, bytes)?;
        Ok(HEAD.saturating_add(bytes) as i64)
    }

    /// Writes a reply or a notice: its head and what it says.
    pub fn write(&self, from: u64, bytes: u64) -> Result<i64> {
        let head = uaccess::read::<Header>(from)?;
        let whole = bytes.checked_sub(HEAD as u64) == Some(head.bytes.into());
        if !whole || !matches!(head.kind, received::REPLY | received::NOTICE) {
            return Err(code::EINVAL);
        }
        self.send(from, &head)?;
        Ok(bytes as i64)
    }

    /// An ioctl of the channel's file.
    pub fn ioctl(&self, cmd: u32, arg: u64) -> Result<i64> {
        match cmd {
            gzvm_abi::ioctl::RPC_CALL => {
                let mut head = uaccess::read::<Header>(arg)?;
                if head.kind != received::CALL {
                    return Err(code::EINVAL);
                }
                head.token = self.send(arg, &head)?;
                uaccess::write(arg, &head).map(|()| 0)
            }
            gzvm_abi::ioctl::RPC_CANCEL => self.act(act::CANCEL, uaccess::read(arg)?).map(|_| 0),
            _ => Err(code::ENOTTY),
        }
    }

    /// The token.
    fn send(&self, from: u64, head: &Header) -> Result<u64> {
        let bytes = head.bytes as usize;
        if bytes > MOST_BYTES {
            return Err(code::EINVAL);
        }
        let area = self.area.lock_interruptible()?;
        area.copy_in::<BODY_AT>(from.checked_add(HEAD as u64).ok_or(code::EFAULT)?, bytes)?;
        area.store::<Header, 0>(*head);
        self.poll.clear(bell::ROOM);
        let sent = self.act(act::SEND, area.pa());
        if !matches!(sent, Err(code::EAGAIN)) {
            self.poll.set(bell::ROOM);
        }
        sent
    }

    /// RPC_MESSAGE. EPIPE: the channel is over; EAGAIN: nothing there, or no room; ENOENT: no such call.
    fn act(&self, what: u64, x3: u64) -> Result<u64> {
        if self.other.is_some() {
            // The words of VMs among each other are not the host's.
            return Err(code::EOPNOTSUPP);
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(code::EPIPE);
        }
        let reply = match call(Function::RpcMessage, [self.handle, what, x3]) {
            Ok(reply) => reply,
            // The guest has closed it, which its exit tells as well.
            Err(code::EINVAL) if !self.exists() => return Err(code::EPIPE),
            Err(e) => return Err(e),
        };
        self.vm.wake(reply.x2);
        outcome(reply.x3 as i64).map(|()| reply.x1)
    }

    /// Whether the hypervisor knows the handle: there is never a call with token 0.
    fn exists(&self) -> bool {
        call(Function::RpcMessage, [self.handle, act::CANCEL, 0]).is_ok()
    }
}

/// A status of the hypervisor's as an errno.
fn outcome(told: i64) -> Result {
    match told {
        status::SUCCESS => Ok(()),
        status::AGAIN => Err(code::EAGAIN),
        status::NO_CALL => Err(code::ENOENT),
        status::GONE => Err(code::EPIPE),
        _ => Err(code::EINVAL),
    }
}
