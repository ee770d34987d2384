// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every encoding of a system register or instruction, read and written, at EL1 and EL0: nothing hangs, and
//! under gzvm the outcome is what `gzvm_core::vcpu::registers` says.

use core::cell::UnsafeCell;

use gzvm_core::platform::id_registers::{self, Given};
use gzvm_core::vcpu::registers::{self, Presence, Register, Trap, Treatment};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::exception::ec;
use gzvm_guest_kit::{cases, check, check_eq, fail, machine, println, skip, user};

use crate::sysregs::{encoding, execute, execute_with, mrs, refused};
use crate::util::{Below, below};

pub const CASES: &[Case] = cases!["sysregs":
    every_mrs_at_el1, every_mrs_at_el0, every_msr_at_el1, every_msr_at_el0, every_system_instruction_at_el1,
    every_system_instruction_at_el0,
];

/// MSR the same, from Xt.
const fn msr(encoding: u32, t: u32) -> u32 {
    0xD500_0000 | encoding << 5 | t
}

/// Reads that have effects: ICC_IAR0/1_EL1 acknowledge.
fn has_effects(e: u32) -> bool {
    e == encoding(3, 0, 12, 8, 0) || e == encoding(3, 0, 12, 12, 0)
}

/// All encodings of op0 2 and 3.
fn all() -> impl Iterator<Item = u32> {
    (2 << 14..4 << 14).filter(|e| !has_effects(*e))
}

const fn op1(e: u32) -> u32 {
    e >> 11 & 7
}

/// op0, op1, CRn, CRm, op2.
fn fields(e: u32) -> [u8; 5] {
    [(14, 2), (11, 3), (7, 4), (3, 4), (0, 3)].map(|(low, width)| (e >> low & ((1 << width) - 1)) as u8)
}

fn row(e: u32) -> Option<&'static Register> {
    registers::find(fields(e).into())
}

/// What the table says of an access.
#[derive(PartialEq, Eq, Debug)]
enum Expected {
    Undefined,
    Defined,
    Value(u64),
    Either,
}

fn expected(e: u32, read: bool) -> Expected {
    let Some(row) = row(e).filter(|r| if read { r.readable() } else { r.writable() }) else {
        return Expected::Undefined;
    };
    let present = match row.presence {
        Presence::Always => true,
        Presence::Perhaps => false,
        Presence::Field { crm, op2, shift, least } => {
            let id = execute(mrs(encoding(3, 0, 0, crm.into(), op2.into()))).unwrap_or(0);
            id >> shift & 0xF >= u64::from(least)
        }
        Presence::Given { crm, op2, shift, least } => {
            let id = execute(mrs(encoding(3, 0, 0, crm.into(), op2.into()))).unwrap_or(0);
            if id >> shift & 0xF < u64::from(least) {
                return Expected::Undefined;
            }
            true
        }
    };
    match row.treatment {
        _ if !present => Expected::Either,
        Treatment::Trapped(Trap::Constant(value)) if read => Expected::Value(value),
        _ => Expected::Defined,
    }
}

/// Disagreements of a sweep with the table: the console has the first of them.
#[derive(Default)]
struct Disagreements {
    count: usize,
}

impl Disagreements {
    /// So many are printed.
    const PRINTED: usize = 16;

    fn add(&mut self, e: u32, what: core::fmt::Arguments<'_>) {
        self.count += 1;
        if self.count <= Self::PRINTED {
            let name = row(e).map_or("in no row", |r| r.name);
            let [op0, op1, crn, crm, op2] = fields(e);
            println!("note: S{op0}_{op1}_C{crn}_C{crm}_{op2} ({name}) {what}");
        }
    }

    fn outcome(self) -> Outcome {
        check_eq!(self.count, 0, "encodings that the table has otherwise");
        Ok(())
    }
}

fn every_mrs_at_el1() -> Outcome {
    let ours = below() == Below::Gzvm;
    let given = Given { sve: machine::get().arg("given") == Some("sve") };
    let (mut readable, mut undefined, mut bad) = (0, 0, Disagreements::default());
    for e in all() {
        let seen = execute(mrs(e));
        match &seen {
            Ok(_) => readable += 1,
            Err(x) if refused(x.class()) => undefined += 1,
            Err(x) => fail!("encoding {e:#x}: {x}"),
        }
        if !ours {
            continue;
        }
        match (expected(e, true), seen) {
            (Expected::Undefined, Ok(v)) => bad.add(e, format_args!("reads as {v:#x}")),
            (Expected::Defined, Err(x)) => bad.add(e, format_args!("can't be read: {x}")),
            (Expected::Value(v), seen) if seen != Ok(v) => {
                bad.add(e, format_args!("is {seen:x?}, not {v:#x}"))
            }
            _ => {}
        }
        // What is shown of an ID register is within the filter.
        if let (Some(Treatment::Trapped(Trap::IdRegister)), Ok(v)) = (row(e).map(|r| r.treatment), seen) {
            let shown = id_registers::filter(given, (e >> 3 & 15) as u8, (e & 7) as u8, v);
            if v != shown {
                bad.add(e, format_args!("shows {v:#x}, of which {shown:#x} is in the filter"));
            }
        }
    }
    println!("note: EL1 reads {readable} encodings, {undefined} are undefined");
    check!(readable > 50, "only {readable} readable registers");
    bad.outcome()
}

/// At EL0 a register may be there or not, as EL1 has set its controls; what has no row, or is not
/// EL0's (op1 = 3), is not.
fn may_be_el0s(e: u32, read: bool) -> bool {
    below() != Below::Gzvm || op1(e) == 3 && expected(e, read) != Expected::Undefined
}

fn at_el0(e: u32, word: u32, read: bool) -> Result<bool, gzvm_guest_kit::case::Verdict> {
    let class = (user::run(&[word], 0).0 >> 26) as u32;
    match class {
        ec::SVC if may_be_el0s(e, read) => Ok(true),
        ec::SVC => fail!("encoding {e:#x} works at EL0"),
        class if refused(class) => Ok(false),
        _ => fail!("encoding {e:#x}: class {class:#x}"),
    }
}

fn every_mrs_at_el0() -> Outcome {
    let mut readable = 0;
    for e in all() {
        readable += u32::from(at_el0(e, mrs(e), true)?);
    }
    println!("note: EL0 reads {readable} encodings");
    Ok(())
}

fn every_msr_at_el0() -> Outcome {
    if below() != Below::Gzvm {
        skip!("what is undefined is ours to say");
    }
    let mut writable = 0;
    for e in all() {
        writable += u32::from(at_el0(e, msr(e, 31), false)?);
    }
    println!("note: EL0 writes {writable} encodings");
    Ok(())
}

/// Writes back what was read; zero where nothing can be read.
fn every_msr_at_el1() -> Outcome {
    if below() != Below::Gzvm {
        skip!("what is undefined is ours to say");
    }
    let (mut written, mut bad) = (0, Disagreements::default());
    for e in all() {
        let value = execute(mrs(e)).unwrap_or(0);
        match (expected(e, false), execute_with(msr(e, 0), value)) {
            (Expected::Undefined, Ok(_)) => bad.add(e, format_args!("can be written")),
            (Expected::Defined, Err(x)) => bad.add(e, format_args!("can't be written: {x}")),
            (_, Ok(_)) => written += 1,
            (_, Err(x)) if refused(x.class()) => {}
            (_, Err(x)) => fail!("encoding {e:#x}: {x}"),
        }
    }
    println!("note: EL1 writes {written} encodings");
    bad.outcome()
}

#[repr(C, align(4096))]
struct Scratch(UnsafeCell<[u8; 4096]>);
// SAFETY: nobody looks at it.
unsafe impl Sync for Scratch {}
static SCRATCH: Scratch = Scratch(UnsafeCell::new([0; 4096]));

/// SYS and SYSL of op0 1: cache, TLB, address translation, prediction. x0 is an address of nothing of use.
fn system_instructions() -> impl Iterator<Item = (u32, u32, u64)> {
    const SYSL: u32 = 1 << 21;
    (1 << 14..2 << 14).flat_map(|e| {
        // Set and way 0 for DC by set and way.
        let by_set = e >> 7 & 0xF == 7 && matches!(e >> 3 & 0xF, 6 | 10 | 14) && e & 7 != 1;
        let x0 = if by_set { 0 } else { SCRATCH.0.get() as u64 };
        [(e, msr(e, 0), x0), (e, msr(e, 0) | SYSL, x0)]
    })
}

fn every_system_instruction_at_el1() -> Outcome {
    let mut works = 0;
    for (e, word, x0) in system_instructions() {
        match execute_with(word, x0) {
            Ok(_) if below() == Below::Gzvm && op1(e) >= 4 => fail!("encoding {e:#x}, EL2's or EL3's, works"),
            Ok(_) => works += 1,
            Err(x) if refused(x.class()) || x.class() == ec::DATA_ABORT => {}
            Err(x) => fail!("instruction {word:#x}: {x}"),
        }
    }
    println!("note: {works} system instructions work at EL1");
    Ok(())
}

fn every_system_instruction_at_el0() -> Outcome {
    const DATA_ABORT_BELOW: u32 = 0x24;
    let mut works = 0;
    for (e, word, x0) in system_instructions() {
        match (user::run(&[word], x0).0 >> 26) as u32 {
            ec::SVC if op1(e) == 3 => works += 1,
            ec::SVC => fail!("encoding {e:#x} works at EL0"),
            DATA_ABORT_BELOW => {}
            class if refused(class) => {}
            class => fail!("instruction {word:#x}: class {class:#x}"),
        }
    }
    println!("note: {works} system instructions work at EL0");
    Ok(())
}
