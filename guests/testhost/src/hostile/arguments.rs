// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the calls are given: for each argument of each function values that mean something there, and boundaries.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use gzvm_abi::hypercall::{Function, REGION_BUFFER_SIZE, cap};
use gzvm_abi::reg;
use gzvm_guest_kit::machine::Range;
use gzvm_guest_kit::random::Random;

use super::Plan;
use crate::programs::{GICD, RAM};

/// What an argument is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Vm,
    Tuple,
    Address,
    Frame,
    GuestAddress,
    GuestFrame,
    Pages,
    Bytes,
    Small,
    Spis,
    Register,
    Capability,
    /// An endpoint's handle.
    Channel,
    /// The first frame of 2 MiB.
    Block,
    Anything,
    /// The address of a buffer that was just filled for this call.
    Buffer,
    /// A size that is right.
    BufferSize,
}

use Kind::{
    Address, Anything, Block, Buffer, BufferSize, Bytes, Capability, Channel, Frame, GuestAddress,
    GuestFrame, Pages, Register, Small, Spis, Tuple, Vm,
};

/// Functions by what they take; those that are to come more often stand here more often.
pub const SHAPES: &[(Function, &[Kind])] = &[
    (Function::CreateVm, &[Small]),
    (Function::DestroyVm, &[Vm, Pages]),
    (Function::CreateVcpu, &[Tuple, Address]),
    (Function::CreateVcpu, &[Tuple, Address]),
    (Function::DestroyVcpu, &[Tuple]),
    (Function::SetMemregion, &[Vm, BufferSize, Buffer]),
    (Function::SetMemregion, &[Vm, BufferSize, Buffer]),
    (Function::SetMemregion, &[Vm, BufferSize, Address]),
    (Function::Run, &[Tuple]),
    (Function::Run, &[Tuple]),
    (Function::GetOneReg, &[Tuple, Register]),
    (Function::SetOneReg, &[Tuple, Register, GuestAddress, Anything]),
    (Function::SetOneReg, &[Tuple, Register, Anything, Anything]),
    (Function::IrqLine, &[Tuple, Small, Small]),
    (Function::IrqLevel, &[Tuple, Small, Small, Small]),
    (Function::CreateDevice, &[Vm, Buffer]),
    (Function::CreateDevice, &[Vm, Address]),
    (Function::Probe, &[Small, Small, Small]),
    (Function::EnableCap, &[Vm, Capability, Small, Address]),
    (Function::EnableCap, &[Vm, Capability, Bytes, Address]),
    (Function::InformExit, &[Vm]),
    (Function::MemregionPurpose, &[Vm, GuestAddress, Bytes, Small]),
    (Function::SetDtbConfig, &[Vm, GuestAddress, Bytes]),
    (Function::MapGuest, &[Vm, Small, Frame, GuestFrame, Pages]),
    (Function::MapGuest, &[Vm, Small, Frame, GuestFrame, Pages]),
    (Function::MapGuest, &[Vm, Small, Frame, GuestFrame, Pages]),
    (Function::MapGuestBlock, &[Vm, Small, GuestFrame, Pages]),
    (Function::GetStatistics, &[Vm]),
    (Function::ExtInfo, &[]),
    (Function::ExtCounter, &[Small]),
    (Function::UnmapGuest, &[Vm, GuestFrame, Pages]),
    (Function::RemoveMemregion, &[Vm, Small]),
    (Function::Control, &[Vm, Small]),
    (Function::SetWatch, &[Vm, Small, Small, Anything]),
    (Function::Measurement, &[Vm, Small]),
    (Function::VmFeatures, &[Vm, Small]),
    (Function::VgicSpis, &[Vm, Spis]),
    (Function::RpcPolicy, &[Vm, Small, Small, Small]),
    (Function::RpcPolicy, &[Vm, Small, Small, Small]),
    (Function::RpcConnect, &[Vm, Small, Small, Small]),
    (Function::RpcConnect, &[Vm, Small, Vm, Small]),
    (Function::RpcConnect, &[Vm, Small, Vm, Small]),
    (Function::RpcMessage, &[Channel, Small, Address]),
    (Function::RpcMessage, &[Channel, Small, Buffer]),
    (Function::RpcMessage, &[Channel, Small, Anything]),
    (Function::RpcClose, &[Channel]),
    (Function::GiveMemory, &[Vm, Block]),
];

const ALL: [Kind; 15] = [
    Vm,
    Tuple,
    Address,
    Frame,
    GuestAddress,
    GuestFrame,
    Pages,
    Bytes,
    Small,
    Spis,
    Register,
    Capability,
    Channel,
    Block,
    Anything,
];

const BOUNDARIES: [u64; 24] = [
    0,
    1,
    2,
    3,
    7,
    8,
    9,
    63,
    64,
    255,
    256,
    511,
    512,
    513,
    4095,
    4096,
    0xFFFE,
    0xFFFF,
    0x1_0000,
    1 << 31,
    0xFFFF_FFFF,
    1 << 32,
    1 << 63,
    u64::MAX,
];

/// No memory, or none of the host's.
const WILD: [u64; 12] = [
    0,
    4096,
    0x0800_0000,
    0x080A_0000,
    0x0900_0000,
    0x3FFF_F000,
    1 << 40,
    1 << 47,
    1 << 48,
    1 << 52,
    1 << 63,
    u64::MAX - 8191,
];

/// Handles that RPC_CONNECT gave.
pub static CHANNELS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

/// The source of all values.
pub struct Source {
    pub random: Random,
    plan: Plan,
    buffer: u64,
}

impl Source {
    pub fn new(plan: Plan, cpu: u64, buffer: u64) -> Self {
        // No seed may be 0.
        let seed = plan.seed.wrapping_mul(MULTIPLIER).wrapping_add(cpu.wrapping_mul(0x1000_0001)) | 1 << 40;
        let mut random = Random(seed);
        for _ in 0..8 {
            random.next();
        }
        Self { random, plan, buffer }
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        (self.random.next() >> 16) % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn of(&mut self, list: &[u64]) -> u64 {
        list[self.below(list.len() as u64) as usize]
    }

    pub fn boundary(&mut self) -> u64 {
        self.of(&BOUNDARIES)
    }

    /// A page of the memory that the calls are about.
    pub fn page(&mut self) -> u64 {
        self.plan.region.start + self.below(self.plan.region.size / 4096) * 4096
    }

    fn page_in(&mut self, range: Range) -> u64 {
        range.start + self.below(range.size / 4096) * 4096
    }

    /// An address of the host's, of a protected guest's, or of nobody's.
    pub fn address(&mut self) -> u64 {
        let guard = self.plan.guards[self.below(2) as usize];
        let hypervisor = self.plan.hypervisor;
        let base = match self.below(12) {
            0..=5 => self.page(),
            6 => self.page_in(guard.private()),
            7 => guard.memory + self.below(512) * 4096,
            8 => guard.shared,
            9 => self.page_in(hypervisor),
            10 => self.of(&[hypervisor.start - 4096, hypervisor.start - 8192, hypervisor.end() - 4096]),
            _ => self.of(&WILD),
        };
        if self.one_in(16) { base ^ self.of(&[1, 8, 16, 1 << 40, 1 << 52, 1 << 63]) } else { base }
    }

    fn guest_address(&mut self) -> u64 {
        match self.below(8) {
            0..=4 => RAM + self.below(512) * 4096,
            5 => self.of(&[RAM - 4096, RAM + (2 << 20), GICD, GICD - 0x2_0000, (1 << 40) - 4096, 1 << 40]),
            6 => self.boundary(),
            _ => RAM + self.below(2 << 20),
        }
    }

    fn pages(&mut self) -> u64 {
        match self.below(8) {
            0..=3 => 1 + self.below(8),
            4 => 512,
            5 => 1 + self.below(512),
            6 => self.boundary(),
            _ => self.of(&[(1 << 52) - 1, 1 << 52, u64::MAX - (RAM >> 12), 32768, 32769, 1 << 28]),
        }
    }

    /// A value for an argument of this kind; `vms` are ids that there were.
    pub fn value(&mut self, kind: Kind, vms: &[u64]) -> u64 {
        if self.one_in(24) {
            return if self.one_in(2) { self.boundary() } else { self.random.next() };
        }
        match kind {
            Vm => self.vm(vms),
            Tuple => self.vm(vms) << 16 | if self.one_in(4) { self.below(66) } else { self.below(2) },
            Address => self.address(),
            Frame => self.address() >> 12 | if self.one_in(32) { 1 << 52 } else { 0 },
            GuestAddress => self.guest_address(),
            GuestFrame => self.guest_address() >> 12,
            Pages => self.pages(),
            Bytes => self.pages() << 12,
            Small => match self.below(4) {
                0..=1 => self.below(4),
                2 => self.below(70),
                _ => self.boundary(),
            },
            Spis => 32 * self.below(33),
            Register => match self.below(4) {
                0 => self.of(reg::SYSTEM),
                1 => self.of(&[reg::PC, reg::PSTATE, reg::SP_EL1, reg::V0, reg::V31, reg::FPSR]),
                2 => reg::X0 + 2 * self.below(32),
                _ => self.of(&[reg::X0, reg::V0, reg::PC]) ^ 1 << self.below(64),
            },
            Capability => self.of(&[
                cap::PROTECTED_VM,
                cap::BLOCK_BASED_DEMAND_PAGING,
                cap::ENABLE_DEMAND_PAGING,
                cap::ENABLE_IDLE,
                cap::QUERY_HYP_BATCH_PAGES,
                cap::QUERY_DESTROY_BATCH_PAGES,
                cap::VM_GPA_SIZE,
                0,
            ]),
            Anything => match self.below(4) {
                0 => self.boundary(),
                1 => self.address(),
                2 => self.below(1 << 16),
                _ => self.random.next(),
            },
            // Of what calls name alone: all the rest of a block is the test's.
            Block => (self.page() & !0x1F_FFFF) >> 12 | if self.one_in(16) { 1 << self.below(9) } else { 0 },
            Buffer => self.buffer,
            BufferSize => REGION_BUFFER_SIZE,
            Channel => {
                let handle = CHANNELS[self.below(CHANNELS.len() as u64) as usize].load(Relaxed);
                if self.one_in(8) { handle ^ 1 << self.below(24) } else { handle }
            }
        }
    }

    /// A value of any kind.
    pub fn any(&mut self, vms: &[u64]) -> u64 {
        let kind = ALL[self.below(ALL.len() as u64) as usize];
        self.value(kind, vms)
    }

    fn vm(&mut self, vms: &[u64]) -> u64 {
        match self.below(8) {
            0 => u64::from(self.plan.guards[self.below(2) as usize].id),
            1 => self.boundary(),
            _ => self.of(vms),
        }
    }

    /// Whether a call with this value could name the test's own image.
    pub fn is_own(&self, value: u64) -> bool {
        let image = self.plan.image;
        let inside = |address: u64| (image.start..image.end()).contains(&address);
        inside(value) || value < 1 << 40 && inside(value << 12)
    }
}

const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15;
