// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The physical GICv3, as far as EL2 needs it: which interrupt is pending, kicks between CPUs, the
//! active state of the guest's timer interrupt, and the list registers (GIC architecture
//! specification, chapters 11 and 12).
//!
//! The host owns distributor and redistributors. EL2 wakes its own CPU's redistributor at boot, and touches there only
//! the bits of three PPIs (guest timer, host deadline, maintenance) and of one SGI (the kick).

use gzvm_core::fdt::machine::{Gic, Region, TimerPpis};
use gzvm_core::vgic::{CpuInterface, MAX_LRS};

use super::barrier::{dsb_sy, isb};
use super::mmio::Frame;
use super::sysreg::{read, write};

const GICR_TYPER: u64 = 0x0008;
const GICR_WAKER: u64 = 0x0014;
const SGI_BASE: u64 = 0x1_0000;
const GICR_IGROUPR0: u64 = SGI_BASE + 0x080;
const GICR_ISENABLER0: u64 = SGI_BASE + 0x100;
const GICR_ISPENDR0: u64 = SGI_BASE + 0x200;
const GICR_ICPENDR0: u64 = SGI_BASE + 0x280;
const GICR_ISACTIVER0: u64 = SGI_BASE + 0x300;
const GICR_ICACTIVER0: u64 = SGI_BASE + 0x380;
const GICR_IPRIORITYR: u64 = SGI_BASE + 0x400;
/// Bytes of one redistributor without LPIs' virtual frames.
const GICR_SIZE: u64 = 0x2_0000;
/// GICR_TYPER.VLPIS: two more 64 KiB frames.
const TYPER_VLPIS: u64 = 1 << 1;
const TYPER_LAST: u64 = 1 << 4;

/// ICC_HPPIR1_EL1 when nothing is pending.
pub const NONE: u32 = 1023;

/// Candidates for the kick, best first. Firmware may have kept 8..15 for itself.
const KICK_CANDIDATES: [u32; 8] = [15, 14, 13, 12, 11, 10, 9, 8];
/// Priority of kick, deadline and maintenance: the host's default for everything.
const PRIORITY: u8 = 0xA0;

/// This CPU's part of the GIC.
#[derive(Clone, Copy, Debug)]
pub struct CpuGic {
    redist: Frame,
    /// The SGI that EL2 uses to take another CPU out of a guest.
    pub kick: Option<u32>,
    /// PPI of the EL1 virtual timer.
    pub vtimer: u32,
    /// PPI of the EL2 timer.
    pub deadline: u32,
    /// PPI of the maintenance interrupt.
    pub maintenance: u32,
    /// Bits of the enable register that EL2 wants set while a guest runs.
    enable: u32,
    /// List registers.
    pub nr_lrs: usize,
    nr_aprs: usize,
}

/// A CPU's redistributor.
#[derive(Clone, Copy, Debug)]
pub struct Redistributor {
    /// Its registers: RD_base and SGI_base, 64 KiB each.
    pub frame: Frame,
    /// Where they are.
    pub base: u64,
    /// Its frames for virtual LPIs.
    pub virtual_lpis: Option<Region>,
    /// Affinity fields as GICR_TYPER has them.
    affinity: u64,
}

/// The redistributors of the device tree, which boot maps as device memory.
pub fn redistributors(gic: &Gic) -> impl Iterator<Item = Redistributor> {
    gic.redist.iter().flat_map(move |region| {
        let mut next = Some(0u64);
        core::iter::from_fn(move || {
            let offset = next.take()?;
            offset.checked_add(GICR_SIZE).filter(|end| *end <= region.size)?;
            let base = region.base.wrapping_add(offset);
            // SAFETY: a redistributor of the device tree; boot maps these regions as device memory.
            let frame = unsafe { Frame::new(base, GICR_SIZE) };
            let typer = frame.read64(GICR_TYPER);
            let virtual_lpis = (typer & TYPER_VLPIS != 0)
                .then_some(Region { base: base.wrapping_add(GICR_SIZE), size: GICR_SIZE });
            let step = match (gic.stride, virtual_lpis) {
                (0, None) => GICR_SIZE,
                (0, Some(_)) => 2 * GICR_SIZE,
                (stride, _) => stride,
            };
            next = offset.checked_add(step).filter(|_| typer & TYPER_LAST == 0);
            Some(Redistributor { frame, base, virtual_lpis, affinity: typer >> 32 })
        })
    })
}

/// Finds the redistributor of the CPU with these affinity fields.
fn find_redistributor(gic: &Gic, mpidr: u64) -> Option<Frame> {
    let affinity = (mpidr >> 32 & 0xFF) << 24 | mpidr & 0xFF_FFFF;
    redistributors(gic).find(|r| r.affinity == affinity).map(|r| r.frame)
}

impl CpuGic {
    /// Finds and prepares this CPU's part; none where the tree and the hardware disagree.
    pub fn init(gic: &Gic, timers: &TimerPpis, mpidr: u64) -> Option<Self> {
        let redist = find_redistributor(gic, mpidr)?;
        let vtr = read!("s3_4_c12_c11_1");
        let nr_lrs = ((vtr & 0x1F) as usize + 1).min(MAX_LRS);
        let nr_aprs = match (vtr >> 26 & 7) + 1 {
            7 => 4,
            6 => 2,
            _ => 1,
        };
        let mut this = Self {
            redist,
            kick: None,
            vtimer: timers.virt,
            deadline: timers.hyp,
            maintenance: gic.maintenance.unwrap_or(25),
            enable: 0,
            nr_lrs,
            nr_aprs,
        };
        // An SGI that firmware keeps for the secure side reads as group 0 whatever is written.
        let waker = redist.read32(GICR_WAKER);
        redist.write32(GICR_WAKER, waker & !2);
        this.kick = KICK_CANDIDATES.into_iter().find(|sgi| {
            let groups = redist.read32(GICR_IGROUPR0);
            redist.write32(GICR_IGROUPR0, groups | 1 << sgi);
            redist.read32(GICR_IGROUPR0) & 1 << sgi != 0
        });
        let ours = [Some(this.deadline), Some(this.maintenance), this.kick];
        for intid in ours.into_iter().flatten().filter(|i| *i < 32) {
            this.enable |= 1 << intid;
            redist.write8(GICR_IPRIORITYR + u64::from(intid), PRIORITY);
        }
        let groups = redist.read32(GICR_IGROUPR0);
        redist.write32(GICR_IGROUPR0, groups | this.enable | 1 << (this.vtimer & 31));
        Some(this)
    }

    /// Before a guest: EL2's interrupts on, whatever the host made of them.
    #[inline(always)]
    pub fn enable_own(&self) {
        self.redist.write32(GICR_ISENABLER0, self.enable | 1 << (self.vtimer & 31));
    }

    /// The INTID of the highest pending interrupt for the host's group, [`NONE`] if there is none.
    #[inline(always)]
    pub fn pending(&self) -> u32 {
        (read!("s3_0_c12_c12_2") & 0xFF_FFFF) as u32
    }

    /// Takes the pending kick back. It is not acknowledged: a more urgent interrupt of the host's could
    /// come in between, and would be acknowledged in its place. At worst the CPU interface signals
    /// once more with nothing behind it.
    pub fn take_kick(&self) {
        if let Some(sgi) = self.kick {
            self.redist.write32(GICR_ICPENDR0, 1 << sgi);
            dsb_sy();
        }
    }

    /// A kick is on its way to this CPU, which is no longer in a guest: waits until it is pending
    /// and takes it back, so that the host never sees it. Bounded.
    pub fn drain_kick(&self) {
        let Some(sgi) = self.kick else { return };
        for _ in 0..100_000 {
            if self.redist.read32(GICR_ISPENDR0) & 1 << sgi != 0 {
                self.redist.write32(GICR_ICPENDR0, 1 << sgi);
                dsb_sy();
                return;
            }
            crate::arch::lock::pause();
        }
    }

    /// Sends the kick to another CPU (see [`sgi_target`]); without one of our own, the host's SGI 0 does it.
    pub fn send_kick(&self, target: u64) {
        let sgi = u64::from(self.kick.unwrap_or(0));
        super::barrier::dsb_ishst();
        write!("s3_0_c12_c11_5", target | sgi << 24);
        isb();
    }

    /// Marks the guest timer's physical interrupt active: it stops signalling until the guest
    /// deactivates its virtual counterpart.
    #[inline(always)]
    pub fn activate_vtimer(&self) {
        self.redist.write32(GICR_ISACTIVER0, 1 << (self.vtimer & 31));
        dsb_sy();
    }

    /// Takes the mark back: the interrupt is the host's again.
    #[inline(always)]
    pub fn deactivate_vtimer(&self) {
        self.redist.write32(GICR_ICACTIVER0, 1 << (self.vtimer & 31));
        dsb_sy();
    }

    /// Puts a guest's virtual CPU interface into the CPU, but for the list registers: see
    /// [`write_lrs`](Self::write_lrs).
    pub fn restore_interface(&self, cpu: &CpuInterface) {
        write!("s3_4_c12_c11_7", u64::from(cpu.vmcr));
        write_aprs(cpu, self.nr_aprs);
    }

    /// Writes list registers and ICH_HCR_EL2. Of those that `cpu` does not use, the ones that may hold something: below
    /// `filled`.
    pub fn write_lrs(&self, cpu: &CpuInterface, filled: u8) {
        let count = usize::from(cpu.used.max(filled)).min(self.nr_lrs);
        // Mostly it is one.
        if count > 0 {
            write_lr(0, cpu.lr[0]);
        }
        for n in 1..count {
            write_lr(n, cpu.lr[n]);
        }
        write!("s3_4_c12_c11_0", u64::from(cpu.hcr));
    }

    /// Reads list registers and ICH_HCR_EL2 (whose EOIcount counts) back.
    pub fn read_lrs(&self, cpu: &mut CpuInterface) {
        let count = usize::from(cpu.used).min(self.nr_lrs);
        if count > 0 {
            cpu.lr[0] = read_lr(0);
        }
        for n in 1..count {
            cpu.lr[n] = read_lr(n);
        }
        cpu.hcr = read!("s3_4_c12_c11_0") as u32;
        cpu.vmcr = read!("s3_4_c12_c11_7") as u32;
    }

    /// Takes a guest's virtual CPU interface out of the CPU and switches it off. What is in the list
    /// registers has been read before, and is overwritten before the interface is on again.
    pub fn save_interface(&self, cpu: &mut CpuInterface) {
        read_aprs(cpu, self.nr_aprs);
        write!("s3_4_c12_c11_0", 0);
    }
}

/// What ICC_SGI1R_EL1 names a CPU by.
pub const fn sgi_target(mpidr: u64) -> u64 {
    let (aff3, aff2, aff1, aff0) = (mpidr >> 32 & 0xFF, mpidr >> 16 & 0xFF, mpidr >> 8 & 0xFF, mpidr & 0xFF);
    aff3 << 48 | (aff0 >> 4) << 44 | aff2 << 32 | aff1 << 16 | 1 << (aff0 & 15)
}

/// Lets every priority take the CPU out of a guest, whatever the host masked (ICC_PMR_EL1). Returns
/// the host's mask.
pub fn unmask_priorities() -> u64 {
    let mask = read!("s3_0_c4_c6_0");
    write!("s3_0_c4_c6_0", 0xFF);
    mask
}

/// Puts the host's mask back.
pub fn restore_priorities(mask: u64) {
    write!("s3_0_c4_c6_0", mask);
}

fn write_aprs(cpu: &CpuInterface, n: usize) {
    let [a0, a1, a2, a3] = cpu.ap0r.map(u64::from);
    let [b0, b1, b2, b3] = cpu.ap1r.map(u64::from);
    write!("s3_4_c12_c8_0", a0);
    write!("s3_4_c12_c9_0", b0);
    if n > 1 {
        write!("s3_4_c12_c8_1", a1);
        write!("s3_4_c12_c9_1", b1);
    }
    if n > 2 {
        write!("s3_4_c12_c8_2", a2);
        write!("s3_4_c12_c8_3", a3);
        write!("s3_4_c12_c9_2", b2);
        write!("s3_4_c12_c9_3", b3);
    }
}

fn read_aprs(cpu: &mut CpuInterface, n: usize) {
    cpu.ap0r = [read!("s3_4_c12_c8_0") as u32, 0, 0, 0];
    cpu.ap1r = [read!("s3_4_c12_c9_0") as u32, 0, 0, 0];
    if n > 1 {
        cpu.ap0r[1] = read!("s3_4_c12_c8_1") as u32;
        cpu.ap1r[1] = read!("s3_4_c12_c9_1") as u32;
    }
    if n > 2 {
        cpu.ap0r[2] = read!("s3_4_c12_c8_2") as u32;
        cpu.ap0r[3] = read!("s3_4_c12_c8_3") as u32;
        cpu.ap1r[2] = read!("s3_4_c12_c9_2") as u32;
        cpu.ap1r[3] = read!("s3_4_c12_c9_3") as u32;
    }
}

macro_rules! list_registers {
    ($($n:literal = $name:literal),* $(,)?) => {
        #[inline(always)]
        fn read_lr(n: usize) -> u64 {
            match n { $($n => read!($name),)* _ => 0 }
        }
        #[inline(always)]
        fn write_lr(n: usize, value: u64) {
            match n { $($n => write!($name, value),)* _ => {} }
        }
    };
}

list_registers! {
    0 = "s3_4_c12_c12_0", 1 = "s3_4_c12_c12_1", 2 = "s3_4_c12_c12_2", 3 = "s3_4_c12_c12_3",
    4 = "s3_4_c12_c12_4", 5 = "s3_4_c12_c12_5", 6 = "s3_4_c12_c12_6", 7 = "s3_4_c12_c12_7",
    8 = "s3_4_c12_c13_0", 9 = "s3_4_c12_c13_1", 10 = "s3_4_c12_c13_2", 11 = "s3_4_c12_c13_3",
    12 = "s3_4_c12_c13_4", 13 = "s3_4_c12_c13_5", 14 = "s3_4_c12_c13_6", 15 = "s3_4_c12_c13_7",
}

/// ICH_VMCR_EL2 of a fresh interface (ICC registers at reset; VFIQEn as for a system-register-only guest).
pub const VMCR_RESET: u32 = 0;

const _: () = assert!(GICR_SIZE == 2 * SGI_BASE);
