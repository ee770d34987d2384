// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The CPU's debug registers while a watched guest runs (Arm ARM D2.8 to D2.12, D24.3).
//!
//! A guest that is not watched has no breakpoints, and the host's do not fire in it (MDSCR_EL1.MDE is the guest's, and
//! clear). For one that is watched EL2 takes them all: the host's are switched off and kept, the first three stand on
//! the guest's exception vectors, and MDCR_EL2.TDE brings every debug exception to EL2, whatever PSTATE.D says.

use gzvm_core::platform::watch::VECTORS;

use super::barrier::isb;
use super::sysreg::{read, write};

/// MDSCR_EL1.SS.
pub const MDSCR_SS: u64 = 1;
const MDSCR_MDE: u64 = 1 << 15;
const MDCR_TDE: u64 = 1 << 8;
/// DBGBCR<n>_EL1: enabled, an address, all four bytes, EL1 (HMC = 0, SSC = 0, PMC = 0b01).
const BCR_ON_EL1: u64 = 0xF << 5 | 0b01 << 1 | 1;
/// OSLSR_EL1.OSLK.
const OSLSR_LOCKED: u64 = 1 << 1;
/// HFGWTR_EL2.VBAR_EL1.
const HFGW_VBAR: u64 = 1 << 38;

macro_rules! numbered {
    ($read:ident, $write:ident, $op2:literal: $($n:literal)*) => {
        fn $read(n: usize) -> u64 {
            match n { $($n => read!(concat!("s2_0_c0_c", $n, "_", $op2)),)* _ => 0 }
        }
        fn $write(n: usize, value: u64) {
            match n { $($n => write!(concat!("s2_0_c0_c", $n, "_", $op2), value),)* _ => {} }
        }
    };
}
numbered!(read_bvr, write_bvr, 4: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
numbered!(read_bcr, write_bcr, 5: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
numbered!(read_wcr, write_wcr, 7: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);

/// Breakpoints and watchpoints of this CPU (ID_AA64DFR0_EL1.BRPs, WRPs).
pub fn counts() -> (usize, usize) {
    let dfr0 = read!("id_aa64dfr0_el1");
    ((dfr0 >> 12 & 0xF) as usize + 1, (dfr0 >> 20 & 0xF) as usize + 1)
}

/// The host's debug registers while EL2 has them.
pub struct Watch {
    bvr: [u64; VECTORS.len()],
    bcr: [u64; 16],
    wcr: [u64; 16],
    locked: bool,
    traps_vbar: bool,
}

impl Watch {
    /// Takes the registers, with a guest's world in place. Where the CPU can (`fgt`), writes of VBAR_EL1 trap.
    pub fn begin(fgt: bool) -> Self {
        let mut host = Self { bvr: [0; 3], bcr: [0; 16], wcr: [0; 16], locked: false, traps_vbar: fgt };
        let (breakpoints, watchpoints) = counts();
        for (n, bvr) in host.bvr.iter_mut().enumerate().take(breakpoints) {
            *bvr = read_bvr(n);
        }
        for (n, bcr) in host.bcr.iter_mut().enumerate().take(breakpoints) {
            *bcr = read_bcr(n);
            write_bcr(n, 0);
        }
        for (n, wcr) in host.wcr.iter_mut().enumerate().take(watchpoints) {
            *wcr = read_wcr(n);
            write_wcr(n, 0);
        }
        host.locked = read!("oslsr_el1") & OSLSR_LOCKED != 0;
        write!("oslar_el1", 0);
        write!("mdcr_el2", read!("mdcr_el2") | MDCR_TDE);
        if fgt {
            write!("s3_4_c1_c1_5", read!("s3_4_c1_c1_5") | HFGW_VBAR);
        }
        isb();
        host
    }

    /// Before the guest runs: breakpoints on its vectors as they are now, or one step without them. `guest` is what
    /// the guest itself has in MDSCR_EL1.
    pub fn arm(&self, vectors: [bool; VECTORS.len()], step: bool, guest: u64) {
        let vbar = read!("vbar_el1");
        for (n, (offset, wanted)) in VECTORS.iter().zip(vectors).enumerate() {
            if wanted {
                write_bvr(n, vbar.wrapping_add(*offset));
                write_bcr(n, if step { 0 } else { BCR_ON_EL1 });
            }
        }
        write!("mdscr_el1", guest | MDSCR_MDE | if step { MDSCR_SS } else { 0 });
    }

    /// Gives the registers back, before the guest's world goes. `guest` as in [`arm`](Self::arm).
    pub fn end(self, guest: u64) {
        let (breakpoints, watchpoints) = counts();
        write!("mdscr_el1", guest);
        isb();
        for (n, bvr) in self.bvr.iter().enumerate().take(breakpoints) {
            write_bvr(n, *bvr);
        }
        for (n, bcr) in self.bcr.iter().enumerate().take(breakpoints) {
            write_bcr(n, *bcr);
        }
        for (n, wcr) in self.wcr.iter().enumerate().take(watchpoints) {
            write_wcr(n, *wcr);
        }
        if self.locked {
            write!("oslar_el1", 1);
        }
        write!("mdcr_el2", read!("mdcr_el2") & !MDCR_TDE);
        if self.traps_vbar {
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
