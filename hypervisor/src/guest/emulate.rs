// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Device accesses that the abort does not describe (ESR_EL2.ISV = 0): pairs, write-back, SIMD.
//!
//! The instruction at the guest's PC is read and decoded (`gzvm_core::vcpu::decode`), and carried out
//! step by step: against the vGIC here, against user space by one MMIO exit a step. What is under
//! way is kept in [`Pending::Emulation`]; no register changes before the last step.
//!
//! Not for protected VMs: their instructions are nobody's business, and they get an abort.

use gzvm_abi::counter::Counter;
use gzvm_abi::run as abi;
use gzvm_core::addr::{Ipa, PAGE_SIZE};
use gzvm_core::memory::stage2::Walk;
use gzvm_core::vcpu::decode;
use gzvm_core::vcpu::decode::emulate::{
    self, Completion, Emulation, Fault, Mismatch, Registers, Step, Update,
};

use super::outcome::{Exit, Next};
use super::run::Running;
use super::vcpu::{Pending, Vcpu};
use crate::arch::cpu;
use crate::arch::percpu::{PerCpu, count};
use crate::mem::host;
use crate::platform;

/// SCTLR_EL1.E0E and EE: data is big-endian at EL0, at EL1.
const SCTLR_E0E: u64 = 1 << 24;
const SCTLR_EE: u64 = 1 << 25;

/// What the instruction at the guest's PC is.
enum Fetched {
    /// This word.
    Word(u32),
    /// Its page has gone meanwhile: the guest's own fetch finds out why.
    Gone,
    /// It lies in no memory of the guest.
    Nowhere,
}

impl Running<'_> {
    /// A data abort without syndrome at `fault`, which is a device's.
    pub(super) fn without_syndrome(&mut self, fault: Fault, esr: u64) -> Next {
        if self.vm.protected() {
            return self.external_abort(esr, fault.far);
        }
        let word = match self.fetch(self.vcpu.regs.pc) {
            Fetched::Word(word) => word,
            Fetched::Gone => return Next::Resume,
            Fetched::Nowhere => return self.external_abort(esr, fault.far),
        };
        let begun = decode::decode(word).ok().and_then(|access| match self.begin(access, fault) {
            Err(Mismatch::CrossesPage) if self.goes_on(&fault) => {
                self.begin(access, Fault { onward: true, ..fault }).ok()
            }
            begun => begun.ok(),
        });
        match begun {
            Some(emulation) => {
                count(Counter::GuestEmulated);
                self.go_on(emulation)
            }
            None => self.external_abort(esr, fault.far),
        }
    }

    /// The instruction at `va`, where it can be read: as `fetch`.
    pub(super) fn instruction(&self, va: u64) -> Option<u32> {
        match self.fetch(va) {
            Fetched::Word(word) => Some(word),
            Fetched::Gone | Fetched::Nowhere => None,
        }
    }

    /// The word at `va`, the guest's PC. Another vCPU may change the code, its translation or its memory
    /// all the while, so what is read may not be what faulted; `emulate` checks it against the fault.
    fn fetch(&self, va: u64) -> Fetched {
        let Some(ipa) = cpu::guest_stage1(va) else { return Fetched::Gone };
        let memory = self.vm.memory.lock();
        let Walk::Mapped { pa, .. } = memory.walk(ipa) else {
            return if memory.slots.find(ipa).is_some() { Fetched::Gone } else { Fetched::Nowhere };
        };
        // A guest with its caches off wrote its code past them.
        let uncached = cpu::guest_is_uncached();
        let mut word = [0; 4];
        match host::read_word(&platform::ownership().lock(), pa, uncached, &mut word) {
            // Instructions are little-endian, whatever data is.
            Ok(()) => Fetched::Word(u32::from_le_bytes(word)),
            Err(host::NotHosts) => Fetched::Nowhere,
        }
    }

    /// Is the page behind the one that faulted its neighbour in the guest's physical addresses too, and no memory? Only
    /// asked for loads at EL1, whose right to read is the one that AT S1E1R checks.
    fn goes_on(&self, fault: &Fault) -> bool {
        let page = |address: u64| address & !PAGE_SIZE.wrapping_sub(1);
        if fault.write || self.vcpu.regs.pstate & 0xF == 0 {
            return false;
        }
        let next = Ipa(page(fault.ipa.0).wrapping_add(PAGE_SIZE));
        if cpu::guest_stage1(page(fault.far).wrapping_add(PAGE_SIZE)) != Some(next) {
            return false;
        }
        let memory = self.vm.memory.lock();
        matches!(memory.walk(next), Walk::Unmapped { .. }) && memory.slots.find(next).is_none()
    }

    fn begin(&mut self, access: decode::Access, fault: Fault) -> Result<Emulation, Mismatch> {
        if access.bank == decode::Bank::Vector {
            let fp = &mut self.vcpu.fp;
            PerCpu::this().with(|s| s.take_guest_fp(fp));
        }
        let at_el0 = self.vcpu.regs.pstate & 0xF == 0;
        let endian = if at_el0 { SCTLR_E0E } else { SCTLR_EE };
        let registers = Registers {
            x: &self.vcpu.regs.x,
            sp: cpu::guest_sp(self.vcpu.regs.pstate),
            pc: self.vcpu.regs.pc,
            big_endian: cpu::guest_sctlr() & endian != 0,
        };
        let fp = &self.vcpu.fp;
        Emulation::begin(access, &registers, fault, |n| fp.vector(n))
    }

    /// Carries on until user space is needed or all is done: four steps, or a few more across a page's end.
    fn go_on(&mut self, mut emulation: Emulation) -> Next {
        loop {
            match emulation.next() {
                emulate::Next::Done(completion) => {
                    self.complete(&completion);
                    return Next::Resume;
                }
                emulate::Next::Step(step) => {
                    let Some((frame, offset)) = self.gic_frame(step.ipa) else {
                        self.vcpu.pending = Some(Pending::Emulation(emulation));
                        return Next::Exit(Exit::Mmio(exit_of(step)));
                    };
                    count(Counter::GuestGicMmio);
                    let data = match step.write {
                        None => self.gic_read(frame, offset, step.size),
                        Some(value) => {
                            let kicks = self.gic_write(frame, offset, step.size, value);
                            self.vcpu.wake_others |= self.vm.kick(kicks);
                            0
                        }
                    };
                    emulation.answer(data);
                }
            }
        }
    }

    /// With the guest's world in the CPU.
    fn complete(&mut self, completion: &Completion) {
        if completion.updates.iter().any(|u| matches!(u, Update::Vector(..))) {
            let fp = &mut self.vcpu.fp;
            PerCpu::this().with(|s| s.take_guest_fp(fp));
        }
        let pstate = self.vcpu.regs.pstate;
        apply(self.vcpu, completion, |_, value| cpu::set_guest_sp(pstate, value));
    }
}

/// The answer to an MMIO exit of `emulation`: the next exit, or None when the instruction is done. The
/// vCPU is not in a CPU.
pub(super) fn answered(vcpu: &mut Vcpu, mut emulation: Emulation, data: u64) -> Option<Exit> {
    emulation.answer(data);
    match emulation.next() {
        emulate::Next::Step(step) => {
            vcpu.pending = Some(Pending::Emulation(emulation));
            Some(Exit::Mmio(exit_of(step)))
        }
        emulate::Next::Done(completion) => {
            apply(vcpu, &completion, |vcpu, value| {
                let el1 = &mut vcpu.el1;
                *(if cpu::uses_sp_el0(vcpu.regs.pstate) { &mut el1.sp_el0 } else { &mut el1.sp_el1 }) = value;
            });
            None
        }
    }
}

fn apply(vcpu: &mut Vcpu, completion: &Completion, mut stack_pointer: impl FnMut(&mut Vcpu, u64)) {
    for update in &completion.updates {
        match *update {
            Update::General(register, value) => {
                if let Some(x) = vcpu.regs.x.get_mut(usize::from(register)) {
                    *x = value;
                }
            }
            Update::StackPointer(value) => stack_pointer(vcpu, value),
            Update::Vector(register, value) => vcpu.fp.set_vector(register, value),
        }
    }
    vcpu.regs.step();
    vcpu.regs.pc = completion.pc;
}

fn exit_of(step: Step) -> abi::Mmio {
    abi::Mmio {
        phys_addr: step.ipa.0,
        data: step.write.unwrap_or(0).to_le_bytes(),
        size: u64::from(step.size),
        reg_nr: NO_REGISTER,
        is_write: u8::from(step.write.is_some()),
        pad: [0; 3],
    }
}

/// `reg_nr` of a step: the zero register, for several may be concerned, or a vector.
const NO_REGISTER: u32 = 31;
