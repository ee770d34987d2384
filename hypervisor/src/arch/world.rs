// SPDX-License-Identifier: Apache-2.0 OR MIT
//! EL2 control registers: what the host may do, what a guest may do, and the step between the two.

use gzvm_core::broken::{Mistake, broken};
use gzvm_core::platform::entropy::Generator;
use gzvm_core::vgic::MAX_LRS;

use super::barrier::{isb, tlbi_alle1};
use super::debug::{Breakpoints, DebugRegs, Owner};
use super::el1::El1Regs;
use super::fp::{self, GuestFp, HostFp};
use super::id::Features;
use super::sysreg::{read, write};
use super::timer::{self, VirtualTimer};

bitflags::bitflags! {
    /// HCR_EL2 (Arm ARM D19.2.48).
    #[derive(Clone, Copy)]
    struct Hcr: u64 {
        const VM = 1 << 0;
        const SWIO = 1 << 1;
        const PTW = 1 << 2;
        const FMO = 1 << 3;
        const IMO = 1 << 4;
        const AMO = 1 << 5;
        const VSE = 1 << 8;
        const FB = 1 << 9;
        const BSU_INNER = 1 << 10;
        const TWI = 1 << 13;
        const TID1 = 1 << 16;
        const TID3 = 1 << 18;
        const TSC = 1 << 19;
        const TIDCP = 1 << 20;
        const TACR = 1 << 21;
        const RW = 1 << 31;
        const TLOR = 1 << 35;
        const TERR = 1 << 36;
        const APK = 1 << 40;
        const API = 1 << 41;
        const FWB = 1 << 46;
        const FIEN = 1 << 47;
        const ENSCXT = 1 << 53;
        const ATA = 1 << 56;
    }
}

/// The host has everything but SMC, which goes through our filter, and translation of its own.
const HCR_HOST: Hcr = Hcr::VM
    .union(Hcr::RW)
    .union(Hcr::TSC)
    .union(Hcr::APK)
    .union(Hcr::API)
    .union(Hcr::FIEN)
    .union(Hcr::ENSCXT)
    .union(Hcr::ATA);

/// A guest has plain registers; what is not plain traps.
const HCR_GUEST: Hcr = Hcr::VM
    .union(Hcr::SWIO)
    .union(Hcr::PTW)
    .union(Hcr::FMO)
    .union(Hcr::IMO)
    .union(Hcr::AMO)
    .union(Hcr::FB)
    .union(Hcr::BSU_INNER)
    .union(Hcr::TWI)
    .union(Hcr::TID1)
    .union(Hcr::TID3)
    .union(Hcr::TSC)
    .union(Hcr::TIDCP)
    .union(Hcr::TACR)
    .union(Hcr::RW)
    .union(Hcr::TLOR)
    .union(Hcr::TERR)
    .union(Hcr::APK)
    .union(Hcr::API);

/// CPTR_EL2 (E2H = 0): RES1 bits, among them TZ (8) and TSM (12) where those features exist.
const CPTR_RES1: u64 = 0x33FF;
const CPTR_TZ: u64 = 1 << 8;
const CPTR_TFP: u64 = 1 << 10;
const CPTR_TSM: u64 = 1 << 12;
const CPTR_TTA: u64 = 1 << 20;
const CPTR_TAM: u64 = 1 << 30;

/// CNTHCTL_EL2 (E2H = 0).
const CNTHCTL_EL1PCTEN: u64 = 1;
const CNTHCTL_EL1PCEN: u64 = 2;

/// HCRX_EL2 for the host: the features whose registers it may find in the ID registers.
const HCRX_HOST: u64 =
    1 | 1 << 1 | 1 << 2 | 1 << 11 | 1 << 14 | 1 << 15 | 1 << 17 | 1 << 18 | 1 << 22 | 1 << 23;

/// Fine-grained traps: the bits that trap while 0 ("n" bits).
const HFGRW_N_BITS: u64 = 0xFFFC_0000_0000_0000;
const HFGI_N_BITS: u64 = 0x0F80_0000_0000_0000;
const HDFG_N_BITS: u64 = 0x7800_0000_0000_0000;

/// HFGITR2_EL2.TSBCSYNC: the one bit of the FGT2 registers that traps while 1.
const HFGI2_TSBCSYNC: u64 = 1;

/// ICC_SRE_EL2: system registers at EL2 and below; for the host without a trap of ICC_SRE_EL1.
const ICC_SRE_HOST: u64 = 0xF;
/// For guests ICC_SRE_EL1, which is physical, traps.
const ICC_SRE_GUEST: u64 = 0x7;
/// MPAM2_EL2 for guests: MPAM0_EL1 and MPAM1_EL1 trap.
const MPAM2_GUEST: u64 = 3 << 48;

/// MDCR_EL2.E2PB and E2TB for guests: buffers are EL1's, and their registers trap.
const MDCR_E2PB_TRAP: u64 = 0b10 << 12;
const MDCR_E2TB_TRAP: u64 = 0b10 << 24;

/// MDCR_EL2 for guests: debug, PMU, OS lock, trace, SPE, TRF all trap.
const MDCR_GUEST_TRAPS: u64 = 1 << 6 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 19 | 1 << 27;

/// Whose FP registers the CPU holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FpHolder {
    /// The host's; or nobody's, before the host has run.
    Host,
    /// A guest's that is running now; the host's are in `host_fp`.
    Guest,
    /// Leftovers of a guest (saved with it); the host's are in `host_fp`, its next use traps.
    Leftover,
}

/// A CPU's own state: what EL2 keeps of the host while a guest runs.
pub struct CpuState {
    /// What the CPU can do.
    pub features: Features,
    /// The host's EL1 registers while a guest has the CPU.
    pub host_el1: El1Regs,
    /// The host's virtual timer while a guest has the CPU.
    pub host_timer: VirtualTimer,
    /// Hardware breakpoints and watchpoints.
    pub debug: Breakpoints,
    /// Random numbers for guests.
    pub random: Generator,
    host_fp: HostFp,
    fp: FpHolder,
    cptr_host: u64,
    cptr_guest: u64,
    mdcr_host: u64,
    mdcr_guest: u64,
    /// List registers, from the first on, that may hold something of a guest's.
    pub filled_lrs: u8,
    /// VTTBR_EL2 and VTCR_EL2 of the host.
    pub host_vttbr: u64,
    /// See [`host_vttbr`](Self::host_vttbr).
    pub host_vtcr: u64,
    host_vmpidr: u64,
    host_vpidr: u64,
    host_pmscr: u64,
    host_trfcr: u64,
}

impl Default for CpuState {
    fn default() -> Self {
        Self {
            features: Features::default(),
            host_el1: El1Regs::default(),
            host_timer: VirtualTimer::default(),
            debug: Breakpoints::default(),
            random: Generator::new(),
            host_fp: HostFp::default(),
            fp: FpHolder::Host,
            cptr_host: 0,
            cptr_guest: 0,
            mdcr_host: 0,
            mdcr_guest: 0,
            filled_lrs: MAX_LRS as u8,
            host_vttbr: 0,
            host_vtcr: 0,
            host_vmpidr: 0,
            host_vpidr: 0,
            host_pmscr: 0,
            host_trfcr: 0,
        }
    }
}

unsafe extern "C" {
    static host_vectors: u8;
    static guest_vectors: u8;
}

/// Common bits of VTCR_EL2 but T0SZ and SL0: inner-shareable write-back walks, 4 KiB.
pub fn vtcr(t0sz: u8, sl0: u8, features: &Features) -> u64 {
    let ps = match features.pa_bits {
        32 => 0,
        36 => 1,
        40 => 2,
        42 => 3,
        44 => 4,
        _ => 5,
    };
    let vs = u64::from(features.vmid16);
    1 << 31 | vs << 19 | ps << 16 | 3 << 12 | 1 << 10 | 1 << 8 | u64::from(sl0) << 6 | u64::from(t0sz)
}

/// HCR_EL2 of a guest; with `forced`, its stage 2 makes accesses to RAM cacheable.
pub const fn hcr_guest(forced: bool) -> u64 {
    HCR_GUEST.bits() | if forced { Hcr::FWB.bits() } else { 0 }
}

/// VTTBR_EL2 of a root table and VMID.
pub const fn vttbr(root: u64, vmid: u16) -> u64 {
    root | (vmid as u64) << 48
}

impl CpuState {
    /// Sets every EL2 control of this CPU so that the host's EL1 can run without a trap but those
    /// we want, whatever firmware left behind.
    pub fn init(&mut self, vttbr: u64, vtcr: u64) {
        let f = Features::detect();
        self.features = f;
        self.host_vttbr = vttbr;
        self.host_vtcr = vtcr;
        // A CPU that was off has lost its registers, and the host's that were kept for it are stale.
        self.fp = FpHolder::Host;
        self.filled_lrs = MAX_LRS as u8;
        self.debug = Breakpoints::of_this_cpu();
        self.host_vmpidr = read!("mpidr_el1");
        self.host_vpidr = read!("midr_el1");
        let sve_trap = if f.sve { CPTR_TZ } else { 0 };
        let sme_trap = if f.sme { CPTR_TSM } else { 0 };
        self.cptr_host = CPTR_RES1 & !sve_trap & !sme_trap;
        self.cptr_guest = CPTR_RES1 | CPTR_TTA | if f.amu { CPTR_TAM } else { 0 };

        write!("hcr_el2", HCR_HOST.bits());
        write!("vttbr_el2", vttbr);
        write!("vtcr_el2", vtcr);
        write!("vmpidr_el2", self.host_vmpidr);
        write!("vpidr_el2", self.host_vpidr);
        write!("hstr_el2", 0);
        write!("cntvoff_el2", 0);
        write!("cnthctl_el2", CNTHCTL_EL1PCTEN | CNTHCTL_EL1PCEN);
        write!("cnthp_ctl_el2", 0);
        // ICC_SRE_EL2: system registers at EL2 and below, no trap of ICC_SRE_EL1.
        write!("s3_4_c12_c9_5", ICC_SRE_HOST);
        isb();
        write!("s3_4_c12_c11_0", 0);
        // EL2's own work is not counted (HPMD, HCCD).
        let hidden = if f.pmu { 1 << 17 | 1 << 23 } else { 0 };
        let counters = hidden | if f.pmu { read!("pmcr_el0") >> 11 & 0x1F } else { 0 };
        let spe = if f.spe { 3 << 12 } else { 0 };
        let trbe = if f.trbe { 3 << 24 } else { 0 };
        self.mdcr_host = counters | spe | trbe;
        self.mdcr_guest = counters
            | MDCR_GUEST_TRAPS
            | if f.spe { MDCR_E2PB_TRAP } else { 0 }
            | if f.trbe { MDCR_E2TB_TRAP } else { 0 };
        write!("mdcr_el2", self.mdcr_host);
        if f.trf {
            write!("s3_4_c1_c2_1", 0);
        }
        if f.mpam {
            write!("s3_4_c10_c5_0", 0);
        }
        write!("cptr_el2", self.cptr_host);
        isb();
        if f.sve {
            write!("s3_4_c1_c2_0", fp::ZCR_LONGEST);
            isb();
        }
        fp::note_vector_length(&f);
        if f.sme {
            let fa64 = if f.sme_fa64 { 1 << 31 } else { 0 };
            let ezt0 = if f.sme2 { 1 << 30 } else { 0 };
            write!("s3_4_c1_c2_6", 0xF | fa64 | ezt0);
        }
        if f.hcx {
            write!("s3_4_c1_c2_2", HCRX_HOST);
        }
        self.fine_grained_traps(true);
        tlbi_alle1();
        self.reset_el1();
    }

    /// EL1 as an arm64 boot loader leaves it: MMU and caches off, nothing enabled.
    fn reset_el1(&self) {
        write!("sctlr_el1", super::el1::SCTLR_EL1_RESET);
        write!("cpacr_el1", 0);
        write!("cntkctl_el1", 0);
        write!("cntv_ctl_el0", 0);
        write!("cntp_ctl_el0", 0);
        write!("mdscr_el1", 0);
        write!("contextidr_el1", 0);
        write!("tpidr_el1", 0);
        write!("tpidr_el0", 0);
        write!("tpidrro_el0", 0);
        isb();
    }

    fn fine_grained_traps(&self, host: bool) {
        if !self.features.fgt {
            return;
        }
        let pick = |bits| if host { bits } else { 0 };
        write!("s3_4_c1_c1_4", pick(HFGRW_N_BITS));
        write!("s3_4_c1_c1_5", pick(HFGRW_N_BITS));
        write!("s3_4_c1_c1_6", pick(HFGI_N_BITS));
        write!("s3_4_c3_c1_4", pick(HDFG_N_BITS));
        write!("s3_4_c3_c1_5", pick(HDFG_N_BITS));
        if self.features.amu {
            write!("s3_4_c3_c1_6", 0);
        }
        if self.features.fgt2 {
            // HFGRTR2, HFGWTR2, HDFGRTR2, HDFGWTR2: all "n" bits; HFGITR2 has one that is not.
            write!("s3_4_c3_c1_2", pick(u64::MAX));
            write!("s3_4_c3_c1_3", pick(u64::MAX));
            write!("s3_4_c3_c1_0", pick(u64::MAX));
            write!("s3_4_c3_c1_1", pick(u64::MAX));
            write!("s3_4_c3_c1_7", pick(!HFGI2_TSBCSYNC));
        }
    }

    /// Gives the CPU to a guest: its EL1, timer, traps, stage 2 and vectors. FP stays the host's
    /// until the guest uses it.
    pub fn enter_guest_world(&mut self, guest: &GuestWorld<'_>) {
        self.host_el1.save(&self.features);
        timer::save(&mut self.host_timer);
        timer::arm_host_deadline(&self.host_timer);
        self.stop_profiling();
        self.host_el1.block_walks();
        write!("vttbr_el2", guest.vttbr);
        write!("vtcr_el2", guest.vtcr);
        isb();
        guest.el1.restore(&self.features);
        if broken(Mistake::HostsKeys) && self.features.pauth {
            self.host_el1.pauth.restore();
        }
        if let Some(debug) = guest.debug {
            self.debug.take(Owner::Guest, debug);
        }
        write!("vmpidr_el2", guest.vmpidr);
        write!("vpidr_el2", guest.vpidr);
        // Physical counter and timer trap.
        write!("cnthctl_el2", 0);
        write!("mdcr_el2", self.mdcr_guest);
        write!("cptr_el2", self.cptr_guest | CPTR_TFP);
        if self.features.hcx {
            write!("s3_4_c1_c2_2", 0);
        }
        self.fine_grained_traps(false);
        if self.features.mpam {
            write!("s3_4_c10_c5_0", MPAM2_GUEST);
        }
        if self.features.ras {
            // VDISR_EL2 is what a guest has as DISR_EL1 (HCR_EL2.AMO), and can write: not to be the next one's.
            write!("s3_4_c12_c1_1", 0);
        }
        write!("s3_4_c12_c9_5", ICC_SRE_GUEST);
        write!("hcr_el2", guest.hcr);
        write!("vbar_el2", &raw const guest_vectors as u64);
        timer::restore(guest.timer, guest.cntvoff);
        isb();
    }

    /// Gives the CPU back to the host; `fp` gets the guest's FP registers if it used them.
    pub fn leave_guest_world(&mut self, el1: &mut El1Regs, timer: &mut VirtualTimer, fp: &mut GuestFp) {
        write!("vbar_el2", &raw const host_vectors as u64);
        el1.save(&self.features);
        timer::save(timer);
        timer::disarm_host_deadline();
        if self.debug.owner() != Owner::Host && !broken(Mistake::KeepDebug) {
            self.debug.give_back(self.debug.owner());
        }
        if self.fp == FpHolder::Guest {
            fp.save();
            self.fp = FpHolder::Leftover;
        }
        el1.block_walks();
        write!("hcr_el2", HCR_HOST.bits());
        write!("vttbr_el2", self.host_vttbr);
        write!("vtcr_el2", self.host_vtcr);
        isb();
        if broken(Mistake::KeepEl1) {
            self.host_el1.tpidr_el0 = el1.tpidr_el0;
        }
        self.host_el1.restore(&self.features);
        if self.features.mpam {
            write!("s3_4_c10_c5_0", 0);
        }
        write!("s3_4_c12_c9_5", ICC_SRE_HOST);
        write!("vmpidr_el2", self.host_vmpidr);
        write!("vpidr_el2", self.host_vpidr);
        write!("cnthctl_el2", CNTHCTL_EL1PCTEN | CNTHCTL_EL1PCEN);
        write!("mdcr_el2", self.mdcr_host);
        let trap = if self.fp == FpHolder::Host { 0 } else { CPTR_TFP | self.sve_sme_traps() };
        write!("cptr_el2", self.cptr_host | trap);
        if self.features.hcx {
            write!("s3_4_c1_c2_2", HCRX_HOST);
        }
        self.fine_grained_traps(true);
        self.resume_profiling();
        timer::restore(&self.host_timer, 0);
        isb();
    }

    /// The host's profiling and trace buffers must be drained and off before their owner changes:
    /// what is in flight would be written through EL2's own map, at an address that the host chose.
    fn stop_profiling(&mut self) {
        if self.features.spe {
            self.host_pmscr = read!("s3_0_c9_c9_0");
            write!("s3_0_c9_c9_0", 0);
            isb();
            super::barrier::psb_csync();
        }
        if self.features.trf {
            self.host_trfcr = read!("s3_0_c1_c2_1");
            write!("s3_0_c1_c2_1", 0);
            isb();
            super::barrier::tsb_csync();
        }
    }

    fn resume_profiling(&self) {
        if self.features.spe {
            write!("s3_0_c9_c9_0", self.host_pmscr);
        }
        if self.features.trf {
            write!("s3_0_c1_c2_1", self.host_trfcr);
        }
    }

    fn sve_sme_traps(&self) -> u64 {
        (if self.features.sve { CPTR_TZ } else { 0 }) | (if self.features.sme { CPTR_TSM } else { 0 })
    }

    /// The running guest's first use of FP: puts its registers in place and lets it go on.
    pub fn guest_uses_fp(&mut self, fp: &GuestFp) {
        match self.fp {
            FpHolder::Guest => {}
            FpHolder::Host => {
                self.host_fp_untrapped();
                self.host_fp.save(&self.features);
            }
            FpHolder::Leftover => {}
        }
        self.fp = FpHolder::Guest;
        if broken(Mistake::KeepGuestFp) {
            return self.host_fp_untrapped();
        }
        let sve = if fp.has_sve() { CPTR_TZ } else { 0 };
        write!("cptr_el2", self.cptr_guest & !CPTR_TFP & !sve);
        isb();
        fp.restore();
    }

    /// The running guest's FP registers are needed at EL2, or will be changed: if they are in the CPU,
    /// they are saved, and its next use brings them back.
    pub fn take_guest_fp(&mut self, fp: &mut GuestFp) {
        if self.fp == FpHolder::Guest {
            fp.save();
            self.fp = FpHolder::Leftover;
            write!("cptr_el2", self.cptr_guest | CPTR_TFP);
            isb();
        }
    }

    fn host_fp_untrapped(&self) {
        write!("cptr_el2", self.cptr_host);
        isb();
    }

    /// The host gets an SError: one came while a guest had the CPU, and is more likely its own.
    pub fn pend_host_serror(&self) {
        write!("hcr_el2", (HCR_HOST | Hcr::VSE | Hcr::AMO).bits());
    }

    /// The host's first use of FP after a guest's.
    pub fn host_uses_fp(&mut self) {
        self.host_fp_untrapped();
        if self.fp != FpHolder::Host {
            if !broken(Mistake::KeepFp) {
                self.host_fp.restore(&self.features);
            }
            self.fp = FpHolder::Host;
        }
    }
}

/// What of a guest [`CpuState::enter_guest_world`] puts into the CPU.
pub struct GuestWorld<'a> {
    /// EL1 registers.
    pub el1: &'a El1Regs,
    /// Virtual timer.
    pub timer: &'a VirtualTimer,
    /// CNTVOFF_EL2.
    pub cntvoff: u64,
    /// VTTBR_EL2.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// HCR_EL2.
    pub hcr: u64,
    /// What the guest reads as MPIDR_EL1.
    pub vmpidr: u64,
    /// What the guest reads as MIDR_EL1.
    pub vpidr: u64,
    /// Its breakpoints and watchpoints, if it uses them.
    pub debug: Option<&'a DebugRegs>,
}
