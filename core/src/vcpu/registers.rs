// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every system register that a guest can name, and what becomes of it: one table.
//!
//! The trap handler (`hypervisor/src/guest/sysreg.rs`) looks up here what a trapped access means; the
//! test guest walks all encodings and compares what it sees with this table; `docs/architecture.md`
//! holds it in print, and a test keeps it so.
//!
//! # Invariants
//! - What is not in [`TABLE`] is undefined to a guest at every exception level, and so are [`Hidden`]
//!   rows, which are there so that the table names them.
//! - The rows of one (op0, op1, CRn) stand together, at most one of them holds an encoding. Of CRn 12, where
//!   the hot ICC_SGI1R_EL1 is, that one stands first.
//!
//! [`Hidden`]: Treatment::Hidden

mod table;
#[cfg(test)]
mod tests;

pub use table::TABLE;

/// What becomes of a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Treatment {
    /// In the CPU while the vCPU runs, kept with the vCPU otherwise.
    Switched,
    /// A part of PSTATE, which the exception vectors keep.
    Pstate,
    /// The CPU's own, for everybody the same: read-only, or without a state.
    Cpu,
    /// The hardware's virtual register, which EL2 has set up for the guest.
    Virtual,
    /// Every access traps, and EL2 answers.
    Trapped(Trap),
    /// Undefined: it traps and EL2 injects that, or the CPU does.
    Hidden,
}

/// How EL2 answers a trapped access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Trap {
    /// Reads as this, ignores writes.
    Constant(u64),
    /// The CPU's value through the filter of [`id_registers`](crate::platform::id_registers).
    IdRegister,
    /// ICC_SGI1R_EL1: the vGIC sends.
    Sgi1,
    /// ICC_ASGI1R_EL1.
    AliasSgi1,
    /// ICC_SGI0R_EL1.
    Sgi0,
    /// ICC_DIR_EL1, while it is trapped.
    Deactivate,
    /// OSLAR_EL1.
    OsLockAccess,
    /// OSLSR_EL1.
    OsLockStatus,
    /// MDSCR_EL1.
    DebugControl,
    /// DBGBVR<n>_EL1, n = CRm, and so on.
    BreakpointValue,
    /// DBGBCR<n>_EL1.
    BreakpointControl,
    /// DBGWVR<n>_EL1.
    WatchpointValue,
    /// DBGWCR<n>_EL1.
    WatchpointControl,
    /// CNTPCT_EL0 and CNTP_*: [`platform::timer`](crate::platform::timer) answers.
    PhysicalTimer,
}

/// Directions that exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// MRS.
    ReadOnly,
    /// MSR.
    WriteOnly,
    /// Both.
    ReadWrite,
}

/// When a guest finds the register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// Always.
    Always,
    /// If a field of an ID register S3_0_C0_C`crm`_`op2`, as the guest reads it, is at least that; nothing
    /// is promised otherwise.
    Field {
        /// CRm of the ID register.
        crm: u8,
        /// Its op2.
        op2: u8,
        /// Lowest bit of the field.
        shift: u8,
        /// The least value that brings the register.
        least: u8,
    },
    /// The same, but undefined otherwise: for VMs that have been given a feature.
    Given {
        /// CRm of the ID register.
        crm: u8,
        /// Its op2.
        op2: u8,
        /// Lowest bit of the field.
        shift: u8,
        /// The least value that brings the register.
        least: u8,
    },
    /// Where the CPU has it; guests are not told.
    Perhaps,
}

/// A row: a register, or several with one treatment.
#[derive(Clone, Copy, Debug)]
pub struct Register {
    /// Its name in the Arm ARM; `<n>` stands for CRm or op2.
    pub name: &'static str,
    /// op0, op1 and CRn.
    pub group: (u8, u8, u8),
    /// First and last CRm.
    pub crm: (u8, u8),
    /// First and last op2.
    pub op2: (u8, u8),
    /// Directions.
    pub access: Access,
    /// What becomes of it.
    pub treatment: Treatment,
    /// When it is there.
    pub presence: Presence,
}

impl Register {
    const fn holds(&self, crm: u8, op2: u8) -> bool {
        self.crm.0 <= crm && crm <= self.crm.1 && self.op2.0 <= op2 && op2 <= self.op2.1
    }

    /// MRS is defined.
    pub const fn readable(&self) -> bool {
        !matches!(self.treatment, Treatment::Hidden) && !matches!(self.access, Access::WriteOnly)
    }

    /// MSR is defined.
    pub const fn writable(&self) -> bool {
        !matches!(self.treatment, Treatment::Hidden) && !matches!(self.access, Access::ReadOnly)
    }
}

/// Where in [`TABLE`] the rows of each (op0, op1, CRn) begin, and how many there are.
static GROUPS: [(u8, u8); 256] = groups();

const fn group_index(op0: u8, op1: u8, crn: u8) -> usize {
    ((op0 & 1) as usize) << 7 | ((op1 & 7) as usize) << 4 | (crn & 0xF) as usize
}

#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)] // At compile time.
const fn groups() -> [(u8, u8); 256] {
    let mut groups = [(0, 0); 256];
    let mut row = 0;
    while row < TABLE.len() {
        let (op0, op1, crn) = TABLE[row].group;
        let group = &mut groups[group_index(op0, op1, crn)];
        if group.1 == 0 {
            group.0 = row as u8;
        }
        group.1 += 1;
        assert!(group.0 as usize + group.1 as usize == row + 1, "rows of a group stand together");
        row += 1;
    }
    assert!(TABLE.len() < 256);
    groups
}

/// The row of an encoding with op0 2 or 3: op0, op1, CRn, CRm, op2.
pub fn find((op0, op1, crn, crm, op2): (u8, u8, u8, u8, u8)) -> Option<&'static Register> {
    if op0 & 2 == 0 {
        return None;
    }
    let (first, count) = GROUPS.get(group_index(op0, op1, crn))?;
    let first = usize::from(*first);
    let rows = TABLE.get(first..first.checked_add(usize::from(*count))?)?;
    rows.iter().find(|row| row.holds(crm, op2))
}

/// How EL2 answers a trapped access, `read` or not; None: it is undefined.
pub fn trap(key: (u8, u8, u8, u8, u8), read: bool) -> Option<Trap> {
    let row = find(key)?;
    let defined = if read { row.readable() } else { row.writable() };
    match row.treatment {
        Treatment::Trapped(trap) if defined => Some(trap),
        _ => None,
    }
}
