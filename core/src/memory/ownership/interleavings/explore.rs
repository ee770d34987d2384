// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The explorer, and what is explored.

use super::machine::{CPUS, Machine, Step, VMS};
use super::{Broken, Call, World};
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::rc::Rc;

impl World {
    /// All that can happen next; none if nothing can go on.
    fn next(&self, m: &Machine, calls: &[Call]) -> Option<Vec<(Label, Machine)>> {
        let mut after = vec![];
        let mut goes_on = false;
        for cpu in 0..CPUS {
            if let Some(next) = self.step(m, cpu) {
                after.extend(m.cpus[cpu].last().map(|step| (Label::Step(*step), next)));
                goes_on = true;
            } else if m.cpus[cpu].is_empty() {
                for call in calls {
                    let Some(steps) = self.steps(*call, m) else { continue };
                    let mut m = m.clone();
                    m.cpus[cpu] = steps;
                    // A call that waits for its first lock might as well begin later; a fault is one of the past.
                    let begun = if matches!(call, Call::Repair(_)) { Some(m) } else { self.step(&m, cpu) };
                    after.extend(begun.map(|m| (Label::Call(*call), m)));
                }
                goes_on = true;
                // CPUs are alike: where both are idle, one begins.
                if m.cpus.iter().all(Vec::is_empty) {
                    break;
                }
            }
        }
        after.extend(self.accesses(m));
        goes_on.then_some(after)
    }

    /// Breadth first, so that what is found is found in the fewest steps: numbers of states and of transitions.
    fn explore(&self) -> Result<(usize, usize), Wrong> {
        let calls = calls(self.granules);
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let first = Rc::new(Machine::new());
        let mut known = HashMap::from([(first.clone(), ())]);
        // Each state, where it came from and how.
        let mut states = vec![(first, None)];
        let mut transitions = 0;
        let mut at = 0;
        while let Some(m) = states.get(at).map(|s| s.0.clone()) {
            let Some(after) = self.next(&m, &calls) else {
                return Err(Wrong { what: "nothing can go on".to_owned(), way: way(&states, at) });
            };
            for (label, mut next) in after {
                next.cpus.sort_by_cached_key(|steps| hasher.hash_one(steps));
                transitions += 1;
                let next = Rc::new(next);
                if known.insert(next.clone(), ()).is_some() {
                    continue;
                }
                states.push((next.clone(), Some((at, label))));
                if let Some(what) = self.wrong(&next) {
                    return Err(Wrong { what, way: way(&states, states.len() - 1) });
                }
            }
            at += 1;
        }
        Ok((states.len(), transitions))
    }
}

/// What happened between two states.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "printed")]
pub enum Label {
    Call(Call),
    Step(Step),
    HostWalk(usize),
    GuestStore(usize, usize),
}

struct Wrong {
    what: String,
    way: Vec<Label>,
}

type From = (Rc<Machine>, Option<(usize, Label)>);

fn way(states: &[From], mut at: usize) -> Vec<Label> {
    let mut way = vec![];
    while let Some((before, label)) = states[at].1 {
        way.push(label);
        at = before;
    }
    way.reverse();
    way
}

fn calls(granules: usize) -> Vec<Call> {
    let mut calls = vec![];
    for v in 0..VMS {
        for g in 0..granules {
            calls.extend([Call::Map(v, g), Call::Share(v, g), Call::Unshare(v, g), Call::Unmap(v, g)]);
            calls.push(Call::Give(v, g));
            calls.extend([
                Call::Lend(v, g),
                Call::Retrieve(v, g),
                Call::Relinquish(v, g),
                Call::Reclaim(v, g),
            ]);
        }
        calls.push(Call::DestroyStep(v));
    }
    calls.extend((0..granules).map(Call::Repair));
    calls
}

/// Both VMs protected, with loans between them.
const LENDING: World =
    World { broken: Broken::Nothing, protected: [true; VMS], loans: true, gives: false, granules: 1 };
/// A protected and a plain one.
const MIXED_VMS: World = World { protected: [true, false], loans: false, ..LENDING };

fn holds(world: World) {
    match world.explore() {
        Ok((states, transitions)) => println!("{world:?}: {states} states, {transitions} transitions"),
        Err(wrong) => panic!("{}: {:#?}", wrong.what, wrong.way),
    }
}

#[test]
fn two_protected_vms() {
    holds(LENDING);
    holds(World { loans: false, granules: 2, ..LENDING });
}

#[test]
fn a_protected_and_a_plain_vm() {
    holds(World { granules: 2, ..MIXED_VMS });
}

#[test]
fn pages_for_tables() {
    holds(World { gives: true, ..LENDING });
    holds(World { gives: true, ..MIXED_VMS });
}

/// `cargo test --release -p gzvm-core interleavings -- --ignored --nocapture`: the figures in docs/threat-model.md.
#[test]
#[ignore = "takes minutes and gigabytes"]
fn more_granules() {
    holds(World { granules: 2, ..LENDING });
    holds(World { loans: false, gives: true, granules: 2, ..LENDING });
    holds(World { loans: false, granules: 3, ..LENDING });
    holds(World { granules: 3, ..MIXED_VMS });
}

#[test]
fn what_is_broken_is_found() {
    for broken in [
        Broken::CommitBeforeHide,
        Broken::NoHide,
        Broken::NoHostFlush,
        Broken::NoGuestFlush,
        Broken::NoScrub,
        Broken::LoanEndsFirst,
        Broken::RepairWithoutLook,
        Broken::LockOrder,
    ] {
        let Err(wrong) = (World { broken, ..LENDING }).explore() else { panic!("{broken:?} is not found") };
        println!("{broken:?}: {} after {} steps", wrong.what, wrong.way.len());
    }
}
