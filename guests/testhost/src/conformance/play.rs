// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Plays a driver of some generation: its calls in its order, its answers to faults and sleeps.

use gzvm_abi::hypercall::{Function, Status};
use gzvm_guest_kit::case::{Outcome, Verdict};
use gzvm_guest_kit::hypercall::Reply;
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{ArrayVec, arch, check, check_eq, fail, gic, machine, timer};

use super::answers;
use crate::pages;

/// How pages come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    /// All of a slot after its registration, through the region buffer.
    Eager,
    /// MAP_GUEST of one page a fault.
    Single,
    /// MAP_GUEST_BLOCK of the 2 MiB around the fault; `counts`: the call says how many pages.
    Block { counts: bool },
}

struct Slot {
    id: u64,
    gfn: u64,
    pages: u64,
    memory: u64,
}

/// A driver with one VM of two vCPUs.
pub struct Play {
    family: u64,
    paging: Paging,
    batch: u64,
    destroy_batch: u64,
    /// The VM.
    pub id: u64,
    /// Shared areas.
    pub shared: [u64; 2],
    mailbox: u64,
    buffer: u64,
    slots: ArrayVec<Slot, 4>,
    /// Page faults served.
    pub faults: u64,
    /// Exits of this kind seen: IDLE, IPI.
    pub sleeps: u64,
    /// See `sleeps`.
    pub ipis: u64,
    gone: bool,
}

/// Longest that a guest may run without an exit for user space.
const PATIENCE_S: u64 = 20;

impl Play {
    /// PROBE, the batch queries of generation F, CREATE_VM.
    pub fn load_and_create(family: u64, paging: Paging, newest: bool) -> Result<Self, Verdict> {
        let mut play = Self {
            family,
            paging,
            batch: 512,
            destroy_batch: 0,
            id: 0,
            shared: [pages::take(2, 4096), pages::take(2, 4096)],
            mailbox: pages::take(1, 4096),
            buffer: pages::take(2, 4096),
            slots: ArrayVec::new(),
            faults: 0,
            sleeps: 0,
            ipis: 0,
            gone: true,
        };
        if newest {
            play.must(Function::Probe, &[16, 0, 0])?;
            play.batch = play.must(Function::EnableCap, &[0, 0x9204])?.values[0];
            play.destroy_batch = play.must(Function::EnableCap, &[0, 0x9205])?.values[0];
        } else {
            play.must(Function::Probe, &[0, 0, 0])?;
        }
        play.id = play.must(Function::CreateVm, &[0])?.values[0];
        play.gone = false;
        Ok(play)
    }

    /// A call by the identifier that this generation uses.
    pub fn call(&self, function: Function, args: &[u64]) -> Reply {
        let x = Conduit::Hvc.call(self.family + function as u64, args);
        Reply { x0: x[0], values: [x[1], x[2], x[3]] }
    }

    fn must(&self, function: Function, args: &[u64]) -> Result<Reply, Verdict> {
        let reply = self.call(function, args);
        answers(reply, Status::Success, format_args!("{function:?} {args:x?}"))?;
        Ok(reply)
    }

    /// A call about the VM that has to succeed.
    pub fn vm_call(&self, function: Function, args: &[u64]) -> Outcome {
        let mut all = [0; 7];
        all[0] = self.id;
        all[1..=args.len()].copy_from_slice(args);
        self.must(function, &all).map(drop)
    }

    /// ENABLE_CAP 0x9201 with the mailbox.
    pub fn enable_blocks(&self) -> Outcome {
        self.vm_call(Function::EnableCap, &[0x9201, 0x20_0000, self.mailbox])
    }

    /// A region: purpose, registration with a dirty buffer, population where the generation does it.
    pub fn add_region(&mut self, gpa: u64, count: u64, purpose: u64, memory: u64) -> Outcome {
        let id = self.slots.len() as u64;
        self.vm_call(Function::MemregionPurpose, &[gpa, count << 12, purpose])?;
        // The page is not zeroed by the driver.
        for at in (0..8192).step_by(8) {
            pages::write(self.buffer + at, 0xDEAD_BEEF_0BAD_F00D);
        }
        pages::put(self.buffer, id as u32);
        pages::write(self.buffer + 8, count);
        pages::write(self.buffer + 16, gpa);
        self.vm_call(Function::SetMemregion, &[8192, self.buffer])?;
        let slot = Slot { id, gfn: gpa >> 12, pages: count, memory };
        if self.paging == Paging::Eager {
            self.populate(&slot)?;
        }
        check!(self.slots.try_push(slot).is_ok(), "too many slots");
        Ok(())
    }

    /// Chunks of up to 510 pages, in two runs each.
    fn populate(&self, slot: &Slot) -> Outcome {
        let mut done = 0;
        while done < slot.pages {
            let now = (slot.pages - done).min(510);
            let halves = [now / 2, now - now / 2];
            let mut at = slot.memory + (done << 12);
            let mut entries = 0u32;
            for pages in halves.into_iter().filter(|p| *p != 0) {
                let entry = self.buffer + 24 + 16 * u64::from(entries);
                pages::put(entry, at);
                pages::put(entry + 8, pages as u32);
                at += pages << 12;
                entries += 1;
            }
            pages::put(self.buffer, slot.id as u32);
            pages::put(self.buffer + 4, entries);
            pages::write(self.buffer + 8, now);
            pages::write(self.buffer + 16, (slot.gfn + done) << 12);
            self.vm_call(Function::SetMemregion, &[8192, self.buffer])?;
            done += now;
        }
        Ok(())
    }

    /// The GIC as crosvm describes it: the redistributors with the size of one.
    pub fn add_gic(&self) -> Outcome {
        let page = pages::take(1, 4096);
        for (dev_type, address, size) in [(0u64, 0x3FFF_0000, 0x1_0000), (1, 0x3FFB_0000, 0x2_0000)] {
            pages::write(page, dev_type);
            pages::write(page + 16, address);
            pages::write(page + 24, size);
            self.vm_call(Function::CreateDevice, &[page])?;
        }
        Ok(())
    }

    fn tuple(&self, vcpu: usize) -> u64 {
        self.id << 16 | vcpu as u64
    }

    /// CREATE_VCPU of both.
    pub fn add_vcpus(&self) -> Outcome {
        for (n, shared) in self.shared.iter().enumerate() {
            self.must(Function::CreateVcpu, &[self.tuple(n), *shared])?;
        }
        Ok(())
    }

    /// SET_ONE_REG of core register `index`.
    pub fn set(&self, vcpu: usize, index: u64, value: u64) -> Outcome {
        let id = 0x6030_0000_0010_0000 + index;
        self.must(Function::SetOneReg, &[self.tuple(vcpu), id, value]).map(drop)
    }

    /// A page fault, as the driver answers it.
    fn fault(&mut self, gpa: u64) -> Outcome {
        let gfn = gpa >> 12;
        let Some(slot) = self.slots.iter().find(|s| (s.gfn..s.gfn + s.pages).contains(&gfn)) else {
            fail!("a page fault at {gpa:#x}, outside of all slots")
        };
        let pfn = |gfn: u64| (slot.memory >> 12) + (gfn - slot.gfn);
        match self.paging {
            Paging::Eager => fail!("a page fault at {gpa:#x} in a VM without demand paging"),
            Paging::Single => self.vm_call(Function::MapGuest, &[slot.id, pfn(gfn), gfn, 1])?,
            Paging::Block { counts } => {
                let mut at = (gfn & !511).max(slot.gfn);
                let end = ((gfn | 511) + 1).min(slot.gfn + slot.pages);
                while at < end {
                    let now = self.batch.min(end - at);
                    for n in 0..now {
                        pages::write(self.mailbox + 8 * n, pfn(at + n));
                    }
                    let count: &[u64] = if counts { &[now] } else { &[] };
                    let mut args = [slot.id, at, 0];
                    args[2..2 + count.len()].copy_from_slice(count);
                    self.vm_call(Function::MapGuestBlock, &args)?;
                    at += now;
                }
            }
        }
        self.faults += 1;
        Ok(())
    }

    /// One RUN of a vCPU, for a millisecond at most, with what the driver does about it: the exit if it is
    /// for user space.
    fn slice(&mut self, vcpu: usize) -> Result<Option<u32>, Verdict> {
        timer::arm_at(timer::now() + timer::frequency() / 1000);
        let reason = self.call(Function::Run, &[self.tuple(vcpu)]).values[0] as u32;
        timer::disarm();
        let page = self.shared[vcpu];
        check_eq!(pages::get::<u32>(page), reason, "exit_reason in the page");
        match reason {
            0x9292_0003 | 0x9292_000A => {
                arch::irq_enable();
                arch::isb();
                arch::irq_disable();
            }
            0x9292_000B => self.sleeps += 1,
            0x9292_000D => self.ipis += 1,
            0x9292_0004 if pages::get::<u32>(page + 8) == 1 => self.fault(pages::get(page + 16))?,
            _ => return Ok(Some(reason)),
        }
        Ok(None)
    }

    /// Runs both vCPUs in turn on this CPU until vCPU 0 has an exit for user space.
    pub fn run(&mut self) -> Result<u32, Verdict> {
        gic::set_handler(|intid| {
            if intid == machine::get().timer_intid {
                timer::disarm();
            }
        });
        gic::enable(machine::get().timer_intid);
        let end = timer::now() + PATIENCE_S * timer::frequency();
        while timer::now() < end {
            if let Some(reason) = self.slice(1)? {
                fail!("vCPU 1 exits with {reason:#x}");
            }
            if let Some(reason) = self.slice(0)? {
                return Ok(reason);
            }
        }
        fail!("no exit of vCPU 0")
    }

    /// The next exit of vCPU 0 is this access: offset in the device, write, data.
    pub fn device(&mut self, offset: u64, write: bool, what: &str) -> Result<u64, Verdict> {
        check_eq!(self.run()?, 0x9292_0001, "{what}: exit");
        let page = self.shared[0];
        let at: u64 = pages::get(page + 8);
        check_eq!((at, pages::get::<u8>(page + 36)), (0x9_0000 + offset, u8::from(write)), "{what}: access");
        Ok(pages::get(page + 16))
    }

    /// A signal is pending: the driver tells the hypervisor.
    pub fn inform_exit(&self) -> Outcome {
        self.vm_call(Function::InformExit, &[])
    }

    /// DESTROY_VCPU of each, DESTROY_VM until it is not busy.
    pub fn close(mut self) -> Outcome {
        for n in 0..2 {
            self.must(Function::DestroyVcpu, &[self.tuple(n)])?;
        }
        self.gone = true;
        for _ in 0..10_000 {
            let reply = self.call(Function::DestroyVm, &[self.id, self.destroy_batch]);
            if reply.status() != Some(Status::Busy) {
                return answers(reply, Status::Success, format_args!("DESTROY_VM"));
            }
        }
        fail!("DESTROY_VM has no end")
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        if !self.gone {
            let _ = crate::vm::destroy(self.id as u16);
        }
    }
}
