// SPDX-License-Identifier: Apache-2.0 OR MIT
//! A decoded load or store, carried out one device access at a time.
//!
//! ```text
//! begin ──► Step ── answer ──► Step ── answer ──► ... ──► Done
//!   └─► Mismatch: inject an abort
//! ```
//!
//! # Invariants
//!
//! - Everything that comes from registers is read in [`Emulation::begin`], and no register changes
//!   before [`Next::Done`]: dropping an emulation half way leaves the vCPU at the instruction, as an
//!   abort has to. Steps that were stores have happened.
//! - All steps lie in the 4 KiB page that faulted, or, if the hypervisor says that it is the device's too ([`Fault::onward`]), go on
//!   in the next; no step lies in both. The page comes from the fault, the offset in it from the registers; the
//!   page is what the hypervisor has decided about.
//! - The fault lies within the access, and has its direction. So a word that was changed behind the
//!   faulting vCPU's back can spoil that guest's data, but reach nothing that the fault did not.

use arrayvec::ArrayVec;

use super::{Access, Addressing, Bank, Base, Extension, IndexExtend};
use crate::addr::{Ipa, PAGE_SIZE};
use crate::broken::{Mistake, broken};

/// Bytes of the largest access: a pair of 128-bit vector registers.
const MAX_BYTES: usize = 32;
/// Bytes of the largest step.
const MAX_STEP: u8 = 8;
/// FAR's top byte may hold a tag, or nothing of use.
const ADDRESS_BITS: u64 = u64::MAX >> 8;

/// The vCPU at the faulting instruction.
#[derive(Clone, Copy, Debug)]
pub struct Registers<'a> {
    /// X0 to X30.
    pub x: &'a [u64; 31],
    /// The stack pointer that the instruction sees (SP_EL0 or SP_EL1, by PSTATE).
    pub sp: u64,
    /// The instruction's address.
    pub pc: u64,
    /// Data is big-endian at the instruction's exception level (SCTLR_EL1.EE or E0E).
    pub big_endian: bool,
}

impl Registers<'_> {
    /// Xn; 31 reads as zero.
    fn x(&self, n: u8) -> u64 {
        self.x.get(usize::from(n)).copied().unwrap_or(0)
    }

    fn base(&self, base: Base) -> u64 {
        match base {
            Base::General(n) => self.x(n),
            Base::StackPointer => self.sp,
            Base::ProgramCounter => self.pc,
        }
    }
}

/// The stage-2 fault that the instruction took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The faulting address, from HPFAR_EL2 and FAR_EL2.
    pub ipa: Ipa,
    /// FAR_EL2.
    pub far: u64,
    /// ESR_EL2.WnR.
    pub write: bool,
    /// The next page of virtual addresses is the next of physical ones, for this access, and no memory.
    pub onward: bool,
}

/// The instruction is not to be emulated for this fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mismatch {
    /// A load for a fault on a write, or the other way round.
    Direction,
    /// The access does not hold the faulting address.
    Elsewhere,
    /// The access goes on in the next page, of which the fault tells nothing.
    CrossesPage,
}

/// One device access for user space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// Where.
    pub ipa: Ipa,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// What to write, its low byte at the lowest address and zeros above; None for a read.
    pub write: Option<u64>,
}

/// A register's new value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Update {
    /// X0 to X30: register and value.
    General(u8, u64),
    /// The stack pointer.
    StackPointer(u64),
    /// V0 to V31: register, and its low and high half.
    Vector(u8, [u64; 2]),
}

/// What the vCPU looks like afterwards.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Loaded registers and the base, if it changes. No two for one register.
    pub updates: ArrayVec<Update, 3>,
    /// The next instruction. PSTATE.BTYPE and SS have to be cleared as for any other one.
    pub pc: u64,
}

/// What is to be done now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Make this access, then call [`Emulation::answer`].
    Step(Step),
    /// The instruction is done.
    Done(Completion),
}

/// A load or store under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Emulation {
    access: Access,
    /// The access's first byte.
    ipa: Ipa,
    /// The base's new value, if any.
    write_back: Option<u64>,
    pc: u64,
    big_endian: bool,
    /// Memory's bytes: to be stored, or loaded so far.
    data: [u8; MAX_BYTES],
    /// Bytes that have moved: 0 to [`Access::bytes`].
    done: u8,
}

impl Emulation {
    /// Starts `access` of a vCPU with these registers, after `fault`. `vector` reads a vector register
    /// (low and high half); it is called for stores of them only.
    ///
    /// # Errors
    ///
    /// [`Mismatch`], with nothing done.
    pub fn begin(
        access: Access,
        registers: &Registers<'_>,
        fault: Fault,
        mut vector: impl FnMut(u8) -> [u64; 2],
    ) -> Result<Self, Mismatch> {
        if access.load == fault.write {
            return Err(Mismatch::Direction);
        }
        let (address, write_back) = address(&access, registers);
        let bytes = u64::from(access.bytes());
        let offset = address & PAGE_SIZE.wrapping_sub(1);
        // How far into the access the fault was, and how far the page's end is.
        let (into, end) = (fault.far.wrapping_sub(address) & ADDRESS_BITS, PAGE_SIZE.wrapping_sub(offset));
        if end < bytes && !fault.onward && !broken(Mistake::PastPageEnd) {
            return Err(Mismatch::CrossesPage);
        }
        if into >= bytes {
            return Err(Mismatch::Elsewhere);
        }
        if into >= end {
            // It begins in the page before the one that faulted.
            return Err(Mismatch::CrossesPage);
        }
        let mut this = Self {
            access,
            ipa: Ipa(fault.ipa.0 & !PAGE_SIZE.wrapping_sub(1) | offset),
            write_back,
            pc: registers.pc,
            big_endian: registers.big_endian,
            data: [0; MAX_BYTES],
            done: 0,
        };
        if !access.load {
            let mut read = |register| match access.bank {
                Bank::General(_) => u128::from(registers.x(register)),
                Bank::Vector => join(vector(register)),
            };
            this.set_element(0, read(access.first));
            if let Some(second) = access.second {
                this.set_element(1, read(second));
            }
        }
        Ok(this)
    }

    /// What to do now: the same answer until [`answer`](Self::answer) is called.
    pub fn next(&self) -> Next {
        if self.done >= self.access.bytes() {
            return Next::Done(self.completion());
        }
        let size = self.step_size();
        let write = if self.access.load {
            None
        } else {
            let mut bytes = [0; 8];
            let from = self.data.iter().skip(self.done.into()).take(size.into());
            bytes.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            Some(u64::from_le_bytes(bytes))
        };
        // In two pages at the most, so this does not wrap.
        Next::Step(Step { ipa: Ipa(self.ipa.0.wrapping_add(u64::from(self.done))), size, write })
    }

    /// The current step has been made; `data` is what a read gave, its low byte from the lowest
    /// address. More than the step's bytes is ignored, and so is an answer too many.
    pub fn answer(&mut self, data: u64) {
        if self.done >= self.access.bytes() {
            return;
        }
        let size = self.step_size();
        if self.access.load {
            let bytes = data.to_le_bytes();
            let into = self.data.iter_mut().skip(self.done.into()).take(size.into());
            into.zip(bytes).for_each(|(to, from)| *to = from);
        }
        self.done = self.done.wrapping_add(size);
    }

    /// What moves, for who has to order it or to count it.
    pub const fn access(&self) -> &Access {
        &self.access
    }

    /// What is left of the element and of the page, as far as a step can be: a power of two.
    fn step_size(&self) -> u8 {
        let size = self.access.size.max(1);
        let of_element = size.wrapping_sub(self.done.checked_rem(size).unwrap_or(0));
        let at = self.ipa.0.wrapping_add(self.done.into()) & PAGE_SIZE.wrapping_sub(1);
        let of_page = PAGE_SIZE.wrapping_sub(at).min(MAX_STEP.into()) as u8;
        1u8.wrapping_shl(of_element.min(of_page).max(1).ilog2())
    }

    fn completion(&self) -> Completion {
        let mut updates = ArrayVec::new();
        if self.access.load {
            let second = self.access.second.map(|register| (1, register));
            for (n, register) in [Some((0, self.access.first)), second].into_iter().flatten() {
                let value = self.element(n);
                // The zero register takes nothing.
                let update = match self.access.bank {
                    Bank::General(_) if register >= 31 => continue,
                    Bank::General(extension) => {
                        Update::General(register, extend(value as u64, self.access.size, extension))
                    }
                    Bank::Vector => Update::Vector(register, split(value)),
                };
                // At most two, and the base below: there is room.
                let _ = updates.try_push(update);
            }
        }
        if let Some(value) = self.write_back {
            let _ = match self.access.base {
                Base::General(register) => updates.try_push(Update::General(register, value)),
                Base::StackPointer => updates.try_push(Update::StackPointer(value)),
                Base::ProgramCounter => Ok(()),
            };
        }
        Completion { updates, pc: self.pc.wrapping_add(4) }
    }

    /// Memory's bytes of element `n` (0 or 1).
    fn bytes_of(&mut self, n: usize) -> &mut [u8] {
        let size = usize::from(self.access.size);
        let start = n.wrapping_mul(size);
        self.data.get_mut(start..start.wrapping_add(size)).unwrap_or_default()
    }

    /// Puts the low bytes of a register's value where memory has them.
    fn set_element(&mut self, n: usize, value: u128) {
        let big_endian = self.big_endian;
        let bytes = self.bytes_of(n);
        bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
        if big_endian {
            bytes.reverse();
        }
    }

    /// The value of an element, zeros above it.
    fn element(&self, n: usize) -> u128 {
        let mut this = *self;
        let bytes = this.bytes_of(n);
        if self.big_endian {
            bytes.reverse();
        }
        let mut value = [0; 16];
        value.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        u128::from_le_bytes(value)
    }
}

/// An access's virtual address, and the base's new value.
fn address(access: &Access, registers: &Registers<'_>) -> (u64, Option<u64>) {
    let base = registers.base(access.base);
    match access.addressing {
        Addressing::Offset(offset) => (base.wrapping_add_signed(offset), None),
        Addressing::Pre(offset) => {
            let sum = base.wrapping_add_signed(offset);
            (sum, Some(sum))
        }
        Addressing::Post(offset) => (base, Some(base.wrapping_add_signed(offset))),
        Addressing::Index { register, extend, shift } => {
            let index = registers.x(register);
            let index = match extend {
                IndexExtend::Word => u64::from(index as u32),
                IndexExtend::SignedWord => index as i32 as u64,
                IndexExtend::Double => index,
            };
            (base.wrapping_add(index.wrapping_shl(shift.into())), None)
        }
    }
}

/// What a general register gets for an element of `size` bytes with zeros above.
const fn extend(value: u64, size: u8, extension: Extension) -> u64 {
    let above = 64u32.wrapping_sub((size as u32).wrapping_mul(8));
    let signed = (value.wrapping_shl(above) as i64).wrapping_shr(above) as u64;
    match extension {
        Extension::Zero => value,
        Extension::Sign32 => signed & 0xFFFF_FFFF,
        Extension::Sign64 => signed,
    }
}

const fn split(value: u128) -> [u64; 2] {
    [value as u64, (value >> 64) as u64]
}

const fn join([low, high]: [u64; 2]) -> u128 {
    (high as u128) << 64 | low as u128
}
