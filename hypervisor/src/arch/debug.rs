// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Hardware breakpoints and watchpoints (Arm ARM D2.8, D2.9): whose they are at the moment.
//!
//! ```text
//!             take(Guest | Watch)
//!     Host ─────────────────────────► Guest, Watch
//!          ◄─────────────────────────
//!                 give_back
//! ```
//! They are switched only for a guest that has enabled debug exceptions (`Guest`), or whose exceptions
//! are watched with them at EL2's own behalf (`Watch`). Everywhere else the host's stay in the CPU: without
//! MDSCR_EL1.MDE, which is switched with the EL1 registers, they do nothing to a guest.
//!
//! # Invariants
//! - A guest's accesses trap (MDCR_EL2.TDA): its values live in its vCPU, and are never read back.
//! - [`Owner::Host`] whenever the host runs: `CpuState::leave_guest_world` sees to that.
//! - While [`Owner::Watch`] has them, the guest's own registers read as zero and ignore writes
//!   (`guest/sysreg.rs`), and [`Breakpoints::take`] for a guest does nothing.
//! - Nothing in them matches at EL2: HMC and SSC are zero in whatever is taken.

use gzvm_core::platform::watch::VECTORS;

use super::barrier::isb;
use super::sysreg::{read, write};

/// Most breakpoints, and watchpoints, that the architecture knows.
pub const MAX: usize = 16;
/// DBGBCR<n>_EL1: E, PMC, BAS, LBN, and of BT address and context matches. Not HMC, SSC, and matches of VMIDs.
pub const BCR_MASK: u64 = 1 | 3 << 1 | 0xF << 5 | 0xF << 16 | 3 << 20;
/// DBGWCR<n>_EL1: all but HMC and SSC.
pub const WCR_MASK: u64 = 1 | 3 << 1 | 3 << 3 | 0xFF << 5 | 0xF << 16 | 1 << 20 | 0x1F << 24;
/// OSLSR_EL1.OSLK.
const OSLSR_LOCKED: u64 = 1 << 1;

/// MDSCR_EL1.SS.
pub const MDSCR_SS: u64 = 1;
/// MDSCR_EL1.KDE: debug exceptions of EL1 itself.
pub const MDSCR_KDE: u64 = 1 << 13;
/// MDSCR_EL1.MDE: breakpoints and watchpoints.
pub const MDSCR_MDE: u64 = 1 << 15;
/// MDCR_EL2.TDE: debug exceptions come to EL2, whatever PSTATE.D says.
const MDCR_TDE: u64 = 1 << 8;
/// DBGBCR<n>_EL1: enabled, an address, all four bytes, EL1.
const BCR_ON_EL1: u64 = 0xF << 5 | 0b01 << 1 | 1;
/// HFGWTR_EL2.VBAR_EL1.
const HFGW_VBAR: u64 = 1 << 38;

/// Whose values the CPU holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The host's.
    Host,
    /// The running guest's.
    Guest,
    /// EL2's, to watch the running guest.
    Watch,
}

/// Breakpoint and watchpoint registers, value and control.
#[derive(Clone, Default, Debug)]
pub struct DebugRegs {
    /// DBGBVR<n>_EL1.
    pub bvr: [u64; MAX],
    /// DBGBCR<n>_EL1.
    pub bcr: [u64; MAX],
    /// DBGWVR<n>_EL1.
    pub wvr: [u64; MAX],
    /// DBGWCR<n>_EL1.
    pub wcr: [u64; MAX],
}

/// How many a CPU has.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// Breakpoints.
    pub breakpoints: u8,
    /// Watchpoints.
    pub watchpoints: u8,
}

macro_rules! each {
    ($($n:literal)*) => {
        impl DebugRegs {
            fn save(&mut self, have: Counts) {
                $(if $n < have.breakpoints {
                    self.bvr[$n] = read!(concat!("s2_0_c0_c", $n, "_4"));
                    self.bcr[$n] = read!(concat!("s2_0_c0_c", $n, "_5"));
                }
                if $n < have.watchpoints {
                    self.wvr[$n] = read!(concat!("s2_0_c0_c", $n, "_6"));
                    self.wcr[$n] = read!(concat!("s2_0_c0_c", $n, "_7"));
                })*
            }

            fn load(&self, have: Counts) {
                $(if $n < have.breakpoints {
                    write!(concat!("s2_0_c0_c", $n, "_4"), self.bvr[$n]);
                    write!(concat!("s2_0_c0_c", $n, "_5"), self.bcr[$n]);
                }
                if $n < have.watchpoints {
                    write!(concat!("s2_0_c0_c", $n, "_6"), self.wvr[$n]);
                    write!(concat!("s2_0_c0_c", $n, "_7"), self.wcr[$n]);
                })*
            }
        }
    };
}

each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);

impl DebugRegs {
    /// As they may be in the CPU: nothing that matches outside of EL1 and EL0 of this VM.
    fn masked(&self) -> Self {
        let mut masked = self.clone();
        masked.bcr.iter_mut().for_each(|c| *c &= BCR_MASK);
        masked.wcr.iter_mut().for_each(|c| *c &= WCR_MASK);
        masked
    }
}

/// A CPU's breakpoints and watchpoints.
pub struct Breakpoints {
    owner: Owner,
    have: Counts,
    host: DebugRegs,
    /// The host had the OS lock set, which would keep all debug exceptions off.
    host_lock: bool,
}

impl Default for Breakpoints {
    fn default() -> Self {
        Self { owner: Owner::Host, have: Counts::default(), host: DebugRegs::default(), host_lock: false }
    }
}

impl Breakpoints {
    /// This CPU's, which are the host's now.
    pub fn of_this_cpu() -> Self {
        // ID_AA64DFR0_EL1.{BRPs, WRPs}: one less than there are.
        let dfr0 = read!("id_aa64dfr0_el1");
        let count = |shift: u32| (dfr0 >> shift & 0xF) as u8 + 1;
        Self { have: Counts { breakpoints: count(12), watchpoints: count(20) }, ..Self::default() }
    }

    /// How many there are.
    pub const fn counts(&self) -> Counts {
        self.have
    }

    /// Whose they are.
    pub const fn owner(&self) -> Owner {
        self.owner
    }

    /// Puts `regs` into the CPU; the host's are kept. Between `enter_guest_world` and `leave_guest_world`.
    #[cold]
    pub fn take(&mut self, owner: Owner, regs: &DebugRegs) {
        if self.owner == Owner::Watch && owner == Owner::Guest {
            return;
        }
        if self.owner == Owner::Host {
            self.host.save(self.have);
            self.host_lock = read!("s2_0_c1_c1_4") & OSLSR_LOCKED != 0;
            write!("s2_0_c1_c0_4", 0);
        }
        regs.masked().load(self.have);
        self.owner = owner;
        isb();
    }

    /// Takes `owner`'s out again, if they are in: the host's come back.
    #[cold]
    pub fn give_back(&mut self, owner: Owner) {
        if self.owner == owner && owner != Owner::Host {
            self.host.load(self.have);
            write!("s2_0_c1_c0_4", u64::from(self.host_lock));
            self.owner = Owner::Host;
            isb();
        }
    }
}

impl Breakpoints {
    /// Takes them to watch the guest, with its world in place. With `vbar` (the CPU has FEAT_FGT) writes of VBAR_EL1 trap.
    pub fn begin_watch(&mut self, vbar: bool) {
        self.take(Owner::Watch, &DebugRegs::default());
        write!("mdcr_el2", read!("mdcr_el2") | MDCR_TDE);
        if vbar {
            write!("s3_4_c1_c1_5", read!("s3_4_c1_c1_5") | HFGW_VBAR);
        }
        isb();
    }

    /// Before the watched guest runs: breakpoints on its vectors as they are now, or one step without them. `mdscr` is
    /// what the guest itself has in MDSCR_EL1.
    pub fn arm_watch(&self, vectors: [bool; VECTORS.len()], step: bool, mdscr: u64) {
        if self.owner != Owner::Watch {
            return;
        }
        let vbar = read!("vbar_el1");
        let mut regs = VECTORS.iter().zip(vectors).map(|(offset, wanted)| {
            let control = if wanted && !step { BCR_ON_EL1 } else { 0 };
            (vbar.wrapping_add(*offset), control)
        });
        macro_rules! arm {
            ($($n:literal)*) => {
                $(if let Some((value, control)) = regs.next() && $n < self.have.breakpoints {
                    write!(concat!("s2_0_c0_c", $n, "_4"), value);
                    write!(concat!("s2_0_c0_c", $n, "_5"), control);
                })*
            };
        }
        arm!(0 1 2);
        write!("mdscr_el1", mdscr | MDSCR_MDE | if step { MDSCR_SS } else { 0 });
    }

    /// Gives them back, before the guest's world goes. `vbar` as in [`begin_watch`](Self::begin_watch), `mdscr` as the
    /// guest has it.
    pub fn end_watch(&mut self, vbar: bool, mdscr: u64) {
        write!("mdscr_el1", mdscr);
        isb();
        self.give_back(Owner::Watch);
        write!("mdcr_el2", read!("mdcr_el2") & !MDCR_TDE);
        if vbar {
            write!("s3_4_c1_c1_5", read!("s3_4_c1_c1_5") & !HFGW_VBAR);
        }
    }
}

/// What EL1 has been told of its last exception, and where its vectors are; with the guest's world in place.
#[derive(Clone, Copy, Debug)]
pub struct El1Exception {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// VBAR_EL1.
    pub vbar: u64,
}

impl El1Exception {
    /// As it is now.
    pub fn read() -> Self {
        Self {
            esr: read!("esr_el1"),
            far: read!("far_el1"),
            elr: read!("elr_el1"),
            spsr: read!("spsr_el1"),
            vbar: read!("vbar_el1"),
        }
    }
}

/// The guest's write of VBAR_EL1.
pub fn set_guest_vbar(value: u64) {
    write!("vbar_el1", value);
}

/// The guest's SP_EL0 and SP_EL1.
pub fn guest_stacks() -> (u64, u64) {
    (read!("sp_el0"), read!("sp_el1"))
}

/// The running guest has PSTATE.PAN set at its exceptions: FEAT_PAN (ID_AA64MMFR1_EL1.PAN), and SCTLR_EL1.SPAN = 0.
pub fn guest_sets_pan() -> bool {
    read!("id_aa64mmfr1_el1") >> 20 & 0xF != 0 && read!("sctlr_el1") >> 23 & 1 == 0
}
