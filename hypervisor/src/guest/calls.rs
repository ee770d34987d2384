// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A guest's calls by HVC #0: SMCCC, PSCI, the vendor hypervisor services. What is answered is
//! decided in `gzvm_core::platform`; here it is done.

use core::sync::atomic::Ordering;

use gzvm_abi::counter::Counter;
use gzvm_abi::guest;
use gzvm_core::addr::{Ipa, PAGE_SIZE};
use gzvm_core::platform::psci::{self, Outcome};
use gzvm_core::platform::smccc::{self, Answer};
use gzvm_core::vgic::Kicks;
use gzvm_core::vm::lifecycle::Cause;

use super::memory::NoPage;
use super::outcome::{Exit, Next};
use super::run::Running;
use super::vcpu::Pending;
use super::vm::IPA_BITS;
use crate::arch::cpu;
use crate::arch::percpu::count;

impl Running<'_> {
    /// HVC #0. The return address is behind the instruction already.
    pub fn call(&mut self) -> Next {
        #[cfg(feature = "crash-test")]
        if crate::hypercall::crash::intercept_break(&mut self.vcpu.regs.x) {
            return Next::Resume;
        }
        let [x0, x1, x2, x3, ..] = self.vcpu.regs.x;
        match smccc::decide(x0, x1, self.vm.protected()) {
            Answer::One(value) => self.vcpu.regs.x[0] = value,
            Answer::Four(values) => self.vcpu.regs.x[..4].copy_from_slice(&values),
            Answer::Psci => return self.psci(x0, [x1, x2, x3]),
            Answer::Arch { fid, arg } => {
                let pfr0 = cpu::id_register(4, 0);
                self.vcpu.regs.x[0] = match fid {
                    smccc::ARCH_FEATURES => smccc::arch_feature(arg, pfr0),
                    _ => smccc::workaround(fid, pfr0),
                };
            }
            Answer::Ptp => {
                self.vcpu.pending = Some(Pending::Ptp);
                let counter = x1 & 0xFFFF_FFFF;
                return Next::Exit(Exit::Hypercall([u64::from(guest::PTP), counter]));
            }
            Answer::Trng { fid, arg } => return self.trng(fid, arg),
            Answer::Relinquish(ipa) => return self.relinquish(ipa),
            Answer::Share(ipa) => return self.expose(ipa, None, true),
            Answer::ShareRun(ipa) => return self.expose(ipa, Some(x2), true),
            Answer::Unshare(ipa) => return self.unshare(ipa),
            Answer::GuardEnroll => {
                self.vm.memory.lock().guard();
                self.vcpu.regs.x[0] = 0;
            }
            Answer::GuardMap(ipa) => self.name_mmio(ipa, true),
            Answer::GuardUnmap(ipa) => self.name_mmio(ipa, false),
            Answer::Lending(fid) => return self.lending(fid),
            Answer::Measurement(fid) => return self.measurement(fid),
            Answer::Image(fid) => return self.image(fid),
            Answer::Rpc(fid) => return self.rpc(fid),
        }
        Next::Resume
    }

    /// A protected guest lets the host see a page, or some of a run of pages, or takes that back.
    fn expose(&mut self, ipa: u64, run: Option<u64>, visible: bool) -> Next {
        let done = self.vm.memory.lock().expose(Ipa(ipa), run.unwrap_or(1), visible);
        self.vcpu.regs.x[0] = match done {
            Ok(done) => {
                if run.is_some() {
                    self.vcpu.regs.x[1] = done;
                }
                0
            }
            Err(NoPage::Absent) => {
                // The driver brings it, and the guest calls again.
                self.vcpu.regs.pc = self.vcpu.regs.pc.wrapping_sub(4);
                return Next::Exit(Exit::PageFault(ipa));
            }
            Err(NoPage::Nowhere) => smccc::INVALID_PARAMETER,
        };
        Next::Resume
    }

    /// A protected guest hides a page from the host again. A driver that asked for it is told first, and takes the page out of
    /// its own mappings.
    fn unshare(&mut self, ipa: u64) -> Next {
        if !self.vm.memory.lock().announces_unshare(Ipa(ipa)) {
            return self.expose(ipa, None, false);
        }
        self.vcpu.pending = Some(Pending::Unshare(ipa));
        Next::Exit(Exit::Unshare(ipa))
    }

    fn name_mmio(&mut self, ipa: u64, named: bool) {
        let done = self.vm.memory.lock().name_mmio(Ipa(ipa), named);
        self.vcpu.regs.x[0] = if done.is_ok() { 0 } else { smccc::INVALID_PARAMETER };
    }

    /// The guest gives a page back; the driver then unpins it.
    fn relinquish(&mut self, ipa: u64) -> Next {
        let aligned = Ipa(ipa).is_aligned(PAGE_SIZE);
        if !aligned || !self.vm.memory.lock().unmap_page(Ipa(ipa)) {
            self.vcpu.regs.x[0] = smccc::INVALID_PARAMETER;
            return Next::Resume;
        }
        self.vcpu.regs.x[0] = 0;
        Next::Exit(Exit::Hypercall([u64::from(guest::MEM_RELINQUISH), ipa]))
    }

    fn psci(&mut self, fid: u64, args: [u64; 3]) -> Next {
        let id = self.vcpu.id;
        self.progress();
        let outcome = self.vm.power.lock().call(id, fid, args, IPA_BITS);
        match outcome {
            Outcome::Return(value) => {
                self.vcpu.regs.x[0] = value;
                Next::Resume
            }
            Outcome::Started(target) => {
                self.vcpu.regs.x[0] = psci::SUCCESS;
                // It parks in the driver: RUN found it off.
                let parked = self.vm.idle.get(usize::from(target.0));
                if parked.is_some_and(|p| p.load(Ordering::SeqCst)) {
                    Next::Exit(Exit::Ipi(Kicks::of(target).0))
                } else {
                    Next::Resume
                }
            }
            Outcome::Standby => {
                self.vcpu.regs.x[0] = psci::SUCCESS;
                self.wait_for_interrupt()
            }
            Outcome::PowerDown { entry, context, may_return } => {
                if !may_return {
                    count(Counter::GuestSystemSuspend);
                }
                self.power_down(entry, context, may_return)
            }
            Outcome::CheckRange { base, length } => {
                let all_memory = self.vm.memory.lock().slots.hold(Ipa(base), length);
                self.vcpu.regs.x[0] = if all_memory { psci::SUCCESS } else { psci::DENIED };
                Next::Resume
            }
            Outcome::Off => {
                let kicks = self.vgic().set_power(id, false);
                self.vcpu.wake_others |= self.vm.kick(kicks);
                // The next RUN finds it off, and parks it.
                Next::Exit(Exit::Idle(0))
            }
            Outcome::SystemOff => self.end(Cause::PowerOff),
            Outcome::SystemReset { reset2 } => {
                self.end(Cause::Reset { data: reset2.map_or([0; 2], |(kind, cookie)| [kind, cookie]) })
            }
        }
    }

    /// The VM ends. The caller is told once its peers are out too.
    fn end(&self, cause: Cause) -> Next {
        self.vm.end(cause);
        Next::Exit(Exit::Again)
    }
}
