// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Cases in which other hypervisors lost, doubled or stalled interrupts.

mod active;
mod elsewhere;
mod lifetime;
mod lines;
mod overflow;
mod targets;
mod timer;

use super::machine::Machine;

const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const ICACTIVER: u64 = 0x380;
const RWP: u64 = 1 << 31;
const ANY: u64 = 1 << 31;
const LRS: [usize; 5] = [1, 2, 3, 4, 16];

/// Machine with EOImode 1 everywhere.
fn split(vcpus: usize, nr_lrs: usize) -> Machine {
    let mut m = Machine::ready(vcpus, nr_lrs);
    m.cpus.iter_mut().for_each(|cpu| cpu.set_split_eoi(true));
    m
}

fn edge(m: &mut Machine, id: u32) {
    let offset = 0xC00 + u64::from(id / 16 * 4);
    let now = m.read(0, offset, 4);
    m.write(0, offset, 4, now | 2 << (id % 16 * 2));
}
