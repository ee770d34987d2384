// SPDX-License-Identifier: Apache-2.0 OR MIT
//! PSCI 1.1 for a guest (Arm DEN0022): who is on, who may turn whom on, and what ends the VM.
//!
//! ```text
//!          CPU_ON                 first RUN
//!   Off ------------> OnPending ------------> On
//!    ^                                         |
//!    +-----------------------------------------+
//!                    CPU_OFF
//! ```
//! The states of all vCPUs are under one lock (the VM's), so races are decided by who gets it first.

use crate::addr::VcpuId;

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

macro_rules! functions {
    ($($(#[$doc:meta])* $name:ident = $($fid:literal)|+,)*) => {
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
    Version = 0x8400_0000,
    /// CPU_SUSPEND.
    CpuSuspend = 0x8400_0001 | 0xC400_0001,
    /// CPU_OFF.
    CpuOff = 0x8400_0002,
    /// CPU_ON.
    CpuOn = 0x8400_0003 | 0xC400_0003,
    /// AFFINITY_INFO.
    AffinityInfo = 0x8400_0004 | 0xC400_0004,
    /// MIGRATE_INFO_TYPE.
    MigrateInfoType = 0x8400_0006,
    /// SYSTEM_OFF.
    SystemOff = 0x8400_0008,
    /// SYSTEM_RESET.
    SystemReset = 0x8400_0009,
    /// PSCI_FEATURES.
    Features = 0x8400_000A,
    /// CPU_DEFAULT_SUSPEND.
    CpuDefaultSuspend = 0x8400_000C | 0xC400_000C,
    /// SYSTEM_SUSPEND.
    SystemSuspend = 0x8400_000E | 0xC400_000E,
    /// SYSTEM_RESET2.
    SystemReset2 = 0x8400_0012 | 0xC400_0012,
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
}

impl<const N: usize> Default for PowerStates<N> {
    fn default() -> Self {
        Self { states: [Power::Absent; N] }
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
    /// The calling vCPU waits for an interrupt, then x0 = 0.
    Suspend,
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
        let state = self.states.get_mut(usize::from(vcpu.0))?;
        match *state {
            Power::OnPending { entry, context } => {
                *state = Power::On;
                Some((entry, context))
            }
            _ => None,
        }
    }

    /// The vCPU with these MPIDR affinity fields.
    fn by_affinity(&self, affinity: u64) -> Option<VcpuId> {
        let id = crate::vgic::vcpu_of(u32::try_from(affinity).ok()?)?;
        (self.get(id) != Power::Absent).then_some(id)
    }

    /// Decides on a call of `vcpu`. `fid` is x0; 32-bit calls take the low halves of their arguments.
    pub fn call(&mut self, vcpu: VcpuId, fid: u64, args: [u64; 3], ipa_bits: u8) -> Outcome {
        let fid = gzvm_abi::hypercall::strip_sve_hint(fid as u32);
        let wide = fid & 0x4000_0000 != 0;
        let [a1, a2, a3] = if wide { args } else { args.map(|a| a & 0xFFFF_FFFF) };
        let Some(function) = Function::from_fid(fid) else { return Outcome::Return(NOT_SUPPORTED) };
        match function {
            Function::Version => Outcome::Return(0x0001_0001),
            Function::CpuSuspend => Outcome::Suspend,
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
            Function::SystemOff => Outcome::SystemOff,
            Function::SystemReset => Outcome::SystemReset { reset2: None },
            // Only the architectural warm reset (type 0) and vendor types (bit 31) exist.
            Function::SystemReset2 if a1 == 0 || a1 & 1 << 31 != 0 => {
                Outcome::SystemReset { reset2: Some((a1, a2)) }
            }
            Function::SystemReset2 => Outcome::Return(INVALID_PARAMETERS),
            Function::Features => Outcome::Return(features(a1 as u32)),
            Function::CpuDefaultSuspend | Function::SystemSuspend => Outcome::Return(NOT_SUPPORTED),
        }
    }

    fn cpu_on(&mut self, affinity: u64, entry: u64, context: u64, ipa_bits: u8) -> Outcome {
        let Some(target) = self.by_affinity(affinity) else {
            return Outcome::Return(INVALID_PARAMETERS);
        };
        if entry & 3 != 0 || entry >> ipa_bits.min(63) != 0 {
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
            Power::OnPending { .. } => Outcome::Return(ON_PENDING),
            Power::On => Outcome::Return(ALREADY_ON),
            Power::Absent => Outcome::Return(INVALID_PARAMETERS),
        }
    }

    fn affinity_info(&self, affinity: u64, level: u64) -> u64 {
        if level != 0 {
            return INVALID_PARAMETERS;
        }
        match self.by_affinity(affinity).map(|v| self.get(v)) {
            Some(Power::On) => 0,
            Some(Power::Off) => 1,
            Some(Power::OnPending { .. }) => 2,
            Some(Power::Absent) | None => INVALID_PARAMETERS,
        }
    }
}

fn features(fid: u32) -> u64 {
    match Function::from_fid(fid) {
        Some(Function::CpuDefaultSuspend | Function::SystemSuspend) => NOT_SUPPORTED,
        // CPU_SUSPEND: original StateID format, no OS-initiated mode.
        Some(_) => 0,
        None if fid == super::smccc::VERSION => 0,
        None => NOT_SUPPORTED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ON: u64 = 0xC400_0003;

    fn two() -> PowerStates<8> {
        let mut p = PowerStates::default();
        p.add(VcpuId(0));
        p.add(VcpuId(1));
        p
    }

    #[test]
    fn a_secondary_goes_through_its_life() {
        let mut p = two();
        assert_eq!(p.take_start(VcpuId(1)), None);
        assert_eq!(p.call(VcpuId(0), ON, [1, 0x8000_0000, 7], 40), Outcome::Started(VcpuId(1)));
        assert_eq!(p.call(VcpuId(0), ON, [1, 0x8000_0000, 8], 40), Outcome::Return(ON_PENDING));
        assert_eq!(p.call(VcpuId(0), 0xC400_0004, [1, 0, 0], 40), Outcome::Return(2));
        assert_eq!(p.take_start(VcpuId(1)), Some((0x8000_0000, 7)));
        assert_eq!(p.take_start(VcpuId(1)), None);
        assert_eq!(p.call(VcpuId(0), ON, [1, 0x8000_0000, 8], 40), Outcome::Return(ALREADY_ON));
        assert_eq!(p.call(VcpuId(1), 0x8400_0002, [0; 3], 40), Outcome::Off);
        assert_eq!(p.call(VcpuId(0), 0xC400_0004, [1, 0, 0], 40), Outcome::Return(1));
        assert_eq!(p.call(VcpuId(0), ON, [1, 0x9000_0000, 9], 40), Outcome::Started(VcpuId(1)));
    }

    #[test]
    fn bad_targets_and_addresses_are_refused() {
        let mut p = two();
        for mpidr in [2u64, 0x100, 0x1_0001, 1 << 32 | 1, u64::MAX, 0x8000_0001] {
            let out = p.call(VcpuId(0), ON, [mpidr, 0x8000_0000, 0], 40);
            assert_eq!(out, Outcome::Return(INVALID_PARAMETERS), "{mpidr:#x}");
        }
        for entry in [1u64, 2, 1 << 40, u64::MAX] {
            let out = p.call(VcpuId(0), ON, [1, entry, 0], 40);
            assert_eq!(out, Outcome::Return(INVALID_ADDRESS), "{entry:#x}");
        }
        assert_eq!(p.call(VcpuId(0), ON, [0, 0, 0], 40), Outcome::Return(ALREADY_ON));
    }

    #[test]
    fn affinities_past_the_sixteenth() {
        let mut p = PowerStates::<64>::default();
        [0, 15, 16, 63].into_iter().for_each(|n| p.add(VcpuId(n)));
        assert_eq!(p.call(VcpuId(0), ON, [0x100, 0, 0], 40), Outcome::Started(VcpuId(16)));
        assert_eq!(p.call(VcpuId(0), ON, [0x30F, 0, 0], 40), Outcome::Started(VcpuId(63)));
        for wrong in [16u64, 0x10F, 0x400, 0x1_0000, 1 << 32] {
            assert_eq!(p.call(VcpuId(0), ON, [wrong, 0, 0], 40), Outcome::Return(INVALID_PARAMETERS));
        }
    }

    #[test]
    fn narrow_calls_ignore_upper_halves() {
        let mut p = two();
        let out = p.call(VcpuId(0), 0x8400_0003, [0xF_0000_0001, 0xF_8000_0000, 0xF_0000_0007], 40);
        assert_eq!(out, Outcome::Started(VcpuId(1)));
        assert_eq!(p.take_start(VcpuId(1)), Some((0x8000_0000, 7)));
    }

    #[test]
    fn every_id_has_an_answer() {
        for n in 0..=0xFFFFu64 {
            for base in [0x8400_0000u64, 0xC400_0000] {
                let _ = two().call(VcpuId(1), base | n, [u64::MAX; 3], 40);
            }
        }
    }
}
