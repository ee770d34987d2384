// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an A64 load or store does, from its instruction word (Arm ARM C4.1.94, C6.2, C7.2).
//!
//! A data abort describes only accesses of one general register without write-back (ESR_ELx.ISV).
//! For the rest, of unprotected VMs, the word at the guest's PC is read and decoded here, and
//! [`emulate`] turns it into accesses that user space serves.
//!
//! The word is the guest's: another vCPU may have changed it since the fault. So nothing here trusts
//! it. [`decode`] accepts loads and stores that are architecturally defined and nothing else, each
//! refusal has its [`Refusal`], and [`emulate`] checks that the access is the one that faulted.
//!
//! | bits 29:28, 24 | class | |
//! |---|---|---|
//! | 00, 0 | exclusive, ordered, CAS; with bit 26 SIMD structures | LDAR, STLR, LDLAR, STLLR only |
//! | 00, 1 | SIMD structures; unprivileged exclusives and CAS | refused |
//! | 01, 0 | literal | accepted |
//! | 01, 1 | RCpc unscaled; tags, memory copy | LDAPUR, STLUR only |
//! | 10, - | pair | accepted, but STGP |
//! | 11, - | register: immediate, index, unprivileged; atomics, authenticated | first three, LDAPR |
//!
//! Accepted forms with a valid syndrome are here too: with them a caller needs no second path.

pub mod emulate;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

/// Why a word is not emulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Not in the load and store group, and none of the groups below.
    NotLoadStore,
    /// SVE or SME: hidden from guests.
    Scalable,
    /// SYS, thus DC ZVA and other cache maintenance.
    System,
    /// No instruction, or one of an extension that guests don't have.
    Unallocated,
    /// CONSTRAINED UNPREDICTABLE: write-back into a transfer register, a pair loaded into one
    /// register, or should-be-one bits that are zero.
    Unpredictable,
    /// Load-Exclusive, Store-Exclusive, CASP.
    Exclusive,
    /// CAS, the LSE atomics, 64-byte loads and stores.
    Atomic,
    /// LD1 to LD4, ST1 to ST4 and the like.
    Structure,
    /// LDRAA, LDRAB: the address has to be authenticated.
    Authenticated,
    /// Allocation tags (LDG, STG, STGP), memory copy and set, and other RCpc forms.
    TagOrCopy,
    /// PRFM. It never faults: the word is not the one that did, and there is no access to make.
    Prefetch,
}

/// How a loaded element fills a general register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extension {
    /// With zeros, to 64 bits.
    Zero,
    /// With the sign to 32 bits, then with zeros.
    Sign32,
    /// With the sign to 64 bits.
    Sign64,
}

/// The register file that data moves from or to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bank {
    /// X0 to X30; 31 is the zero register. Stores extend nothing.
    General(Extension),
    /// V0 to V31; a load clears what is above the element.
    Vector,
}

/// Where the address starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    /// X0 to X30.
    General(u8),
    /// The current stack pointer.
    StackPointer,
    /// The instruction's own address.
    ProgramCounter,
}

/// How an index register becomes 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IndexExtend {
    /// UXTW.
    Word,
    /// SXTW.
    SignedWord,
    /// LSL or SXTX: as it is.
    Double,
}

/// From base to address, and what becomes of the base.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addressing {
    /// Base and bytes.
    Offset(i64),
    /// Base and bytes; the sum is written back.
    Pre(i64),
    /// The base alone; base and bytes are written back.
    Post(i64),
    /// Base and register.
    Index {
        /// X0 to X30; 31 is the zero register.
        register: u8,
        /// First this,
        extend: IndexExtend,
        /// then a shift to the left: 0 to 4.
        shift: u8,
    },
}

/// What an instruction asks of memory beyond the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Nothing.
    None,
    /// Acquire for a load, release for a store. Who emulates it orders it.
    Ordered,
    /// Non-temporal.
    NonTemporal,
    /// As if from EL0. Permissions were checked before stage 2 faulted.
    Unprivileged,
}

/// One load or store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access {
    /// A load rather than a store.
    pub load: bool,
    /// Where data moves from or to.
    pub bank: Bank,
    /// Bytes per element: 1, 2, 4, 8; 16 with vector registers.
    pub size: u8,
    /// Transfer register.
    pub first: u8,
    /// Second transfer register of a pair; its element follows the first.
    pub second: Option<u8>,
    /// Where the address starts.
    pub base: Base,
    /// How it goes on.
    pub addressing: Addressing,
    /// What else is asked.
    pub hint: Hint,
}

impl Access {
    /// All bytes that move: 1 to 32.
    pub const fn bytes(&self) -> u8 {
        if self.second.is_some() { self.size.wrapping_mul(2) } else { self.size }
    }

    /// The base is also a transfer register, and changes; or both loads have one target.
    fn is_unpredictable(&self) -> bool {
        let twice = self.load && self.second == Some(self.first);
        let changes = matches!(self.addressing, Addressing::Pre(_) | Addressing::Post(_));
        let clash = match (self.base, self.bank) {
            (Base::General(base), Bank::General(_)) => self.first == base || self.second == Some(base),
            _ => false,
        };
        twice || changes && clash
    }
}

/// What moves in a load or store of one register.
struct Element {
    load: bool,
    bank: Bank,
    size: u8,
}

/// Decodes an A64 instruction word.
pub fn decode(word: u32) -> Result<Access, Refusal> {
    // Bits 28:25 are x1x0.
    if !bit(word, 27) || bit(word, 25) {
        return Err(outside(word));
    }
    let access = match (field(word, 28, 2), bit(word, 24), bit(word, 26)) {
        (0b00, false, false) => ordered(word),
        (0b00, true, false) => Err(Refusal::Unallocated),
        (0b00, _, true) => Err(if bit(word, 31) { Refusal::Unallocated } else { Refusal::Structure }),
        (0b01, false, _) => literal(word),
        (0b01, true, _) => unscaled_ordered(word),
        (0b10, _, _) => pair(word),
        (_, true, _) => unsigned_offset(word),
        (_, false, _) => register(word),
    }?;
    if access.is_unpredictable() { Err(Refusal::Unpredictable) } else { Ok(access) }
}

/// Names what is not in the load and store group, as far as it is of interest.
const fn outside(word: u32) -> Refusal {
    let group = field(word, 25, 4);
    if group == 0b0010 || group == 0 && bit(word, 31) {
        Refusal::Scalable
    } else if field(word, 19, 13) == 0b1_1010_1010_0001 {
        Refusal::System
    } else {
        Refusal::NotLoadStore
    }
}

/// Exclusive, ordered and compare and swap.
fn ordered(word: u32) -> Result<Access, Refusal> {
    match (bit(word, 23), bit(word, 21)) {
        (true, true) => return Err(Refusal::Atomic),
        (false, _) => return Err(Refusal::Exclusive),
        (true, false) => {}
    }
    // Rs and Rt2 should be ones.
    if field(word, 16, 5) != 31 || field(word, 10, 5) != 31 {
        return Err(Refusal::Unpredictable);
    }
    let element = Element {
        load: bit(word, 22),
        bank: Bank::General(Extension::Zero),
        size: scale(field(word, 30, 2)),
    };
    Ok(single(word, element, Addressing::Offset(0), Hint::Ordered))
}

/// LDR (literal), LDRSW (literal).
fn literal(word: u32) -> Result<Access, Refusal> {
    let (bank, size) = match (bit(word, 26), field(word, 30, 2)) {
        (false, 0b00) => (Bank::General(Extension::Zero), 4),
        (false, 0b01) => (Bank::General(Extension::Zero), 8),
        (false, 0b10) => (Bank::General(Extension::Sign64), 4),
        (false, _) => return Err(Refusal::Prefetch),
        (true, 0b00) => (Bank::Vector, 4),
        (true, 0b01) => (Bank::Vector, 8),
        (true, 0b10) => (Bank::Vector, 16),
        (true, _) => return Err(Refusal::Unallocated),
    };
    let offset = Addressing::Offset(signed(word, 5, 19).wrapping_mul(4));
    let access = single(word, Element { load: true, bank, size }, offset, Hint::None);
    Ok(Access { base: Base::ProgramCounter, ..access })
}

/// LDAPUR and STLUR; allocation tags and memory copy share the class.
fn unscaled_ordered(word: u32) -> Result<Access, Refusal> {
    if bit(word, 26) || bit(word, 21) || field(word, 10, 2) != 0 {
        return Err(Refusal::TagOrCopy);
    }
    let element = element(word).map_err(no_prefetch)?;
    Ok(single(word, element, Addressing::Offset(signed(word, 12, 9)), Hint::Ordered))
}

/// LDP, STP, LDNP, STNP, LDPSW.
fn pair(word: u32) -> Result<Access, Refusal> {
    let load = bit(word, 22);
    let mode = field(word, 23, 2);
    let (bank, size) = match (bit(word, 26), field(word, 30, 2)) {
        (false, 0b00) => (Bank::General(Extension::Zero), 4),
        (false, 0b01) if mode == 0b00 => return Err(Refusal::Unallocated),
        (false, 0b01) if !load => return Err(Refusal::TagOrCopy),
        (false, 0b01) => (Bank::General(Extension::Sign64), 4),
        (false, 0b10) => (Bank::General(Extension::Zero), 8),
        (true, 0b00) => (Bank::Vector, 4),
        (true, 0b01) => (Bank::Vector, 8),
        (true, 0b10) => (Bank::Vector, 16),
        _ => return Err(Refusal::Unallocated),
    };
    let offset = signed(word, 15, 7).wrapping_mul(size as i64);
    let (addressing, hint) = match mode {
        0b00 => (Addressing::Offset(offset), Hint::NonTemporal),
        0b01 => (Addressing::Post(offset), Hint::None),
        0b10 => (Addressing::Offset(offset), Hint::None),
        _ => (Addressing::Pre(offset), Hint::None),
    };
    let first = single(word, Element { load, bank, size }, addressing, hint);
    Ok(Access { second: Some(field(word, 10, 5) as u8), ..first })
}

/// Register, unsigned scaled immediate.
fn unsigned_offset(word: u32) -> Result<Access, Refusal> {
    let element = element(word)?;
    let offset = i64::from(field(word, 10, 12)).wrapping_mul(i64::from(element.size));
    Ok(single(word, element, Addressing::Offset(offset), Hint::None))
}

/// Register, with a small immediate or a register offset; atomics and authenticated loads.
fn register(word: u32) -> Result<Access, Refusal> {
    let offset = signed(word, 12, 9);
    let (element, addressing, hint) = match (bit(word, 21), field(word, 10, 2)) {
        (false, 0b00) => (element(word)?, Addressing::Offset(offset), Hint::None),
        (false, 0b01) => (element(word).map_err(no_prefetch)?, Addressing::Post(offset), Hint::None),
        (false, 0b10) if bit(word, 26) => return Err(Refusal::Unallocated),
        (false, 0b10) => {
            (element(word).map_err(no_prefetch)?, Addressing::Offset(offset), Hint::Unprivileged)
        }
        (false, _) => (element(word).map_err(no_prefetch)?, Addressing::Pre(offset), Hint::None),
        (true, 0b00) => return load_acquire(word),
        (true, 0b10) => {
            let element = element(word)?;
            let index = index(word, element.size)?;
            (element, index, Hint::None)
        }
        (true, _) if bit(word, 26) || field(word, 30, 2) != 0b11 => return Err(Refusal::Unallocated),
        (true, _) => return Err(Refusal::Authenticated),
    };
    Ok(single(word, element, addressing, hint))
}

/// LDAPR, which is among the atomics (A = 1, R = 0, o3 = 1, opc = 100).
fn load_acquire(word: u32) -> Result<Access, Refusal> {
    if bit(word, 26) || field(word, 22, 2) != 0b10 || field(word, 12, 4) != 0b1100 {
        return Err(Refusal::Atomic);
    }
    if field(word, 16, 5) != 31 {
        return Err(Refusal::Unpredictable);
    }
    let size = scale(field(word, 30, 2));
    let element = Element { load: true, bank: Bank::General(Extension::Zero), size };
    Ok(single(word, element, Addressing::Offset(0), Hint::Ordered))
}

/// The register offset of an access of `size` bytes.
fn index(word: u32, size: u8) -> Result<Addressing, Refusal> {
    let extend = match field(word, 13, 3) {
        0b010 => IndexExtend::Word,
        0b110 => IndexExtend::SignedWord,
        0b011 | 0b111 => IndexExtend::Double,
        _ => return Err(Refusal::Unallocated),
    };
    let shift = if bit(word, 12) { size.trailing_zeros() as u8 } else { 0 };
    Ok(Addressing::Index { register: field(word, 16, 5) as u8, extend, shift })
}

/// size, V and opc of the register classes.
fn element(word: u32) -> Result<Element, Refusal> {
    let size = field(word, 30, 2);
    let opc = field(word, 22, 2);
    let (load, bank, size) = if bit(word, 26) {
        match (size, opc) {
            (_, 0b00 | 0b01) => (opc == 1, Bank::Vector, scale(size)),
            (0b00, _) => (opc == 0b11, Bank::Vector, 16),
            _ => return Err(Refusal::Unallocated),
        }
    } else {
        let extension = match (size, opc) {
            (_, 0b00 | 0b01) => Extension::Zero,
            (0b11, 0b10) => return Err(Refusal::Prefetch),
            (_, 0b10) => Extension::Sign64,
            (0b00 | 0b01, _) => Extension::Sign32,
            _ => return Err(Refusal::Unallocated),
        };
        (opc != 0, Bank::General(extension), scale(size))
    };
    Ok(Element { load, bank, size })
}

/// Where PRFM's encoding is not PRFM's.
const fn no_prefetch(refusal: Refusal) -> Refusal {
    if matches!(refusal, Refusal::Prefetch) { Refusal::Unallocated } else { refusal }
}

/// Rt and Rn of every class but literals.
const fn single(word: u32, element: Element, addressing: Addressing, hint: Hint) -> Access {
    let base = match field(word, 5, 5) {
        31 => Base::StackPointer,
        n => Base::General(n as u8),
    };
    let Element { load, bank, size } = element;
    Access { load, bank, size, first: field(word, 0, 5) as u8, second: None, base, addressing, hint }
}

/// Bytes of a two-bit size.
const fn scale(size: u32) -> u8 {
    match size {
        0 => 1,
        1 => 2,
        2 => 4,
        _ => 8,
    }
}

const fn bit(word: u32, n: u32) -> bool {
    word >> n & 1 != 0
}

/// `width` bits from bit `low` on.
const fn field(word: u32, low: u32, width: u32) -> u32 {
    let above = 32u32.wrapping_sub(low).wrapping_sub(width);
    word.wrapping_shl(above).wrapping_shr(above.wrapping_add(low))
}

/// [`field`], sign-extended.
const fn signed(word: u32, low: u32, width: u32) -> i64 {
    let above = 32u32.wrapping_sub(low).wrapping_sub(width);
    (word.wrapping_shl(above) as i32).wrapping_shr(above.wrapping_add(low)) as i64
}
