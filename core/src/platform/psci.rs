// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI 1.1 for a guest (Arm DEN0022): who is on, who may turn whom on, who sleeps, and what ends the VM.
//!
//! ```text
//!          CPU_ON                 first RUN
//!   Off ------------> OnPending ------------> On ---------> waits for a wake-up, then starts
//!    ^                                        | ^  suspend  at its entry point (or goes on)
//!    +----------------------------------------+ +-------------------------------+
//!                    CPU_OFF
//! ```
//! The states of all vCPUs are under one lock (the VM's), so races are decided by who gets it first.
//! A suspended vCPU is On to its peers, as the specification has it; that it waits, and for what, is
//! kept with the vCPU (`hypervisor/src/guest/sleep.rs`).
//!
//! Optional functions that are not there answer NOT_SUPPORTED, and PSCI_FEATURES says so: MIGRATE,
//! MIGRATE_INFO_UP_CPU (no trusted OS), CPU_FREEZE, NODE_HW_STATE, SET_SUSPEND_MODE (platform-coordinated mode
//! only), STAT_RESIDENCY and STAT_COUNT.
//!
//! # MEM_PROTECT
//! The guest asks that nothing that boots after it finds its memory. That holds for every VM: one that
//! has asked for power-off or reset never runs again (`vm::lifecycle`), and the next boot is another VM, whose
//! pages come from the host, which a plain VM trusts with its memory anyway. So only the state is kept.

use crate::addr::VcpuId;
use crate::broken::{Mistake, broken};
use crate::vgic::{affinity, vcpu_of};

/// SUCCESS.
pub const SUCCESS: u64 = 0;
/// NOT_SUPPORTED.
pub const NOT_SUPPORTED: u64 = -1i64 as u64;
/// INVALID_PARAMETERS.
pub const INVALID_PARAMETERS: u64 = -2i64 as u64;
/// DENIED.
pub const DENIED: u64 = -3i64 as u64;
/// ALREADY_ON.
pub const ALREADY_ON: u64 = -4i64 as u64;
/// ON_PENDING.
pub const ON_PENDING: u64 = -5i64 as u64;
/// INTERNAL_FAILURE.
pub const INTERNAL_FAILURE: u64 = -6i64 as u64;
/// INVALID_ADDRESS.
pub const INVALID_ADDRESS: u64 = -9i64 as u64;

/// PSCI_VERSION.
pub const VERSION_CALL: u32 = 0x8400_0000;
/// What it answers.
pub const PSCI_1_1: u64 = 0x0001_0001;
/// `power_state`, original format (5.4.2): StateID, StateType, PowerLevel; the rest must be zero.
const POWER_STATE_BITS: u32 = 0xFFFF | POWER_STATE_DOWN | 3 << 24;
/// StateType: power-down, rather than standby.
const POWER_STATE_DOWN: u32 = 1 << 16;
/// MPIDR_EL1's affinity fields.
const AFFINITY_BITS: u64 = 0xFF_00FF_FFFF;
/// The deepest affinity level.
const DEEPEST_LEVEL: u64 = 3;

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $($fid:pat_param)|+,)*) => {
        /// PSCI functions, both widths in one.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Function { $($(#[$doc])* $name,)* }

        impl Function {
            /// The function of this id.
            pub const fn from_fid(fid: u32) -> Option<Self> {
                match fid { $($($fid)|+ => Some(Self::$name),)* _ => None }
            }
        }
    };
}

functions! {
    /// PSCI_VERSION.
    Version = VERSION_CALL,
    /// CPU_SUSPEND.
    CpuSuspend = 0x8400_0001 | 0xC400_0001,
    /// CPU_OFF.
    CpuOff = 0x8400_0002,
    /// CPU_ON.
    CpuOn = 0x8400_0003 | 0xC400_0003,
    /// AFFINITY_INFO.
    AffinityInfo = 0x8400_0004 | 0xC400_0004,
    /// MIGRATE.
    Migrate = 0x8400_0005 | 0xC400_0005,
    /// MIGRATE_INFO_TYPE.
    MigrateInfoType = 0x8400_0006,
    /// MIGRATE_INFO_UP_CPU.
    MigrateInfoUpCpu = 0x8400_0007 | 0xC400_0007,
    /// SYSTEM_OFF.
    SystemOff = 0x8400_0008,
    /// SYSTEM_RESET.
    SystemReset = 0x8400_0009,
    /// PSCI_FEATURES.
    Features = 0x8400_000A,
    /// CPU_FREEZE.
    CpuFreeze = 0x8400_000B,
    /// CPU_DEFAULT_SUSPEND.
    CpuDefaultSuspend = 0x8400_000C | 0xC400_000C,
    /// NODE_HW_STATE.
    NodeHwState = 0x8400_000D | 0xC400_000D,
    /// SYSTEM_SUSPEND.
    SystemSuspend = 0x8400_000E | 0xC400_000E,
    /// PSCI_SET_SUSPEND_MODE.
    SetSuspendMode = 0x8400_000F,
    /// PSCI_STAT_RESIDENCY.
    StatResidency = 0x8400_0010 | 0xC400_0010,
    /// PSCI_STAT_COUNT.
    StatCount = 0x8400_0011 | 0xC400_0011,
    /// SYSTEM_RESET2.
    SystemReset2 = 0x8400_0012 | 0xC400_0012,
    /// MEM_PROTECT.
    MemProtect = 0x8400_0013,
    /// MEM_PROTECT_CHECK_RANGE.
    MemProtectCheckRange = 0x8400_0014 | 0xC400_0014,
}

/// A vCPU's power.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Power {
    /// There is no such vCPU.
    #[default]
    Absent,
    /// Off.
    Off,
    /// Turned on, not yet run: starts at `entry` with `context` in x0.
    OnPending {
        /// Where it starts.
        entry: u64,
        /// x0.
        context: u64,
    },
    /// Runs.
    On,
}

/// The power of a VM's vCPUs.
#[derive(Clone, Debug)]
pub struct PowerStates<const N: usize> {
    states: [Power; N],
    /// MEM_PROTECT is on.
    protected: bool,
}

impl<const N: usize> Default for PowerStates<N> {
    fn default() -> Self {
        Self { states: [Power::Absent; N], protected: false }
    }
}

/// What a call comes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// x0; the vCPU goes on.
    Return(u64),
    /// x0, and the vCPU named has to be woken.
    Started(VcpuId),
    /// The calling vCPU is off.
    Off,
    /// The calling vCPU waits for an interrupt as WFI does, then x0 = 0.
    Standby,
    /// The calling vCPU loses its registers, waits for an interrupt, and starts at `entry`.
    PowerDown {
        /// Where it starts.
        entry: u64,
        /// x0.
        context: u64,
        /// With a wake-up pending already, the call may return SUCCESS instead (5.4.5); SYSTEM_SUSPEND
        /// never returns it.
        may_return: bool,
    },
    /// x0 = SUCCESS if all of the range is the VM's memory, else DENIED.
    CheckRange {
        /// First byte.
        base: u64,
        /// Bytes.
        length: u64,
    },
    /// The VM ends.
    SystemOff,
    /// The VM wants to start anew. For SYSTEM_RESET2: type and cookie.
    SystemReset {
        /// x1 and x2 of SYSTEM_RESET2.
        reset2: Option<(u64, u64)>,
    },
}

impl<const N: usize> PowerStates<N> {
    /// A vCPU is created: the first one is on, the others wait for CPU_ON.
    pub fn add(&mut self, vcpu: VcpuId) {
        let state = if vcpu.0 == 0 { Power::On } else { Power::Off };
        if let Some(s) = self.states.get_mut(usize::from(vcpu.0)) {
            *s = state;
        }
    }

    /// A vCPU is gone.
    pub fn remove(&mut self, vcpu: VcpuId) {
        if let Some(s) = self.states.get_mut(usize::from(vcpu.0)) {
            *s = Power::Absent;
        }
    }

    /// A vCPU's power.
    pub fn get(&self, vcpu: VcpuId) -> Power {
        self.states.get(usize::from(vcpu.0)).copied().unwrap_or(Power::Absent)
    }

    /// Called as a vCPU is about to run: takes a pending start.
    pub fn take_start(&mut self, vcpu: VcpuId) -> Option<(u64, u64)> {
        let Power::OnPending { entry, context } = self.get(vcpu) else { return None };
        *self.states.get_mut(usize::from(vcpu.0))? = Power::On;
        Some((entry, context))
    }

    /// The vCPU with these MPIDR affinity fields; other bits must be zero.
    fn by_affinity(&self, affinity: u64) -> Option<VcpuId> {
        let affinity = if broken(Mistake::CutAffinity) { affinity & 0xFF } else { affinity };
        let id = vcpu_of(u32::try_from(affinity).ok()?)?;
        (self.get(id) != Power::Absent).then_some(id)
    }

    /// Decides on a call of `vcpu`. `fid` is x0; 32-bit calls take the low halves of their arguments.
    pub fn call(&mut self, vcpu: VcpuId, fid: u64, args: [u64; 3], ipa_bits: u8) -> Outcome {
        let fid = gzvm_abi::hypercall::strip_sve_hint(fid as u32);
        let wide = fid & 0x4000_0000 != 0;
        let [a1, a2, a3] = if wide { args } else { args.map(|a| a & 0xFFFF_FFFF) };
        let Some(function) = Function::from_fid(fid) else { return Outcome::Return(NOT_SUPPORTED) };
        match function {
            Function::Version => Outcome::Return(PSCI_1_1),
            Function::CpuSuspend => cpu_suspend(a1 as u32, a2, a3, ipa_bits),
            // The state is ours to choose: the deepest.
            Function::CpuDefaultSuspend => power_down(a1, a2, true, ipa_bits),
            Function::CpuOff => {
                if let Some(s) = self.states.get_mut(usize::from(vcpu.0)) {
                    *s = Power::Off;
                }
                Outcome::Off
            }
            Function::CpuOn => self.cpu_on(a1, a2, a3, ipa_bits),
            Function::AffinityInfo => Outcome::Return(self.affinity_info(a1, a2)),
            // No trusted OS: nothing to migrate.
            Function::MigrateInfoType => Outcome::Return(2),
            Function::SystemSuspend if self.others_are_off(vcpu) => power_down(a1, a2, false, ipa_bits),
            Function::SystemSuspend => Outcome::Return(DENIED),
            Function::SystemOff => Outcome::SystemOff,
            Function::SystemReset => Outcome::SystemReset { reset2: None },
            // Only the architectural warm reset (type 0) and vendor types (bit 31) exist.
            Function::SystemReset2 if a1 as u32 == 0 || a1 & 1 << 31 != 0 => {
                Outcome::SystemReset { reset2: Some((a1 & 0xFFFF_FFFF, a2)) }
            }
            Function::SystemReset2 => Outcome::Return(INVALID_PARAMETERS),
            Function::MemProtect => match a1 {
                0 | 1 => Outcome::Return(u64::from(core::mem::replace(&mut self.protected, a1 == 1))),
                _ => Outcome::Return(INVALID_PARAMETERS),
            },
            Function::MemProtectCheckRange => Outcome::CheckRange { base: a1, length: a2 },
            Function::Features => Outcome::Return(features(a1 as u32)),
            Function::Migrate
            | Function::MigrateInfoUpCpu
            | Function::CpuFreeze
            | Function::NodeHwState
            | Function::SetSuspendMode
            | Function::StatResidency
            | Function::StatCount => Outcome::Return(NOT_SUPPORTED),
        }
    }

    fn cpu_on(&mut self, affinity: u64, entry: u64, context: u64, ipa_bits: u8) -> Outcome {
        let Some(target) = self.by_affinity(affinity) else {
            return Outcome::Return(INVALID_PARAMETERS);
        };
        if !is_address(entry, ipa_bits) {
            return Outcome::Return(INVALID_ADDRESS);
        }
        let Some(state) = self.states.get_mut(usize::from(target.0)) else {
            return Outcome::Return(INVALID_PARAMETERS);
        };
        match state {
            Power::Off => {
                *state = Power::OnPending { entry, context };
                Outcome::Started(target)
            }
            Power::On if broken(Mistake::TurnOnAgain) => Outcome::Started(target),
            Power::OnPending { .. } => Outcome::Return(ON_PENDING),
            Power::On => Outcome::Return(ALREADY_ON),
            Power::Absent => Outcome::Return(INVALID_PARAMETERS),
        }
    }

    /// The state of all vCPUs whose affinity fields from `level` up are these: on if one is, off if all are.
    fn affinity_info(&self, target: u64, level: u64) -> u64 {
        if level > DEEPEST_LEVEL || target & !AFFINITY_BITS != 0 {
            return INVALID_PARAMETERS;
        }
        // Aff3 is eight bits further up than the others; no vCPU has one.
        let below = match level {
            0 => 0,
            1 => 0xFF,
            2 => 0xFFFF,
            _ => 0xFF_FFFF,
        };
        let mask = AFFINITY_BITS & !below;
        let mut best = None;
        for n in 0..N {
            let Ok(id) = u16::try_from(n).map(VcpuId) else { break };
            if (u64::from(affinity(id)) ^ target) & mask != 0 {
                continue;
            }
            let state = match self.get(id) {
                Power::Absent => continue,
                Power::On => 0,
                Power::OnPending { .. } => 2,
                Power::Off => 1,
            };
            // On wins, then on its way, then off.
            best = match best {
                Some(0) => best,
                Some(2) if state == 1 => best,
                _ => Some(state),
            };
        }
        best.unwrap_or(INVALID_PARAMETERS)
    }

    fn others_are_off(&self, vcpu: VcpuId) -> bool {
        let others = self.states.iter().enumerate().filter(|(n, _)| *n != usize::from(vcpu.0));
        others.map(|(_, state)| state).all(|state| matches!(state, Power::Off | Power::Absent))
    }
}

/// An instruction's address that a guest can have.
fn is_address(entry: u64, ipa_bits: u8) -> bool {
    if broken(Mistake::GuestsAnyEntry) {
        return true;
    }
    let bits = if ipa_bits > 63 { 63 } else { ipa_bits };
    entry & 3 == 0 && entry >> bits == 0
}

/// Platform-coordinated: asking for a deeper level than the peers allow is not wrong, and comes to less.
fn cpu_suspend(power_state: u32, entry: u64, context: u64, ipa_bits: u8) -> Outcome {
    if power_state & !POWER_STATE_BITS != 0 {
        return Outcome::Return(INVALID_PARAMETERS);
    }
    if power_state & POWER_STATE_DOWN == 0 {
        return Outcome::Standby;
    }
    power_down(entry, context, true, ipa_bits)
}

fn power_down(entry: u64, context: u64, may_return: bool, ipa_bits: u8) -> Outcome {
    match is_address(entry, ipa_bits) {
        true => Outcome::PowerDown { entry, context, may_return },
        false => Outcome::Return(INVALID_ADDRESS),
    }
}

/// PSCI_FEATURES. Flags of CPU_SUSPEND: original format of `power_state`, no OS-initiated mode.
fn features(fid: u32) -> u64 {
    match Function::from_fid(fid) {
        Some(
            Function::Migrate
            | Function::MigrateInfoUpCpu
            | Function::CpuFreeze
            | Function::NodeHwState
            | Function::SetSuspendMode
            | Function::StatResidency
            | Function::StatCount,
        ) => NOT_SUPPORTED,
        Some(_) => 0,
        None if fid == super::smccc::VERSION => 0,
        None => NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests;
