// SPDX-License-Identifier: GPL-2.0-only
//! Mistakes that a test turns on, to see that the tests of what they break fail. Only in a module built with the feature
//! `crash-test`, by its parameter `mistake`; in any other [`broken`] is false for the compiler.
//!
//! A mistake is one line where the right thing is done. `tests/src/cases/broken/driver.rs` reads their names here, counts from
//! 1, and says which check finds which.

macro_rules! mistakes {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A mistake. Its number is one more than its place.
        #[derive(Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Mistake { $($(#[$doc])* $name,)* }
    };
}

mistakes! {
    /// A VM's file does not hold the module. `shim.c` makes it, and knows it by its number, 1.
    #[expect(dead_code, reason = "for its number")]
    NoOwner,
    /// A VM is any process's.
    AnyProcess,
    /// A page that is given away stays in user space's mappings.
    KeepMapping,
    /// A protected VM's page is mapped where user space touches it.
    MapPrivate,
    /// A page that the guest stops sharing stays in user space's mappings.
    NoAnnounce,
    /// Readers of the kernel's own map get to a protected VM's pages.
    NoHiding,
    /// A page that the hypervisor has let go stays pinned.
    KeepPins,
    /// The pages of a file of guest memory are not freed.
    KeepFrames,
    /// DISCARD gives back what the guest still has.
    DiscardTooEarly,
    /// The end of a VM's file leaves its irqfds.
    KeepIrqfds,
    /// An irqfd outlives its eventfd.
    DeafToHangup,
    /// An eventfd is tied to two interrupts.
    TiedTwice,
}

/// The module's parameter.
#[cfg(feature = "crash-test")]
#[expect(unsafe_code, reason = "the C side's name")]
#[unsafe(export_name = "gzr_mistake")]
pub static MISTAKE: core::sync::atomic::AtomicU32 = core::sync::atomic::AtomicU32::new(0);

/// Whether it is this mistake's turn.
#[cfg(feature = "crash-test")]
pub fn broken(mistake: Mistake) -> bool {
    MISTAKE.load(core::sync::atomic::Ordering::Relaxed) == (mistake as u32).wrapping_add(1)
}

/// Never.
#[cfg(not(feature = "crash-test"))]
pub const fn broken(_mistake: Mistake) -> bool {
    false
}
