// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The table against itself, and against the page that holds it in print.

use std::fmt::Write;
use std::string::String;
use std::vec::Vec;

use super::*;
use crate::platform::id_registers::{Given, filter};

/// All encodings with op0 2 and 3.
fn all() -> impl Iterator<Item = (u8, u8, u8, u8, u8)> {
    (2 << 14..4 << 14u32).map(|e| {
        ((e >> 14) as u8, (e >> 11 & 7) as u8, (e >> 7 & 15) as u8, (e >> 3 & 15) as u8, (e & 7) as u8)
    })
}

#[test]
fn an_encoding_has_one_row() {
    for key @ (op0, op1, crn, crm, op2) in all() {
        let rows: Vec<_> = TABLE
            .iter()
            .filter(|r| r.group == (op0, op1, crn) && r.holds(crm, op2))
            .map(|r| r.name)
            .collect();
        assert!(rows.len() <= 1, "{key:?}: {rows:?}");
        assert_eq!(find(key).map(|r| r.name), rows.first().copied(), "{key:?}");
    }
    for row in TABLE {
        assert!(row.group.0 & 2 != 0 && row.crm.0 <= row.crm.1 && row.op2.0 <= row.op2.1, "{}", row.name);
        assert!(row.crm.1 < 16 && row.op2.1 < 8, "{}", row.name);
    }
    assert!(find((1, 0, 7, 4, 0)).is_none() && find((0, 3, 2, 0, 0)).is_none());
}

#[test]
fn the_hot_register_stands_first_in_its_group() {
    let first = TABLE.iter().find(|r| r.group == (3, 0, 12)).map(|r| r.treatment);
    assert_eq!(first, Some(Treatment::Trapped(Trap::Sgi1)));
}

#[test]
fn registers_of_el2_and_el3_are_nobodys() {
    for key in all().filter(|(op0, op1, ..)| *op0 == 3 && *op1 >= 4) {
        assert!(find(key).is_none(), "{key:?}");
    }
}

#[test]
fn directions_count() {
    assert_eq!(trap((3, 0, 12, 11, 5), false), Some(Trap::Sgi1));
    assert_eq!(trap((3, 0, 12, 11, 5), true), None, "ICC_SGI1R_EL1 can't be read");
    assert_eq!(trap((3, 0, 0, 4, 0), true), Some(Trap::IdRegister));
    assert_eq!(trap((3, 0, 0, 4, 0), false), None, "ID registers can't be written");
    assert_eq!(trap((3, 0, 1, 0, 0), true), None, "SCTLR_EL1 does not trap");
    assert_eq!(trap((3, 3, 9, 12, 0), true), None, "PMCR_EL0 is hidden");
    assert_eq!(trap((2, 0, 1, 0, 4), true), None, "OSLAR_EL1 can't be read");
}

/// The timer and the table name the same registers.
#[test]
fn the_physical_timers_rows_are_the_timers() {
    for key in all() {
        let timers = crate::platform::timer::Register::of(key).is_some();
        assert_eq!(trap(key, true) == Some(Trap::PhysicalTimer), timers, "{key:?}");
    }
    assert_eq!(trap((3, 3, 14, 0, 1), false), None, "CNTPCT_EL0 can't be written");
}

type Key = (u8, u8, u8, u8, u8);

/// ID register (CRm, op2), lowest bit of the field, the least value of it that brings a register with state, and
/// that register.
const BRINGS: &[(&str, u8, u8, u32, u64, Key)] = &[
    ("RAS", 4, 0, 28, 1, (3, 0, 5, 3, 0)),
    ("SVE", 4, 0, 32, 1, (3, 0, 1, 2, 0)),
    ("MPAM", 4, 0, 40, 1, (3, 0, 10, 5, 0)),
    ("AMU", 4, 0, 44, 1, (3, 3, 13, 2, 0)),
    ("DIT", 4, 0, 48, 1, (3, 3, 4, 2, 5)),
    ("CSV2_2", 4, 0, 56, 2, (3, 0, 13, 0, 7)),
    ("SSBS2", 4, 1, 4, 2, (3, 3, 4, 2, 6)),
    ("MTE2", 4, 1, 8, 1, (3, 0, 1, 0, 6)),
    ("MPAM_frac", 4, 1, 16, 1, (3, 0, 10, 5, 0)),
    ("SME", 4, 1, 24, 1, (3, 0, 1, 2, 6)),
    ("CSV2_frac", 4, 1, 32, 2, (3, 0, 13, 0, 7)),
    ("NMI", 4, 1, 36, 1, (3, 0, 4, 3, 0)),
    ("GCS", 4, 1, 44, 1, (3, 0, 2, 5, 0)),
    ("THE", 4, 1, 48, 1, (3, 0, 13, 0, 6)),
    ("FPMR", 4, 2, 32, 1, (3, 3, 4, 4, 2)),
    ("debug", 5, 0, 0, 6, (2, 0, 0, 0, 4)),
    ("PMU", 5, 0, 8, 1, (3, 3, 9, 12, 0)),
    ("SPE", 5, 0, 32, 1, (3, 0, 9, 9, 0)),
    ("TRF", 5, 0, 40, 1, (3, 0, 1, 2, 1)),
    ("TRBE", 5, 0, 44, 1, (3, 0, 9, 11, 0)),
    ("RNDR", 6, 0, 60, 1, (3, 3, 2, 4, 0)),
    ("APA", 6, 1, 4, 1, (3, 0, 2, 1, 0)),
    ("API", 6, 1, 8, 1, (3, 0, 2, 2, 0)),
    ("GPA", 6, 1, 24, 1, (3, 0, 2, 3, 0)),
    ("GPI", 6, 1, 28, 1, (3, 0, 2, 3, 1)),
    ("LS64_ACCDATA", 6, 1, 60, 3, (3, 0, 13, 0, 5)),
    ("GPA3", 6, 2, 8, 1, (3, 0, 2, 3, 0)),
    ("APA3", 6, 2, 12, 1, (3, 0, 2, 1, 0)),
    ("LOR", 7, 1, 16, 1, (3, 0, 10, 4, 3)),
    ("PAN", 7, 1, 20, 1, (3, 0, 4, 2, 3)),
    ("UAO", 7, 2, 4, 1, (3, 0, 4, 2, 4)),
    ("CCIDX", 7, 2, 20, 1, (3, 1, 0, 0, 2)),
    ("TCRX", 7, 3, 0, 1, (3, 0, 2, 0, 3)),
    ("SCTLRX", 7, 3, 4, 1, (3, 0, 1, 0, 3)),
    ("S1PIE", 7, 3, 8, 1, (3, 0, 10, 2, 3)),
    ("S1POE", 7, 3, 16, 1, (3, 0, 10, 2, 4)),
    ("AIE", 7, 3, 24, 1, (3, 0, 10, 2, 1)),
];

/// No field that is shown brings a register that nobody keeps, and none is kept from a guest that is shown it.
#[test]
fn id_registers_and_registers_agree() {
    for sve in [false, true] {
        let given = Given { sve };
        for &(name, crm, op2, shift, least, key) in BRINGS {
            // The most that any CPU can have in the field; 0xF says "absent" or "not ours" in some.
            let shown = (0..0xF).map(|v| filter(given, crm, op2, v << shift) >> shift & 0xF).max().unwrap();
            let row = find(key);
            if shown >= least {
                let kept = row.is_some_and(|r| r.treatment != Treatment::Hidden);
                assert!(kept, "{name} is shown, and {key:?} is not kept");
            } else {
                let promised =
                    row.is_some_and(|r| r.treatment != Treatment::Hidden && r.presence == Presence::Always);
                assert!(!promised, "{name} is hidden, and {key:?} is promised");
            }
        }
    }
}

/// Presence is told by fields that the filter shows at least to somebody.
#[test]
fn presence_is_told_by_fields_that_are_shown() {
    for row in TABLE {
        if let Presence::Given { crm, op2, shift, least } = row.presence {
            let shown = |sve| filter(Given { sve }, crm, op2, u64::MAX) >> shift & 0xF;
            assert!(shown(true) >= u64::from(least) && shown(false) == 0, "{}", row.name);
        }
    }
}

const BEGIN: &str = "<!-- core/src/vcpu/registers/table.rs, by its test; GZ_UPDATE_DOCS=1 writes it -->\n";
const END: &str = "<!-- end -->\n";

type Part = (&'static str, fn(Treatment) -> bool);

const PARTS: &[Part] = &[
    ("switched with the vCPU", |t| t == Treatment::Switched),
    ("PSTATE, kept by the vectors", |t| t == Treatment::Pstate),
    ("the CPU's own", |t| t == Treatment::Cpu),
    ("the hardware's virtual register", |t| t == Treatment::Virtual),
    ("trapped: the vGIC's", |t| {
        matches!(t, Treatment::Trapped(Trap::Sgi1 | Trap::AliasSgi1 | Trap::Sgi0 | Trap::Deactivate))
    }),
    ("trapped: ID registers, filtered", |t| t == Treatment::Trapped(Trap::IdRegister)),
    ("trapped: debug", |t| {
        matches!(
            t,
            Treatment::Trapped(
                Trap::OsLockAccess
                    | Trap::OsLockStatus
                    | Trap::DebugControl
                    | Trap::BreakpointValue
                    | Trap::BreakpointControl
                    | Trap::WatchpointValue
                    | Trap::WatchpointControl
            )
        )
    }),
    ("trapped: physical counter and timer, emulated", |t| t == Treatment::Trapped(Trap::PhysicalTimer)),
    ("trapped: read as zero, ignore writes", |t| t == Treatment::Trapped(Trap::Constant(0))),
    ("trapped: read as 7, ignores writes", |t| t == Treatment::Trapped(Trap::Constant(7))),
    ("hidden: undefined", |t| t == Treatment::Hidden),
];

fn printed() -> String {
    let mut text = String::from("| treatment | registers |\n|---|---|\n");
    for (name, holds) in PARTS {
        let rows: Vec<_> = TABLE.iter().filter(|r| holds(r.treatment)).map(|r| r.name).collect();
        writeln!(text, "| {name} | {} |", rows.join(", ")).unwrap();
    }
    text
}

#[test]
fn every_treatment_is_printed_once() {
    for row in TABLE {
        assert_eq!(PARTS.iter().filter(|(_, holds)| holds(row.treatment)).count(), 1, "{}", row.name);
    }
}

#[test]
fn the_architecture_page_has_this_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/architecture.md");
    let page = std::fs::read_to_string(path).unwrap();
    let begin = page.find(BEGIN).expect("the table's place") + BEGIN.len();
    let end = begin + page[begin..].find(END).expect("the table's end");
    if std::env::var_os("GZ_UPDATE_DOCS").is_some() {
        std::fs::write(path, std::format!("{}{}{}", &page[..begin], printed(), &page[end..])).unwrap();
        return;
    }
    assert!(
        page[begin..end] == printed(),
        "docs/architecture.md is old: run this test with GZ_UPDATE_DOCS=1"
    );
}
