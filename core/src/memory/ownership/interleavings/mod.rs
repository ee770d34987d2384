// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Every interleaving of two CPUs that move up to three granules between the host and two VMs, over the real table.
//!
//! - here: calls, their steps, what hardware can do meanwhile, and what must hold;
//! - [`machine`]: the state of it all;
//! - [`explore`]: the explorer, and the tests.
//!
//! The steps are those of `private.rs`, `memory.rs` and `lending.rs` in `hypervisor/src/guest` and of `host/mod.rs`: what is
//! done between two locks, or that another CPU's table walk can come between, is a step of its own. Stage-2 tables are an entry
//! a granule, and whether some TLB still holds it. Walks, and stores of guests, can come at any time. Broken orders of the
//! steps ([`Broken`]) have to be found, so that the explorer is known to see.
//!
//! Invariants: who reaches a granule has the right to, TLBs included; a VM's secret is in no page that the host reaches or owns;
//! no state in which nothing can go on. An explorer of 60 lines was taken instead of a crate (stateright, loom): it has to
//! rebuild the real table, which borrows its storage, for each step.

mod explore;
mod machine;

use super::{Scrubbed, State, Transition};
use crate::addr::VmId;
use explore::Label;
use machine::{Content, GRANULES, Machine, Step, Steps, VMS, given_back, loan, page, vm_id};

/// What is wrong with the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// A page counts as the VM's before it has left the host's table.
    CommitBeforeHide,
    NoHide,
    NoHostFlush,
    NoGuestFlush,
    NoScrub,
    /// A loan ends before the borrower's page has.
    LoanEndsFirst,
    /// A fault of the host's is answered by a mapping whoever owns the page.
    RepairWithoutLook,
    /// Host table and ownership are locked in another order.
    LockOrder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Call {
    /// MAP_GUEST, of a protected or a plain VM.
    Map(usize, usize),
    Share(usize, usize),
    Unshare(usize, usize),
    /// MEM_RELINQUISH, or UNMAP_GUEST of a plain VM.
    Unmap(usize, usize),
    /// The VM lends a page to the other one, which maps it, gives it up; the VM takes it back.
    Lend(usize, usize),
    Retrieve(usize, usize),
    Relinquish(usize, usize),
    Reclaim(usize, usize),
    DestroyStep(usize),
    /// GIVE_MEMORY.
    Give(usize, usize),
    /// A fault of the host's.
    Repair(usize),
}

/// The world that is explored.
#[derive(Clone, Copy, Debug)]
struct World {
    broken: Broken,
    protected: [bool; VMS],
    /// Protected VMs lend to each other.
    loans: bool,
    /// The host gives pages for VMs' tables.
    gives: bool,
    granules: usize,
}

impl World {
    /// The steps of a call, last first.
    fn steps(&self, call: Call, m: &Machine) -> Option<Steps> {
        use Step::*;
        use Transition as T;
        let mut steps = vec![];
        match call {
            Call::Map(v, g) if m.granules[g].vm[v] => return None,
            Call::Map(v, g) if self.protected[v] => {
                steps.extend([LockVm(v), Absent(v, g)]);
                self.leave_host(&mut steps, g, T::DonateToVm(vm_id(v)));
                steps.extend([MapVm(v, g), UnlockVm(v)]);
            }
            Call::Map(v, g) => {
                steps.extend([LockVm(v), Absent(v, g), Apply(g, T::ShareWithVm), MapVm(v, g), UnlockVm(v)])
            }
            Call::Share(v, g) if self.protected[v] && m.granules[g].vm[v] => {
                steps.extend([LockVm(v), LockHost, Apply(g, T::VmShare(vm_id(v))), Show(g), UnlockHost]);
                steps.push(UnlockVm(v));
            }
            Call::Unshare(v, g) if self.protected[v] && m.granules[g].vm[v] => {
                steps.push(LockVm(v));
                self.leave_host(&mut steps, g, T::VmUnshare(vm_id(v)));
                steps.push(UnlockVm(v));
            }
            Call::Unmap(v, g) if m.granules[g].vm[v] && !m.dying[v] => {
                steps.extend([LockVm(v), Owned(v, g), UnmapVm(v, g), FlushVm(v, g)]);
                self.release(&mut steps, v, g);
                steps.push(UnlockVm(v));
            }
            Call::Lend(v, g) if self.loans && m.granules[g].vm[v] => {
                steps.extend([LockVm(v), LockBooks, Apply(g, T::VmLend(loan(v))), UnlockBooks, UnlockVm(v)]);
            }
            Call::Retrieve(v, g) if self.loans && !m.granules[g].vm[v] => {
                steps.extend([LockVm(v), LockBooks, Absent(v, g), Apply(g, T::VmRetrieve(loan(1 - v)))]);
                steps.extend([MapVm(v, g), UnlockBooks, UnlockVm(v)]);
            }
            Call::Relinquish(v, g) if m.borrows(v, g) => {
                steps.extend([LockVm(v), LockBooks, Return(v, g), UnlockBooks, UnlockVm(v)]);
            }
            Call::Reclaim(v, g) if m.lends(v, g) => {
                steps.extend([LockVm(v), LockBooks, Reclaim(v, g), UnlockBooks, UnlockVm(v)]);
            }
            Call::Give(v, g) if self.gives => {
                steps.extend([LockVm(v), Alive(v)]);
                self.leave_host(&mut steps, g, T::HostToHypervisor);
                steps.extend([Keep(v, g), UnlockVm(v)]);
            }
            Call::DestroyStep(v) => steps.extend([LockVm(v), EndNext(v), UnlockVm(v)]),
            Call::Repair(g) if !m.granules[g].host && !m.granules[g].host_tlb => {
                steps.extend([LockHost, ShowIfHosts(g), UnlockHost]);
            }
            _ => return None,
        }
        steps.reverse();
        Some(steps)
    }

    fn leave_host(&self, steps: &mut Steps, g: usize, t: Transition) {
        use Step::*;
        match self.broken {
            Broken::CommitBeforeHide => {
                steps.extend([LockHost, Check(g, t), Commit(g, t), Hide(g), FlushHost(g), UnlockHost]);
            }
            Broken::LockOrder => {
                steps.extend([Check(g, t), LockHost, Hide(g), FlushHost(g), Commit(g, t), UnlockHost]);
            }
            _ => steps.extend([LockHost, Check(g, t), Hide(g), FlushHost(g), Commit(g, t), UnlockHost]),
        }
    }

    fn release(&self, steps: &mut Steps, v: usize, g: usize) {
        use Step::*;
        if self.protected[v] {
            steps.extend([Take(v, g), Scrub(g), LockHost, GiveBack(g), Show(g), UnlockHost]);
        } else {
            steps.push(Apply(g, Transition::UnshareWithVm));
        }
    }

    /// What the machine is after the next step of a CPU; none if it has to wait.
    fn step(&self, m: &Machine, cpu: usize) -> Option<Machine> {
        let mut m = m.clone();
        let step = m.cpus[cpu].pop()?;
        let free = |lock: &mut bool| (!std::mem::replace(lock, true)).then_some(());
        match step {
            Step::UnlockVm(_) | Step::UnlockHost | Step::UnlockBooks => {}
            Step::LockVm(v) => free(&mut m.vm_lock[v])?,
            Step::Absent(v, g) if m.granules[g].vm[v] => m.give_up(cpu),
            Step::Absent(..) => {}
            Step::LockBooks => free(&mut m.books_lock)?,
            Step::Owned(v, g) => {
                free(&mut m.table_lock)?;
                m.table_lock = false;
                let owned = match m.state(g) {
                    State::Vm(owner) | State::VmShared(owner) => owner == vm_id(v),
                    State::HostShared(_) => !self.protected[v],
                    _ => false,
                };
                if !owned {
                    m.give_up(cpu);
                }
            }
            Step::Return(v, g) if m.borrows(v, g) => m.then(cpu, &given_back(v, g)),
            Step::Reclaim(v, g) if m.lends(v, g) => {
                let reclaim = Step::Apply(g, Transition::VmReclaim(loan(v)));
                let borrower = 1 - v;
                if self.broken == Broken::LoanEndsFirst && m.borrows(borrower, g) {
                    m.then(cpu, &[Step::Apply(g, Transition::VmRelinquish(loan(v))), reclaim]);
                } else if !m.borrows(borrower, g) {
                    m.then(cpu, &[reclaim]);
                } else if m.vm_lock[borrower] {
                    // Only tried: the call is made again.
                    m.give_up(cpu);
                } else {
                    m.vm_lock[borrower] = true;
                    m.then(cpu, &[Step::UnlockVm(borrower), reclaim]);
                    m.then(cpu, &given_back(borrower, g));
                }
            }
            // Another call was here first.
            Step::Return(..) | Step::Reclaim(..) => m.give_up(cpu),
            Step::LockHost => free(&mut m.host_lock)?,
            Step::Check(g, t) => {
                free(&mut m.table_lock)?;
                if m.table(|o| o.check(page(g), t).is_err()) {
                    m.table_lock = false;
                    m.give_up(cpu);
                }
            }
            Step::Commit(g, t) => {
                m.table(|o| o.apply(page(g), t)).expect("what was checked and is locked");
                m.table_lock = false;
            }
            Step::Apply(g, t) => {
                free(&mut m.table_lock)?;
                m.table_lock = false;
                match (m.table(|o| o.apply(page(g), t)), t) {
                    // The guest's will.
                    (Ok(()), Transition::VmShare(_)) => m.granules[g].content = Content::Public,
                    (Ok(()), _) => {}
                    (Err(_), Transition::UnshareWithVm) => panic!("unshare is refused"),
                    (Err(_), _) => m.give_up(cpu),
                }
            }
            Step::Hide(g) => m.granules[g].host &= self.broken == Broken::NoHide,
            Step::FlushHost(g) => m.granules[g].host_tlb &= self.broken == Broken::NoHostFlush,
            Step::Show(g) => m.granules[g].host = true,
            Step::ShowIfHosts(g) => {
                free(&mut m.table_lock)?;
                m.table_lock = false;
                if m.hosts(g) || self.broken == Broken::RepairWithoutLook {
                    m.granules[g].host = true;
                }
            }
            Step::MapVm(v, g) if m.dying[v] => {
                // Refused: as it came, so it goes. This VM never had it.
                let mut steps = vec![];
                if m.borrows(v, g) {
                    steps.push(Step::Apply(g, Transition::VmRelinquish(loan(1 - v))));
                } else {
                    self.release(&mut steps, v, g);
                }
                m.then(cpu, &steps);
            }
            Step::MapVm(v, g) => m.granules[g].vm[v] = true,
            // Another call was here first.
            Step::UnmapVm(v, g) if !m.granules[g].vm[v] || m.dying[v] => m.give_up(cpu),
            Step::UnmapVm(v, g) => m.granules[g].vm[v] = false,
            Step::FlushVm(v, g) => m.granules[g].vm_tlb[v] &= self.broken == Broken::NoGuestFlush,
            Step::Take(v, g) => {
                free(&mut m.table_lock)?;
                m.table_lock = false;
                let dirty = m.table(|o| o.take(page(g), vm_id(v)));
                assert_eq!(dirty.expect("a page that the VM has").left(), page(g));
            }
            Step::Alive(v) if m.dying[v] => m.give_up(cpu),
            Step::Alive(_) => {}
            Step::Keep(v, g) => m.granules[g].given[v] = true,
            Step::Spare(g) => {
                free(&mut m.table_lock)?;
                m.table_lock = false;
                let dirty = m.table(|o| o.spare(page(g)));
                assert_eq!(dirty.expect("a page that was given").left(), page(g));
            }
            Step::Scrub(g) => {
                if self.broken != Broken::NoScrub {
                    m.granules[g].content = Content::Public;
                }
            }
            Step::GiveBack(g) => {
                free(&mut m.table_lock)?;
                m.table_lock = false;
                m.table(|o| o.give_back(Scrubbed(page(g)))).expect("a token of this table");
                m.granules[g].dirty = [false; VMS];
            }
            Step::EndNext(v) => {
                let borrowed = (0..GRANULES).find(|g| m.borrows(v, *g));
                let lent = (0..GRANULES).find(|g| m.lends(v, *g));
                if let Some(step) = borrowed.map(|g| Step::Return(v, g)).or(lent.map(|g| Step::Reclaim(v, g)))
                {
                    m.then(cpu, &[Step::LockBooks, step, Step::UnlockBooks]);
                } else if !m.dying[v] {
                    // Its root is out of all walkers' sight.
                    m.dying[v] = true;
                    m.then(cpu, &[0, 1, 2].map(|g| Step::FlushVm(v, g)));
                } else if let Some(g) = m.granules.iter().position(|g| g.dirty[v]) {
                    let back = [Step::LockHost, Step::GiveBack(g), Step::Show(g), Step::UnlockHost];
                    m.then(cpu, &back);
                    m.then(cpu, &[Step::Scrub(g)]);
                } else if let Some(g) = m.granules.iter().position(|g| g.vm[v]) {
                    m.granules[g].vm[v] = false;
                    m.granules[g].dirty[v] = self.protected[v];
                    let plain = Step::Apply(g, Transition::UnshareWithVm);
                    m.then(cpu, &[if self.protected[v] { Step::Take(v, g) } else { plain }]);
                } else if let Some(g) = m.granules.iter().position(|g| g.given[v]) {
                    m.granules[g].given[v] = false;
                    m.granules[g].dirty[v] = true;
                    m.then(cpu, &[Step::Spare(g)]);
                } else {
                    // Gone; another of the same id comes.
                    m.dying[v] = false;
                }
            }
        }
        m.unlock(cpu);
        Some(m)
    }

    /// What hardware can do at any time.
    fn accesses(&self, m: &Machine) -> Vec<(Label, Machine)> {
        let mut after = vec![];
        for g in 0..self.granules {
            let now = &m.granules[g];
            if now.host && !now.host_tlb {
                let mut m = m.clone();
                m.granules[g].host_tlb = true;
                after.push((Label::HostWalk(g), m));
            }
            for v in 0..VMS {
                if !(now.vm_tlb[v] || now.vm[v] && !m.dying[v]) {
                    continue;
                }
                let mut m = m.clone();
                m.granules[g].vm_tlb[v] = true;
                match m.state(g) {
                    State::Vm(owner) => m.granules[g].content = Content::Secret(owner),
                    State::Lent(loan) | State::Retrieved(loan) => {
                        m.granules[g].content = Content::Secret(loan.owner);
                    }
                    _ => {}
                }
                after.push((Label::GuestStore(v, g), m));
            }
        }
        after
    }

    /// The first invariant that does not hold.
    fn wrong(&self, m: &Machine) -> Option<String> {
        for (g, now) in m.granules.iter().enumerate() {
            let state = m.state(g);
            let host = now.host || now.host_tlb;
            if host && !m.hosts(g) && state != State::Dirty {
                return Some(format!("the host reaches granule {g}, which is {state:?}"));
            }
            let keeps = |of: VmId| match state {
                State::Vm(owner) => owner == of,
                State::Lent(loan) | State::Retrieved(loan) => loan.owner == of,
                State::Dirty => true,
                _ => false,
            };
            if let Content::Secret(v) = now.content
                && (host || !keeps(v))
            {
                return Some(format!("granule {g} holds a secret of VM {v} while it is {state:?}"));
            }
            for v in 0..VMS {
                let reaches = now.vm_tlb[v] || now.vm[v] && !m.dying[v];
                let may = match state {
                    State::Vm(owner) | State::VmShared(owner) => owner == vm_id(v),
                    State::HostShared(_) => !self.protected[v],
                    State::Lent(loan) => loan.owner == vm_id(v),
                    State::Retrieved(loan) => [loan.owner, loan.borrower].contains(&vm_id(v)),
                    _ => false,
                };
                if reaches && !may {
                    return Some(format!("VM {v} reaches granule {g}, which is {state:?}"));
                }
            }
        }
        None
    }
}
