// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The EL1 and EL0 system registers that are switched between the host and a guest.
//!
//! `docs/architecture.md` has the table of every register a guest can reach and who deals with it;
//! registers that are not here are trapped, hidden or the same for everybody.

use super::id::Features;
use super::sysreg::{read, write};

macro_rules! el1_registers {
    ($($(#[$doc:meta])* $field:ident = $name:literal,)*) => {
        /// The switched registers, in the order they are moved.
        #[derive(Clone, Default, Debug)]
        #[allow(missing_docs)]
        pub struct El1Regs { $($(#[$doc])* pub $field: u64,)* pub tcr: u64, pub pauth: PauthKeys }

        impl El1Regs {
            /// Takes the CPU's registers.
            #[inline(always)]
            pub fn save(&mut self, features: &Features) {
                $(self.$field = read!($name);)*
                self.tcr = read!("tcr_el1");
                if features.pauth {
                    self.pauth.save();
                }
            }

            /// Puts these registers into the CPU, TCR_EL1 last: until then walks are off, see
            /// [`block_walks`](Self::block_walks). It takes effect at the next context synchronisation.
            #[inline(always)]
            pub fn restore(&self, features: &Features) {
                $(write!($name, self.$field);)*
                if features.pauth {
                    self.pauth.restore();
                }
                super::barrier::isb();
                write!("tcr_el1", self.tcr);
            }

            /// No speculative walk may combine one VM's stage 1 with another's stage 2: with these
            /// registers in the CPU, turns walks off (EPDx, which count while M = 1).
            #[inline(always)]
            pub fn block_walks(&self) {
                write!("tcr_el1", self.tcr | TCR_EPD);
                super::barrier::isb();
                write!("sctlr_el1", self.sctlr | 1);
                super::barrier::isb();
            }
        }
    };
}

el1_registers! {
    sctlr = "sctlr_el1",
    cpacr = "cpacr_el1",
    ttbr0 = "ttbr0_el1",
    ttbr1 = "ttbr1_el1",
    esr = "esr_el1",
    afsr0 = "afsr0_el1",
    afsr1 = "afsr1_el1",
    far = "far_el1",
    mair = "mair_el1",
    amair = "amair_el1",
    vbar = "vbar_el1",
    contextidr = "contextidr_el1",
    tpidr_el0 = "tpidr_el0",
    tpidrro_el0 = "tpidrro_el0",
    tpidr_el1 = "tpidr_el1",
    par = "par_el1",
    elr = "elr_el1",
    spsr = "spsr_el1",
    sp_el0 = "sp_el0",
    sp_el1 = "sp_el1",
    csselr = "csselr_el1",
    mdscr = "mdscr_el1",
}

/// TCR_EL1.EPD0 and EPD1: no stage-1 walks.
const TCR_EPD: u64 = 1 << 7 | 1 << 23;

/// Pointer authentication keys.
#[derive(Clone, Copy, Default, Debug)]
pub struct PauthKeys([u64; 10]);

macro_rules! pauth_keys {
    ($($index:literal = $name:literal,)*) => {
        impl PauthKeys {
            #[inline(always)]
            fn save(&mut self) {
                $(self.0[$index] = read!($name);)*
            }
            #[inline(always)]
            pub fn restore(&self) {
                $(write!($name, self.0[$index]);)*
            }
        }
    };
}

pauth_keys! {
    0 = "s3_0_c2_c1_0",
    1 = "s3_0_c2_c1_1",
    2 = "s3_0_c2_c1_2",
    3 = "s3_0_c2_c1_3",
    4 = "s3_0_c2_c2_0",
    5 = "s3_0_c2_c2_1",
    6 = "s3_0_c2_c2_2",
    7 = "s3_0_c2_c2_3",
    8 = "s3_0_c2_c3_0",
    9 = "s3_0_c2_c3_1",
}

/// SCTLR_EL1 out of reset, as KVM gives it: MMU and caches off, SA, SA0, nTWI, nTWE, UCT-less.
pub const SCTLR_EL1_RESET: u64 = 0x00C5_0078;
