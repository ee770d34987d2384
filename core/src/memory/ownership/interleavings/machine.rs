// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What the two CPUs move about: the real table's entries, stage-2 entries, TLBs, locks, and what each CPU has yet to do.

use crate::addr::{Pa, VmId};
use crate::memory::PaRange;
use crate::memory::granule::{Loan, State};
use crate::memory::ownership::{MIXED, Ownership, PAGES, Transition};

/// Granules at the most; a [`World`] may have fewer.
pub const GRANULES: usize = 3;
pub const VMS: usize = 2;
pub const CPUS: usize = 2;
pub const BASE: u64 = 0x4000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Nothing of a VM's that the host may not know.
    Public,
    Secret(VmId),
}

/// A granule, less what the ownership table says of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Granule {
    pub content: Content,
    /// In the host's table; in a TLB.
    pub host: bool,
    pub host_tlb: bool,
    /// In each VM's.
    pub vm: [bool; VMS],
    pub vm_tlb: [bool; VMS],
    /// Taken by a VM's destruction and not given back.
    pub dirty: [bool; VMS],
    /// For a VM's tables.
    pub given: [bool; VMS],
}

/// One step of a call, the first of those that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    LockVm(usize),
    /// Give up if the VM has it already.
    Absent(usize, usize),
    UnlockVm(usize),
    LockHost,
    UnlockHost,
    /// Lock the ownership table, and look whether this may be: else give up.
    Check(usize, Transition),
    /// What was checked, and the table unlocked.
    Commit(usize, Transition),
    /// At once.
    Apply(usize, Transition),
    Hide(usize),
    FlushHost(usize),
    Show(usize),
    ShowIfHosts(usize),
    MapVm(usize, usize),
    UnmapVm(usize, usize),
    FlushVm(usize, usize),
    Take(usize, usize),
    /// Go on where the VM is not being taken apart.
    Alive(usize),
    /// The page is one of those for the VM's tables.
    Keep(usize, usize),
    Spare(usize),
    Scrub(usize),
    GiveBack(usize),
    /// The list of all loans, which is locked after the memory of the VM that calls.
    LockBooks,
    UnlockBooks,
    /// Go on where the page is the VM's and lent to nobody.
    Owned(usize, usize),
    /// What is borrowed goes back; what is lent comes back, wherever it is mapped.
    Return(usize, usize),
    Reclaim(usize, usize),
    /// What comes next at a VM's end.
    EndNext(usize),
}

pub type Steps = Vec<Step>;

#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Machine {
    /// Entries of the real table: the block's, and the granules'.
    pub entries: [u32; 1 + GRANULES],
    pub granules: [Granule; GRANULES],
    /// What is left to be done; last step first.
    pub cpus: [Steps; CPUS],
    pub vm_lock: [bool; VMS],
    pub books_lock: bool,
    pub host_lock: bool,
    pub table_lock: bool,
    pub dying: [bool; VMS],
}

pub fn page(g: usize) -> PaRange {
    PaRange::new(Pa(BASE + 4096 * g as u64), 4096).unwrap()
}

impl Machine {
    pub fn new() -> Self {
        let granule = Granule {
            content: Content::Public,
            host: true,
            host_tlb: false,
            vm: [false; VMS],
            vm_tlb: [false; VMS],
            dirty: [false; VMS],
            given: [false; VMS],
        };
        let host = State::Host.encode();
        Self {
            entries: [host, 0, 0, 0],
            granules: [(); GRANULES].map(|()| granule.clone()),
            cpus: [const { vec![] }; CPUS],
            vm_lock: [false; VMS],
            books_lock: false,
            host_lock: false,
            table_lock: false,
            dying: [false; VMS],
        }
    }

    /// Does `f` with the real table in this machine's state.
    pub fn table<R>(&mut self, f: impl FnOnce(&mut Ownership<'_>) -> R) -> R {
        let bank = PaRange::new(Pa(BASE), 4096 * GRANULES as u64).unwrap();
        let (mut blocks, mut pages) = ([0], [0; PAGES]);
        let mut table = Ownership::new(&[bank], &mut blocks, &mut pages).unwrap();
        table.blocks[0] = self.entries[0];
        table.pages[..GRANULES].copy_from_slice(&self.entries[1..]);
        let result = f(&mut table);
        // The pages of a uniform block mean nothing.
        self.entries = [blocks[0], 0, 0, 0];
        if blocks[0] == MIXED {
            self.entries[1..].copy_from_slice(&pages[..GRANULES]);
        }
        result
    }

    pub fn state(&self, g: usize) -> State {
        let entry = if self.entries[0] == MIXED { self.entries[1 + g] } else { self.entries[0] };
        State::decode(entry).unwrap()
    }

    /// These steps come before what is left of the call.
    pub fn then(&mut self, cpu: usize, steps: &[Step]) {
        self.cpus[cpu].extend(steps.iter().rev());
    }

    /// Gives back locks at once: nobody could tell that from later.
    pub fn unlock(&mut self, cpu: usize) {
        while let Some(step) = self.cpus[cpu].last() {
            match *step {
                Step::UnlockVm(v) => self.vm_lock[v] = false,
                Step::UnlockHost => self.host_lock = false,
                Step::UnlockBooks => self.books_lock = false,
                _ => break,
            }
            self.cpus[cpu].pop();
        }
    }

    pub fn borrows(&self, v: usize, g: usize) -> bool {
        matches!(self.state(g), State::Retrieved(loan) if loan.borrower == vm_id(v))
    }

    pub fn lends(&self, v: usize, g: usize) -> bool {
        matches!(self.state(g), State::Lent(loan) | State::Retrieved(loan) if loan.owner == vm_id(v))
    }

    /// Of what is left of a call only the locks are given back.
    pub fn give_up(&mut self, cpu: usize) {
        let holds_host = !self.cpus[cpu].contains(&Step::LockHost);
        self.cpus[cpu].retain(|step| match step {
            Step::UnlockVm(_) | Step::UnlockBooks => true,
            Step::UnlockHost => holds_host,
            _ => false,
        });
    }

    pub fn hosts(&self, g: usize) -> bool {
        matches!(self.state(g), State::Host | State::HostShared(_) | State::VmShared(_))
    }
}

/// What VM `v` lends, to the other one.
pub const fn loan(v: usize) -> Loan {
    Loan { owner: vm_id(v), borrower: vm_id(1 - v), write: true }
}

/// The borrower's part of the end of a loan.
pub const fn given_back(v: usize, g: usize) -> [Step; 3] {
    let relinquish = Transition::VmRelinquish(loan(1 - v));
    [Step::UnmapVm(v, g), Step::FlushVm(v, g), Step::Apply(g, relinquish)]
}

pub const fn vm_id(v: usize) -> VmId {
    VmId(v as u16 + 1)
}
