// SPDX-License-Identifier: Apache-2.0 OR MIT
//! FP/SIMD and SVE state, switched when someone uses it.
//!
//! Guests have FP/SIMD without SVE. A guest's registers are saved on every return to the host if it
//! used them; the host's come back at the host's own first use, by trap.

use super::id::Features;
use super::sysreg::{read, write};

/// q0..q31, FPSR, FPCR.
#[derive(Clone)]
#[repr(C, align(16))]
pub struct FpRegs {
    q: [u64; 64],
    fpsr: u32,
    fpcr: u32,
    pad: u64,
}

impl Default for FpRegs {
    fn default() -> Self {
        Self { q: [0; 64], fpsr: 0, fpcr: 0, pad: 0 }
    }
}

/// z0..z31, p0..p15, FFR, FPSR, FPCR at the largest vector length (2048 bits).
#[repr(C, align(16))]
pub struct SveRegs([u8; 8192 + 544 + 16]);

unsafe extern "C" {
    fn fp_save(area: *mut FpRegs);
    fn fp_restore(area: *const FpRegs);
    fn sve_save(area: *mut SveRegs, ffr: u64);
    fn sve_restore(area: *const SveRegs, ffr: u64);
}

/// The host's registers while they are not in the CPU.
#[repr(C, align(16))]
pub struct HostFp {
    sve: SveRegs,
    zcr_el1: u64,
    /// SVCR: streaming mode and ZA. ZA itself stays in the CPU; guests can't reach it.
    svcr: u64,
}

impl Default for HostFp {
    fn default() -> Self {
        Self { sve: SveRegs([0; 8192 + 544 + 16]), zcr_el1: 0, svcr: 0 }
    }
}

impl FpRegs {
    /// The halves of Vn, the lower first; of registers that are not in a CPU.
    pub fn vector_mut(&mut self, n: usize) -> Option<&mut [u64; 2]> {
        let (vectors, _) = self.q.as_chunks_mut();
        vectors.get_mut(n)
    }

    /// FPSR and FPCR.
    pub fn control(&mut self) -> (&mut u32, &mut u32) {
        (&mut self.fpsr, &mut self.fpcr)
    }

    /// Takes the CPU's registers. FP must not be trapped.
    pub fn save(&mut self) {
        // SAFETY: the area is ours and large enough; FP is untrapped at EL2 (the caller's CPTR_EL2).
        unsafe { fp_save(self) }
    }

    /// V0..V31: low and high half.
    pub fn vector(&self, n: u8) -> [u64; 2] {
        let at = usize::from(n & 31) * 2;
        [self.q[at], self.q[at + 1]]
    }

    /// Sets one.
    pub fn set_vector(&mut self, n: u8, value: [u64; 2]) {
        let at = usize::from(n & 31) * 2;
        self.q[at..at + 2].copy_from_slice(&value);
    }

    /// Puts these registers into the CPU. FP must not be trapped.
    pub fn restore(&self) {
        // SAFETY: as in `save`.
        unsafe { fp_restore(self) }
    }
}

/// SVCR.SM: streaming mode.
const SVCR_SM: u64 = 1;

impl HostFp {
    /// Takes the host's registers, and leaves streaming mode, in which a guest's instructions would
    /// mean something else. Neither FP nor SVE nor SME may be trapped.
    pub fn save(&mut self, features: &Features) {
        self.svcr = if features.sme { read!("s3_3_c4_c2_2") } else { 0 };
        if features.sve {
            self.zcr_el1 = read!("s3_0_c1_c2_0");
        }
        if features.sve || self.svcr & SVCR_SM != 0 {
            // SAFETY: the area holds the largest vector length.
            unsafe { sve_save(&mut self.sve, self.has_ffr(features)) }
        } else {
            // SAFETY: an SveRegs is larger than an FpRegs and as aligned.
            unsafe { fp_save(core::ptr::from_mut(&mut self.sve).cast()) }
        }
        if self.svcr & SVCR_SM != 0 {
            write!("s3_3_c4_c2_2", self.svcr & !SVCR_SM);
            super::barrier::isb();
        }
    }

    /// Gives the host its registers back.
    pub fn restore(&self, features: &Features) {
        if self.svcr & SVCR_SM != 0 {
            write!("s3_3_c4_c2_2", self.svcr);
            super::barrier::isb();
        }
        if features.sve {
            write!("s3_0_c1_c2_0", self.zcr_el1);
            super::barrier::isb();
        }
        if features.sve || self.svcr & SVCR_SM != 0 {
            // SAFETY: as in `save`.
            unsafe { sve_restore(&self.sve, self.has_ffr(features)) }
        } else {
            // SAFETY: as in `save`.
            unsafe { fp_restore(core::ptr::from_ref(&self.sve).cast()) }
        }
    }

    /// Streaming mode has no FFR, unless FEAT_SME_FA64 is there.
    fn has_ffr(&self, features: &Features) -> u64 {
        u64::from(self.svcr & SVCR_SM == 0 || features.sme_fa64)
    }
}
