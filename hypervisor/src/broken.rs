// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mistakes that a test turns on, to see that the tests of what they break fail. Only in images built with the feature
//! `crash-test`; in any other there is no such call, and [`broken`] is false for the compiler.
//!
//! The list that says which test finds which is `tests/src/cases/broken.rs`.

macro_rules! mistakes {
    ($($(#[$doc:meta])* $name:ident = $n:literal,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(u64)]
        #[cfg_attr(not(feature = "crash-test"), allow(dead_code))]
        pub enum Mistake { $($(#[$doc])* $name = $n,)* }
    };
}

mistakes! {
    /// A page that is given to a VM stays in the host's table.
    NoHide = 1,
    /// A page comes back to the host with its content.
    NoScrub = 2,
    /// The host reads and writes a protected VM's registers.
    OpenRegisters = 3,
    /// Every access to a device of a protected VM goes to the VMM.
    NoMmioGuard = 4,
    /// An MMIO exit of a protected VM names the register.
    ShownRegister = 5,
    /// UNMAP_GUEST takes a protected VM's pages.
    UnmapProtected = 6,
    /// The host's CPU_ON may name any entry point.
    AnyEntryPoint = 7,
    /// Buffers of hypercalls may lie anywhere.
    AnyBuffer = 8,
    /// MAP_GUEST maps any page into a plain VM.
    MapAnything = 9,
    /// DESTROY_VM does not tell running vCPUs to leave.
    NoKick = 10,
    /// The pages of a vCPU stay marked as shared.
    LeakShared = 11,
    /// MEASUREMENT_SEAL leaves the measurement open.
    NoSeal = 20,
    /// That a VM is watched is not measured.
    HiddenWatch = 21,
    /// The host's MEASUREMENT extends what it tells.
    HostExtends = 22,
}

#[cfg(feature = "crash-test")]
mod on {
    use core::sync::atomic::{AtomicU64, Ordering};

    static MISTAKE: AtomicU64 = AtomicU64::new(0);

    /// Makes this mistake from now on; 0: none.
    pub fn set(mistake: u64) {
        MISTAKE.store(mistake, Ordering::SeqCst);
    }

    /// Whether it is this mistake's turn.
    pub fn broken(mistake: super::Mistake) -> bool {
        MISTAKE.load(Ordering::SeqCst) == mistake as u64
    }
}

#[cfg(feature = "crash-test")]
pub use on::{broken, set};

/// Never.
#[cfg(not(feature = "crash-test"))]
pub const fn broken(_mistake: Mistake) -> bool {
    false
}
