// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What a guest's synchronous exceptions come to.

use core::sync::atomic::Ordering;

use gzvm_abi::counter::Counter;
use gzvm_abi::run as abi;
use gzvm_core::addr::{Ipa, VcpuId};
use gzvm_core::memory::stage2::Walk;
use gzvm_core::platform::smccc;
use gzvm_core::vcpu::decode::emulate::Fault;
use gzvm_core::vcpu::mmio::{PendingLoad, truncate};
use gzvm_core::vcpu::syndrome::{self, Abort, Cause, DataAccess, FaultKind};
use gzvm_core::vgic::{Kicks, REDIST_SIZE};

use super::outcome::{Exit, Next};
use super::run::Running;
use super::vcpu::Pending;
use super::vm::Vgic;
use crate::arch::percpu::{PerCpu, count};
use crate::arch::{barrier, cpu};
use gzvm_core::broken::{Mistake, broken};

/// Fault status code of a TLB conflict abort.
const FSC_TLB_CONFLICT: u8 = 0x30;
/// Bytes of the distributor frame.
const GICD_SIZE: u64 = 0x1_0000;

impl Running<'_> {
    /// One synchronous exception.
    pub fn handle_sync(&mut self) -> Next {
        let esr = cpu::esr();
        match syndrome::decode(esr) {
            Cause::Hvc { imm: 0 } => {
                count(Counter::GuestHvc);
                self.call()
            }
            // Firmware is not for guests.
            Cause::Smc { .. } => {
                count(Counter::GuestSmc);
                self.vcpu.regs.x[0] = smccc::NOT_SUPPORTED;
                self.skip();
                Next::Resume
            }
            Cause::Wait { wfe } => {
                count(Counter::GuestWfi);
                self.skip();
                if wfe { Next::Resume } else { self.wait_for_interrupt() }
            }
            Cause::Fp => self.use_fp(),
            Cause::Sysreg(access) => {
                count(Counter::GuestSysreg);
                self.sysreg(access)
            }
            Cause::DataAbort(abort, access) => self.abort(abort, access, false),
            Cause::InstructionAbort(abort) => self.abort(abort, None, true),
            Cause::Hvc { .. } => {
                // The return address is behind the instruction; an undefined one's is at it.
                self.vcpu.regs.pc = self.vcpu.regs.pc.wrapping_sub(4);
                self.inject_undefined();
                Next::Resume
            }
            Cause::Other(_) => match self.watched_sync(esr) {
                Some(next) => next,
                None => {
                    self.inject_undefined();
                    Next::Resume
                }
            },
        }
    }

    /// Steps over the instruction that trapped.
    pub fn skip(&mut self) {
        self.vcpu.regs.step();
    }

    /// A synchronous exception at EL1.
    pub(super) fn inject(&mut self, esr: u64, far: u64) {
        let (pc, pstate) = cpu::inject_sync(esr, far, self.vcpu.regs.pc, self.vcpu.regs.pstate);
        self.vcpu.regs.pc = pc;
        self.vcpu.regs.pstate = pstate;
    }

    /// An Undefined Instruction exception, at the instruction that trapped.
    pub fn inject_undefined(&mut self) {
        self.inject(syndrome::ESR_UNDEFINED, 0);
    }

    fn use_fp(&mut self) -> Next {
        const FP: u64 = 0x07;
        const SVE: u64 = 0x19;
        let class = cpu::esr() >> 26 & 0x3F;
        let sve = self.vcpu.fp.has_sve();
        match class {
            // The VM was given SVE before this CPU came up, which has none.
            _ if sve && !PerCpu::this().with(|s| s.features.sve) => {
                self.inject_undefined();
                return Next::Resume;
            }
            // They come once, and are switched together.
            FP => {}
            SVE if sve => {}
            // SME, and SVE of those that were not given it, trap for good: they are hidden.
            _ => {
                self.inject_undefined();
                return Next::Resume;
            }
        }
        count(Counter::GuestFp);
        let fp = &self.vcpu.fp;
        PerCpu::this().with(|s| s.guest_uses_fp(fp));
        Next::Resume
    }

    /// The syndrome of an access that nothing answers.
    fn bus_error(&self, instruction: bool, write: bool) -> u64 {
        let from_el0 = self.vcpu.regs.pstate & 0xF == 0;
        syndrome::esr_external_abort(instruction, from_el0, write)
    }

    /// A stage-2 abort.
    fn abort(&mut self, abort: Abort, access: Option<DataAccess>, instruction: bool) -> Next {
        let esr = self.bus_error(instruction, abort.write);
        let far = cpu::far();
        if !matches!(abort.kind, FaultKind::Translation) {
            if abort.kind == FaultKind::Other(FSC_TLB_CONFLICT) {
                barrier::tlbi_vmid();
                return Next::Resume;
            }
            // A right that another VM's page was not lent with; an address past the IPA size; or the
            // machine's own trouble with the access. The guest is told as a bus would.
            return self.external_abort(esr, far);
        }
        let ipa = syndrome::fault_ipa(cpu::fault_ipa_page(), far);
        if !abort.s1ptw
            && let Some((frame, offset)) = self.gic_frame(ipa)
        {
            let Some(access) = access else {
                return self.undescribed(ipa, abort, instruction);
            };
            count(Counter::GuestGicMmio);
            return self.gic_access(frame, offset, access);
        }
        if let Some(next) = self.slot_fault(ipa) {
            return next;
        }
        match access {
            Some(access) if !instruction && !abort.s1ptw && !abort.cm => self.device_access(ipa, access),
            _ => self.undescribed(ipa, abort, instruction),
        }
    }

    /// A device access without syndrome, or what is none: a fetch, a table walk, cache maintenance.
    #[cold]
    fn undescribed(&mut self, ipa: Ipa, abort: Abort, instruction: bool) -> Next {
        let far = cpu::far();
        let esr = self.bus_error(instruction, abort.write);
        if instruction || abort.s1ptw || abort.cm {
            return self.external_abort(esr, far);
        }
        self.without_syndrome(Fault { ipa, far, write: abort.write, onward: false }, esr)
    }

    /// A fault in a memory slot: mapped meanwhile by another vCPU, or a page for the driver to bring.
    fn slot_fault(&mut self, ipa: Ipa) -> Option<Next> {
        let memory = self.vm.memory.lock();
        memory.slots.find(ipa)?;
        Some(match memory.walk(ipa) {
            Walk::Mapped { .. } => Next::Resume,
            _ => Next::Exit(Exit::PageFault(ipa.0)),
        })
    }

    fn device_access(&mut self, ipa: Ipa, access: DataAccess) -> Next {
        let protected = self.vm.protected();
        if protected && !broken(Mistake::NoMmioGuard) && self.vm.memory.lock().refuses_mmio(ipa) {
            return self.external_abort(self.bus_error(false, access.write), cpu::far());
        }
        let value = match self.vcpu.regs.x.get(usize::from(access.rt)) {
            Some(x) if access.write && broken(Mistake::ShownWhole) => *x,
            Some(x) if access.write => truncate(*x, access.size),
            _ => 0,
        };
        let mmio = abi::Mmio {
            phys_addr: ipa.0,
            data: value.to_le_bytes(),
            size: u64::from(access.size),
            // For information; of a protected guest's instructions the host has none.
            reg_nr: if protected && !broken(Mistake::ShownRegister) { 31 } else { u32::from(access.rt) },
            is_write: u8::from(access.write),
            pad: [0; 3],
        };
        match PendingLoad::of(access) {
            Some(load) => self.vcpu.pending = Some(Pending::Load(load)),
            None => self.skip(),
        }
        Next::Exit(Exit::Mmio(mmio))
    }

    /// The GIC frame that holds `ipa`: the distributor, or a vCPU's redistributor.
    #[inline]
    pub(super) fn gic_frame(&self, ipa: Ipa) -> Option<(Option<VcpuId>, u64)> {
        let gicd = self.vm.gicd.load(Ordering::Relaxed);
        if let Some(offset) = ipa.0.checked_sub(gicd).filter(|o| *o < GICD_SIZE) {
            return Some((None, offset));
        }
        let gicr = self.vm.gicr.load(Ordering::Relaxed);
        let offset = ipa.0.checked_sub(gicr)?;
        let count = self.vm.vcpu_count.load(Ordering::Relaxed);
        let vcpu = u16::try_from(offset / REDIST_SIZE).ok().filter(|v| u32::from(*v) < count)?;
        Some((Some(VcpuId(vcpu)), offset % REDIST_SIZE))
    }

    fn gic_access(&mut self, frame: Option<VcpuId>, offset: u64, access: DataAccess) -> Next {
        let size = access.size;
        let value = match self.vcpu.regs.x.get(usize::from(access.rt)) {
            Some(x) if access.write => truncate(*x, size),
            _ => 0,
        };
        if access.write {
            let kicks = self.gic_write(frame, offset, size, value);
            self.skip();
            return self.after_kicks(kicks);
        }
        let data = self.gic_read(frame, offset, size);
        if let Some(load) = PendingLoad::of(access) {
            let (register, value) = load.complete(data);
            if let Some(x) = self.vcpu.regs.x.get_mut(usize::from(register)) {
                *x = value;
            }
        }
        self.skip();
        Next::Resume
    }

    /// A write of a GIC frame's register.
    #[inline]
    pub(super) fn gic_write(&mut self, frame: Option<VcpuId>, offset: u64, size: u8, value: u64) -> Kicks {
        let id = self.vcpu.id;
        let mut vgic = self.vgic();
        match frame {
            None => vgic.dist_write(id, offset, size, value),
            Some(target) => vgic.redist_write(id, target, offset, size, value),
        }
    }

    /// A read, of which no list register knows more than the model.
    #[inline(always)]
    pub(super) fn gic_read_settled(&self, frame: Option<VcpuId>, offset: u64, size: u8) -> Option<u64> {
        let settled = match frame {
            None => Vgic::dist_settled(offset, size),
            Some(_) => Vgic::redist_settled(offset, size),
        };
        settled.then(|| read_frame(&mut self.vm.vgic.lock(), self.vcpu.id, frame, offset, size))
    }

    /// A read.
    #[inline]
    pub(super) fn gic_read(&mut self, frame: Option<VcpuId>, offset: u64, size: u8) -> u64 {
        if let Some(data) = self.gic_read_settled(frame, offset, size) {
            return data;
        }
        let id = self.vcpu.id;
        let mut vgic = self.vgic();
        let data = read_frame(&mut vgic, id, frame, offset, size);
        let holders = match frame {
            None => vgic.held_elsewhere(offset, size),
            Some(target) => vgic.held_elsewhere_redist(target, offset, size),
        };
        drop(vgic);
        // vCPUs that know better than what was read come out: a guest that polls sees it next time.
        let _ = self.vm.kick(holders);
        data
    }
}

#[inline(always)]
fn read_frame(vgic: &mut Vgic, from: VcpuId, frame: Option<VcpuId>, offset: u64, size: u8) -> u64 {
    match frame {
        None => vgic.dist_read(from, offset, size),
        Some(_) if broken(Mistake::OwnRedistributor) => vgic.redist_read(from, from, offset, size),
        Some(target) => vgic.redist_read(from, target, offset, size),
    }
}
