// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI of the host, relayed: the firmware does the work, but a CPU never comes up at EL1 without
//! passing through EL2, so every entry point the host names is kept here and replaced by ours.

use core::sync::atomic::Ordering;

use gzvm_core::addr::Pa;
use gzvm_core::memory::ownership::State;
use gzvm_core::platform::psci::{self, Function};

use crate::arch::barrier::dsb_sy;
use crate::arch::frame::HostFrame;
use crate::arch::percpu::{PerCpu, power};
use crate::arch::smc;
use crate::platform;
use gzvm_core::broken::{Mistake, broken};

unsafe extern "C" {
    static secondary_entry: u8;
}

fn entry_point() -> u64 {
    &raw const secondary_entry as u64
}

/// CPU_ON (64-bit).
const CPU_ON: u64 = 0xC400_0003;
/// CPU_SUSPEND, SYSTEM_SUSPEND (64-bit).
const CPU_SUSPEND: u64 = 0xC400_0001;
const SYSTEM_SUSPEND: u64 = 0xC400_000E;

/// A PSCI call of the host.
pub fn call(frame: &mut HostFrame, function: Function) {
    if !platform::get().firmware {
        frame.x[0] = psci::NOT_SUPPORTED;
        return;
    }
    let wide = frame.x[0] & 0x4000_0000 != 0;
    let mask = if wide { u64::MAX } else { 0xFFFF_FFFF };
    let [a1, a2, a3] = [frame.x[1] & mask, frame.x[2] & mask, frame.x[3] & mask];
    match function {
        Function::CpuOn => frame.x[0] = cpu_on(a1, a2, a3),
        Function::CpuOff => {
            let this = PerCpu::this();
            this.power.store(power::OFF, Ordering::SeqCst);
            super::forward(frame);
            // Only a refusal comes back.
            this.power.store(power::ON, Ordering::SeqCst);
        }
        // A state that loses context comes back at our entry point, as if started by CPU_ON.
        Function::CpuSuspend => {
            frame.x[0] = suspend(|entry, context| [CPU_SUSPEND, a1, entry, context], a2, a3);
        }
        Function::SystemSuspend => {
            frame.x[0] = suspend(|entry, context| [SYSTEM_SUSPEND, entry, context, 0], a1, a2);
        }
        Function::SystemOff => {
            log::info!("host: system off");
            super::forward(frame);
        }
        Function::SystemReset | Function::SystemReset2 => {
            log::info!("host: system reset");
            super::forward(frame);
        }
        Function::Version | Function::AffinityInfo | Function::MigrateInfoType => super::forward(frame),
        Function::Features => match Function::from_fid(frame.x[1] as u32) {
            Some(function) if relayed(function) => super::forward(frame),
            None if frame.x[1] as u32 == gzvm_core::platform::smccc::VERSION => super::forward(frame),
            _ => frame.x[0] = psci::NOT_SUPPORTED,
        },
        _ => frame.x[0] = psci::NOT_SUPPORTED,
    }
}

/// What [`call`] has an answer to. The rest takes an entry point that we don't follow, or does nothing
/// that a host needs.
const fn relayed(function: Function) -> bool {
    matches!(
        function,
        Function::CpuOn
            | Function::CpuOff
            | Function::CpuSuspend
            | Function::SystemSuspend
            | Function::SystemOff
            | Function::SystemReset
            | Function::SystemReset2
            | Function::Version
            | Function::AffinityInfo
            | Function::MigrateInfoType
            | Function::Features
    )
}

fn cpu_on(mpidr: u64, entry: u64, context: u64) -> u64 {
    let Some(target) = platform::cpu_by_mpidr(mpidr).filter(|c| c.mpidr == mpidr) else {
        return psci::INVALID_PARAMETERS;
    };
    if !hosts_own(entry) && !broken(Mistake::AnyEntryPoint) {
        return psci::INVALID_ADDRESS;
    }
    if target.power.compare_exchange(power::OFF, power::STARTING, Ordering::SeqCst, Ordering::SeqCst).is_err()
    {
        return match target.power.load(Ordering::SeqCst) {
            power::STARTING => psci::ON_PENDING,
            _ => psci::ALREADY_ON,
        };
    }
    target.host_entry.store(entry, Ordering::SeqCst);
    target.host_context.store(context, Ordering::SeqCst);
    let block = core::ptr::from_ref(target) as u64;
    dsb_sy();
    let at = if broken(Mistake::NoRelay) { entry } else { entry_point() };
    let [status, ..] = smc::call([CPU_ON, mpidr, at, block, 0, 0, 0, 0]);
    if status != psci::SUCCESS {
        target.power.store(power::OFF, Ordering::SeqCst);
    }
    status
}

/// Whether the host could start there at all: RAM of its own, or no RAM (its stage 2 decides).
fn hosts_own(entry: u64) -> bool {
    match platform::ownership().lock().state(Pa(entry)) {
        Ok(State::Host | State::HostShared(_)) => true,
        Ok(_) => false,
        Err(_) => entry >> 48 == 0,
    }
}

fn suspend(args: impl FnOnce(u64, u64) -> [u64; 4], entry: u64, context: u64) -> u64 {
    let this = PerCpu::this();
    this.host_entry.store(entry, Ordering::SeqCst);
    this.host_context.store(context, Ordering::SeqCst);
    let block = core::ptr::from_ref(this) as u64;
    dsb_sy();
    let [a0, a1, a2, a3] = args(entry_point(), block);
    smc::call([a0, a1, a2, a3, 0, 0, 0, 0])[0]
}
