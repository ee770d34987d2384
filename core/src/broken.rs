// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Mistakes that a test turns on, to see that the tests of what they break fail. Only in builds with the feature `crash-test`;
//! in any other [`broken`] is false for the compiler.
//!
//! A mistake is one line where the right thing is done. Which threat it stands for, and which test finds it, is in
//! `tests/src/cases/broken`.

macro_rules! mistakes {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u64)]
        pub enum Mistake {
            $($(#[$doc])* $name,)*
        }

        impl Mistake {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its number. That of none is 0.
            pub const fn number(self) -> u64 {
                (self as u64).wrapping_add(1)
            }
        }
    };
}

mistakes! {
    // The host's calls.
    /// MAP_GUEST maps any page into a plain VM.
    MapAnything,
    /// Of a range, the owner of the first part alone is looked at.
    FirstPartOnly,
    /// Buffers of hypercalls may lie anywhere.
    AnyBuffer,
    /// SET_MEMREGION judges one copy of its buffer, and takes another one's word.
    BufferAgain,
    /// What the mailbox names is read again once it has been judged.
    MailboxAgain,
    /// DESTROY_VM does not tell running vCPUs to leave.
    NoKick,
    /// A VM that has ended runs on.
    NoGate,
    /// Nobody pays for a page that was a table, nor gets it back.
    LostTables,
    /// Nobody pays for the tables of the host's that a donation makes necessary.
    UnpaidTables,
    /// A VM has no page of the pool for its tables.
    NoTables,
    /// What the host gave for a VM's tables does not come back.
    KeepGiven,
    /// The pages of a vCPU stay marked as shared.
    LeakShared,
    /// A VM's book of loans stays.
    LeakBook,
    /// The firmware gets every SMC.
    AnySmc,
    /// The host's CPU_ON may name any entry point.
    AnyEntryPoint,
    /// The host's CPU_ON goes to the firmware as it stands.
    NoRelay,

    // The host and a protected VM's memory.
    /// A page that is given to a VM stays in the host's table.
    NoHide,
    /// The same of a page that a VM stops sharing.
    NoHideAgain,
    /// The host's TLB keeps a page that went.
    NoHostFlush,
    /// What the host misses, it gets.
    RepairAnything,
    /// A page comes back to the host with its content.
    NoScrub,
    /// Of a block the first part is scrubbed, and all of it comes back.
    PartlyScrubbed,
    /// UNMAP_GUEST takes a protected VM's pages.
    UnmapProtected,
    /// The SMMU lets streams through as they are. At boot.
    NoStage2,
    /// The SMMU's TLB keeps a page that went.
    NoSmmuFlush,
    /// The host has the SMMU's registers. At boot.
    SmmuForHost,
    /// Stores to GICR_PROPBASER and GICR_PENDBASER go through.
    GicTables,

    // The host, and a protected VM's registers and exits.
    /// The host reads and writes a protected VM's registers.
    OpenRegisters,
    /// Every access to a device of a protected VM goes to the VMM.
    NoMmioGuard,
    /// An MMIO exit of a protected VM names the register.
    ShownRegister,
    /// An MMIO exit shows all of the register that is stored.
    ShownWhole,
    /// Where a firmware starts is the host's to say.
    HostsEntry,
    /// What the host put where the firmware belongs stays.
    NoFirmware,

    // What a protected VM can show of itself.
    /// MEASUREMENT_SEAL leaves the measurement open.
    NoSeal,
    /// That a VM is watched is not measured.
    HiddenWatch,
    /// The host's MEASUREMENT extends what it tells.
    HostExtends,
    /// Whoever has no firmware may name images as verified, and ask for their keys.
    AnybodysImages,
    /// So may a payload, after the seal.
    PayloadsImages,

    // Memory between protected VMs.
    /// Anybody may retrieve what is lent, with the right id or not.
    LentToAnybody,
    /// What was lent to a VM is for the next one of its id too.
    LentToNext,
    /// What is lent to be read can be written.
    LentToWrite,
    /// What is lent can be executed.
    LentToRun,
    /// A loan that the owner ends stays mapped at the borrower.
    LentForEver,
    /// Pages can be lent to a plain VM, whose memory the host reaches.
    LentToPlain,
    /// What is lent can be shown to the host.
    LentAndShown,
    /// Anybody may end a loan as its owner.
    AnybodyReclaims,

    // Channels.
    /// An endpoint's handle is good for everybody.
    AnyEndpoint,
    /// Who is left in a channel is not told.
    SilentEnd,
    /// A message is said to come from whom it is for.
    OwnName,
    /// What was granted with a call stays with the peer when the call is over.
    GrantedForEver,

    // A guest and EL2.
    /// An unknown system register reads as zero.
    UnknownRegisters,
    /// A GIC register takes accesses of any width.
    AnyWidth,
    /// A vCPU's redistributor is that of whoever asks.
    OwnRedistributor,
    /// Any pending interrupts get the list registers, not the most urgent ones.
    NoUrgency,
    /// An active interrupt ends as it leaves its list register.
    LostActive,
    /// A vCPU that waits is not woken by its timer.
    Oversleep,
    /// Of an SGI's targets the lowest affinity alone counts.
    CutTargets,
    /// An access that crosses the end of a page goes on in whatever follows.
    PastPageEnd,
    /// CPU_ON starts a vCPU that runs.
    TurnOnAgain,
    /// CPU_ON takes any entry point.
    GuestsAnyEntry,
    /// Of the affinity in CPU_ON the lowest byte alone counts.
    CutAffinity,

    // What is left of one in the CPU.
    /// The host's EL1 registers are a guest's afterwards.
    KeepEl1,
    /// The FP registers that the host finds are a guest's.
    KeepFp,
    /// A guest finds another's FP registers.
    KeepGuestFp,
    /// A guest has the host's pointer authentication keys.
    HostsKeys,
    /// A guest's breakpoints stay.
    KeepDebug,
    /// A VM's TLB keeps a page that went.
    NoVmFlush,
    /// Reports of events come as fast as the events.
    Flood,
    /// A vCPU starts anew with EL1 registers, timers and the rest as they were.
    NoReset,
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
        MISTAKE.load(Ordering::SeqCst) == mistake.number()
    }
}

#[cfg(feature = "crash-test")]
pub use on::{broken, set};

/// Never.
#[cfg(not(feature = "crash-test"))]
pub const fn broken(_mistake: Mistake) -> bool {
    false
}
