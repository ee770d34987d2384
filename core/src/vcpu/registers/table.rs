// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The rows. Encodings and names: Arm ARM D23 and D24, IHI 0069 12.2.

use super::Access::{self, ReadOnly, ReadWrite, WriteOnly};
use super::Presence::{self, Always, Perhaps};
use super::Treatment::{self, Cpu, Hidden, Pstate, Switched, Trapped, Virtual};
use super::{Register, Trap};

/// Reads as zero, ignores writes.
const ZERO: Treatment = Trapped(Trap::Constant(0));

const fn one(name: &'static str, e: (u8, u8, u8, u8, u8), access: Access, treatment: Treatment) -> Register {
    many(name, (e.0, e.1, e.2), (e.3, e.3), (e.4, e.4), (access, treatment))
}

const fn many(
    name: &'static str,
    group: (u8, u8, u8),
    crm: (u8, u8),
    op2: (u8, u8),
    how: (Access, Treatment),
) -> Register {
    Register { name, group, crm, op2, access: how.0, treatment: how.1, presence: Always }
}

const fn hidden(name: &'static str, group: (u8, u8, u8), crm: (u8, u8), op2: (u8, u8)) -> Register {
    many(name, group, crm, op2, (ReadWrite, Hidden))
}

impl Register {
    const fn if_field(self, crm: u8, op2: u8, shift: u8, least: u8) -> Self {
        Self { presence: Presence::Field { crm, op2, shift, least }, ..self }
    }

    const fn given(self, crm: u8, op2: u8, shift: u8, least: u8) -> Self {
        Self { presence: Presence::Given { crm, op2, shift, least }, ..self }
    }

    const fn perhaps(self) -> Self {
        Self { presence: Perhaps, ..self }
    }
}

/// All rows.
pub static TABLE: &[Register] = &[
    // Debug. Breakpoints and watchpoints beyond those that ID_AA64DFR0_EL1 counts are undefined.
    one("OSDTRRX_EL1", (2, 0, 0, 0, 2), ReadWrite, ZERO),
    one("MDCCINT_EL1", (2, 0, 0, 2, 0), ReadWrite, ZERO),
    one("MDSCR_EL1", (2, 0, 0, 2, 2), ReadWrite, Trapped(Trap::DebugControl)),
    one("OSDTRTX_EL1", (2, 0, 0, 3, 2), ReadWrite, ZERO),
    one("OSECCR_EL1", (2, 0, 0, 6, 2), ReadWrite, ZERO),
    many("DBGBVR<n>_EL1", (2, 0, 0), (0, 15), (4, 4), (ReadWrite, Trapped(Trap::BreakpointValue))).perhaps(),
    many("DBGBCR<n>_EL1", (2, 0, 0), (0, 15), (5, 5), (ReadWrite, Trapped(Trap::BreakpointControl)))
        .perhaps(),
    many("DBGWVR<n>_EL1", (2, 0, 0), (0, 15), (6, 6), (ReadWrite, Trapped(Trap::WatchpointValue))).perhaps(),
    many("DBGWCR<n>_EL1", (2, 0, 0), (0, 15), (7, 7), (ReadWrite, Trapped(Trap::WatchpointControl)))
        .perhaps(),
    one("MDRAR_EL1", (2, 0, 1, 0, 0), ReadOnly, ZERO),
    one("OSLAR_EL1", (2, 0, 1, 0, 4), WriteOnly, Trapped(Trap::OsLockAccess)),
    one("OSLSR_EL1", (2, 0, 1, 1, 4), ReadOnly, Trapped(Trap::OsLockStatus)),
    one("OSDLR_EL1", (2, 0, 1, 3, 4), ReadWrite, ZERO),
    // QEMU has not all of these.
    one("DBGPRCR_EL1", (2, 0, 1, 4, 4), ReadWrite, ZERO).perhaps(),
    one("DBGCLAIMSET_EL1", (2, 0, 7, 8, 6), ReadWrite, ZERO).perhaps(),
    one("DBGCLAIMCLR_EL1", (2, 0, 7, 9, 6), ReadWrite, ZERO).perhaps(),
    one("DBGAUTHSTATUS_EL1", (2, 0, 7, 14, 6), ReadOnly, ZERO).perhaps(),
    one("MDCCSR_EL0", (2, 3, 0, 1, 0), ReadOnly, ZERO),
    one("DBGDTR_EL0", (2, 3, 0, 4, 0), ReadWrite, ZERO).perhaps(),
    one("DBGDTRRX_EL0, DBGDTRTX_EL0", (2, 3, 0, 5, 0), ReadWrite, ZERO),
    // Identification.
    one("MIDR_EL1", (3, 0, 0, 0, 0), ReadOnly, Virtual),
    one("MPIDR_EL1", (3, 0, 0, 0, 5), ReadOnly, Virtual),
    one("REVIDR_EL1", (3, 0, 0, 0, 6), ReadOnly, ZERO),
    many("AArch32 ID registers", (3, 0, 0), (1, 3), (0, 7), (ReadOnly, ZERO)),
    many("ID_AA64*_EL1", (3, 0, 0), (4, 7), (0, 7), (ReadOnly, Trapped(Trap::IdRegister))),
    // Control.
    one("SCTLR_EL1", (3, 0, 1, 0, 0), ReadWrite, Switched),
    one("ACTLR_EL1", (3, 0, 1, 0, 1), ReadWrite, ZERO),
    one("CPACR_EL1", (3, 0, 1, 0, 2), ReadWrite, Switched),
    hidden("SCTLR2_EL1", (3, 0, 1), (0, 0), (3, 3)),
    hidden("RGSR_EL1, GCR_EL1 (MTE)", (3, 0, 1), (0, 0), (5, 6)),
    one("ZCR_EL1", (3, 0, 1, 2, 0), ReadWrite, Switched).given(4, 0, 32, 1),
    hidden("TRFCR_EL1, TRCITECR_EL1", (3, 0, 1), (2, 2), (1, 3)),
    hidden("SMPRI_EL1, SMCR_EL1 (SME)", (3, 0, 1), (2, 2), (4, 6)),
    many("TTBR0_EL1, TTBR1_EL1, TCR_EL1", (3, 0, 2), (0, 0), (0, 2), (ReadWrite, Switched)),
    hidden("TCR2_EL1", (3, 0, 2), (0, 0), (3, 3)),
    many("APIAKey*, APIBKey*_EL1", (3, 0, 2), (1, 1), (0, 3), (ReadWrite, Switched)).perhaps(),
    many("APDAKey*, APDBKey*_EL1", (3, 0, 2), (2, 2), (0, 3), (ReadWrite, Switched)).perhaps(),
    many("APGAKey*_EL1", (3, 0, 2), (3, 3), (0, 1), (ReadWrite, Switched)).perhaps(),
    hidden("GCSCR_EL1, GCSPR_EL1, GCSCRE0_EL1", (3, 0, 2), (5, 5), (0, 2)),
    one("SPSR_EL1", (3, 0, 4, 0, 0), ReadWrite, Switched),
    one("ELR_EL1", (3, 0, 4, 0, 1), ReadWrite, Switched),
    one("SP_EL0", (3, 0, 4, 1, 0), ReadWrite, Switched),
    one("SPSel", (3, 0, 4, 2, 0), ReadWrite, Pstate),
    one("CurrentEL", (3, 0, 4, 2, 2), ReadOnly, Pstate),
    one("PAN", (3, 0, 4, 2, 3), ReadWrite, Pstate).if_field(7, 1, 20, 1),
    one("UAO", (3, 0, 4, 2, 4), ReadWrite, Pstate).if_field(7, 2, 4, 1),
    // Without a trap where the CPU has NMI: a mask of the guest's own interrupts.
    one("ALLINT", (3, 0, 4, 3, 0), ReadWrite, Pstate).perhaps(),
    hidden("PM", (3, 0, 4), (3, 3), (1, 1)),
    one("ICC_PMR_EL1", (3, 0, 4, 6, 0), ReadWrite, Virtual),
    many("AFSR0_EL1, AFSR1_EL1", (3, 0, 5), (1, 1), (0, 1), (ReadWrite, Switched)),
    one("ESR_EL1", (3, 0, 5, 2, 0), ReadWrite, Switched),
    hidden("ERRIDR_EL1, ERRSELR_EL1, ERX*_EL1 (RAS)", (3, 0, 5), (3, 5), (0, 7)),
    hidden("TFSR_EL1, TFSRE0_EL1 (MTE)", (3, 0, 5), (6, 6), (0, 1)),
    one("FAR_EL1", (3, 0, 6, 0, 0), ReadWrite, Switched),
    hidden("PFAR_EL1", (3, 0, 6), (0, 0), (5, 5)),
    one("PAR_EL1", (3, 0, 7, 4, 0), ReadWrite, Switched),
    hidden("PMS*_EL1, PMB*_EL1 (SPE)", (3, 0, 9), (9, 10), (0, 7)),
    hidden("TRB*_EL1 (TRBE)", (3, 0, 9), (11, 11), (0, 7)),
    hidden("PMINTENSET_EL1, PMINTENCLR_EL1, PMMIR_EL1", (3, 0, 9), (14, 14), (1, 6)),
    one("MAIR_EL1", (3, 0, 10, 2, 0), ReadWrite, Switched),
    hidden("MAIR2_EL1, PIRE0_EL1, PIR_EL1, POR_EL1, S2POR_EL1", (3, 0, 10), (2, 2), (1, 5)),
    one("AMAIR_EL1", (3, 0, 10, 3, 0), ReadWrite, Switched),
    hidden("AMAIR2_EL1", (3, 0, 10), (3, 3), (1, 1)),
    hidden("LORSA_EL1, LOREA_EL1, LORN_EL1, LORC_EL1, LORID_EL1", (3, 0, 10), (4, 4), (0, 7)),
    hidden("MPAM*_EL1", (3, 0, 10), (5, 5), (0, 7)),
    hidden("implementation defined (CRn 11)", (3, 0, 11), (0, 15), (0, 7)),
    // Interrupts.
    one("ICC_SGI1R_EL1", (3, 0, 12, 11, 5), WriteOnly, Trapped(Trap::Sgi1)),
    one("ICC_ASGI1R_EL1", (3, 0, 12, 11, 6), WriteOnly, Trapped(Trap::AliasSgi1)),
    one("ICC_SGI0R_EL1", (3, 0, 12, 11, 7), WriteOnly, Trapped(Trap::Sgi0)),
    one("ICC_DIR_EL1", (3, 0, 12, 11, 1), WriteOnly, Trapped(Trap::Deactivate)),
    one("ICC_SRE_EL1", (3, 0, 12, 12, 5), ReadWrite, Trapped(Trap::Constant(7))),
    one("VBAR_EL1", (3, 0, 12, 0, 0), ReadWrite, Switched),
    one("ISR_EL1", (3, 0, 12, 1, 0), ReadOnly, Virtual),
    // HCR_EL2.AMO makes it VDISR_EL2, which is zeroed on every entry.
    one("DISR_EL1", (3, 0, 12, 1, 1), ReadWrite, Virtual).perhaps(),
    one("ICC_IAR0_EL1", (3, 0, 12, 8, 0), ReadOnly, Virtual),
    one("ICC_EOIR0_EL1", (3, 0, 12, 8, 1), WriteOnly, Virtual),
    one("ICC_HPPIR0_EL1", (3, 0, 12, 8, 2), ReadOnly, Virtual),
    one("ICC_BPR0_EL1", (3, 0, 12, 8, 3), ReadWrite, Virtual),
    one("ICC_AP0R0_EL1", (3, 0, 12, 8, 4), ReadWrite, Virtual),
    many("ICC_AP0R<n>_EL1", (3, 0, 12), (8, 8), (5, 7), (ReadWrite, Virtual)).perhaps(),
    one("ICC_AP1R0_EL1", (3, 0, 12, 9, 0), ReadWrite, Virtual),
    many("ICC_AP1R<n>_EL1", (3, 0, 12), (9, 9), (1, 3), (ReadWrite, Virtual)).perhaps(),
    // Of a GIC with NMI; only ICH_HCR_EL2.TALL1 would trap it. No list register ever holds an NMI: spurious.
    one("ICC_NMIAR1_EL1", (3, 0, 12, 9, 5), ReadOnly, Virtual).perhaps(),
    one("ICC_RPR_EL1", (3, 0, 12, 11, 3), ReadOnly, Virtual),
    one("ICC_IAR1_EL1", (3, 0, 12, 12, 0), ReadOnly, Virtual),
    one("ICC_EOIR1_EL1", (3, 0, 12, 12, 1), WriteOnly, Virtual),
    one("ICC_HPPIR1_EL1", (3, 0, 12, 12, 2), ReadOnly, Virtual),
    many("ICC_BPR1_EL1, ICC_CTLR_EL1", (3, 0, 12), (12, 12), (3, 4), (ReadWrite, Virtual)),
    many("ICC_IGRPEN0_EL1, ICC_IGRPEN1_EL1", (3, 0, 12), (12, 12), (6, 7), (ReadWrite, Virtual)),
    // Threads, timers.
    one("CONTEXTIDR_EL1", (3, 0, 13, 0, 1), ReadWrite, Switched),
    hidden("RCWSMASK_EL1", (3, 0, 13), (0, 0), (3, 3)),
    one("TPIDR_EL1", (3, 0, 13, 0, 4), ReadWrite, Switched),
    hidden("ACCDATA_EL1, RCWMASK_EL1, SCXTNUM_EL1", (3, 0, 13), (0, 0), (5, 7)),
    one("CNTKCTL_EL1", (3, 0, 14, 1, 0), ReadWrite, Switched),
    hidden("implementation defined (CRn 15)", (3, 0, 15), (0, 15), (0, 7)),
    // op1 1 and 2: caches.
    many("CCSIDR_EL1, CLIDR_EL1", (3, 1, 0), (0, 0), (0, 1), (ReadOnly, Cpu)),
    one("CCSIDR2_EL1", (3, 1, 0, 0, 2), ReadOnly, Cpu).if_field(7, 2, 20, 1),
    hidden("GMID_EL1 (MTE)", (3, 1, 0), (0, 0), (4, 4)),
    hidden("SMIDR_EL1 (SME)", (3, 1, 0), (0, 0), (6, 6)),
    one("AIDR_EL1", (3, 1, 0, 0, 7), ReadOnly, ZERO),
    one("CSSELR_EL1", (3, 2, 0, 0, 0), ReadWrite, Switched),
    // op1 3: EL0's.
    one("CTR_EL0", (3, 3, 0, 0, 1), ReadOnly, Cpu),
    one("DCZID_EL0", (3, 3, 0, 0, 7), ReadOnly, Cpu),
    many("RNDR, RNDRRS", (3, 3, 2), (4, 4), (0, 1), (ReadOnly, Cpu)).if_field(6, 0, 60, 1),
    hidden("GCSPR_EL0", (3, 3, 2), (5, 5), (1, 1)),
    many("NZCV, DAIF", (3, 3, 4), (2, 2), (0, 1), (ReadWrite, Pstate)),
    hidden("SVCR (SME)", (3, 3, 4), (2, 2), (2, 2)),
    one("DIT", (3, 3, 4, 2, 5), ReadWrite, Pstate).if_field(4, 0, 48, 1),
    one("SSBS", (3, 3, 4, 2, 6), ReadWrite, Pstate).if_field(4, 1, 4, 2),
    // Without a trap where the CPU has MTE; without tags it does nothing.
    one("TCO", (3, 3, 4, 2, 7), ReadWrite, Pstate).perhaps(),
    many("FPCR, FPSR", (3, 3, 4), (4, 4), (0, 1), (ReadWrite, Switched)),
    hidden("FPMR", (3, 3, 4), (4, 4), (2, 2)),
    hidden("DSPSR_EL0, DLR_EL0 (debug state)", (3, 3, 4), (5, 5), (0, 1)),
    hidden("PM*_EL0 (PMU)", (3, 3, 9), (12, 14), (0, 7)),
    many("TPIDR_EL0, TPIDRRO_EL0", (3, 3, 13), (0, 0), (2, 3), (ReadWrite, Switched)),
    hidden("TPIDR2_EL0, SCXTNUM_EL0", (3, 3, 13), (0, 0), (5, 7)),
    hidden("AM*_EL0 (AMU)", (3, 3, 13), (2, 15), (0, 7)),
    one("CNTFRQ_EL0", (3, 3, 14, 0, 0), ReadOnly, Cpu),
    one("CNTPCT_EL0", (3, 3, 14, 0, 1), ReadOnly, Trapped(Trap::PhysicalTimer)),
    one("CNTVCT_EL0", (3, 3, 14, 0, 2), ReadOnly, Virtual),
    one("CNTPCTSS_EL0", (3, 3, 14, 0, 5), ReadOnly, Trapped(Trap::PhysicalTimer)).if_field(7, 0, 60, 1),
    one("CNTVCTSS_EL0", (3, 3, 14, 0, 6), ReadOnly, Virtual).if_field(7, 0, 60, 1),
    many(
        "CNTP_TVAL_EL0, CNTP_CTL_EL0, CNTP_CVAL_EL0",
        (3, 3, 14),
        (2, 2),
        (0, 2),
        (ReadWrite, Trapped(Trap::PhysicalTimer)),
    ),
    many("CNTV_TVAL_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0", (3, 3, 14), (3, 3), (0, 2), (ReadWrite, Switched)),
    hidden("PMEVCNTR<n>_EL0, PMEVTYPER<n>_EL0, PMCCFILTR_EL0", (3, 3, 14), (8, 15), (0, 7)),
];
