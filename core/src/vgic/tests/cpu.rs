// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The virtual CPU interface of one CPU, as the GIC specification's pseudocode has it (and QEMU).

use crate::vgic::{CpuInterface, Hcr};
use std::collections::BTreeSet;

pub const ENABLE_BOTH: u32 = 3;
const EOIMODE: u32 = 1 << 9;
const PENDING: u64 = 1 << 62;
const ACTIVE: u64 = 1 << 63;
const HW: u64 = 1 << 61;
const EOI: u64 = 1 << 41;

/// What a write to ICC_DIR_EL1 came to.
#[derive(PartialEq, Eq, Debug)]
pub enum Dir {
    Done,
    Trapped,
}

#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// What EL2 exchanges with the vGIC, and, while the guest runs, the hardware registers.
    pub regs: CpuInterface,
    pub nr_lrs: usize,
    /// ICH_AP0R, ICH_AP1R: priorities that are active.
    pub active_priorities: BTreeSet<u8>,
    /// Physical INTIDs whose active state a guest's deactivation has cleared.
    pub deactivated: Vec<u32>,
}

pub fn intid(lr: u64) -> u32 {
    lr as u32
}

fn priority(lr: u64) -> u8 {
    (lr >> 48) as u8
}

impl Cpu {
    pub fn new(nr_lrs: usize) -> Self {
        let vmcr = 0xF8 << 24 | 2 << 21 | 3 << 18 | ENABLE_BOTH;
        Self { regs: CpuInterface { vmcr, ..CpuInterface::default() }, nr_lrs, ..Self::default() }
    }

    fn lrs(&self) -> &[u64] {
        &self.regs.lr[..self.nr_lrs]
    }

    pub fn split_eoi(&self) -> bool {
        self.regs.vmcr & EOIMODE != 0
    }

    pub fn set_split_eoi(&mut self, on: bool) {
        self.regs.vmcr = self.regs.vmcr & !EOIMODE | if on { EOIMODE } else { 0 };
    }

    pub fn set_pmr(&mut self, pmr: u8) {
        self.regs.vmcr = self.regs.vmcr & 0x00FF_FFFF | u32::from(pmr) << 24;
    }

    pub fn set_groups(&mut self, enabled: u32) {
        self.regs.vmcr = self.regs.vmcr & !ENABLE_BOTH | enabled;
    }

    fn group_enabled(&self, lr: u64) -> bool {
        self.regs.vmcr & if lr >> 60 & 1 == 1 { 2 } else { 1 } != 0
    }

    /// ICC_BPR0_EL1 and ICC_BPR1_EL1; the smallest are 2 and 3.
    pub fn set_binary_points(&mut self, points: [u32; 2], common: bool) {
        let fields = points[0] << 21 | points[1] << 18 | u32::from(common) << 4;
        self.regs.vmcr = self.regs.vmcr & !(0x3F << 18 | 1 << 4) | fields;
    }

    /// The part of the priority that decides on preemption.
    fn group_priority(&self, lr: u64) -> u8 {
        let bits = if lr >> 60 & 1 == 1 && self.regs.vmcr & 1 << 4 == 0 {
            self.regs.vmcr >> 18 & 7
        } else {
            (self.regs.vmcr >> 21 & 7) + 1
        };
        (u32::from(priority(lr)) >> bits << bits) as u8
    }

    fn running_priority(&self) -> u8 {
        self.active_priorities.first().copied().unwrap_or(0xFF)
    }

    /// ICC_IARx_EL1. Ties are broken by INTID, so that results can be compared.
    pub fn acknowledge(&mut self) -> Option<u32> {
        let pending = |lr: &u64| lr & (PENDING | ACTIVE) == PENDING;
        let candidates = (0..self.nr_lrs).filter(|&n| pending(&self.regs.lr[n]));
        let best = candidates
            .filter(|&n| self.group_enabled(self.regs.lr[n]))
            .min_by_key(|&n| (priority(self.regs.lr[n]), intid(self.regs.lr[n])))?;
        let lr = self.regs.lr[best];
        let pmr = (self.regs.vmcr >> 24) as u8;
        if priority(lr) >= pmr || self.group_priority(lr) >= self.running_priority() {
            return None;
        }
        self.regs.lr[best] = lr & !PENDING | ACTIVE;
        self.active_priorities.insert(self.group_priority(lr));
        Some(intid(lr))
    }

    /// ICC_EOIRx_EL1.
    pub fn end(&mut self, id: u32) {
        let Some(dropped) = self.active_priorities.pop_first() else { return };
        match self.find_active(id) {
            // QEMU counts in both modes.
            None => self.count_eoi(),
            Some(n) => {
                if !self.split_eoi() && self.group_priority(self.regs.lr[n]) == dropped {
                    self.deactivate(n);
                }
            }
        }
    }

    /// ICC_DIR_EL1.
    pub fn dir(&mut self, id: u32) -> Dir {
        if self.hcr().contains(Hcr::TDIR) {
            return Dir::Trapped;
        }
        if self.split_eoi() {
            match self.find_active(id) {
                None => self.count_eoi(),
                Some(n) => self.deactivate(n),
            }
        }
        Dir::Done
    }

    fn find_active(&self, id: u32) -> Option<usize> {
        self.lrs().iter().position(|&lr| lr & ACTIVE != 0 && intid(lr) == id)
    }

    fn deactivate(&mut self, n: usize) {
        let lr = &mut self.regs.lr[n];
        *lr &= !ACTIVE;
        if *lr & HW != 0 {
            self.deactivated.push((*lr >> 32 & 0x1FFF) as u32);
        }
    }

    fn count_eoi(&mut self) {
        self.regs.hcr = self.regs.hcr.wrapping_add(1 << 27);
    }

    fn hcr(&self) -> Hcr {
        Hcr::from_bits_truncate(self.regs.hcr)
    }

    /// Whether ICH_MISR_EL2 has a bit set: the maintenance interrupt is asserted.
    pub fn maintenance(&self) -> bool {
        let hcr = self.hcr();
        let lrs = self.lrs();
        let valid = lrs.iter().filter(|&lr| lr & (PENDING | ACTIVE) != 0).count();
        let pending = lrs.iter().any(|&lr| lr & (PENDING | ACTIVE) == PENDING);
        let ended = lrs.iter().any(|&lr| lr & (PENDING | ACTIVE | HW | EOI) == EOI);
        let [on0, on1] = [self.regs.vmcr & 1 != 0, self.regs.vmcr & 2 != 0];
        ended
            || hcr.contains(Hcr::UIE) && valid <= 1
            || hcr.contains(Hcr::LRENPIE) && self.regs.hcr >> 27 != 0
            || hcr.contains(Hcr::NPIE) && !pending
            || hcr.contains(Hcr::VGRP0EIE) && on0
            || hcr.contains(Hcr::VGRP0DIE) && !on0
            || hcr.contains(Hcr::VGRP1EIE) && on1
            || hcr.contains(Hcr::VGRP1DIE) && !on1
    }

    /// What must hold of anything that EL2 is about to write to the hardware.
    pub fn check_loaded(&self) {
        let used = usize::from(self.regs.used);
        assert!(used <= self.nr_lrs);
        assert!(self.regs.lr[used..].iter().all(|&lr| lr == 0), "leftovers");
        for (n, &lr) in self.regs.lr[..used].iter().enumerate() {
            assert!(lr & (PENDING | ACTIVE) != 0, "LR {n} holds nothing");
            assert!(lr & HW == 0 || lr & (PENDING | ACTIVE) != PENDING | ACTIVE, "HW and P+A");
            assert!(self.regs.lr[..n].iter().all(|&other| intid(other) != intid(lr)), "twice");
        }
        assert_eq!(self.regs.hcr >> 27, 0);
        assert_ne!(self.regs.hcr & 1, 0);
        assert!(!self.maintenance(), "maintenance interrupt on entry: livelock");
    }
}
