// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A vCPU while it does not run: its registers, its part of the timers and of the vGIC, and what it waits for.

use arrayvec::ArrayVec;
use gzvm_abi::run::HWSTATE_OFFSET;
use gzvm_core::addr::{Ipa, VcpuId};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::platform::smccc;
use gzvm_core::vcpu::decode::emulate::Emulation;
use gzvm_core::vcpu::mmio::PendingLoad;
use gzvm_core::vgic::{self, CpuInterface};
use zerocopy::IntoBytes;

use super::timer::PhysicalTimer;
use super::vm::{Vgic, Vm};
use super::watch::VcpuWatch;
use crate::arch::debug::DebugRegs;
use crate::arch::el1::{El1Regs, SCTLR_EL1_RESET};
use crate::arch::fp::GuestFp;
use crate::arch::frame::{GuestRegs, PSTATE_EL1H_MASKED};
use crate::arch::gic;
use crate::arch::timer::VirtualTimer;
use crate::mem::host::SharedPages;

/// What a vCPU waits for when it comes back from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// A load's data.
    Load(PendingLoad),
    /// x0..x3 of the wall-clock call.
    Ptp,
    /// A load or store that takes several accesses: the answer to the current one.
    Emulation(Emulation),
    /// The guest stops sharing the page at this IPA, which the driver has been told.
    Unshare(u64),
}

/// A vCPU.
pub struct Vcpu {
    /// Its index.
    pub id: VcpuId,
    /// General registers.
    pub regs: GuestRegs,
    /// EL1 registers while it does not run.
    pub el1: El1Regs,
    /// Virtual timer while it does not run.
    pub timer: VirtualTimer,
    /// Physical timer.
    pub ptimer: PhysicalTimer,
    /// FP registers while they are not in a CPU.
    pub fp: GuestFp,
    /// Virtual CPU interface.
    pub gic: CpuInterface,
    /// What it shares with the driver.
    pub shared: SharedPages,
    /// What the last exit waits for.
    pub pending: Option<Pending>,
    /// In a PSCI power-down state: where it starts when that is over, and with what in x0.
    pub resume: Option<(u64, u64)>,
    /// vCPUs that sleep and have to be woken (bit n: vCPU n), of whom the driver has not been told yet.
    pub wake_others: u64,
    /// When its thread last did anything but come straight back, in ticks; kept under the public driver alone.
    pub rested: u64,
    /// Resampled interrupts that the guest has ended, of which the driver has not been told yet.
    pub resampled: ArrayVec<u32, 16>,
    /// OS lock: keeps debug exceptions off.
    pub os_lock: bool,
    /// MDSCR_EL1 as the guest wrote it; of it, what takes effect is in the real register.
    pub mdscr: u64,
    /// Breakpoints and watchpoints.
    pub debug: DebugRegs,
    /// Its part of the VM's watch.
    pub watch: VcpuWatch,
}

impl Vcpu {
    pub fn new(id: VcpuId, shared: SharedPages, fp: GuestFp) -> Self {
        let mut vcpu = Self {
            id,
            regs: GuestRegs::default(),
            el1: El1Regs::default(),
            timer: VirtualTimer::default(),
            ptimer: PhysicalTimer::default(),
            fp,
            gic: CpuInterface::default(),
            shared,
            pending: None,
            resume: None,
            wake_others: 0,
            rested: 0,
            resampled: ArrayVec::new(),
            os_lock: false,
            mdscr: 0,
            debug: DebugRegs::default(),
            watch: VcpuWatch::default(),
        };
        vcpu.reset(0, 0);
        vcpu
    }

    /// Reset state, starting at `entry` with `context` in x0. Nothing survives.
    pub fn reset(&mut self, entry: u64, context: u64) {
        self.regs = GuestRegs::default();
        self.regs.pc = entry;
        self.regs.pstate = PSTATE_EL1H_MASKED;
        self.regs.x[0] = context;
        if broken(Mistake::NoReset) {
            return;
        }
        self.el1 = El1Regs { sctlr: SCTLR_EL1_RESET, ..El1Regs::default() };
        self.timer = VirtualTimer::default();
        self.ptimer.reset();
        self.fp.reset();
        self.gic = CpuInterface { vmcr: gic::VMCR_RESET, ..CpuInterface::default() };
        self.pending = None;
        self.resume = None;
        self.os_lock = false;
        self.mdscr = 0;
        self.debug = DebugRegs::default();
        self.watch = VcpuWatch::default();
    }

    /// Reset state, but for the timers, which count on in a power-down state.
    pub fn wake(&mut self, entry: u64, context: u64) {
        let (timer, ptimer) = (self.timer, self.ptimer);
        self.reset(entry, context);
        self.timer = VirtualTimer { kctl: 0, ..timer };
        self.ptimer = ptimer;
    }

    /// Completes the call by which the guest stops sharing the page at `ipa`.
    pub fn finish_unshare(&mut self, vm: &Vm, ipa: u64) {
        self.pending = None;
        let done = vm.memory.lock().expose(Ipa(ipa), 1, false);
        self.regs.x[0] = if done.is_ok() { 0 } else { smccc::INVALID_PARAMETER };
    }

    /// MPIDR_EL1 as the guest reads it.
    pub fn mpidr(&self) -> u64 {
        1 << 31 | u64::from(vgic::affinity(self.id))
    }

    /// Fetches what the guest has ended, as much as there is room for. What stays in the vGIC is next.
    #[inline(always)]
    pub fn fetch_resampled(&mut self, vgic: &mut Vgic) {
        if vgic.has_resampled() {
            self.fetch(vgic);
        }
    }

    #[cold]
    fn fetch(&mut self, vgic: &mut Vgic) {
        while !self.resampled.is_full()
            && let Some(intid) = vgic.take_resampled()
        {
            self.resampled.push(intid.0);
        }
    }

    /// Tells the driver the counter offset.
    pub fn publish_offset(&self, cntvoff: u64) {
        self.publish(cntvoff, 0, 0);
    }

    /// Fills the hardware state page.
    pub fn publish(&self, vtimer_offset: u64, vtimer_delay: u64, vtimer_migrate: u32) {
        let state =
            gzvm_abi::run::HwState { vtimer_offset, vtimer_delay, vtimer_migrate, ..Default::default() };
        self.shared.write(HWSTATE_OFFSET, state.as_bytes());
    }
}
