// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The guests' calls: `docs/abi.md`, "RPC". What they do at a channel is in [`super`].

use gzvm_abi::rpc::{MOST_BYTES, SLOTS, received, status};
use gzvm_abi::{guest, run as abi};
use gzvm_core::platform::smccc::NOT_SUPPORTED;
use gzvm_core::rpc::call::{self, Buffer, Call};
use gzvm_core::rpc::channel::{Handle, Who};

use super::{Failure, Received, Sending, Told, at, close, find, settle};
use crate::arch::cpu;
use crate::guest::lending;
use crate::guest::memory::NoPage;
use crate::guest::outcome::{Exit, Next};
use crate::guest::run::Running;
use crate::mem::guest::GuestBytes;

impl Running<'_> {
    /// One of the calls of [`gzvm_core::rpc::call`].
    pub(in crate::guest) fn rpc(&mut self, fid: u32) -> Next {
        let Some(policy) = self.vm.rpc.policy() else {
            self.vcpu.regs.x[0] = NOT_SUPPORTED;
            return Next::Resume;
        };
        let [_, x1, x2, x3, x4, x5, ..] = self.vcpu.regs.x;
        let vm = self.vm;
        let (done, told) = match call::decode(fid, [x1, x2, x3, x4, x5]) {
            None => (Err(Failure::Invalid), Told::Nobody),
            Some(Call::Info) => {
                self.results(&[policy.doorbell.0.into(), MOST_BYTES as u64, SLOTS as u64]);
                return Next::Resume;
            }
            Some(Call::Open(port)) => {
                let found = find(vm, port).ok_or(Failure::Invalid);
                (found.map(|handle| self.results(&[handle.0])), Told::Nobody)
            }
            Some(Call::Peer(by)) => {
                let (peer, told) = at(by, Who::Vm(vm.party), |line, side| line.peer(side));
                (peer.map(|peer| self.results(&peer.registers())), told)
            }
            Some(Call::Call { by, message, time, loan }) => self.send(by, Sending::Call(time, loan), message),
            Some(Call::Notice { by, message }) => self.send(by, Sending::Notice, message),
            Some(Call::Reply { by, message, token }) => self.send(by, Sending::Reply(token), message),
            Some(Call::Receive { by, room }) => self.receive(by, room),
            Some(Call::Cancel { by, token }) => {
                let (done, told) = at(by, Who::Vm(vm.party), |line, side| line.cancel(side, token));
                (done.map(|()| self.results(&[])), told)
            }
            Some(Call::Close(by)) => match close(vm, by) {
                Ok(told) => {
                    self.results(&[]);
                    (Ok(()), told)
                }
                Err(e) => (Err(e), Told::Nobody),
            },
        };
        match done {
            Ok(()) => {}
            // The driver brings it, and the guest calls again. Nothing has happened yet.
            Err(Failure::Absent(ipa)) => {
                self.vcpu.regs.pc = self.vcpu.regs.pc.wrapping_sub(4);
                return Next::Exit(Exit::PageFault(ipa.0));
            }
            // Taken back, and the guest calls again: what it asks for comes once nothing is owed.
            Err(Failure::Owes(owed)) => {
                self.vcpu.regs.pc = self.vcpu.regs.pc.wrapping_sub(4);
                if lending::take_back(vm, owed.0) {
                    settle(Handle(x1), vm, owed);
                } else if told == Told::Nobody {
                    return Next::Exit(Exit::Irq);
                }
            }
            Err(e) => self.vcpu.regs.x[0] = e.status() as u64,
        }
        match told {
            Told::Nobody => Next::Resume,
            Told::Sleepers(vm, vcpus) => {
                Next::Exit(Exit::Bell(abi::Bell { handle: 0, vcpus, vm: vm.into(), what: 0 }))
            }
            Told::Host(handle, bell) => {
                Next::Exit(Exit::Bell(abi::Bell { handle: handle.0, vcpus: 0, vm: 0, what: bell.0 }))
            }
        }
    }

    /// Success, and x1 on.
    fn results(&mut self, results: &[u64]) {
        let x = &mut self.vcpu.regs.x;
        x[0] = status::SUCCESS as u64;
        for (to, from) in x.iter_mut().skip(1).zip(results) {
            *to = *from;
        }
    }

    fn tell_of(&mut self, message: &Received) {
        let more = if message.more { received::MORE } else { 0 };
        let granted = if message.grant.is_some() { received::GRANT } else { 0 };
        let what = u64::from(message.kind) | more | granted | (message.bytes as u64) << received::BYTES_SHIFT;
        self.results(&[what, message.token, message.time]);
        for (to, from) in self.vcpu.regs.x.iter_mut().skip(4).zip(message.sender.registers()) {
            *to = from;
        }
        if let Some(grant) = message.grant {
            let rights = if grant.write { guest::VM_MEM_READ_WRITE } else { guest::VM_MEM_READ };
            self.vcpu.regs.x[10..13].copy_from_slice(&[grant.loan.0, grant.pages, rights]);
        }
    }

    fn send(&mut self, by: Handle, what: Sending, message: Buffer) -> (Result<(), Failure>, Told) {
        let who = Who::Vm(self.vm.party);
        let uncached = cpu::guest_is_uncached();
        let (sent, told) = self.with_buffer(message, false, |place| {
            at(by, who, |line, side| {
                line.send(side, what, message.bytes, |to| match place {
                    Some(place) => place.read(uncached, to).map_err(|_| Failure::Invalid),
                    None => Ok(()),
                })
            })
        });
        (sent.map(|token| self.results(&[token])), told)
    }

    fn receive(&mut self, by: Handle, room: Buffer) -> (Result<(), Failure>, Told) {
        let who = Who::Vm(self.vm.party);
        let uncached = cpu::guest_is_uncached();
        // Too large to be moved from hand to hand.
        let mut message = Received::default();
        let (received, told) = self.with_buffer(room, true, |place| {
            at(by, who, |line, side| {
                line.receive(side, room.bytes, &mut message, |_, from| match place {
                    Some(place) => place.write(uncached, from).map_err(|_| Failure::Invalid),
                    None => Ok(()),
                })
            })
        });
        if matches!(received, Ok(()) | Err(Failure::TooSmall)) {
            self.tell_of(&message);
        }
        (received, told)
    }

    /// With the place of a buffer in the guest's memory; without one for an empty buffer.
    fn with_buffer<T>(
        &self,
        buffer: Buffer,
        write: bool,
        act: impl FnOnce(Option<&GuestBytes<'_>>) -> (Result<T, Failure>, Told),
    ) -> (Result<T, Failure>, Told) {
        if buffer.bytes == 0 {
            return act(None);
        }
        let memory = self.vm.memory.lock();
        match memory.message_page(buffer.at, write) {
            Ok(place) => act(Some(&place)),
            Err(NoPage::Absent) => (Err(Failure::Absent(buffer.at)), Told::Nobody),
            Err(NoPage::Nowhere) => (Err(Failure::Invalid), Told::Nobody),
        }
    }
}
