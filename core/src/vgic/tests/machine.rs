// SPDX-License-Identifier: Apache-2.0 OR MIT
//! vCPUs on simulated CPUs, with an EL2 that does what vgic's text asks of it.

use super::Vgic;
use super::cpu::{Cpu, Dir};
use super::oracle::Sgi;
use crate::addr::{IntId, VcpuId};
use crate::vgic::{Kicks, REDIST_SIZE};

pub const TIMER: u32 = 27;
/// Maintenance exits in a row after which a guest counts as hung.
const LIVELOCK: usize = 64;

pub fn v(n: usize) -> VcpuId {
    VcpuId(n as u16)
}

pub struct Machine {
    pub vgic: Box<Vgic>,
    pub cpus: Vec<Cpu>,
    /// In the guest.
    pub inside: Vec<bool>,
    /// The last entry went through flush.
    flushed: Vec<bool>,
    /// Output of each vCPU's timer, and the active state of the physical PPI.
    pub timer: Vec<bool>,
    pub timer_active: Vec<bool>,
    /// Kicks sent and not yet taken.
    pub kicked: Kicks,
    /// Take kicks at once.
    pub prompt: bool,
    pub exits: usize,
}

impl Machine {
    pub fn new(vcpus: usize, nr_lrs: usize) -> Self {
        let mut vgic = Box::new(Vgic::new(64, Some(Box::default())));
        (0..vcpus).for_each(|n| drop(vgic.add_vcpu(v(n), nr_lrs, Box::default())));
        Self {
            vgic,
            cpus: vec![Cpu::new(nr_lrs); vcpus],
            inside: vec![false; vcpus],
            flushed: vec![false; vcpus],
            timer: vec![false; vcpus],
            timer_active: vec![false; vcpus],
            kicked: Kicks::NONE,
            prompt: true,
            exits: 0,
        }
    }

    /// As [`Machine::new`], with both groups and INTIDs 0..64 enabled, at priority 0xA0.
    pub fn ready(vcpus: usize, nr_lrs: usize) -> Self {
        let mut machine = Self::new(vcpus, nr_lrs);
        machine.write(0, 0x0000, 4, 3);
        machine.write(0, 0x0104, 4, 0xFFFF_FFFF);
        (32..64).for_each(|id| machine.write(0, 0x400 + id, 1, 0xA0));
        for n in 0..vcpus {
            machine.write_redist(n, n, 0x1_0100, 4, 0xFFFF_FFFF);
            (0..32).for_each(|id| machine.write_redist(n, n, 0x1_0400 + id, 1, 0xA0));
        }
        machine
    }

    pub fn enter(&mut self, n: usize) {
        if self.inside[n] {
            return;
        }
        self.vgic.set_hw_ppi(v(n), IntId(TIMER), TIMER, self.timer[n]);
        self.flushed[n] = self.vgic.needs_flush(v(n));
        if self.flushed[n] {
            self.vgic.flush(v(n), &mut self.cpus[n].regs);
            self.cpus[n].check_loaded();
        }
        self.timer_active[n] = self.vgic.hw_ppi_in_flight(v(n), IntId(TIMER));
        self.inside[n] = true;
        self.kicked = self.kicked.without(v(n));
        self.check_single();
    }

    pub fn exit(&mut self, n: usize) {
        if !self.inside[n] {
            return;
        }
        self.inside[n] = false;
        self.exits += 1;
        self.physical_deactivation(n);
        if self.flushed[n] {
            self.kicked |= self.vgic.sync(v(n), &self.cpus[n].regs);
        } else {
            assert_eq!(self.cpus[n].regs.lr, [0; 16], "skipped with something in a list register");
        }
    }

    /// The vCPU goes on on a CPU with `nr_lrs` list registers, which are empty.
    pub fn migrate(&mut self, n: usize, nr_lrs: usize) {
        let was_inside = self.inside[n];
        self.exit(n);
        self.cpus[n].nr_lrs = nr_lrs;
        self.cpus[n].regs.lr = [0; 16];
        // Physical state does not move along.
        self.timer_active[n] = false;
        if was_inside {
            self.enter(n);
        }
        self.settle();
    }

    /// CPU_OFF of `n`, which has exited for good; CPU_ON, with a CPU interface in reset state.
    pub fn set_power(&mut self, n: usize, on: bool) {
        self.exit(n);
        self.kicked |= self.vgic.set_power(v(n), on);
        self.cpus[n] = Cpu::new(self.cpus[n].nr_lrs);
        self.prime(n);
        self.settle();
    }

    /// The first flush of a run, which sets what is trapped, with an exit before the guest has done anything.
    pub fn prime(&mut self, n: usize) {
        self.exit(n);
        self.vgic.flush(v(n), &mut self.cpus[n].regs);
        self.kicked |= self.vgic.sync(v(n), &self.cpus[n].regs);
        self.cpus[n].regs.lr = [0; 16];
        self.cpus[n].regs.used = 0;
    }

    fn physical_deactivation(&mut self, n: usize) {
        if self.cpus[n].deactivated.drain(..).any(|id| id == TIMER) {
            self.timer_active[n] = false;
        }
    }

    /// Exits that the machine itself causes, until there are none.
    pub fn settle(&mut self) {
        for _ in 0..LIVELOCK {
            let mut quiet = true;
            for n in 0..self.cpus.len() {
                self.physical_deactivation(n);
                let maintenance = self.cpus[n].maintenance();
                let timer = self.timer[n] && !self.timer_active[n];
                let kicked = self.prompt && self.kicked.contains(v(n));
                if self.inside[n] && (maintenance || timer || kicked) {
                    self.turn_over(n);
                    quiet = false;
                } else if kicked && !self.inside[n] {
                    self.kicked = self.kicked.without(v(n));
                }
            }
            if quiet {
                return;
            }
        }
        panic!("livelock");
    }

    /// An exit of `n` for an interrupt of its own, and entry.
    fn turn_over(&mut self, n: usize) {
        if !self.flushed[n] {
            self.exit(n);
            return self.enter(n);
        }
        self.exits += 1;
        let (regs, level) = (&mut self.cpus[n].regs, self.timer[n]);
        let (active, kicks) = self.vgic.turn_over(v(n), regs, IntId(TIMER), TIMER, level);
        self.timer_active[n] = active;
        self.kicked = (self.kicked | kicks).without(v(n));
        self.cpus[n].check_loaded();
        self.check_single();
    }

    /// An exit of `n` that ends in `work` on the vGIC, then entry.
    pub fn trap<R>(&mut self, n: usize, work: impl FnOnce(&mut Vgic) -> (R, Kicks)) -> R {
        let was_inside = self.inside[n];
        self.exit(n);
        let (result, kicks) = work(&mut self.vgic);
        assert!(!kicks.contains(v(n)), "kicks itself");
        self.kicked |= kicks;
        if was_inside {
            self.enter(n);
        }
        self.settle();
        result
    }

    /// As `trap`, but the list registers stay as they are unless `work` changed something for `n`.
    pub fn glance<R>(&mut self, n: usize, work: impl FnOnce(&mut Vgic) -> (R, Kicks)) -> R {
        let (result, kicks) = work(&mut self.vgic);
        assert!(!kicks.contains(v(n)), "kicks itself");
        self.kicked |= kicks;
        if self.inside[n] && self.vgic.outdated(v(n)) {
            self.exit(n);
            self.enter(n);
        }
        self.settle();
        result
    }

    pub fn write(&mut self, n: usize, offset: u64, size: u8, value: u64) {
        self.trap(n, |vgic| ((), vgic.dist_write(v(n), offset, size, value)));
    }

    pub fn read(&mut self, n: usize, offset: u64, size: u8) -> u64 {
        let read = |vgic: &mut Vgic| (vgic.dist_read(v(n), offset, size), Kicks::NONE);
        if Vgic::dist_settled(offset, size) { self.glance(n, read) } else { self.trap(n, read) }
    }

    pub fn write_redist(&mut self, n: usize, of: usize, offset: u64, size: u8, value: u64) {
        assert!(offset < REDIST_SIZE);
        self.trap(n, |vgic| ((), vgic.redist_write(v(n), v(of), offset, size, value)));
    }

    pub fn read_redist(&mut self, n: usize, of: usize, offset: u64, size: u8) -> u64 {
        let read = |vgic: &mut Vgic| (vgic.redist_read(v(n), v(of), offset, size), Kicks::NONE);
        if Vgic::redist_settled(offset, size) { self.glance(n, read) } else { self.trap(n, read) }
    }

    /// `n` writes to the register of interrupt `id`: of the distributor, or at the same offset in SGI_base of `of`.
    pub fn write_bank(&mut self, n: usize, of: usize, id: u32, offset: u64, size: u8, value: u64) {
        if id < 32 {
            self.write_redist(n, of, 0x1_0000 + offset, size, value);
        } else {
            self.write(n, offset, size, value);
        }
    }

    /// As [`Machine::write_bank`].
    pub fn read_bank(&mut self, n: usize, of: usize, id: u32, offset: u64, size: u8) -> u64 {
        if id < 32 { self.read_redist(n, of, 0x1_0000 + offset, size) } else { self.read(n, offset, size) }
    }

    /// Writes the bit of interrupt `id` in the bit register that starts at `base` (in GICD or SGI_base).
    pub fn write_bit(&mut self, n: usize, base: u64, id: u32) {
        self.write_bank(n, n, id, base + u64::from(id / 32) * 4, 4, 1 << (id % 32));
    }

    pub fn read_bit(&mut self, n: usize, base: u64, id: u32) -> bool {
        let value = self.read_bank(n, n, id, base + u64::from(id / 32) * 4, 4);
        value >> (id % 32) & 1 == 1
    }

    /// A byte of GICD_IPRIORITYR or GICR_IPRIORITYR.
    pub fn write_priority(&mut self, n: usize, id: u32, priority: u8) {
        self.write_bank(n, n, id, 0x400 + u64::from(id), 1, priority.into());
    }

    /// GICD_IROUTER.
    pub fn route(&mut self, n: usize, id: u32, value: u64) {
        self.write(n, 0x6000 + 8 * u64::from(id), 8, value);
    }

    pub fn set_line(&mut self, id: u32, target: usize, level: bool) {
        let kicks = self.vgic.set_line(IntId(id), Some(v(target)), level);
        self.kicked |= kicks.expect("a line");
        self.settle();
    }

    pub fn set_level(&mut self, id: u32, target: usize, level: bool) {
        let kicks = self.vgic.set_level(IntId(id), Some(v(target)), level);
        self.kicked |= kicks.expect("a line");
        self.settle();
    }

    pub fn set_resample(&mut self, id: u32, on: bool) {
        self.kicked |= self.vgic.set_resample(IntId(id), on).expect("a line");
        self.settle();
    }

    pub fn resampled(&mut self) -> Vec<u32> {
        std::iter::from_fn(|| self.vgic.take_resampled()).map(|id| id.0).collect()
    }

    pub fn sgi1(&mut self, n: usize, value: u64) {
        self.glance(n, |vgic| ((), vgic.sgi1r_write(v(n), value)));
    }

    /// The other registers that raise SGIs, too.
    pub fn sgi(&mut self, n: usize, register: Sgi, value: u64) {
        self.trap(n, |vgic| {
            let kicks = match register {
                Sgi::Group1 => vgic.sgi1r_write(v(n), value),
                Sgi::Group0 => vgic.sgi0r_write(v(n), value),
                Sgi::Other => vgic.asgi1r_write(v(n), value),
            };
            ((), kicks)
        });
    }

    pub fn set_timer(&mut self, n: usize, level: bool) {
        let was_inside = self.inside[n];
        self.exit(n);
        self.timer[n] = level;
        if was_inside {
            self.enter(n);
        }
        self.settle();
    }

    pub fn acknowledge(&mut self, n: usize) -> Option<u32> {
        self.enter(n);
        self.settle();
        let id = self.cpus[n].acknowledge();
        self.settle();
        id
    }

    pub fn end(&mut self, n: usize, id: u32) {
        self.enter(n);
        self.cpus[n].end(id);
        self.settle();
    }

    pub fn dir(&mut self, n: usize, id: u32) {
        self.enter(n);
        if self.cpus[n].dir(id) == Dir::Trapped {
            self.trap(n, |vgic| ((), vgic.deactivate(v(n), IntId(id))));
        }
        self.settle();
    }

    /// Acknowledge and end, the whole life of an interrupt.
    pub fn take(&mut self, n: usize) -> Option<u32> {
        let id = self.acknowledge(n)?;
        self.end(n, id);
        if self.cpus[n].split_eoi() {
            self.dir(n, id);
        }
        Some(id)
    }

    /// Everything that `n` takes until nothing is left.
    pub fn drain(&mut self, n: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        while let Some(id) = self.take(n) {
            taken.push(id);
            assert!(taken.len() < 1000, "an interrupt comes again and again: {id}");
        }
        taken
    }

    /// An SPI is in one list register of one vCPU at most.
    fn check_single(&self) {
        let mut seen = std::collections::BTreeSet::new();
        for n in (0..self.cpus.len()).filter(|&n| self.inside[n]) {
            let used = usize::from(self.cpus[n].regs.used);
            for id in self.cpus[n].regs.lr[..used].iter().map(|&lr| super::cpu::intid(lr)) {
                assert!(id < 32 || seen.insert(id), "SPI {id} in two vCPUs' list registers");
            }
        }
    }
}
