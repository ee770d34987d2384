// SPDX-License-Identifier: Apache-2.0 OR MIT
//! IRQ_LEVEL: lines that stay as they are driven, and those that fall at the guest's EOI.

use gzvm_abi::hypercall::{Function, IRQ_LEVEL_RESAMPLE, Status};
use gzvm_abi::run::{Mmio, Resampled, exit};
use gzvm_guest_kit::case::{Case, Outcome};
use gzvm_guest_kit::hypercall::{Reply, call};
use gzvm_guest_kit::{cases, check, check_eq};

use crate::pages;
use crate::programs::{self, SPI};
use crate::vm::Vm;

pub const CASES: &[Case] = cases!["levels":
    end_of_a_resampled_line_is_told_once, plain_level_tells_nothing, mark_goes_with_a_call_without_it, arguments,
];

fn drive(vm: &Vm, irq: u64, level: u64, flags: u64) -> Reply {
    call(Function::IrqLevel, &[vm.tuple(0), irq, level, flags])
}

/// Runs `waits_for_spi` to the store between its acknowledge and its EOI.
fn acknowledge(vm: &mut Vm) -> Outcome {
    check_eq!(vm.run(0)?, exit::MMIO, "exit of a guest with an interrupt");
    let mmio = Mmio::read(&vm.report(0));
    check_eq!(u64::from_le_bytes(mmio.data), 32 + SPI, "INTID");
    Ok(())
}

fn end_of_a_resampled_line_is_told_once() -> Outcome {
    let mut vm = Vm::new(programs::waits_for_spi(), 1)?;
    check!(drive(&vm, SPI, 1, IRQ_LEVEL_RESAMPLE).ok(), "IRQ_LEVEL");
    acknowledge(&mut vm)?;
    check_eq!(vm.run(0)?, exit::RESAMPLED, "exit at the EOI");
    let ended = Resampled::read(&vm.report(0));
    check_eq!((ended.count, ended.intids[0]), (1, 32 + SPI as u32), "count and INTID");
    check!(ended.intids[1..].iter().all(|intid| *intid == 0), "more than one INTID");
    // Were the line still high, the guest would be interrupted again: it has ended by then.
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "last exit");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn plain_level_tells_nothing() -> Outcome {
    let mut vm = Vm::new(programs::waits_for_spi(), 1)?;
    check!(drive(&vm, SPI, 1, 0).ok(), "IRQ_LEVEL");
    acknowledge(&mut vm)?;
    check!(drive(&vm, SPI, 0, 0).ok(), "IRQ_LEVEL, low");
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "last exit");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn mark_goes_with_a_call_without_it() -> Outcome {
    let mut vm = Vm::new(programs::waits_for_spi(), 1)?;
    check!(drive(&vm, SPI, 1, IRQ_LEVEL_RESAMPLE).ok(), "IRQ_LEVEL");
    acknowledge(&mut vm)?;
    check!(drive(&vm, SPI, 0, 0).ok(), "IRQ_LEVEL without the mark");
    check_eq!(vm.run(0)?, exit::SYSTEM_EVENT, "last exit");
    vm.destroy()?;
    pages::reset();
    Ok(())
}

fn arguments() -> Outcome {
    let vm = Vm::new(programs::waits_for_spi(), 1)?;
    let ppi = 2 << 24 | 20;
    for (irq, level, flags) in [
        (SPI, 2, 0),
        (SPI, u64::MAX, 1),
        (SPI, 1, 2),
        (SPI, 1, u64::MAX),
        (0xFFFF, 1, 1),
        (988, 1, 0),
        (1 << 32, 1, 0),
        (ppi, 1, IRQ_LEVEL_RESAMPLE),
        (2 << 24 | 15, 1, 0),
        (2 << 24 | 32, 1, 0),
    ] {
        let status = drive(&vm, irq, level, flags).status();
        check_eq!(
            status,
            Some(Status::InvalidArgs),
            "IRQ_LEVEL of {irq:#x}, level {level:#x}, flags {flags:#x}"
        );
    }
    check!(drive(&vm, ppi, 1, 0).ok() && drive(&vm, ppi, 0, 0).ok(), "IRQ_LEVEL of a PPI");
    check!(!call(Function::IrqLevel, &[0xFFFF_0000, SPI, 1, 0]).ok(), "IRQ_LEVEL of no VM");
    vm.destroy()?;
    pages::reset();
    Ok(())
}
