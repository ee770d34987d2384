// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What one CPU of the host does.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use gzvm_abi::hypercall::{Constituent, FID_BASE_SMC32, FID_BASE_SMC64, Function, RegionHeader, Status, cap};
use gzvm_abi::ioctl::{self, CreateDevice};
use gzvm_abi::rpc::{self, with};
use gzvm_abi::run::exit;
use gzvm_abi::{control, reg};
use gzvm_guest_kit::smccc::Conduit;
use gzvm_guest_kit::{arch, exception, println, timer};

use super::arguments::{CHANNELS, SHAPES, Source};
use super::{Plan, STOP, VIOLATION};
use crate::pages;
use crate::programs::{self, GICD, RAM};

/// VMs that the CPUs know of.
const VMS: usize = 12;
/// Functions that are timed, by number; all others together at the end.
const NUMBERS: usize = 0x60;

static KNOWN: [AtomicU64; VMS] = [const { AtomicU64::new(0) }; VMS];
static CALLS: AtomicU64 = AtomicU64::new(0);
static SUCCEEDED: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicU64 = AtomicU64::new(0);
static ABORTS: AtomicU64 = AtomicU64::new(0);
static LONGEST: [AtomicU64; NUMBERS + 1] = [const { AtomicU64::new(0) }; NUMBERS + 1];

pub fn reset() {
    for cell in KNOWN.iter().chain(&LONGEST).chain([&CALLS, &SUCCEEDED, &RUNS, &ABORTS]) {
        cell.store(0, SeqCst);
    }
}

/// The longest call, where calls are timed, less those that are bounded by their pages alone ([`crate::longest`]).
pub fn longest() -> u64 {
    let maps = [Function::MapGuest, Function::MapGuestBlock, Function::SetMemregion].map(|f| f as usize);
    let others = LONGEST.iter().enumerate().filter(|(number, _)| !maps.contains(number));
    others.map(|(_, ticks)| ticks.load(SeqCst)).max().unwrap_or(0)
}

pub fn print() {
    let [calls, succeeded, runs, aborts] = [&CALLS, &SUCCEEDED, &RUNS, &ABORTS].map(|c| c.load(SeqCst));
    println!("note: {calls} calls, {succeeded} succeeded, {runs} runs, {aborts} accesses aborted");
    for (number, ticks) in LONGEST.iter().map(|l| l.load(SeqCst)).enumerate().filter(|l| l.1 != 0) {
        match Function::from_number(number as u16) {
            Some(function) => println!("note: longest {function:?}: {ticks} instructions"),
            None => println!("note: longest of unknown functions: {ticks} instructions"),
        }
    }
}

/// A call: function ID and x1 to x7.
type Call = (u64, [u64; 7]);

pub struct Attacker {
    plan: Plan,
    source: Source,
    /// Pages to hand over with a call.
    buffer: u64,
    /// The last call that succeeded, to make others of.
    last: Call,
    left: u64,
}

impl Attacker {
    pub fn new(plan: Plan, cpu: u64) -> Self {
        // In the memory that calls name: it may be taken away, or read while it changes.
        let buffer = plan.region.start + cpu * 8192;
        Self { plan, source: Source::new(plan, cpu, buffer), buffer, last: (0, [0; 7]), left: plan.calls }
    }

    pub fn run(&mut self) {
        while self.left > 0 && !STOP.load(SeqCst) {
            match self.source.below(64) {
                0 => self.a_whole_vm(),
                1..=12 => self.run_a_guard(),
                13..=24 => self.touch(),
                25..=31 => self.unknown(),
                32..=38 => self.mutated(),
                _ => self.known(),
            }
        }
    }

    fn vms(&self) -> [u64; VMS] {
        KNOWN.each_ref().map(|id| id.load(SeqCst))
    }

    /// A function with what it takes, more or less.
    fn known(&mut self) {
        let vms = self.vms();
        let (function, shape) = SHAPES[self.source.below(SHAPES.len() as u64) as usize];
        let mut args = [0; 7];
        for (n, arg) in args.iter_mut().enumerate() {
            *arg = match shape.get(n) {
                Some(kind) => self.source.value(*kind, &vms),
                None => 0,
            };
        }
        match function {
            Function::SetMemregion => self.fill_region_buffer(),
            Function::CreateDevice => self.fill_device_page(),
            _ => {}
        }
        self.fire((function.fid().into(), args));
    }

    /// Any number, of both families and neither, with anything.
    fn unknown(&mut self) {
        let vms = self.vms();
        let number = if self.source.one_in(4) { self.source.below(0x1000) } else { self.source.below(0x60) };
        let base = if self.source.one_in(2) { FID_BASE_SMC32 } else { FID_BASE_SMC64 };
        let mut fid = u64::from(base) + number;
        match self.source.below(8) {
            0 => fid |= self.source.random.next() << 32,
            1 => fid ^= 1 << self.source.below(32),
            2 => fid = self.source.random.next(),
            _ => {}
        }
        let args = [(); 7].map(|()| self.source.any(&vms));
        self.fire((fid, args));
    }

    /// A call that succeeded, with one thing changed.
    fn mutated(&mut self) {
        let vms = self.vms();
        let (fid, mut args) = self.last;
        let n = self.source.below(7) as usize;
        args[n] = match self.source.below(6) {
            0 => args[n] ^ 1 << self.source.below(64),
            1 => args[n].wrapping_add(1),
            2 => args[n].wrapping_sub(1),
            3 => args[self.source.below(7) as usize],
            4 => self.source.boundary(),
            _ => self.source.any(&vms),
        };
        self.fire((fid, args));
    }

    /// A VM as a driver makes it, so that there is something to attack.
    fn a_whole_vm(&mut self) {
        let created = self.about(0, Function::CreateVm, &[]);
        let [0, id, ..] = created else { return };
        let protected = self.source.one_in(2);
        if protected {
            self.about(id, Function::EnableCap, &[cap::PROTECTED_VM, cap::protected::SET_PROTECTED_VM]);
        }
        let everybody = with::HOST | with::PLAIN | with::PROTECTED;
        self.about(id, Function::RpcPolicy, &[programs::SPI, everybody, rpc::MOST_CHANNELS]);
        let buffer = self.buffer;
        poke(buffer, RegionHeader { slot: 0, constituent_cnt: 0, total_pages: 512, gpa: RAM });
        let mailbox = self.source.page();
        self.about(id, Function::SetMemregion, &[8192, buffer]);
        self.about(id, Function::EnableCap, &[cap::BLOCK_BASED_DEMAND_PAGING, 2 << 20, mailbox]);
        let program = match self.source.below(8) {
            0 => programs::spins(),
            1 => programs::counts(),
            2 => programs::private(),
            3 => programs::keeps_secrets(),
            4 => programs::relinquishes(),
            5 => programs::loads(),
            6 => programs::waits_for_spi(),
            _ => programs::starts_second(),
        };
        let code = self.source.page();
        for (i, byte) in program.iter().enumerate() {
            poke(code + i as u64, *byte);
        }
        let tuple = id << 16;
        let shared = self.source.page();
        self.about(tuple, Function::CreateVcpu, &[shared]);
        self.about(tuple, Function::SetOneReg, &[reg::PSTATE, 0x3C5]);
        self.about(tuple, Function::SetOneReg, &[reg::PC, RAM]);
        let pages = 1 + self.source.below(16);
        self.about(id, Function::MapGuest, &[0, code >> 12, RAM >> 12, pages]);
        let peer = KNOWN[self.source.below(VMS as u64) as usize].load(SeqCst);
        for other in [0, peer] {
            self.about(id, Function::RpcConnect, &[1, other, id]);
        }
        for _ in 0..self.source.below(8) {
            self.about(tuple, Function::Run, &[]);
        }
    }

    /// A call whose x1 is `first`.
    fn about(&mut self, first: u64, function: Function, args: &[u64]) -> [u64; 4] {
        let mut all = [0; 7];
        all[0] = first;
        all[1..=args.len()].copy_from_slice(args);
        self.fire((function.fid().into(), all))
    }

    fn run_a_guard(&mut self) {
        let id = u64::from(self.plan.guards[self.source.below(2) as usize].id);
        let [_, reason, ..] = self.about(id << 16, Function::Run, &[]);
        if reason as u32 == exit::IDLE {
            // Somebody paused it.
            self.about(id, Function::Control, &[control::RESUME.into()]);
        }
    }

    fn fill_region_buffer(&mut self) {
        let vms = self.vms();
        let gpa = match self.source.below(4) {
            0 => RAM + (self.source.below(64) << 21),
            1 => RAM,
            2 => (1 << 30) + (self.source.random.next() >> 24 & !0xFFF),
            _ => u64::MAX - self.source.below(1 << 22),
        };
        let total_pages = self.source.value(super::arguments::Kind::Pages, &vms);
        let constituent_cnt = self.source.below(8) as u32;
        let slot = self.source.below(66) as u32;
        poke(self.buffer, RegionHeader { slot, constituent_cnt, total_pages, gpa });
        for n in 0..u64::from(constituent_cnt) {
            let mut address = self.source.address();
            if self.source.is_own(address) {
                address = 0;
            }
            let pg_cnt = self.source.value(super::arguments::Kind::Pages, &vms).min(32768) as u32;
            poke(self.buffer + 24 + 16 * n, Constituent { address, pg_cnt, reserved: 0 });
        }
    }

    fn fill_device_page(&mut self) {
        let size = 0x2_0000 * self.source.below(3);
        let device = CreateDevice {
            dev_type: if self.source.one_in(2) {
                ioctl::DEVICE_VGIC_V3_DIST
            } else {
                ioctl::DEVICE_VGIC_V3_REDIST
            },
            id: 0,
            flags: self.source.below(2),
            dev_addr: GICD - size,
            dev_reg_size: if size == 0 { 0x1_0000 } else { size },
            attr_addr: self.source.boundary(),
            attr_size: self.source.boundary(),
        };
        poke(self.buffer, device);
    }

    /// Loads and stores where the host has nothing to do, and in what it shares.
    fn touch(&mut self) {
        let guard = self.plan.guards[self.source.below(2) as usize];
        let offset = self.source.below(512) * 8;
        let hypervisor = self.plan.hypervisor;
        let (address, forbidden) = match self.source.below(4) {
            0 => (guard.memory + self.source.below(super::guard::PRIVATE_BYTES / 4096) * 4096 + offset, true),
            1 => (hypervisor.start + self.source.below(hypervisor.size / 4096) * 4096 + offset, true),
            2 => (self.source.page() + offset, false),
            _ => (guard.shared + offset, false),
        };
        let load = exception::expect(|| pages::read(address));
        let value = self.source.random.next();
        let store = exception::expect(|| pages::write(address, value));
        let aborted = u64::from(load.is_err()) + u64::from(store.is_err());
        ABORTS.fetch_add(aborted, SeqCst);
        if forbidden && aborted != 2 {
            VIOLATION.store(address | 1, SeqCst);
            STOP.store(true, SeqCst);
        }
    }

    /// Makes the call, less what it may not hit; x0 to x3.
    fn fire(&mut self, (fid, mut args): Call) -> [u64; 4] {
        self.left = self.left.saturating_sub(1);
        for arg in &mut args {
            if self.source.is_own(*arg) {
                *arg = self.source.page();
            }
        }
        let function = Function::from_fid(fid);
        self.spare(function, &mut args);
        if function == Some(Function::Run) {
            RUNS.fetch_add(1, SeqCst);
            // The guest may have no end.
            timer::arm_in((timer::frequency() / 50_000 * (1 + self.source.below(8))) as u32);
        }
        let start = timer::now();
        let x = Conduit::Hvc.call(fid, &args);
        let ticks = timer::now() - start;
        CALLS.fetch_add(1, SeqCst);
        if function == Some(Function::Run) {
            arch::irq_enable();
            arch::isb();
            arch::irq_disable();
            timer::disarm();
        } else if self.plan.timed {
            let number = function.map_or(NUMBERS, |f| f as usize);
            LONGEST[number.min(NUMBERS)].fetch_max(ticks, SeqCst);
        }
        if Status::from_x0(x[0]) == Some(Status::Success) {
            SUCCEEDED.fetch_add(1, SeqCst);
            self.last = (fid, args);
            match function {
                Some(Function::CreateVm) => self.remember(x[1]),
                Some(Function::RpcConnect) => CHANNELS[self.source.below(4) as usize].store(x[1], SeqCst),
                _ => {}
            }
        }
        x
    }

    /// What would end a watched guest goes to another VM.
    fn spare(&mut self, function: Option<Function>, args: &mut [u64; 7]) {
        let watched = |id: u64| self.plan.guards.iter().any(|g| u64::from(g.id) == id);
        let other = KNOWN[self.source.below(VMS as u64) as usize].load(SeqCst);
        match function {
            Some(Function::DestroyVm) if watched(args[0]) => args[0] = other,
            Some(Function::DestroyVcpu) if watched(args[0] >> 16) => args[0] = other << 16,
            _ => {}
        }
    }

    /// A VM that there is now. The one whose place it takes goes, mostly: else there would soon be no room for any.
    fn remember(&mut self, id: u64) {
        let before = KNOWN[self.source.below(VMS as u64) as usize].swap(id, SeqCst);
        for _ in 0..if self.source.one_in(8) { 0 } else { 64 } {
            if before == 0 || before == id {
                break;
            }
            let [status, ..] = self.about(before, Function::DestroyVm, &[4096]);
            if Status::from_x0(status) != Some(Status::Busy) {
                break;
            }
        }
    }
}

/// Writes where it may be that the host does not reach any more: byte by byte, since an instruction that aborts is skipped, and
/// a loop that counts in its address would not end.
fn poke<T: Copy>(address: u64, value: T) {
    for (i, byte) in bytes_of(&value).iter().enumerate() {
        let _ = exception::expect(|| pages::put(address + i as u64, *byte));
    }
}

/// The bytes of a structure of the ABI, which has no padding.
fn bytes_of<T: Copy>(value: &T) -> &[u8] {
    // SAFETY: plain data without padding, borrowed as long as the bytes are.
    unsafe { core::slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}
