// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The state of one interrupt: eight bytes, no knowledge of any other.
//!
//! Two machines write to it. Software (register writes, lines, SGIs) goes through the methods named
//! after what the architecture calls the event. List registers go through [`Irq::load`] and
//! [`Irq::fold`]. While [`Flags::IN_LR`] is set the list register holds the truth about the pending
//! bit that was moved there and about the active bit; what software asks meanwhile is noted in
//! `DROP_PENDING`, `DROP_ACTIVE` and `SET_ACTIVE`, and takes effect when the register comes back.
//!
//! # Invariants
//! - `LR_LATCH`, `LR_PULSE`, `DROP_PENDING`, `DROP_ACTIVE`, `SET_ACTIVE` are clear unless `IN_LR` is.
//! - `PULSE` is clear unless `LATCH` is set.
//! - `holder` names a vCPU only while `ACTIVE` or `IN_LR` is set. For SGIs and PPIs it is the owner.
//! - All bytes zero is a valid, inactive interrupt.

use crate::addr::VcpuId;
use bitflags::bitflags;

/// Priority bits that exist: five, as in KVM and QEMU.
pub(super) const PRIORITY_MASK: u8 = 0xF8;

bitflags! {
    /// One interrupt's bits.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(super) struct Flags: u16 {
        /// GICD_ISENABLER.
        const ENABLED = 1 << 0;
        /// GICD_IGROUPR: group 1.
        const GROUP1 = 1 << 1;
        /// GICD_ICFGR: edge-triggered.
        const EDGE = 1 << 2;
        /// Pending until acknowledged or cleared: an edge, a pulse, an SGI, or GICD_ISPENDR.
        const LATCH = 1 << 3;
        /// The latched pending bit came from a pulse on a line, so lowering the line withdraws it.
        const PULSE = 1 << 4;
        /// The input is high.
        const LINE = 1 << 5;
        /// Acknowledged, or GICD_ISACTIVER, and not yet deactivated.
        const ACTIVE = 1 << 6;
        /// Became active through an acknowledge, so an EOI is to come.
        const ACKED = 1 << 7;
        /// Sits in a list register of the vCPU in `holder` (or of the vCPU that owns the bank).
        const IN_LR = 1 << 8;
        /// `LATCH` was moved to the list register's pending bit.
        const LR_LATCH = 1 << 9;
        /// Forget the list register's pending bit when it comes back.
        const DROP_PENDING = 1 << 10;
        /// Forget the list register's active bit when it comes back.
        const DROP_ACTIVE = 1 << 11;
        /// Make it active when the list register comes back.
        const SET_ACTIVE = 1 << 12;
        /// Input is a physical PPI of the CPU that runs the vCPU.
        const HARDWARE = 1 << 13;
        /// GICD_IROUTER.Interrupt_Routing_Mode: any vCPU.
        const ANY = 1 << 14;
        /// What `PULSE` says, of the pending bit in the list register.
        const LR_PULSE = 1 << 15;
    }
}

/// What a list register's state field said when it came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LrState {
    pub pending: bool,
    pub active: bool,
    /// Priority the register was loaded with.
    pub priority: u8,
    /// The register had been loaded as pending because the line was high.
    pub from_line: bool,
}

/// One interrupt.
#[derive(Clone, Copy)]
pub(super) struct Irq {
    flags: Flags,
    /// GICD_IPRIORITYR.
    pub priority: u8,
    /// Priority at the time of the acknowledge: what the guest's EOI will match.
    active_priority: u8,
    /// vCPU on which an SPI is active or in a list register, plus one. 0: none.
    holder: u8,
    /// GICD_IROUTER Aff0, Aff1, Aff2.
    route: [u8; 3],
}

const _: () = assert!(size_of::<Irq>() == 8);

impl Irq {
    /// Reset state. Group 1, as KVM and QEMU give a directly booted guest; level-triggered.
    pub const RESET: Self =
        Self { flags: Flags::GROUP1, priority: 0, active_priority: 0, holder: 0, route: [0; 3] };

    /// Reset state of an SGI: edge-triggered for ever.
    pub const RESET_SGI: Self = Self { flags: Flags::GROUP1.union(Flags::EDGE), ..Self::RESET };

    pub fn has(&self, flag: Flags) -> bool {
        self.flags.contains(flag)
    }

    #[cfg(test)]
    pub fn has_any(&self, flags: Flags) -> bool {
        self.flags.intersects(flags)
    }

    /// For `ENABLED`, `GROUP1`, `EDGE`, `ANY`, `HARDWARE`, `LINE`; the rest have methods.
    pub fn set(&mut self, flag: Flags, on: bool) {
        self.flags.set(flag, on);
    }

    /// Pending because of its input alone. A physical PPI is a level whatever GICR_ICFGR says.
    pub fn line_pending(&self) -> bool {
        self.has(Flags::LINE) && (!self.has(Flags::EDGE) || self.has(Flags::HARDWARE))
    }

    /// What GICD_ISPENDR reads: exact, or as of the last entry for one in a list register.
    pub fn pending(&self) -> bool {
        self.has(Flags::LATCH)
            || self.line_pending()
            || (self.has(Flags::LR_LATCH) && !self.has(Flags::DROP_PENDING))
    }

    pub fn latched(&self) -> bool {
        self.has(Flags::LATCH)
    }

    pub fn active(&self) -> bool {
        self.has(Flags::ACTIVE)
    }

    pub fn in_lr(&self) -> bool {
        self.has(Flags::IN_LR)
    }

    /// Something about it may concern a vCPU: worth a look when list registers are chosen.
    pub fn busy(&self) -> bool {
        self.pending() || self.active() || self.in_lr()
    }

    /// Pending, enabled, not active: can be presented, if its group is enabled.
    #[inline]
    pub fn presentable(&self) -> bool {
        self.has(Flags::ENABLED) && !self.active() && self.pending()
    }

    /// Active, with a pending state that may be presented as soon as it is deactivated: no other priority says
    /// when.
    pub fn follows(&self) -> bool {
        self.active() && self.latched() && self.has(Flags::ENABLED) && self.priority == self.active_priority
    }

    pub fn active_priority(&self) -> u8 {
        self.active_priority
    }

    /// The vCPU that has acknowledged this SPI or has it in a list register.
    pub fn holder(&self) -> Option<VcpuId> {
        self.holder.checked_sub(1).map(|v| VcpuId(u16::from(v)))
    }

    /// GICD_IROUTER's affinity, Aff2.Aff1.Aff0.
    pub fn affinity(&self) -> u32 {
        let [a0, a1, a2] = self.route;
        u32::from_le_bytes([a0, a1, a2, 0])
    }

    pub fn set_affinity(&mut self, affinity: u32) {
        let [a0, a1, a2, _] = affinity.to_le_bytes();
        self.route = [a0, a1, a2];
    }

    // --- what software does -----------------------------------------------------------------

    /// GICD_ISPENDR, an SGI, or an edge.
    pub fn pend(&mut self) {
        self.flags.insert(Flags::LATCH);
        self.flags.remove(Flags::PULSE);
    }

    /// GICD_ICPENDR. A high level input stays pending.
    pub fn unpend(&mut self) {
        self.flags.remove(Flags::LATCH.union(Flags::PULSE));
        if self.in_lr() {
            self.flags.insert(Flags::DROP_PENDING);
        }
    }

    /// The line rose and nobody will say when it falls: pending once, whatever GICD_ICFGR says.
    pub fn pulse(&mut self) {
        // What software latched before is not withdrawn with the line.
        if !self.latched() {
            self.flags.insert(Flags::PULSE);
        }
        self.flags.insert(Flags::LATCH);
    }

    /// The line fell: a level-triggered pulse that nobody has acknowledged is withdrawn.
    pub fn lower(&mut self) {
        self.flags.remove(Flags::LINE);
        if self.has(Flags::EDGE) {
            return;
        }
        if self.has(Flags::PULSE) {
            self.flags.remove(Flags::LATCH.union(Flags::PULSE));
        }
        if self.has(Flags::LR_PULSE) {
            self.flags.insert(Flags::DROP_PENDING);
        }
    }

    /// The line has this level from now on; an edge-triggered one latches the rise.
    pub fn drive(&mut self, level: bool) {
        if level && !self.has(Flags::LINE) && self.has(Flags::EDGE) && !self.has(Flags::HARDWARE) {
            self.pend();
        }
        self.set(Flags::LINE, level);
    }

    /// GICD_SETSPI_NSR and GICD_CLRSPI_NSR: an edge and its withdrawal, or a level until further notice.
    pub fn message(&mut self, set: bool) {
        match (self.has(Flags::EDGE), set) {
            (true, true) => self.pend(),
            (true, false) => self.unpend(),
            (false, level) => self.drive(level),
        }
    }

    /// GICD_ISACTIVER.
    pub fn activate(&mut self) {
        if !self.active() {
            self.active_priority = self.priority;
        }
        self.flags.insert(Flags::ACTIVE);
        if self.in_lr() {
            self.flags.insert(Flags::SET_ACTIVE);
            self.flags.remove(Flags::DROP_ACTIVE);
        }
    }

    /// GICD_ICACTIVER, ICC_DIR_EL1, or an EOI while not in a list register. Whether this ended it: if
    /// not, it was not active, or a list register has to say so.
    pub fn deactivate(&mut self) -> bool {
        let ended = self.active();
        if ended {
            self.physical_fires_again();
        }
        self.flags.remove(Flags::ACTIVE.union(Flags::ACKED));
        if self.in_lr() {
            self.flags.insert(Flags::DROP_ACTIVE);
            self.flags.remove(Flags::SET_ACTIVE);
        } else {
            self.holder = 0;
        }
        ended
    }

    /// Still active, but no EOI is to come: its CPU interface has been reset.
    pub fn forget_acknowledge(&mut self) {
        self.flags.remove(Flags::ACKED);
    }

    /// A physical PPI that has been acknowledged interrupts again, if it is still asserted, as soon as
    /// it is deactivated. So what is known of its level is used up.
    fn physical_fires_again(&mut self) {
        if self.has(Flags::HARDWARE) {
            self.flags.remove(Flags::LINE);
        }
    }

    // --- what list registers do -------------------------------------------------------------

    /// Goes to a list register of `vcpu`. `take_latch`: the latched pending bit goes with it.
    pub fn load(&mut self, vcpu: VcpuId, take_latch: bool) {
        self.flags.insert(Flags::IN_LR);
        if take_latch {
            self.set(Flags::LR_PULSE, self.has(Flags::PULSE));
            self.flags.remove(Flags::LATCH.union(Flags::PULSE));
            self.flags.insert(Flags::LR_LATCH);
        }
        self.holder = u8::try_from(vcpu.0).map_or(0, |v| v.saturating_add(1));
    }

    /// Comes back from a list register, which is `lr` now. Whether the guest has ended it there.
    #[inline]
    pub fn fold(&mut self, lr: LrState) -> bool {
        let was_active = self.active();
        let had_latch = self.has(Flags::LR_LATCH);
        if had_latch && lr.pending && !self.has(Flags::DROP_PENDING) {
            let only_pulses = self.has(Flags::LR_PULSE) && self.has(Flags::PULSE) == self.latched();
            self.set(Flags::PULSE, only_pulses);
            self.flags.insert(Flags::LATCH);
        }
        let acknowledged = (had_latch || lr.from_line) && !lr.pending;
        if !lr.pending {
            self.physical_fires_again();
        }
        let active = self.has(Flags::SET_ACTIVE) || (lr.active && !self.has(Flags::DROP_ACTIVE));
        if active && acknowledged && lr.active {
            self.flags.insert(Flags::ACKED);
            self.active_priority = lr.priority;
        }
        if !active {
            self.flags.remove(Flags::ACKED);
            self.holder = 0;
        }
        self.set(Flags::ACTIVE, active);
        self.flags.remove(
            Flags::IN_LR
                .union(Flags::LR_LATCH)
                .union(Flags::LR_PULSE)
                .union(Flags::DROP_PENDING)
                .union(Flags::DROP_ACTIVE)
                .union(Flags::SET_ACTIVE),
        );
        (was_active || acknowledged) && !active
    }
}
