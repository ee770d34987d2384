// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Random numbers for guests (TRNG firmware interface, Arm DEN0098).

use gzvm_abi::run::{Mmio, exit};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::{cases, check, check_eq, read_sysreg};

use crate::guest_runs::power_off;
use crate::pages;
use crate::programs::{self, DEVICE};
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["random": numbers_of_a_guest];

/// There where the CPU has FEAT_RNG: QEMU's firmware has none of its own. Without, no register but x0 changes.
fn numbers_of_a_guest() -> Outcome {
    let there = read_sysreg!("id_aa64isar0_el1") >> 60 != 0;
    let mut vm = Vm::new(programs::random(), 1)?;
    let mut seen = [[0u64; 4]; 2];
    for registers in &mut seen {
        for (register, offset) in registers.iter_mut().zip([0x10, 0x18, 0x20, 0x28]) {
            check_eq!(vm.run(0)?, exit::MMIO, "exit");
            let mmio = Mmio::read(&vm.report(0));
            check_eq!(mmio.phys_addr - DEVICE, offset, "which register");
            *register = u64::from_le_bytes(mmio.data);
        }
    }
    let [first, second] = seen;
    if there {
        check_eq!((first[0], second[0]), (0, 0), "status");
        for n in 1..4 {
            check!(first[n] != second[n] && first[n] != 0, "x{n}: {:#x}, then {:#x}", first[n], second[n]);
        }
    } else {
        check_eq!(seen, [[u64::MAX, 192, 0x2222, 0x3333]; 2], "without a source");
    }
    power_off(&mut vm)?;
    vm.destroy()?;
    pages::reset();
    Ok(())
}
