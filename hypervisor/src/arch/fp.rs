// SPDX-License-Identifier: Apache-2.0 OR MIT
//! FP/SIMD and SVE state, switched when someone uses it.
//!
//! Guests have FP/SIMD, and SVE if their VM was given it. A guest's registers are saved on every return to the
//! host if it used them; the host's come back at the host's own first use, by trap.
//!
//! ZCR_EL2 holds the longest vectors there are ([`ZCR_LONGEST`]), except while an SVE guest's registers are in
//! the CPU: then the longest that all CPUs have, since a vCPU moves between them. Saved areas are laid out by the
//! length that is in force when they are saved and restored. They hold any length of the architecture.

use core::sync::atomic::{AtomicU64, Ordering};

use super::barrier::isb;
use super::id::Features;
use super::sysreg::{read, write};
use crate::mem::boxed::PageBox;
use crate::mem::pool::Exhausted;

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
pub struct SveRegs {
    /// Z registers from the beginning, P and FFR from 8192 on, each as long as the vector length in force has it.
    zp: [u8; SVE_BYTES],
    fpsr: u32,
    fpcr: u32,
    pad: u64,
}

/// 32 * 256 and 17 * 32.
const SVE_BYTES: usize = 8192 + 544;

impl SveRegs {
    const ZERO: Self = Self { zp: [0; SVE_BYTES], fpsr: 0, fpcr: 0, pad: 0 };
}

/// ZCR_EL2.LEN for "as long as can be".
pub const ZCR_LONGEST: u64 = 0xF;

/// Bytes of the longest vectors that every CPU started so far has; 0 if one lacks SVE.
static VECTOR_BYTES: AtomicU64 = AtomicU64::new(u64::MAX);

/// Notes this CPU's vector length. Where it has SVE, that is not trapped and ZCR_EL2 at its longest.
pub fn note_vector_length(features: &Features) {
    // SAFETY: reads a length; SVE is there and not trapped (the caller).
    let bytes = if features.sve { unsafe { sve_vector_bytes() } } else { 0 };
    VECTOR_BYTES.fetch_min(bytes, Ordering::Relaxed);
}

/// Whether all CPUs started so far have SVE.
pub fn sve_everywhere() -> bool {
    VECTOR_BYTES.load(Ordering::Relaxed) != 0
}

/// SHA-256 while EL2 boots: by the CPU's vector registers if it can, for there is nobody yet whose they are.
pub fn sha256_at_boot(bytes: &[u8]) -> [u8; 32] {
    /// CPTR_EL2.TFP, which firmware may have left set.
    const TFP: u64 = 1 << 10;
    if !gzvm_sha256::available() {
        return gzvm_sha256::software(bytes);
    }
    let cptr = read!("cptr_el2");
    write!("cptr_el2", cptr & !TFP);
    isb();
    // SAFETY: they are there and not trapped; neither host nor guest has run, and EL2's own code is compiled without them.
    let digest = unsafe { gzvm_sha256::by_instructions(bytes) };
    write!("cptr_el2", cptr);
    isb();
    digest
}

unsafe extern "C" {
    fn fp_save(area: *mut FpRegs);
    fn fp_restore(area: *const FpRegs);
    fn sve_save(area: *mut SveRegs, ffr: u64);
    fn sve_restore(area: *const SveRegs, ffr: u64);
    fn sve_vector_bytes() -> u64;
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
        Self { sve: SveRegs::ZERO, zcr_el1: 0, svcr: 0 }
    }
}

impl FpRegs {
    /// Takes the CPU's registers. FP must not be trapped.
    pub fn save(&mut self) {
        // SAFETY: the area is ours and large enough; FP is untrapped at EL2 (the caller's CPTR_EL2).
        unsafe { fp_save(self) }
    }

    /// V0..V31: low and high half.
    fn vector(&self, n: u8) -> [u64; 2] {
        let at = usize::from(n & 31) * 2;
        [self.q[at], self.q[at + 1]]
    }

    /// Sets one.
    fn set_vector(&mut self, n: u8, value: [u64; 2]) {
        let at = usize::from(n & 31) * 2;
        self.q[at..at + 2].copy_from_slice(&value);
    }

    /// Puts these registers into the CPU. FP must not be trapped.
    pub fn restore(&self) {
        // SAFETY: as in `save`.
        unsafe { fp_restore(self) }
    }
}

/// A guest's registers while they are not in the CPU.
pub struct GuestFp {
    simd: FpRegs,
    /// Used instead, where the VM was given SVE.
    sve: Option<GuestSve>,
}

struct GuestSve {
    regs: PageBox<SveRegs>,
    zcr_el1: u64,
    vector_bytes: u64,
}

impl GuestFp {
    /// All zero.
    pub fn new(sve: bool) -> Result<Self, Exhausted> {
        let sve = if sve {
            Some(GuestSve {
                regs: PageBox::new(SveRegs::ZERO)?,
                zcr_el1: 0,
                // In the architecture's limits, so that whatever is done with it stays in the area.
                vector_bytes: VECTOR_BYTES.load(Ordering::Relaxed).clamp(16, 256),
            })
        } else {
            None
        };
        Ok(Self { simd: FpRegs::default(), sve })
    }

    /// All zero again.
    pub fn reset(&mut self) {
        self.simd = FpRegs::default();
        if let Some(sve) = &mut self.sve {
            *sve.regs = SveRegs::ZERO;
            sve.zcr_el1 = 0;
        }
    }

    /// The VM was given SVE.
    pub const fn has_sve(&self) -> bool {
        self.sve.is_some()
    }

    /// Takes the CPU's registers, which are this guest's. They must not be trapped.
    pub fn save(&mut self) {
        let Some(sve) = &mut self.sve else { return self.simd.save() };
        sve.zcr_el1 = read!("s3_0_c1_c2_0");
        // SAFETY: the area holds the largest vector length; SVE is untrapped at EL2 (the caller's CPTR_EL2).
        unsafe { sve_save(&mut *sve.regs, 1) };
        write!("s3_4_c1_c2_0", ZCR_LONGEST);
        super::barrier::isb();
    }

    /// Puts these registers into the CPU. They must not be trapped.
    pub fn restore(&self) {
        let Some(sve) = &self.sve else { return self.simd.restore() };
        write!("s3_4_c1_c2_0", (sve.vector_bytes / 16).wrapping_sub(1));
        write!("s3_0_c1_c2_0", sve.zcr_el1);
        super::barrier::isb();
        // SAFETY: as in `save`.
        unsafe { sve_restore(&*sve.regs, 1) };
    }

    /// FPSR and FPCR, while they are not in a CPU.
    pub fn control(&mut self) -> (&mut u32, &mut u32) {
        match &mut self.sve {
            Some(sve) => {
                let regs = &mut *sve.regs;
                (&mut regs.fpsr, &mut regs.fpcr)
            }
            None => (&mut self.simd.fpsr, &mut self.simd.fpcr),
        }
    }

    /// V0..V31: low and high half.
    pub fn vector(&self, n: u8) -> [u64; 2] {
        let Some(sve) = &self.sve else { return self.simd.vector(n) };
        let at = usize::from(n & 31) * sve.vector_bytes as usize;
        let half = |at: usize| {
            sve.regs.zp.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
        };
        [half(at), half(at + 8)]
    }

    /// Sets one. What is above it in a Z register becomes zero, as by an instruction.
    pub fn set_vector(&mut self, n: u8, value: [u64; 2]) {
        let Some(sve) = &mut self.sve else { return self.simd.set_vector(n, value) };
        let bytes = sve.vector_bytes as usize;
        let at = usize::from(n & 31) * bytes;
        if let Some(z) = sve.regs.zp.get_mut(at..at + bytes) {
            z.fill(0);
            z[..8].copy_from_slice(&value[0].to_le_bytes());
            z[8..16].copy_from_slice(&value[1].to_le_bytes());
        }
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
