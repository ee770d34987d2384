// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The host VM: Linux with the machine to itself, less what is not its own.
//!
//! - Its stage 2 is an identity map of everything but the hypervisor's memory, in the largest blocks.
//! - What its devices see behind an SMMU is the same ([`dma`]).
//! - Memory that a protected VM is given leaves it, and comes back scrubbed.
//! - It comes to EL2 for HVC, SMC, faults on memory that is not its own, and its first FP use after
//!   a guest's. Interrupts never come here while it runs ([`Counter::HostIrq`] proves it).

pub mod dma;
pub mod lpis;
mod psci;

use arrayvec::ArrayVec;
use gzvm_abi::counter::Counter;
use gzvm_abi::hypercall::strip_sve_hint;
use gzvm_core::addr::{Ipa, Pa};
use gzvm_core::broken::{Mistake, broken};
use gzvm_core::fdt::machine::Region;
use gzvm_core::memory::ownership::State;
use gzvm_core::memory::stage2::{Attrs, MapError, Stage2};
use gzvm_core::memory::{IpaRange, PaRange};
use gzvm_core::platform::host_calls::{self, HostCall};
use gzvm_core::platform::smccc::NOT_SUPPORTED;
use gzvm_core::smmu::Unfit;
use gzvm_core::smmu::stream_table::Stage2Config;
use gzvm_core::vcpu::syndrome::{self, Abort, Cause, FaultKind};
use spin::Once;

use crate::arch::lock::Mutex;

use crate::arch::frame::HostFrame;
use crate::arch::id::Features;
use crate::arch::percpu::{PerCpu, count};
use crate::arch::{cpu, smc, world};
use crate::guest::memory::MapFailure;
use crate::hypercall;
use crate::mem::pool::{self, Account};
use crate::mem::tables::{Tables, VmTlb};
use crate::platform;
use dma::HostTlb;

/// `reason` of an SError.
const SERROR: u64 = 3;
/// The host's VMID.
const VMID: u16 = 0;
/// Pages that the host's tables may take: the root, and splits around what is not its own.
const TABLE_LIMIT: u64 = 4096;

/// The host's stage 2.
pub struct Host {
    /// Its tables.
    pub stage2: Stage2,
    /// Who pays for them.
    pub account: Account,
}

static HOST: Once<Mutex<Host>> = Once::new();
static TRANSLATION: Once<(u64, u64)> = Once::new();

/// IPA bits of the host: the machine's PA size, as far as a concatenated level-1 root reaches, so
/// that its tables are walked from 1 GiB entries on and devices cost no tables.
pub fn ipa_bits(features: &Features) -> u8 {
    features.pa_bits.min(43)
}

/// What is left of `region` without `holes`, part by part, lowest first.
pub fn without(region: Region, holes: &[Region]) -> impl Iterator<Item = Region> {
    let mut at = region.base;
    core::iter::from_fn(move || {
        while at < region.end() {
            // Inside a hole: behind it. Otherwise up to the next one.
            if let Some(hole) = holes.iter().find(|h| h.base <= at && at < h.end()) {
                at = hole.end();
                continue;
            }
            let next = holes.iter().map(|h| h.base).filter(|b| *b > at).min();
            let end = next.unwrap_or(u64::MAX).min(region.end());
            let part = Region { base: at, size: end.saturating_sub(at) };
            at = end;
            return Some(part);
        }
        None
    })
}

/// Builds the host's stage 2: RAM less `own`, and everything that is not RAM as devices, less `withheld`.
pub fn init(
    banks: &[Region],
    own: &[Region],
    withheld: &[Region],
    features: &Features,
) -> Result<(), MapError> {
    let bits = ipa_bits(features);
    let root_pages = Stage2::root_pages(bits);
    let out = MapError::OutOfTables(gzvm_core::memory::stage2::OutOfTables);
    let root = pool::alloc(root_pages, root_pages).map_err(|_| out)?;
    let stage2 = Stage2::new(root, bits, features.pa_bits, VMID).map_err(|_| out)?;
    let mut host = Host { stage2, account: Account::new(TABLE_LIMIT) };
    for bank in banks {
        for part in without(*bank, own) {
            host.map(part, Attrs::RAM)?;
        }
    }
    let mut sorted: ArrayVec<Region, 16> = banks.iter().copied().collect();
    sorted.sort_unstable_by_key(|r| r.base);
    let mut at = 0;
    for bank in sorted.iter().copied().chain([Region { base: 1 << bits, size: 0 }]) {
        if bank.base > at {
            for part in without(Region { base: at, size: bank.base - at }, withheld) {
                host.map(part, Attrs::DEVICE)?;
            }
        }
        at = bank.end();
    }
    let (t0sz, sl0) = host.stage2.vtcr_fields();
    TRANSLATION.call_once(|| (world::vttbr(root.0, VMID), world::vtcr(t0sz, sl0, features)));
    HOST.call_once(|| Mutex::new(host));
    Ok(())
}

/// The host's tables for an SMMU with so many bits of address.
pub fn stage2_for_devices(features: &Features, address_bits: u8) -> Result<Stage2Config, Unfit> {
    let host = HOST.get().ok_or(Unfit::NoMemory)?.lock();
    let stage2 = &host.stage2;
    let (_, sl0) = stage2.vtcr_fields();
    let ipa = (stage2.ipa_bits(), sl0);
    Stage2Config::new(stage2.root(), ipa, features.pa_bits, dma::VMID, address_bits)
}

/// Does `f` with the host's stage 2.
pub fn with<R>(f: impl FnOnce(&mut Host) -> Result<R, MapFailure>) -> Result<R, MapFailure> {
    HOST.get().map_or(Err(MapFailure::Invalid), |host| f(&mut host.lock()))
}

/// Whether the host may access memory in this state.
pub fn sees(state: State) -> bool {
    matches!(state, State::Host | State::HostShared(_) | State::VmShared(_))
}

/// The host has nothing at `ipa` just now. Whether it does from now on: memory that is its own, or that it may see, and
/// that another CPU was about to move, or that came back when there was no page for a table.
pub fn repair(ipa: Ipa) -> bool {
    let Some(page) = PaRange::page_of(Pa(ipa.0)) else { return false };
    let repaired = with(|host| {
        let state = platform::ownership().lock().state(page.start());
        match state {
            Ok(state) if sees(state) || broken(Mistake::RepairAnything) => host
                .map(Region { base: page.start().0, size: page.size() }, Attrs::RAM)
                .map_err(|_| MapFailure::NoMemory),
            _ => Err(MapFailure::NotHosts),
        }
    });
    repaired.is_ok()
}

impl Host {
    /// Takes memory out of the host's sight, on all CPUs and for its devices. Nothing has changed if there is no page for a
    /// table. After [`MapFailure::Dma`] a device may still reach it, so that it has to stay the host's ([`repair`]).
    pub fn hide(&mut self, memory: PaRange) -> Result<(), MapFailure> {
        let ipa = IpaRange::new(Ipa(memory.start().0), memory.size()).map_err(|_| MapFailure::Invalid)?;
        let mut tlb = self.tlb();
        let hidden = self.stage2.unmap(&mut Tables { account: &mut self.account }, &mut tlb, ipa);
        tlb.finish().map_err(|_| MapFailure::Dma)?;
        hidden.map_err(|_| MapFailure::NoMemory)
    }

    /// Pages that its tables take.
    pub const fn table_pages(&self) -> u64 {
        self.account.used()
    }

    fn tlb(&self) -> HostTlb {
        HostTlb::new(VmTlb { root: self.stage2.root() })
    }

    /// Puts it there again, in big blocks where all around is there; see [`repair`] for what can't be.
    pub fn show(&mut self, memory: PaRange) {
        let region = Region { base: memory.start().0, size: memory.size() };
        let Ok(ipa) = IpaRange::new(Ipa(region.base), region.size) else { return };
        if self.map(region, Attrs::RAM).is_ok() {
            let mut tlb = self.tlb();
            let tables = &mut Tables { account: &mut self.account };
            let _ = self.stage2.coalesce(tables, &mut tlb, ipa);
        }
    }

    fn map(&mut self, region: Region, attrs: Attrs) -> Result<(), MapError> {
        let ipa = IpaRange::new(Ipa(region.base), region.size).map_err(|_| MapError::IpaOutOfRange)?;
        let mut tlb = self.tlb();
        let mut tables = Tables { account: &mut self.account };
        self.stage2.map(&mut tables, &mut tlb, ipa, Pa(region.base), attrs)
    }
}

/// VTTBR_EL2 and VTCR_EL2 of the host.
pub fn translation_registers() -> (u64, u64) {
    TRANSLATION.get().copied().unwrap_or((0, 0))
}

/// Every exception that the host's EL1 or EL0 takes to EL2. `reason`: 0 synchronous, 1 IRQ, 2 FIQ,
/// 3 SError.
#[unsafe(no_mangle)]
extern "C" fn handle_host_exception(frame: &mut HostFrame, reason: u64) {
    if reason == SERROR {
        // Only after one was handed on from a guest's time: see `pend_host_serror`.
        PerCpu::this().with(|s| s.pend_host_serror());
        return;
    }
    if reason != 0 {
        // Not routed here (HCR_EL2.{IMO,FMO,AMO} = 0 for the host).
        count(Counter::HostIrq);
        log::error!("host: exception {reason} routed to EL2");
        return;
    }
    let esr = cpu::esr();
    match syndrome::decode(esr) {
        Cause::Hvc { imm: 0 } => {
            count(Counter::HostHvc);
            hypercall::dispatch(frame);
        }
        Cause::Smc { imm } => {
            count(Counter::HostSmc);
            // A trapped SMC is returned from behind itself.
            frame.elr = frame.elr.wrapping_add(4);
            if imm == 0 {
                firmware_call(frame);
            } else {
                count(Counter::HostSmcDenied);
                frame.x[0] = NOT_SUPPORTED;
            }
        }
        Cause::Fp => {
            count(Counter::HostFp);
            PerCpu::this().with(|state| state.host_uses_fp());
        }
        Cause::DataAbort(abort, _) | Cause::InstructionAbort(abort)
            if abort.kind == FaultKind::Translation
                && (repair(Ipa(cpu::fault_ipa_page())) || went_elsewhere(abort)) =>
        {
            count(Counter::HostFault);
        }
        Cause::DataAbort(abort, Some(access))
            if abort.kind == FaultKind::Translation
                && !abort.s1ptw
                && lpis::access(frame, syndrome::fault_ipa(cpu::fault_ipa_page(), cpu::far()), access) =>
        {
            count(Counter::HostFault);
        }
        Cause::DataAbort(abort, _) => {
            abort_host(frame, syndrome::esr_external_abort(false, from_el0(frame), abort.write));
        }
        Cause::InstructionAbort(_) => {
            abort_host(frame, syndrome::esr_external_abort(true, from_el0(frame), false));
        }
        Cause::Sysreg(_) => {
            count(Counter::HostSysreg);
            inject(frame, syndrome::ESR_UNDEFINED, 0);
        }
        Cause::Hvc { .. } => {
            // The return address is behind the instruction; an undefined one's is at it.
            frame.elr = frame.elr.wrapping_sub(4);
            inject(frame, syndrome::ESR_UNDEFINED, 0);
        }
        Cause::Wait { .. } | Cause::Other(_) => {
            inject(frame, syndrome::ESR_UNDEFINED, 0);
        }
    }
}

/// Whether the host's own tables lead elsewhere by now: another of its CPUs took the page out of them, and then gave it away,
/// while this access was on its way here. It tries again, and finds what its kernel put there.
fn went_elsewhere(abort: Abort) -> bool {
    /// Of HPFAR_EL2 and PAR_EL1 alike.
    const FRAME: u64 = 0x0000_FFFF_FFFF_F000;
    let now = cpu::guest_stage1(cpu::far());
    !abort.s1ptw && now.is_none_or(|ipa| (ipa.0 ^ cpu::fault_ipa_page()) & FRAME != 0)
}

fn from_el0(frame: &HostFrame) -> bool {
    frame.spsr & 0xF == 0
}

fn inject(frame: &mut HostFrame, esr: u64, far: u64) {
    let (pc, pstate) = cpu::inject_sync(esr, far, frame.elr, frame.spsr);
    frame.elr = pc;
    frame.spsr = pstate;
}

/// The host touched what is not its own: it gets an external abort, as from a bus that has nothing
/// there, and lives on if its kernel can.
fn abort_host(frame: &mut HostFrame, esr: u64) {
    count(Counter::HostAbort);
    let far = cpu::far();
    let denied = PerCpu::this().counter(Counter::HostAbort.index());
    // The host could flood the console: the first few lines tell.
    if denied <= 8 {
        log::warn!("host: access to {:#x} denied (pc {:#x})", cpu::fault_ipa_page() | far & 0xFFF, frame.elr);
    }
    inject(frame, esr, far);
}

fn firmware_call(frame: &mut HostFrame) {
    match host_calls::decide(frame.x[0]) {
        HostCall::Psci(function) => psci::call(frame, function),
        HostCall::Forward if crate::platform::get().firmware => forward(frame),
        HostCall::Forward | HostCall::Deny => {
            count(Counter::HostSmcDenied);
            frame.x[0] = NOT_SUPPORTED;
        }
    }
}

/// Passes the host's call on as it stands.
fn forward(frame: &mut HostFrame) {
    let mut args = [0; 8];
    args.copy_from_slice(&frame.x[..8]);
    args[0] = u64::from(strip_sve_hint(args[0] as u32));
    let result = smc::call(args);
    frame.x[..4].copy_from_slice(&result);
}
