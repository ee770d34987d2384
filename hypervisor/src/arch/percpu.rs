// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The per-CPU block, found through TPIDR_EL2.
//!
//! # Invariants
//! - From boot on, TPIDR_EL2 of a running CPU holds the address of its own block, which lives for ever.
//! - `cell` fields are touched only by their own CPU, never re-entrantly: EL2 runs with all
//!   interrupts masked, and handlers borrow them for one scope at a time.

use core::cell::UnsafeCell;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use gzvm_abi::counter;
use gzvm_core::addr::PAGE_SIZE;

use spin::Once;

use super::gic::{self, CpuGic};
use super::sysreg;
use super::world::CpuState;

/// Pages of a CPU's stack.
pub const STACK_PAGES: u64 = 8;
/// Pages of its spare stack, for exceptions of EL2's own.
pub const FATAL_STACK_PAGES: u64 = 2;
/// Pages of both, and an unmapped guard page below each: `[guard][spare][guard][stack]`.
pub const STACKS_PAGES: u64 = STACK_PAGES + FATAL_STACK_PAGES + 2;

/// One CPU's block. The first fields' layout is known to `entry.S` and `vectors.S`.
#[repr(C)]
pub struct PerCpu {
    /// 0: top of the stack.
    pub stack_top: u64,
    /// 8: TTBR0_EL2 and the rest of stage 1, for a CPU that starts with the MMU off.
    pub ttbr0: u64,
    /// 16.
    pub mair: u64,
    /// 24.
    pub tcr: u64,
    /// 32.
    pub sctlr: u64,
    /// 40: top of the stack for exceptions of EL2's own.
    pub fatal_stack_top: u64,
    /// Index among the CPUs of the device tree.
    pub index: usize,
    /// Affinity fields of MPIDR.
    pub mpidr: u64,
    /// What SGIs name it by.
    pub sgi_target: u64,
    /// Where the host wants this CPU to start, and with what in x0.
    pub host_entry: AtomicU64,
    /// See [`host_entry`](Self::host_entry).
    pub host_context: AtomicU64,
    /// Firmware has been asked to start it, or it runs.
    pub power: AtomicU32,
    /// [`kick`] state: in the host, in a guest, in a guest and kicked.
    pub guest_state: AtomicU32,
    gic: Once<CpuGic>,
    counters: [AtomicU64; counter::COUNT],
    state: UnsafeCell<CpuState>,
}

// SAFETY: the atomics are shared; the cells are used by the owning CPU only (see the invariants).
unsafe impl Sync for PerCpu {}

/// Values of [`PerCpu::power`].
pub mod power {
    /// Not started, or off again.
    pub const OFF: u32 = 0;
    /// CPU_ON is under way.
    pub const STARTING: u32 = 1;
    /// Runs.
    pub const ON: u32 = 2;
}

/// Values of [`PerCpu::guest_state`].
pub mod kick {
    /// The CPU runs the host.
    pub const HOST: u32 = 0;
    /// It runs a guest.
    pub const GUEST: u32 = 1;
    /// It runs a guest, and an SGI is on its way to it.
    pub const KICKED: u32 = 2;
}

impl PerCpu {
    /// A block for CPU `index`.
    pub fn new(index: usize, mpidr: u64) -> Self {
        Self {
            stack_top: 0,
            ttbr0: 0,
            mair: 0,
            tcr: 0,
            sctlr: 0,
            fatal_stack_top: 0,
            index,
            mpidr,
            sgi_target: gic::sgi_target(mpidr),
            host_entry: AtomicU64::new(0),
            host_context: AtomicU64::new(0),
            power: AtomicU32::new(power::OFF),
            guest_state: AtomicU32::new(kick::HOST),
            gic: Once::new(),
            counters: [const { AtomicU64::new(0) }; counter::COUNT],
            state: UnsafeCell::new(CpuState::default()),
        }
    }

    /// Gives it the [`STACKS_PAGES`] pages from `base` on.
    pub fn set_stacks(&mut self, base: u64) {
        self.fatal_stack_top = base + (1 + FATAL_STACK_PAGES) * PAGE_SIZE;
        self.stack_top = base + STACKS_PAGES * PAGE_SIZE;
    }

    /// Its stack: first byte, and the byte behind.
    pub fn stack(&self) -> Range<u64> {
        self.stack_top.saturating_sub(STACK_PAGES * PAGE_SIZE)..self.stack_top
    }

    /// The guard pages: below its stack, below its spare one.
    pub fn guards(&self) -> [u64; 2] {
        let below = |top: u64, pages: u64| top.saturating_sub((pages + 1) * PAGE_SIZE);
        [below(self.stack_top, STACK_PAGES), below(self.fatal_stack_top, FATAL_STACK_PAGES)]
    }

    /// Makes this the block of the CPU that calls.
    pub fn install(&'static self) {
        sysreg::write!("tpidr_el2", core::ptr::from_ref(self) as u64);
    }

    /// The calling CPU's block.
    #[inline(always)]
    pub fn this() -> &'static PerCpu {
        let block = sysreg::read!("tpidr_el2") as *const PerCpu;
        // SAFETY: TPIDR_EL2 holds a block's address from boot on, and blocks live for ever.
        unsafe { &*block }
    }

    /// The calling CPU's block, unless it has none yet (early boot, panics).
    pub fn try_this() -> Option<&'static PerCpu> {
        let block = sysreg::read!("tpidr_el2") as *const PerCpu;
        // SAFETY: TPIDR_EL2 is zero until it holds a block's address (`cpu::early_init` zeroes it).
        unsafe { block.as_ref() }
    }

    /// This CPU's part of the GIC, from when it was first started on.
    #[inline(always)]
    pub fn gic(&self) -> Option<&CpuGic> {
        self.gic.get()
    }

    /// Tells what it is; a CPU that starts again finds the same.
    pub fn set_gic(&self, gic: CpuGic) {
        self.gic.call_once(|| gic);
    }

    /// Runs `f` with this CPU's own state.
    #[inline(always)]
    pub fn with<R>(&self, f: impl FnOnce(&mut CpuState) -> R) -> R {
        debug_assert!(core::ptr::eq(self, Self::this()));
        // SAFETY: only the owning CPU gets here (`this`), interrupts are masked at EL2, and no
        // caller nests `with` (the closures call nothing that uses it).
        f(unsafe { &mut *self.state.get() })
    }

    /// Counts an event.
    #[inline(always)]
    pub fn count(&self, c: counter::Counter) {
        let cell = &self.counters[c.index()];
        // Only this CPU writes: a plain add is enough.
        cell.store(cell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// This CPU's share of a counter.
    pub fn counter(&self, index: usize) -> u64 {
        self.counters.get(index).map_or(0, |c| c.load(Ordering::Relaxed))
    }
}
const _: () = assert!(core::mem::offset_of!(PerCpu, fatal_stack_top) == 40);

/// Counts an event on this CPU.
#[inline(always)]
pub fn count(c: counter::Counter) {
    PerCpu::this().count(c);
}
